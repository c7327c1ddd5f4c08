import pytest
import torch
from torch.nn import functional as F

from mobilenets.arch import zoo
from mobilenets.model import module as model
from mobilenets.model.conv import Conv2d, _Depthwise, by_taps, seen


@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "side"),
    [
        (3, 1, 2, 8),
        (3, 1, 2, 9),
        (3, 0, 2, 9),
        (3, 0, 2, 10),
        (5, 2, 2, 12),
        (5, 0, 2, 13),
        (3, 1, 1, 7),
        (3, 1, 3, 11),
    ],
)
def test_the_gradients_are_pytorchs(kernel, padding, stride, side):
    torch.manual_seed(0)
    x = torch.randn(3, 5, side, side, dtype=torch.float64).requires_grad_()
    w = torch.randn(5, 1, kernel, kernel, dtype=torch.float64).requires_grad_()
    expected = F.conv2d(x, w, None, stride, padding, groups=5)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(_Depthwise.apply(x, w, stride, padding), expected)
    ours = torch.autograd.grad(_Depthwise.apply(x, w, stride, padding), (x, w), grad)
    for a, b in zip(ours, torch.autograd.grad(expected, (x, w), grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_only_what_is_needed_is_computed():
    x, w = torch.randn(1, 2, 6, 6), torch.randn(2, 1, 3, 3).requires_grad_()
    (dw,) = torch.autograd.grad(_Depthwise.apply(x, w, 2, 1).sum(), (w,))
    assert dw.shape == w.shape


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_network_in_bf16_has_the_gradients_of_plain_layers(name, monkeypatch):
    """The same sums in another order: as near to float32's as plain layers in bf16 are."""
    x = torch.rand(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def gradients(bf16=True):
        torch.manual_seed(0)
        net = model.build(zoo.arch(name, 0.25, 32, 5)).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = net(x).float().square().mean()
        loss.backward()
        return {k: p.grad for k, p in net.named_parameters()}

    exact, fast = gradients(bf16=False), gradients()
    with monkeypatch.context() as patch:
        patch.setattr(Conv2d, "forward", torch.nn.Conv2d.forward)
        plain = gradients()

    def far(gradient):
        return torch.cat([(gradient[k] - g).flatten() for k, g in exact.items()]).norm()

    assert far(fast) <= 1.2 * far(plain)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_taps_seen_are_those_with_a_gradient(kernel, stride):
    for side in range(1, 9):
        for padding in range(kernel):
            if side + 2 * padding < kernel:
                continue
            w = torch.ones(1, 1, kernel, dtype=torch.float64, requires_grad=True)
            F.conv1d(torch.ones(1, 1, side, dtype=torch.float64), w, None, stride, padding).sum().backward()
            assert seen(side, kernel, stride, padding) == w.grad.flatten().nonzero().flatten().tolist()


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(
    ("sides", "kernels", "stride", "padding"),
    [
        ((1, 1), (3, 3), 1, (1, 1)),
        ((1, 1), (3, 3), 2, (1, 1)),
        ((2, 2), (3, 3), 2, (1, 1)),
        ((2, 3), (5, 5), 1, (2, 2)),
        ((3, 1), (5, 3), 2, (2, 1)),
        ((1, 4), (3, 1), 1, (1, 0)),
        ((6, 5), (3, 3), 2, (1, 1)),
    ],
)
def test_a_sum_over_taps_is_the_convolution(groups, sides, kernels, stride, padding):
    torch.manual_seed(0)
    x = torch.randn(3, 6, *sides, dtype=torch.float64).requires_grad_()
    w = torch.randn(12, 6 // groups, *kernels, dtype=torch.float64).requires_grad_()
    b = torch.randn(12, dtype=torch.float64).requires_grad_()
    expected = F.conv2d(x, w, b, stride, padding, groups=groups)
    ours = by_taps(x, w, b, stride, padding)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(expected)
    for a, e in zip(
        torch.autograd.grad(ours, (x, w, b), grad), torch.autograd.grad(expected, (x, w, b), grad), strict=True
    ):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 32])
@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(1, 3, 1), (1, 3, 2), (2, 3, 2), (3, 3, 2), (1, 5, 1), (2, 5, 1)]
)
def test_gradients_in_bf16_hold_nothing_of_freed_memory(groups, side, kernel, stride):
    torch.manual_seed(0)
    layer = Conv2d(32, 32, kernel, stride, kernel // 2, groups=groups, bias=False).to(memory_format=torch.channels_last)
    x = torch.rand(8, 32, side, side).contiguous(memory_format=torch.channels_last)
    layer(x).sum().backward()
    exact, floor = layer.weight.grad, layer.weight.grad.abs().max() / 50
    unseen, seen_first = exact == 0, None
    for _ in range(20):
        poison = [torch.full((size,), 12345.0) for size in (exact.numel() // 2, exact.numel(), 4608) for _ in range(20)]
        del poison  # freed memory now holds it
        layer.weight.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.float().sum().backward()
        assert (layer.weight.grad[unseen] == 0).all()
        torch.testing.assert_close(layer.weight.grad, exact, rtol=0.02, atol=float(floor))
        seen_first = layer.weight.grad if seen_first is None else seen_first
        assert torch.equal(layer.weight.grad, seen_first)


def test_where_taps_meet_padding_alone_no_convolution_is_called(monkeypatch):
    x = torch.rand(2, 4, 1, 1)
    layer = Conv2d(4, 4, 3, 1, 1, groups=4, bias=False)
    expected = layer(x)
    monkeypatch.setattr(F, "conv2d", lambda *_: pytest.fail("oneDNN is asked"))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=1e-3)


def test_outside_of_bf16_training_it_is_a_plain_convolution(monkeypatch):
    layer = Conv2d(4, 4, 3, 2, 1, groups=4, bias=False)
    monkeypatch.setattr(_Depthwise, "apply", lambda *_: pytest.fail("not the place for it"))
    x = torch.randn(1, 4, 8, 8)
    layer(x)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
