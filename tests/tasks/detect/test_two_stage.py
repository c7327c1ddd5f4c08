"""Two-stage detectors: the same as torchvision's own, trained by its script's loop, with masks that are scored."""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict

import numpy as np
import pytest
import shapes
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import mobilenets
from mobilenets import tasks
from mobilenets.arch.detectors import PYRAMIDS, counting, two_stage_anchors, two_stage_arch, two_stage_head
from mobilenets.arch.detectors.two_stage import MASKED, PROPOSED_IOU, pyramid_family
from mobilenets.data import rle
from mobilenets.data.boxes import Boxes, Masks
from mobilenets.data.dataset import Data
from mobilenets.deploy import evaluate
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.errors import UserError
from mobilenets.model import module
from mobilenets.model.bundle import Bundle
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.detect.masks import pasted
from mobilenets.tasks.detect.stages import initialise
from mobilenets.training.recipes import RECIPES
from mobilenets.training.trainer import network, train_bundle

SIDE = 96


def projections(graph):
    """The pyramid's first layers, the largest map's first."""
    found = [op for op in graph.ops if op.name.startswith("fpn.") and op.name.endswith(".project")]
    return sorted(found, key=lambda op: op.name)


class Body(nn.Module):
    """Our network's maps, in torchvision's pyramid."""

    def __init__(self, net, channels, depth):
        super().__init__()
        self.net, self.out_channels = net, depth
        self.fpn = FeaturePyramidNetwork(channels, depth, LastLevelMaxPool())

    def forward(self, x):
        maps = [op.inputs[0] for op in projections(self.net.graph)]
        values = self.net.run({self.net.graph.source: x}, maps)
        return self.fpn(OrderedDict((str(i), values[name]) for i, name in enumerate(maps)))


def torchvisions(net):
    """Torchvision's Mask R-CNN with the weights of ours."""
    how, widths = pyramid_family("mask-rcnn"), [op.cin for op in projections(net.graph)]
    levels = [str(i) for i in range(len(widths))]
    sizes = tuple((32 * 2**i,) for i in range(len(widths) + 1))
    depth = how.depth
    made = MaskRCNN(
        Body(net, widths, depth), net.num_classes,
        min_size=SIDE, max_size=SIDE, image_mean=[0.5] * 3, image_std=[0.5] * 3,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_pre_nms_top_n_test=1000, rpn_post_nms_top_n_test=how.proposals, rpn_nms_thresh=PROPOSED_IOU,
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2), mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2),
        box_detections_per_img=MASKED,
        mask_head=nn.Sequential(*(nn.Sequential(nn.Conv2d(depth, depth, 3, padding=1), nn.ReLU()) for _ in range(4))),
    )  # fmt: skip
    made.roi_heads.mask_predictor = nn.Sequential(
        OrderedDict(up=nn.ConvTranspose2d(depth, depth, 2, 2), relu=nn.ReLU(),
                    logits=nn.Conv2d(depth, net.num_classes, 1))
    )  # fmt: skip

    def give(to, name):
        ours = net.get_submodule(name)
        conv = getattr(ours, "conv", ours)
        weight = conv.weight.transpose(0, 1) if isinstance(to, nn.ConvTranspose2d) else conv.weight
        to.load_state_dict({"weight": weight.detach(), "bias": conv.bias.detach()})

    for i in range(len(widths)):
        give(made.backbone.fpn.inner_blocks[i][0], f"fpn.{i}.project")
        give(made.backbone.fpn.layer_blocks[i][0], f"fpn.{i}.smooth")
        give(made.roi_heads.mask_head[i][0], f"mask.{i}")
    give(made.roi_heads.mask_head[3][0], "mask.3")
    give(made.roi_heads.mask_predictor.up, "mask.transposed")
    give(made.roi_heads.mask_predictor.logits, "mask.logits")
    head, boxes = made.rpn.head, made.roi_heads
    for to, name in ((head.conv[0][0], "conv"), (head.cls_logits, "scores"), (head.bbox_pred, "boxes")):
        give(to, f"rpn.0.{name}")
    give(boxes.box_head.fc6, "box.0")
    give(boxes.box_head.fc7, "box.1")
    give(boxes.box_predictor.cls_score, "box.classes")
    give(boxes.box_predictor.bbox_pred, "box.boxes")
    return made.eval()


