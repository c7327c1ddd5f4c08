import json

import pytest

from mobilenets.arch import spec, zoo
from mobilenets.arch.graph import same_padding
from mobilenets.arch.rows import Conv, InvertedResidual, Separable, round_channels
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_arch_survives_json(name):
    arch = spec.scale(
        zoo.network(name), 0.35, 96, 7,
        activation="relu", padding="same", bn_eps=1e-3, bn_momentum=0.03, dropout=0.2,
        divisor=4, min_depth=16, keep_head=True,
    )  # fmt: skip
    again = Arch.from_json(json.loads(json.dumps(arch.to_json())))
    assert again == arch
    assert again.digest == arch.digest
    assert again.replace(resolution=128).digest != arch.digest


def _edited(**changes):
    return {**zoo.arch("v1").to_json(), **changes}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"resolutoin": 224}, "unknown Arch field 'resolutoin': did you mean 'resolution'"),
        ({"rows": [{"type": "Seperable", "channels": 8}]}, "did you mean 'Separable'"),
        ({"rows": [{"type": "Conv", "channels": -8}]}, "needs whole numbers"),
        ({"rows": [{"type": "Conv", "channels": 10**9}]}, "needs whole numbers"),
        ({"rows": [{"type": "Conv", "channels": 8, "colour": 1}]}, "not an Arch"),
        ({"rows": [{"channels": 8}]}, "not an Arch"),
        ({"rows": ["Conv"]}, "not an Arch"),
        ({"rows": 3}, "not an Arch"),
        ({"rows": []}, "at least one row"),
        ({"alpha": "wide"}, "alpha must be"),
        ({"classes": -1}, "classes must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"padding": "valid"}, "unknown padding 'valid'"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
    ],
)
def test_a_malformed_arch_is_refused(edit, message):
    with pytest.raises(UserError, match=message):
        Arch.from_json(_edited(**edit))


def test_a_missing_field_is_refused():
    with pytest.raises(UserError, match="not an Arch: 'rows'"):
        Arch.from_json({k: v for k, v in _edited().items() if k != "rows"})


@pytest.mark.parametrize("alpha", [0, -1, 2.5, float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(UserError, match=f"alpha must be above 0 and at most 2, not {alpha}"):
        zoo.arch("v1", alpha=alpha)


@pytest.mark.parametrize("resolution", [7, 31, 0, -224, 100_000, 96.5])
def test_resolution_out_of_range(resolution):
    with pytest.raises(UserError, match=f"resolution must be a whole number from 32 .* not {resolution}"):
        zoo.arch("v2", resolution=resolution)


@pytest.mark.parametrize("alpha", [0.01, 2, 2.0])
def test_alpha_at_its_limits(alpha):
    assert zoo.arch("v2", alpha=alpha, resolution=32).alpha == alpha


@pytest.mark.parametrize(("typo", "near"), [("v11", "v1"), ("vv2", "v2")])
def test_unknown_arch_suggests_the_near_miss(typo, near):
    with pytest.raises(UserError, match=f"unknown arch {typo!r}: did you mean {near!r}"):
        zoo.network(typo)


def test_unknown_arch_with_nothing_near_lists_all():
    with pytest.raises(UserError, match=r"unknown arch .qqq.: known: v1, .*v4-hybrid-l"):
        zoo.network("qqq")


def test_aliases():
    assert zoo.network("MobileNetV2") is zoo.V2
    assert zoo.network("mobilenet_v1") is zoo.V1


@pytest.mark.parametrize(("alpha", "width"), [(0.35, 1280), (0.75, 1280), (1.0, 1280), (1.3, 1664), (1.4, 1792)])
def test_v2_keeps_its_last_conv_below_alpha_1_and_scales_it_above(alpha, width):
    assert zoo.arch("v2", alpha).features == width


def test_the_head_policy_is_a_field():
    assert spec.scale(zoo.V2, 0.5, keep_head=False).features == 640
    assert spec.scale(zoo.V1, 0.5, keep_head=True).features == 1024
    assert zoo.arch("v1", 0.5).features == 512


@pytest.mark.parametrize(
    ("channels", "divisor", "min_depth", "rounded"),
    [
        (32, 8, 8, 32),
        (11.2, 8, 8, 16),  # 8 is more than 10% below
        (8.4, 8, 8, 8),
        (12, 8, 8, 16),  # halves go up
        (33.6, 8, 8, 32),
        (5.6, 8, 8, 8),
        (5.6, 8, 16, 16),
        (11.2, 1, 1, 11),
        (134.4, 8, 8, 136),
    ],
)
def test_channels_round_as_in_v2(channels, divisor, min_depth, rounded):
    assert round_channels(channels, divisor, min_depth) == rounded


def test_v2_widths_at_alpha_035():
    channels = [row.channels for row in zoo.arch("v2", 0.35).rows]
    assert channels == [16, 8, 8, 8, 16, 16, 16, 24, 24, 24, 24, 32, 32, 32, 56, 56, 56, 112, 1280]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [7, 8, 32, 33])
def test_same_padding_is_the_least_that_gives_the_ceiling(size, kernel, stride):
    before, after = same_padding(size, kernel, stride)
    out = -(-size // stride)
    total = next(p for p in range(kernel + 1) if (size + p - kernel) // stride + 1 >= out)
    assert before + after == total
    assert after - before in (0, 1)


def test_shortcuts_join_bottlenecks_of_the_same_shape():
    assert [i for i, b in enumerate(zoo.arch("v2").blocks) if b.shortcut] == [3, 5, 6, 8, 9, 10, 12, 13, 15, 16]
    assert not any(b.shortcut for b in zoo.arch("v1").blocks)


def test_stages():
    stages = zoo.arch("v2").stages
    assert [(s.name, s.stride, s.channels) for s in stages] == [
        ("stage1", 2, 16), ("stage2", 4, 24), ("stage3", 8, 32), ("stage4", 16, 96), ("stage5", 32, 1280),
    ]  # fmt: skip


def test_layers_of_each_row():
    arch = spec.scale(zoo.V2, activation="relu")

    def kinds(row):
        return [(op.name, op.kind, op.cin, op.cout, op.stride, op.activation) for op in row.ops(16, arch.scaling)]

    assert kinds(Conv(24, stride=2)) == [("conv", "conv", 16, 24, 2, "relu")]
    assert kinds(Conv(24, kernel=1)) == [("conv", "pointwise", 16, 24, 1, "relu")]
    assert kinds(Separable(24, stride=2)) == [
        ("depthwise", "depthwise", 16, 16, 2, "relu"),
        ("pointwise", "pointwise", 16, 24, 1, "relu"),
    ]
    assert kinds(InvertedResidual(24, stride=2)) == [
        ("expand", "pointwise", 16, 96, 1, "relu"),
        ("depthwise", "depthwise", 96, 96, 2, "relu"),
        ("project", "pointwise", 96, 24, 1, None),
    ]
    assert [name for name, *_ in kinds(InvertedResidual(24, expand=1))] == ["depthwise", "project"]


def test_a_headless_network_has_no_classifier():
    assert zoo.arch("v1", num_classes=0).ops[-1].kind == "pool"
    assert zoo.arch("v1", num_classes=3).ops[-1].cout == 3
