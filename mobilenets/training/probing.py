"""A pretrained network with the head that fits the data best, nothing else of it changed: where fine-tuning begins.

What the body sees of the images is computed once, by ONNX Runtime, and kept by the weights' digest and the images'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import console, files
from mobilenets.arch.heads import FEATURES
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data, Split, cache_side
from mobilenets.deploy import engines, evaluate, predict
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Metric
from mobilenets.model.encodings import tensor_shapes
from mobilenets.model.images import BadImage, Preprocess
from mobilenets.tasks import features
from mobilenets.tasks.linear import Probe
from mobilenets.tasks.task import Task

IMAGES = 2000  # of the training images: more change a probe's accuracy by less than a point
KEPT = 64  # files of features in the cache
BATCH = 8
FOLDER = "features"


@dataclass(frozen=True)
class Headed:
    """A start: the `bundle` answers for the data's classes; the `probe` is its head, fitted to `count` images."""

    bundle: Bundle
    probe: Probe


def with_head(start: Bundle, arch: Arch, data: Data, task: Task, seed: int, balanced: bool = False) -> Headed | None:
    """`start` as `arch` (see `trainer.initial_arch`), with the task's own head fitted to the training images.

    None where the task's own part is no linear layer. Raises `UserError`.
    """
    if arch.classifies == "map":
        return None
    config = task.config(data)
    body = features.of_bundle(_resized(start.dense(), arch))
    seen, targets = seen_of(body, data.split("train"), data.seed)
    probe = task.probe(seen, targets, config, seed, balanced)
    if probe is None:
        return None
    arch = task.arch(arch, config)
    head = task.head(arch, config)
    card = Card(
        arch=arch,
        preprocess=body.card.preprocess,
        head=head,
        task=task.name,
        config=config,
        recipe={"probe_of": start.card.arch.title, "penalty": probe.penalty, "images": len(targets), "seed": seed},
        data=data.describe(),
        parent=start.digest or None,
        licence=start.card.licence,
    )
    own = {f"{head.own[0]}.weight": probe.weight, f"{head.own[0]}.bias": probe.bias}
    tensors = {**body.tensors, **own}
    return Headed(Bundle(card, {name: tensors[name] for name in tensor_shapes(card)}), probe)


def scored(bundle: Bundle, data: Data, task: Task) -> Bundle:
    """A bundle with its score on val on its card."""
    assert task.primary is not None
    with _loaded(bundle) as engine:
        found = evaluate.score(engine, data, "val")
    spec = task.primary
    metric = Metric(spec.name, round(found.value, 4), data.source, "val", found.count, spec.unit, spec.higher_is_better)
    return Bundle(bundle.card.replace(metrics=(metric,)), bundle.tensors)


@contextlib.contextmanager
def _loaded(bundle: Bundle) -> Iterator[engines.Engine]:
    """A bundle in ONNX Runtime, several times as fast as PyTorch in evaluating it."""
    module = engines.module("onnxruntime")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / engines.file_name("onnxruntime", "float32")
        module.write(bundle, path, None)
        yield module.load(path, 1)


def _resized(start: Bundle, arch: Arch) -> Bundle:
    """The same weights for images of the arch's size."""
    preprocess = dataclasses.replace(start.card.preprocess, resolution=arch.resolution, size=arch.size)
    sized = start.card.arch.replace(resolution=arch.resolution, size=arch.size)
    return Bundle(start.card.replace(arch=sized, preprocess=preprocess), start.tensors, start.digest)


def seen_of(body: Bundle, split: Split, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The features [N, K] that a body has of up to IMAGES of a split's images, and their targets [N].

    Damaged images are left out. Raises `UserError`.
    """
    n = len(split)  # in shards, they lie in random order already, and near ones can be read without the others
    order = np.arange(n) if split.shards else np.random.default_rng(seed).permutation(n)
    some = split.subset(order[:IMAGES])
    side = cache_side(max(body.card.preprocess.input_size))
    kept = files.cache_root() / FOLDER / f"{_key(body, some, side)}.npz"
    found = _read(kept, len(some))
    if found is None:
        found = _computed(body, some, side)
        _keep(kept, *found)
    seen, index = found
    if len(index) < 2:
        raise UserError(f"{len(index)} readable training images are too few to fit a classifier to")
    if not np.isfinite(seen).all():
        raise UserError(f"{body.card.arch.title}: gives values that aren't finite; its pretrained weights are damaged")
    return seen, some.targets[index]


def _computed(body: Bundle, split: Split, side: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Features [M, K], and the places of their images among the split's."""
    seen, index = [], []
    preprocess = body.card.preprocess
    with _loaded(body) as engine, console.progress() as bar:
        task = bar.add_task(f"what {body.card.arch.title} sees", total=len(split), status="")
        read = _Read(split, preprocess, side)
        for i, outputs in predict.stream(engine, range(len(split)), read, BATCH):
            bar.advance(task)
            if not isinstance(outputs, BadImage):
                seen.append(outputs[FEATURES].reshape(-1))
                index.append(i)
    return np.stack(seen) if seen else np.empty((0, 0), np.float32), np.array(index, np.int64)


@dataclass(frozen=True)
class _Read:
    """Image i as the network takes it, from the copy in memory that training has, where there is one."""

    split: Split
    preprocess: Preprocess
    side: int

    def __call__(self, i: int) -> npt.NDArray[np.uint8]:
        return self.preprocess.fit(Image.fromarray(self.split.cached(i, self.side)))


def _key(body: Bundle, split: Split, side: int) -> str:
    """What the features depend on, as a digest: the weights, the preprocessing and the pixels."""
    digest = hashlib.blake2b(repr((body.card.preprocess, body.card.arch.digest)).encode(), digest_size=16)
    for name in sorted(body.tensors):
        digest.update(np.ascontiguousarray(body.tensors[name]).tobytes())
    for i in range(len(split)):
        try:
            digest.update(hashlib.blake2b(split.cached(i, side).tobytes(), digest_size=16).digest())
        except BadImage:
            digest.update(b"damaged")
    return digest.hexdigest()


def _read(path: Path, count: int) -> tuple[Any, Any] | None:
    if not path.exists():
        return None
    try:
        with path.open("rb") as f, np.load(f, allow_pickle=False) as kept:
            seen, index = kept["features"], kept["index"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # computed again
        return None
    fine = seen.ndim == 2 and index.ndim == 1 and len(seen) == len(index) <= count and index.max(initial=0) < count
    return (seen, index) if fine else None


def _keep(path: Path, seen: npt.NDArray[np.float32], index: npt.NDArray[np.int64]) -> None:
    with contextlib.suppress(UserError), files.atomic_file(path) as tmp, tmp.open("wb") as f:  # a full disk's
        np.savez(f, features=seen, index=index)
    old = sorted(path.parent.glob("*.npz"), key=lambda p: p.stat().st_mtime)[:-KEPT]
    for p in old:
        p.unlink(missing_ok=True)
