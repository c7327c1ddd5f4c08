"""Names of the classes that imported weights know, and classifiers brought into the shape that names fit. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError
from mobilenets.model import imagenet
from mobilenets.model.convert.recognise import Array

ALIKE = 0.98  # of ImageNet's names, in order: the share from which a list is taken for them


def read_labels(path: Path) -> tuple[str, ...]:
    """One label a line."""
    try:
        labels = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not a readable list of labels ({e})") from e
    if not labels:
        raise UserError(f"{path}: no labels in it")
    return labels


def shown(labels: Sequence[str]) -> tuple[str, ...]:
    """The name to call each class by: of "tench, Tinca tinca" the first; ImageNet's as every source here has them.

    Where that doesn't tell it from another class, the whole label.
    """
    ids = imagenet.classes()
    first = tuple(label.partition(",")[0].strip() for label in labels)
    names = tuple(ids.get(label, name) for label, name in zip(labels, first, strict=True))
    if len(labels) == len(ids):
        same = [a.replace("_", " ").lower() == b.lower() for a, b in zip(names, ids.values(), strict=True)]
        if sum(same) >= ALIKE * len(ids):
            return tuple(ids.values())
        if all(label in ids for label in labels):
            return names
    count = Counter(first)
    return tuple(name if name and count[name] == 1 else label for name, label in zip(first, labels, strict=True))


def without_background(
    arch: Arch, tensors: dict[str, Array], labels: tuple[str, ...] | None
) -> tuple[Arch, dict[str, Array], tuple[str, ...]]:
    """The classifier without TensorFlow's class 0, "background", where it has one; and a label for every class."""
    background = arch.num_classes == 1001 and (labels is None or len(labels) == 1000)
    if labels and labels[0].lower() == "background" and len(labels) in (arch.num_classes, arch.num_classes + 1):
        labels, background = labels[1:], True
    if background and (labels is None or len(labels) == arch.num_classes - 1):
        tensors = {k: v[1:] if k.startswith("classifier.") else v for k, v in tensors.items()}
        arch = arch.replace(num_classes=arch.num_classes - 1)
    if labels is None:
        known = arch.num_classes == 1000
        labels = tuple(imagenet.classes().values()) if known else tuple(f"class {i}" for i in range(arch.num_classes))
    if len(labels) != arch.num_classes:
        raise UserError(f"there are {len(labels)} labels for {arch.num_classes} classes; give the right --labels")
    return arch, tensors, labels


def with_two_classes(arch: Arch, tensors: dict[str, Array]) -> tuple[Arch, dict[str, Array]]:
    """A classifier of one number, whose sigmoid is the second class's probability, as one of two classes.

    The softmax of 0 and z gives 1 - sigmoid(z) and sigmoid(z).
    """
    if arch.num_classes != 1:
        return arch, tensors
    both = {k: np.concatenate([np.zeros_like(v), v]) for k, v in tensors.items() if k.startswith("classifier.")}
    return arch.replace(num_classes=2), {**tensors, **both}
