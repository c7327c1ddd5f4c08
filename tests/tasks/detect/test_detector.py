"""`mobilenets.create("ssdlite", ...)`: what trains torchvision's detectors trains it, as it is."""

import math
import pickle

import numpy as np
import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

import mobilenets
from mobilenets.arch.spec import Variant
from mobilenets.errors import UserError
from mobilenets.model.bundle import with_random_weights

GREEN = torch.tensor([0.1, 0.8, 0.2])


def picture(seed, size=(96, 128)):
    """Grey noise with a green or a red square, as a float image, and its target as torchvision's data sets have it."""
    rng = np.random.default_rng(seed)
    height, width = size
    image = torch.from_numpy(rng.normal(0.5, 0.05, (3, height, width))).float().clamp(0, 1)
    side, kind = int(rng.integers(30, 50)), int(rng.integers(1, 3))
    left, top = int(rng.integers(0, width - side)), int(rng.integers(0, height - side))
    image[:, top : top + side, left : left + side] = (GREEN if kind == 1 else GREEN.flip(0))[:, None, None]
    boxes = torch.tensor([[left, top, left + side, top + side]]).float()
    return image, {"boxes": boxes, "labels": torch.tensor([kind]), "image_id": torch.tensor(seed)}


def train_one_epoch(model, optimizer, batches):
    """What references/detection/engine.py does of torchvision's repository, without its logging."""
    model.train()
    losses = []
    for images, targets in batches:
        loss_dict = model([*images], [{**t} for t in targets])
        loss = sum(loss_dict.values())
        assert math.isfinite(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["ssd", "ssdlite", "ssdlite-torchvision", "ssd-fpnlite"])
def test_the_references_loop(name):
    torch.manual_seed(0)
    model = mobilenets.create(name, backbone="v1", alpha=0.25, resolution=64, num_classes=3)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.01, momentum=0.9, weight_decay=5e-4)
    batches = [[*zip(*map(picture, range(2)), strict=True)]] * 4
    losses = train_one_epoch(model, optimizer, batches)
    assert losses[-1] < losses[0]
    model.eval()
    with torch.inference_mode():
        outputs = model([picture(1)[0], picture(2, (64, 200))[0]])
    for output, (height, width) in zip(outputs, ((96, 128), (64, 200)), strict=True):
        assert set(output) == {"boxes", "labels", "scores"}
        boxes, labels, scores = output["boxes"], output["labels"], output["scores"]
        assert boxes.shape == (len(scores), 4)
        assert labels.dtype == torch.int64
        assert bool((scores[:-1] >= scores[1:]).all())
        assert set(labels.tolist()) <= {1, 2}
        assert bool((boxes >= 0).all())
        assert bool((boxes[:, 2] <= width).all())
        assert bool((boxes[:, 3] <= height).all())


@pytest.mark.slow
def test_it_takes_and_gives_what_torchvisions_does():
    ours = mobilenets.create("ssdlite-torchvision", alpha=1.0, num_classes=91)
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 3_440_060
    batch = [*zip(*(picture(i, (80, 100)) for i in range(2)), strict=True)]
    losses = [model([*batch[0]], [*batch[1]]) for model in (ours, theirs)]
    assert losses[0].keys() == losses[1].keys() == {"bbox_regression", "classification"}
    for key, one in losses[0].items():  # random weights say the same of nothing: logarithms of the columns' number
        assert one.item() == pytest.approx(losses[1][key].item(), rel=0.35)


def test_an_image_without_objects_and_a_square_of_its_own_size():
    model = mobilenets.create("ssdlite", backbone="v1", alpha=0.25, resolution=64, num_classes=2)
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model([torch.rand(3, 64, 64)] * 2, [none, none])
    assert losses["bbox_regression"].item() == 0
    assert losses["classification"].item() > 0


