"""Any network that gives a vector for an image, behind one interface: ours for embeddings or features, or another's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.arch.heads import FEATURES
from mobilenets.data.alignment import Faces, Located, Template, placed, sought, template_of
from mobilenets.deploy import engines, inputs, predict
from mobilenets.deploy.foreign import Foreign, ForeignNetwork
from mobilenets.deploy.inputs import Source
from mobilenets.deploy.predict import Answering
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, identity, is_bundle
from mobilenets.model.images import BadImage, Pixels, Preprocess, open_rgb
from mobilenets.tasks import features
from mobilenets.tasks.embed.scores import VECTOR

Vector = npt.NDArray[np.float32]  # [K], of length 1


@dataclass(frozen=True)
class Embedder:
    """`network` gives vectors by the name `output` for images of `preprocess`, aligned to `template` if that is one.

    `threshold`: the cosine from which on two images are taken for the same, None where nobody knows.
    """

    network: Answering
    output: str
    preprocess: Preprocess
    digest: str
    template: Template | None = None
    threshold: float | None = None

    def read(self, source: Source, where: Located | None) -> Pixels:
        """An image as the network takes it. Raises `BadImage`."""
        content = inputs.content(source)
        if where is None or self.template is None:
            return self.preprocess.read(content, source.name)
        return self.preprocess.fit(placed(open_rgb(content, source.name), source.name, where, self.template))

    def stream(
        self, images: Iterable[Source], faces: Faces | None = None
    ) -> Iterator[tuple[Source, Vector | BadImage]]:
        """Each image with its vector, or why it has none; one after another. Raises `UserError`."""
        where = sought(faces, self.template, "the network")
        for source, said in predict.stream(self.network, images, lambda s: self.read(s, where)):
            yield source, said if isinstance(said, BadImage) else unit(said[self.output].reshape(-1))

    def of(self, images: Sequence[Path], faces: Faces | None = None) -> list[Vector]:
        """The vector of each image. Raises `UserError`."""
        several = next((p for p in images if len([*itertools.islice(inputs.sources([p]), 2)]) != 1), None)
        if several is not None:
            raise UserError(f"{several}: one image is needed, not a folder or an archive of them")
        found = []
        for _, said in self.stream(inputs.sources(images), faces):
            if isinstance(said, BadImage):
                raise said
            found.append(said)
        return found


def unit(vector: Vector) -> Vector:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12), np.float32)


def open_embedder(path: Path, foreign: Foreign | None = None, threads: int = 1) -> Embedder:
    """The network at `path`: a run, a bundle, a file, or another's ONNX file, of which `foreign` says what it takes.

    Of a classifier's bundle, its pooled features. Raises `UserError`.
    """
    if foreign is not None and foreign.given:
        theirs = ForeignNetwork(path, foreign, threads)
        return Embedder(theirs, VECTOR, theirs.preprocess, theirs.digest, theirs.template)
    found = engines.resolve(path)
    if is_bundle(found) and Bundle.load(found).card.task not in ("embed", features.TASK.name):
        seen = features.of_bundle(Bundle.load(found))
        return _of_engine(engines.module("torch").TorchEngine(seen, threads), identity(found), path)
    digest = identity(found) if found.is_file() or is_bundle(found) else ""
    return _of_engine(engines.load(found, threads), digest, path)


def _of_engine(engine: engines.Engine, digest: str, path: Path) -> Embedder:
    card: Any = engine.card
    for output in (VECTOR, FEATURES):
        shape = card.outputs.get(output, ())
        if len(shape) == 1:
            threshold = card.config.get("threshold")
            known = isinstance(threshold, float) and -1 <= threshold <= 1
            return Embedder(engine, output, card.preprocess, digest, template_of(card), threshold if known else None)
    raise UserError(
        f"{path} gives {', '.join(card.outputs)}, no vectors: a network of --task embed does, and a classifier's "
        "bundle or a file that was exported with --task features"
    )
