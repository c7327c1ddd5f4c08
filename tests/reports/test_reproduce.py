"""The papers' tables: what is printed, what is counted, and the page and figures made of them."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from mobilenets.arch import published, zoo
from mobilenets.commands.reproduce import reproduce
from mobilenets.errors import UserError
from mobilenets.reports.papers.checking import Checked, Result, agreement, check
from mobilenets.reports.papers.counting import value
from mobilenets.reports.papers.errata import ERRATA
from mobilenets.reports.papers.reproduce import NAMES
from mobilenets.reports.papers.tables import TABLES, Cell, Net, Rule, Table, What


def cell(table: str, row: str, column: str) -> Checked:
    cells = dict(check(TABLES[table]).rows)[row]
    return next(c for c in cells if c.column == column)


def compared(r: Result) -> list[tuple[str, Checked]]:
    return [(label, c) for label, c in r.cells() if c.status in ("agrees", "erratum", "differs")]


# ---- names and forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_name_gives_its_table_in_every_form(name: str) -> None:
    from rich.console import Console

    made = reproduce(name)
    assert [r.table.name for r in made.results] == ([] if name == "errata" else [name])
    assert bool(made.wrong) == (name == "errata")
    out = io.StringIO()
    Console(file=out, width=100).print(made)
    text = out.getvalue()
    assert name in text
    assert max(map(len, text.splitlines())) <= 100
    for _, c in (c for r in made.results for c in r.cells()):
        assert c.printed in text
        assert c.computed in text or f"{c.exact:,}" in text  # neither is cut at 100 columns
    json.dumps(made.to_json())


def test_no_name_is_all_and_json_has_every_cell() -> None:
    d = reproduce().to_json()
    assert [t["name"] for t in d["tables"]] == list(TABLES)
    assert len(d["errata"]) == len(ERRATA) + 1
    cells = {(t["name"], r["label"], c["column"]): c for t in d["tables"] for r in t["rows"] for c in r["cells"]}
    assert len(cells) == sum(len(t.columns) * len(t.rows) for t in TABLES.values())
    assert cells["v1-table7", "MobileNet 1.0-160", "mult-adds"] == {
        "column": "mult-adds",
        "unit": "M",
        "printed": "290",
        "computed": "290.68",
        "exact": 290_675_200,
        "agrees": False,
        "how": None,
        "status": "erratum",
        "erratum": {
            "cause": "truncated, or counted without the fully connected layer",
            "instead": 289_651_200,
            "instead_shown": "289.65 M",
            "explains": "rounded",
        },
        "source": "Howard et al., arXiv 1704.04861, table 7",
    }
    top1 = cells["v1-table7", "MobileNet 1.0-160", "top-1"]
    assert (top1["printed"], top1["computed"], top1["agrees"], top1["status"]) == ("67.2", None, None, "as published")
    assert cells["v1-table14", "MobileNet 1.0-128", "params"]["status"] == "can't be derived"


def test_an_unknown_name_gets_one_line_with_near_misses() -> None:
    with pytest.raises(UserError, match=r"unknown table 'v1-table99': did you mean .*'v1-table9'") as e:
        reproduce("v1-table99")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"known: v1-table1, .*errata"):
        reproduce("nothing like it")


def test_a_folder_cannot_be_the_page(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        reproduce("v1-table1", html=tmp_path)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from mobilenets import cli\n"
        "assert cli.run(['reproduce', *sys.argv[1:]]) == 0\n"
        "assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    for names in ((), ("v1-models", "errata"), ("--json",)):
        ran = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "568,740,352" in ran.stdout or "568740352" in ran.stdout


@pytest.mark.parametrize(
    ("table", "row", "macs", "params"),
    [
        ("v1-table13", "SSD300, MobileNet", 1_237_129_408, 6_819_839),
        ("v1-table13", "Faster-RCNN 300, MobileNet", 25_224_412_096, 6_065_995),
        ("v1-table13", "Faster-RCNN 600, MobileNet", 30_493_700_224, 6_065_995),
        ("v2-table6", "MNet V1 + SSDLite", 1_309_162_944, 5_100_661),
        ("v2-table6", "MNet V2 + SSDLite", 788_830_144, 4_337_013),
    ],
)
def test_detectors(table: str, row: str, macs: int, params: int) -> None:
    found = {c: cell(table, row, c) for c in ("mult-adds", "params")}
    assert (found["mult-adds"].exact, found["params"].exact) == (macs, params)
    assert {c.status for c in found.values()} == {"agrees"}


def test_what_a_head_adds() -> None:
    ssd, lite = (cell("v2-table5", row, "mult-adds") for row in ("SSD", "SSDLite"))
    assert (ssd.status, lite.status) == ("agrees", "erratum")
    assert agreement(lite.printed, 2 * int(str(lite.exact)), "G", "rounded or truncated") == "truncated"


# ---- counts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "row", "column", "exact"),
    [
        ("v1-table1", "in all", "mult-adds", 568_740_352),
        ("v1-table1", "in all", "params", 4_209_088),
        ("v1-table3", "standard convolution", "mult-adds", 462_422_016),
        ("v1-table3", "rho 0.714", "mult-adds", 15_091_200),
        ("v1-table4", "Conv MobileNet", "mult-adds", 4_867_293_184),
        ("v1-table5", "Shallow MobileNet", "mult-adds", 307_323_392),
        ("v1-table10", "MobileNet 0.75-192", "mult-adds", 238_597_632),
        ("v1-table11", "parameters, M", "PlaNet MobileNet", 13_425_088),
        ("v1-table12", "MobileNet 0.5-128", "mult-adds", 48_648_192),
        ("v2-table3", "max", "V1 memory", 1_605_632),
        ("v2-table3", "max", "V2 memory", 401_408),
        ("v2-table3", "block peak", "V1 memory", 1_204_224),
        ("v2-table3", "block peak", "V2 memory", 602_112),
        ("v2-table3", "layer peak", "V1 memory", 1_204_224),
        ("v2-table3", "layer peak", "V2 memory", 1_505_280),
        ("v2-table4", "MobileNetV2", "mult-adds", 300_774_272),
        ("v3-costs", "Large 1.0, paper", "mult-adds", 216_589_760),
        ("v3-costs", "Small 1.0, paper", "mult-adds", 56_510_400),
        ("v4-costs", "Conv-L", "mult-adds", 6_376_220_672),
        ("v2-models", "0.35-96", "mult-adds", 11_934_128),
    ],
)
def test_exact_counts(table: str, row: str, column: str, exact: int) -> None:
    assert cell(table, row, column).exact == exact


def test_models_are_counted_as_published() -> None:
    for name, params, macs in (
        ("v1", published.V1_PARAMS, published.V1_MACS_M),
        ("v2", published.V2_PARAMS, published.V2_MACS_M),
    ):
        rows = dict(check(TABLES[f"{name}-models"]).rows)
        assert len(rows) == {"v1": 16, "v2": 22}[name]
        for label, row in rows.items():
            alpha, resolution = float(label.split("-")[0]), int(label.split("-")[1])
            got = {c.column: c for c in row}
            assert got["trainable"].exact == params[alpha]
            assert abs(got["mult-adds"].exact / 1e6 - macs[alpha][resolution]) < (0.00501 if name == "v1" else 1)
            assert got["params"].status == "agrees"
        tops = published.TOP1[name]
        assert [row[0].printed for row in rows.values()] == [str(x) for by in tops.values() for x in by.values()]


def test_parts_of_a_network_add_up() -> None:
    by_block = [value(dataclasses.replace(r.net, kind=None), "macs") for r in TABLES["v1-table1"].rows[:-1] if r.net]
    assert sum(by_block) == value(Net(), "macs")
    assert sum(c.exact for r in check(TABLES["v1-table2"]).rows for c in r[1][:1]) == 100
    lines = [value(r.net, "weights") for r in TABLES["v2-table2"].rows[:-1] if r.net]
    assert sum(lines) == value(Net("v2"), "weights")
    norms = sum(op.cout for op in zoo.arch("v1").layers if op.norm)
    assert value(Net(), "folded") == 4_209_088 + 1000 + norms
    assert value(Net(), "slim") == 4_209_088 + 1000 + 3 * norms
    assert value(Net("v4-hybrid-m"), "params") > value(Net("v4-hybrid-m"), "folded")


@pytest.mark.parametrize(
    ("printed", "exact", "unit", "rule", "how"),
    [
        ("290", 290_675_200, "M", "rounded", ""),
        ("290", 290_675_200, "M", "rounded or truncated", "truncated"),
        ("291", 290_675_200, "M", "rounded", "rounded"),
        ("0.5", 450_000, "M", "rounded", "rounded"),
        ("0.4", 450_000, "M", "rounded", ""),
        ("5.9", 6_376_220_672, "Gi", "rounded", "rounded"),
        ("5.9", 6_376_220_672, "G", "rounded or truncated", ""),
        ("1600", 1_605_632, "KB", "near", "near"),
        ("62", 62_720, "KB", "near", "truncated"),
        ("199", 100_352, "KB", "near", ""),
        ("7x7x320", "7x7x320", "", "rounded", "equal"),
        ("7x7x320", "7x7x321", "", "rounded", ""),
    ],
)
def test_rules(printed: str, exact: int | str, unit: str, rule: Rule, how: str) -> None:
    assert agreement(printed, exact, unit, rule) == how


# ---- agreement and errata ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_cell_agrees_or_is_a_known_erratum(table: Table) -> None:
    r = check(table)
    assert not [(label, c) for label, c in r.cells() if c.status == "differs"]
    assert {(label, c.column) for label, c in r.errata} == {(e.row, e.column) for e in ERRATA if e.table == table.name}
    assert len(r.errata) == len([e for e in ERRATA if e.table == table.name])


def test_each_erratum_with_another_count_is_explained_by_it() -> None:
    found = [(t.name, label, c) for t in TABLES.values() for label, c in check(t).errata if c.instead is not None]
    assert len(found) == 18
    for table, label, c in found:
        if c.column == "stride":
            assert c.instead == 533_833_216  # shown, of another kind than the printed value
        else:
            assert c.explains, (table, label, c)
            assert not agreement(c.printed, c.exact, c.unit, TABLES[table].rule)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_another_printed_value_disagrees(table: Table) -> None:
    def other(printed: str) -> str:
        if "x" in printed or not printed:
            return printed.replace("x", "x1", 1)
        d = Decimal(printed)
        return str(d * 2 if table.rule == "near" else d + 2 * Decimal(1).scaleb(int(d.as_tuple().exponent)))

    def alter(x: str | Cell) -> str | Cell:
        return other(x) if isinstance(x, str) else dataclasses.replace(x, printed=other(x.printed))

    rows = tuple(dataclasses.replace(row, cells=tuple(alter(x) for x in row.cells)) for row in table.rows)
    before, after = compared(check(table)), compared(check(dataclasses.replace(table, rows=rows)))
    assert len(before) == len(after)
    for (label, was), (_, now) in zip(before, after, strict=True):
        if was.status == "agrees":
            assert now.status == "differs", (label, now)


def test_an_erratum_vanishes_with_the_right_value() -> None:
    t = TABLES["v1-table7"]
    assert [label for label, _ in check(t).errata] == ["MobileNet 1.0-160"]
    right = {"290": "291"}
    rows = tuple(dataclasses.replace(r, cells=tuple(right.get(str(x), x) for x in r.cells)) for r in t.rows)
    assert not check(dataclasses.replace(t, rows=rows)).errata


def test_what_the_causes_claim() -> None:
    assert sum(Decimal(row[0].printed) for _, row in check(TABLES["v1-table2"]).rows) == Decimal("99.29")
    share = cell("v1-table2", "Conv 3x3", "mult-adds")
    assert sorted(share.printed) == sorted(f"{float(share.exact):.2f}")  # digits swapped
    readme = [cell("v1-models", f"0.75-{r}", "mult-adds") for r in (224, 192, 160, 128)]
    ratios = [float(c.printed) * 1e6 / c.exact for c in readme]
    assert max(ratios) - min(ratios) < 0.001
    twice = cell("v1-models", "0.5-224", "mult-adds").exact / 1e6
    assert round(twice) == 149
    assert math.floor(round(twice, 1) + 0.5) == 150
    assert 1.9 < 199_000 / cell("v2-table3", "7x7", "V1 memory").exact < 2.1
    assert cell("v1-table11", "mult-adds, M", "PlaNet MobileNet").instead_shown == "0.5780 G"


def test_v4_counts_in_powers_of_two() -> None:
    rows = {label: {c.column: c for c in row} for label, row in check(TABLES["v4-costs"]).rows}
    gi = [agreement(r["mult-adds"].printed, r["mult-adds"].exact, "Gi", "rounded") for r in rows.values()]
    g = [agreement(r["mult-adds"].printed, r["mult-adds"].exact, "G", "rounded") for r in rows.values()]
    assert all(gi)
    assert [bool(x) for x in g] == [True, False, False, False, False]

    def fits(what: What, unit: str) -> list[bool]:
        nets = {row.label: row.net for row in TABLES["v4-costs"].rows}
        return [bool(agreement(r["params"].printed, value(nets[k], what), unit, "rounded")) for k, r in rows.items()]

    assert fits("folded", "Mi") == [False, True, True, True, True]
    assert fits("weights", "Mi") == [False, True, True, True, False]
    assert fits("params", "Mi") == [False, False, True, False, False]
    assert fits("folded", "M") == [True, False, False, False, False]


# ---- networks of others --------------------------------------------------------------------------------------------


def test_others_are_counted_from_their_own_rows() -> None:
    rows = dict(reproduce("v1-table8").results[0].rows)
    assert [c.status for c in rows["VGG16"]] == ["as published", "foreign", "foreign"]
    assert [c.how for c in rows["VGG16"]] == ["", "1.1% less", "0.3% less"]
    assert rows["GoogLeNet"][1].exact == 1_498_376_192
    assert rows["GoogLeNet"][1].cause == "beside googlenet at 224 pixels"
    assert rows["GoogLeNet"][1].to_json("")["agrees"] is None
    made = reproduce("v1-table8")
    assert "VGG16, mult-adds 15300 M (1.1% less); VGG16, params 138 M (0.3% less): beside" in str(
        made.results[0].explained
    )
    assert made.summary().startswith("2 printed values compared: 2 agree, 0 are errata. 4 more are shown beside")


@pytest.mark.parametrize(("table", "label"), [("v1-table9", "AlexNet"), ("v1-table10", "Inception V3")])
def test_every_comparator_of_others_is_counted(table: str, label: str) -> None:
    row = dict(check(TABLES[table]).rows)[label]
    assert [c.status for c in row] == ["as published", "foreign", "foreign"]


def test_what_squeezenet_prints_are_operations() -> None:
    """Its own README: 1.72 GFLOPS an image; it takes 819 M mult-adds."""
    row = dict(check(TABLES["v1-table9"]).rows)["SqueezeNet"]
    assert (row[1].status, row[1].computed) == ("erratum", "818.92")
    assert row[1].cause.startswith("operations")
    assert row[2].status == "foreign"
    assert 0.95 < 2 * row[1].exact / 1.7e9 < 1
