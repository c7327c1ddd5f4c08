"""Published weights on this machine: fetched once into the cache, or where their library keeps them. No torch."""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mobilenets import console, files, web
from mobilenets.errors import UserError
from mobilenets.model.convert import catalogue
from mobilenets.model.convert.catalogue import Published
from mobilenets.model.convert.formats import one_line

SHA256 = ".sha256"
ARCHIVE = 25  # times the weights' size at most: training's own numbers are in TF-slim's archives
FILE, MORE = 2, 4 << 20  # times, and bytes, at most, of any other file
CHECKPOINT = re.compile(r"(?P<stem>.+)\.(index|data-00000-of-00001)")


def located(entry: Published, folder: Path | None = None) -> Path | None:
    """Where its tensors are on this machine, unchecked; None where they aren't.

    Looked for in `folder`, in $MOBILENETS_WEIGHTS, in the cache, and where the library that publishes them keeps them.
    """
    brought = [folder, *([Path(os.environ["MOBILENETS_WEIGHTS"])] if os.environ.get("MOBILENETS_WEIGHTS") else [])]
    for own in (*(_own(entry, f) for f in brought if f), _own(entry)):
        if own.exists():
            return own
    file = catalogue.file_name(entry.files[0])
    flat = (f / file for f in brought if f and len(entry.files) == 1)  # as its publisher's site gives it
    return next((p for p in (*flat, *_others(entry)) if p.is_file()), None)


def cached(entry: Published, folder: Path | None = None) -> Path | None:
    """As `located`; raises `UserError` for a copy that has changed since it was fetched."""
    found = located(entry, folder)
    if found:
        _check_digest(found)
    return found


def fetch(entry: Published, folder: Path | None = None) -> Path:
    """Its tensors in the cache, or in `folder`: as they are there, or from the web. Raises `UserError`."""
    own = _own(entry, folder)
    if found := (cached(entry) if folder is None else own if own.exists() else None):
        return found
    archive = entry.publisher == "slim"
    most = (ARCHIVE if archive else FILE) * entry.size + MORE
    beside = [*entry.files[1:]]
    try:
        for address in (*beside, entry.files[0]):  # what says how they are used first: the tensors are found without
            path = own.with_name(catalogue.file_name(address))
            with console.downloading(f"{entry.name} {path.name}") as told:
                web.download(catalogue.mirrored(address), path, most if address == entry.files[0] else MORE, told)
    except web.Unreachable as e:
        raise UserError(
            f"{entry.name} can't be fetched ({e}). On a machine that has no network, bring the file from one that has: "
            f"`mobilenets fetch {entry.name} --to weights/` there, `--weights weights/` here"
        ) from e
    if archive:
        path = _unpacked(path, own)
    _check(entry, path)
    files.write_text(path.with_name(path.name + SHA256), files.sha256(path) + "\n")
    return path


def _own(entry: Published, folder: Path | None = None) -> Path:
    """Where its tensors are kept: a file by its published name; a folder for what comes in several."""
    root = (folder or files.cache_root() / "weights") / entry.publisher
    file = catalogue.file_name(entry.files[0])
    if entry.publisher == "slim":
        return root / f"{PurePosixPath(file).stem}.index"
    return root / entry.name.partition(":")[2] / file if len(entry.files) > 1 else root / file


def _others(entry: Published) -> Iterator[Path]:
    """Where the libraries themselves keep it."""
    home, file = Path.home(), catalogue.file_name(entry.files[0])
    caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    if entry.publisher == "torchvision":
        yield Path(os.environ.get("TORCH_HOME") or caches / "torch") / "hub" / "checkpoints" / file
    elif entry.publisher == "keras":
        yield Path(os.environ.get("KERAS_HOME") or home / ".keras") / "models" / file
    elif entry.publisher == "timm":
        hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or caches / "huggingface") / "hub"
        snapshots = Path(hub) / f"models--timm--{entry.name.partition(':')[2]}" / "snapshots"
        yield from sorted(snapshots.glob(f"*/{file}"))


def _check_digest(path: Path) -> None:
    kept = path.with_name(path.name + SHA256)
    if kept.exists() and kept.read_text(encoding="ascii", errors="replace").strip() != files.sha256(path):
        raise UserError(f"{path}: changed since it was fetched; remove it, and it is fetched again")


def _check(entry: Published, path: Path) -> None:
    """Remove what isn't what was published, as far as that is known. Raises `UserError`."""
    data = path.read_bytes()
    digest = re.fullmatch(r".+-([0-9a-f]{8,})\.pth", path.name)
    reason = ""
    if entry.publisher != "slim" and len(data) < entry.size:
        reason = f"it has {len(data):,} bytes, its weights alone {entry.size:,}"
    elif entry.md5 and hashlib.md5(data, usedforsecurity=False).hexdigest() != entry.md5:
        reason = "its MD5 isn't the published one"
    elif digest and not hashlib.sha256(data).hexdigest().startswith(digest[1]):
        reason = "its SHA-256 isn't the one in its name"
    if reason:
        path.unlink()
        raise UserError(f"{entry.files[0]}: not the published file ({reason}); try again, or another mirror")


def _unpacked(archive: Path, own: Path) -> Path:
    """The checkpoint in an archive of TF-slim's, beside it and under its name; the archive goes. Raises `UserError`."""
    try:
        with tarfile.open(archive) as tar:
            members = [m for m in tar.getmembers() if m.isfile() and CHECKPOINT.fullmatch(PurePosixPath(m.name).name)]
            stems = sorted({m.name.rpartition(".")[0] for m in members}, key=lambda s: ("/ema/" not in f"/{s}", s))
            chosen = [m for m in members if stems and m.name.rpartition(".")[0] == stems[0]]
            if len(chosen) != 2:
                raise UserError(f"{archive.name}: no checkpoint in it")
            for m in sorted(chosen, key=lambda m: m.name.endswith(".index")):  # the index last: it is what is found
                content = tar.extractfile(m)
                assert content is not None
                with files.atomic_file(own.with_suffix(PurePosixPath(m.name).suffix)) as tmp, tmp.open("wb") as out:
                    while chunk := content.read(1 << 20):
                        out.write(chunk)
    except (tarfile.TarError, EOFError, OSError) as e:
        raise UserError(f"{archive}: a damaged archive ({one_line(e)}); remove it, and it is fetched again") from e
    archive.unlink()
    return own
