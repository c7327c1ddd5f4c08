"""torchvision's classification sets by name: downloaded where there is a network, or read from local copies."""

from __future__ import annotations

import inspect
import os
import urllib.error
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mobilenets import files
from mobilenets.data.dataset import Data, Kind, Split
from mobilenets.errors import UserError, unknown


@dataclass(frozen=True)
class Named:
    """A torchvision class and the arguments that give each split."""

    cls: str
    splits: dict[str, dict[str, Any]]
    kind: Kind = "photo"


_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_TRAIN_VAL = {"train": {"split": "train"}, "val": {"split": "val"}}
_THREE = {**_TRAIN_VAL, "test": {"split": "test"}}
_ONE: dict[str, dict[str, Any]] = {"train": {}}

NAMED: dict[str, Named] = {
    "caltech101": Named("Caltech101", _ONE),
    "cifar10": Named("CIFAR10", _TRAIN_FLAG),
    "cifar100": Named("CIFAR100", _TRAIN_FLAG),
    "country211": Named("Country211", {**_TRAIN_TEST, "val": {"split": "valid"}}),
    "dtd": Named("DTD", _THREE),
    "eurosat": Named("EuroSAT", _ONE),
    "fashion-mnist": Named("FashionMNIST", _TRAIN_FLAG),
    "fgvc-aircraft": Named("FGVCAircraft", _THREE),
    "flowers102": Named("Flowers102", _THREE),
    "food101": Named("Food101", _TRAIN_TEST),
    "gtsrb": Named("GTSRB", _TRAIN_TEST, "glyph"),
    "imagenet": Named("ImageNet", _TRAIN_VAL),
    "imagenette": Named("Imagenette", {k: {**v, "size": "320px"} for k, v in _TRAIN_VAL.items()}),
    "kmnist": Named("KMNIST", _TRAIN_FLAG, "glyph"),
    "mnist": Named("MNIST", _TRAIN_FLAG, "glyph"),
    "oxford-pets": Named("OxfordIIITPet", {"train": {"split": "trainval"}, "test": {"split": "test"}}),
    "stanford-cars": Named("StanfordCars", _TRAIN_TEST),
    "stl10": Named("STL10", _TRAIN_TEST),
    "svhn": Named("SVHN", _TRAIN_TEST, "glyph"),
}


def default_root() -> Path:
    """Where downloads go: $MOBILENETS_DATA, or a folder in the user's cache."""
    return Path(os.environ.get("MOBILENETS_DATA") or files.cache_root() / "data")


def open_named(name: str, root: Path | None) -> Data:
    """The set called `name`, from `root` if it is there, else downloaded into it. Raises `UserError`."""
    if name not in NAMED:
        if "/" in name or "." in name:
            raise UserError(f"{name}: no such folder or zip")
        raise unknown("data set", name, ["digits", *NAMED])
    entry, where = NAMED[name], root or default_root()
    parts = {split: _open(name, entry.cls, where, args) for split, args in entry.splits.items()}
    labels = _labels(next(iter(parts.values())))
    splits = {}
    for split, ds in parts.items():
        targets = np.array(_targets(ds), np.int64)
        names = [f"{name}/{split}/{i:06d}" for i in range(len(targets))]
        splits[split] = Split(split, names, targets, partial(_image, ds))
    return Data(name, labels, splits, entry.kind)


def _open(name: str, cls: str, root: Path, args: dict[str, Any]) -> Any:
    from torchvision import datasets

    make = getattr(datasets, cls)
    try:
        return make(str(root), **args)
    except (RuntimeError, FileNotFoundError) as missing:
        if "download" not in inspect.signature(make).parameters:
            raise UserError(f"{name}: not in {root}, and torchvision can't download it: {missing}") from missing
    except (OSError, ValueError) as e:
        raise UserError(f"{name}: the copy in {root} can't be read: {e}") from e
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"{name}: {root} can't be made ({e.strerror}); name a folder for it with --root") from e
    try:
        return make(str(root), download=True, **args)
    except (urllib.error.URLError, OSError, RuntimeError) as e:
        raise UserError(
            f"{name}: not in {root}, and it can't be downloaded ({e}); "
            "check the network, or name a folder that has a copy with --root"
        ) from e


def _image(ds: Any, i: int) -> Any:
    return ds[i][0]


def _labels(ds: Any) -> tuple[str, ...]:
    for attribute in ("classes", "categories"):
        if hasattr(ds, attribute):
            return tuple(c if isinstance(c, str) else c[0] for c in getattr(ds, attribute))
    return tuple(str(c) for c in range(int(max(_targets(ds))) + 1))


def _targets(ds: Any) -> list[int]:
    """Every image's class without decoding it; torchvision's sets keep them under one of these names."""
    for attribute in ("targets", "_labels", "labels", "y"):
        if hasattr(ds, attribute):
            return [int(t) for t in getattr(ds, attribute)]
    return [int(row[1]) for row in getattr(ds, "_samples", None) or ds.samples]
