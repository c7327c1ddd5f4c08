"""ImageNet-1k's classes in the order of every published classifier. No torch."""

from __future__ import annotations

import functools
from importlib import resources


@functools.cache
def classes() -> dict[str, str]:
    """WordNet id -> name of the 1000 classes (ids sorted, names as torchvision has them): "n01440764" -> "tench"."""
    text = resources.files("mobilenets.model").joinpath("imagenet.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in text.splitlines())


def is_imagenet(labels: tuple[str, ...]) -> bool:
    """Whether a classifier's labels are ImageNet's, under whichever of their names."""
    return len(labels) == 1000 and labels[0].startswith("tench") and labels[999].startswith("toilet tissue")
