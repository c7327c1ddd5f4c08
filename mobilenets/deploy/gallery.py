"""An index of vectors with names: enrolled, found, renamed, deleted, and searched for the nearest. No torch.

One file: safetensors of the vectors, and of a graph to search them by where they are many; names and images as JSON in
its metadata, and the SHA-256 of all that. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mobilenets import files
from mobilenets.errors import UserError, needed_by, unknown

SUFFIX = ".idx"
FORMAT = 1
EXACT = 10_000  # vectors: below, all are compared
KEY, SHA256 = "mobilenets.index", "sha256"
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """An enrolled image near one that was asked for: its name, itself, the cosine of the two."""

    name: str
    image: str
    cosine: float

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Index:
    """Unit vectors [N, K], each of the image `images[i]` that is called `names[i]`.

    `network`: where the network is that made them, and its `digest`.
    """

    vectors: Vectors
    names: tuple[str, ...]
    images: tuple[str, ...]
    network: str
    digest: str
    graph: bytes = field(default=b"", repr=False)

    def __len__(self) -> int:
        return len(self.names)

    def enrolled(self, vectors: Vectors, names: Sequence[str], images: Sequence[str]) -> Index:
        """With more images; one that is there already is as it is given now."""
        new = {*images}
        keep = [i for i, image in enumerate(self.images) if image not in new]
        if self.vectors.shape[1:] != vectors.shape[1:] and len(self):
            raise UserError(
                f"vectors of {vectors.shape[1]} numbers don't go with the index's, of {self.vectors.shape[1]}"
            )
        old = self.vectors[keep] if len(self) else np.empty((0, vectors.shape[1]), np.float32)
        return dataclasses.replace(
            self,
            vectors=np.concatenate([old, vectors]),
            names=(*(self.names[i] for i in keep), *names),
            images=(*(self.images[i] for i in keep), *images),
            graph=b"",
        )

    def known(self, name: str) -> list[int]:
        """Where a name's images are. Raises `UserError` for one that isn't there."""
        found = [i for i, n in enumerate(self.names) if n == name]
        if not found:
            raise unknown("name in the index", name, dict.fromkeys(self.names))
        return found

    def without(self, name: str) -> Index:
        gone = {*self.known(name)}
        keep = [i for i in range(len(self)) if i not in gone]
        names, images = (tuple(x[i] for i in keep) for x in (self.names, self.images))
        return dataclasses.replace(self, vectors=self.vectors[keep], names=names, images=images, graph=b"")

    def renamed(self, old: str, new: str) -> Index:
        self.known(old)
        if not new.strip():
            raise UserError("a name can't be empty")
        return dataclasses.replace(self, names=tuple(new if n == old else n for n in self.names))

    def search(self, vector: Vectors, count: int) -> list[Found]:
        """The `count` nearest to a unit vector [K], the nearest first. Raises `UserError`."""
        if not len(self):
            raise UserError("the index is empty: enrol images with `mobilenets index`")
        if vector.shape != self.vectors.shape[1:]:
            raise UserError(f"a vector of {len(vector)} numbers can't be sought among those of {self.vectors.shape[1]}")
        if self.graph:
            near = self._near(vector, count)
        else:
            near = np.argsort(-(self.vectors @ vector), kind="stable")[:count]
        cosines = self.vectors[near] @ vector  # a graph's own are rounded
        return [
            Found(self.names[i], self.images[i], round(float(c), 6))
            for i, c in zip(near.tolist(), cosines, strict=True)
        ]

    def _near(self, vector: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
        """The numbers of the nearest, by the graph. Raises `UserError` for one that is damaged."""
        try:
            near = np.asarray(_usearch().Index.restore(bytearray(self.graph)).search(vector, count).keys, np.int64)
        except (RuntimeError, ValueError) as e:
            raise UserError(f"the index's graph is damaged ({e}): enrol its images again") from e
        if near.size and not 0 <= near.min() <= near.max() < len(self):
            raise UserError("the index's graph is damaged: enrol its images again")
        return near

    def save(self, path: Path) -> Index:
        """Write it to `path`, whole or not at all; with a graph where there are EXACT vectors or more."""
        made = self
        if len(self) >= EXACT and not self.graph:
            graph = _usearch().Index(ndim=self.vectors.shape[1], metric="cos")
            graph.add(np.arange(len(self)), self.vectors)
            made = dataclasses.replace(self, graph=bytes(graph.save()))
        tensors = {"vectors": made.vectors}
        if made.graph:
            tensors["graph"] = np.frombuffer(made.graph, np.uint8)
        about = {
            "format": FORMAT, "names": made.names, "images": made.images, "network": made.network, "digest": made.digest
        }  # fmt: skip
        with files.atomic_file(path) as tmp:
            tmp.write_bytes(save(tensors, {KEY: json.dumps({**about, SHA256: _sha256(about, tensors)})}))
        return made

    @classmethod
    def load(cls, path: Path) -> Index:
        """The index at `path`. Raises `UserError` for one that isn't there or is damaged."""
        if not path.is_file():
            raise UserError(f"{path}: no such index")
        try:
            with safe_open(path, "numpy") as f:
                d = json.loads((f.metadata() or {})[KEY])
                if d["format"] > FORMAT:
                    raise UserError(f"{path}: written by a newer mobilenets")
                tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            digest = d.pop(SHA256, None)
            if digest is not None and digest != _sha256(d, tensors):  # files of before there was one have none
                raise ValueError("its content isn't what was written")
            vectors = tensors["vectors"]
            graph = tensors["graph"].tobytes() if "graph" in tensors else b""
            names, images = tuple(map(str, d["names"])), tuple(map(str, d["images"]))
            whole = vectors.dtype == np.float32 and vectors.ndim == 2 and np.isfinite(vectors).all()
            if not whole or not len(vectors) == len(names) == len(images):
                raise ValueError("its names aren't those of its vectors")
            return cls(vectors, names, images, str(d["network"]), str(d["digest"]), graph)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as e:
            raise UserError(f"{path}: not an index of vectors, or damaged ({e})") from e


def _sha256(about: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """Of an index's content: what is said of its vectors, and they themselves."""
    of = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        of.update(np.ascontiguousarray(tensors[name]).data)
    return of.hexdigest()


def empty(network: str, digest: str) -> Index:
    return Index(np.empty((0, 0), np.float32), (), (), network, digest)


def people(index: Index) -> dict[str, int]:
    """The images of each name."""
    out: dict[str, int] = {}
    for name in index.names:
        out[name] = out.get(name, 0) + 1
    return out


def names_of(images: Iterable[str], below: Path) -> list[str]:
    """What images are called: by the folder that each lies in, or its own name where that is `below` itself."""
    out = []
    for image in images:
        path = Path(image)
        out.append(path.stem if path.parent == below or (below.is_file() and below == path) else path.parent.name)
    return out


def _usearch() -> Any:
    with needed_by(f"an index of {EXACT:,} vectors or more"):
        return importlib.import_module("usearch.index")
