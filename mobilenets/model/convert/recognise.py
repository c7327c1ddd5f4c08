"""Which network foreign tensors are of, by names and shapes or by the order of layers; and those tensors as ours."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.arch import spec, zoo
from mobilenets.arch.graph import Activation, Op
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model.convert.formats import tflite
from mobilenets.model.convert.namings import NAMINGS, Naming

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
# Widths that somebody published weights of.
ALPHAS = (1.0, 0.75, 0.5, 0.25, 0.35, 1.25, 1.3, 1.4)
OPTIONAL = ("scale", "norm.num_batches_tracked")
# What training leaves beside the weights.
LEFTOVERS = re.compile(
    r"(^|/)(global_step|beta[12]_power|.*(RMSProp|Momentum|Adam|Adagrad)(_\d+)?)$|_quant/|num_batches_tracked$"
)
SHOWN = 4  # tensors of each kind that an error names


@dataclass(frozen=True)
class Slot:
    """One of our tensors and where another library keeps it: its names there, the first that exists."""

    op: Op
    role: str
    theirs: tuple[str, ...]

    @property
    def ours(self) -> str:
        inside = "" if self.op.kind == "linear" or self.role.startswith("norm.") else "conv."
        return f"{self.op.name}.{inside}{self.role}"

    @property
    def shape(self) -> tuple[int, ...]:
        op = self.op
        if self.role == "weight":
            return (op.cout, op.cin // op.groups, op.kernel, op.kernel)
        return () if self.role == "norm.num_batches_tracked" else (op.cout,)


def slots(naming: Naming, arch: Arch) -> list[Slot]:
    """Every tensor of `arch`, and its names in `naming`."""
    out = []
    for op, pattern, scale in naming.patterns(arch):
        conv, _, norm = pattern.partition("|")
        roles = [(conv, "weight")] if conv else []
        roles += [(conv, "bias")] if op.bias else []
        roles += [(norm, role) for role in naming.style.roles if role.startswith("norm.") and op.norm]
        roles += [(scale, "scale")] if scale else []
        out += [Slot(op, role, tuple(prefix + s for s in naming.style.roles[role])) for prefix, role in roles]
    return out


def in_our_layout(array: Array, layout: str, depthwise: bool) -> Array:
    """A filter as [cout, cin/groups, K, K], whatever framework it comes from; anything else as it is."""
    if array.ndim == 2:
        return (array.T if layout == "hwio" else array)[:, :, None, None]
    if array.ndim == 4 and layout == "hwio":
        return array.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1))
    return array


@dataclass(frozen=True)
class Match:
    """How tensors fit a network under a naming; `told`: it is one that was asked for."""

    naming: Naming
    arch: Arch
    found: Mapping[Slot, str]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    misshapen: tuple[str, ...]
    told: bool = False

    @property
    def exact(self) -> bool:
        return not (self.missing or self.extra or self.misshapen)

    @property
    def faults(self) -> int:
        return len(self.missing) + len(self.extra) + len(self.misshapen)

    def __str__(self) -> str:
        return f"{self.arch.name.upper()} at alpha {self.arch.alpha:g} in {self.naming.origin}'s names"

    @property
    def complaint(self) -> str:
        kinds = (("missing", self.missing), ("extra", self.extra), ("misshapen", self.misshapen))
        return "; ".join(f"{kind}: {_some(names)}" for kind, names in kinds if names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def match(naming: Naming, arch: Arch, tensors: Arrays) -> Match:
    """Compare `tensors` with what `arch` needs, by name and shape."""
    found: dict[Slot, str] = {}
    missing, misshapen = [], []
    for slot in slots(naming, arch):
        name = next((n for n in slot.theirs if n in tensors), None)
        if name is None:
            if slot.role not in OPTIONAL:
                missing.append(slot.theirs[0])
            continue
        found[slot] = name
        shape = in_our_layout(tensors[name], naming.style.layout, slot.op.kind == "depthwise").shape
        if shape != slot.shape:
            misshapen.append(f"{name} {_x(shape)} instead of {_x(slot.shape)}")
    used = set(found.values())
    extra = tuple(n for n in tensors if n not in used and not LEFTOVERS.search(n))
    return Match(naming, arch, found, tuple(missing), extra, tuple(misshapen))


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _variants(name: str, alpha: float, num_classes: int, **options: Any) -> Iterator[Arch]:
    """A network at a width, under each convention that gives other channels."""
    network = zoo.network(name)
    seen = set()
    for convention, keep_stem in itertools.product(spec.CONVENTIONS, (False, True)):
        arch = spec.scale(network, alpha, None, num_classes, convention=convention, keep_stem=keep_stem, **options)
        if (arch.rows, arch.head) not in seen:
            seen.add((arch.rows, arch.head))
            yield arch


def unprefixed(tensors: Arrays) -> Arrays:
    """`tensors` without what wrappers put before every name, however often: "_orig_mod.", "model.", "backbone.".

    Of a checkpoint that holds more than a network (a loss with weights, say), those of the network.
    """
    for _ in range(4):
        if not tensors or any(_has_stem(naming, tensors) for naming in NAMINGS):
            break
        parts: dict[str, dict[str, Array]] = {}
        for name, array in tensors.items():
            first, _, rest = name.partition(".")
            parts.setdefault(first, {})[rest] = array
        if len(parts) > 1:
            bare = {k: unprefixed(part) for k, part in parts.items()}
            parts = {k: part for k, part in parts.items() if any(_has_stem(n, bare[k]) for n in NAMINGS)}
        if len(parts) != 1 or "" in next(iter(parts.values())):
            break
        (tensors,) = parts.values()
    return tensors


def _has_stem(naming: Naming, tensors: Arrays) -> bool:
    stem = naming.layers["stem"].partition("|")[0].format(i=0)
    return any(stem + suffix in tensors for suffix in naming.style.roles["weight"])


def identify(tensors: Arrays, name: str | None = None, alpha: float | None = None) -> Match:
    """The network that `tensors` are of, by names and shapes; `name` and `alpha` are what they should be, if known.

    Raises `UserError` where they aren't exactly any network's: what is missing, extra or misshapen, and what they look
    like instead.
    """
    wanted = None if name is None else zoo.network(name).name
    tried = []
    for m in _matches(tensors, alpha):
        m = dataclasses.replace(m, told=wanted in (None, m.arch.name) and alpha in (None, m.arch.alpha))
        if m.exact and m.told:
            return m
        tried.append(m)
    if not tried:
        raise UserError(f"no MobileNet has tensors like these: {_some(sorted(tensors)) or 'there are none'}")
    likely = min(tried, key=lambda m: m.faults)
    looks = f"this is {likely}" if likely.exact else f"the nearest network is {likely} ({likely.complaint})"
    told = [m for m in tried if m.told]
    if (name or alpha) and told:
        best = min(told, key=lambda m: m.faults)
        raise UserError(f"the weights don't fit {best} ({best.complaint}); {looks}")
    raise UserError(f"the weights fit {'no network' if not (name or alpha) else 'none that was asked for'}; {looks}")


def _widths(alpha: float | None) -> Sequence[float]:
    return ALPHAS if alpha is None or alpha in ALPHAS else (*ALPHAS, alpha)


def _matches(tensors: Arrays, told: float | None) -> Iterator[Match]:
    for naming in NAMINGS:
        if not _has_stem(naming, tensors):
            continue
        suffixes = naming.style.roles["weight"]
        classifier = next((tensors[n] for x in suffixes if (n := naming.layers["classifier"] + x) in tensors), None)
        num_classes = 0 if classifier is None else in_our_layout(classifier, naming.style.layout, False).shape[0]
        names = [n for n in zoo.NETWORKS if n.split("-")[0] == naming.family and naming.covers(zoo.arch(n))]
        for name, alpha in itertools.product(names, _widths(told)):
            for arch in _variants(name, alpha, num_classes):
                yield match(naming, arch, tensors)


def convert(m: Match, tensors: Arrays) -> dict[str, Array]:
    """`tensors` under our names and in our layout, float32."""
    out: dict[str, Array] = {}
    scales: dict[Op, Array] = {}
    for slot, name in m.found.items():
        array = in_our_layout(np.asarray(tensors[name]), m.naming.style.layout, slot.op.kind == "depthwise")
        if slot.role == "scale":
            scales[slot.op] = array.astype(np.float32)
        elif slot.role == "norm.num_batches_tracked":
            out[slot.ours] = np.asarray(array, np.int64)
        else:
            array = array[:, :, 0, 0] if slot.op.kind == "linear" and array.ndim == 4 else array
            out[slot.ours] = np.ascontiguousarray(array, np.float32)
    for op, scale in scales.items():  # what is multiplied after a layer may as well be multiplied in it
        if op.norm:
            for role in ("weight", "bias"):
                out[f"{op.name}.norm.{role}"] = out[f"{op.name}.norm.{role}"] * scale
        else:
            out[f"{op.name}.conv.weight"] = out[f"{op.name}.conv.weight"] * scale[:, None, None, None]
    for op in m.arch.layers:
        if op.norm:
            out.setdefault(f"{op.name}.norm.num_batches_tracked", np.asarray(0))
    return out


def from_graph(graph: tflite.Graph, where: str, name: str | None, alpha: float | None) -> tuple[Arch, dict[str, Array]]:
    """The network whose layers are the graph's, one by one, and its tensors; BatchNorm is in the biases already."""
    wanted = None if name is None else zoo.network(name).name
    theirs = [(x.weight.shape, x.stride) for x in graph.layers]
    padded = any(x.pad == (1, 1, 1, 1) and x.padding == "valid" for x in graph.layers)
    best: tuple[int, Arch] | None = None
    for network, width in itertools.product(zoo.NETWORKS, _widths(alpha)):
        if wanted in (None, network) and alpha in (None, width):
            for arch in _variants(
                network, width, graph.num_classes, padding="symmetric" if padded else "same", bn_eps=1e-3
            ):
                ours = [((op.cout, op.cin // op.groups, op.kernel, op.kernel), op.stride) for op in arch.layers]
                if ours == theirs and _joins(graph) == _joins_of(arch):
                    arch = arch.replace(resolution=graph.input_size, activation=_activation(graph, arch))
                    return arch, _unfolded(graph, arch)
                alike = sum(a == b for a, b in zip(ours, theirs, strict=False))
                if best is None or alike > best[0]:
                    best = (alike, arch)
    assert best
    alike, arch = best
    raise UserError(
        f"{where}: not one of these networks: the nearest, {arch.name.upper()} at alpha {arch.alpha:g}, has "
        f"{len(arch.layers)} layers, {alike} of them as in the file's {len(theirs)}"
    )


def _joins(graph: tflite.Graph) -> tuple[int, int]:
    """How often two tensors are added, and how many hard-swishes there are."""
    return sum(op == "ADD" and len(w) == 2 for op, w in zip(graph.ops, graph.wires, strict=True)), graph.ops.count(
        "HARD_SWISH"
    )


def _joins_of(arch: Arch) -> tuple[int, int]:
    return sum(op.kind == "add" for op in arch.ops), sum(op.activation == "hard_swish" for op in arch.ops)


def _activation(graph: tflite.Graph, arch: Arch) -> Activation:
    """The network's activation, but ReLU where the file has that in the place of ReLU6."""
    fused = {x.activation for x in graph.layers}
    return "relu" if arch.activation == "relu6" and "relu" in fused and "relu6" not in fused else arch.activation


def _unfolded(graph: tflite.Graph, arch: Arch) -> dict[str, Array]:
    out: dict[str, Array] = {}
    for op, layer in zip(arch.layers, graph.layers, strict=True):
        bias = layer.bias
        if op.name.endswith("se_expand") and layer.activation == "relu6":
            bias = bias - np.float32(3)  # a hard sigmoid is relu6(x + 3) / 6; converters add the 3 to the bias
        if op.kind == "linear":
            out |= {f"{op.name}.weight": layer.weight[:, :, 0, 0], f"{op.name}.bias": bias}
            continue
        out[f"{op.name}.conv.weight"] = layer.weight
        if op.bias:
            out[f"{op.name}.conv.bias"] = bias
        if op.norm:  # one that changes nothing but adds the bias
            ones, zeros = np.ones(op.cout, np.float32), np.zeros(op.cout, np.float32)
            out |= {f"{op.name}.norm.weight": ones, f"{op.name}.norm.bias": bias}
            out |= {
                f"{op.name}.norm.running_mean": zeros,
                f"{op.name}.norm.running_var": ones - np.float32(arch.bn_eps),
            }
            out[f"{op.name}.norm.num_batches_tracked"] = np.asarray(0)
    return out
