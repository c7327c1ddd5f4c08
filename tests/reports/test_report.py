"""Figures, and the report's page, of a small run made here without training."""

from __future__ import annotations

import base64
import csv
import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from choices import make_choice, write_metrics
from PIL import Image

from mobilenets import files
from mobilenets.arch import cost, zoo
from mobilenets.commands.report import report
from mobilenets.data.checks import scan
from mobilenets.data.open import open_data
from mobilenets.deploy import engines, evaluate
from mobilenets.deploy.writers.onnx import onnx_model
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle
from mobilenets.model.trust import Trust
from mobilenets.reports import samples, style
from mobilenets.tasks.confusion import Confusion
from mobilenets.training import recipes

HOSTILE = "<script>alert(1)--><&lt; $x_"  # a folder's name can't hold a slash


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three classes, one with a hostile name, its weights random."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    for label in ("cat", "dog", HOSTILE):
        for split, n in (("train", 2), ("val", 6)):
            folder = root / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((100, 80)).save(folder / f"{i}.png")
    run = root / "run & more"
    d = open_data(str(root / "data"))
    arch = zoo.arch("v1", 0.25, 32, 3)
    trained, int8 = (
        Bundle(
            b.card.replace(
                config={"labels": list(d.labels)},
                data=d.describe(),
                recipe={**recipes.recipe("modern").to_json(), "best_epoch": 2},
            ),
            b.tensors,
        )
        for b in (random_bundle(arch, "float32"), random_bundle(arch, "int8"))
    )
    trained.save(run / "float")
    (run / "model-int8.onnx").write_bytes(onnx_model(int8))
    scores = evaluate.score(engines.load(run / "model-int8.onnx"), d, "val")
    steps = [
        {
            "name": name, "path": f"elsewhere/{path}", "engine": "e", "precision": p, "size_bytes": size,
            "latency_ms": latency, "agreement": agreement, "difference": difference,
            **scores.to_json(), "confusion": scores.confusion.to_json(),
        }
        for name, path, p, size, latency, agreement, difference in (
            ("float in PyTorch", "float", "float32", 912_345, None, None, None),
            ("int8 ONNX", "model-int8.onnx", "int8", 278_901, 0.4321, 98.76, 0.00123),
        )
    ]  # fmt: skip
    choice = make_choice(arch, latency_ms=0.4, size_mb=0.5)
    recipe = {**recipes.recipe("modern").to_json(), "epochs": 7}
    files.write_json(run / "choice.json", {**choice.to_json(), "arch": arch.to_json()})
    files.write_json(run / "scan.json", scan(d).to_json())
    files.write_json(run / "run.json", {
        "command": "mobilenets fit 'some data' --epochs 7",
        "verb": "fit", "source": d.source, "budget": choice.budget.limits(), "engine": "onnxruntime",
        "precision": "int8", "threads": 1, "recipe": recipe, "init": None, "seed": 5,
    })  # fmt: skip
    files.write_json(run / "steps.json", {
        "file": "elsewhere/model-int8.onnx", "arch": "v1", "alpha": 0.25, "resolution": 32, "top1": scores.top1,
        "latency_ms": 0.4321, "predicted_latency_ms": 0.4, "size_bytes": 278_901, "budget": choice.budget.limits(),
        "seconds": 12.0, "steps": steps,
    })  # fmt: skip
    write_metrics(run / "logs" / "metrics.csv", 3)
    report(run)
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the run to break."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


@pytest.fixture(scope="module")
def page(made: Path) -> str:
    return (made / "report.html").read_text()


