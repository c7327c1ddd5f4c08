"""Every network of the zoo, through every walker: the model, its cost, its files, its int8 version."""

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch
from small import quantized
from torch.utils.flop_counter import FlopCounterMode

from mobilenets.arch import cost, spec, zoo
from mobilenets.arch.spec import Arch
from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.errors import UserError
from mobilenets.model import module as model
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import classifier_card
from mobilenets.model.encodings import tensor_shapes
from mobilenets.model.images import Preprocess

NAMES = list(zoo.NETWORKS)
# Of the same operations as smaller ones, which are what is run by default.
LARGE = ("v1-full-conv", "v3-large-minimalistic", "v4-conv-m", "v4-conv-l", "v4-hybrid-l")
RUN = [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in NAMES]
# V2 and its ablations (V2 paper, figure 6).
ABLATIONS = [
    {"shortcut": "none"}, {"shortcut": "expansion"}, {"linear_bottleneck": False},
    {"shortcut": "expansion", "linear_bottleneck": False, "activation": "relu"},
]  # fmt: skip


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize(
    ("alpha", "resolution"),
    [
        (1.25, 65),
        *(pytest.param(*usual, marks=pytest.mark.slow) for usual in ((0.35, 96), (0.75, 160), (1.0, 224))),
    ],
)
def test_macs_equal_the_flop_counters(name, alpha, resolution):
    arch = zoo.arch(name, alpha, resolution)
    with torch.device("meta"):
        net = model.build(arch)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            net.eval()(torch.zeros(1, 3, resolution, resolution))
    assert counter.get_total_flops() // 2 == cost.count(arch).macs


# Trainable parameters, 1000 classes: those of torchvision's and timm's networks, and what the V3 paper's authors ship.
PARAMS = {
    "v1": 4_231_976,
    "v1-full-conv": 29_294_088,
    "v1-shallow": 2_887_976,
    "v1-cifar": 4_231_976,
    "v2": 3_504_872,
    "v2-cifar": 3_504_872,
    "v3-large": 5_483_032,
    "v3-small": 2_542_856,
    "v3-large-minimalistic": 3_924_288,
    "v3-small-minimalistic": 2_044_736,
    "v4-conv-s": 3_774_024,
    "v4-conv-m": 9_715_512,
    "v4-conv-l": 32_590_864,
    "v4-hybrid-m": 11_068_472,
    "v4-hybrid-l": 37_752_336,
}


@pytest.mark.parametrize("name", NAMES)
def test_params_are_exact_and_the_models(name):
    with torch.device("meta"):
        net = model.build(zoo.arch(name))
    assert sum(p.numel() for p in net.parameters()) == cost.count(net.arch).params == PARAMS[name]


@pytest.mark.parametrize(
    ("name", "convention", "params"),
    [
        ("v3-small", "slim", 2_041_872), ("v3-small", "torchvision", 1_653_920),
        ("v3-large", "slim", 3_993_528), ("v3-large", "torchvision", 3_377_576),
    ],
)  # fmt: skip
def test_v3_has_two_width_conventions(name, convention, params):
    net = zoo.network(name)
    assert cost.count(spec.scale(net, 0.75, convention=convention)).params == params
    assert spec.scale(net, 1.0, convention=convention).ops == spec.scale(net, 1.0).ops


def test_conventions_agree_for_v2():
    for alpha in zoo.V2.alphas:
        assert spec.scale(zoo.V2, alpha, convention="torchvision").ops == spec.scale(zoo.V2, alpha).ops


def test_keep_stem_spares_the_first_row():
    assert spec.scale(zoo.V4_CONV_S, 0.5, keep_stem=True).rows[0].channels == 32
    assert spec.scale(zoo.V4_CONV_S, 0.5).rows[0].channels == 16


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_the_state_dicts(name):
    with torch.device("meta"):
        net = model.build(zoo.arch(name, num_classes=7))
    state = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    labels = [f"class {i}" for i in range(7)]
    assert state == tensor_shapes(classifier_card(net.arch, Preprocess(net.arch.resolution), labels))


@pytest.mark.parametrize("name", NAMES)
def test_archs_survive_json(name):
    arch = spec.scale(zoo.network(name), 0.6, 64, 5, shortcut="none", convention="torchvision", keep_stem=True)
    again = Arch.from_json(json.loads(json.dumps(arch.to_json())))
    assert again == arch
    assert again.ops == arch.ops