def test_it_says_what_torchvisions_own_does():
    torch.manual_seed(0)
    ours = mobilenets.create("mask-rcnn", backbone="v2", alpha=0.35, resolution=SIDE, num_classes=3).eval()
    nn.init.normal_(ours.get_submodule("box.classes").weight, std=0.2)
    theirs = torchvisions(ours)
    image = torch.rand(3, SIDE, SIDE)
    with torch.no_grad():
        (a,), (b,) = ours([image]), theirs([image])
    assert len(a["boxes"]) == len(b["boxes"]) > 3
    for key in ("boxes", "scores", "labels", "masks"):
        torch.testing.assert_close(a[key].float(), b[key].float(), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", PYRAMIDS)
def test_its_cost_is_its_modules(name):
    arch = two_stage_arch(name, "v2", 0.35, SIDE)
    with torch.device("meta"):
        net = module.build(arch, two_stage_head(arch, 3, name))
    counted = counting.count(name, "v2", 0.35, SIDE, 3)
    assert sum(p.numel() for p in net.parameters()) == counted.params
    net = module.build(arch, two_stage_head(arch, 3, name))
    initialise(net, two_stage_anchors(arch, name))
    assert {k: tuple(v.shape) for k, v in net.state_dict().items() if k.endswith("anchors")} == net.graph.constants


def scene(i, mask=True):
    """A picture with a bright rectangle, as torchvision's script has it."""
    rng = np.random.default_rng(i)
    image = torch.from_numpy(rng.random((3, 72, 80), np.float32)) * 0.3
    x, y, w, h = (int(v) for v in rng.integers((5, 5, 24, 24), (30, 25, 44, 40)))
    image[0, y : y + h, x : x + w] = 1
    inside = torch.zeros(1, 72, 80, dtype=torch.uint8)
    inside[:, y : y + h, x : x + w] = 1
    target = {"boxes": torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32), "labels": torch.tensor([1])}
    return image, {**target, "masks": inside} if mask else target


def train_one_epoch(model, optimizer, loader):
    """The loop of torchvision's references/detection/engine.py."""
    model.train()
    seen = []
    for images, targets in loader:
        losses = model(images, targets)
        total = sum(loss for loss in losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        seen.append(total.item())
    return seen


def batches(mask):
    return [[*zip(*(scene(2 * b + i, mask) for i in range(2)), strict=True)] for b in range(1)]


@pytest.mark.parametrize("name", ["faster-rcnn-fpn", pytest.param("mask-rcnn", marks=pytest.mark.slow)])
def test_torchvisions_loop_trains_it(name):
    torch.manual_seed(0)
    model = mobilenets.create(name, backbone="v2", alpha=0.35, resolution=64, num_classes=2)
    before = {k: v.clone() for k, v in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses = [loss for _ in range(2) for loss in train_one_epoch(model, optimizer, batches(name == "mask-rcnn"))]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p, before[k]) for k, p in model.named_parameters() if "weight" in k and "norm" not in k)
    model.eval()
    found = model([scene(9)[0]])[0]
    assert {"boxes", "labels", "scores"} <= set(found)
    assert ("masks" in found) == (name == "mask-rcnn")


def masked(count, seed):
    """Pictures of rectangles with their masks."""
    split = shapes.data(count, 2, seed).split("train")
    targets = []
    for t in split.targets:
        corners = [[np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)] for x1, y1, x2, y2 in t.xyxy.tolist()]
        targets.append(Boxes.of(t.xyxy, t.classes, t.size, masks=Masks(corners, t.size)))
    return dataclasses.replace(split, targets=targets)


@pytest.mark.slow
def test_it_is_trained_scored_and_kept(tmp_path):
    data = Data("shapes", tuple(shapes.COLOURS), {"train": masked(8, 0), "val": masked(4, 1)})
    task = tasks.with_options(tasks.find("detect"), {"detect": DetectorOptions(detector="mask-rcnn")}, None)
    arch = network("v2", 0.35, 64, None, task, task.config(data), data)
    recipe = dataclasses.replace(RECIPES["two-stage"], epochs=1, workers=0)
    made = train_bundle(data, arch, recipe, tmp_path / "run", task=task)
    assert [m.name for m in made.card.metrics] == ["ap"]
    again = Bundle.load(tmp_path / "run" / "float")
    scores = evaluate.score(TorchEngine(again, 1), data, "val")
    assert {"ap", "mask_ap50"} <= {*scores.to_json()}
    assert scores.value == pytest.approx(made.card.metrics[0].value, abs=0.01)


