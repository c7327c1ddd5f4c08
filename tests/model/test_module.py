import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mobilenets.arch import cost, spec, zoo
from mobilenets.model import module as model

ALPHAS = (0.25, 0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
RESOLUTIONS = (96, 128, 160, 192, 224, 256)


def flops(net, resolution):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:  # real tensors: faster than "meta" here
        net(torch.zeros(1, 3, resolution, resolution))
    return counter.get_total_flops()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("name", ["v1", "v2"])
@pytest.mark.parametrize("alpha", [pytest.param(a, marks=[pytest.mark.slow] * (a > 1)) for a in ALPHAS])
def test_macs_and_params_equal_what_torch_counts(name, alpha, padding):
    """Analytic macs are exactly half the flops that torch counts in the built network, at every resolution."""
    arch = spec.scale(zoo.network(name), alpha, padding=padding)
    net = model.build(arch).eval()
    assert cost.count(arch).params == sum(p.numel() for p in net.parameters())
    for r in RESOLUTIONS if padding == "symmetric" else (96, 160):
        assert 2 * cost.count(arch.replace(resolution=r)).macs == flops(net, r), r


def test_odd_resolutions_and_few_classes_count_alike_too():
    for name in ("v1", "v2"):
        arch = zoo.arch(name, 0.5, 75, 3)
        net = model.build(arch).eval()
        assert 2 * cost.count(arch).macs == flops(net, 75)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_weights_are_the_conv_and_linear_ones_alone(name):
    with torch.device("meta"):
        net = model.build(zoo.arch(name, 0.5))
    counted = sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert cost.count(net.arch).weights == counted


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("name", ["v1", "v2"])
def test_features_are_the_stages_maps(name, padding):
    net = model.build(spec.scale(zoo.network(name), 0.25, 64, 0, padding=padding)).eval()
    maps = net.features(torch.zeros(2, 3, 64, 96))
    assert list(maps) == [s.name for s in net.arch.stages]
    for stage in net.arch.stages:
        assert maps[stage.name].shape == (2, stage.channels, 64 // stage.stride, 96 // stage.stride)
    assert [s.stride for s in net.arch.stages] == [2, 4, 8, 16, 32]
    assert torch.equal(net(torch.zeros(2, 3, 64, 96)), maps["stage5"].mean((2, 3)))


def test_outputs_of_each_layer_have_the_costs_shapes():
    arch = zoo.arch("v2", 0.35, 45, 5)
    net, shapes = model.build(arch).eval(), {}
    for name, m in net.named_modules():
        if isinstance(m, model.ConvNormAct):
            m.register_forward_hook(lambda _m, x, y, name=name: shapes.update({name: (x[0].shape[1:], y.shape[1:])}))
    assert net(torch.zeros(1, 3, 45, 45)).shape == (1, 5)
    assert shapes == {r.layer: (r.in_shape, r.out_shape) for r in cost.rows(arch)[:-1]}


def reference_conv(x, w, stride, before, after):
    """A convolution of one image by loops: x [C, H, W] (square), w [O, C, K, K]."""
    c, size, _ = x.shape
    padded = torch.zeros(c, size + before + after, size + before + after)
    padded[:, before : before + size, before : before + size] = x
    k = w.shape[-1]
    n = (padded.shape[1] - k) // stride + 1
    y = torch.empty(len(w), n, n)
    for i in range(n):
        for j in range(n):
            patch = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
            y[:, i, j] = (w * patch).sum((1, 2, 3))
    return y


@pytest.mark.parametrize(
    ("padding", "size", "before", "after"),
    [("same", 8, 0, 1), ("same", 7, 1, 1), ("symmetric", 8, 1, 1), ("symmetric", 7, 1, 1)],
)
def test_stride_2_padding(padding, size, before, after):
    """TensorFlow pads an even side after alone; PyTorch pads both sides."""
    net = model.build(spec.scale(zoo.network("v1"), 0.25, 32, 2, padding=padding)).eval()
    layer = net.blocks[0].conv
    layer.norm, layer.act = nn.Identity(), nn.Identity()
    x = torch.randn(3, size, size, generator=torch.Generator().manual_seed(0))
    expected = reference_conv(x, layer.conv.weight, 2, before, after)
    torch.testing.assert_close(layer(x[None])[0], expected, rtol=1e-4, atol=1e-5)


def test_stride_1_padding_is_the_same_in_both():
    x = torch.randn(1, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    layers = [
        model.build(spec.scale(zoo.network("v1"), 0.25, 32, 2, padding=p)).eval().blocks[1].depthwise
        for p in ("same", "symmetric")
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    assert torch.equal(layers[0](x), layers[1](x))


@torch.no_grad()
def test_v2_is_torchvisions():
    from torchvision.models import mobilenet_v2

    theirs, ours = mobilenet_v2(weights=None).eval(), model.build(zoo.arch("v2")).eval()
    torch.manual_seed(0)
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.uniform_(0.5, 1.5)
            m.bias.normal_(0, 0.2)
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.5, 1.5)
        elif isinstance(m, nn.Linear):
            m.weight.normal_(0, 0.05)
    a, b = theirs.state_dict(), ours.state_dict()
    assert [v.shape for v in a.values()] == [v.shape for v in b.values()]
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters()) == 3_504_872
    ours.load_state_dict(dict(zip(b, a.values(), strict=True)))
    x = torch.randn(2, 3, 96, 96)
    expected = theirs(x)
    assert expected.std() > 0.1  # or the comparison says nothing
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


def test_activation_batchnorm_and_dropout_are_as_asked():
    net = model.build(
        spec.scale(zoo.network("v2"), 0.35, 32, 2, activation="relu", bn_eps=1e-3, bn_momentum=0.03, dropout=0.4)
    )
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}
    assert any(isinstance(m, nn.ReLU) for m in net.modules())
    assert not any(isinstance(m, nn.ReLU6) for m in net.modules())
    assert net.classifier.dropout == 0.4


def test_the_projection_is_linear():
    block = model.build(zoo.arch("v2", 0.35, 32, 2)).blocks[2]
    assert isinstance(block.project.act, nn.Identity)
    assert isinstance(block.expand.act, nn.ReLU6)


def test_the_shortcut_adds_the_input():
    block = model.build(zoo.arch("v2", 0.35, 32, 2)).eval().blocks[3]
    x = torch.randn(1, block.expand.conv.in_channels, 8, 8)
    y = block.project(block.depthwise(block.expand(x.clone())))
    torch.testing.assert_close(block(x.clone()), x + y)


def test_the_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return model.build(zoo.arch("v1", 0.25, 32, 2)).blocks[1].pointwise.conv.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
