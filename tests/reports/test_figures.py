"""Figures, of choices, curves and confusions made here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from choices import make_choice, write_metrics

from mobilenets.arch import cost, zoo
from mobilenets.deploy.choose import Choice
from mobilenets.errors import UserError
from mobilenets.reports import plots, style
from mobilenets.tasks.classify import PRIMARY
from mobilenets.tasks.confusion import Confusion
from mobilenets.training.fitted import Step


@pytest.fixture(scope="module")
def choice() -> Choice:
    return make_choice(zoo.arch("v1", 0.25, 128), latency_ms=0.4, size_mb=0.5)


def test_save_by_suffix(tmp_path: Path, choice: Choice) -> None:
    for suffix, start in ((".png", b"\x89PNG"), (".pdf", b"%PDF"), (".SVG", b"<?xml")):
        path = tmp_path / "new" / f"plot{suffix}"
        style.save(plots.pareto(choice), path)
        assert path.read_bytes().startswith(start)
    for bad in ("plot.gif", "plot"):
        with pytest.raises(UserError, match="a figure is written as"):
            style.save(plots.pareto(choice), tmp_path / bad)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["plot.SVG", "plot.pdf", "plot.png"]


def test_svg_takes_the_pages_colours(choice: Choice) -> None:
    text = style.svg(plots.pareto(choice), 'a "title" & <more>')
    assert text.startswith("<svg")
    assert text.rstrip().endswith("</svg>")
    assert 'aria-label="a &quot;title&quot; &amp; &lt;more&gt;"' in text
    assert "var(--green,#009e73)" in text
    assert set(re.findall(r"#[0-9a-f]{6}\b", text)) <= set(style.CSS_NAMES)  # none that a dark page couldn't change
    assert text == style.svg(plots.pareto(choice), 'a "title" & <more>')


@pytest.mark.parametrize(
    ("count", "budget"),
    [(1, {}), (1, {"latency_ms": 0.1}), (6, {"size_mb": 0.3}), (6, {"latency_ms": 1e5}), (3, {"latency_ms": 0.15})],
)
def test_pareto_of_any_choice(count: int, budget: dict[str, float]) -> None:
    text = style.svg(plots.pareto(make_choice(zoo.arch("v2", 0.5, 96), count, **budget)), "")
    assert "the pick" in text
    assert ("over the size limit" in text) == ("size_mb" in budget)
    assert ("budget" in text) == ("latency_ms" in budget)
    assert ("far to the right" in text) == (budget.get("latency_ms", 0) > 100)
    assert ("Pareto front" in text) == (count > 1)


def test_pareto_draws_every_network_once(choice: Choice) -> None:
    fig = plots.pareto(choice)
    dots = [tuple(map(float, at)) for c in fig.axes[0].collections for at in c.get_offsets()]
    every = [(c.latency_ms, c.prior.value) for c in choice.candidates]
    assert sorted(dots) == sorted([*every, (choice.pick.latency_ms, choice.pick.prior.value)])  # and the pick's star


def test_a_choice_survives_json(choice: Choice) -> None:
    again = Choice.from_json(json.loads(json.dumps(choice.to_json())))
    assert again.to_json() == choice.to_json()
    assert again.pick in again.candidates
    assert [c.arch.title for c in again.front] == [c.arch.title for c in choice.front]
    assert again.pick == choice.pick


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves_of_any_length(tmp_path: Path, epochs: int) -> None:
    text = style.svg(plots.curves(write_metrics(tmp_path / "metrics.csv", epochs), PRIMARY, epochs), "")
    assert f"kept: epoch {epochs}" in text


@pytest.mark.parametrize("text", ["", "epoch,val_top1\n", "epoch,val_top1\nx,1\n", "val_top1\n1\n", "epoch,a\n1,b\n"])
def test_curves_of_what_is_no_log(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.csv"
    with pytest.raises(UserError, match="can't be read"):
        plots.curves(path, PRIMARY)
    path.write_text(text)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        plots.curves(path, PRIMARY)


@pytest.mark.parametrize("classes", [2, 12, 30, 31, 1000])
def test_confusion_of_any_size(classes: int) -> None:
    m = 40 * np.eye(classes, dtype=np.int64)
    m[0, 1] = m[classes - 1, 0] = 7
    labels = [f"$class_{i} 名\n{'x' * 40}" for i in range(classes)]
    m = Confusion.of_matrix(m)
    text = style.svg(plots.confusion(m, labels), "")
    assert ("other" in text) == (classes > plots.MOST_CLASSES)
    shown = plots.shown_classes(m)
    assert len(shown) == min(classes, plots.MOST_CLASSES)
    assert {0, 1, classes - 1} <= set(shown)
    assert text.count("$class_0") == 2  # a row and a column
    assert len(text) < 400_000


def test_labels_are_text_in_figures() -> None:
    text = style.svg(
        plots.confusion(Confusion.of_matrix([[3, 1], [0, 4]]), ["<script>alert(1)</script>", "-->]]><b>"]), ""
    )
    assert "<script" not in text
    assert "<b" not in text
    assert "&lt;script&gt;" in text


def test_confusion_of_classes_without_images() -> None:
    fig = plots.confusion(Confusion.of_matrix([[0, 0], [0, 0]]), ["a", "b"])
    (cells,) = fig.axes[0].collections
    assert len(cells.get_paths()) == 0
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["a", "b"]


def test_steps_show_each_accuracy() -> None:
    rows = [Step(f"s{i}", "p", "e", "int8", 1, {"top1": t, "count": n}) for i, (t, n) in enumerate([(0, 1), (100, 3)])]
    text = style.svg(plots.steps(rows, PRIMARY), "")
    assert "100.00" in text
    assert "0.00" in text


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_cost_figures(name: str) -> None:
    c = cost.count(zoo.arch(name, 0.5, 96))
    text = style.svg(plots.cost_shares(c), "")
    for macs, weights in c.shares().values():
        assert f"{macs:.1f}" in text
        assert f"{weights:.1f}" in text or weights < 0.05
    assert "Conv DW" in style.svg(plots.layers(c), "")
