"""What detectors cost: the exact counts of the papers' tables, and torchvision's two-stage networks."""

import json
import subprocess
import sys

import pytest
import torch
from torchvision.models.detection import MaskRCNN, fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

import mobilenets
from mobilenets.arch import cost
from mobilenets.arch.detectors import (
    FAMILIES,
    PYRAMIDS,
    counting,
    detector_arch,
    ssd_head,
    two_stage_arch,
    two_stage_head,
)
from mobilenets.errors import UserError
from mobilenets.model import module

# Parameters (two of BatchNorm a channel) and macs, computed by hand-written formulas apart from this package; the sum
# of SSDLite300 V2's convolutions was checked against a frozen graph of the API's.
EXACT = [
    ("ssd", "v1", 1.0, 300, 91, 6_819_839, 1_237_129_408),
    ("ssd", "v1", 1.0, 300, 81, 6_673_589, 1_224_465_088),
    ("ssd", "v1", 0.75, 300, 91, 4_110_735, 728_036_496),
    ("ssd", "v1", 0.5, 300, 91, 2_071_583, 352_150_624),
    ("ssd", "v1", 0.25, 300, 91, 702_831, 118_831_792),
    ("ssd", "v2", 1.0, 300, 91, 18_469_631, 1_904_680_496),
    ("ssd", "v2", 1.0, 300, 81, 17_000_501, 1_770_639_536),
    ("ssdlite", "v1", 1.0, 300, 91, 5_246_911, 1_212_977_536),
    ("ssdlite", "v1", 1.0, 320, 91, 5_246_911, 1_322_426_304),
    ("ssdlite", "v1", 1.0, 300, 81, 5_100_661, 1_200_313_216),
    ("ssdlite", "v1", 1.0, 320, 81, 5_100_661, 1_309_162_944),
    ("ssdlite", "v2", 1.0, 300, 91, 4_500_543, 749_503_856),
    ("ssdlite", "v2", 1.0, 320, 91, 4_500_543, 804_397_504),
    ("ssdlite", "v2", 1.0, 300, 81, 4_337_013, 734_610_416),
    ("ssdlite", "v2", 1.0, 320, 81, 4_337_013, 788_830_144),
    ("ssdlite-torchvision", "v3-large", 1.0, 320, 91, 3_440_060, 583_171_904),
    ("faster-rcnn", "v1", 1.0, 300, 91, 6_065_995, 25_224_412_096),
    ("faster-rcnn", "v1", 1.0, 600, 91, 6_065_995, 30_493_700_224),
]


@pytest.mark.parametrize(("name", "backbone", "alpha", "resolution", "classes", "params", "macs"), EXACT)
def test_exact(name, backbone, alpha, resolution, classes, params, macs):
    counted = mobilenets.cost(name, backbone=backbone, alpha=alpha, resolution=resolution, num_classes=classes)
    assert (counted.params, counted.macs) == (params, macs)
    assert [sum(p[i] for p in counted.parts().values()) for i in (0, 1)] == [macs, params]


def test_ssdlite_v2s_convolutions_are_the_apis():
    counted = counting.count("ssdlite", "v2", resolution=300, classes=2)
    assert counted.weights == 2_994_176  # of a real frozen graph with one class


@pytest.mark.parametrize("name", FAMILIES)
def test_params_are_the_modules(name):
    arch = detector_arch(name, alpha=0.35, resolution=96)
    with torch.device("meta"):
        net = module.build(arch, ssd_head(arch, 3, name))
    assert sum(p.numel() for p in net.parameters()) == counting.of_arch(arch, name, 3).params


