import json
import re
import subprocess
import sys

import pytest

from mobilenets.arch import cost, zoo
from mobilenets.commands.explain import explain
from mobilenets.errors import UserError
from mobilenets.reports.explain import drawings
from mobilenets.reports.explain.steps import steps

EVERY = [(n.name, a) for n in zoo.NETWORKS.values() for a in sorted({*n.alphas, 0.35, 1.3})]


def _block(e, index):
    return next(p for p in e.every_part if p.name == str(index))


def _printed(e, width=100):
    from rich.console import Console

    from mobilenets.reports.screen import screen

    console = Console(width=width)
    with console.capture() as capture:
        console.print(screen(e))
    return capture.get()


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("name", "alpha"), EVERY)
def test_every_network_in_terminal_json_and_html(name, alpha, tmp_path):
    page = tmp_path / "page.html"
    e = explain(name, alpha=alpha, blocks=True)
    for width in (80, 100):
        lines = _printed(e, width).splitlines()
        assert max(map(len, lines)) <= width
        assert any("Its ideas" in line for line in lines)
        assert all(f"block {p.name}" in "\n".join(lines) for p in e.distinct)
    j = json.loads(json.dumps(e.to_json()))
    c = cost.count(zoo.arch(name, alpha))
    assert (j["macs"], j["weights"], j["trainable_params"]) == (c.macs, c.weights, c.params)
    for what, total in (("macs", c.macs), ("params", c.params)):
        assert sum(p["times"] * p[f"{what}_each"] for p in j["parts"]) == total
        assert sum(s[what] for s in j["by_type"]) == total
        assert sum(s[what] for s in j["by_map"]) == total
    assert explain(name, alpha=alpha, html=page).to_json()["html"] == str(page)
    text = page.read_text()
    assert text.count('<svg class="block"') == len(e.distinct)
    assert not re.search(r"(src|href)=|url\(|@import|https?:", text)
    assert not re.search(r"\bnan\b|\binf\b|None", text)


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_collapsed_blocks_reproduce_all_blocks(name):
    e = explain(name)
    again = [p.key for p in e.parts for _ in range(p.times)]
    assert again == [p.key for p in e.every_part]
    assert [b.ops for b in e.arch.blocks] == [p.ops for p in e.every_part[: len(e.arch.blocks)]]
    assert all(a.key != b.key for a, b in zip(e.parts, e.parts[1:], strict=False))
    assert sum(p.times for p in e.distinct) == len(e.arch.blocks)
    assert len({p.key for p in e.distinct}) == len(e.distinct)


def test_v1_collapses_its_five():
    parts = {p.name: p.times for p in explain("v1").parts}
    assert parts["7-11"] == 5
    assert len(parts) == 12


def test_v1_block_beside_a_standard_convolution():
    """V1 paper, table 3: 52.3 M mult-adds against 462 M."""
    against = _block(explain("v1"), 7).against
    assert against.macs == 9 * 512 * 14 * 14 + 512 * 512 * 14 * 14 == 52_283_392
    assert against.standard_macs == 9 * 512 * 512 * 14 * 14 == 462_422_016
    assert against.predicted == 1 / 512 + 1 / 9
    assert against.ratio == pytest.approx(against.predicted, rel=1e-12)
    assert "52.28 M" in _printed(explain("v1"))
    assert "462.42 M" in _printed(explain("v1"))


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_formula_is_exact_for_every_depthwise_and_1x1(name):
    for p in explain(name, alpha=0.75).distinct:
        if p.against.predicted:
            assert p.against.pair_ratio == pytest.approx(p.against.predicted, rel=1e-12)
        else:
            assert not any(op.kind == "depthwise" for op in p.ops) or p.kind == "attention"


def test_v1_as_standard_convolutions_is_the_full_convolution():
    assert explain("v1").standard_macs == cost.count(zoo.arch("v1-full-conv")).macs
    assert explain("v1-full-conv").standard_macs == explain("v1-full-conv").cost.macs


def test_v2_block_beside_both_widths():
    """Block 8: 64 -> 64 channels at 14x14, expanded to 384."""
    against = _block(explain("v2"), 8).against
    assert against.macs == (64 * 384 + 9 * 384 + 384 * 64) * 14 * 14
    assert against.standard_macs == 9 * 64 * 64 * 14 * 14
    assert against.ratio > 1  # dearer than in the narrow width: what it buys is the expanded one
    assert against.expanded_macs == 9 * 384 * 384 * 14 * 14
    assert against.predicted == 1 / 64 + 1 / 9
    assert "on top" in against.note


def test_where_the_formula_does_not_apply():
    e = explain("v4-hybrid-m")
    for kind in ("fused inverted residual", "feed-forward", "attention", "3x3 convolution", "1x1 convolution"):
        against = next(p for p in e.distinct if p.kind == kind).against
        assert against.predicted is None
        assert against.note
    attention = next(p for p in e.distinct if p.kind == "attention").against
    assert attention.ratio is None


def test_v4_variants_by_their_kernels():
    kinds = [p.kind for p in explain("v4-conv-m").every_part]
    assert (kinds[1], kinds[2], kinds[9], kinds[10]) == (
        "fused inverted residual", "extra depthwise", "ConvNext-like", "feed-forward",
    )  # fmt: skip
    assert explain("v4-conv-s").every_part[6].kind == "inverted bottleneck"
    assert explain("v3-small").every_part[3].kind == "inverted residual"


