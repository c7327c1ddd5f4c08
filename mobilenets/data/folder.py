"""A folder or a zip of class folders, read as data. No torch."""

from __future__ import annotations

import bz2
import copy
import os
import re
import struct
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mobilenets.arch.fields import is_text
from mobilenets.console import many
from mobilenets.data import identity
from mobilenets.data.dataset import Data, Keyed, Split
from mobilenets.data.doubts import class_of, classes_in_names, doubts
from mobilenets.data.labelling import CLASSES, SEPARATOR, Labelling
from mobilenets.data.listing import Listing
from mobilenets.data.source import Reading
from mobilenets.errors import UserError
from mobilenets.model.images import MAX_PIXELS, SUFFIXES, TIMES, UNREADABLE, BadImage

# What a folder of a split is called, as a word of its name: "Training", "test_set", "seg_train".
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SMALL = 16 << 20  # bytes that a zip's member may unpack to, however few it takes in the zip
MOST_UNPACKED = 4 * MAX_PIXELS  # bytes, of any member
# Folders that systems and disk stations put among one's own: copies of metadata, thumbnails, what was deleted.
SYSTEMS = {"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
TABLES = (".csv", ".tsv", ".jsonl")  # of text
LIST = ".txt"  # as CelebA's list_attr_celeba.txt
NOTES = (".json", ".xml", ".yaml", ".yml")  # what boxes are annotated in
HEAD = 256 << 10  # bytes of an image in which its size stands, but of a few kinds
PLAIN = Reading()
NAMED = 5  # files or folders named in a line of what was found


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, is none of the user's: .git, .Trash, thumbnails, a zip's __MACOSX."""
    return any((part.startswith(".") and part != ".") or part in SYSTEMS for part in name.split("/"))


def is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def slashed(member: str) -> str:
    """A zip's member's name with slashes, which all have by the format; some of Windows's tools write backslashes."""
    return member.replace("\\", "/")


def list_folder(path: Path) -> Listing:
    names, folders = [], []
    for here, subdirs, inside in os.walk(path, followlinks=True):
        subdirs[:] = sorted(d for d in subdirs if not is_hidden(d))
        rel = Path(here).relative_to(path).as_posix()
        folders.append(rel)
        names += [f"{rel}/{n}".removeprefix("./") for n in sorted(inside)]
    return _listing(names, folders[1:], path.joinpath, lambda name: _size(path / name), path.joinpath)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere: the check of the images says so
        return 0


def list_zip(path: Path) -> Listing:
    """Raises `UserError` for a file that is no zip."""
    try:
        with open_zip(path) as z:
            members = {slashed(m.filename): m for m in z.infolist()}
    except UserError as e:
        raise UserError(f"{path}: not a folder, nor a readable zip of class folders ({e.__cause__})") from e
    names = sorted(members)
    read = _Zip(path, {n: m.filename for n, m in members.items()})
    folders = sorted({n.rstrip("/") for n in names if n.endswith("/") and not is_hidden(n)})
    return _listing(names, folders, read, lambda name: members[name].file_size, read.head)


class _Zip:
    """Reads members by their names with slashes, from any thread and process."""

    def __init__(self, path: Path, members: dict[str, str]) -> None:
        self.path, self.members = path, members
        self.local = threading.local()  # a ZipFile is not for several threads at once: one each

    def __call__(self, name: str) -> bytes:
        return read_member(self._zip(name), self.members[name], name)

    def head(self, name: str) -> bytes:
        """The first bytes of a member, without the rest being unpacked; `BadImage` if they can't be."""
        z = self._zip(name)
        info = z.getinfo(self.members[name])
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others unpack more than is asked for
            return self(name)
        try:
            with z.open(info) as f:
                return f.read(HEAD)
        except Exception as e:  # damaged zips raise many types
            raise BadImage(f"{name}: can't be read from the zip ({e})") from e

    def _zip(self, name: str) -> zipfile.ZipFile:
        if getattr(self.local, "pid", None) != os.getpid():  # nor for a forked worker
            self.local.zip, self.local.pid = zipfile.ZipFile(self.path), os.getpid()
        if name not in self.members:
            raise BadImage(f"{name}: no such file in the zip")
        opened: zipfile.ZipFile = self.local.zip
        return opened

    def __reduce__(self) -> tuple[type[_Zip], tuple[Path, dict[str, str]]]:
        return _Zip, (self.path, self.members)


def _listing(
    names: Iterable[str],
    folders: list[str],
    read: Callable[[str], Path | bytes],
    size: Callable[[str], int],
    head: Callable[[str], Path | bytes],
) -> Listing:
    seen = [n for n in names if not is_hidden(n)]
    unreadable = [n for n in seen if n.lower().endswith(UNREADABLE)]
    tables = tuple(n for n in seen if n.lower().endswith(TABLES))
    texts = tuple(n for n in seen if n.lower().endswith(LIST))
    notes = tuple(n for n in seen if n.lower().endswith(NOTES))
    return Listing([n for n in seen if is_image_name(n)], folders, unreadable, read, size, head, tables, texts, notes)


def open_zip(path: Path) -> zipfile.ZipFile:
    """The zip at `path`. Raises `UserError` for a file that is none, or a damaged one."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, struct.error) as e:
        raise UserError(f"{path}: not a readable zip ({e})") from e


def read_member(z: zipfile.ZipFile, member: str, name: str) -> bytes:
    """A zip's member, as far as an image can need; `BadImage`, calling it `name`, if it can't be unpacked."""
    try:
        info = z.getinfo(member)
        if info.file_size > min(MOST_UNPACKED, max(SMALL, TIMES * info.compress_size)):
            sizes = f"{info.compress_size:,} bytes that unpack to {info.file_size:,}"
            raise BadImage(f"{name}: not read from the zip: {sizes}, more than an image's can")
        if info.compress_type == zipfile.ZIP_BZIP2:
            return _bzip2(z, info)
        # No more than the directory says; of LZMA, zipfile unpacks all that it has read, so that has to be little.
        step = 4096 if info.compress_type == zipfile.ZIP_LZMA else info.file_size
        with z.open(info) as f:
            return b"".join(iter(lambda: f.read(step), b""))
    except BadImage:
        raise
    except Exception as e:  # damaged zips raise many types, from zlib's to NotImplementedError
        raise BadImage(f"{name}: can't be read from the zip ({e})") from e


def _bzip2(z: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A member packed by bzip2, of which zipfile would unpack 4 GB from 4 KB, whatever the directory says."""
    packed = copy.copy(info)
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, info.compress_size
    del packed.CRC  # which is of what it unpacks to
    with z.open(packed) as f:
        unpacked = bz2.BZ2Decompressor().decompress(f.read(), info.file_size + 1)
    if len(unpacked) != info.file_size or zlib.crc32(unpacked) != info.CRC:
        raise zipfile.BadZipFile("damaged")
    return unpacked


def split_of(folder: str) -> str | None:
    """The split that a folder's name speaks of: "train" of "Training", "seg_train", "train_set"; None of most."""
    found = {SPLITS[w] for w in re.split(r"[^a-z]+", folder.lower()) if w in SPLITS}
    return found.pop() if len(found) == 1 else None


@dataclass
class _Layout:
    """How a folder is laid out: `depth` folders that hold all, then perhaps splits, then classes.

    `splits`: by a folder's name, its split; empty where there are none. `left_out`: folders beside the splits.
    """

    depth: int
    splits: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def _deeper(by_class: Mapping[str, Sequence[str]]) -> str:
    """A line where all images lie in folders of their class's folder, which may be classes themselves; else empty."""
    inside = {c: sorted({f.split("/")[0] for f in files if "/" in f}) for c, files in by_class.items()}
    if not inside or not all(all("/" in f for f in files) and len(inside[c]) > 1 for c, files in by_class.items()):
        return ""
    c = next(iter(inside))
    return f"all images lie in folders of their class's, as {c}/{inside[c][0]}: --levels 2 makes those the classes"


def _layout(source: str, files: list[str], levels: int = 1) -> _Layout:
    """Raises `UserError` where folders look like splits, but for their names."""
    depth = 0
    while len({f.split("/")[depth] for f in files}) == 1 and all(f.count("/") > depth + levels for f in files):
        if split_of(files[0].split("/")[depth]) == "train":
            break
        depth += 1
    inside: dict[str, set[str]] = {}  # of each folder here, the folders in it that hold images
    for f in files:
        if f.count("/") > depth:
            parts = f.split("/")
            inside.setdefault(parts[depth], set()).update(parts[depth + 1 : -1][:1])
    named = {top: split for top in inside if (split := split_of(top)) and inside[top]}
    trained = {c for top, split in named.items() if split == "train" for c in inside[top]}
    others = [top for top in inside if top not in named]
    held_out = [top for top, split in named.items() if split != "train" and inside[top] & trained]
    if trained and (held_out or not any(inside[top] or split_of(top) is None for top in others)):
        strange = [top for top in others if inside[top] & trained]
        if strange:
            raise UserError(
                f"{source}: {strange[0]} holds the same folders as {_first(named, 'train')}, so it looks like a split "
                "too: call it train, val or test, or move it elsewhere"
            )
        return _Layout(depth, named, sorted(others))
    shared = set.intersection(*inside.values()) if len(inside) > 1 else set()
    if levels == 1 and len(shared) > 1 and all(len(c) == len(shared) for c in inside.values()):
        raise UserError(
            f"{source}: {', '.join(sorted(inside)[:NAMED])} hold folders of the same names ({_some(shared)}), so they "
            "look like splits: call them train and val (or test)"
        )
    return _Layout(depth)


def _first(named: dict[str, str], split: str) -> str:
    return next(top for top, s in named.items() if s == split)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def from_listing(source: str, listing: Listing, reading: Reading = PLAIN, labelling: Labelling = CLASSES) -> Data:
    """[outer/][split/]class/... -> Data, with what was left out; or .../class_12.jpg, or of several levels of folders.

    Raises `UserError` where there are no images, or splits can't be told from classes.
    """
    files = listing.files
    if not files:
        expected = unreadable(listing.unreadable) or "expected a folder of images for each class"
        raise UserError(f"{source}: no images; {expected}")
    by_name, levels = reading.class_from_name, reading.levels or 1
    if by_name and levels > 1:
        raise UserError(f"{source}: classes are in names or in --levels of folders, not in both")
    layout = _Layout(0) if by_name else _layout(source, files, levels)
    at = layout.depth + bool(layout.splits)
    found: dict[str, list[tuple[str, str]]] = {}
    loose: list[str] = []
    for f in files:
        parts = f.split("/")
        if by_name:
            if c := class_of(f):
                found.setdefault("train", []).append((f, c))
            else:
                loose.append(f)
            continue
        if layout.splits and parts[layout.depth] not in layout.splits:
            continue
        if len(parts) > at + levels:
            split = layout.splits[parts[layout.depth]] if layout.splits else "train"
            found.setdefault(split, []).append((f, SEPARATOR.join(parts[at : at + levels])))
        elif labelling.loose and len(parts) > at:
            split = layout.splits[parts[layout.depth]] if layout.splits else "train"
            found.setdefault(split, []).append((f, ""))
        else:
            loose.append(f)
    folders = sorted({c for rows in found.values() for _, c in rows})
    for c in folders:
        if not is_text(c):
            what = "that isn't UTF-8" if c.encode(errors="ignore").decode() != c else "with control characters"
            raise UserError(f"{source}: the class folder {c!a} has a name {what}: rename it")
    known = {*folders}
    parts_of = [(d, d.split("/")) for d in listing.folders if not by_name]
    there = {
        SEPARATOR.join(p[at : at + levels]) for _, p in parts_of
        if len(p) >= at + levels and (not layout.splits or p[layout.depth] in layout.splits)
    }  # fmt: skip
    empty = sorted(there - known)
    said = {name: labelling.in_folders(source, listing, rows) for name, rows in found.items()}
    labels, encode = labelling.targets(source, {what for rows in said.values() for _, what in rows})
    splits, read = {}, listing.read
    for name in ("train", "val", "test"):
        if rows := said.get(name):
            names = [f for f, _ in rows]
            targets = encode([what for _, what in rows])
            marks = identity.marks(names, [listing.size(f) for f in names])
            strata = labelling.strata(targets)
            splits[name] = Split(name, names, targets, Keyed(read, names), marks=marks, strata=strata)
    left_out = [f"{_some(layout.left_out)}: not a split, left out"] if layout.left_out else []
    if loose:
        of = "in no class's folder" if levels == 1 else f"in fewer than {levels} folders"
        where = "whose name says no class" if by_name else of
        left_out.append(f"{many(len(loose), 'image')} {where}, left out: {_some(loose)}")
    by_class: dict[str, list[str]] = {}
    for f in listing.unreadable:
        inside = f.count("/") >= at + levels
        by_class.setdefault(SEPARATOR.join(f.split("/")[at : at + levels]) if inside else "", []).append(f)
    left_out += [unreadable(fs, f"{c}: " if c else "") for c, fs in sorted(by_class.items())]
    unread = tuple(c for c in sorted(by_class) if c in empty)
    if len(labels) < labelling.least and not by_name and (named := classes_in_names(files)):
        raise UserError(
            f"{source}: no folders of classes, but {len(named)} of them in the files' names, as {_some(named)}: "
            "--class-from-name takes them from there"
        )
    below: dict[str, list[str]] = {}  # of each class, its files, from its folder on
    for f, c in (row for rows in found.values() for row in rows):
        below.setdefault(c, []).append("/".join(f.split("/")[at + levels :]))
    if levels == 1 and not by_name and labelling is CLASSES and (deeper := _deeper(below)):
        left_out.append(deeper)
    return Data(
        source, labels, splits, empty=tuple(empty), left_out=tuple(left_out), unread=unread,
        images=identity.summary(s.marks for s in splits.values()),
        doubts=() if by_name or labelling is not CLASSES else tuple(doubts(source, below)),
    )  # fmt: skip


def unreadable(files: Sequence[str], before: str = "") -> str:
    """How many pictures of which kinds there are that can't be read here, `before` before it; empty of none."""
    kinds = Counter(PurePosixPath(f).suffix.lower().lstrip(".").upper() for f in files)
    what = " and ".join(many(n, f"{kind} file") for kind, n in kinds.items())
    return f"{before}{what}, which can't be read here: convert them to JPEG" if what else ""
