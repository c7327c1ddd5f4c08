"""Networks to learn from, of every kind, give what they themselves would say."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mobilenets.deploy import engines, export
from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.tasks import features
from mobilenets.training import teachers
from mobilenets.training.teachers import open_teacher


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    monkeypatch.setattr(teachers, "fast_bf16", lambda: False)


@pytest.fixture(scope="module")
def saved(make_bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "b"
    return make_bundle("v1").save(path), path


def as_images(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def test_a_bundle_gives_its_logits_and_its_embedding(saved, pixels):
    b, path = saved
    teacher = open_teacher(str(path))
    assert (teacher.digest, teacher.labels, teacher.width) == (b.digest, b.card.labels, 256)
    net = simulate.float_model(b)
    with torch.no_grad():
        x = torch.from_numpy(b.card.preprocess.normalize(pixels))
        logits, embedding = net(x), net.pooled(x)
    said = teacher(as_images(pixels))
    assert set(said) == {"logits", "embedding"}
    assert torch.allclose(said["logits"], logits, atol=1e-4)
    assert torch.allclose(said["embedding"], embedding, atol=1e-4)


def test_a_network_of_features_gives_its_embedding_alone(saved, pixels, tmp_path):
    features.of_bundle(saved[0]).save(tmp_path / "f")
    teacher = open_teacher(str(tmp_path / "f"))
    said = teacher(as_images(pixels))
    assert (teacher.labels, teacher.width, set(said)) == ((), 256, {"embedding"})
    assert torch.equal(said["embedding"], open_teacher(str(saved[1]))(as_images(pixels))["embedding"])
    export.export_bundle(features.of_bundle(saved[0]), pixels, tmp_path / "f.onnx", "test")
    with pytest.raises(UserError, match=r"f\.onnx gives no probabilities that another network could learn"):
        open_teacher(str(tmp_path / "f.onnx"))


@pytest.mark.parametrize("encoding", ["half", "int4"])
def test_stored_smaller_a_bundle_still_teaches(saved, pixels, tmp_path, encoding):
    saved[0].encoded(encoding).save(tmp_path / "small")
    said = open_teacher(str(tmp_path / "small"))(as_images(pixels))
    plain = simulate.float_model(Bundle.load(tmp_path / "small"))
    with torch.no_grad():
        expected = plain(torch.from_numpy(saved[0].card.preprocess.normalize(pixels)))
    assert torch.allclose(said["logits"], expected, atol=1e-3)


def test_an_exported_file_gives_the_same_probabilities(saved, pixels, tmp_path):
    b, path = saved
    made = export.export_bundle(b, pixels, tmp_path / "m.onnx", "test")
    teacher = open_teacher(str(made.path))
    assert (teacher.labels, teacher.width) == (b.card.labels, 0)
    said = teacher(as_images(pixels))["logits"]
    known = open_teacher(str(path))(as_images(pixels))["logits"]
    for t in (1.0, 4.0):  # logits up to a constant: softened alike
        assert torch.allclose((said / t).softmax(1), (known / t).softmax(1), atol=1e-3)


def test_an_int8_bundle_teaches_through_its_engine(saved, pixels, tmp_path):
    from mobilenets.compression.quantize import quantize_bundle

    int8 = quantize_bundle(saved[0], pixels).save(tmp_path / "int8")
    teacher = open_teacher(str(tmp_path / "int8"))
    assert teacher.width == 0
    probabilities = engines.load(tmp_path / "int8")(pixels)["probabilities"]
    assert np.allclose(teacher(as_images(pixels))["logits"].softmax(1), probabilities, atol=1e-5)
    assert int8.card.precision == "int8"


def test_images_of_another_size_are_resized_to_the_teachers(saved, pixels):
    teacher = open_teacher(str(saved[1]))
    large = F.interpolate(as_images(pixels).float(), (64, 64), mode="nearest")
    back = F.interpolate(large, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(teacher(large)["logits"], teacher(back)["logits"], atol=1e-4)


@pytest.fixture
def local_torchvision(monkeypatch):
    """Torchvision's networks without a network: their weights are random."""
    from torchvision import models

    real = models.get_model
    built = {}

    def get_model(name, weights=None, **more):
        torch.manual_seed(1)
        built[name] = real(name, weights=None, **more)
        built["weights"] = weights
        return built[name]

    monkeypatch.setattr(models, "get_model", get_model)
    return built


def test_torchvision(local_torchvision):
    teacher = open_teacher("torchvision:shufflenet_v2_x0_5")
    assert teacher.name == "torchvision:shufflenet_v2_x0_5.IMAGENET1K_V1"
    assert teacher.labels[:1] == ("tench",)
    assert (teacher.preprocess.resolution, teacher.width) == (224, 1024)
    assert local_torchvision["weights"].url.endswith(".pth")
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    said = teacher(images)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    net = local_torchvision["shufflenet_v2_x0_5"]
    with torch.no_grad():
        assert torch.allclose(said["logits"], net(x), atol=1e-4)
        assert torch.allclose(net.fc(said["embedding"]), net(x), atol=1e-4)


def test_timm(monkeypatch):
    timm = pytest.importorskip("timm")
    from mobilenets.training import hubs

    monkeypatch.setattr(hubs, "timm_network", lambda name: timm.create_model(name))
    teacher = open_teacher("timm:mobilenetv3_small_050")
    assert teacher.labels == tuple(imagenet.classes().values())
    said = teacher(torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8))
    assert {name: value.shape for name, value in said.items()} == {"logits": (2, 1000), "embedding": (2, 1024)}
    assert teacher.width == 1024


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:resnet51", "unknown torchvision network 'resnet51': did you mean 'resnet50'?"),
        ("torchvision:resnet50.IMAGENET1K_V9", "unknown weights of resnet50 'IMAGENET1K_V9': did you mean"),
        ("timm:resnet_50", "unknown timm network 'resnet_50': did you mean"),
        ("nowhere/run", "nowhere/run: no such file or folder"),
    ],
)
def test_names_that_are_none(name, said):
    with pytest.raises(UserError) as e:
        open_teacher(name)
    assert str(e.value).startswith(said)


def test_a_damaged_bundle_is_named(saved, tmp_path):
    import shutil

    shutil.copytree(saved[1], tmp_path / "b")
    (tmp_path / "b" / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"altered or damaged"):
        open_teacher(str(tmp_path / "b"))


def test_offline_says_where_the_file_belongs(monkeypatch):
    from torchvision import models

    def fail(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(models, "get_model", fail)
    with pytest.raises(UserError) as e:
        open_teacher("torchvision:resnet18")
    assert "can't be downloaded (Name or service not known)" in str(e.value)
    assert "resnet18-f37072fd.pth elsewhere and put the file into " in str(e.value)
