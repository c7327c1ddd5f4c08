"""Published weights by name: what they are, and fetching them from servers of every kind."""

import contextlib
import hashlib
import io
import json
import socket
import tarfile
import time

import numpy as np
import pytest
import torch
from foreign_files import write_checkpoint
from safetensors.torch import save_file
from test_weights import KERAS, NORM, named_arrays, randomised, slim_names, worst, write_keras
from torchvision import models

from mobilenets import files, web
from mobilenets.arch import cost, zoo
from mobilenets.errors import UserError
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import random_bundle
from mobilenets.model.convert import catalogue, fetched

NAME = "keras:v1-0.25-128"


@pytest.fixture
def site(tmp_path, serve, monkeypatch):
    """`site(address, content)` puts a file on the mirror that every address leads to; `site.server` is its server."""
    root = tmp_path / "site"
    root.mkdir()
    server = serve(root)
    monkeypatch.setenv("MOBILENETS_MIRROR", server.url)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def put(address, content):
        path = root / address.partition("://")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path.relative_to(root))

    put.server = server
    return put


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A network with random weights, and Keras's file of it."""
    source = random_bundle(zoo.arch("v1", 0.25, 128))
    path = tmp_path_factory.mktemp("theirs") / "w.h5"
    write_keras(path, named_arrays(source, KERAS["v1"], "kernel", "bias", NORM))
    return source, path.read_bytes()


def put_keras(site, theirs):
    return site(catalogue.find(NAME).files[0], theirs[1])


# ---- what there is -------------------------------------------------------------------------------------------------


def test_every_name_is_a_network_of_ours():
    known = catalogue.weights()
    assert len(known) == 125
    for name, w in known.items():
        assert catalogue.find(name) is w
        assert w.said.arch == w.arch
        arch = zoo.arch(w.arch, w.alpha, w.resolution)
        assert w.size == 4 * cost.count(arch).params
        assert w.top1 is None or 35 < w.top1 < 90
    count = {name: sum(w.publisher == name for w in known.values()) for name in catalogue.LIBRARIES}
    assert count == {"keras": 44, "slim": 44, "torchvision": 5, "timm": 32}  # 16 of V1, 22 of V2, 6 of V3


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("keras:v1-1.0-224", "mobilenet/mobilenet_1_0_224_tf.h5"),
        ("keras:v1-0.75-160", "mobilenet/mobilenet_7_5_160_tf.h5"),
        ("keras:v2-0.35-96", "mobilenet_v2/mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96.h5"),
        ("keras:v3-small-0.75-224", "mobilenet_v3/weights_mobilenet_v3_small_224_0.75_float.h5"),
        ("keras:v3-large-minimalistic-1.0-224", "weights_mobilenet_v3_large_minimalistic_224_1.0_float.h5"),
        ("slim:v1-0.5-192", "mobilenet_v1_2018_08_02/mobilenet_v1_0.5_192.tgz"),
        ("slim:v2-1.4-224", "checkpoints/mobilenet_v2_1.4_224.tgz"),
        ("slim:v3-small-1.0-224", "checkpoints/v3-small_224_1.0_float.tgz"),
    ],
)  # fmt: skip
def test_the_publishers_addresses(name, file):
    assert catalogue.find(name).files[0].endswith(f"/{file}")


def test_names_may_be_shorter():
    assert catalogue.find("keras:v2-1-224").name == "keras:v2-1.0-224"
    assert catalogue.find("torchvision:mobilenet_v2").name == "torchvision:mobilenet_v2.IMAGENET1K_V2"
    assert catalogue.find("timm:mobilenetv3_large_100").top1 == 77.91


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torchvision:mobilenet_v3_larg", "did you mean 'mobilenet_v3_large.IMAGENET1K_V"),
        ("torchvision:resnet50", "unknown weights of torchvision 'resnet50': known: mobilenet_v2.IMAGENET1K_V1, mobi"),
        ("timm:mobilenetv2_100.ra_in1", "did you mean 'mobilenetv2_100.ra_in1k'?"),
        # the tensors of conv_large, but anti-aliased
        ("timm:mobilenetv4_conv_aa_large", "unknown weights of timm 'mobilenetv4_conv_aa_large': did you mean"),
        ("keras:v2-0.45-224", "unknown weights of keras 'v2-0.45-224': did you mean 'v2-0.5-224'?"),
        ("kers:v1-1.0-224", "kers:v1-1.0-224: no such file"),
    ],
)
def test_unknown_names(command, tmp_path, name, said):
    assert said in command("import", name, "--out", tmp_path / "b").line


