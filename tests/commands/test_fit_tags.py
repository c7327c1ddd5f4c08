"""`fit` of tags, end to end: chosen by a probe for each tag, trained, quantized, exported, proved, scored, reported."""

import json

import pytest

from mobilenets.model.bundle import Bundle

pytestmark = pytest.mark.usefixtures("small_grid")


@pytest.fixture(scope="module")
def table(colours, tmp_path_factory):
    """The colours as tags: each its own, and cold of blue and green."""
    path = tmp_path_factory.mktemp("table") / "tags.csv"
    lines = ["path,split,tags"]
    for image in sorted(colours.rglob("*.png")):
        split, colour = image.relative_to(colours).parts[:2]
        lines.append(f"{image.relative_to(colours).as_posix()},{split},{colour}{'' if colour == 'red' else ';cold'}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_fit(table, colours, make_bundle, command, tmp_path):
    make_bundle("v1").save(tmp_path / "weights" / "v1")
    out = tmp_path / "run"
    ran = command(
        "fit", table, "--task", "attributes", "--label-column", "tags", "--label-delimiter", ";", "--root", colours,
        "--out", out, "--weights", tmp_path / "weights", "--candidates", 1, "--epochs", 1, "--batch", 12,
        "--workers", 0, "--lr", 1e-3,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    steps, tried = (json.loads((out / f"{name}.json").read_text()) for name in ("steps", "candidates"))
    assert [s["precision"] for s in steps["steps"]] == ["float32", "float32", "int8", "int8"]
    assert steps["map"] > steps["steps"][0]["floors"]["map"]
    (one,) = tried["candidates"]
    assert one["low"] <= one["probe"] <= one["high"]
    start, made = Bundle.load(out / "start"), Bundle.load(out / "float")
    assert start.card.labels == ("blue", "cold", "green", "red")
    assert made.card.metrics[0].value >= start.card.metrics[0].value
    assert "sees most of these images" in (out / "report.html").read_text()
    page = (out / "report.html").read_text()
    for text in ("<small>mAP</small>", "By tag", "Without looking", "Sample predictions", "balanced, %"):
        assert text in page, text
    for text in ("top-1 accuracy", "confus", "worst classes"):
        assert text not in page, text
    again = command("eval", out, table, "--label-column", "tags", "--label-delimiter", ";", "--root", colours, "--json")
    assert again.json["map"] == pytest.approx(steps["map"])