def test_torchvisions_two_stage_networks():
    with torch.device("meta"):
        faster = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=91)
    assert sum(p.numel() for p in faster.parameters()) == counting.count("faster-rcnn-fpn").params
    # On maps of strides 8, 16 and 32, 128 channels deep, with one size of anchors on each: by torchvision's own parts.
    side, classes = 320, 91
    net = mobilenets.create("v2", features_only=True, out_indices=(2, 3, 4), num_classes=0)
    with torch.device("meta"):
        body = BackboneWithFPN(net, {f"stage{i + 3}": str(i) for i in range(3)}, [32, 96, 1280], 128)
        anchors = AnchorGenerator(((32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 4)
        heads = {"box_head": TwoMLPHead(128 * 49, 1024), "box_predictor": FastRCNNPredictor(1024, classes)}
        masks = {"mask_head": MaskRCNNHeads(128, (128,) * 4, 1), "mask_predictor": MaskRCNNPredictor(128, 128, classes)}
        theirs = MaskRCNN(body, None, min_size=side, rpn_anchor_generator=anchors, **heads, **masks)
    behind = [theirs.backbone.fpn, theirs.rpn, theirs.roi_heads]
    counted = counting.count("mask-rcnn", "v2", resolution=side, classes=classes)
    assert sum(p.numel() for m in behind for p in m.parameters()) == sum(
        params for part, (_, params) in counted.parts().items() if part != "backbone"
    )


def test_what_runs_for_each_proposal():
    few, many = (counting.count("faster-rcnn", proposals=n) for n in (10, 300))
    assert few.params == many.params
    assert (many.macs - few.macs) == 290 * 78_209_536
    assert {r.times for r in many.rows} == {1, 300}
    masks = counting.count("mask-rcnn")
    assert {r.times for r in masks.rows if r.layer.startswith("mask.")} == {100}
    assert counting.count("faster-rcnn-fpn", resolution=800).proposals == 1000


@pytest.mark.parametrize("name", PYRAMIDS)
def test_the_whole_graph_costs_what_its_parts_do(name):
    arch = two_stage_arch(name, "v2", 0.35, 96)
    whole = cost.count(arch, arch.graph.with_head(two_stage_head(arch, 3, name)))
    parts = counting.count(name, "v2", 0.35, 96, 3)
    assert whole.rows == parts.rows
    assert whole.peak_activation_elements >= parts.peak_activation_elements


def test_peaks():
    """A backbone's first layers hold the most, where its head is small; every proposal's maps are there at once."""
    arch = detector_arch("ssdlite", "v2", resolution=320)
    assert counting.of_arch(arch, "ssdlite", 91).peak_activation_elements == cost.count(arch).peak_activation_elements
    assert counting.count("faster-rcnn").peak_activation_elements == 300 * (1024 + 1024) * 7 * 7


def test_the_command(command):
    options = {"--backbone": "v1", "--alpha": "1", "--resolution": "300", "--classes": "91"}
    found = command("cost", "ssd", *(word for pair in options.items() for word in pair), "--json").json
    assert (found["arch"], found["backbone"], found["resolution"], found["classes"]) == ("ssd", "v1", 300, 91)
    assert (found["macs"], found["trainable_params"], found["anchors"]) == (1_237_129_408, 6_819_839, 1917)
    assert sum(row["macs"] for row in found["layers"]) == found["macs"]
    assert json.dumps(found["parts"])
    printed = command("cost", "mask-rcnn").out
    assert "share by part" in printed
    assert "at a mask 100" in printed
    assert "background" in command("cost", "--help").out
    assert command("cost", "ssdlite", "--json").json["resolution"] == 320


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sdd"], "did you mean 'ssd'"),
        (["v1", "--backbone", "v2"], "v1 is no detector"),
        (["ssd", "--proposals", "3"], "ssd makes no proposals"),
        (["ssd", "--classes", "1"], "classes must be 2 or more"),
        (["faster-rcnn", "--classes", "1"], "classes must be 2 or more"),
        (["faster-rcnn", "--proposals", "0"], "from 1 to 10000"),
        (["ssd", "--backbone", "v9"], "unknown arch"),
    ],
)
def test_mistakes(command, arguments, said):
    ran = command("cost", *arguments)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert said in ran.err


def test_explain_says_where_a_detectors_parts_are(command):
    ran = command("explain", "ssd")
    assert ran.code == 2
    assert "mobilenets cost ssd has its parts" in ran.err


def test_no_torch_and_no_numpy():
    code = (
        "import sys; from mobilenets.arch.detectors import counting; counting.count('mask-rcnn');"
        "print({'torch', 'numpy'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_unknown_detector():
    with pytest.raises(UserError, match="did you mean 'ssdlite'"):
        counting.count("ssdlit")