def last(ran):
    """The line that a command ends with, after what it said of fetching."""
    assert (ran.code, ran.out) == (2, "")
    *before, line = ran.err.splitlines()
    assert not before or before[0].startswith("fetching ")
    return line


# ---- each library's ------------------------------------------------------------------------------------------------


def same(net, bundle, side=65):
    x = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        assert worst(net(x), simulate.float_model(bundle)(x)) < 1e-5


def test_keras(site, theirs, imported):
    put_keras(site, theirs)
    bundle = imported(NAME)
    card = bundle.card
    for tensor, values in theirs[0].tensors.items():
        np.testing.assert_array_equal(bundle.tensors[tensor], values)
    assert (card.arch.resolution, card.arch.padding, card.licence) == (128, "same", "Apache-2.0")
    assert (card.metrics[0].value, card.metrics[0].data) == (41.5, "ImageNet, as published with TF-slim's weights")
    assert (card.recipe["imported_from"], card.recipe["url"]) == (NAME, catalogue.find(NAME).files[0])
    assert "assumed" not in card.recipe
    assert card.labels[1] == "goldfish"


def archive(*members):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_slim(site, theirs, imported, tmp_path):
    write_checkpoint(tmp_path / "m.ckpt", named_arrays(theirs[0], slim_names("MobilenetV1"), "weights", "biases", NORM))
    index, data = ((tmp_path / f"m.ckpt.{kind}").read_bytes() for kind in ("index", "data-00000-of-00001"))
    name = "slim:v1-0.25-128"
    site(
        catalogue.find(name).files[0],
        archive(
            ("./x/model.ckpt.meta", b"?"), ("x/frozen.pb", b"?"), ("x/model.ckpt.index", index),
            ("x/model.ckpt.data-00000-of-00001", data), ("../../out", b"?"), ("pristine/x.ckpt.index", b"?"),
            ("x/ema/model-9.index", index), ("x/ema/model-9.data-00000-of-00001", data),
        ),
    )  # fmt: skip
    bundle = imported(name)
    np.testing.assert_array_equal(bundle.tensors["classifier.bias"], theirs[0].tensors["classifier.bias"])
    kept = {p.name for p in (files.cache_root() / "weights" / "slim").iterdir()}
    assert kept == {f"mobilenet_v1_0.25_128.{s}" for s in ("index", "index.sha256", "data-00000-of-00001")}


@pytest.mark.parametrize(
    "content",
    [b"no archive", archive(("a/b.pb", b"?")), archive(("../x.ckpt.index", b"?"))],
    ids=["no archive", "none", "outside"],  # the archives themselves have the time in them
)
def test_an_archive_without_a_checkpoint_is_one_line(site, command, tmp_path, content):
    site(catalogue.find("slim:v1-0.25-128").files[0], content)
    line = last(command("import", "slim:v1-0.25-128", "--out", tmp_path / "b"))
    assert "no checkpoint in it" in line or "a damaged archive" in line


def test_torchvision(site, imported, monkeypatch):
    net = randomised(models.mobilenet_v3_small())
    out = io.BytesIO()
    torch.save(net.state_dict(), out)
    file = f"mobilenet_v3_small-{hashlib.sha256(out.getvalue()).hexdigest()[:8]}.pth"
    rows = [(*row[:2], file, *row[3:]) if row[0] == "mobilenet_v3_small" else row for row in catalogue._TORCHVISION]
    monkeypatch.setattr(catalogue, "_TORCHVISION", rows)
    catalogue.weights.cache_clear()
    site(f"{catalogue.TORCHVISION}/{file}", out.getvalue())
    bundle = imported("torchvision:mobilenet_v3_small")
    catalogue.weights.cache_clear()
    card, p = bundle.card, bundle.card.preprocess
    assert (p.resolution, p.interpolation, p.crop) == (224, "bilinear", 0.875)
    assert (p.mean, p.std) == ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert (card.arch.bn_eps, card.arch.padding, card.licence) == (1e-3, "symmetric", "BSD-3-Clause")
    assert (card.metrics[0].value, card.metrics[0].data) == (67.668, "ImageNet, as published by torchvision")
    same(net, bundle)


def test_a_file_of_torchvisions_under_any_name_is_known():
    w = catalogue.find("torchvision:mobilenet_v2.IMAGENET1K_V1")
    assert catalogue.of_digest("b0353104" + "0" * 56) == w
    assert catalogue.of_digest("0" * 64) is None