def test_a_detector_is_a_bundle_and_starts_from_one(tmp_path):
    first = mobilenets.create("ssdlite", backbone="v1", alpha=0.25, resolution=64, num_classes=3).eval()
    images = [picture(3)[0]]
    saved = first.bundle().save(tmp_path / "b")
    assert saved.card.task == "detect"
    again = mobilenets.create("ssdlite", pretrained=tmp_path / "b").eval()
    assert all(torch.equal(a, b) for a, b in zip(first(images)[0].values(), again(images)[0].values(), strict=True))
    other = mobilenets.create("ssdlite", pretrained=saved, num_classes=5, resolution=96)
    assert (other.num_classes, other.arch.resolution) == (5, 96)
    stem = "blocks.0.conv.conv.weight"
    assert torch.equal(other.state_dict()[stem], first.state_dict()[stem])
    extra = "detect.extra.0.reduce.conv.weight"
    assert torch.equal(other.state_dict()[extra], first.state_dict()[extra])
    assert isinstance(pickle.loads(pickle.dumps(again)), mobilenets.Detector)


def test_a_pyramids_bundle_has_what_its_maps_share(tmp_path):
    net = mobilenets.create("ssd-fpnlite", backbone="v1", alpha=0.25, resolution=64, num_classes=2).eval()
    saved = net.bundle().save(tmp_path / "b")
    first, last = (f"detect.tower.{i}.0.pointwise.conv.weight" for i in (0, 4))
    assert np.array_equal(saved.tensors[first], saved.tensors[last])
    again = mobilenets.create("ssd-fpnlite", pretrained=tmp_path / "b").eval()
    image = picture(1)[0]
    assert torch.equal(net([image])[0]["scores"], again([image])[0]["scores"])
    made = with_random_weights(net.card)
    assert np.array_equal(made.tensors[first], made.tensors[last])
    assert torch.equal(made.module().state_dict()[first], torch.from_numpy(made.tensors[first]))


def test_it_starts_from_a_classifier(make_bundle):
    classifier = make_bundle("v1")
    net = mobilenets.create("ssd", backbone="v1", pretrained=classifier, num_classes=4, resolution=64)
    stem = "blocks.0.conv.conv.weight"
    assert np.array_equal(net.state_dict()[stem].numpy(), classifier.tensors[stem])
    assert (net.num_classes, net.arch.alpha, net.arch.padding) == (4, 0.25, classifier.card.arch.padding)


def test_a_variant_is_built():
    net = mobilenets.create("ssd", backbone="v1", alpha=0.25, resolution=64, variant=Variant(activation="relu"))
    assert net.arch.activation == "relu"
    assert net.num_classes == 91


def target(boxes, labels):
    return {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m([torch.rand(3, 40, 40)]), "as many targets as images"),
        (lambda m: m([torch.zeros(3, 40, 40, dtype=torch.uint8)], [target([[1, 1, 9, 9]], [1])]), "floats from 0 to 1"),
        (lambda m: m([torch.rand(1, 40, 40)], [target([[1, 1, 9, 9]], [1])]), "floats from 0 to 1"),
        (lambda m: m([torch.rand(3, 40, 40)], [target([[1, 1, 9, 9]], [0])]), "0 is the background"),
        (lambda m: m([torch.rand(3, 40, 40)], [target([[1, 1, 9, 9]], [3])]), "labels are from 1 to 2"),
        (lambda m: m([torch.rand(3, 40, 40)], [target([[9, 1, 9, 9]], [1])]), "x2 > x1"),
        (lambda m: m([torch.rand(3, 40, 40)], [target([[1, 1, 9, 9]], [1, 2])]), "1 boxes have 2 labels"),
        (lambda _: mobilenets.create("v1", backbone="v2"), "v1 is no detector"),
        (lambda _: mobilenets.create("ssd", features_only=True), "its backbone's"),
        (lambda _: mobilenets.create("ssd", num_classes=1), "background"),
        (lambda _: mobilenets.create("ssd", backbone="v9"), "unknown arch"),
        (lambda m: mobilenets.create("ssd", pretrained=m.bundle()), "of 'ssdlite'"),
        (lambda m: mobilenets.create("ssdlite", backbone="v2", pretrained=m.bundle()), "ask for that backbone"),
    ],
)
def test_mistakes(call, said):
    model = mobilenets.create("ssdlite", backbone="v1", alpha=0.25, resolution=64, num_classes=3)
    with pytest.raises(UserError, match=said):
        call(model)
