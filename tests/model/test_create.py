"""`mobilenets.create` and `Bundle.module`: what timm's and torchvision's users expect of a network."""

import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

import mobilenets
from mobilenets.arch import spec, zoo
from mobilenets.arch.spec import Variant
from mobilenets.errors import UserError


@pytest.fixture
def saved(make_bundle, tmp_path):
    """V1 .25-32 of ten classes, as a folder."""
    return make_bundle("v1").save(tmp_path / "b"), tmp_path / "b"


def parameters(net):
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a, b, but=()):
    keys = [k for k in a if not k.startswith(tuple(but))] if but else list(a)
    return keys and all(torch.equal(a[k], b[k]) for k in keys)


# ---- what is asked for ---------------------------------------------------------------------------------------------


def test_the_arguments_are_the_archs():
    net = mobilenets.create("MobileNet_V2", alpha=0.35, resolution=64, num_classes=3, variant=Variant(padding="same"))
    assert net.arch == spec.scale(zoo.V2, 0.35, 64, 3, padding="same")
    assert net.card.arch == net.arch
    assert net.training
    assert mobilenets.create("v4-conv-s").arch == zoo.arch("v4-conv-s")


def test_a_variants_defaults_are_those_of_scale():
    defaults = {n: p.default for n, p in inspect.signature(spec.scale).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert dataclasses.asdict(Variant()) == defaults


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "v3x"}, "unknown arch 'v3x'"),
        ({"name": "v22"}, "unknown arch 'v22': did you mean 'v2'"),
        ({"name": "v1", "alhpa": 1}, "create: unknown argument 'alhpa': did you mean 'alpha'"),
        ({"name": "v1", "alpha": 0}, "alpha must be above 0"),
        ({"name": "v1", "resolution": 7}, "resolution must be"),
        ({"name": "v1", "num_classes": -1}, "classes must be 0 or more"),
        ({"name": "v1", "num_classes": "3"}, "create: num_classes must be a whole number or None, not '3'"),
        ({"name": "v1", "pretrained": True}, "pretrained=True names no weights: give a bundle's folder"),
        ({"name": "v1", "pretrained": "gone"}, "gone: no bundle here"),
        ({"name": "v1", "pretrained": "gone.pth"}, "gone.pth: no such file"),
        ({"name": "v2", "pretrained": "cifar10-v1-0.25"}, "cifar10-v1-0.25 has weights of 'v1-cifar' with alpha 0.25"),
        ({"name": "v1-cifar", "alpha": 1.0, "pretrained": "cifar10-v1-0.25"}, "with alpha 0.25: ask for that"),
        ({"name": "v1-cifar", "pretrained": "cifar10-v1-0.25", "variant": Variant()}, "leave out `variant`"),
        ({"name": "v1", "out_indices": (1,)}, "out_indices names maps: with features_only=True"),
        ({"name": "v1", "features_only": True, "out_indices": (5,)}, "out_indices are from 0 to 4 for v1 1-224, not 5"),
        ({"name": "v1", "features_only": True, "out_indices": ()}, "out_indices names no map"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(UserError) as e:
        mobilenets.create(**options)
    assert message in str(e.value)


@pytest.mark.parametrize(("field", "value"), [("paddin", "same"), ("padding", "sames"), ("shortcut", "expansions")])
def test_a_misspelt_variant_is_named(field, value):
    with pytest.raises(UserError, match="did you mean"):
        Variant(**{field: value})


# ---- weights -------------------------------------------------------------------------------------------------------


def test_every_way_to_name_weights(saved, tmp_path):
    bundle, folder = saved
    expected = {k: torch.from_numpy(v) for k, v in bundle.tensors.items()}
    torch.save(bundle.module().state_dict(), tmp_path / "own.pth")
    (tmp_path / "run").mkdir()
    bundle.save(tmp_path / "run" / "float")
    for where in (bundle, folder, str(folder), tmp_path / "run", tmp_path / "own.pth"):
        net = mobilenets.create("v1", alpha=0.25, pretrained=where)
        assert net.num_classes == 10
        assert net.training
        assert same(parameters(net), expected)
    assert mobilenets.create("v1", pretrained=folder).card.labels == bundle.card.labels


def test_torchvisions_weights_in_a_file(tmp_path):
    from torchvision.models import mobilenet_v2

    theirs = mobilenet_v2(num_classes=4).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    net = mobilenets.create("v2", pretrained=str(tmp_path / "theirs.pth")).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(net(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.timeout(30)  # seconds for what takes a hundredth of one: it took hours, by the depth of the names
def test_names_that_are_nobodys_are_seen_at_once():
    from mobilenets.model.convert.prefixes import unprefixed

    with torch.device("meta"):
        tensors = dict.fromkeys(mobilenets.create("v3-large").state_dict(), np.zeros(1))
    assert unprefixed(tensors) == tensors


def test_own_weights_of_another_width_are_named(tmp_path):
    torch.save(mobilenets.create("v1", alpha=0.5, num_classes=2).state_dict(), tmp_path / "own.pth")
    with pytest.raises(UserError, match=r"own\.pth: not the weights of v1 0\.25-224: blocks\.0\.conv\.conv\.weight is"):
        mobilenets.create("v1", alpha=0.25, pretrained=tmp_path / "own.pth")


def test_other_classes_get_a_new_classifier(saved):
    bundle, _ = saved
    net = mobilenets.create("v1", pretrained=bundle, num_classes=3, resolution=48)
    assert (net.card.arch.resolution, net.card.preprocess.resolution) == (48, 48)
    assert same(parameters(net), parameters(bundle.module()), but=("classifier.",))
    assert net(torch.zeros(2, 3, 48, 48)).shape == (2, 3)


def test_a_bundles_module_answers_as_its_file_does(saved, pixels):
    bundle, folder = saved
    net = bundle.module()
    assert not net.training
    with torch.inference_mode():
        got = net(net.preprocess(pixels)).softmax(1).numpy()
        named = net.answers(net.preprocess(pixels))["probabilities"].numpy()
    expected = mobilenets.load(folder).engine(np.stack([net.card.preprocess.fit(Image.fromarray(p)) for p in pixels]))
    expected = expected["probabilities"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(named, expected, rtol=1e-4, atol=1e-6)


def test_an_int8_bundle_has_no_module(saved):
    bundle = mobilenets.Bundle(saved[0].card.replace(precision="int8"), {})
    with pytest.raises(UserError, match="a module computes in float32, and this bundle is int8"):
        bundle.module()


# ---- timm's names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["v1", "v2", "v3-large", "v4-conv-s", "v4-hybrid-m", "v2-cifar"])
def test_features(name):
    net = mobilenets.create(name, alpha=0.35).eval()
    body = mobilenets.create(name, alpha=0.35, features_only=True).eval()
    body.load_state_dict(dict(zip(body.state_dict(), net.state_dict().values(), strict=False)))
    side = 2 * net.arch.stages[-1].stride
    x = torch.rand(2, 3, side, side)
    with torch.inference_mode():
        maps, expected = body(x), list(net.features(x).values())
        assert torch.equal(net.forward_head(net.forward_features(x)), net(x))
        assert net.forward_head(net.forward_features(x), pre_logits=True).shape == (2, net.num_features)
    assert len(maps) == len(expected) == len(body.feature_info) == len(net.feature_info)
    for a, b, info, own in zip(maps, expected, body.feature_info, net.feature_info, strict=True):
        assert torch.equal(a, b)
        assert a.shape == (2, info["num_chs"], side // info["reduction"], side // info["reduction"])
        assert (own["num_chs"], own["reduction"]) == (info["num_chs"], info["reduction"])
        assert isinstance(net.get_submodule(own["module"]), torch.nn.Module)
        assert isinstance(body.get_submodule(info["module"]), torch.nn.Module)


def test_some_of_the_maps():
    body = mobilenets.create("v3-small", features_only=True, out_indices=(3, 1, -1, 1)).eval()
    assert body.out_indices == (1, 3, 4)
    assert body.feature_info.channels() == [16, 48, 576]
    assert body.feature_info.reduction() == [4, 16, 32]
    assert body.feature_info.module_name() == ["stage2", "stage4", "stage5"]
    assert body.num_features == 576
    short = mobilenets.create("v3-small", features_only=True, out_indices=(1,))
    assert [name for name, _ in short.named_children()] == ["stage1", "stage2"]


def test_the_names_are_timms():
    """What `timm.create_model` calls them and what they are there, for the same network."""
    import timm

    theirs = timm.create_model("mobilenetv2_100", num_classes=7)
    ours = mobilenets.create("v2", num_classes=7)
    assert ours.num_features == theirs.num_features == 1280
    assert ours.num_classes == theirs.num_classes == 7
    assert [f["reduction"] for f in ours.feature_info] == [f["reduction"] for f in theirs.feature_info]
    assert ours.feature_info.channels()[:4] == [f["num_chs"] for f in theirs.feature_info][:4]
    for net in (ours, theirs):
        net.reset_classifier(3)
        assert net.get_classifier().out_features == 3
        assert net.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
        net.reset_classifier(0)
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)


def test_reset_classifier_keeps_the_rest(saved):
    net = saved[0].module().double()
    before = parameters(net)
    net.reset_classifier(4)
    assert same(parameters(net), before, but=("classifier.",))
    assert net.classifier.weight.dtype == torch.float64
    assert net.card.labels == ("class 0", "class 1", "class 2", "class 3")
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net.answers(x)["probabilities"], net(x).softmax(1))
    net.reset_classifier(0)
    torch.testing.assert_close(net.answers(x)["features"], net(x))
    net.reset_classifier(2)
    assert net(x).shape == (1, 2)
    with pytest.raises(UserError, match="classes must be 0 or more"):
        net.reset_classifier(-1)


def test_a_network_is_pickled_whole(saved):
    net = saved[0].module()
    again = pickle.loads(pickle.dumps(net))
    assert again.card == net.card
    assert same(parameters(again), parameters(net))


# ---- its input -----------------------------------------------------------------------------------------------------


def test_preprocess_is_what_files_do(saved, pixels):
    net = saved[0].module()
    images = np.stack([np.asarray(Image.fromarray(p).resize((50, 40))) for p in pixels[:3]])
    expected = torch.from_numpy(
        net.card.preprocess.normalize(np.stack([net.card.preprocess.fit(Image.fromarray(i)) for i in images]))
    )
    assert torch.equal(net.preprocess(images), expected)
    assert torch.equal(net.preprocess(torch.from_numpy(images).permute(0, 3, 1, 2)), expected)
    assert torch.equal(net.preprocess(images / 255), expected)
    for image in (Image.fromarray(images[0]), images[0], torch.from_numpy(images[0]).permute(2, 0, 1)):
        assert torch.equal(net.preprocess(image), expected[0])
    assert "resolution=32" in repr(net.preprocess)


# ---- torchvision's detectors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["FasterRCNN", "RetinaNet"])
def test_a_backbone_of_a_detector(kind):
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    body = mobilenets.create("v2", alpha=0.35, features_only=True, out_indices=(1, 2, 3, 4))
    layers = {f["module"]: str(i) for i, f in enumerate(body.feature_info)}
    fpn = BackboneWithFPN(body, layers, body.feature_info.channels(), 32)
    sizes = {"anchor_generator": detection.anchor_utils.AnchorGenerator(((16,),) * 5, ((1.0,),) * 5)}
    sizes = {"rpn_anchor_generator": sizes["anchor_generator"]} if kind == "FasterRCNN" else sizes
    net = getattr(detection, kind)(fpn, num_classes=2, min_size=64, max_size=64, **sizes)
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}
    losses = net([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    stem = body.stage1[0].conv.conv.weight.grad
    assert stem.abs().sum() > 0
    (found,) = net.eval()([torch.rand(3, 64, 64)])
    assert found["boxes"].shape[1] == 4
