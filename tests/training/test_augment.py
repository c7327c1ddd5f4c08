"""What is drawn of an image, in training and for a held-out one."""

import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mobilenets.data import dataset as data
from mobilenets.data.open import open_data
from mobilenets.model.images import Preprocess
from mobilenets.tasks import augment
from mobilenets.tasks.augment import augmentation
from mobilenets.training import loader
from mobilenets.training.recipes import Recipe

# Of a machine of one core, two workers are too many for PyTorch's taste.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def colour_data(colours):
    return open_data(str(colours))


def batches(split, kind, epoch, workers, seed=0, world=1, rank=0):
    recipe = Recipe(batch=16, workers=workers, erasing=0.5)
    images = loader.train_images(split, augmentation(kind, Preprocess(32), recipe), seed)
    out = loader.train_loader(images, recipe, world, rank)
    out.sampler.set_epoch(epoch)
    return list(out)


@pytest.mark.parametrize("kind", ["photo", "glyph", "shift", "none"])
def test_what_is_drawn_depends_on_seed_epoch_and_image_alone(colour_data, kind):
    split = colour_data.split("train")

    def drawn(*args, **kwargs):
        torch.manual_seed(int(time.time()))
        return [(x.numpy().tobytes(), y.tolist()) for x, y in batches(split, kind, *args, **kwargs)]

    first = drawn(3, 0)
    assert len(first) == 4  # of 72 images; the short batch is left out
    assert drawn(3, 2) == first
    assert drawn(2, 0) != first
    assert drawn(3, 0, seed=1) != first


def test_an_image_is_drawn_anew_each_epoch(colour_data):
    images = loader.TrainImages(colour_data.split("train"), augmentation("photo", Preprocess(32), Recipe()), seed=0)
    a, b, c = images[0, 5][0], images[1, 5][0], images[0, 5][0]
    assert torch.equal(a, c)
    assert not torch.equal(a, b)
    assert a.shape == (3, 32, 32)
    assert a.dtype == torch.uint8


def test_each_image_once_an_epoch_over_all_processes(colour_data):
    images = loader.TrainImages(colour_data.split("train"), augmentation("none", Preprocess(32), Recipe()), 0)
    recipe = Recipe(batch=16, workers=0)
    sampled = []
    for rank in range(2):
        own = loader.train_loader(images, recipe, 2, rank)
        assert own.batch_size == 8
        own.sampler.set_epoch(4)
        keys = list(own.sampler)
        assert {e for e, _ in keys} == {4}
        sampled.append([i for _, i in keys])
    assert len(sampled[0]) == len(sampled[1]) == 36
    assert sorted(sampled[0] + sampled[1]) == list(range(72))
    alone = loader.train_loader(images, recipe, 1, 0)
    alone.sampler.set_epoch(4)
    whole = [i for _, i in alone.sampler]
    assert sampled == [whole[::2], whole[1::2]]  # so a step sees the same images, however it is split


def of_torchvision(kind):
    """The same augmentation by torchvision's transforms, at 32 pixels."""
    blank = {"photo": (0.02, 0.33), "shift": (0.05, 0.25)}.get(kind)
    moves = {
        "photo": [
            v2.RandomResizedCrop((32, 32), scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3),
        ],
        "shift": [
            v2.Resize((32, 32), antialias=True),
            v2.RandomCrop((32, 32), padding=4),
            v2.RandomHorizontalFlip(),
        ],
        "glyph": [
            v2.Resize(32, antialias=True),
            v2.CenterCrop((32, 32)),
            v2.RandomAffine(10, (0.1, 0.1), (0.85, 1.15), shear=8, interpolation=v2.InterpolationMode.BILINEAR),
        ],
    }[kind]
    return v2.Compose([*moves, v2.PILToTensor(), *([v2.RandomErasing(0.25, scale=blank, value=128)] if blank else [])])


