"""A run's folder: made once, recorded, resumed only by the command that made it."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from mobilenets import console, files
from mobilenets.data.source import Reading, Source
from mobilenets.errors import UserError
from mobilenets.training.distributed import machines, world
from mobilenets.training.lock import LOCK, alone
from mobilenets.training.recipes import Recipe

if TYPE_CHECKING:
    from mobilenets.data.dataset import Data

CANDIDATES = "candidates.json"
CHOICE, SCAN, STEPS, REPORT = "choice.json", "scan.json", "steps.json", "report.html"
LATENCIES = "latencies.json"  # what was measured, until the choice is made
INT8 = "int8"
RATE = "rate.json"  # what a range test found
START = "start"  # a bundle that training on the data began with: pretrained weights with a head fitted, or NOISY's
NOISY = "noisy"  # the run of a first stage, on noisy labels
MANIFEST = "manifest.json"  # what ships of a run, with its digests

CONFIG = "run.json"
COMMAND = "command"  # recorded beside the arguments, not compared
DATA = "data"  # the classes, how many images, which


def command_line() -> str:
    """The command that is running, or that there is none of ours."""
    program = Path(sys.argv[0])
    if program.name != "mobilenets" and program.parent.name != "mobilenets":
        return "(called from Python)"
    processes, _ = world()
    start: list[str] = []
    if processes > 1 and "WORLD_SIZE" in os.environ:
        start = ["torchrun", "--nproc-per-node", str(processes // machines()), "-m"]
    elif processes > 1:
        start = ["srun", "--ntasks", str(processes)]
    return shlex.join([*start, "mobilenets", *sys.argv[1:]])


def folder(source: str, *names: str) -> Path:
    """Where a run on `source` goes that isn't told where: flowers.zip, "v1 0.25-224" -> runs/flowers-v1-0.25-224."""
    data = Path(Source.parse(source).path).resolve()
    return Path("runs", "-".join([data.stem if data.is_file() else data.name, *names]).replace(" ", "-"))


@contextlib.contextmanager
def taken(out: Path, config: dict[str, Any], resume: bool, data: Data) -> Iterator[None]:
    """The run's folder `out` for this process alone while the block runs, made by `config` on `data` or going on.

    Of the processes of one training the first takes it for all. Raises `UserError` if another process works in it, if
    there is a run already and `resume` is False, or if it was made with other arguments or images.
    """
    if world()[1] != 0:
        yield
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a run's folder; choose another --out")
    if out.exists() and not (out / CONFIG).exists() and any(p.name not in (".gitkeep", LOCK) for p in out.iterdir()):
        raise UserError(f"{out} is not empty and holds no run; choose another --out")
    with alone(out):
        begun = not (out / CONFIG).exists()
        _prepare(out, {**config, DATA: {"labels": list(data.labels), **(data.images or {})}}, resume)
        try:
            yield
        except (UserError, ImportError):  # as of a package that isn't installed
            known = {CONFIG, SCAN, LATENCIES}
            if begun and {p.name for p in out.iterdir()} <= {LOCK, *known}:  # nothing came of it: none to resume
                for name in known:
                    (out / name).unlink(missing_ok=True)
            raise


def began(out: Path) -> dict[str, Any]:
    """What the run in a folder was begun with; empty where there is none."""
    path = out / CONFIG
    return dict(files.read_json(path, (), "a run")) if path.exists() else {}


def amend(out: Path, **changes: Any) -> None:
    """Record that a run goes on otherwise than it was begun."""
    files.write_json(out / CONFIG, {**began(out), **changes})


def _prepare(out: Path, config: dict[str, Any], resume: bool) -> None:
    """Record `config` in an empty folder, or check that it is what the run there was made with."""
    path = out / CONFIG
    if not path.exists():
        if resume:
            console.note(f"nothing to resume in {out}: starting from the beginning")
        files.write_json(path, {**config, COMMAND: command_line()})
        return
    if not resume:
        raise UserError(f"{out} holds a run already: go on with it (--resume) or choose another --out")
    before = files.read_json(path, (), "a run")
    before = {"task": "classify"} | before if "task" in config else before  # runs of before there were others
    now = json.loads(json.dumps(config))
    had, has = before.pop(DATA, None), now.pop(DATA)
    same_images = isinstance(had, dict) and _same_images(out, had, has, str(config["source"]))
    later = {"pretrained": False, "candidates": 6, "halving": "on", "time": None}  # as fit was before it had them
    before = {k: v for k, v in later.items() if k in config} | before
    if "recipe" in config:  # a recipe's later fields change nothing by default
        recipe = before.get("recipe", {})
        before["recipe"] = Recipe().to_json() | (recipe if isinstance(recipe, dict) else {"recipe": recipe})
    before, now = _flat(before), _flat(now)
    if same_images and _reading(before) == _reading(now):  # the same images under another spelling are the same
        before["source"] = now["source"]
    changed = [k for k in {**now, **before} if k != COMMAND and before.get(k) != now.get(k)]
    if changed:
        k = changed[0]
        raise UserError(f"{out} was made with {k} {before.get(k)}, not {now.get(k)}; resume with the same arguments")


def _reading(config: dict[str, Any]) -> Reading:
    return Source.parse(str(config.get("source"))).reading


def _same_images(out: Path, had: dict[str, Any], has: dict[str, Any], source: str) -> bool:
    """Whether the run was made with these images; None of both where they can't change. Raises `UserError` if not."""
    way = "put back what there was, or train anew in another --out"
    old, new = had.get("labels", []), has["labels"]
    if old != new:
        changes = [f"{c} is new" for c in new if c not in old] + [f"{c} is gone" for c in old if c not in new]
        more = f" and {len(changes) - 4} more" if len(changes) > 4 else ""
        raise UserError(
            f"{source} has other classes than the run in {out} was made with "
            f"({', '.join(changes[:4]) or 'in another order'}{more}): {way}"
        )
    if had.get("digest") != has.get("digest"):
        then, now = had.get("count", "?"), has.get("count", "?")
        raise UserError(
            f"{source} has other images than the run in {out} was made with ({then} then, {now} now): {way}"
        )
    return "digest" in has


def say_where(out: Path) -> None:
    from rich.text import Text

    console.note(Text(f"run      {out}\ntry next mobilenets predict {out} IMAGE..."))


def recorded_command(out: Path) -> str:
    """The command that began the run in `out`, for a card: with the names of files and folders, not where they lay."""
    path = out / CONFIG
    return placeless(str(files.read_json(path, (COMMAND,), "a run")[COMMAND]) if path.exists() else command_line())


def placeless(command: str) -> str:
    """A command line with the names of the paths in it; addresses stay as they are."""
    if command.startswith("("):  # no command
        return command
    words = []
    for word in shlex.split(command):
        option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
        words.append(word if "://" in value else f"{option}{equals}{PurePath(value).name or value}")
    return shlex.join(words)


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """One level deep: a recipe's fields beside the arguments."""
    inner = {k: v for d in config.values() if isinstance(d, dict) for k, v in d.items()}
    return {k: v for k, v in config.items() if not isinstance(v, dict)} | inner


CHECKPOINTS, LOGS, METRICS, FLOAT = "checkpoints", "logs", "metrics.csv", "float"
