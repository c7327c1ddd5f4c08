"""Others' detectors as bundles: recognised by names or by the order of layers, their numbers kept."""

import re

import numpy as np
import pytest

pytest.importorskip("tflite")
import torch
from foreign_detectors import (
    OPTIONS,
    anchors,
    api_names,
    api_strides,
    constant,
    frozen,
    lite,
    node,
    post_processing,
    small,
    write_detector,
)
from foreign_files import line, write_lite

from mobilenets.arch.boxes import Suppression
from mobilenets.errors import UserError
from mobilenets.model import coco
from mobilenets.model.convert.foreign import Foreign, Stated
from mobilenets.model.convert.formats import frozen_graph
from mobilenets.model.convert.weights import foreign_bundle, open_foreign
from mobilenets.model.encodings import fold


@pytest.fixture(scope="module")
def ssd():
    return small()


@pytest.fixture(scope="module")
def ssdlite():
    return small("ssdlite")


def imported(path, **told):
    return foreign_bundle(open_foreign(str(path)), Stated(**told))


def folded(bundle):
    return fold(bundle.card, bundle.tensors)


def same_layers(found, expected, steps=0.0):
    """That folded layers agree, to half a step of 240 across a layer's weights if they were rounded so."""
    assert found.keys() == expected.keys()
    for name, (weight, bias) in expected.items():
        for a, b in zip(found[name], (weight, bias), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=steps * np.abs(b).max() / 120 + 1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["float32", "uint8"])
@pytest.mark.parametrize("family", ["ssd", "ssdlite"])
def test_tflite(tmp_path, family, kind, request):
    ours = request.getfixturevalue(family)
    made = imported(write_detector(tmp_path / "m.tflite", ours, kind), labels=("cat", "dog", "tree"))
    card = made.card
    assert (card.task, card.arch.title, card.labels) == ("detect", "v1 0.5-64", ("cat", "dog", "tree"))
    assert card.config["family"] == family
    assert card.config["anchors"] == ours.card.config["anchors"]  # the family's own, though rounded in the file
    assert card.config["coder"] == {"order": "yxhw", "scales": [10, 10, 5, 5]}
    chosen = {"score": 1e-8, "iou": 0.6, "per_class": 7, "most": 7, "together": True}
    assert card.config["suppression"] == chosen
    assert card.preprocess.framing == "stretch"
    assert card.outputs == ours.card.outputs
    same_layers(folded(made), folded(ours), steps=0.51 if kind == "uint8" else 0)


def test_tflite_says_how_its_boxes_are_made(tmp_path, ssd):
    """Anchors of its own, boxes of each class by themselves."""
    options = {**OPTIONS, "use_regular_nms": True, "detections_per_class": 20, "nms_iou_threshold": 0.5, "h_scale": 4.0}
    given = anchors(ssd)
    given[:, 2:] *= 0.9
    made = imported(write_detector(tmp_path / "m.tflite", ssd, options=options, given=given))
    config = made.card.config
    assert config["suppression"] == {"score": 1e-8, "iou": 0.5, "per_class": 20, "most": 7}
    assert config["coder"]["scales"] == [10, 10, 4, 5]
    assert config["anchors"]["convention"] == "fitted"
    theirs = np.array([s for each in config["anchors"]["boxes"] for s in each])
    usual = np.array([s for each in ssd.card.config["anchors"]["boxes"] for s in each])
    np.testing.assert_allclose(theirs, usual * 0.9, rtol=1e-6)
    assert made.card.labels == ("class 0", "class 1", "class 2")


def test_tflite_without_what_it_needs(tmp_path, ssd):
    path = tmp_path / "m.tflite"
    moved = anchors(ssd)
    moved[5, 0] += 0.01
    write_detector(path, ssd, given=moved)
    assert line(imported, path) == "anchors that aren't the same at the centre of each cell of its maps"
    write_detector(path, ssd, given=anchors(ssd)[:-1])
    assert " anchors, and maps of " in line(imported, path)
    for name, value in (("nms_iou_threshold", 7.0), ("h_scale", 0.0), ("max_detections", -1)):
        write_detector(path, ssd, options={**OPTIONS, name: value})
        assert line(imported, path).startswith("damaged TFLite file (TFLite_Detection_PostProcess's ")
    write_detector(path, ssd, options={k: v for k, v in OPTIONS.items() if k != "num_classes"})
    assert line(imported, path).startswith("damaged TFLite file")
    graph = lite(ssd)
    graph["ops"][-1] = (graph["ops"][-1][0], b"", *graph["ops"][-1][2:])
    assert line(imported, write_lite(path, graph)).startswith("damaged TFLite file")
    graph = lite(ssd)
    name, how, inputs, outputs = graph["ops"][1]
    graph["ops"][1] = (name, (how[0], {**how[1], "StrideH": 2, "StrideW": 2}), inputs, outputs)
    assert line(imported, write_lite(path, graph)).startswith(
        "a detector, but none that is known: the nearest, ssd on V1"
    )
    write_detector(path, ssd)
    assert (
        line(lambda p: imported(p, labels=("a", "b")), path)
        == "there are 2 labels for 3 classes; give the right --labels"
    )
    assert "import it whole" in line(lambda p: foreign_bundle(open_foreign(str(p)), None, True), path)