class Tags(HTMLParser):
    """Every tag with its attributes, and whether tags close in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def visible(text: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text)))


def test_page_needs_nothing_from_outside(page: str) -> None:
    parsed = Tags(page)
    assert not parsed.open
    tags = {t for t, _ in parsed.tags}
    assert not tags & {"script", "link", "iframe", "object", "base"}
    for tag, attrs in parsed.tags:
        for k in ("src", "href", "xlink:href", "srcset", "action"):
            value = attrs.get(k)
            assert value is None or value.startswith(("data:image/", "#")), (tag, k, value)
        assert not any(k.startswith("on") for k in attrs)
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert len(page) < 1_000_000


def test_page_has_no_id_twice_and_every_mentioned_one(page: str) -> None:
    ids = [attrs["id"] for _, attrs in Tags(page).tags if "id" in attrs]
    assert len(ids) > 10
    assert len(set(ids)) == len(ids)
    mentioned = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page))
    assert mentioned
    assert {a or b for a, b in mentioned} <= set(ids)


def test_page_escapes_what_users_wrote(page: str) -> None:
    assert "<script" not in page
    assert html.escape(HOSTILE) in page  # in tables
    assert "run &amp; more" in page
    labels = [t for t in re.findall(r"<text[^>]*>([^<]*)</text>", page) if "alert" in t]
    assert labels  # in the confusion matrix, with its $ as it is
    assert all(html.unescape(t) == style.plain(HOSTILE, 20) for t in labels)


def test_page_has_the_numbers_of_the_run(page: str, made: Path) -> None:
    text = visible(page)
    result = json.loads((made / "steps.json").read_text())
    for s in result["steps"]:
        for value in (s["name"], f"{s['top1']:.2f}", f"{s['loss']:.4f}", f"{s['size_bytes'] / 1e6:.2f}"):
            assert value in text
    for value in (
        "0.432 ms",
        "98.76",
        "0.0012",
        "18 images",
        "✗ not met",
        "size 0.28 of 0.5 MB",
        "(+8%)",
        "a machine x2",
    ):
        assert value in text
    arch = zoo.arch("v1", 0.25, 32, 3)
    assert f"{cost.count(arch).macs:,}" in text
    assert json.loads((made / "float" / "card.json").read_text())["digest"] in text
    assert files.sha256(made / "model-int8.onnx") in text


def test_why_says_what_stood_in_the_way(page: str) -> None:
    text = visible(page)
    assert (
        "v1 0.25-32 has the highest published ImageNet top-1, 59.0%, of the 4 of 6 networks that meet the budget "
        "(latency 0.4 ms, size 0.5 MB). 2 better networks are over it; the best of them, v1 0.75-32, has "
        "latency 0.759 ms and size 0.70 MB." in text
    )


def test_command_is_the_one_that_made_the_run(page: str) -> None:
    assert "mobilenets fit 'some data' --epochs 7" in [html.unescape(t) for t in re.findall(r"<pre>(.*?)</pre>", page)]


def test_samples_are_the_shipped_files_own(page: str) -> None:
    shown, gallery = page.split('<ul class="samples gallery">')
    uris = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', shown)
    assert len(uris) == 12
    assert all(base64.b64decode(u)[:2] == b"\xff\xd8" for u in uris)
    wrong = shown.count('class="wrong"')
    assert 0 < wrong <= 12
    assert f"The {wrong} mistakes shown first" in visible(page)
    mistakes = int(re.search(r"held-out images are right, (\d+) wrong", visible(page))[1])
    assert gallery.count('class="wrong"') == gallery.count('loading="lazy"') == mistakes
    doubted = gallery.count("label in doubt")
    first = f"{doubted} whose label{'s are' if doubted > 1 else ' is'} likely wrong first, then " if doubted else ""
    assert f"All mistakes: {mistakes}, {first}the surest first" in visible(page)


def test_it_shows_where_it_looks_and_how_images_lie(page: str) -> None:
    shown, gallery = page.split('<ul class="samples gallery">')
    assert shown.count('class="look"') == 12
    assert gallery.count('class="look"') == gallery.count('class="wrong"')
    assert "Where it looks for its answer" in visible(page)
    assert "How it sees them" in visible(page)


def test_mistakes_are_a_table_too(made: Path) -> None:
    rows = list(csv.DictReader((made / "mistakes.csv").read_text().splitlines()))
    steps = json.loads((made / "steps.json").read_text())["steps"]
    confusion = Confusion.from_json(steps[-1]["confusion"])
    assert len(rows) == confusion.count[confusion.wrong].sum() > 0
    assert all(r["label"] != r["predicted"] and f"/{r['label']}/" in f"/{r['image']}" for r in rows)
    order = [(int(r["label_doubted"]), float(r["probability_percent"])) for r in rows]
    assert order == sorted(order, reverse=True)


def test_small_originals_are_shown_pixel_by_pixel() -> None:
    uri, small = samples._thumbnail(Image.new("RGB", (10, 8)), 1.0)
    assert small
    assert uri.startswith("data:image/png")


@pytest.mark.slow
def test_page_without_the_data_says_so(run: Path) -> None:
    model = run / "model-int8.onnx"
    bundle = Bundle.load(run / "float")
    gone = bundle.card.replace(data={**bundle.card.data, "source": str(run / "nowhere.zip")})
    model.write_bytes(onnx_model(Bundle(gone, bundle.tensors)))
    made = report(run)
    assert "nowhere.zip" in visible((run / "report.html").read_text())
    assert len(made.notes) == 1
    assert "sample predictions" in made.notes[0]
    assert made.to_json()["report"] == str(run / "report.html")


@pytest.mark.slow
def test_page_without_curves_or_file_says_so(run: Path) -> None:
    (run / "logs" / "metrics.csv").unlink()
    (run / "model-int8.onnx").unlink()
    made = report(run)
    assert len(made.notes) == 2
    text = visible((run / "report.html").read_text())
    assert "The curves are not on this page" in text
    assert "model-int8.onnx: no such file" in text


@pytest.mark.parametrize("name", ["choice.json", "scan.json", "steps.json", "float/card.json"])
def test_unfinished_run_is_refused(run: Path, name: str) -> None:
    before = (run / "report.html").read_bytes()
    (run / name).unlink()
    with pytest.raises(UserError, match=rf"not a finished run: {name} is missing"):
        report(run)
    (run / name).write_text("{")
    with pytest.raises(UserError, match="not readable as JSON"):
        report(run)
    (run / name).write_text("[]")
    with pytest.raises(UserError, match="not a file of a finished run"):
        report(run)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "changes"),
    [("scan.json", {"counts": 3}), ("scan.json", {"native_side": "x"}), ("scan.json", {"damaged": 1}),
     ("choice.json", {"pick": 3}), ("choice.json", {"precision": "int9"}), ("choice.json", {"arch": {}}),
     ("choice.json", {"budget": {"speed": 1}}), ("steps.json", {"steps": [1]}), ("steps.json", {"steps": []}),
     ("steps.json", {"seconds": None})],
)  # fmt: skip
def test_a_file_with_another_type_in_it_is_one_line(run: Path, name: str, changes: dict[str, Any]) -> None:
    text = json.loads((run / name).read_text()) | changes
    (run / name).write_text(json.dumps(text))
    with pytest.raises(UserError, match=rf"{name}: not a file of a finished run: ") as e:
        report(run)
    assert "\n" not in str(e.value)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        report(tmp_path / "none")


def test_other_classes_than_the_cards_are_refused(run: Path) -> None:
    result = json.loads((run / "steps.json").read_text())
    result["steps"][-1]["confusion"] = [[1, 0], [0, 1]]
    (run / "steps.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match="confusion matrix is not of the card's 3 classes"):
        report(run)


@pytest.mark.slow
def test_a_probe_that_no_epoch_beat_is_said_to_ship(run: Path) -> None:
    bundle = Bundle.load(run / "float")
    Bundle(bundle.card.replace(recipe={**bundle.card.recipe, "best_epoch": 0}), bundle.tensors).save(run / "float")
    text = visible(report(run).path.read_text())
    assert "No epoch beat the linear probe that training began with, so the probe is what ships" in text


def _changed(run: Path, **scores: Any) -> str:
    """The page of a run whose shipped file's scores are others."""
    result = json.loads((run / "steps.json").read_text())
    result["steps"][-1] |= scores
    (run / "steps.json").write_text(json.dumps(result))
    return report(run).path.read_text()


