"""One-stage detectors: exact counts, the maps and values they read, their anchors, their network in PyTorch."""

import itertools
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from mobilenets.arch import zoo
from mobilenets.arch.detectors import FAMILIES, anchor_shapes, detection_config, detector_arch, maps, ssd_head
from mobilenets.arch.detectors.heads import taps
from mobilenets.arch.graph import Head
from mobilenets.errors import UserError
from mobilenets.model import module

SQUARES_300 = ((19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1))
SQUARES_320 = ((20, 20), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1))


def network(name, backbone, alpha=1.0, resolution=None, classes=91):
    arch = detector_arch(name, backbone, alpha, resolution)
    with torch.device("meta"):
        return module.build(arch, ssd_head(arch, classes, name)).eval()


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("v1", ("blocks.11.pointwise", "blocks.13.pointwise")),  # Conv2d_11_pointwise and _13 in TF-slim's names
        ("v2", ("blocks.14.expand", "blocks.18.conv")),  # layer_15/expansion_output, layer_19
        ("v3-large", ("blocks.13.expand_act", "blocks.16.conv_act")),
        ("v3-small", ("blocks.9.expand_act", "blocks.12.conv_act")),
        ("v4-conv-s", ("blocks.11.expand", "blocks.17.conv")),
    ],
)
def test_taps(backbone, layers):
    arch = detector_arch("ssdlite", backbone)
    assert taps(arch) == layers
    assert [arch.graph.shapes[n][1] for n in layers] == [20, 10]


@pytest.mark.parametrize(("name", "backbone"), [*itertools.product(FAMILIES, zoo.NETWORKS)])
def test_every_family_on_every_network(name, backbone):
    arch = detector_arch(name, backbone, 0.5, (224, 352))
    head = ssd_head(arch, 4, name)
    assert Head.from_json(json.loads(json.dumps(head.to_json()))) == head
    graph = arch.graph.with_head(head)
    config = detection_config(arch, ["a", "b", "c"], name)
    shapes = [graph.shapes[f"detect.box.{i}.rows"] for i in range(len(maps(arch, name)))]
    boxes = config["anchors"]["boxes"]
    assert [h * w * len(b) for (h, w), b in zip(config["anchors"]["maps"], boxes, strict=True)] == [
        s[0] for s in shapes
    ]
    total = sum(s[0] for s in shapes)
    assert graph.output_shapes == {"offsets": (total, 4), "scores": (total, 4)}
    assert {op.name for op in graph.ops if op.kind == "linear"} == set()  # no classifier goes along


def test_maps():
    assert maps(detector_arch("ssd", "v1"), "ssd") == SQUARES_300
    for name in ("ssdlite", "ssdlite-torchvision"):
        assert maps(detector_arch(name), name) == SQUARES_320
    assert maps(detector_arch("ssd-fpnlite"), "ssd-fpnlite") == ((40, 40), (20, 20), (10, 10), (5, 5), (3, 3))


def test_tf_anchors():
    """What the API's ssd_anchor_generator gives at 300: 3 at a position of the first map, 6 elsewhere."""
    shapes = anchor_shapes("tf", SQUARES_300, (300, 300))
    assert [len(s) for s in shapes] == [3, 6, 6, 6, 6, 6]
    assert sum(h * w * len(s) for (h, w), s in zip(SQUARES_300, shapes, strict=True)) == 1917
    root = 2**0.5
    assert shapes[0][0] == pytest.approx((0.1, 0.1))
    assert shapes[0][1] == pytest.approx((0.2 * root, 0.2 / root))
    assert shapes[0][2] == pytest.approx((0.2 / root, 0.2 * root))
    assert shapes[1][-1] == pytest.approx([(0.35 * 0.5) ** 0.5] * 2)
    assert shapes[5][0] == pytest.approx((0.95, 0.95))
    wide = anchor_shapes("tf", SQUARES_300, (300, 600))
    assert wide[0][0] == pytest.approx((0.05, 0.1))  # square in pixels


