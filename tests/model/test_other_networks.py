"""Torchvision's and timm's networks beside MobileNets: their weights import, and compute the same here."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mobilenets.arch import cost, zoo
from mobilenets.errors import UserError
from mobilenets.model import joints, module
from mobilenets.model.convert.branches import joined
from mobilenets.model.convert.recognise import convert, identify
from mobilenets.model.convert.weights import foreign_bundle, open_foreign
from mobilenets.model.net import Net, card_of, of_tensors

SLOW = pytest.mark.slow
# Builder, our name, alpha; the smallest by default, of every kind of row.
THEIRS = [
    ("torchvision:squeezenet1_1", "squeezenet-1.1", 1.0),
    ("torchvision:shufflenet_v2_x0_5", "shufflenet-v2", 0.5),
    ("timm:mobileone_s0", "mobileone-s0", 1.0),
    ("timm:ghostnet_050", "ghostnet", 0.5),
    *(
        pytest.param(*row, marks=SLOW)
        for row in (
            ("torchvision:squeezenet1_0", "squeezenet-1.0", 1.0),
            ("torchvision:shufflenet_v2_x1_0", "shufflenet-v2", 1.0),
            ("torchvision:shufflenet_v2_x1_5", "shufflenet-v2", 1.5),
            ("torchvision:shufflenet_v2_x2_0", "shufflenet-v2", 2.0),
            ("torchvision:alexnet", "alexnet", 1.0),
            ("torchvision:vgg16", "vgg16", 1.0),
            ("torchvision:googlenet", "googlenet", 1.0),
            ("torchvision:inception_v3", "inception-v3", 1.0),
            ("torchvision:mnasnet0_5", "mnasnet", 0.5),
            ("torchvision:mnasnet1_3", "mnasnet", 1.3),
            ("timm:mnasnet_100", "mnasnet", 1.0),
            ("timm:efficientnet_lite0", "efficientnet-lite0", 1.0),
            ("timm:efficientnet_lite4", "efficientnet-lite4", 1.0),
            ("timm:mobilenet_edgetpu_100", "mobilenet-edgetpu", 1.0),
            ("timm:legacy_xception", "xception", 1.0),
            ("timm:ghostnet_130", "ghostnet", 1.3),
            ("timm:mobileone_s1", "mobileone-s1", 1.0),
        )
    ),
]


def theirs(builder: str) -> nn.Module:
    """Their network with random weights, and statistics that are none of a new one."""
    library, _, name = builder.partition(":")
    torch.manual_seed(0)
    if library == "timm":
        timm = pytest.importorskip("timm")
        made = timm.create_model(name, num_classes=7)
    else:
        from torchvision import models

        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        made = models.get_model(name, weights=None, num_classes=7, **more)
    for m in made.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 2.0)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.3, 0.3)
    return made.eval()


@pytest.mark.parametrize(("builder", "name", "alpha"), THEIRS)
def test_their_weights_compute_the_same_here(builder, name, alpha):
    net = theirs(builder)
    tensors = joined({k: v.numpy() for k, v in net.state_dict().items()})
    found = identify(tensors)
    assert (found.arch.name, found.arch.alpha) == (name, alpha)
    eps = found.naming.bn_eps or found.naming.style.bn_eps
    ours: Net = of_tensors(card_of(found.arch.replace(bn_eps=eps)), convert(found, tensors)).eval()
    side = found.arch.resolution if name in ("alexnet", "vgg16") else 96
    x = torch.rand(2, 3, side, side)
    with torch.inference_mode():
        expected, got = net(x), ours(x)
    expected = expected if isinstance(expected, torch.Tensor) else expected[0]
    assert expected.std(0).max() > 0
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_file_of_theirs_becomes_a_bundle(tmp_path):
    net = theirs("torchvision:squeezenet1_1")
    torch.save(net.state_dict(), tmp_path / "theirs.pth")
    bundle = foreign_bundle(open_foreign(str(tmp_path / "theirs.pth")))
    assert bundle.card.arch.title == "squeezenet-1.1 1-224"
    assert bundle.card.outputs == {"probabilities": (7,)}
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(bundle.module()(x), net(x))


def test_branches_without_a_tensor_are_named():
    net = {"a.conv_kxk.0.conv.weight": np.zeros((4, 1, 3, 3)), "a.conv_kxk.0.bn.weight": np.ones(4)}
    with pytest.raises(UserError, match=r"a block of branches without a\.conv_kxk\.0\.bn\.bias"):
        joined(net)


@pytest.mark.parametrize("name", ["squeezenet-1.0", "shufflenet-v1", "flattened", "factorized", "inception-v3"])
def test_macs_equal_the_flop_counters(name):
    arch = zoo.arch(name, 0.5)
    with torch.device("meta"):
        net = module.build(arch).eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            net(torch.zeros(1, 3, arch.resolution, arch.resolution))
    counted = cost.count(arch)
    assert counter.get_total_flops() // 2 == counted.macs
    assert sum(p.numel() for p in net.parameters()) == counted.params


def test_a_shuffle_takes_one_of_each_group_in_turn():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert joints.Shuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]