@pytest.mark.usefixtures("undrawn")
def test_what_probabilities_are_worth_is_drawn(run: Path) -> None:
    bins = [{"count": 10, "confidence": 0.5, "right": 0.4}, {"count": 30, "confidence": 0.9, "right": 0.9}]
    assert "Can it be trusted?" not in _changed(run)  # a run of before it was measured
    text = _changed(run, reliability=bins)
    assert "off by 2.5 points on average" in text
    assert "temperature" not in text
    card = Bundle.load(run / "float")
    known = Trust(200, 1.5, 4.0, 2.5, reject_below=0.83)
    Bundle(card.card.trusted(known), card.tensors).save(run / "float")
    text = " ".join(_changed(run, reliability_uncalibrated=[{"count": 40, "confidence": 0.9, "right": 0.8}]).split())
    assert "off by 10.0 before its logits were divided by 1.5, a temperature found on 200 val images" in text
    assert "below 83% is “unsure”" in text
    assert 'aria-label="Accuracy over confidence"' in text


@pytest.mark.parametrize(
    "bins", [3, [1], [{"count": 1}], [{"count": 1, "confidence": 7, "right": 0}], [{"count": "x" * 9}], {"a": 1}]
)
def test_bins_that_are_none_are_one_line(run: Path, bins: Any) -> None:
    with pytest.raises(UserError, match="not a file of a finished run: its reliability"):
        _changed(run, reliability=bins)


@pytest.mark.slow
def test_no_mistakes_no_budget_one_network(run: Path) -> None:
    result = json.loads((run / "steps.json").read_text())
    for s in result["steps"]:
        s |= {"confusion": np.diag([6, 6, 6]).tolist(), "top1": 100.0}
    (run / "steps.json").write_text(json.dumps(result))
    choice = json.loads((run / "choice.json").read_text())
    choice |= {"candidates": [choice["pick"]], "front": [choice["pick"]], "budget": {}}
    (run / "choice.json").write_text(json.dumps(choice))
    report(run)
    text = visible((run / "report.html").read_text())
    for value in ("18 of 18 held-out images are right, 0 wrong", "was the only network to choose from", "none set"):
        assert value in text


def test_report_imports_no_torch() -> None:
    code = "import sys, mobilenets.reports.fit; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
