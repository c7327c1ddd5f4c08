"""The house holds: imports point one way, lazy and type-only ones too; no circle; torch only where it must be."""

import ast
import functools
import graphlib
import importlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import mobilenets
from mobilenets import cli
from mobilenets.deploy import engines

PACKAGE = Path(mobilenets.__file__).parent
GROUND = ("errors", "files", "console", "arguments", "processor", "web")
ROOMS = ("arch", "model", "data", "tasks", "deploy", "training", "compression", "reports", "commands")
DOORS = ("__init__", "__main__", "cli")  # above all rooms
MOST_AT_THE_TOP = 12
# Modules that import torch, or a runtime that does, at their top. All others can be used without it.
NEED_TORCH = {
    "model.conv", "model.create", "model.joints", "model.module", "model.detections", "model.net", "model.reference",
    "model.two_stage",
    "deploy.engines.torch", "deploy.engines.executorch", "deploy.engines.coreml", "deploy.peers",
    "deploy.writers.program", "deploy.writers.pt2", "deploy.writers.coreml", "deploy.writers.coreml_detect",
    "training.callbacks", "training.co_teaching", "training.deadline", "training.learner", "training.loader",
    "training.objectives", "training.optim", "training.pace", "training.recorded", "training.statistics",
    "training.teachers",
    "compression.books", "compression.budget", "compression.calibrate", "compression.channels", "compression.equalize",
    "compression.mixed", "compression.narrowing", "compression.norms", "compression.qat", "compression.sensitivity",
    "compression.shared",
    "tasks.augment", "tasks.losses", "tasks.tag_losses", "tasks.taught",
    "tasks.create", "tasks.detect.lessons", "tasks.detect.loss", "tasks.detect.matcher", "tasks.detect.module",
    "tasks.detect.mosaic", "tasks.detect.stages", "tasks.detect.two_stage_module",
    "tasks.detect.transforms", "tasks.detect.validation", "tasks.geolocate.losses", "tasks.geolocate.lessons",
    "tasks.embed.losses",
    "reports.layers",
}  # fmt: skip
NO_NUMPY = ("arch", "errors", "files", "console", "arguments", "processor", "web")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {name_of(p): p for p in sorted(PACKAGE.rglob("*.py"))}
IMPORTABLE = [m for m in MODULES if m != "mobilenets.__main__"]


def imported(source: str) -> set[str]:
    """The package's modules that a source text imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports name their module in full"
            whole = {f"{node.module}.{a.name}" for a in node.names}
            found |= {w if w in MODULES else node.module for w in whole}
    return found & set(MODULES)


@functools.cache
def arrows() -> dict[str, set[str]]:
    return {m: imported(p.read_text()) - {m, "mobilenets"} for m, p in MODULES.items()}


def floor(module: str) -> int:
    _, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    return -1 if first in GROUND else ROOMS.index(first) if first in ROOMS else len(ROOMS)


def upward(found: dict[str, set[str]]) -> list[tuple[str, str]]:
    return [(a, b) for a, bs in found.items() for b in bs if floor(b) > floor(a)]


def test_arrows_point_one_way() -> None:
    assert upward(arrows()) == []


def test_an_arrow_that_points_up_is_seen() -> None:
    lazy = "def f():\n    from mobilenets.reports import style\n"
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mobilenets.reports.style import figure\n"
    for source in (lazy, typed):
        assert upward({"mobilenets.data.open": imported(source)}) == [
            ("mobilenets.data.open", "mobilenets.reports.style")
        ]


def test_no_circle() -> None:
    graphlib.TopologicalSorter(arrows()).prepare()  # its error names the circle


def test_every_room_is_there_and_nothing_else_at_the_top() -> None:
    at_the_top = {m.split(".")[1] for m in MODULES if m.count(".") == 1} | {"__init__"}
    assert at_the_top == {*GROUND, *ROOMS, *DOORS}
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_TOP


def loads(modules: Iterable[str], library: str) -> list[str]:
    """Those of `modules` whose import, one after another in a new interpreter, is the first to load `library`."""
    code = "import importlib, sys\n" + "".join(
        f"importlib.import_module({m!r})\nif {library!r} in sys.modules:\n    print({m!r}); sys.exit()\n"
        for m in modules
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_no_torch_but_where_it_must_be() -> None:
    assert loads([m for m in IMPORTABLE if m.partition(".")[2] not in NEED_TORCH], "torch") == []


@pytest.mark.parametrize("module", sorted(NEED_TORCH))
def test_the_list_of_those_that_need_torch_is_short(module: str) -> None:
    assert f"mobilenets.{module}" in MODULES
    assert "No torch" not in MODULES[f"mobilenets.{module}"].read_text().partition('"""\n')[0]


def test_the_lowest_rooms_load_no_numpy() -> None:
    assert loads([m for m in IMPORTABLE if m.partition(".")[2].partition(".")[0] in NO_NUMPY], "numpy") == []


def test_the_command_line_is_in_commands_alone() -> None:
    users = [m for m, p in MODULES.items() if re.search(r"^\s*(import|from) cyclopts", p.read_text(), re.MULTILINE)]
    assert [m for m in users if floor(m) < ROOMS.index("commands")] == []
    assert users, "the check itself sees none"


def test_what_is_named_in_strings_is_there() -> None:
    for target, _ in cli.VERBS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(f"mobilenets.commands.{module}"), function))
    for name in engines.RUNTIMES:
        assert f"mobilenets.deploy.engines.{name}" in MODULES
    for name in mobilenets.__all__:
        assert getattr(mobilenets, name)
