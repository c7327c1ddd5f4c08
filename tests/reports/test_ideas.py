"""Ideas: counted as their formulas say, drawn with all that they have, found by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilenets.reports.explain import diagram
from mobilenets.reports.explain.lessons import LESSONS, Way
from mobilenets.reports.explain.page import ideas


def macs(name: str) -> dict[str, int]:
    return {w.name: w.macs for w in LESSONS[name].ways}


def test_what_is_counted_is_what_the_formulas_say() -> None:
    m = n = 128
    area = 32 * 32
    assert macs("separable") == {
        "standard": 9 * m * n * area,
        "factorized": (9 * m + m * n) * area,
        "flattened": (m * n + 2 * 3 * n) * area,
        "depthwise separable": (9 * m + m * n) * area,
    }
    assert macs("1x1") == {"3x3": 9 * m * n * area, "1x1": m * n * area}
    assert macs("fire")["fire"] == (m * 16 + 16 * 64 + 9 * 16 * 64) * area
    whole, grouped, _ = macs("shuffle").values()
    assert whole - grouped == 2 * 240 * 60 * area * 2 // 3
    pooled, strided = macs("stride").values()
    assert pooled == 4 * strided
    assert [w.params for w in LESSONS["pooling"].ways[1:]] == [49 * 1024 * 1000 + 1000, 1024 * 1000 + 1000]
    late, even, early = macs("downsampling").values()
    assert late > 2 * even > 4 * early
    base, thin, small = LESSONS["multipliers"].ways
    assert (small.macs * 4, small.params) == (base.macs, base.params)
    assert 1 / 4 < thin.macs / base.macs < 1 / 3


@pytest.mark.parametrize("way", [w for x in LESSONS.values() for w in x.ways], ids=lambda w: w.name)
def test_every_operation_is_drawn_in_a_place_of_its_own(way: Way) -> None:
    at = diagram.placed(way.source, way.ops)
    assert len({*at.values()}) == len(at) == 1 + len(way.ops)
    assert all(at[op.name][0] > at[name][0] for op in way.ops for name in op.inputs)
    drawn = diagram.drawn(way)
    boxes = len(way.cost.arch.blocks) + 1 if way.whole else len(at)
    assert drawn.count("<rect") == boxes
    assert re.search(r'aria-label="[^"]{6,}"', drawn)


def test_the_page_has_all(command: Callable[..., Any], tmp_path: Path) -> None:
    ran = command("explain", "--all", "--html", tmp_path / "ideas.html")
    assert ran.code == 0, ran.err
    text = (tmp_path / "ideas.html").read_text()
    assert all(f'id="{name}"' in text for name in LESSONS)
    assert "http:" not in text.replace("http://www.w3.org", "")


def test_one_by_name(command: Callable[..., Any]) -> None:
    got = command("explain", "fire", "--json").json
    assert [i["name"] for i in got["ideas"]] == ["fire"]
    assert [w["macs"] for w in got["ideas"][0]["ways"]] == [150_994_944, 12_582_912]
    shown = command("explain", "fire").out
    assert "conv 3x3 64 ─ concat" in " ".join(shown.split())
    assert json.loads(command("explain", "shuffle", "--json").out)["ideas"][0]["ways"][1]["params"] == 10_860


def test_what_is_none_is_one_line(command: Callable[..., Any]) -> None:
    assert "unknown network or idea 'fir': did you mean 'fire'?" in command("explain", "fir").line
    assert "explain needs a network, an idea, or --all" in command("explain").line
    assert "explain needs a network, an idea, or --all" in command("explain", "v1", "--all").line


def test_a_page_of_one() -> None:
    from mobilenets.reports.explain.lessons import Lessons

    text = ideas(Lessons((LESSONS["stride"],)))
    assert "<nav" not in text
    assert "<title>A stride in place of pooling</title>" in text
