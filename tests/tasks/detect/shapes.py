"""Pictures of coloured rectangles with their boxes: what a small detector learns in seconds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from mobilenets.arch.rows import Conv, Separable
from mobilenets.arch.spec import Arch
from mobilenets.data.boxes import Boxes
from mobilenets.data.dataset import Data, Keyed, Split
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.detect.task import Detect

COLOURS = {"blue": (40, 60, 220), "red": (220, 50, 40)}
SMALL = Arch(
    "small",
    0.25,
    64,
    0,
    (Conv(16, stride=2), Separable(32, stride=2), Separable(64, stride=2), Separable(96, stride=2)),
)
STRETCH = Preprocess(64, crop=1.0, framing="stretch")


def detector(
    labels: tuple[str, ...] = tuple(COLOURS), options: DetectorOptions | None = None, arch: Arch = SMALL
) -> Bundle:
    """A detector with random weights."""
    task = Detect(options)
    config = task.shaped({"labels": list(labels)}, arch, None)
    preprocess = dataclasses.replace(STRETCH, resolution=arch.resolution)
    return with_random_weights(Card(arch, preprocess, task.head(arch, config), "detect", config))


def picture(rng: np.random.Generator, size: tuple[int, int] = (72, 64), most: int = 2) -> tuple[Image.Image, Boxes]:
    """A noisy grey picture of `size`, (width, height), with up to `most` rectangles, apart from each other."""
    width, height = size
    grey = rng.normal(128, 12, (height, width, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(grey)
    pen, boxes, classes = ImageDraw.Draw(image), [], []
    for side in range(int(rng.integers(1, most + 1))):  # one in each half
        w, h = rng.integers(16, 30), rng.integers(18, 44)
        left = int(rng.integers(0, width // 2 - w + 1)) + side * (width // 2)
        top = int(rng.integers(0, height - h + 1))
        c = int(rng.integers(2))
        pen.rectangle((left, top, left + int(w) - 1, top + int(h) - 1), fill=tuple(COLOURS.values())[c])
        boxes.append((left, top, left + w, top + h))
        classes.append(c)
    return image, Boxes.of(boxes, classes, size)


def data(train: int = 64, val: int = 24, seed: int = 0, **how: int) -> Data:
    rng = np.random.default_rng(seed)
    splits = {}
    for name, count in (("train", train), ("val", val)):
        images, targets = zip(*(picture(rng, **how) for _ in range(count)), strict=True)
        names = [f"{name}/{i:03d}.png" for i in range(count)]
        splits[name] = Split(name, names, list(targets), Keyed(same, images))
    return Data("shapes", tuple(COLOURS), splits)


def write(root: Path, made: Data) -> Path:
    """The data as a folder of PNGs with COCO's annotations beside them."""
    for name, split in made.splits.items():
        (root / name).mkdir(parents=True)
        images: list[dict[str, Any]] = []
        objects: list[dict[str, Any]] = []
        for i, target in enumerate(split.targets):
            split.rgb(i).save(root / name / f"{i:03d}.png")
            width, height = target.size
            images.append({"id": i, "file_name": f"{i:03d}.png", "width": width, "height": height})
            for (x1, y1, x2, y2), c in zip(target.xyxy.tolist(), target.classes.tolist(), strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                objects.append({"id": len(objects), "image_id": i, "category_id": c, "bbox": box})
        kinds = [{"id": i, "name": label} for i, label in enumerate(made.labels)]
        said = {"images": images, "annotations": objects, "categories": kinds}
        (root / name / "annotations.json").write_text(json.dumps(said))
    return root


def same(image: Image.Image) -> Image.Image:
    return image
