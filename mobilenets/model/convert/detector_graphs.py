"""A detector in a TFLite file as one of ours: its last operator says which layers predict, the others come in order."""

from __future__ import annotations

from mobilenets.arch import detectors
from mobilenets.arch.operations import Op
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model.convert.detectors import Detector
from mobilenets.model.convert.formats import tflite
from mobilenets.model.convert.graphs import unfolded
from mobilenets.model.convert.recognise import widths

NETWORKS = ("v1", "v2", "v3-large", "v3-small", "v3-large-minimalistic", "v3-small-minimalistic")
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class _Wires:
    """Which layers of a file feed which."""

    def __init__(self, graph: tflite.Graph, where: str) -> None:
        self.graph, self.where = graph, where
        self.number: dict[int, int] = {}  # operator -> which of the layers it is
        for i, op in enumerate(graph.ops):
            if op in _LAYERS:
                self.number[i] = len(self.number)
        self.at = {layer: op for op, layer in self.number.items()}

    def layers_before(self, op: int) -> list[int]:
        """The layers whose outputs come to an operator, through whatever isn't one: several where they are joined."""
        found: list[int] = []
        waiting = [op]
        for _ in range(len(self.graph.ops)):
            if not waiting:
                return found
            at = waiting.pop(0)
            if at in self.number:
                found.append(self.number[at])
            elif at >= 0:
                waiting = [*self.graph.wires[at], *waiting]
        raise UserError(f"{self.where}: its boxes and scores aren't of layers joined one after another")

    def source(self, layer: int) -> int | None:
        """The layer that feeds another; None of the first, and where several do, as before and after an addition."""
        found = set(self.layers_before(self.graph.wires[self.at[layer]][0])) if self.at[layer] else set()
        return found.pop() if len(found) == 1 else None


def from_graph(graph: tflite.Graph, where: str, name: str | None, alpha: float | None) -> Detector:
    """The detector whose layers are the graph's, one by one, and fed alike. Raises `UserError`."""
    assert graph.boxes
    wires = _Wires(graph, where)
    boxes, kinds = (wires.layers_before(op) for op in (graph.boxes.boxes, graph.boxes.scores))
    lite = bool(boxes) and graph.layers[wires.source(boxes[0]) or 0].kind == "depthwise"
    counts = [len(graph.layers[i].bias) // 4 for i in boxes]
    if not counts or len(boxes) != len(kinds) or min(counts) < 1:
        raise UserError(f"{where}: a detector with {len(boxes)} layers for boxes and {len(kinds)} for classes")
    classes = len(graph.layers[kinds[0]].bias) // counts[0]
    family = "ssdlite" if lite else "ssd"
    kernel = None if lite else graph.layers[boxes[0]].weight.shape[2]
    best: tuple[int, Arch] | None = None
    for network, width in ((n, w) for n in NETWORKS for w in widths(alpha, n)):
        if name not in (None, network) or alpha not in (None, width):
            continue
        arch = detectors.detector_arch(family, network, width, graph.input_size)
        if len(detectors.maps(arch, family)) != len(counts) or classes < 2:
            continue
        head = detectors.ssd_head(arch, classes, family, per_cell=counts, kernel=kernel)
        layers = list(arch.graph.with_head(head).layers)
        numbers = _in_order(layers, boxes, kinds, wires)
        ours = [((op.cout, op.cin // op.groups, *op.kernels), op.stride) for op in layers]
        theirs = [(graph.layers[i].weight.shape, graph.layers[i].stride) if i is not None else None for i in numbers]
        if ours == theirs and len(graph.layers) == len(layers) and _fed_alike(arch, layers, numbers, wires, graph):
            pairs = [(op, graph.layers[i]) for op, i in zip(layers, numbers, strict=True) if i is not None]
            return Detector("TFLite", family, arch, head, classes, unfolded(pairs, arch.bn_eps))
        alike = sum(a == b for a, b in zip(ours, theirs, strict=True))
        if best is None or alike > best[0]:
            best = (alike, arch)
    nearest = "" if best is None else (
        f": the nearest, {family} on {best[1].name.upper()} at alpha {best[1].alpha:g}, has {best[0]} layers as in the "
        f"file's {len(graph.layers)}"
    )  # fmt: skip
    raise UserError(f"{where}: a detector, but none that is known{nearest}")


def _in_order(layers: list[Op], boxes: list[int], kinds: list[int], wires: _Wires) -> list[int | None]:
    """Which of the file's layers each of ours is: predictors as they were found, the others in the file's order."""
    predictors: dict[str, int | None] = {}
    for what, found in (("box", boxes), ("class", kinds)):
        for i, layer in enumerate(found):
            own = [op.name for op in layers if op.name.startswith(f"detect.{what}.{i}.")]  # depthwise before 1x1
            predictors[own[-1]] = layer
            if len(own) > 1:
                predictors[own[0]] = wires.source(layer)
    taken = {*predictors.values()}
    left = iter([i for i in range(len(wires.at)) if i not in taken])
    return [predictors[op.name] if op.name in predictors else next(left, None) for op in layers]


def _fed_alike(arch: Arch, layers: list[Op], numbers: list[int | None], wires: _Wires, graph: tflite.Graph) -> bool:
    """Whether each layer that reads one other layer does so in the file too; what is in between isn't compared."""
    number = {op.name: i for op, i in zip(layers, numbers, strict=True)}
    by_name = {op.name: op for op in (*arch.graph.ops, *layers)}
    for op in layers:
        source = by_name.get(op.inputs[0])
        if source is None or source.name not in number:
            continue
        if wires.source(number[op.name] or 0) != number[source.name]:
            return False
    return len({*numbers}) == len(graph.layers)