def test_timm(site, imported):
    timm = pytest.importorskip("timm")
    net = randomised(timm.create_model("mobilenetv4_conv_small_050"))
    name = "timm:mobilenetv4_conv_small_050.e3000_r224_in1k"
    tensors, config = catalogue.find(name).files
    out = {k: v.clone() for k, v in net.state_dict().items()}
    site(tensors, b"")
    save_file(out, site.server.folder / tensors.partition("://")[2])
    site(config, json.dumps({
        "architecture": "mobilenetv4_conv_small_050", "num_classes": 1000,
        "pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.875, "interpolation": "bicubic",
                           "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "license": "apache-2.0"},
    }).encode())  # fmt: skip
    bundle = imported(name)
    p = bundle.card.preprocess
    assert (p.resolution, p.crop, p.interpolation, p.mean[0]) == (224, 0.875, "bicubic", 127.5)
    assert [m.value for m in bundle.card.metrics] == [64.76]
    same(net, bundle)


# ---- fetching ------------------------------------------------------------------------------------------------------


def asked(site):
    return [at for _, at in site.server.asked]


def test_fetched_once_and_checked_after(site, theirs, command, tmp_path):
    put_keras(site, theirs)
    path = fetched.fetch(catalogue.find(NAME))
    assert path.read_bytes() == theirs[1]
    assert fetched.fetch(catalogue.find(NAME)) == path
    assert asked(site) == [0]
    path.write_bytes(theirs[1][:-1] + b"?")
    line = last(command("import", NAME, "--out", tmp_path / "b"))
    assert line.endswith("changed since it was fetched; remove it, and it is fetched again")
    assert command("list", "v1", "--weights").code == 0  # only what is used is checked


def test_a_broken_line_goes_on_where_it_was(site, theirs):
    file = put_keras(site, theirs)
    site.server.cut = {file: 500_000}
    site.server.fail = {file: 1}
    assert fetched.fetch(catalogue.find(NAME)).read_bytes() == theirs[1]
    assert asked(site) == [0, 0, 500_000]


def test_a_call_that_was_stopped_goes_on(site, theirs, monkeypatch):
    file = put_keras(site, theirs)
    site.server.always = 500_000
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    with pytest.raises(UserError, match="can't be fetched"):
        fetched.fetch(catalogue.find(NAME))
    site.server.always = None
    assert fetched.fetch(catalogue.find(NAME)).read_bytes() == theirs[1]
    assert asked(site)[-1] == 500_000
    assert sorted(p.suffix for p in (files.cache_root() / "weights" / "keras").iterdir()) == [".h5", ".sha256"]
    assert file


def test_another_file_on_resume_is_fetched_whole(site, theirs, monkeypatch):
    address = catalogue.find(NAME).files[0]
    site(address, b"x" * len(theirs[1]))
    site.server.always = 500_000
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    with pytest.raises(UserError, match="can't be fetched"):
        fetched.fetch(catalogue.find(NAME))
    site(address, theirs[1])
    site.server.always = None
    assert fetched.fetch(catalogue.find(NAME)).read_bytes() == theirs[1]


def test_a_server_that_stalls_is_asked_again(site, theirs, monkeypatch):
    file = put_keras(site, theirs)
    monkeypatch.setattr(web, "TIMEOUT", 0.2)
    site.server.stall = {file: 1.0}
    started = time.monotonic()
    with pytest.raises(UserError, match="can't be fetched"):
        fetched.fetch(catalogue.find(NAME))
    assert time.monotonic() - started < 10
    assert len(asked(site)) == web.ATTEMPTS


@pytest.mark.parametrize("length", ["100", "99999999999", "-5", "many"])
def test_a_server_that_lies_about_lengths(site, theirs, length):
    """Nothing is kept but the whole file."""
    put_keras(site, theirs)
    site.server.headers = {"Content-Length": length}
    with contextlib.suppress(UserError):
        fetched.fetch(catalogue.find(NAME))
    kept = [p.read_bytes() for p in (files.cache_root() / "weights" / "keras").iterdir() if p.suffix == ".h5"]
    assert kept in ([], [theirs[1]])


@pytest.mark.parametrize(
    "content", [b"<html>sign in here</html>", b"x" * 3_000_000, b"x" * 20_000_000], ids=["html", "3 MB", "20 MB"]
)
def test_another_file_than_the_published_one(site, command, tmp_path, content):
    site(catalogue.find(NAME).files[0], content)
    line = last(command("import", NAME, "--out", tmp_path / "b"))
    assert any(s in line for s in ("not the published file", "not a weight file", "more than the", "HDF5"))
    assert not (tmp_path / "b").exists()


