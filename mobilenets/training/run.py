"""A run's folder: made once, recorded, resumed only by the command that made it."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path, PurePath
from typing import Any

from mobilenets import console, files
from mobilenets.errors import UserError
from mobilenets.training.distributed import machines, world
from mobilenets.training.recipes import Recipe

CHOICE, SCAN, STEPS, REPORT = "choice.json", "scan.json", "steps.json", "report.html"
INT8 = "int8"
MANIFEST = "manifest.json"  # what ships of a run, with its digests

CONFIG = "run.json"
COMMAND = "command"  # recorded beside the arguments, not compared


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
    data = Path(source).resolve()
    return Path("runs", "-".join([data.stem if data.is_file() else data.name, *names]).replace(" ", "-"))


def prepare(out: Path, config: dict[str, Any], resume: bool) -> None:
    """Make the run folder `out` and record `config`, or check that `config` is what it was made with.

    Raises `UserError` if there is a run already and `resume` is False, or if it was made with other arguments.
    """
    path = out / CONFIG
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a run's folder; choose another --out")
    if not path.exists():
        if out.exists() and any(p for p in out.iterdir() if p.name != ".gitkeep"):
            raise UserError(f"{out} is not empty and holds no run; choose another --out")
        if resume:
            console.note(f"nothing to resume in {out}: starting from the beginning")
        files.write_json(path, {**config, COMMAND: command_line()})
        return
    if not resume:
        raise UserError(f"{out} holds a run already: go on with it (--resume) or choose another --out")
    before = json.loads(path.read_text())
    before = {"task": "classify"} | before if "task" in config else before  # runs of before there were others
    if "recipe" in config:  # a recipe's later fields change nothing by default
        before["recipe"] = Recipe().to_json() | before.get("recipe", {})
    now = json.loads(json.dumps(config))
    before, now = _flat(before), _flat(now)
    changed = [k for k in {**now, **before} if k != COMMAND and before.get(k) != now.get(k)]
    if changed:
        k = changed[0]
        raise UserError(f"{out} was made with {k} {before.get(k)}, not {now.get(k)}; resume with the same arguments")


def say_where(out: Path) -> None:
    from rich.text import Text

    console.note(Text(f"run      {out}\ntry next mobilenets predict {out} IMAGE..."))


def recorded_command(out: Path) -> str:
    """The command that began the run in `out`, for a card: with the names of files and folders, not where they lay."""
    path = out / CONFIG
    return placeless(str(json.loads(path.read_text())[COMMAND]) if path.exists() else command_line())


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
