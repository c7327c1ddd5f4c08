"""How torchvision and timm name the layers of the networks beside MobileNets: a list each, in our order. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mobilenets.arch.rows import Row
from mobilenets.arch.rows_units import GhostBottleneck, XceptionBlock
from mobilenets.arch.spec import Arch
from mobilenets.model.convert.naming import PYTORCH, Listed

Names = Callable[[Arch], list[str]]


def _listed(
    origin: str, only: Sequence[str], names: Names, stem: str, classifier: str, bn_eps: float | None = None
) -> Listed:
    layers = {"stem": stem, "classifier": classifier, "head": "conv_head"}
    return Listed(origin, only[0].partition("-")[0], PYTORCH, layers, {}, bn_eps, tuple(only), names)


def _norm(conv: str, norm: str) -> Callable[..., list[str]]:
    """Names of convolutions and their BatchNorms, inside of something."""
    return lambda *inside: [f"{i}{conv}|{i}{norm}" for i in inside]


def _squeezenet(fires: tuple[int, ...]) -> Names:
    parts = ("squeeze", "expand1x1", "expand3x3")
    names = ["features.0", *(f"features.{i}.{part}" for i in fires for part in parts), "classifier.1"]
    return lambda _arch: names


def _shufflenet(arch: Arch) -> list[str]:
    out = ["conv1.0|conv1.1"]
    stage = unit = 1
    for row in arch.rows[2:-1]:
        stage, unit = (stage + 1, 0) if row.stride == 2 else (stage, unit + 1)
        at = f"stage{stage}.{unit}."
        pairs = [("branch1.", 0, 1), ("branch1.", 2, 3)] if row.stride == 2 else []
        pairs += [("branch2.", 0, 1), ("branch2.", 3, 4), ("branch2.", 5, 6)]
        out += [f"{at}{branch}{conv}|{at}{branch}{norm}" for branch, conv, norm in pairs]
    return [*out, "conv5.0|conv5.1", "fc"]


def _xception(arch: Arch) -> list[str]:
    out = ["conv1|bn1", "conv2|bn2"]
    cin = 64
    blocks = [row for row in arch.rows if isinstance(row, XceptionBlock)]
    for i, row in enumerate(blocks, 1):
        for n in range(row.repeats):
            k = 3 * n + row.active
            out += [f"block{i}.rep.{k}.conv1", f"block{i}.rep.{k}.pointwise|block{i}.rep.{k + 1}"]
        if row.stride > 1 or cin != row.channels:
            out.append(f"block{i}.skip|block{i}.skipbn")
        cin = row.channels
    return [*out, "conv3.conv1", "conv3.pointwise|bn3", "conv4.conv1", "conv4.pointwise|bn4", "fc"]


_BASIC = _norm(".conv", ".bn")  # torchvision's BasicConv2d


def _googlenet(_arch: Arch) -> list[str]:
    branches = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
    modules = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    return [*_BASIC("conv1", "conv2", "conv3", *(f"inception{m}.{b}" for m in modules for b in branches)), "fc"]


def _inception(_arch: Arch) -> list[str]:
    def parts(name: str, *ends: str) -> list[str]:
        return [f"{name}_{end}" for end in ends]

    a = ["branch1x1", *parts("branch5x5", *"12"), *parts("branch3x3dbl", *"123"), "branch_pool"]
    b = ["branch3x3", *parts("branch3x3dbl", *"123")]
    c = ["branch1x1", *parts("branch7x7", *"123"), *parts("branch7x7dbl", *"12345"), "branch_pool"]
    d = [*parts("branch3x3", *"12"), *parts("branch7x7x3", *"1234")]
    e = ["branch1x1", *parts("branch3x3", "1", "2a", "2b"), *parts("branch3x3dbl", "1", "2", "3a", "3b"), "branch_pool"]
    modules = {**dict.fromkeys(("5b", "5c", "5d"), a), "6a": b, **dict.fromkeys(("6b", "6c", "6d", "6e"), c),
               "7a": d, **dict.fromkeys(("7b", "7c"), e)}  # fmt: skip
    stem = (f"Conv2d_{name}" for name in ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3"))
    return [*_BASIC(*stem, *(f"Mixed_{m}.{part}" for m, names in modules.items() for part in names)), "fc"]


def _mnasnet(_arch: Arch) -> list[str]:
    stacks = [f"layers.{8 + s}.{j}.layers." for s, n in enumerate((3, 3, 3, 2, 4, 1)) for j in range(n)]
    inside = [f"{at}{k}|{at}{k + 1}" for at in stacks for k in (0, 3, 6)]
    return [*(f"layers.{k}|layers.{k + 1}" for k in (0, 3, 6)), *inside, "layers.14|layers.15", "classifier.1"]


def _mobileone(_arch: Arch) -> list[str]:
    inside = [f"stages.{s}.{i}.reparam_conv" for s, n in enumerate((2, 8, 10, 1)) for i in range(2 * n)]
    return ["stem.reparam_conv", *inside, "head.fc"]


_GHOST_STAGES = (1, 1, 1, 1, 1, 1, 5, 1, 4)


def _ghostnet(arch: Arch) -> list[str]:
    out, cin = ["conv_stem|bn1"], arch.rows[0].channels
    places = (f"blocks.{s}.{j}." for s, n in enumerate(_GHOST_STAGES) for j in range(n))
    for at, row in zip(places, _ghosts(arch.rows), strict=True):
        ghosts = [
            [f"{at}{ghost}.{part}.0|{at}{ghost}.{part}.1" for part in ("primary_conv", "cheap_operation")]
            for ghost in ("ghost1", "ghost2")
        ]
        out += ghosts[0]
        out += [f"{at}conv_dw|{at}bn_dw"] * (row.stride > 1)
        out += [f"{at}se.conv_reduce", f"{at}se.conv_expand"] * row.se
        out += ghosts[1]
        if row.stride > 1 or cin != row.channels:
            out += [f"{at}shortcut.{k}|{at}shortcut.{k + 1}" for k in (0, 2)]
        cin = row.channels
    last = f"blocks.{len(_GHOST_STAGES)}.0."
    return [*out, f"{last}conv|{last}bn1", *["conv_head"] * bool(arch.head), "classifier"]


def _ghosts(rows: Sequence[Row]) -> Iterator[GhostBottleneck]:
    return (row for row in rows if isinstance(row, GhostBottleneck))


def _fully(features: tuple[int, ...], classifier: tuple[int, ...]) -> Names:
    names = [*(f"features.{i}" for i in features), *(f"classifier.{i}" for i in classifier)]
    return lambda _arch: names


LISTED = (
    _listed("torchvision", ["squeezenet-1.0"], _squeezenet((3, 4, 5, 7, 8, 9, 10, 12)), "features.0", "classifier.1"),
    _listed("torchvision", ["squeezenet-1.1"], _squeezenet((3, 4, 6, 7, 9, 10, 11, 12)), "features.0", "classifier.1"),
    _listed("torchvision", ["alexnet"], _fully((0, 3, 6, 8, 10), (1, 4, 6)), "features.0", "classifier.6"),
    _listed(
        "torchvision", ["vgg16"], _fully((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (0, 3, 6)), "features.0",
        "classifier.6",
    ),
    _listed("torchvision", ["shufflenet-v2"], _shufflenet, "conv1.0|conv1.1", "fc"),
    _listed("torchvision", ["googlenet"], _googlenet, "conv1.conv|conv1.bn", "fc", 1e-3),
    _listed("torchvision", ["inception-v3"], _inception, "Conv2d_1a_3x3.conv|Conv2d_1a_3x3.bn", "fc", 1e-3),
    _listed("torchvision", ["mnasnet"], _mnasnet, "layers.0|layers.1", "classifier.1"),
    _listed("timm", ["xception"], _xception, "conv1|bn1", "fc"),
    _listed("timm", ["ghostnet"], _ghostnet, "conv_stem|bn1", "classifier"),
    _listed("timm", [f"mobileone-s{n}" for n in range(4)], _mobileone, "stem.reparam_conv", "head.fc"),
)  # fmt: skip