def test_weights_of_another_network_are_noticed(site, theirs, command, tmp_path):
    site(catalogue.find("keras:v2-0.35-96").files[0], theirs[1] + b"\0" * 5_000_000)
    line = last(command("import", "keras:v2-0.35-96", "--out", tmp_path / "b"))
    assert line.endswith("this is V1 at alpha 0.25 in Keras's names")


def test_offline(command, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(web, "PAUSE", 0.001)
    monkeypatch.setenv("MOBILENETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MOBILENETS_MIRROR", raising=False)
    line = last(command("import", NAME, "--out", tmp_path / "b"))
    assert line.startswith(f"mobilenets: {NAME} can't be fetched (https://storage.googleapis.com/tensorflow/")
    assert f"`mobilenets fetch {NAME} --to weights/` there, `--weights weights/` here" in line
    assert not (tmp_path / "b").exists()


def test_mirrors(monkeypatch):
    address = "https://huggingface.co/timm/x/resolve/main/model.safetensors"
    monkeypatch.setenv("HF_ENDPOINT", "http://hub/")
    monkeypatch.setenv("MOBILENETS_MIRROR", "http://mirror/a")
    assert catalogue.mirrored(address) == "http://hub/timm/x/resolve/main/model.safetensors"
    assert catalogue.mirrored("https://host/x.h5") == "http://mirror/a/host/x.h5"


def test_other_libraries_copies_are_used(site, theirs, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    copy = tmp_path / "keras" / "models" / "mobilenet_2_5_128_tf.h5"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(theirs[1])
    assert fetched.fetch(catalogue.find(NAME)) == copy
    assert asked(site) == []


# ---- the verbs -----------------------------------------------------------------------------------------------------


def test_a_folder_for_a_machine_without_a_network(site, theirs, command, tmp_path, monkeypatch):
    put_keras(site, theirs)
    got = command("fetch", "keras:v1-0.25-12*", "--to", tmp_path / "w", "--json").json
    assert got == [{"name": NAME, "path": str(tmp_path / "w/keras/mobilenet_2_5_128_tf.h5"), "bytes": len(theirs[1])}]
    monkeypatch.delenv("MOBILENETS_MIRROR")
    monkeypatch.setattr(web, "append", None)
    assert command("import", NAME, "--weights", tmp_path / "w", "--out", tmp_path / "a").code == 0
    monkeypatch.setenv("MOBILENETS_WEIGHTS", str(tmp_path / "w"))
    assert command("import", NAME, "--out", tmp_path / "b").code == 0
    (tmp_path / "w" / "keras" / "mobilenet_2_5_128_tf.h5").rename(tmp_path / "w" / "mobilenet_2_5_128_tf.h5")
    assert command("import", NAME, "--out", tmp_path / "c").code == 0  # as a browser downloads it
    listed = command("list", "v1", "--weights", "--json").json
    assert [e["name"] for e in listed if e["path"]] == [NAME]


@pytest.mark.parametrize(("flag", "count"), [("--all-v1", 16), ("--all-v2", 22), ("--all-v3", 6), ("--all-v4", 15)])
def test_all_of_a_version(command, monkeypatch, tmp_path, flag, count):
    asked = []
    monkeypatch.setattr(fetched, "fetch", lambda w, _folder: asked.append(w.name) or tmp_path)
    assert command("fetch", flag).code == 0
    assert len(set(asked)) == count


def test_nothing_to_fetch(command):
    assert "name weights to fetch" in command("fetch").line
    assert "did you mean 'v1-0.25-192'?" in command("fetch", "keras:v1-0.25-129").line


def test_what_is_listed(command):
    rows = command("list", "v4", "--weights", "--sort", "top1", "--max-macs-m", 300, "--json").json
    assert [r["name"] for r in rows][:1] == ["timm:mobilenetv4_conv_small.e2400_r224_in1k"]
    assert {r["licence"] for r in rows} == {"Apache-2.0"}
    assert len(command("list", "--weights", "--json").json) == 125


def test_a_network_by_the_name_of_its_weights(site, theirs):
    import mobilenets

    put_keras(site, theirs)
    net = mobilenets.create("v1", alpha=0.25, pretrained=NAME, num_classes=3)
    assert net.card.arch.resolution == 128
