"""Small networks to update, and an update of them: what tests of updates share."""

import dataclasses
import shutil

import numpy as np

from mobilenets.arch.rows import Conv, Separable
from mobilenets.arch.spec import Arch
from mobilenets.deploy.update import package
from mobilenets.deploy.update.apply import apply
from mobilenets.deploy.update.contents import Contents
from mobilenets.deploy.update.installed import Installation
from mobilenets.deploy.update.make import make
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import classifier_card
from mobilenets.model.images import Preprocess

LABELS = ("cat", "dog", "frog")
OLD, NEW = "old", "new"


def card(labels=LABELS, width=16, first=8):
    arch = Arch("small", 1.0, 32, len(labels), (Conv(first, stride=2), Separable(width, stride=2)), activation="relu6")
    return classifier_card(arch, Preprocess(32), labels)


def small(labels=LABELS, precision="float32", width=16):
    return with_random_weights(card(labels, width), precision)


def tuned(bundle, by=0.01, seed=0, only=""):
    """The same network after a little training: of all float tensors, or of those whose names begin with `only`."""
    rng = np.random.default_rng(seed)
    tensors = {
        k: t + rng.normal(0, by, t.shape).astype(t.dtype)
        if t.dtype.kind == "f" and t.ndim and k.startswith(only)
        else t
        for k, t in bundle.tensors.items()
    }
    return Bundle(dataclasses.replace(bundle.card, parent=f"{seed}"), tensors)


def saved(folder, suffix="", old=None, new=None):
    """Two networks in a folder, as their paths."""
    old = old or small()
    paths = folder / f"{OLD}{suffix}", folder / f"{NEW}{suffix}"
    for path, bundle in zip(paths, (old, new or tuned(old, only="classifier")), strict=True):
        bundle.save(path)
    return paths


def update(old, new, out, **options):
    return make(Contents.read(old), Contents.read(new), out, **options)


def install(path, to):
    """A copy of a network where it can be updated."""
    if path.is_dir():
        shutil.copytree(path, to)
    else:
        shutil.copyfile(path, to)
    return to


def applied(installed, file, key=None, **options):
    place = Installation(installed)
    made = package.read(file)
    with place.alone():
        return apply(place, made, key, **options)


def digest(path):
    return Bundle.load(path).digest
