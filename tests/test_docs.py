"""The blocks of code in README.md and docs/ run, in order, and answer as the pages say.

A page's blocks share a folder with `photos/` (three of CIFAR-10's classes), `new.jpg` and `runs/photos`, a bundle.
`sh` blocks are run line by line, `python` ones with one set of names for the page; one whose title is a file's name
becomes that file. Other titles say what isn't run: "not run: WHY", or "slow: WHY", which the slow tests run too.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections import ChainMap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from small import Ran, smooth_images

import mobilenets
from mobilenets import cli, tasks
from mobilenets.arch import zoo
from mobilenets.model.bundle import Bundle

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(m[1], m[2] or "", m[3], text.count("\n", 0, m.start()) + 2) for m in FENCE.finditer(text)]


def runnable(page: Path, slow: bool) -> list[Block]:
    """Those that the default tests run, or all that can run; none for `slow` where there are no more."""
    able = [b for b in blocks(page) if b.language in ("sh", "python") and not b.title.startswith("not run: ")]
    quick = [b for b in able if not b.title.startswith("slow: ")]
    return (able if able != quick else []) if slow else quick


def run(page: Path, block: Block, command: Callable[..., Ran], names: dict[str, object]) -> str:
    """What a block prints."""
    if block.title.endswith(".py"):
        Path(block.title).write_text(block.text)
        return ""
    if block.language == "python":
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
        return out.getvalue()
    said = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == "mobilenets", (
                f"{page.name}: {line}: what isn't a verb here needs a title, 'not run: WHY'"
            )
            ran = command(*words[1:])
            assert ran.code == 0, f"{page.name}: {line}: {ran.err}"
            said.append(ran.out)
    return "".join(said)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a page's commands run."""
    photos = tmp_path / "photos"
    for seed, (split, count) in enumerate({"train": 12, "val": 4}.items()):
        for i, name in enumerate(("cat", "dog", "frog")):
            (photos / split / name).mkdir(parents=True)
            for n, image in enumerate(smooth_images(count, 48, 10 * seed + i)):
                Image.fromarray(image).save(photos / split / name / f"{n}.png")
    Image.fromarray(smooth_images(1, 64)[0, :48]).save(tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(zoo, "NETWORKS", {**zoo.NETWORKS})  # for pages that add to them
    monkeypatch.setattr(zoo, "EVERY", ChainMap(zoo.OTHERS, zoo.NETWORKS))
    monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS})
    known = Bundle.load("cifar10-v1-0.25")
    Bundle(known.card.replace(data={"source": str(photos)}), known.tensors).save("runs/photos/float")
    return tmp_path


def check(page: Path, slow: bool, command: Callable[..., Ran]) -> None:
    names: dict[str, object] = {"__name__": "page"}
    told = []
    for block in runnable(page, slow):
        said = run(page, block, command, names)
        if block.language == "python" and "new.jpg" in block.text:
            told.append(said.strip())
    if page.name == "ship.md":
        label, share = mobilenets.load("model.onnx").predict(["new.jpg"])[0].top[0]
        assert len(told) == (6 if slow else 4)
        assert set(told) == {f"{label} {share:.1%}"}


QUICK = [p for p in PAGES if runnable(p, slow=False)]
SLOW = [p for p in PAGES if runnable(p, slow=True)]


@pytest.mark.sampled(6)
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", QUICK, ids=lambda p: p.name)
def test_what_a_page_shows_runs(page: Path, command: Callable[..., Ran]) -> None:
    check(page, False, command)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("page", SLOW, ids=lambda p: p.name)
def test_what_takes_long_runs_too(page: Path, command: Callable[..., Ran]) -> None:
    check(page, True, command)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_verbs_are_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert "://" in target or (page.parent / target).exists(), target
    lines = [line for b in blocks(page) if b.language == "sh" for line in b.text.splitlines()]
    for verb in re.findall(r"^mobilenets ([\w-]+)", "\n".join(lines), re.MULTILINE):
        assert verb in cli.NAMES, verb


def test_the_reference_has_every_name() -> None:
    listed = re.findall(r"^::: mobilenets\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(mobilenets.__all__) - {"__version__"})
