"""Weights of torchvision and timm by name, their downloads faked."""

import socket
import time

import pytest
import torch
from test_weights import TIMM, randomised, worst
from torchvision import models

from mobilenets.model import reference as simulate

timm = pytest.importorskip("timm")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No name resolves, and nothing is in a cache."""

    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("torchvision:mobilenet_v2", "https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth"),
        ("timm:mobilenetv2_100", "https://huggingface.co/timm/mobilenetv2_100.ra_in1k/resolve/main/model.safetensors"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_offline(command, tmp_path, source, url):
    started = time.monotonic()
    ran = command("import", source, "--out", tmp_path / "b")
    assert time.monotonic() - started < 10
    assert (ran.code, ran.out) == (2, "")
    line = ran.err.splitlines()[-1]  # torch says before it what it downloads
    assert line.startswith(f"mobilenets: {source} can't be downloaded (")
    assert line.endswith(f"if this machine is offline, fetch {url} elsewhere and import the file")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:mobilenet_v3_larg", "did you mean 'mobilenet_v3_large'?"),
        (
            "torchvision:resnet50",
            "unknown torchvision network 'resnet50': known: mobilenet_v2, mobilenet_v3_large, mobi",
        ),
        ("torchvision:mobilenet_v2.IMAGENET1K_V9", "unknown weights of mobilenet_v2 'IMAGENET1K_V9': did you mean"),
        ("timm:mobilenetv4_conv_smal", "did you mean 'mobilenetv4_conv_small'?"),
        ("timm:mobilenetv2_100.ra_in1", "did you mean 'mobilenetv2_100.ra_in1k'?"),
        # the tensors of conv_large, but anti-aliased
        ("timm:mobilenetv4_conv_aa_large", "unknown timm network 'mobilenetv4_conv_aa_large': did you mean"),
        ("timm:mobilenetv4_conv_blur_medium.e500_r224_in1k", "unknown timm network"),
        ("timm:resnet50", "unknown timm network 'resnet50'"),
        ("keras:mobilenet", "keras:mobilenet: no such file"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_unknown_names(command, tmp_path, name, said):
    assert said in command("import", name, "--out", tmp_path / "b").line


@pytest.mark.parametrize(
    ("name", "weight_name", "top1", "crop"),
    [
        ("mobilenet_v2", "IMAGENET1K_V2", 72.154, 224 / 232),
        ("mobilenet_v2.IMAGENET1K_V1", "IMAGENET1K_V1", 71.878, 0.875),
        ("mobilenet_v3_small", "IMAGENET1K_V1", 67.668, 0.875),
    ],
)
def test_torchvision_by_name(monkeypatch, imported, name, weight_name, top1, crop):
    net = randomised(models.get_model(name.split(".")[0]))
    asked = []
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url", lambda url, **_: asked.append(url) or net.state_dict()
    )
    bundle = imported(f"torchvision:{name}")
    card = bundle.card
    assert card.recipe["imported_from"] == f"torchvision:{name.split('.')[0]}.{weight_name}"
    assert asked == [card.recipe["url"]]
    assert card.licence == "BSD-3-Clause"
    (metric,) = card.metrics
    assert (metric.value, metric.data) == (top1, "ImageNet, as published by torchvision")
    assert card.labels[1] == "goldfish"
    p = card.preprocess
    assert (p.resolution, p.interpolation, p.crop) == (224, "bilinear", pytest.approx(crop))
    assert p.mean == (123.675, 116.28, 103.53)
    assert p.std == (58.395, 57.12, 57.375)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert worst(net(x), simulate.float_model(bundle)(x)) < 1e-5


@pytest.mark.parametrize(
    ("name", "mean", "crop", "interpolation", "padding", "top1"),
    [
        ("mobilenetv2_100", 123.675, 0.875, "bicubic", "symmetric", 72.91),
        ("mobilenetv2_100.ra_in1k", 123.675, 0.875, "bicubic", "symmetric", 72.91),
        ("tf_mobilenetv3_small_minimal_100", 127.5, 0.875, "bilinear", "same", None),
        ("mobilenetv4_conv_small_050.e3000_r224_in1k", 127.5, 0.875, "bicubic", "symmetric", None),
    ],
)
def test_timm_by_name(monkeypatch, imported, name, mean, crop, interpolation, padding, top1):
    net = randomised(timm.create_model(name))
    monkeypatch.setattr(timm, "create_model", lambda _name, pretrained: net if pretrained else None)
    monkeypatch.setattr("mobilenets.model.convert.hubs._reach", lambda _: None)
    bundle = imported(f"timm:{name}")
    card, p = bundle.card, bundle.card.preprocess
    assert (p.resolution, p.crop, p.interpolation, p.mean[0]) == (224, crop, interpolation, mean)
    assert (card.arch.padding, card.arch.bn_eps) == (padding, 1e-3 if padding == "same" else 1e-5)
    assert card.licence.lower() == "apache-2.0"
    assert card.recipe["imported_from"].startswith(f"timm:{name}")
    assert card.recipe["url"].startswith("https://huggingface.co/timm/")
    assert [m.value for m in card.metrics] == ([top1] if top1 else [])
    assert all("as published by timm" in m.data for m in card.metrics)
    x = torch.randn(2, 3, 65, 65)
    with torch.inference_mode():
        assert worst(net(x), simulate.float_model(bundle)(x)) < 1e-5


def test_timm_has_every_network_that_is_ours():
    from mobilenets.model.convert import hubs

    for case in TIMM:
        assert hubs.TIMM.fullmatch(case.values[0])


def test_without_timm(monkeypatch, command, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    line = command("import", "timm:mobilenetv2_100", "--out", tmp_path / "b").line
    assert line == "mobilenets: timm isn't installed; it is needed for its weights: pip install timm"
