"""`mobilenets fetch`: published weights on this machine, or in a folder for one that has no network."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets import console, files
from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.console import Notebook
from mobilenets.errors import UserError
from mobilenets.model.convert import catalogue, fetched
from mobilenets.model.convert.catalogue import Published

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Fetched(Notebook):
    """Published weights, and where each lies now."""

    weights: tuple[tuple[Published, Path], ...]

    def to_json(self) -> list[dict[str, Any]]:
        return [{"name": w.name, "path": str(p), "bytes": files.size_on_disk(p)} for w, p in self.weights]

    def __rich__(self) -> RenderableType:
        t = console.table(
            console.many(len(self.weights), "network"), ["weights", "MB", "file"], left=("weights", "file")
        )
        for w, p in self.weights:
            t.add_row(w.name, console.megabytes(files.size_on_disk(p)), str(p))
        return t


@checked
def fetch(
    *names: str,
    to: StrPath | None = None,
    all_v1: bool = False,
    all_v2: bool = False,
    all_v3: bool = False,
    all_v4: bool = False,
) -> Fetched:
    """Fetch published weights: into the cache, or into a folder to carry to a machine without a network.

    What is there already isn't fetched again; what was broken off goes on. There, `--weights FOLDER`, or the
    environment variable MOBILENETS_WEIGHTS, says where it is. MOBILENETS_MIRROR and HF_ENDPOINT name mirrors; proxies
    are those of the environment.

    Parameters
    ----------
    names
        keras:v2-1.0-224, slim:..., torchvision:mobilenet_v2, timm:mobilenetv4_conv_small
        (`mobilenets list --weights` has all), or patterns of them: 'keras:v1-0.25-*'.
    to
        Folder to put them into, instead of the cache.
    all_v1
        Every width and resolution of V1, from Keras.
    all_v2
        Of V2, from Keras.
    all_v3
        Of V3, from Keras.
    all_v4
        Of V4, from timm.

    Returns
    -------
    Fetched
        `weights`: each one and its file.

    Raises
    ------
    UserError
        For a name that nobody published, an address that can't be reached (what was fetched before stays), a full disk.
    """
    families = [f"v{i}" for i, wanted in enumerate((all_v1, all_v2, all_v3, all_v4), 1) if wanted]
    asked = _asked(names, families)
    if not asked:
        raise UserError("name weights to fetch: keras:v2-1.0-224, --all-v2, ... (mobilenets list --weights has all)")
    return Fetched(tuple((w, fetched.fetch(w, as_path(to))) for w in asked))


def _asked(names: Sequence[str], families: Sequence[str]) -> list[Published]:
    known = catalogue.weights()
    found: dict[str, Published] = {}
    for name in names:
        matching = [known[n] for n in fnmatch.filter(known, name)]
        for w in matching or [catalogue.find(name)]:
            found[w.name] = w
    for family in families:
        by = "timm" if family == "v4" else "keras"
        found |= {w.name: w for w in known.values() if w.publisher == by and w.arch.startswith(family)}
    return list(found.values())
