"""Pairs of images, the same or different, in folds, as LFW's pairs.txt and tables have them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mobilenets.data import text_tables
from mobilenets.errors import UserError

LFW = "pairs.txt"
COLUMNS = ("a", "b", "same")  # of a table of pairs; "fold" may be a fourth
NAMED = 3


class Pair(NamedTuple):
    """Two images of a list, by their places in it, whether they show the same, and in which fold they are."""

    a: int
    b: int
    same: bool
    fold: int


class Seen(NamedTuple):
    """What is known of an image: of whom or what it is, and the pairs that it is in: (number, same, fold) of each."""

    identity: int
    pairs: tuple[tuple[int, bool, int], ...]


def _key(name: str) -> str:
    return str(PurePosixPath(name.replace("\\", "/")).with_suffix("")).lower()


def read_pairs(content: bytes, where: str, names: Sequence[str]) -> list[Pair]:
    """LFW's list, or a table with columns a, b, same (1 or 0) and perhaps fold, of images called `names`.

    An image is meant by the end of its path, whatever its suffix. Raises `UserError` for a pair of an image that
    isn't there, or a list that is none.
    """
    named: dict[str, int] = {}
    for i, name in enumerate(names):
        parts = _key(name).split("/")
        for k in range(max(0, len(parts) - 3), len(parts)):
            named.setdefault("/".join(parts[k:]), i)
    said = _lfw(content, where) if where.lower().endswith(".txt") else _table(content, where)
    missing = sorted({x for a, b, _, _ in said for x in (a, b) if _key(x) not in named})
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UserError(
            f"{where}: pairs of images that aren't there: {', '.join(missing[:NAMED])}{more}; are these the images "
            "that the list is of?"
        )
    if not said:
        raise UserError(f"{where}: no pairs in it")
    return [Pair(named[_key(a)], named[_key(b)], same, fold) for a, b, same, fold in said]


def _lfw(content: bytes, where: str) -> list[tuple[str, str, bool, int]]:
    """Folds and pairs of each kind in the first line; then NAME I J, or NAME I NAME J, the same first in each fold."""
    try:
        lines = [line.split() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
        head = [int(word) for word in lines[0]]
        folds, each = head if len(head) == 2 else (1, head[0])
    except (UnicodeDecodeError, ValueError, IndexError) as e:
        raise UserError(f"{where}: not a list of pairs as LFW's: its first line has the folds and pairs of each") from e
    if folds < 1 or each < 1 or len(lines) - 1 != 2 * folds * each:
        raise UserError(f"{where}: its first line promises {2 * folds * each} pairs, and there are {len(lines) - 1}")
    out = []
    for n, words in enumerate(lines[1:]):
        if len(words) not in (3, 4) or not all(w.isdigit() for w in (words[1], words[-1])):
            raise UserError(f"{where}: line {n + 2} is no pair: {' '.join(words)[:80]}")
        other = words[0] if len(words) == 3 else words[2]
        a, b = (f"{who}/{who}_{int(i):04d}.jpg" for who, i in ((words[0], words[1]), (other, words[-1])))
        out.append((a, b, len(words) == 3, n // (2 * each)))
    return out


def _table(content: bytes, where: str) -> list[tuple[str, str, bool, int]]:
    table = text_tables.of_text(content, where)
    if missing := [c for c in COLUMNS if c not in table.columns]:
        raise UserError(f"{where}: a table of pairs has columns a, b, same and perhaps fold; {missing[0]!r} is missing")
    a, b, same = (table.values(c) for c in COLUMNS)
    folds = table.values("fold") if "fold" in table.columns else ["0"] * len(a)
    numbers = {f: i for i, f in enumerate(dict.fromkeys(folds))}
    out = []
    for i, said in enumerate(same):
        if said not in ("0", "1"):
            raise UserError(f"{where}: column 'same' says {said!r} in row {i + 1}; it takes 1 or 0")
        out.append((a[i] or "", b[i] or "", said == "1", numbers[folds[i]]))
    return out


def list_of(path: str) -> bytes:
    """A list of pairs from a file. Raises `UserError`."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such list of pairs")
    return text_tables.read_bytes(Path(path))