@pytest.mark.parametrize("kind", ["photo", "shift", "glyph"])
def test_what_is_drawn_is_distributed_as_torchvisions_transforms_draw(kind):
    rows, columns = np.mgrid[:40, :48]
    pixels = np.stack([rows * 6, columns * 5, (rows + columns) % 16 * 15], -1).astype(np.uint8)
    image, theirs = Image.fromarray(pixels), of_torchvision(kind)
    ours = augmentation(kind, Preprocess(32, 1.0), Recipe(erasing=0.25))
    torch.manual_seed(0)
    drawn = torch.stack([ours(image, 0)[0] for _ in range(1200)]).double()
    wanted = torch.stack([theirs(image) for _ in range(1200)]).double()
    error = torch.sqrt((drawn.var(0) + wanted.var(0)) / 1200)
    assert ((drawn.mean(0) - wanted.mean(0)).abs() < 5 * error + 0.5).all()  # each of 3,072 numbers
    assert float(drawn.std(0).mean()) == pytest.approx(float(wanted.std(0).mean()), rel=0.02)


def in_memory(images, targets):
    """A training split whose images, uint8 [N, H, W, 3], are all in memory."""
    names = [str(i) for i in range(len(images))]
    return data.Split("train", names, targets, lambda i: Image.fromarray(images[i]), dict(enumerate(images)))


def test_a_batch_varied_at_once_is_distributed_as_one_by_one():
    rows, columns = np.mgrid[:40, :48]
    pixels = np.stack([rows * 6, columns * 5, (rows + columns) % 16 * 15], -1).astype(np.uint8)
    ours = augmentation("shift", Preprocess(32, 1.0), Recipe(erasing=0.25))
    images = loader.train_images(in_memory([pixels] * 1200, np.zeros(1200, np.int64)), ours, 0)
    assert isinstance(images, loader.GatheredImages)
    drawn = images.__getitems__([(0, i) for i in range(1200)])[0].double()
    torch.manual_seed(0)
    wanted = torch.stack([ours(Image.fromarray(pixels), 0)[0] for _ in range(1200)]).double()
    error = torch.sqrt((drawn.var(0) + wanted.var(0)) / 1200)
    assert ((drawn.mean(0) - wanted.mean(0)).abs() < 5 * error + 0.5).all()  # each of 3,072 numbers
    assert float(drawn.std(0).mean()) == pytest.approx(float(wanted.std(0).mean()), rel=0.02)


def test_images_at_once_are_the_images_moved():
    rng = np.random.default_rng(0)
    pixels, targets = rng.integers(1, 256, (8, 32, 32, 3), np.uint8), np.arange(8)
    images = loader.train_images(in_memory(pixels, targets), augmentation("shift", Preprocess(32), Recipe()), 3)
    for epoch in range(3):
        index = rng.permutation(8)[:5]
        shown, said = images.__getitems__([(epoch, i) for i in index])
        assert said.tolist() == index.tolist()
        for one, i in zip(shown.permute(0, 2, 3, 1).numpy(), index, strict=True):
            padded = np.pad(pixels[i], ((4, 4), (4, 4), (0, 0)))
            views = [v[y : y + 32, x : x + 32] for v in (padded, padded[:, ::-1]) for y in range(9) for x in range(9)]
            assert any(np.array_equal(one, v) for v in views)
        alone, target = images[epoch, int(index[2])]
        assert torch.equal(alone, shown[2])
        assert (target, type(target)) == (index[2], int)


def test_a_teachers_answers_come_with_their_images():
    answers = np.arange(2 * 6 * 3, dtype=np.float32).reshape(2, 6, 3)

    class Said:
        views = 2

        def __call__(self, view, i):
            return torch.from_numpy(answers[view][i])

    split = in_memory(np.zeros((6, 32, 32, 3), np.uint8), np.arange(6))
    images = loader.train_images(split, augmentation("shift", Preprocess(32), Recipe()), 0)
    images.answers = Said()
    assert np.array_equal(images.__getitems__([(3, 4), (3, 1)])[2], answers[1][[4, 1]])
    assert np.array_equal(images[2, 5][2], answers[0][5])
    first, again = (images.__getitems__([(epoch, 0)])[0] for epoch in (0, 2))
    assert torch.equal(first, again)  # of two views