@pytest.mark.parametrize("family", ["ssd", "ssdlite"])
def test_frozen_graph(tmp_path, family, request):
    ours = request.getfixturevalue(family)
    names, strides = api_names(ours), api_strides(ours)
    path = tmp_path / "m.pb"
    usual = [[(w * h, w / h) for w, h in each] for each in ours.card.config["anchors"]["boxes"]]
    shapes = [[(area**0.5, ratio) for area, ratio in each] for each in usual]
    path.write_bytes(frozen(names, strides, more=post_processing(shapes)))
    made = imported(path)
    config = made.card.config
    assert (made.card.arch.title, made.card.arch.bn_eps, made.card.preprocess.mean) == (
        "v1 0.5-64",
        0.001,
        (127.5,) * 3,
    )
    assert config["anchors"] == ours.card.config["anchors"]
    assert config["suppression"] == {"score": 1e-8, "iou": 0.5, "per_class": 50, "most": 70}
    for name, tensor in ours.tensors.items():
        np.testing.assert_array_equal(made.tensors[name], tensor, err_msg=name)
    larger = [[(1.1 * scale, ratio) for scale, ratio in each] for each in shapes]
    path.write_bytes(frozen(names, strides, more=post_processing(larger)))
    assert imported(path).card.config["anchors"]["convention"] == "fitted"
    path.write_bytes(frozen(names, {**strides, "BoxPredictor_0/BoxEncodingPredictor/weights": 2}))
    assert " is of a convolution of stride 2, in V1 at alpha 0.5 in TensorFlow's " in line(imported, path)
    path.write_bytes(frozen(names, strides))
    body = foreign_bundle(open_foreign(str(path)), None, body_only=True)
    assert (body.card.task, body.card.arch.title) == ("features", "v1 0.5-224")


def test_a_checkpoint_of_the_api_is_its_frozen_graph(ssdlite):
    found = foreign_bundle(Foreign("model.ckpt", api_names(ssdlite)), Stated(resolution=64))
    same_layers(folded(found), folded(ssdlite))
    assert found.card.config == {**ssdlite.card.config, "labels": ["class 0", "class 1", "class 2"]}
    lacking = {k: v for k, v in api_names(ssdlite).items() if "BoxPredictor_2/ClassPredictor/w" not in k}
    with pytest.raises(UserError, match=r"the nearest is ssdlite on V1 at alpha 0.5 \(missing: BoxPredictor_2/ClassPr"):
        foreign_bundle(Foreign("model.ckpt", lacking), Stated(resolution=64))


