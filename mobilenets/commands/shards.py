"""`mobilenets shards`: a data set as shards."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from mobilenets import console, files, processor
from mobilenets.arguments import DataSource, StrPath, as_path, checked
from mobilenets.data import checks
from mobilenets.data import shard_reader as sharded
from mobilenets.data.annotations.open import open_boxes
from mobilenets.data.checks import Scan
from mobilenets.data.open import Opener, open_data
from mobilenets.data.shard_reader import INDEX, Part
from mobilenets.data.shard_writer import Writer
from mobilenets.data.source import Reading, spelled
from mobilenets.errors import UserError, unknown

OPENERS: dict[str, Opener] = {"classify": open_data, "detect": open_boxes}  # what shards can hold

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Sharded(console.Notebook):
    """What `shards` wrote: shards, images and bytes of each split, and what it found. `seconds`: of this call."""

    out: Path
    splits: dict[str, tuple[Part, ...]]
    found: Scan
    left_out: tuple[str, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        rows = {
            name: {"shards": len(p), "images": sum(s.count for s in p), "bytes": sum(s.bytes for s in p)}
            for name, p in self.splits.items()
        }
        found = {"leaks": self.found.leaks, "left_out": list(self.left_out)}
        return {"out": str(self.out), "splits": rows, **found, "seconds": self.seconds}

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        t = console.table(str(self.out), ["split", "shards", "images", "MB"], left=("split",))
        for name, p in self.splits.items():
            size = console.megabytes(sum(s.bytes for s in p))
            t.add_row(name, str(len(p)), str(sum(s.count for s in p)), size)
        lines = [*self.found.findings()]
        if self.left_out:
            lines.append(
                f"{console.many(len(self.left_out), 'damaged image')} left out: {'; '.join(self.left_out[:10])}"
            )
        task = " --task detect" if self.found.boxes else ""
        lines.append(f"try next mobilenets train {self.out}{task} --out runs/new")
        return Group(t, *map(Text, lines))


@checked
def shards(
    source: DataSource,
    out: StrPath,
    *,
    task: str = "classify",
    shard_mb: float = 100.0,
    short_side: int = 0,
    workers: int = -1,
    skip_bad: bool = False,
    reading: Annotated[Reading | None, Parameter(name="*")] = None,
    yes: bool = False,
    seed: int = 0,
    root: StrPath | None = None,
) -> Sharded:
    """Write a data set as shards (WebDataset tars with an index), for sets that don't fit in memory or lie elsewhere.

    Every image is decoded once: what is damaged, or in two splits at once, is found now and not at each training.
    The same command goes on with what was stopped. `train`, `fit` and `eval` take OUT, or the address at which a web
    server has it, as DATA; shards that are fetched are kept in the user's cache, at most 10 GB of them
    ($MOBILENETS_SHARDS_GB).

    Parameters
    ----------
    source
        Folder or zip of class folders, or of images with boxes, or a set's name.
    out
        Folder for the shards.
    task
        What the images are labelled for: classify, or detect, of images with boxes.
    shard_mb
        Megabytes in a shard, roughly.
    short_side
        Shrink images with a longer short side to this many pixels, as JPEG; 0 keeps every file as it is.
    workers
        Shards written at a time; -1 for one on each core.
    skip_bad
        Go on without damaged images.
    yes
        Go on though the folders don't look like classes.
    seed
        Seed of the shuffling, and of the split if there is none.
    root
        Where copies of named sets are, or go; where a table's paths start, if not at its own folder.

    Returns
    -------
    Sharded
        `splits`, for each its shards with their images and bytes; what was `found` in the data, what was `left_out`.

    Raises
    ------
    UserError
        For data that isn't there or has damaged images, numbers that can't be, a folder that can't be written.

    Examples
    --------
    >>> import mobilenets
    >>> made = mobilenets.shards("flowers", "shards", workers=1)
    >>> {split: sum(part.count for part in parts) for split, parts in made.splits.items()}
    {'train': 72, 'val': 24}
    """
    from rich.text import Text

    source, out, root = spelled(source, reading), as_path(out), as_path(root)
    since = time.monotonic()
    if not shard_mb > 0:
        raise UserError(f"shard_mb must be above 0, not {shard_mb}")
    if short_side < 0 or 0 < short_side < 32:
        raise UserError(f"short_side must be 0 or at least 32 pixels, not {short_side}")
    if workers == 0 or workers < -1:
        raise UserError(f"workers must be 1 or more, or -1 for all cores, not {workers}")
    if sharded.find(source):
        raise UserError(f"{source} is shards already")
    if task not in OPENERS:
        raise unknown("task", task, OPENERS)
    data = OPENERS[task](source, root, seed, None)
    writer = Writer(data, out, short_side)
    checks.stop_at_doubts(data, yes)
    plan = writer.prepare({"source": source, "seed": seed, "short_side": short_side, "shard_mb": shard_mb})
    if not (out / INDEX).exists():
        damaged = writer.write(plan["shards"], processor.cores() if workers < 0 else workers, skip_bad)
        if damaged:
            found = Scan(source, {}, damaged)
            console.note(Text("\n".join(found.findings())))
            checks.stop_at_damage(found, skip_bad)
        writer.finish(plan)
    writer.clean(plan["shards"])

    def made(index: dict[str, Any]) -> Sharded:
        splits = {name: tuple(Part(**p) for p in entry["shards"]) for name, entry in index["splits"].items()}
        found = Scan.from_json(index["scan"])
        return Sharded(out, splits, found, tuple(index["left_out"]), time.monotonic() - since)

    return files.read_object(out / INDEX, made, "shards")