@pytest.mark.parametrize("case", ["photo", "looks", "not all in memory", "boxes", "too many", "large"])
def test_other_images_are_varied_one_by_one(case, monkeypatch):
    split = in_memory(np.zeros((4, 32, 32, 3), np.uint8), [None] * 4 if case == "boxes" else np.arange(4))
    if case == "not all in memory":
        del split.cache[2]
    if case == "too many":
        monkeypatch.setattr(loader, "MATERIALIZE_BYTES", 4 * 32 * 32 * 4 - 1)
    recipe = Recipe(randaugment=9 if case == "looks" else 0)
    side = 100 if case == "large" else 32
    transform = augmentation("photo" if case == "photo" else "shift", Preprocess(side), recipe)
    assert type(loader.train_images(split, transform, 0)) is loader.TrainImages


def test_numbers_drawn_for_a_batch_are_even_and_each_images_own():
    drawn = loader.uniforms(loader.mix(3, 1), np.arange(2000), 5)
    assert drawn.shape == (2000, 5)
    assert 0 <= drawn.min() < 0.001 < 0.999 < drawn.max() < 1
    assert np.abs(np.histogram(drawn, 10, (0, 1))[0] - 1000).max() < 5 * np.sqrt(900)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(5)).max() < 0.1
    assert np.array_equal(loader.uniforms(loader.mix(3, 1), np.array([1999, 7]), 5), drawn[[1999, 7]])
    assert len(np.unique(drawn)) == drawn.size