def test_pyramid_anchors():
    (first, *_, last) = anchor_shapes("tf-pyramid", ((40, 40), (20, 20), (10, 10), (5, 5), (3, 3)), (320, 320))
    assert len(first) == 6
    assert first[0] == pytest.approx((0.1, 0.1))
    assert first[1] == pytest.approx((0.1 * 2**0.5,) * 2)
    assert last[0] == pytest.approx((1.6, 1.6))
    grids = detection_config(detector_arch("ssd-fpnlite"), ["a"], "ssd-fpnlite")["anchors"]["grids"]
    assert grids[0] == pytest.approx([4 / 320, 4 / 320, 8 / 320, 8 / 320])
    assert grids[-1] == pytest.approx([0, 0, 0.4, 0.4])  # 320 isn't a multiple of its stride of 128
    at_640 = detection_config(detector_arch("ssd-fpnlite", resolution=640), ["a"], "ssd-fpnlite")
    assert "grids" not in at_640["anchors"]


def test_torchvisions_anchors():
    images = ImageList(torch.zeros(1, 3, 320, 320), [(320, 320)])
    generator = DefaultBoxGenerator([[2, 3]] * 6, min_ratio=0.2, max_ratio=0.95)
    (boxes,) = generator(images, [torch.zeros(1, 1, h, w) for h, w in SQUARES_320])
    shapes = anchor_shapes("torchvision", SQUARES_320, (320, 320))
    ours = [
        ((x + 0.5) / w, (y + 0.5) / h, *shape)
        for (h, w), each in zip(SQUARES_320, shapes, strict=True)
        for y in range(h)
        for x in range(w)
        for shape in each
    ]
    corners = torch.tensor([(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in ours])
    torch.testing.assert_close(corners * 320, boxes, rtol=0, atol=1e-3)


def test_torchvisions_network():
    """Layers of the same shapes, the same work."""
    with torch.device("meta"):
        theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91).eval()
    net = network("ssdlite-torchvision", "v3-large")
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in theirs.parameters()) == 3_440_060
    shapes = [sorted(tuple(p.shape) for p in n.parameters()) for n in (net, theirs)]
    assert shapes[0] == shapes[1]
    with torch.inference_mode(), torch.device("meta"):
        with FlopCounterMode(display=False) as counter:
            theirs.head(list(theirs.backbone(torch.zeros(1, 3, 320, 320)).values()))
        with FlopCounterMode(display=False) as ours:
            net.answers(torch.zeros(1, 3, 320, 320))
    assert counter.get_total_flops() == ours.get_total_flops() == 2 * 583_171_904


def test_a_pyramids_maps_share_weights():
    net = network("ssd-fpnlite", "v2", 0.35, 128, classes=2)
    first, second = (net.get_submodule(f"detect.tower.{i}.3.pointwise") for i in (0, 4))
    assert first.conv is second.conv
    assert first.norm is not second.norm
    assert (
        net.get_submodule("detect.box.0.pointwise").conv.bias is net.get_submodule("detect.box.3.pointwise").conv.bias
    )
    assert first.conv is not net.get_submodule("detect.tower.0.2.pointwise").conv
    head = net.arch.graph.whole(ssd_head(net.arch, 2, "ssd-fpnlite")).op("detect.box.1.pointwise")
    wrong = Head((head.__class__(**{**vars(head), "shares": "blocks.0.conv", "inputs": ("blocks.0.conv",)}),), ())
    with pytest.raises(UserError, match="of another shape"):
        module.build(net.arch, wrong)


def test_reduced_tail_is_v3s():
    full, half = (detector_arch("ssdlite-torchvision", reduced_tail=tail) for tail in (False, True))
    assert (full.blocks[-1].cout, half.blocks[-1].cout) == (960, 480)
    assert detector_arch("ssdlite", "v3-large").blocks[-1].cout == 960
    with pytest.raises(UserError, match="V3's"):
        detector_arch("ssdlite", "v2", reduced_tail=True)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ssd_head(detector_arch("ssd"), 91, "sdd"), "did you mean 'ssd'"),
        (lambda: ssd_head(detector_arch("ssd"), 1, "ssd"), "classes must be 2 or more"),
        (lambda: ssd_head(detector_arch("ssd"), 3, "ssd", per_cell=[3]), "6 maps"),
        (lambda: ssd_head(detector_arch("ssd-fpnlite"), 3, "ssd-fpnlite", per_cell=[3, 3, 3, 3, 6]), "share weights"),
        (lambda: detection_config(detector_arch("ssd"), ["a"], "ssd", [[[0.1, 0.1]]]), "6 maps"),
        (lambda: anchor_shapes("tff", SQUARES_300, (300, 300)), "did you mean 'tf'"),
    ],
)  # fmt: skip
def test_mistakes(make, said):
    with pytest.raises(UserError, match=said):
        make()
