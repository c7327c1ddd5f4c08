"""Where an int8 network loses: the numbers against ones computed another way, the culprit named, the page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import Ran

from mobilenets.compression import quantize
from mobilenets.compression.calibrate import batches
from mobilenets.compression.quantize import Measured
from mobilenets.compression.scheme import Scheme
from mobilenets.compression.sensitivity import SHOWN, LayerReport, Line, layer_errors
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import classifier_card
from mobilenets.model.images import Pixels
from mobilenets.reports import layers
from mobilenets.tasks import features

KEPT = ("blocks.3.depthwise", "blocks.3.sum")


def line(report: LayerReport, name: str) -> Line:
    return next(o for o in report.lines if o.name == name)


def ratio_db(true: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(float((true**2).sum() / ((other - true) ** 2).sum()))


def outputs(network: simulate.FoldedNetwork, pixels: Pixels, measured: Measured) -> dict[str, torch.Tensor]:
    """What each operation gives, rounded where it is.

    In the report's batches: in others, sums are taken in another order, and a value at a tie may fall the other way.
    """
    names = measured.card.graph.shapes
    with torch.inference_mode():
        parts = [network.run({"input": x}, names) for x in batches(measured.card.preprocess, pixels)]
    return {name: torch.cat([part[name] for part in parts]) for name in names}


@pytest.fixture(scope="module")
def measured(make_bundle: Callable[..., Bundle], pixels: Pixels) -> Measured:
    return quantize.measure_ranges(make_bundle("v2"), pixels, Scheme(bias_correction=False))


@pytest.fixture(scope="module")
def report(measured: Measured, pixels: Pixels) -> LayerReport:
    return layer_errors(measured.bundle(KEPT), measured.folded, pixels, "some images")


def test_errors_are_those_between_the_two_networks(measured: Measured, report: LayerReport, pixels: Pixels) -> None:
    arch, graph, int8 = measured.card.arch, measured.card.graph, measured.bundle(KEPT)
    exact, rough = simulate.FoldedNetwork(arch, graph, measured.folded).eval(), simulate.SimulatedInt8(int8).eval()
    true, arriving = (outputs(n, pixels, measured) for n in (exact, rough))
    assert [o.name for o in report.lines] == [op.name for op in arch.ops]
    for op in arch.ops:
        got = line(report, op.name)
        assert got.arriving_db == pytest.approx(ratio_db(true[op.name].numpy(), arriving[op.name].numpy()), abs=0.1)
        assert got.seen == pytest.approx(
            (min(0, true[op.name].min().item()), max(0, true[op.name].max().item())), abs=1e-4
        )
        if op.name not in KEPT and not set(op.inputs) & set(KEPT):
            with torch.inference_mode():
                alone = rough.round(rough.of(op)(*(true[n] for n in op.inputs)), op.name)
            assert got.alone_db == pytest.approx(ratio_db(true[op.name].numpy(), alone.numpy()), abs=0.1)
    labels = [y["classifier"].flatten(1).argmax(1) for y in (true, arriving)]
    assert report.agreement == pytest.approx(100 * float((labels[0] == labels[1]).float().mean()))


def test_weights_and_their_channels(measured: Measured, report: LayerReport) -> None:
    name = "blocks.4.expand"
    true = measured.folded[name][0].astype(np.float64)
    tensors = measured.bundle().tensors
    held = tensors[f"{name}.weight"] * tensors[f"{name}.weight_scale"][:, None, None, None].astype(np.float64)
    got = line(report, name)
    assert got.weight_db == pytest.approx(ratio_db(true, held), abs=0.01)
    peaks = np.abs(true).max((1, 2, 3))
    assert got.peaks is not None
    assert (got.peaks.least, got.peaks.median, got.peaks.largest) == pytest.approx(
        (peaks.min(), np.median(peaks), peaks.max())
    )
    assert got.peaks.ratio == pytest.approx(peaks.max() / np.median(peaks))
    assert line(report, "pool").peaks is None


def test_operations_in_float_lose_nothing_alone(report: LayerReport) -> None:
    kept = [line(report, n) for n in KEPT]
    assert [(o.alone_db, o.covered, o.clipped) for o in kept] == [(None, None, 0), (None, None, 0)]
    assert kept[0].weight_db is None
    assert all(o.arriving_db is not None for o in kept)  # the errors from before arrive all the same
    assert {o.name for o in report.worst[-2:]} == set(KEPT)


def test_the_culprit_comes_first(make_bundle: Callable[..., Bundle], pixels: Pixels) -> None:
    """One channel a hundred times the others: with a scale for the whole layer, that layer is the worst."""
    b = make_bundle("v1")
    name, after = "blocks.5.depthwise", "blocks.5.pointwise"
    tensors = {k: v.copy() for k, v in b.tensors.items()}
    tensors[f"{name}.norm.weight"][0] *= 100
    tensors[f"{after}.conv.weight"][:, 0] = 0  # nothing reads it
    for per_layer in (True, False):
        m = quantize.measure_ranges(Bundle(b.card, tensors), pixels, Scheme(per_layer=per_layer))
        made = layer_errors(m.bundle(), m.folded, pixels)
        got = line(made, name)
        assert got.peaks is not None
        assert got.peaks.ratio > 20
        assert (made.worst[0].name == name) == per_layer


def test_what_is_clipped_is_counted(make_bundle: Callable[..., Bundle], pixels: Pixels) -> None:
    b = make_bundle("v1")
    m = quantize.measure_ranges(b, pixels, Scheme("minmax", bias_correction=False))
    name = b.card.graph.layers[0].name
    low, high = m.ranges[name]
    narrow = Measured(m.card, m.folded, m.corrected, {**m.ranges, name: (low, high / 3)}, m.per_layer)
    made = layer_errors(narrow.bundle(), m.folded, pixels)
    true = outputs(simulate.FoldedNetwork(b.card.arch, b.card.graph, m.folded).eval(), pixels, m)[name]
    expected = 100 * float((true > high / 3).float().mean())
    assert expected > 1
    assert line(made, name).clipped == pytest.approx(expected, rel=0.05)
    assert made.worst[0].name == name
    assert line(layer_errors(m.bundle(), m.folded, pixels), name).clipped == 0


def test_it_does_not_depend_on_how_often_an_image_is_shown(
    measured: Measured, report: LayerReport, pixels: Pixels
) -> None:
    twice = layer_errors(measured.bundle(KEPT), measured.folded, np.concatenate([pixels, pixels]))
    assert twice.images == 2 * len(pixels)
    for a, b in zip(report.lines, twice.lines, strict=True):
        assert a.arriving_db == pytest.approx(b.arriving_db, abs=1e-3)


@pytest.mark.parametrize("tap", ["", "blocks.3.depthwise"])
def test_a_network_of_features_is_compared_by_its_features(
    measured: Measured, make_bundle: Callable[..., Bundle], pixels: Pixels, tap: str
) -> None:
    m = quantize.measure_ranges(features.of_bundle(make_bundle("v2"), tap), pixels, Scheme(bias_correction=False))
    ours, whole = (layer_errors(one.bundle(), m.folded | measured.folded, pixels) for one in (m, measured))
    assert ours.lines == whole.lines[: len(ours.lines)]
    assert 0 < len(ours.lines) < len(whole.lines)
    assert ours.agreement > 90


# ---- shown ---------------------------------------------------------------------------------------------------------


def test_page_has_everything_in_it(report: LayerReport) -> None:
    page = layers.page(report)
    assert not re.search(r"<(script|link|iframe|object|base|img)\b|https?://|@import", page)
    assert page.count("<section") == page.count("</section>") == 2
    assert page.count("<svg") == 1
    rows = re.findall(r'<td class="l n">([\w.]+)</td><td class="l n">', page)
    assert rows == [o.name for o in report.worst]
    worst = report.worst[0]
    assert f"<b>{worst.name}</b>" in page
    assert "some images" in page


def test_table_and_json_have_the_worst_first(report: LayerReport, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from mobilenets import console

    console.print_whole(Console(width=60), report)
    shown = [w for w in capsys.readouterr().out.split() if w.startswith("blocks.")]
    assert shown == [o.name for o in report.worst[:SHOWN] if o.name.startswith("blocks.")]
    read = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert [o["name"] for o in read["operations"]] == [o.name for o in report.worst]
    assert read["operations"][0]["alone_db"] == report.worst[0].alone_db


@pytest.fixture(scope="module")
def verb(make_bundle: Callable[..., Bundle], colours: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """`quantize` of a network of three classes, but for --out and --layer-report."""
    b = make_bundle("v1")
    tensors = {k: v[:3] if k.startswith("classifier") else v for k, v in b.tensors.items()}
    card = classifier_card(b.card.arch.replace(num_classes=3), b.card.preprocess, ("blue", "green", "red"))
    source = tmp_path_factory.mktemp("float") / "float"
    Bundle(card, tensors).save(source)
    return ["quantize", source, colours]


@pytest.mark.slow
def test_the_verb_writes_the_page_beside_the_bundle(
    command: Callable[..., Ran], verb: list[object], tmp_path: Path
) -> None:
    page = tmp_path / "new" / "report.html"
    line = [*verb, "--out", tmp_path / "int8", "--keep-float", "blocks.3.depthwise", "--layer-report", page]
    got = command(*line, "--json").json
    assert got["precision"] == "int8"
    assert got["layer_report"]["images"] == 24
    assert got["layer_report"]["data"].endswith(" val")
    assert len(got["layer_report"]["operations"]) == len(Bundle.load(tmp_path / "int8").card.arch.ops)
    assert got["layer_report"]["operations"][-1]["name"] == "blocks.3.depthwise"
    assert "blocks.3.depthwise" in page.read_text()
    shown = command(*line)
    assert shown.code == 0
    assert str(page) in shown.out.replace("\n", "")


def test_a_folder_in_the_place_of_the_page(command: Callable[..., Ran], verb: list[object], tmp_path: Path) -> None:
    ran = command(*verb, "--out", tmp_path / "int8", "--layer-report", tmp_path)
    assert "is a folder" in ran.line
    assert not (tmp_path / "int8").exists()