def arrow(left):
    """A dark image with a bright mark at one side."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[16:24, (slice(4, 12) if left else slice(28, 36))] = 255
    return pixels


def mirrored(kind, left):
    """How often the mark is on the other side."""
    split = data.Split("train", ["x"], np.array([0]), lambda _i: Image.fromarray(arrow(left)))
    images = loader.TrainImages(split, augmentation(kind, Preprocess(32, 1.0), Recipe(min_scale=0.99)), 0)
    sides = []
    for epoch in range(100):
        columns = images[epoch, 0][0].float().sum((0, 1))
        centre = float((columns * torch.arange(32)).sum() / columns.sum())
        sides.append(centre < 16)
    return sum(s != left for s in sides)


@pytest.mark.parametrize("left", [True, False])
def test_a_glyph_is_never_mirrored(left):
    assert mirrored("glyph", left) == 0
    assert mirrored("none", left) == 0
    assert 30 < mirrored("photo", left) < 70


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_held_out_images_are_what_a_prediction_sees(colours, monkeypatch, in_memory, crop):
    if not in_memory:
        monkeypatch.setattr(loader, "MATERIALIZE_BYTES", 0)
    split = open_data(str(colours)).split("val")
    preprocess = Preprocess(40, crop)
    held = loader.held_out_loader(split, preprocess, 10, 1, 0)
    assert (held.dataset.batch is not None) == in_memory
    images = torch.cat([x for x, _ in held]).permute(0, 2, 3, 1).numpy()
    targets = torch.cat([y for _, y in held]).tolist()
    assert targets == split.targets.tolist()
    for i, name in enumerate(split.names):
        assert np.array_equal(images[i], preprocess.read(colours / name))


RED, GROUND = (230, 20, 20), (20, 20, 20)


def red_square(width, height, box):
    """An image with a red square on it, and where that is: a box, a mask, its centre, and its class."""
    from torchvision import tv_tensors

    left, top, right, bottom = box
    pixels = np.full((height, width, 3), GROUND, np.uint8)
    pixels[top:bottom, left:right] = RED
    target = {
        "box": tv_tensors.BoundingBoxes([box], format="XYXY", canvas_size=(height, width)),
        "mask": tv_tensors.Mask(torch.from_numpy((pixels[..., 0] > 128).astype(np.uint8))[None]),
        "centre": tv_tensors.KeyPoints([[(left + right) / 2, (top + bottom) / 2]], canvas_size=(height, width)),
        "class": 3,
    }
    return Image.fromarray(pixels), target


def red(image):
    """Where an image, uint8 [3, H, W], is red: [H, W]."""
    over = image[0].int() - image[1].int()
    return over > max(over.max() / 2, 40)


def extent(where):
    """The box around the pixels that are true."""
    rows, columns = where.any(1).nonzero(), where.any(0).nonzero()
    return torch.tensor([columns[0, 0], rows[0, 0], columns[-1, 0] + 1, rows[-1, 0] + 1]).float()


@pytest.mark.parametrize("kind", ["photo", "shift"])
@pytest.mark.parametrize("factor", [1, 5])  # the larger one is read at a fraction of its size
def test_boxes_and_masks_move_with_their_image(kind, factor):
    image, target = red_square(160 * factor, 120 * factor, [n * factor for n in (60, 40, 100, 80)])
    split = data.Split("train", ["x"], [target], lambda _i: image)
    images = loader.TrainImages(split, augmentation(kind, Preprocess(64), Recipe()), 0)
    boxes = []
    for epoch in range(40):
        got, said = images[epoch, 0]
        assert (got.shape, said["class"]) == ((3, 64, 64), 3)
        assert said["mask"].shape == (1, 64, 64)
        assert said["box"].canvas_size == (64, 64)
        where = red(got)
        if where.sum() < 50:  # cropped away
            continue
        mask = said["mask"][0].bool()
        assert (where & mask).sum() / (where | mask).sum() > 0.75  # nearest neighbours: a pixel off at the edges
        boxes.append(said["box"][0].tolist())
        assert (said["box"][0] - extent(where)).abs().max() <= 2
        x, y = said["centre"][0].tolist()
        if mask[:, [0, -1]].any() or mask[[0, -1]].any():  # part of it is outside
            continue
        middle = (said["box"][0, :2] + said["box"][0, 2:]) / 2
        assert (middle - torch.tensor([x, y])).abs().max() <= 2
    assert len({tuple(b) for b in boxes}) > 20


@pytest.mark.parametrize("framing", ["crop", "letterbox", "stretch"])
def test_held_out_boxes_are_where_the_input_has_them(framing):
    image, target = red_square(800, 600, [300, 200, 500, 400])
    split = data.Split("val", ["x"], [target], lambda _i: image)
    (got, said), *_ = loader.HeldOutImages(split, Preprocess(64, 0.9, framing=framing, size=(64, 96)))
    assert got.shape == (3, 64, 96)
    assert said["mask"].shape == (1, 64, 96)
    assert said["class"] == 3
    where, mask = red(got), said["mask"][0].bool()
    assert (where & mask).sum() / (where | mask).sum() > 0.85
    assert (said["box"][0] - extent(where)).abs().max() <= 1


def test_a_class_is_the_same_with_any_transform_around(colour_data):
    """The draws of an image don't depend on what goes with it."""
    split = colour_data.split("train")
    plain = loader.TrainImages(split, augmentation("photo", Preprocess(32), Recipe(erasing=0.5, randaugment=9)), 0)
    image, target = plain[2, 7]
    assert type(target) is int
    torch.default_generator.manual_seed(loader.mix(0, 2, 7))
    assert torch.equal(plain.transform(Image.fromarray(split.cached(7)), None)[0], image)


@pytest.mark.slow
def test_augmentation_follows_the_data(tiny_train, tmp_path, monkeypatch):
    kinds = []
    real = augment.augmentation
    monkeypatch.setattr(augment, "augmentation", lambda *a: (kinds.append(a[0]), real(*a))[1])
    assert tiny_train(tmp_path / "a", "--epochs", 1).ran.code == 0
    assert tiny_train(tmp_path / "b", "--epochs", 1, "--augment", "glyph").ran.code == 0
    d = open_data("digits")
    assert (d.kind, kinds) == ("glyph", ["photo", "glyph"])
