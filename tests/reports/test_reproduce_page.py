"""The papers' figures and tables as a page."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from mobilenets.arch import cost, published, zoo
from mobilenets.commands.reproduce import reproduce
from mobilenets.reports import style
from mobilenets.reports.papers import figures
from mobilenets.reports.papers.errata import ERRATA
from mobilenets.reports.papers.tables import TABLES, UNITS, Row

# ---- figures -------------------------------------------------------------------------------------------------------


def test_points_are_published_accuracies_and_counted_costs() -> None:
    dots = figures.points()
    by = {f: [p for p in dots if p.family == f] for f in figures.COLOURS}
    assert {f: len(d) for f, d in by.items()} == {"V1": 16, "V2": 22, "V3": 4, "V4": 5, "others": 4}
    for p in by["V1"]:
        assert p.top1 == published.V1_TOP1[p.alpha][p.resolution]
        counted = cost.count(zoo.arch("v1", p.alpha, p.resolution))
        assert (p.macs_m, p.params_m) == (counted.macs / 1e6, counted.params / 1e6)
    assert [(p.label, p.top1, p.macs_m, p.params_m) for p in by["others"]][1] == ("VGG16", 71.5, 15300, 138)
    a, b = figures.fit(by["V1"])
    x, y = [math.log2(p.macs_m) for p in by["V1"]], [p.top1 for p in by["V1"]]
    slope = np.cov(x, y)[0, 1] / np.var(x, ddof=1)
    assert b == pytest.approx(slope)
    assert a == pytest.approx(np.mean(y) - slope * np.mean(x))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("draw", [figures.accuracy_over_macs, figures.accuracy_over_params, figures.balls])
def test_charts_draw_their_points(draw: figures.Drawing) -> None:
    (ax,) = draw().axes
    drawn = {tuple(xy) for c in ax.collections if isinstance(c, PathCollection) for xy in c.get_offsets().tolist()}
    largest = {(p.family, p.label): p for p in reversed(figures.points())}.values()
    wanted = largest if draw is figures.balls else figures.points()
    for p in wanted:
        assert (p.params_m if draw is figures.accuracy_over_params else p.macs_m, p.top1) in drawn
    texts = {t.get_text() for t in ax.texts}
    assert {"MobileNet V1", "MobileNet V2", "MobileNet V3", "MobileNet V4", "VGG16", "Conv-L", "0.25", "1.4"} <= texts
    lo, hi = ax.get_ylim()
    assert all(lo < p.top1 < hi for p in figures.points() if p in wanted)


@pytest.mark.slow
def test_a_balls_area_is_its_parameters() -> None:
    (ax,) = figures.balls().axes
    sizes = {c.get_offsets().tolist()[0][0]: c.get_sizes()[0] for c in ax.collections if c.get_sizes()[0] != 2}
    v1, vgg = (next(p for p in figures.points() if p.label == label) for label in ("0.25", "VGG16"))
    assert sizes[vgg.macs_m] / sizes[v1.macs_m] == pytest.approx(vgg.params_m / v1.params_m)


def test_shares_fill_the_bars() -> None:
    left, right = figures.shares().axes
    for ax in (left, right):
        ends = {}
        for bar in ax.patches:
            row = round(bar.get_y() + bar.get_height() / 2)
            ends[row] = ends.get(row, 0) + bar.get_width()
        assert list(ends.values()) == pytest.approx([100] * len(figures.SHARED))
    assert left.patches[0].get_width() == 0  # standard convolutions alone: nothing is 1x1
    v1 = cost.count(zoo.arch("v1")).shares()["pointwise"][0]
    assert v1 in [bar.get_width() for bar in left.patches]


def test_a_relu_loses_more_in_fewer_dimensions() -> None:
    x = figures.spiral()

    def lost(n: int) -> float:
        """The share of the spiral that no affine map of what is left gives back."""
        y = np.c_[figures.through_relu(x, n), np.ones(len(x))]
        rest = x - y @ np.linalg.lstsq(y, x, rcond=None)[0]
        return float((rest**2).sum() / ((x - x.mean(0)) ** 2).sum())

    assert lost(2) > 3 * lost(15) > 3 * lost(30) / 2
    assert lost(30) < 0.1
    np.testing.assert_array_equal(figures.through_relu(x, 5), figures.through_relu(x, 5))  # seeded
    assert len(figures.collapse().axes) == 1 + len(figures.DIMENSIONS) == 6


# ---- the page ------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.sections: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.sections += [v for k, v in attrs if tag == "section" and k == "id" and v]
        self.links += [v for k, v in attrs if k in ("href", "src", "srcset", "data") and v]


def test_the_page_has_everything_and_needs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    made = reproduce(html=path)
    text = path.read_text()
    assert (made.page, made.size_bytes) == (path, len(text.encode()))
    assert made.to_json()["page"] == str(path)
    page = Page(text)
    assert len(set(page.ids)) == len(page.ids) > 100
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert page.sections == [*(f"figure-{f.name}" for f in figures.FIGURES), *TABLES, "errata"]
    assert page.tags.count("table") == len(TABLES) + 1
    assert page.tags.count("svg") == len(figures.FIGURES) == 5
    assert {link for link in page.links if not link.startswith("#")} == set()
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not re.search(r"https?:|url\((?!#)|@import|<script|<link|<img", text)
    assert "prefers-color-scheme: dark" in text
    assert [c for c in ("blue", "orange", "green", "pink", "muted") if f"var(--{c}," not in text] == []
    assert text.count('class="printed erratum"') == len(ERRATA)
    for e in ERRATA:
        assert e.cause in text.replace("&#39;", "'").replace("&#34;", '"')
    assert text.count("568,740,352") > 5


@pytest.mark.slow
def test_a_page_of_one_table(tmp_path: Path) -> None:
    reproduce("v1-table2", html=tmp_path / "p.html")
    page = Page((tmp_path / "p.html").read_text())
    assert page.tags.count("table") == 1
    assert [i for i in page.sections if not i.startswith("figure-")] == ["v1-table2"]


def test_tables_are_well_formed() -> None:
    for t in TABLES.values():
        assert len({r.label for r in t.rows}) == len(t.rows)
        assert len({c.name for c in t.columns}) == len(t.columns)
        assert all(isinstance(r, Row) and len(r.cells) == len(t.columns) for r in t.rows)
        assert all(c.unit in UNITS for c in t.columns)
    assert style.INK in style.CSS_NAMES


@pytest.mark.parametrize("width", ["40", "80", None])
def test_digits_are_never_cut(command, monkeypatch, width):
    if width:
        monkeypatch.setenv("COLUMNS", width)
    else:
        monkeypatch.delenv("COLUMNS", raising=False)
    for name in ("v1-table12", "v1-table4", "v2-table4"):
        ran = command("reproduce", name)
        exact = [c["exact"] for t in ran_json(command, name) for r in t["rows"] for c in r["cells"] if c.get("exact")]
        for number in exact:
            if isinstance(number, int):
                assert f"{number:,}" in ran.out


def ran_json(command, name):
    return command("reproduce", name, "--json").json["tables"]
