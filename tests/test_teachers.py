"""Networks to learn from, of every kind, give what they themselves would say."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mobilenets.deploy import engines, export
from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model import reference as simulate
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
        expected = torch.cat([net(x), net.pooled(x)], dim=1)
    assert torch.allclose(teacher(as_images(pixels)), expected, atol=1e-4)


def test_an_exported_file_gives_the_same_probabilities(saved, pixels, tmp_path):
    b, path = saved
    made = export.export_bundle(b, pixels, tmp_path / "m.onnx", "test")
    teacher = open_teacher(str(made.path))
    assert (teacher.labels, teacher.width) == (b.card.labels, 0)
    said = teacher(as_images(pixels))
    known = open_teacher(str(path))(as_images(pixels))[:, :10]
    for t in (1.0, 4.0):  # logits up to a constant: softened alike
        assert torch.allclose((said / t).softmax(1), (known / t).softmax(1), atol=1e-3)


def test_an_int8_bundle_teaches_through_its_engine(saved, pixels, tmp_path):
    from mobilenets.compression.quantize import quantize_bundle

    int8 = quantize_bundle(saved[0], pixels).save(tmp_path / "int8")
    teacher = open_teacher(str(tmp_path / "int8"))
    assert teacher.width == 0
    assert np.allclose(teacher(as_images(pixels)).softmax(1), engines.load(tmp_path / "int8")(pixels), atol=1e-5)
    assert int8.card.precision == "int8"


def test_images_of_another_size_are_resized_to_the_teachers(saved, pixels):
    teacher = open_teacher(str(saved[1]))
    large = F.interpolate(as_images(pixels).float(), (64, 64), mode="nearest")
    back = F.interpolate(large, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(teacher(large), teacher(back), atol=1e-4)


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
        assert torch.allclose(said[:, :1000], net(x), atol=1e-4)
        assert torch.allclose(net.fc(said[:, 1000:]), net(x), atol=1e-4)


def test_timm(monkeypatch):
    timm = pytest.importorskip("timm")
    from mobilenets.model.convert import hubs

    monkeypatch.setattr(hubs, "timm_network", lambda name: timm.create_model(name))
    teacher = open_teacher("timm:mobilenetv3_small_050")
    assert teacher.labels == tuple(imagenet.classes().values())
    said = teacher(torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8))
    assert said.shape == (2, 1000 + teacher.width)
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
