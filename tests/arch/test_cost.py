from pathlib import Path

import pytest

from mobilenets.arch import cost, published, zoo
from mobilenets.commands.cost import cost as show_cost

GOLDEN = Path(__file__).with_name("golden_v1_layers.txt")
V1_ROWS = [(a, r, m) for a, per in published.V1_MACS_M.items() for r, m in per.items()]
V2_ROWS = [(a, r, m) for a, per in published.V2_MACS_M.items() for r, m in per.items()]


def test_v1_is_exact():
    c = cost.count(zoo.arch("v1"))
    assert c.macs == 568_740_352
    assert c.weights == 4_209_088
    assert c.params == 4_231_976


def test_v1_layer_by_layer():
    lines = [line.split() for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    rows = cost.rows(zoo.arch("v1"))
    ours = [[str(n) for n in (r.weights, r.stride, r.macs, r.adds)] for r in rows]
    totals = [str(sum(getattr(r, k) for r in rows)) for k in ("weights", "macs", "adds")]
    assert ours == [line[1:] for line in lines[:-1]]
    assert totals == [lines[-1][i] for i in (1, 3, 4)]
    assert lines[-1][0] == "total"


def test_all_published_rows_are_here():
    assert len(V1_ROWS) == 16
    assert len(V2_ROWS) == 22
    assert {(a, r) for a, r, _ in V1_ROWS} == {(a, r) for a, per in published.V1_TOP1.items() for r in per}
    assert {(a, r) for a, r, _ in V2_ROWS} == {(a, r) for a, per in published.V2_TOP1.items() for r in per}


@pytest.mark.parametrize(("alpha", "resolution", "printed"), V1_ROWS)
def test_v1_published(alpha, resolution, printed):
    c = cost.count(zoo.arch("v1", alpha, resolution))
    assert abs(c.macs / 1e6 - printed) < 0.00501
    assert c.params == published.V1_PARAMS[alpha]


@pytest.mark.parametrize(("alpha", "resolution", "printed"), V2_ROWS)
def test_v2_published(alpha, resolution, printed):
    c = cost.count(zoo.arch("v2", alpha, resolution))
    assert printed in (round(c.macs / 1e6), c.macs // 1_000_000)
    assert c.params == published.V2_PARAMS[alpha]


def test_v1_shares_by_type():
    """V1 paper, table 2. It prints 1.19 for the 3x3 convolution's mult-adds: digits swapped, and 99.29 in all."""
    shares = cost.count(zoo.arch("v1")).shares()
    rounded = {k: (round(m, 2), round(w, 2)) for k, (m, w) in shares.items()}
    assert rounded == {
        "pointwise": (94.86, 74.59),
        "depthwise": (3.06, 1.06),
        "conv": (1.91, 0.02),
        "linear": (0.18, 24.33),
    }
    assert sum(m for m, _ in shares.values()) == pytest.approx(100)
    assert sum(w for _, w in shares.values()) == pytest.approx(100)


def test_v1_errata_without_the_classifier():
    """Tables 7 and 9 print 290 and 76: they leave the classifier out."""
    for alpha, headless, whole in ((1.0, 290, 291), (0.5, 76, 77)):
        assert round(cost.count(zoo.arch("v1", alpha, 160, num_classes=0)).macs / 1e6) == headless
        assert round(cost.count(zoo.arch("v1", alpha, 160)).macs / 1e6) == whole


@pytest.mark.parametrize(("alpha", "macs_m"), [(1.0, 567.8), (0.75, 324.7)])
def test_v1_with_120_classes(alpha, macs_m):
    """Table 10 prints the 1000-class mult-adds for Stanford Dogs; these are the 120-class ones."""
    assert round(cost.count(zoo.arch("v1", alpha, 224, 120)).macs / 1e6, 1) == macs_m


def test_peak_activations():
    v1, v2 = cost.count(zoo.arch("v1")), cost.count(zoo.arch("v2"))
    assert v1.peak_activation_elements == 1_204_224
    assert v2.peak_activation_elements == 1_505_280
    assert v2.peak_activation_elements_blockwise == 602_112


def test_a_waiting_shortcut_counts_in_the_peak():
    from mobilenets.arch.rows import InvertedResidual

    arch = zoo.arch("v2", resolution=32).replace(rows=(InvertedResidual(3, expand=2),))
    c = cost.count(arch)
    side = 32 * 32
    assert c.peak_activation_elements == (8 + 8 + 3) * side  # the depthwise layer's input and output, and the shortcut
    assert c.peak_activation_elements_blockwise == (3 + 3) * side


def test_shapes_follow_an_odd_resolution():
    shapes = [r.out_shape for r in cost.rows(zoo.arch("v1", 0.25, 33)) if r.stride == 2]
    assert [s[1:] for s in shapes] == [(17, 17), (9, 9), (5, 5), (3, 3), (2, 2)]


def test_one_layer():
    """V1 paper, table 3: DK = 3, M = N = 512, DF = 14: separable 52.3 M mult-adds and 0.27 M parameters."""
    dw, pw = (r for r in cost.rows(zoo.arch("v1")) if r.layer.startswith("blocks.7."))
    assert dw.in_shape == (512, 14, 14)
    assert round((dw.macs + pw.macs) / 1e6, 1) == 52.3
    assert round((dw.weights + pw.weights) / 1e6, 2) == 0.27
    assert pw.activation_bytes == 512 * 14 * 14 * 4
    assert pw.params - pw.weights == 2 * 512


def test_json():
    j = show_cost("v1", alpha=0.5, resolution=160).to_json()
    assert {"arch", "alpha", "resolution", "classes", "macs", "adds", "weights", "trainable_params"} <= set(j)
    assert (j["arch"], j["alpha"], j["resolution"], j["classes"]) == ("v1", 0.5, 160, 1000)
    assert len(j["layers"]) == 28
    assert sum(layer["macs"] for layer in j["layers"]) == j["macs"]
    assert sum(layer["params"] for layer in j["layers"]) == j["trainable_params"]
    assert j["weight_bytes"] == {"32": 4 * j["weights"], "16": 2 * j["weights"], "8": j["weights"]}


def _printed(c):
    from rich.console import Console

    console = Console(width=160)
    with console.capture() as capture:
        console.print(c)
    return capture.get()


def test_table():
    text = _printed(show_cost("v1"))
    assert "568,740,352" in text
    assert "4,231,976" in text
    assert "blocks.0.conv" not in text
    layers = _printed(show_cost("v1", layers=True))
    assert "blocks.13.pointwise" in layers
    assert "1024x7x7" in layers


def test_published_top1():
    assert str(published.imagenet_top1("v1", 1.0, 224)) == "70.9"
    assert published.imagenet_top1("v1", 0.6, 224) is None
    assert published.imagenet_top1("v9", 1.0, 224) is None


def test_extrapolated_top1_goes_on_along_the_line():
    beyond = published.imagenet_top1("v2", 1.0, 80)
    assert beyond.source == "extrapolated"
    assert str(beyond).startswith("≈")
    assert beyond.value < published.imagenet_top1("v2", 1.0, 96).value
    between = published.imagenet_top1("v1", 0.5, 144).value
    assert 56.3 < between < 59.1
    assert published.imagenet_top1("v2", 1.4, 192) is None  # one published resolution: no line
