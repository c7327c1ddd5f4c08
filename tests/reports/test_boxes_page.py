"""What a report shows of a detector: mistakes by kind, what is taken for what, the worst images, where time goes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mobilenets.arch.rows import Conv
from mobilenets.arch.spec import Arch
from mobilenets.data.annotations.open import open_boxes
from mobilenets.deploy import engines
from mobilenets.errors import UserError
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess
from mobilenets.reports import boxes, pages
from mobilenets.tasks.detect.task import Detect

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks" / "detect"))
import shapes

pytest.importorskip("faster_coco_eval")


class Careless:
    """Sees blue rectangles twice, takes red ones for blue ones, and finds a red one in each upper right corner."""

    name, concurrent = "careless", True

    def __init__(self, card: Card) -> None:
        self.card = card

    def __call__(self, images: Any) -> dict[str, Any]:
        found = [self._one(image) for image in images]
        most = max(map(len, found))
        rows = np.array([[*one, *[(0.0,) * 6] * (most - len(one))] for one in found], np.float32)
        counts = np.array([len(one) for one in found], np.float32)
        return {"boxes": rows[..., :4], "scores": rows[..., 4], "classes": rows[..., 5], "count": counts}

    def _one(self, image: Any) -> list[tuple[float, ...]]:
        said: list[tuple[float, ...]] = [(0.97, 0.0, 1.0, 0.03, 0.4, 1)]
        side = image.shape[0]
        for c, (red, green, blue) in enumerate(shapes.COLOURS.values()):
            off = np.abs(image.astype(int) - (red, green, blue)).max(-1)
            for half in (0, 1):
                columns = slice(half * side // 2, (half + 1) * side // 2)
                ys, xs = np.nonzero(off[:, columns] < 30)
                if len(ys) < 20:
                    continue
                left = half * side // 2
                box = [(xs.min() + left) / side, ys.min() / side, (xs.max() + 1 + left) / side, (ys.max() + 1) / side]
                said += [(*box, 0.9, 0)] * (2 - c)
        return said


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of a run whose file answers as `Careless`."""
    folder = shapes.write(tmp_path_factory.mktemp("boxes") / "data", shapes.data(4, 12))
    data = open_boxes(str(folder))
    arch = Arch("small", 0.25, 64, 0, (Conv(16, stride=2), Conv(32, stride=2)))
    task = Detect()
    config = task.shaped({"labels": list(data.labels)}, arch, None)  # type: ignore[arg-type]
    preprocess = Preprocess(64, crop=1.0, framing="stretch")
    card = Card(arch, preprocess, task.head(arch, config), "detect", config, data=data.describe())
    return SimpleNamespace(engine=Careless(card), data=data)


@pytest.fixture(autouse=True)
def careless(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "load", lambda _: page.engine)


def test_each_mistake_is_of_its_kind(page: Any) -> None:
    looked = boxes.look(Path("a file"), "val", None)
    true = np.concatenate([t.classes for t in page.data.split("val").targets])
    blue, red = (int((true == c).sum()) for c in (0, 1))
    assert looked.images == 12
    assert blue > 3 < red
    assert looked.kinds["double"] == blue
    assert looked.kinds["wrong class"] == red
    assert looked.kinds["nothing there"] + looked.kinds["badly placed"] == 12
    assert not looked.kinds["missed"]
    assert looked.pairs["blue", "blue"] == blue
    assert looked.pairs["red", "blue"] == red
    assert looked.pairs["background", "red"] == looked.kinds["nothing there"]
    assert len(looked.worst) == boxes.WORST
    assert "double" in looked.worst[0]["answer"] or "wrong class" in looked.worst[0]["answer"]
    assert set(looked.parts) == {"read and resize the image", "the file", "boxes of its outputs"}
    assert all(ms > 0 for ms in looked.parts.values())


def shown(scores: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What the template takes of a page with these scores, and the notes of the page."""
    notes: list[str] = []
    step = SimpleNamespace(scores=scores)
    run: Any = SimpleNamespace(shipped=step, fitted=SimpleNamespace(file=Path("a.onnx")), notes=notes)
    run.without_samples = lambda why: {"images": [], "note": str(why)}
    boxes.check(run)
    return boxes.values(run, None), notes


SCORES = {
    "split": "val", "ap": 12.5, "ap50": 30.0, "ap75": 7.0, "ap_small": None,
    "per_class": {"blue": {"ap": 20.0, "ap50": 40.0, "objects": 9}, "red": {"ap": 5.0, "ap50": 20.0, "objects": 8},
                  "green": {"ap": None, "ap50": None, "objects": 0}},
    "curves": {"blue": [1.0, 0.5, 0.0], "red": [0.4, 0.2, 0.0]},
}  # fmt: skip


def test_the_section_has_the_numbers_and_the_pictures() -> None:
    values, notes = shown(SCORES)
    assert not notes
    assert [label for label, _ in values["each"]] == ["red", "blue"]  # the worst first, none without objects
    assert [title for title, _ in values["numbers"]] == [boxes.NAMES[n] for n in ("ap", "ap50", "ap75")]
    page = SimpleNamespace(fitted=SimpleNamespace(file=Path("a.onnx")))
    text = pages.render("boxes.html", dict(pages.NUMBERS), scores=SCORES, page=page, **values)
    assert text.count("<img ") == 12 + len(values["samples"]["images"])
    for kind in ("double", "wrong class"):
        assert f'style="--of: rgb{boxes.PAINT[kind]}"' in text
    assert "<svg" in text
    assert any("blue" in s["answer"] and "%" not in s["answer"] for s in values["samples"]["images"])


def test_without_the_data_the_numbers_are_shown_and_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise UserError("the data isn't there")

    monkeypatch.setattr(boxes, "data_of", gone)
    values, notes = shown({**SCORES, "curves": {}})
    assert values["looked"].images == 0
    assert values["curve"] == ""
    assert notes == ["mistakes were left out: the data isn't there"]


def test_scores_of_something_else_are_refused() -> None:
    with pytest.raises(UserError, match="aren't those of boxes"):
        shown({"top1": 3.0, "split": "val"})
