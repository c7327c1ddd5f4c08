"""An arch narrowed layer by layer: its rows say it, and its layers stay what they were."""

import pytest

from mobilenets.arch import cost, zoo
from mobilenets.arch.narrow import narrowed, unlike
from mobilenets.arch.rows_units import ShuffleUnit
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError


def layer_widths(arch: Arch) -> dict[str, int]:
    """Of all layers that make channels of their own."""
    return {op.name: op.cout for op in arch.layers if op.kind in ("conv", "pointwise") and ".se_" not in op.name}


@pytest.mark.parametrize("name", ["v1", "v2", "v3-large", "v4-conv-small", "v4-hybrid-medium"])
def test_unchanged_it_is_the_same(name: str) -> None:
    arch = zoo.arch(name, 1.0, 64, 10)
    widths = {n: c for n, c in layer_widths(arch).items() if n.endswith((".conv", ".pointwise", ".expand", ".project"))}
    same = narrowed(arch, widths)
    assert same.ops == arch.ops
    assert same.digest == arch.digest


def test_an_expansion_alone() -> None:
    arch = zoo.arch("v2", 1.0, 64, 10)
    less = narrowed(arch, {"blocks.3.expand": 40})
    changed = {op.name: (op.cin, op.cout) for op, before in zip(less.ops, arch.ops, strict=True) if op != before}
    assert changed == {
        "blocks.3.expand": (24, 40), "blocks.3.depthwise": (40, 40), "blocks.3.project": (40, 24),
    }  # fmt: skip
    assert Arch.from_json(less.to_json()) == less
    assert cost.count(less).macs < cost.count(arch).macs


def test_a_fused_row_keeps_its_expansion_as_a_ratio() -> None:
    arch = next(a for a in (zoo.arch(n, 1.0, 64, 10) for n in zoo.NETWORKS) if "FusedInvertedResidual" in str(a.rows))
    name = next(op.name for op in arch.ops if op.name.endswith(".expand"))
    assert narrowed(arch, {name: 24}).graph.op(name).cout == 24


def test_a_squeeze_follows() -> None:
    arch = zoo.arch("v3-small", 1.0, 64, 10)
    less = narrowed(arch, {"blocks.4.expand": 64})
    assert less.graph.op("blocks.4.se_reduce").cout == 16


def test_what_rows_cannot_say() -> None:
    arch = zoo.arch("v2", 1.0, 64, 10)
    for widths in ({"blocks.3.project": 16}, {"blocks.2.expand": 16}, {"blocks.1.depthwise": 16}):
        with pytest.raises(UserError, match=r"v2 1-64: .* rows"):
            narrowed(arch, widths)
    with pytest.raises(UserError, match="the channels of a ShuffleUnit are tied"):
        narrowed(arch.replace(rows=(*arch.rows, ShuffleUnit(320))), {})
    with pytest.raises(UserError, match="can't be narrowed"):
        narrowed(arch.replace(shortcut="expansion"), {})


def test_layers_that_must_differ() -> None:
    arch = zoo.arch("v2", 1.0, 64, 10)
    pairs = unlike(arch)
    assert ("blocks.10.project", "blocks.11.project") in pairs  # 64 to 96 channels: as 64 there would be a shortcut
    assert ("blocks.2.project", "blocks.3.expand") in pairs
    assert all(arch.graph.op(a).cout != arch.graph.op(b).cout for a, b in pairs)
