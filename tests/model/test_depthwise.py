import pytest
import torch
from torch.nn import functional as F

from mobilenets.arch import zoo
from mobilenets.model import module as model
from mobilenets.model.depthwise import DepthwiseConv2d, _Depthwise


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
        patch.setattr(DepthwiseConv2d, "forward", torch.nn.Conv2d.forward)
        plain = gradients()

    def far(gradient):
        return torch.cat([(gradient[k] - g).flatten() for k, g in exact.items()]).norm()

    assert far(fast) <= 1.2 * far(plain)


def test_outside_of_bf16_training_it_is_a_plain_convolution(monkeypatch):
    layer = DepthwiseConv2d(4, 4, 3, 2, 1, groups=4, bias=False)
    monkeypatch.setattr(_Depthwise, "apply", lambda *_: pytest.fail("not the place for it"))
    x = torch.randn(1, 4, 8, 8)
    layer(x)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        layer(x)
