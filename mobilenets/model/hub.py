"""Bundles on the Hugging Face Hub, `hf://user/name@revision`: fetched once for each commit, and kept. No torch."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from mobilenets import console, files, web
from mobilenets.arguments import StrPath
from mobilenets.errors import UserError
from mobilenets.model.card import Card
from mobilenets.model.encodings import tensor_shapes

SCHEME = "hf:/"  # what Path leaves of hf://
CARD, WEIGHTS = "card.json", "weights.safetensors"  # a bundle: of all that a repository may hold, what is fetched
MAIN = "main"
CARD_MOST, WEIGHTS_MOST, ANSWER_MOST = 4 << 20, 2 << 30, 4 << 20  # bytes
_NAME = r"[A-Za-z0-9_][\w.-]{0,95}"
_ADDRESS = re.compile(rf"hf:/+({_NAME}/{_NAME})(?:@([\w./-]{{1,200}}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Address:
    """A repository of the Hub, "user/name", and a branch, tag or commit of it."""

    repository: str
    revision: str = MAIN

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision != MAIN else "")


def is_address(path: StrPath) -> bool:
    return Path(path).as_posix().startswith(SCHEME)


def parse(path: StrPath) -> Address:
    """The address that `path` is. Raises `UserError`."""
    found = _ADDRESS.fullmatch(Path(path).as_posix())
    if not found or ".." in found[0]:
        raise UserError(
            f"{Path(path).as_posix().replace(SCHEME, 'hf://', 1)}: not an address of the Hub: hf://user/name, or "
            "hf://user/name@revision"
        )
    return Address(found[1], found[2] or MAIN)


def fetched(path: StrPath, verify: Callable[[Path], object]) -> Path:
    """The folder of the bundle at an address, on this machine: its newest commit, or the last that was had, offline.

    `verify` raises `UserError` for a folder that isn't a sound bundle: it isn't kept. HF_ENDPOINT and HF_TOKEN are
    respected, and HF_HUB_OFFLINE. Raises `UserError`.
    """
    address = parse(path)
    folder = files.cache_root() / "hub" / address.repository
    ref = folder / "refs" / quote(address.revision, safe="")
    if _COMMIT.fullmatch(address.revision) and (folder / address.revision).is_dir():
        return folder / address.revision
    last = ref.read_text(encoding="ascii", errors="replace") if ref.is_file() else ""
    kept = folder / last if _COMMIT.fullmatch(last) and (folder / last).is_dir() else None
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise web.Unreachable("HF_HUB_OFFLINE is set")
        commit = _commit(address, 1 if kept else None)
        if not (folder / commit).is_dir():
            _fetch(address, commit, folder / commit, verify)
    except web.Refused as e:
        raise UserError(f"{address}: no such bundle on the Hub, or a private one, which takes HF_TOKEN ({e})") from e
    except web.Unreachable as e:
        if kept:
            console.note(f"{address}: the Hub can't be reached; commit {last[:12]} is taken, the last that was fetched")
            return kept
        raise UserError(
            f"{address} can't be fetched ({e}); on a machine without a network, bring its {CARD} and {WEIGHTS} in a "
            "folder, which is the bundle"
        ) from e
    with files.atomic_file(ref) as tmp:
        files.write_text(tmp, commit)
    return folder / commit


def _commit(address: Address, attempts: int | None) -> str:
    """The commit that a revision is now."""
    where = _url(f"api/models/{address.repository}/revision/{quote(address.revision, safe='')}")
    try:
        found = files.parse_json(web.read(where, ANSWER_MOST, _token(where), attempts))
        commit = found["sha"] if isinstance(found, dict) else None
    except (ValueError, KeyError):
        commit = None
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise UserError(f"{where}: the server's answer can't be understood; is HF_ENDPOINT, if it is set, a Hub?")
    return commit


def _fetch(address: Address, commit: str, own: Path, verify: Callable[[Path], object]) -> None:
    try:
        with files.atomic_dir(own) as tmp:
            for name in (CARD, WEIGHTS):
                where = _url(f"{address.repository}/resolve/{commit}/{name}")
                most = CARD_MOST if name == CARD else _most(address, tmp / CARD)
                with console.downloading(f"{address} {name}") as told:
                    web.download(where, tmp / name, most, told, _token(where))
            with _said_of(address, tmp):
                verify(tmp)
    except OSError:
        if not own.is_dir():  # else another process has it by now
            raise


def _most(address: Address, card: Path) -> int:
    """Bytes that the weights of a card can have, their names included."""
    with _said_of(address, card.parent):
        shapes = tensor_shapes(files.read_object(card, Card.from_json, "a bundle"))
    return min(8 * sum(map(math.prod, shapes.values())) + 1000 * len(shapes) + 4096, WEIGHTS_MOST)


@contextlib.contextmanager
def _said_of(address: Address, folder: Path) -> Iterator[None]:
    """Have a `UserError` about what lies in `folder` for a moment say where it came from."""
    try:
        yield
    except UserError as e:
        raise UserError(f"{address}: {str(e).replace(str(folder), '').lstrip('/: ')}") from e


def _url(path: str) -> str:
    from mobilenets.model.convert import catalogue

    return catalogue.mirrored(f"{catalogue.HUB}/{path}")


def _token(url: str) -> str:
    """The user's, for the Hub and what HF_ENDPOINT names; no other mirror is given it."""
    from mobilenets.model.convert import catalogue

    own = url.startswith((os.environ.get("HF_ENDPOINT") or catalogue.HUB).rstrip("/") + "/")
    return os.environ.get("HF_TOKEN", "").strip() if own else ""
