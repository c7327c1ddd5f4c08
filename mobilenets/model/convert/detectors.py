"""Others' one-stage detectors by the names of their tensors: the TensorFlow Object Detection API's and torchvision's.

Their bodies are named as the libraries' classifiers are, inside of something; what follows has patterns of its own, in
which {i} is the number of the map, {n} that of the API's layer for it, {c} the layer's channels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mobilenets.arch import detectors
from mobilenets.arch.detectors.heads import taps
from mobilenets.arch.graph import Head
from mobilenets.arch.operations import Op
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model.convert.naming import Naming
from mobilenets.model.convert.namings import NAMINGS
from mobilenets.model.convert.recognise import Array, Arrays, Match, check_strides, convert, match, slots_of, widths

TF, TORCHVISION = "TensorFlow's Object Detection API", "torchvision's detection"
_TF_BODY = re.compile(r"^(.*?)FeatureExtractor/(Mobilenet(V\d))/")
_TORCHVISION_STEM = re.compile(r"^(.*?)backbone\.features\.0\.0\.0\.weight$")
_TWO_STAGES = re.compile(r"(^|\.)(roi_heads|rpn)\.|^(First|Second)StageBoxPredictor/|^SecondStage")
_TF_NETWORKS = {"V1": ("v1",), "V2": ("v2",), "V3": ("v3-large", "v3-small", "v3-large-minimalistic",
                                                    "v3-small-minimalistic")}  # fmt: skip
# What the API calls the layer behind which it puts more of them.
_TF_LAST = {"v1": "Conv2d_13_pointwise", "v2": "layer_19", "v3-large": "layer_17", "v3-small": "layer_13"}
_TF_HEADS = {
    "extra.reduce": "{scope}/{last}_1_Conv2d_{n}_1x1_{c}",
    "extra.depthwise": "{scope}/{last}_2_Conv2d_{n}_3x3_s2_{wide}_depthwise",
    "extra.pointwise": "{scope}/{last}_2_Conv2d_{n}_3x3_s2_{c}",
    "extra.conv": "{scope}/{last}_2_Conv2d_{n}_3x3_s2_{c}",
    **{
        f"{ours}.{kind}": f"BoxPredictor_{{i}}/{theirs}{'_depthwise' if kind == 'depthwise' else ''}"
        for ours, theirs in (("box", "BoxEncodingPredictor"), ("class", "ClassPredictor"))
        for kind in ("depthwise", "pointwise", "conv")
    },
}
_TORCHVISION_HEADS = {
    **{
        f"extra.{kind}": f"backbone.extra.{{i}}.{k}.0|backbone.extra.{{i}}.{k}.1"
        for k, kind in enumerate(("reduce", "depthwise", "pointwise"))
    },
    **{
        f"{ours}.{kind}": f"head.{theirs}_head.module_list.{{i}}.{names}"
        for ours, theirs in (("box", "regression"), ("class", "classification"))
        for kind, names in (
            ("depthwise", f"0.0|head.{theirs}_head.module_list.{{i}}.0.1"),
            ("pointwise", "1"),
        )
    },
}


@dataclass(frozen=True)
class Detector:
    """A detector as it was recognised: `classes` are the columns of its logits, `tensors` are ours by our names."""

    origin: str
    family: str
    arch: Arch
    head: Head
    classes: int
    tensors: dict[str, Array]


def is_detector(tensors: Arrays) -> bool:
    """Whether tensors are of a detector, of those that are known or of two stages."""
    return has_two_stages(tensors) or _origin(tensors) is not None


def has_two_stages(tensors: Arrays) -> bool:
    """Whether they are of one that proposes boxes first, as Faster R-CNN does."""
    return any(_TWO_STAGES.search(name) for name in tensors)


def _origin(tensors: Arrays) -> tuple[str, str] | None:
    """Whose detector it is, and what stands before its names."""
    if any("BoxEncodingPredictor" in name for name in tensors):
        m = next((m for name in tensors if (m := _TF_BODY.match(name))), None)
        return (TF, m[1]) if m else None
    m = next((m for name in tensors if (m := _TORCHVISION_STEM.match(name))), None)
    return (TORCHVISION, m[1]) if m and f"{m[1]}head.regression_head.module_list.0.1.weight" in tensors else None


def recognised(
    tensors: Arrays, name: str | None = None, alpha: float | None = None, resolution: int | None = None,
    strides: Mapping[str, int] | None = None,
) -> Detector:  # fmt: skip
    """The detector that `tensors` are of; `name` and `alpha` are its body's, if known. Raises `UserError`.

    `strides`: of convolutions, by the names of their weights.
    """
    if has_two_stages(tensors):
        raise UserError("a detector of two stages, of which the body alone can be imported: --body-only")
    origin, prefix = _origin(tensors) or ("", "")
    tensors = {k.removeprefix(prefix): a for k, a in tensors.items()}
    tried = [*(_of_tf if origin == TF else _of_torchvision)(tensors, name, alpha, resolution)]
    if not tried:
        raise UserError(f"a detector of {origin}, but none that is known: those on V1, V2 and V3 are")
    best, family, head, classes = min(tried, key=lambda t: t[0].faults)
    if not best.exact:
        raise UserError(
            f"the weights fit no detector; the nearest is {family} on {best.arch.name.upper()} at alpha "
            f"{best.arch.alpha:g} ({best.complaint})"
        )
    check_strides(best, strides or {})
    return Detector(origin, family, best.arch, head, classes, convert(best, tensors))


Tried = tuple[Match, str, Head, int]


def _counts(tensors: Arrays, box: str, kind: str) -> tuple[list[int], int]:
    """Anchors at a position of each map, and columns of the logits, by the predictors' biases. Raises `UserError`."""
    counts: list[int] = []
    while box.format(i=len(counts)) in tensors:
        counts.append(tensors[box.format(i=len(counts))].size // 4)
    logits = kind.format(i=0)
    if logits not in tensors or not counts or min(counts) < 1 or tensors[logits].size % counts[0]:
        raise UserError("a detector without predictors of boxes and classes")
    return counts, tensors[logits].size // counts[0]


def _tries(
    naming: Naming, heads: Mapping[str, str], tensors: Arrays, arch: Arch, family: str, counts: list[int], classes: int,
    fill: Mapping[str, str], kernel: int | None = None,
) -> Iterator[Tried]:  # fmt: skip
    """How tensors fit a family's detector on `arch`; nothing where it has other maps, or too few classes."""
    if len(detectors.maps(arch, family)) != len(counts) or classes < 2:
        return
    head = detectors.ssd_head(arch, classes, family, per_cell=counts, kernel=kernel)
    needed = arch.graph.with_head(head)
    wide = {op.name.split(".")[2]: str(op.cout) for op in head.ops if op.name.startswith("detect.extra.")}
    rows = [row for row in naming.patterns(arch) if row[0].name in needed.by_name]
    for op in head.ops:
        if not op.is_layer:
            continue
        _, what, i, kind = op.name.split(".")
        pattern = heads[f"{what}.{kind}"].format(i=i, n=int(i) + 2, c=op.cout, wide=wide.get(i, ""), **fill)
        if naming.style.layout == "hwio":
            pattern = f"{pattern}|{pattern}/BatchNorm"
        rows.append((op, pattern, ""))
    yield match(naming, arch, tensors, slots_of(naming.style, rows)), family, head, classes


def _of_tf(tensors: Arrays, name: str | None, alpha: float | None, resolution: int | None) -> Iterator[Tried]:
    scope, version = next((m[2], m[3]) for n in tensors if (m := _TF_BODY.match(n)))
    lite = any("BoxEncodingPredictor_depthwise" in n for n in tensors)
    family = "ssdlite" if lite else "ssd"
    biases = "BoxPredictor_{{i}}/{}Predictor/biases".format
    counts, classes = _counts(tensors, biases("BoxEncoding"), biases("Class"))
    first = tensors.get("BoxPredictor_0/BoxEncodingPredictor/weights")
    kernel = None if lite or first is None or first.ndim != 4 else 3 if first.shape[0] == 3 else 1
    slim = next(n for n in NAMINGS if (n.origin, n.family) == ("TF-slim", version.lower()))
    layers = {k: "|".join(f"FeatureExtractor/{part}" for part in v.split("|")) for k, v in slim.layers.items()}
    naming = dataclasses.replace(slim, origin=TF, layers=layers)
    networks = [n for n in _TF_NETWORKS.get(version, ()) if name in (None, n)]
    for network, width in ((n, w) for n in networks for w in widths(alpha, n)):
        if alpha in (None, width):
            arch = detectors.detector_arch(family, network, width, resolution)
            fill = {"scope": f"FeatureExtractor/{scope}", "last": _TF_LAST[network.removesuffix("-minimalistic")]}
            yield from _tries(naming, _TF_HEADS, tensors, arch, family, counts, classes, fill, kernel)


@dataclass(frozen=True)
class _Split(Naming):
    """torchvision's names of a body that it cuts at what a detector reads of it, inside the block numbered `cut`."""

    cut: int = 0

    def patterns(self, arch: Arch) -> Iterator[tuple[Op, str, str]]:
        for op, pattern, scale in super().patterns(arch):
            yield op, "|".join(map(self._moved, pattern.split("|"))), scale

    def _moved(self, name: str) -> str:
        _, number, rest = name.split(".", 2)
        i = int(number)
        if i < self.cut:
            return f"backbone.features.0.{i}.{rest}"
        if i > self.cut:
            return f"backbone.features.1.{i - self.cut}.{rest}"
        inside = re.sub(r"^(block|conv)\.", "", rest)
        if inside.startswith("0."):  # the expansion
            return f"backbone.features.0.{i}.{inside.removeprefix('0.')}"
        return f"backbone.features.1.0.{inside}"


def _of_torchvision(tensors: Arrays, name: str | None, alpha: float | None, resolution: int | None) -> Iterator[Tried]:
    family = "ssdlite-torchvision"
    part = "head.{}_head.module_list.{{i}}.1.bias".format
    counts, classes = _counts(tensors, part("regression"), part("classification"))
    for network, width in ((n, w) for n in ("v3-large", "v3-small", "v2") for w in widths(alpha, n)):
        if name not in (None, network) or alpha not in (None, width):
            continue
        theirs = next(n for n in NAMINGS if (n.origin, n.family) == ("torchvision", network.split("-")[0]))
        for tail in (True, False) if network.startswith("v3") else (False,):
            arch = detectors.detector_arch(family, network, width, resolution, reduced_tail=tail)
            cut = int(taps(arch)[0].split(".")[1])
            naming = _Split(**{**vars(theirs), "origin": TORCHVISION, "cut": cut})
            yield from _tries(naming, _TORCHVISION_HEADS, tensors, arch, family, counts, classes, {})