# By hand: 1 + sum of (kernel - 1) x the product of the strides before. V1: 1 + 2 + 4 + 4 + 8 + 8 + 16 + 16 + 5*32 + 32
# + 64. V2: 1 + 2 + 4 + 4 + 8 + 8 + 2*16 + 16 + 6*32 + 32 + 3*64. The others by the same sum.
@pytest.mark.parametrize(
    ("name", "pixels"), [("v1", 315), ("v2", 491), ("v1-full-conv", 315), ("v1-shallow", 315 - 5 * 32)]
)
def test_receptive_field(name, pixels):
    assert explain(name).receptive_field == pixels
    assert explain(name, alpha=0.5, resolution=128).receptive_field == pixels


def test_what_sees_the_whole_image():
    assert explain("v2").sees_all_from is None
    assert explain("v3-small").sees_all_from == 1
    assert explain("v4-hybrid-m").sees_all_from == 8


def test_flattened_head():
    v1, v3 = explain("v1").head, explain("v3-small").head
    assert (v1.pooled_weights, v1.flattened_weights) == (1_024_000, 50_176_000)
    assert (v3.layer, v3.flattened_weights) == ("head.0.conv", 576 * 7 * 7 * 1024)
    assert explain("v1", num_classes=0).head is None
    assert "classifier" not in _printed(explain("v1", num_classes=0))


def test_knobs_are_counted():
    alpha, resolution = explain("v1").knobs
    assert (alpha.after, alpha.macs) == (0.5, cost.count(zoo.arch("v1", 0.5)).macs)
    assert (resolution.after, resolution.macs) == (192, cost.count(zoo.arch("v1", 1.0, 192)).macs)
    assert resolution.params_ratio == 1
    assert resolution.macs_ratio == pytest.approx(resolution.rule, abs=0.001)
    assert 0.25 < alpha.macs_ratio < 0.27
    assert [k.name for k in explain("v2-cifar").knobs] == ["alpha"]  # nothing below 32 pixels
    assert explain("v1", resolution=128).knobs[1].after == 96


def test_why():
    assert explain("v1").why[0].startswith("95% of the mult-adds are 1x1 convolutions")
    assert "standard convolutions" in explain("v1-full-conv").why[0]
    assert "24% of the parameters but 0.2%" in explain("v1").why[1]
    assert explain("v2").heaviest[0].layer == "blocks.18.conv"  # 320 x 1280 x 49, above 16 x 96 x 112 x 112


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("v1", {"Separable convolution", "ReLU6"}, {"Inverted residual", "Hard-swish", "Squeeze-and-excite"}),
        ("v2", {"Inverted residual", "Linear bottleneck", "ReLU6"}, {"Separable convolution", "Hard-swish"}),
        ("v3-small", {"Squeeze-and-excite", "Hard-swish", "A late last layer"}, {"Universal inverted bottleneck"}),
        ("v3-small-minimalistic", {"Minimalistic"}, {"Squeeze-and-excite", "Hard-swish", "ReLU6"}),
        ("v4-conv-s", {"Universal inverted bottleneck"}, {"Multi-query attention", "Fused inverted residual"}),
        ("v4-hybrid-m", {"Multi-query attention", "Fused inverted residual"}, {"ReLU6", "Hard-swish"}),
    ],
)
def test_only_the_ideas_that_are_there(name, has, lacks):
    ideas = explain(name).ideas
    names = {i.name for i in ideas}
    assert has <= names
    assert not lacks & names
    assert all("paper" in i.source or "TF-slim" in i.source or "table" in i.source for i in ideas)


def test_short_and_long():
    short, long = _printed(explain("v2")), _printed(explain("v2", blocks=True))
    assert len(short.splitlines()) < 100
    assert long.count("shortcut ─") > short.count("shortcut ─") == 1
    assert "(x3)" in long


def test_drawings_have_what_a_block_has():
    attention = next(p for p in explain("v4-hybrid-m").distinct if p.kind == "attention")
    assert [s.kind for s in steps(attention)] == ["norm", "attend", "pointwise"]
    svg = drawings.block(attention, 256)
    for word in ("query", "key", "value", "attend", 'class="arc"'):
        assert word in svg
    gated = _block(explain("v3-small"), 1)
    assert "h-sigmoid" in drawings.block(gated, 224)
    assert 'class="arc"' not in drawings.block(gated, 224)


def test_page_is_where_it_says(tmp_path):
    page = tmp_path / "deep" / "v1.html"
    assert str(page) in _printed(explain("v1", html=page), 400)
    assert page.read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match="can't write"):
        explain("v1", html=page / "below-a-file.html")


def test_mistakes():
    with pytest.raises(UserError, match="did you mean"):
        explain("v4-conv-xs")
    with pytest.raises(UserError, match="alpha"):
        explain("v1", alpha=0)


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.5}, {"blocks": True}, {"every": True}, {"resolution": 64}, {"num_classes": 7}]
)
def test_a_bundles_bytes_are_of_it_as_it_is(options):
    with pytest.raises(UserError, match="--compression takes a bundle, as it is"):
        explain("cifar10-v1-0.25" if options else "", compression=True, **options)


def test_needs_no_torch_and_no_matplotlib():
    code = (
        "import sys; from rich.console import Console; from mobilenets.commands.explain import explain; "
        "from mobilenets.reports.screen import screen; "
        "Console().print(screen(explain('v4-hybrid-m'))); explain('v2').to_json(); "
        "print(sorted({'torch', 'matplotlib', 'numpy', 'jinja2'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"
