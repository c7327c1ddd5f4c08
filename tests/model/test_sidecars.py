"""What is known of weights besides them: the config.json beside them, what the command line says, what is assumed."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_weights import randomised, worst

from mobilenets.arch import zoo
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert.sidecars import timm_arch
from mobilenets.model.reference import float_model

timm = pytest.importorskip("timm")
TF = "tf_mobilenetv3_small_minimal_100"


@pytest.fixture(scope="module")
def nets():
    """Networks of timm with random weights and 3 classes, by name."""
    return {n: randomised(timm.create_model(n, num_classes=3)) for n in (TF, "mobilenetv1_100")}


def pushed(folder, net, **changes):
    """The folder that the Hub has of a network: its weights, and the config that timm writes."""
    folder.mkdir(exist_ok=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    cfg = {k: net.pretrained_cfg[k] for k in ("input_size", "crop_pct", "interpolation", "mean", "std", "license")}
    config = {"architecture": net.pretrained_cfg["architecture"], "num_classes": 3, "pretrained_cfg": cfg, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def said(run):
    """The note of an import, on one line."""
    return " ".join(run.err.split())


@pytest.mark.parametrize(("name", "interpolation"), [(TF, "bilinear"), ("mobilenetv1_100", "bicubic")])
def test_the_config_is_read(command, nets, tmp_path, name, interpolation):
    folder = pushed(tmp_path / "m", nets[name], label_names=["cat", "dog", "owl, night bird"])
    for source in (folder, folder / "model.safetensors"):
        ran = command("import", source, "--out", tmp_path / "b")
        assert (ran.code, ran.err) == (0, "")  # nothing had to be assumed
        card = Bundle.load(tmp_path / "b").card
        p, tf = card.preprocess, name == TF
        assert (p.resolution, p.crop, p.mean, p.std, p.interpolation) == (
            224,
            0.875,
            *[(127.5,) * 3] * 2,
            interpolation,
        )
        assert (card.arch.padding, card.arch.bn_eps) == (("same", 1e-3) if tf else ("symmetric", 1e-5))
        assert card.labels == ("cat", "dog", "owl")
        assert card.config["names"][2] == "owl, night bird"
        assert (card.licence, card.recipe["network"]) == (nets[name].pretrained_cfg["license"], name)
        assert "assumed" not in card.recipe
        x = torch.randn(2, 3, 97, 97)
        with torch.inference_mode():
            assert worst(nets[name](x), float_model(Bundle.load(tmp_path / "b"))(x)) < 1e-5


def test_a_config_on_one_level(command, nets, tmp_path):
    net = nets[TF]
    folder = pushed(tmp_path / "m", net)
    flat = {
        "architecture": TF,
        "mean": [0.4, 0.4, 0.4],
        "std": [0.5],
        "input_size": [3, 128, 128],
        "crop_mode": "squash",
    }
    (folder / "config.json").write_text(json.dumps({**flat, "id2label": {"0": "a", "1": "b", "2": "c"}}))
    assert command("import", folder, "--out", tmp_path / "b").code == 0
    card = Bundle.load(tmp_path / "b").card
    assert (card.preprocess.mean, card.preprocess.std[0]) == ((102.0,) * 3, 127.5)
    assert (card.preprocess.resolution, card.preprocess.framing, card.labels) == (128, "stretch", ("a", "b", "c"))
    assert card.recipe["assumed"] == ["crop", "interpolation"]


@pytest.mark.sampled(7)
@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"architecture": "mobilenetv2_100"}, "config.json beside it is of mobilenetv2_100"),
        ({"architecture": "mobilenetv3_small_075"}, "config.json beside it is of mobilenetv3_small_075"),
        ({"architecture": "resnet50"}, "it is of resnet50, which isn't one of these networks"),
        ({"architecture": "mobilenetv4_conv_aa_large"}, "it is of mobilenetv4_conv_aa_large, which isn't one"),
        ({"architecture": ["x"]}, 'architecture is ["x"], not a text'),
        ({"num_classes": 5}, "config.json beside it is of 5 classes, the weights of 3"),
        ({"num_classes": "3"}, 'num_classes is "3", not a number'),
        ({"num_classes": True}, "num_classes is true, not a number"),
        ({"label_names": ["a"]}, "there are 1 labels for 3 classes"),
        ({"label_names": [1, 2, 3]}, "its label names aren't a list of names"),
        ({"pretrained_cfg": []}, "pretrained_cfg is [], not a group of fields"),
        ({"mean": [0.5, 0.5]}, "mean is [0.5, 0.5], not a number for each of 3 channels"),
        ({"mean": [float("nan")] * 3}, "mean is NaN, not a number"),
        ({"std": [0, 1, 1]}, "std must be above 0"),
        ({"crop_pct": -1}, "crop must be above 0"),
        ({"crop_mode": "border"}, "its images are framed by border"),
        ({"input_size": [3, 224, 192]}, "input_size is [3, 224, 192]"),
        ({"input_size": [3, 10**7, 10**7]}, "input_size is 10000000, not a number"),
        ({"input_size": [3, 9, 9]}, "resolution"),
        ({"global_pool": "max"}, "its network pools by max"),
        ({"model_args": {"act_layer": "relu"}}, "its network was built with another act_layer"),
    ],
)
def test_a_config_that_is_wrong_is_one_line(command, nets, tmp_path, change, what):
    folder = pushed(tmp_path / "m", nets[TF], **change)
    assert what in command("import", folder, "--out", tmp_path / "b").line
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("text", ["{", '{"architecture": ' + "[" * 100_000, "\xff", '{"mean": ' + "1" * 5000 + "}"])
def test_a_damaged_config_is_one_line(command, nets, tmp_path, text):
    folder = pushed(tmp_path / "m", nets[TF])
    (folder / "config.json").write_bytes(text.replace('{"mean"', '{"architecture": null, "mean"').encode("latin-1"))
    line = command("import", folder, "--out", tmp_path / "b").line
    assert "config.json: " in line
    assert line.endswith("mend it, or move it away to import the weights alone")


def test_a_huge_config_is_one_line(command, nets, tmp_path):
    folder = pushed(tmp_path / "m", nets[TF])
    with (folder / "config.json").open("ab") as f:
        f.truncate(1 << 34)
    assert "far too long" in command("import", folder, "--out", tmp_path / "b").line


def test_what_is_assumed_is_said(command, nets, tmp_path):
    folder = pushed(tmp_path / "m", nets[TF])
    (folder / "config.json").write_text('{"lr": 0.1, "model": "mine"}')  # somebody's of another kind
    note = said(command("import", folder, "--out", tmp_path / "b"))
    assert note.startswith("model.safetensors doesn't say all that its network does; assumed, as is usual in timm: ")
    assert "padding symmetric; bn_eps 1e-05; resolution 224; mean 123.675, 116.28, 103.53; std 58.395" in note
    assert "timm's tf_ networks have --padding same --bn-eps 0.001 --mean 0.5 --std 0.5" in note
    told = ("--padding", "same", "--bn-eps", 1e-3, "--mean", 0.5, "--std", "0.5,0.5,0.5", "--crop", 0.9)
    ran = command("import", folder, "--out", tmp_path / "b", *told, "--interpolation", "bilinear", "--resolution", 128)
    assert (ran.code, ran.err) == (0, "")
    card = Bundle.load(tmp_path / "b").card
    p = card.preprocess
    assert (p.resolution, p.crop, p.mean, p.std, p.interpolation) == (128, 0.9, *[(127.5,) * 3] * 2, "bilinear")
    x = torch.randn(2, 3, 97, 97)
    with torch.inference_mode():
        assert worst(nets[TF](x), float_model(Bundle.load(tmp_path / "b"))(x)) < 1e-5


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("mean", "std", "want"),
    [
        ("0.485,0.456,0.406", "0.229,0.224,0.225", (123.675, 58.395)),
        ("123.675,116.28,103.53", "58.395,57.12,57.375", (123.675, 58.395)),
        ("0", "1", (0.0, 255.0)),
        ("0", "255", (0.0, 255.0)),
    ],
)
def test_means_of_either_unit(command, nets, tmp_path, mean, std, want):
    save_file(nets[TF].state_dict(), tmp_path / "w.safetensors")
    assert (
        command("import", tmp_path / "w.safetensors", "--out", tmp_path / "b", "--mean", mean, "--std", std).code == 0
    )
    p = Bundle.load(tmp_path / "b").card.preprocess
    np.testing.assert_allclose((p.mean[0], p.std[0]), want)


@pytest.mark.parametrize(
    ("told", "what"),
    [
        (("--mean", "1,2"), "--mean takes one number or three with commas between, not 1.0,2.0"),
        (("--std", "nan"), "--std takes one number or three"),
        (("--std", "0"), "std must be above 0, not 0, 0, 0"),
        (("--mean", "grey"), "mean takes numbers with commas between, not 'grey'"),
        (("--crop", "1.5"), "crop must be above 0 and at most 1, not 1.5"),
        (("--bn-eps", "-1"), "epsilon must be above 0 and below 1, not -1"),
        (("--interpolation", "cubic"), "bicubic"),
    ],
)
def test_options_that_are_wrong_are_one_line(command, tmp_path, told, what):
    assert what in command("import", tmp_path / "none.pth", "--out", tmp_path / "b", *told).line


def test_names_of_timm():
    assert timm_arch("tf_mobilenetv3_large_minimal_100.in1k") == ("v3-large-minimalistic", 1.0, True)
    assert timm_arch("mobilenetv4_hybrid_medium_075") == ("v4-hybrid-m", 0.75, False)
    assert timm_arch("mobilenetv1_125") == ("v1", 1.25, False)
    for name in (
        "mobilenetv1_100h",
        "mobilenetv3_rw",
        "mobilenetv2_110d",
        "mobilenetv4_small",
        "mobilenetv5_300m",
        "v2",
    ):
        assert timm_arch(name) is None
    for name in timm.list_pretrained("*mobilenetv*"):
        if found := timm_arch(name):
            zoo.network(found[0])
