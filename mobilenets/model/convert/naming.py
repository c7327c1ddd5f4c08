"""How a library names the tensors of networks: what a pattern is, and the frameworks' styles. No torch.

A `Naming` has a pattern for each of our layers, by what the layer is in its row. "A|B" names a convolution and the
BatchNorm after it. In a pattern, {i} is the row's number; {b} is i - 1, the bottleneck's number; {s} and {j} are the
stage and the row's number in it, as timm counts; {k} is the layer's number in its row, {k1} the next (a
squeeze-and-excite is one layer); {n} is the number of BatchNorms in the row up to the layer's own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mobilenets.arch import zoo
from mobilenets.arch.operations import Op, Padding
from mobilenets.arch.rows import Conv, FusedInvertedResidual, InvertedResidual
from mobilenets.arch.spec import Arch


@dataclass(frozen=True)
class Style:
    """A framework's names for a layer's tensors, by role, the first that a file has; and the layout of its filters."""

    roles: Mapping[str, tuple[str, ...]]
    layout: str  # of a convolution's filters; "hwio" for TensorFlow, whose depthwise filters are hwim
    padding: Padding
    bn_eps: float


PYTORCH = Style(
    {
        "weight": (".weight",),
        "bias": (".bias",),
        "norm.weight": (".weight",),
        "norm.bias": (".bias",),
        "norm.running_mean": (".running_mean",),
        "norm.running_var": (".running_var",),
        "norm.num_batches_tracked": (".num_batches_tracked",),
        "scale": (".gamma",),
    },
    layout="oihw",
    padding="symmetric",
    bn_eps=1e-5,
)
KERAS = Style(
    {
        "weight": ("/kernel", "/depthwise_kernel", "/_kernel"),
        "bias": ("/bias",),
        "norm.weight": ("/gamma",),
        "norm.bias": ("/beta",),
        "norm.running_mean": ("/moving_mean",),
        "norm.running_var": ("/moving_variance",),
    },
    layout="hwio",
    padding="same",
    bn_eps=1e-3,
)
SLIM = dataclasses.replace(
    KERAS, roles={**KERAS.roles, "weight": ("/weights", "/depthwise_weights"), "bias": ("/biases",)}
)


@dataclass(frozen=True)
class Naming:
    """A library's names for a family of networks.

    Keys of `layers`: "stem", the last row of the body "last", another standard convolution "conv", after the pooling
    "head", "classifier", and the names of the operations of every other row; "depthwise/plain" and "project/plain" are
    of a row without an expansion, "fused/..." of a `FusedInvertedResidual`. `scales`: operations whose output the
    library multiplies by a learned vector, which is folded into their weights. `bn_eps` where it isn't the style's.
    """

    origin: str
    family: str
    style: Style
    layers: Mapping[str, str]
    scales: Mapping[str, str] = field(default_factory=dict)
    bn_eps: float | None = None

    @property
    def name(self) -> str:
        return f"{self.origin}'s {self.family.upper()}"

    @property
    def networks(self) -> Sequence[str]:
        """Those that the library has."""
        return [n for n in zoo.EVERY if n.split("-")[0] == self.family and self.covers(zoo.arch(n))]

    def covers(self, arch: Arch) -> bool:
        """Whether the library has every layer of `arch`."""
        return all(pattern != "?" for _, pattern, _ in self.patterns(arch))

    def patterns(self, arch: Arch) -> Iterator[tuple[Op, str, str]]:
        """(operation, its pattern filled in, that of its scale or "") for every layer of `arch` with weights."""
        stages = _stages(arch)
        rows = [("blocks", i, row) for i, row in enumerate(arch.rows)] + [("head", 0, row) for row in arch.head]
        for (part, i, row), block in zip(rows, (*arch.blocks, *arch.head_blocks), strict=True):
            layers = [op for op in block.ops if op.is_layer]
            kinds = [op.name.rsplit(".", 1)[1] for op in layers]
            k = n = 0
            for op, kind in zip(layers, kinds, strict=True):
                n += op.norm
                key = kind
                if isinstance(row, Conv):
                    last = i == len(arch.rows) - 1
                    key = "head" if part == "head" else "stem" if i == 0 else "last" if last else "conv"
                elif isinstance(row, FusedInvertedResidual):
                    key = f"fused/{kind}"
                elif "expand" not in kinds and f"{kind}/plain" in self.layers:
                    key = f"{kind}/plain"
                s, j = stages[i]
                slots = {"i": i, "b": i - 1, "s": s, "j": j, "k": k, "k1": k + 1, "n": n}
                yield op, self.layers.get(key, "?").format(**slots), self.scales.get(key, "").format(**slots)
                k += kind != "se_reduce"
        if arch.num_classes:
            yield arch.ops[-1], self.layers["classifier"], ""


def _stages(arch: Arch) -> list[tuple[int, int]]:
    """(stage, number in it) of each row, as timm groups them: a new stage where the stride or the width changes.

    By the paper's table, since narrow networks have neighbouring stages of one width. Standard convolutions that only
    change the width stay in their stage; a bottleneck without a shortcut begins one.
    """
    table = zoo.network(arch.name).rows
    out = [(-1, 0)]  # the stem is outside
    for before, row in itertools.pairwise(table):
        s, j = out[-1]
        wider = row.channels != before.channels and not isinstance(before, Conv)
        apart = isinstance(row, InvertedResidual) and not row.RESIDUAL
        new = s < 0 or row.stride > 1 or wider or apart
        out.append((s + 1, 0) if new else (s, j + 1))
    return out


@dataclass(frozen=True)
class Listed(Naming):
    """A naming of networks whose layers have names of their own: `listed` are those of all, the classifier's last.

    `only`: the networks.
    """

    only: tuple[str, ...] = ()
    listed: Callable[[Arch], list[str]] = lambda _arch: []

    @property
    def networks(self) -> Sequence[str]:
        return self.only

    def patterns(self, arch: Arch) -> Iterator[tuple[Op, str, str]]:
        names = self.listed(arch)
        return ((op, name, "") for op, name in zip(arch.layers, names if arch.num_classes else names[:-1], strict=True))
