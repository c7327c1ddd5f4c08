"""Results in notebooks: tables, escaped; bars where they can be drawn."""

import dataclasses
import io
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from PIL import Image
from rich.console import Console, Group
from rich.text import Text

import mobilenets
from mobilenets import console
from mobilenets.arch import cost, zoo


def cells(markup):
    """The texts of every table in a piece of HTML, which must be well-formed."""
    root = ET.fromstring(f"<div>{markup.replace('<br>', '<br/>')}</div>")
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]


def test_a_table_is_a_table():
    t = console.table("sizes <b>", ["name", "size\nMB"], left=("name",))
    t.add_row("<script>", Text("1 & 2"))
    t.caption = "of all"
    markup = console.html(Group(t, Text("a\n<i>")))
    assert cells(markup) == [["name", "sizeMB"], ["<script>", "1 & 2"]]
    assert "<script>" not in markup
    assert markup.startswith("<p>sizes &lt;b&gt;</p><table>")
    assert markup.endswith("<p>of all</p><pre>a\n&lt;i&gt;</pre>")
    assert 'style="text-align: right">1 &amp; 2<' in markup


def test_a_card_and_a_bundle(make_bundle):
    bundle = make_bundle("v1")
    card = bundle.card.replace(licence="<b>mine</b>")
    rows = dict(cells(card._repr_html_())[1:])
    assert rows["network"] == "v1 0.25-32, float32"
    assert rows["licence"] == "<b>mine</b>"
    assert "<b>" not in card._repr_html_()
    assert dict(cells(bundle._repr_html_())[1:])["licence"] == "Apache-2.0"
    assert len(repr(bundle)) < 3000  # its tensors are not in it


def test_a_prediction(tmp_path):
    model = mobilenets.load("cifar10-v1-0.25")
    said = model.predict(Image.new("RGB", (40, 40), "red"), top=3)
    assert cells(said._repr_html_())[1:] == [[label, f"{100 * p:.1f}%"] for label, p in said.top]
    (tmp_path / "<a>.png").write_bytes(b"junk")
    bad = model.predict(tmp_path / "<a>.png")
    assert "damaged image" in cells(bad._repr_html_())[1][1]
    assert "<a>" not in bad._repr_html_()


def test_costs_by_layer_and_in_all():
    counted = cost.count(zoo.arch("v1"))
    assert ["macs (M)", "568.74"] in [row[:2] for row in cells(counted._repr_html_())]
    row = counted.rows[0]
    assert dict(cells(row._repr_html_())[1:]) == {k: str(v) for k, v in dataclasses.asdict(row).items()}


@pytest.mark.parametrize(
    "result",
    [
        lambda: mobilenets.list_networks("v2"),
        lambda: mobilenets.recipes("cifar"),
        lambda: mobilenets.reproduce("v1-table8"),
        lambda: mobilenets.show("cifar10-v2"),
        lambda: mobilenets.list_networks("v2").entries[0],
    ],
)
def test_other_results_have_tables(result):
    assert len(cells(result()._repr_html_())) > 3


@pytest.mark.parametrize(
    ("notebook", "widgets", "drawn"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_bars_in_notebooks(monkeypatch, notebook, widgets, drawn):
    """Where rich can draw them: it needs ipywidgets."""
    monkeypatch.setattr(console.err(), "is_jupyter", notebook)
    monkeypatch.setattr(console.importlib.util, "find_spec", lambda _name: object() if widgets else None)
    assert console.progress().disable is not drawn


def test_a_log_in_colour_has_no_bars_but_lines():
    """CI services set FORCE_COLOR, by which rich takes their log for a terminal."""
    code = (
        "from mobilenets import console\n"
        "with console.progress() as bar:\n"
        "    task = bar.add_task('x', total=3, status='')\n"
        "    for _ in range(3):\n"
        "        bar.advance(task)\n"
        "        console.done('one more')\n"
        "with console.downloading('y') as told:\n"
        "    told(1, 2)\n"
    )
    for forced in ({}, {"FORCE_COLOR": "1"}):
        environment = {k: v for k, v in os.environ.items() if k != "FORCE_COLOR"} | forced
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert done.stderr.splitlines() == ["one more"] * 3 + ["fetching y"]
        assert done.stdout == ""


def numbers(text):
    return sorted(re.findall(r"[0-9][0-9,.x%]*", text))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "line",
    [
        ("cost", "v1", "--layers"), ("cost", "v4-conv-s", "--layers"), ("list", "v3"), ("recipes",),
        ("explain", "v3-small"), ("reproduce", "v1-table12"), ("show", "cifar10-v2"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_no_number_is_cut_in_any_width(command, monkeypatch, line):
    """Words are broken, or the width is exceeded."""
    shown = {}
    for width in (20, 47, 60, 80, 99, 120, 136, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        shown[width] = numbers(command(*line).out)
    assert len(shown[200]) > 5
    assert [w for w, found in shown.items() if found != shown[200]] == []


@pytest.mark.parametrize("width", [20, 60, 100])
def test_no_title_is_cut_in_its_words(capsys, monkeypatch, width):
    """A bundle's path is the title of its table: it can be copied from any terminal."""
    monkeypatch.setenv("COLUMNS", str(width))
    title = "/home/someone/" + "a-long-folder-name/" * 5 + "cifar10-v2"
    t = console.table(title, ["", "value"], left=["", "value"])
    t.add_row("network", "v2")
    console.print_whole(console.err(), t)
    assert title in capsys.readouterr().err


def test_a_dumb_terminal_cuts_no_number(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    made = console.table("a table", ["a", "b"])
    made.add_row("1" * 70, "2" * 70)
    written = io.StringIO()

    def wider(stderr, **how):
        assert not stderr
        return Console(file=written, force_terminal=True, **how)

    monkeypatch.setattr(console, "_console", wider)
    console.print_whole(Console(file=written, force_terminal=True, width=80), made)
    assert "2" * 70 in written.getvalue()
