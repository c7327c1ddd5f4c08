"""Which network tensors are of."""

import numpy as np
import pytest
from torchvision import models

from mobilenets.arch import zoo
from mobilenets.errors import UserError
from mobilenets.model.convert import namings, prefixes, recognise

timm = pytest.importorskip("timm")


def state(net):
    return {k: v.numpy() for k, v in net.state_dict().items()}


@pytest.fixture(scope="module")
def v2():
    return state(models.mobilenet_v2(width_mult=0.75))


def message(tensors, *told):
    with pytest.raises(UserError) as e:
        recognise.identify(tensors, *told)
    text = str(e.value)
    assert "\n" not in text
    assert len(text) < 900
    return text


def test_v2_for_cifar_has_to_be_asked_for():
    tensors = state(models.mobilenet_v2(num_classes=10))
    assert recognise.identify(tensors).arch.name == "v2"
    found = recognise.identify(tensors, "MobileNetV2-CIFAR").arch
    assert (found.name, found.num_classes, found.rows[0].stride) == ("v2-cifar", 10, 1)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "a.b.c.", "features."])
def test_a_prefix_that_all_names_share_is_dropped(v2, prefix):
    got = prefixes.unprefixed({prefix + k: a for k, a in v2.items()})
    assert got.keys() == v2.keys()
    assert recognise.identify(got).arch.alpha == 0.75


def test_what_a_checkpoint_holds_beside_the_network_is_left(v2):
    saved = {f"model.{k}": a for k, a in v2.items()} | {"criterion.weight": np.ones(3), "mean": np.ones(3)}
    assert prefixes.unprefixed(saved).keys() == v2.keys()
    nothing = {"model.a": np.ones(3), "net.b": np.ones(3)}
    assert prefixes.unprefixed(nothing) == nothing


def test_averages_beside_the_weights_are_what_was_scored(v2):
    saved = {f"model.{k}": a + 1 for k, a in v2.items()} | {f"ema.{k}": a for k, a in v2.items()}
    got = prefixes.unprefixed(saved)
    assert got.keys() == v2.keys()
    assert all(np.array_equal(got[k], v2[k]) for k in v2)


def test_what_was_told_but_does_not_fit(v2):
    assert recognise.identify(v2, "v2", 0.75).arch.alpha == 0.75
    said = message(v2, "v2", 1.0)
    assert said.startswith(
        "the weights don't fit V2 at alpha 1 in torchvision's names (misshapen: features.0.0.weight "
    )
    assert "24x3x3x3 instead of 32x3x3x3" in said
    assert said.endswith("; this is V2 at alpha 0.75 in torchvision's names")
    assert message(v2, None, 0.5).endswith("; this is V2 at alpha 0.75 in torchvision's names")
    said = message(v2, "v1")
    assert said == "the weights fit none that was asked for; this is V2 at alpha 0.75 in torchvision's names"
    with pytest.raises(UserError, match="unknown arch 'v9'"):
        recognise.identify(v2, "v9")


def test_a_width_that_nobody_published_is_found_when_told():
    tensors = state(models.mobilenet_v2(width_mult=0.6, num_classes=5))
    assert "the nearest network is V2 at alpha" in message(tensors)
    assert recognise.identify(tensors, alpha=0.6).arch.alpha == 0.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("features.3.conv.1.0.weight"), "missing: features.3.conv.1.0.weight"),
        (lambda t: t.update(extra=np.zeros(3)), "extra: extra"),
        (
            lambda t: t.update({"features.3.conv.1.1.bias": np.zeros(3)}),
            "misshapen: features.3.conv.1.1.bias 3 instead of 144",
        ),
        (
            lambda t: t.update({"features.3.conv.1.0.weight": np.zeros((1, 2, 3, 4, 5))}),
            "misshapen: features.3.conv.1.0.weight 1x2x3x4x5 instead of 144x1x3x3",
        ),
    ],
)
def test_one_wrong_tensor_is_named(v2, change, said):
    tensors = dict(v2)
    change(tensors)
    nearest = f"the nearest network is V2 at alpha 0.75 in torchvision's names ({said})"
    assert message(tensors) == f"the weights fit no network; {nearest}"
    assert message(tensors, "v2", 0.75).startswith(
        f"the weights don't fit V2 at alpha 0.75 in torchvision's names ({said})"
    )


@pytest.mark.slow
def test_other_networks_are_refused():
    said = message(state(models.resnet18()))
    assert said.startswith("no network here has tensors like these: bn1.bias, bn1.num_batches_tracked")
    assert said.endswith("more")
    assert message({}) == "no network here has tensors like these: there are none"
    for name in ("mobilenetv1_100h", "mobilenetv3_rw"):
        said = message(state(timm.create_model(name)))
        assert said.startswith("the weights fit no network; the nearest network is V")
        assert "?" not in said


def test_no_two_namings_of_a_network_claim_one_tensor_twice():
    for naming in namings.NAMINGS:
        for name in (n for n in zoo.NETWORKS if n.split("-")[0] == naming.family):
            arch = zoo.arch(name)
            if naming.covers(arch):
                names = [s.theirs[0] for s in recognise.slots(naming, arch)]
                scales = {s.theirs[0] for s in recognise.slots(naming, arch) if s.role == "scale"}
                assert len(names) == len(set(names)), (naming.name, name)
                assert bool(scales) == name.startswith("v4")