def test_masks_move_with_their_picture():
    split = masked(4, 3)
    card = mobilenets.create("mask-rcnn", backbone="v2", alpha=0.35, resolution=64, num_classes=3).card
    moves = tasks.of(card).transforms(card.preprocess, None, "photo")
    torch.manual_seed(0)
    seen = 0
    for i in range(len(split)):
        image, target = moves(Image.fromarray(split.cached(i)), split.targets[i])
        assert image.shape[1:] == target["masks"].shape[1:] == (64, 64)
        assert len(target["masks"]) == len(target["boxes"]) == len(target["labels"])
        for mask, box in zip(target["masks"], target["boxes"].tolist(), strict=True):
            rows, columns = (np.flatnonzero(mask.numpy().any(axis)) for axis in (1, 0))
            around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            np.testing.assert_allclose(around, box, atol=2)
            seen += 1
    assert seen


@pytest.mark.slow
def test_a_bundle_has_all_its_weights(tmp_path):
    net = mobilenets.create("mask-rcnn", backbone="v2", alpha=0.35, resolution=64, num_classes=3).eval()
    net.bundle().save(tmp_path / "b")
    again = mobilenets.create("mask-rcnn", pretrained=tmp_path / "b").eval()
    image = scene(0)[0]
    assert all(torch.equal(a, b) for a, b in zip(net([image])[0].values(), again([image])[0].values(), strict=True))
    other = mobilenets.create("mask-rcnn", pretrained=tmp_path / "b", num_classes=5, resolution=96)
    assert other.num_classes == 5
    assert torch.equal(other.get_submodule("mask.0").conv.weight, net.get_submodule("mask.0").conv.weight)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m([scene(0)[0]], [scene(0, mask=False)[1]]), "each target needs some"),
        (lambda m: m([scene(0)[0]]), "as many targets as images"),
        (lambda m: mobilenets.create("faster-rcnn-fpn", pretrained=m.bundle()), "of 'mask-rcnn'"),
    ],
)
def test_mistakes(call, said):
    with pytest.raises(UserError, match=said):
        call(mobilenets.create("mask-rcnn", backbone="v2", alpha=0.35, resolution=64, num_classes=2))


def test_a_mask_is_pasted_where_its_box_is():
    whole = pasted(np.ones((28, 28), np.float32), (10, 5, 30, 25), (40, 30))
    wanted = np.zeros((30, 40), bool)
    wanted[5:25, 10:30] = True
    assert np.array_equal(whole, wanted)
    left = np.zeros((28, 28), np.float32)
    left[:, :14] = 1
    half = pasted(left, (-8.0, 0, 32, 30), (40, 30))
    assert half[:, :12].all()
    assert not half[:, 13:].any()
    assert not pasted(left, (50, 5, 60, 9), (40, 30)).any()
    assert not pasted(left, (5, 5, 5, 9), (40, 30)).any()


def outputs(boxes, scores, masks):
    """As a network with masks gives them, of one image."""
    boxes = np.asarray(boxes, np.float32)[None]
    return {
        "boxes": boxes, "scores": np.asarray(scores, np.float32)[None],
        "classes": np.zeros((1, len(scores)), np.float32),
        "count": np.array([len(scores)], np.float32), "masks": np.asarray(masks, np.float32)[None],
    }  # fmt: skip


def test_masks_are_scored_and_told():
    card = mobilenets.create("mask-rcnn", backbone="v2", alpha=0.35, resolution=64, num_classes=2).card
    inside = np.zeros((30, 40), bool)
    inside[5:25, 10:20] = True  # the left half of its box
    truth = Boxes.of([[10, 5, 30, 25]], [0], (40, 30), masks=Masks([rle.encode(inside)], (40, 30)))
    box = np.array([10 / 40, 5 / 30, 30 / 40, 25 / 30])
    left = np.zeros((28, 28))
    left[:, :14] = 1
    task = tasks.of(card)
    for mask, score in ((left, 100.0), (1 - left, 0.0)):
        said = outputs([box], [0.9], [mask])
        tally = task.metrics(card)
        tally.update(said, [truth])
        numbers = json.loads(json.dumps(tally.compute("set", "val").to_json()))
        assert numbers["ap"] == pytest.approx(100)
        assert numbers["mask_ap"] == pytest.approx(score)
    (answer,) = task.decode(outputs([box], [0.9], [left]), card, [(40, 30)], 1)
    told = answer.to_json()["boxes"][0]["mask"]
    assert np.array_equal(rle.decode(told), inside)