@pytest.mark.parametrize("name", NAMES)
def test_stages_are_the_models_maps(name):
    arch = zoo.arch(name, 0.35, 96, 5)
    with torch.inference_mode():
        maps = model.build(arch).eval().features(torch.zeros(2, 3, 96, 96))
    assert list(maps) == [s.name for s in arch.stages]
    for s in arch.stages:
        assert maps[s.name].shape == (2, s.channels, 96 // s.stride, 96 // s.stride)
    assert arch.stages[-1].stride == (8 if name.endswith("-cifar") else 32)
    side = 96 // arch.stages[-1].stride
    assert arch.graph.shapes[arch.blocks[-1].output] == (arch.stages[-1].channels, side, side)


def files_probabilities(bundle, pixels):
    """What onnxruntime makes of the exported file."""
    o = ort.SessionOptions()
    o.add_session_config_entry("session.x64quantprecision", "1")  # exact where a processor has AVX2 alone
    o.intra_op_num_threads, o.log_severity_level = 1, 3
    file = onnx_graph.onnx_model(bundle)
    return ort.InferenceSession(file, o, providers=["CPUExecutionProvider"]).run(None, {"image": pixels})[0]


def probabilities(bundle, pixels):
    x = torch.from_numpy(bundle.card.preprocess.normalize(pixels))
    with torch.inference_mode():
        return simulate.module(bundle).answers(x)["probabilities"].numpy()


@pytest.mark.parametrize("padding", ["symmetric", pytest.param("same", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", RUN)
def test_the_float_file_computes_the_same(make_bundle, pixels, name, padding):
    bundle = make_bundle(name, padding)
    ours = probabilities(bundle, pixels)
    assert ours.std(0).max() > 0.015  # the images do get different answers
    np.testing.assert_allclose(files_probabilities(bundle, pixels), ours, atol=1e-4)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", RUN)
def test_the_int8_file_computes_its_simulation(make_bundle, pixels, name):
    bundle = make_bundle(name)
    int8 = quantized(bundle, pixels)
    floating, simulated = probabilities(bundle, pixels), probabilities(int8, pixels)
    file = files_probabilities(int8, pixels)
    # A value half-way between two integers may fall either way, and a random network carries it far.
    assert np.abs(file - simulated).mean() < np.abs(simulated - floating).mean()
    assert np.median(np.abs(file - simulated).max(1)) < 0.03
    assert (file.argmax(1) == simulated.argmax(1)).mean() > 0.8


def test_int8_convolutions_stay_integer_beside_hard_swish(make_bundle, pixels, tmp_path):
    import onnx

    int8 = quantized(make_bundle("v3-small"), pixels)
    o = ort.SessionOptions()
    o.add_session_config_entry("session.x64quantprecision", "1")  # exact where a processor has AVX2 alone
    o.log_severity_level, o.optimized_model_filepath = 3, str(tmp_path / "optimized.onnx")
    ort.InferenceSession(onnx_graph.onnx_model(int8), o)
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") == len(int8.card.graph.layers)
    assert "Conv" not in kinds


@pytest.mark.parametrize("changes", ABLATIONS, ids=str)
def test_the_ablations_cost_the_same_and_compute_something_else(changes):
    whole, part = spec.scale(zoo.V2, 0.35, 64, 5), spec.scale(zoo.V2, 0.35, 64, 5, **changes)
    assert cost.count(part).macs == cost.count(whole).macs
    assert cost.count(part).params == cost.count(whole).params
    x = torch.rand(2, 3, 64, 64)
    torch.manual_seed(0)
    a = model.build(whole).eval()
    torch.manual_seed(0)
    b = model.build(part).eval()
    with torch.inference_mode():
        for m in (a, b):
            for layer in m.modules():  # so that activations and shortcuts matter
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.weight.fill_(3.0)
        assert not torch.allclose(a(x), b(x))


@pytest.mark.parametrize(("shortcut", "joins"), [("bottleneck", 10), ("expansion", 10), ("none", 0)])
def test_as_many_shortcuts_join_expansions_as_bottlenecks(shortcut, joins):
    """V2 table 2 has n - 1 shortcuts in each line of n bottlenecks: 1 + 2 + 3 + 2 + 2."""
    arch = spec.scale(zoo.V2, shortcut=shortcut)
    joined = [b for b in arch.blocks if b.shortcut]
    assert len(joined) == joins
    if shortcut == "expansion":
        assert all(op.endswith(("expand", "sum")) for b in joined for op in b.ops[-1].inputs)


def test_a_classical_residual_block_computes_what_it_says():
    """The first block whose shortcut joins expansions: depthwise, project, the next expansion, plus its input."""
    net = model.build(spec.scale(zoo.network("v2"), 0.35, 64, 5, shortcut="expansion")).eval()
    block = next(b for b in net.blocks if b.block.shortcut)
    x = torch.rand(1, block.block.cin, 8, 8)
    with torch.inference_mode():
        y = block.expand(block.project(block.depthwise(x)))
        torch.testing.assert_close(block(x), x + y)


def test_unknown_options_are_named():
    with pytest.raises(UserError, match="unknown shortcut 'expansions': did you mean 'expansion'"):
        spec.scale(zoo.V2, shortcut="expansions")
    with pytest.raises(UserError, match="unknown convention"):
        spec.scale(zoo.V2, convention="keras")


def test_cards_written_before_rows_had_heads_and_conventions_still_load(make_bundle):
    bundle = make_bundle("v2")
    d = bundle.card.arch.to_json()
    for field in ("head", "linear_bottleneck", "shortcut", "keep_stem", "convention"):
        del d[field]
    d["rows"] = [
        {k: v for k, v in r.items() if k not in ("se", "activation", "start", "mid", "norm")} for r in d["rows"]
    ]
    assert Bundle(bundle.card.replace(arch=Arch.from_json(d)), bundle.tensors).card.arch.ops == bundle.card.arch.ops


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("mobilenet_v1", "v1"), ("MobileNetV2", "v2"), ("mobilenet_v3_large", "v3-large"),
        ("mobilenetv3-small", "v3-small"), ("mobilenetv4_conv_small", "v4-conv-s"),
        ("MobileNetV4-Hybrid-Medium", "v4-hybrid-m"), ("v4-conv-large", "v4-conv-l"),
    ],
)  # fmt: skip
def test_aliases(alias, name):
    assert zoo.network(alias).name == name


def test_default_resolutions_are_the_papers():
    assert {n: zoo.arch(n).resolution for n in NAMES if zoo.arch(n).resolution != 224} == {
        "v1-cifar": 32, "v2-cifar": 32, "v4-conv-m": 256, "v4-conv-l": 384, "v4-hybrid-m": 256, "v4-hybrid-l": 384,
    }  # fmt: skip