def test_damaged_frozen_graphs(tmp_path, ssd):
    path = tmp_path / "m.pb"
    whole = frozen(api_names(ssd), {})
    path.write_bytes(whole[: len(whole) // 2])
    assert line(frozen_graph.read, path) == "damaged frozen TensorFlow graph (a field reaches past its message's end)"
    path.write_bytes(b"\x08\x01" + whole)
    assert line(frozen_graph.read, path).startswith("a SavedModel, which keeps its weights beside it")
    path.write_bytes(node("x", "Placeholder"))
    assert line(frozen_graph.read, path).endswith("not a frozen one")
    path.write_bytes(node("x", "Placeholder") * 2)
    assert line(frozen_graph.read, path) == "damaged frozen TensorFlow graph (two nodes are called x)"
    huge = constant("x", np.zeros((1, 1, 1), np.float32)).replace(
        b"\x12\x02\x08\x01", b"\x12\x05\x08\xff\xff\xff\x7f"[:4], 1
    )
    path.write_bytes(huge)
    assert line(frozen_graph.read, path).startswith("damaged frozen TensorFlow graph")
    path.write_bytes(frozen(api_names(ssd), {}) + node("n", "FusedBatchNorm", epsilon=b"\x25\x00\x00\x80\x3e"))
    assert "several epsilons" in line(frozen_graph.read, path)


def test_coco():
    assert len(coco.BY_ID) == 90
    assert len(coco.IDS) == 80
    assert [coco.IDS[n] for n in ("person", "stop sign", "toothbrush")] == [1, 13, 90]


def test_columns_of_ids_that_nothing_has_are_left_out():
    """90 classes are COCO's: the 10 that no annotation has give no logits."""
    ours = small("ssdlite", labels=tuple(map(str, range(90))))
    made = foreign_bundle(Foreign("model.ckpt", api_names(ours)), Stated(resolution=64))
    assert made.card.labels == tuple(coco.IDS)
    columns = [0, *coco.IDS.values()]
    name = "detect.class.1.pointwise.conv.weight"
    before = ours.tensors[name].reshape(6, 91, -1)[:, columns]
    np.testing.assert_array_equal(made.tensors[name].reshape(6, 81, -1), before)
    assert made.card.outputs["scores"] == (ours.card.outputs["scores"][0], 81)


def test_torchvision(tmp_path):
    """The whole network's raw answers, in its own words."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    torch.save({f"module.{k}": v for k, v in theirs.state_dict().items()}, tmp_path / "m.pth")
    made = imported(tmp_path / "m.pth")
    assert (made.card.arch.title, made.card.config["family"]) == ("v3-large 1-320", "ssdlite-torchvision")
    x = torch.randn(1, 3, 320, 320)
    with torch.inference_mode():
        said = theirs.head(list(theirs.backbone(x).values()))
        answers = made.module().answers(x)
    torch.testing.assert_close(answers["offsets"], said["bbox_regression"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answers["scores"], said["cls_logits"].softmax(-1), atol=1e-5, rtol=1e-5)


def faster_rcnn(classes=6):
    """Torchvision's at 320 pixels, its random weights such that it finds a hundred boxes of different scores."""
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(0)
    net = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=classes).eval()
    for layer, std in (
        (net.rpn.head.cls_logits, 0.3),
        (net.rpn.head.bbox_pred, 0.05),
        (net.roi_heads.box_predictor.cls_score, 0.6),
    ):
        torch.nn.init.normal_(layer.weight, std=std)
    return net


@pytest.mark.slow
def test_torchvisions_two_stages(tmp_path):
    theirs = faster_rcnn()
    path = tmp_path / "fasterrcnn_mobilenet_v3_large_320_fpn.pth"
    torch.save(theirs.state_dict(), path)
    made = imported(path, labels=tuple("abcde"))
    assert (made.card.arch.title, made.card.arch.bn_eps) == ("v3-large 1-320", 1e-5)
    assert (made.card.labels, made.card.config["family"]) == (tuple("abcde"), "faster-rcnn-fpn")
    image = np.random.default_rng(0).integers(0, 256, (320, 320, 3), dtype=np.uint8)
    with torch.inference_mode():
        (said,) = theirs([torch.from_numpy(image).permute(2, 0, 1) / 255])
        answers = made.module().answers(torch.from_numpy(made.card.preprocess.normalize(image[None])))
    assert int(answers["count"][0]) == len(said["boxes"]) == 100
    off = (answers["boxes"][0][None] - said["boxes"][:, None] / 320).abs().amax(-1)  # equal scores may change places
    same, partner = off.amin(1) < 1e-4, off.argmin(1)
    assert same.float().mean() >= 0.98
    assert torch.equal(answers["classes"][0][partner][same].long() + 1, said["labels"][same])
    torch.testing.assert_close(answers["scores"][0][partner][same], said["scores"][same], atol=1e-4, rtol=0)


def test_older_names_and_the_larger_one():
    """As in the files that torchvision publishes; the one of 800 pixels by its name."""
    with torch.device("meta"):
        names = faster_rcnn().state_dict()
    older = {re.sub(r"(_blocks\.\d|rpn\.head\.conv)(\.0)?\.0\.", r"\1.", k): v for k, v in names.items()}
    assert "rpn.head.conv.weight" in older
    assert "backbone.fpn.inner_blocks.1.bias" in older
    arrays = {k: np.zeros(tuple(v.shape), np.float32) for k, v in older.items()}
    made = foreign_bundle(Foreign("fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth", arrays))
    assert made.card.arch.resolution == made.card.preprocess.resolution == 800
    assert made.card.graph.op("proposals").suppression == Suppression(0.05, 0.7, 1000, 1000, False)
    arrays["roi_heads.box_head.fc7.bias"] = np.zeros(7, np.float32)
    with pytest.raises(UserError, match=r"m\.pth: the weights fit no such detector; .*fc7\.bias 7 instead of 1024"):
        foreign_bundle(Foreign("m.pth", arrays))


def test_two_stages_leave_their_body():
    foreign = Foreign("m.pth", {"rpn.head.conv.0.0.weight": np.zeros((4, 4, 3, 3), np.float32)})
    with pytest.raises(UserError, match=r"m\.pth: a detector of two stages, of which the body alone"):
        foreign_bundle(foreign)
