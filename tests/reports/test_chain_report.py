"""The page of a network that was made small: its card's steps, and what can't be shown. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mobilenets.commands.report import report
from mobilenets.compression import chain
from mobilenets.compression.chain import Link
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle


@pytest.fixture
def made(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    """A .mnz file that tells of four steps."""
    source = make_bundle("v1")
    links = (*chain.begun(source, 90.0), Link.of("pruned", source, 89.5), Link.of("shared", source, 88.25, 50_000))
    links = (*links, Link.of("coded", source, 88.25, 40_000))
    card = source.card.replace(recipe={**source.card.recipe, **chain.told(links)})
    Bundle(card, source.tensors).save(tmp_path / "small.mnz")
    return tmp_path / "small.mnz"


def test_each_step_has_its_size_and_its_score(made: Path) -> None:
    found = report(made)
    assert found.path.name == "small.mnz.html"
    assert [o["name"] for o in found.to_json()["chain"]] == ["float", "pruned", "shared", "coded"]
    page = found.path.read_text()
    assert "mathdefault" not in page  # how a logarithmic axis writes its numbers, which is no text in an SVG
    size = found.to_json()["chain"][0]["size_bytes"]
    for text in (f"{size / 1000:.1f}", f"{size / 40_000:.1f} times", "88.25", "40.0", "1.75"):
        assert text in page
    links = chain.kept(Bundle.load(made).card)
    assert (links[0].macs, links[0].params) == (links[-1].macs, links[-1].params)
    assert chain.begun(Bundle.load(made), 1.0) == links  # what comes next goes on from there


def test_coding_is_spoken_of_where_there_is_some(made: Path, tmp_path: Path) -> None:
    whole = Bundle.load(made)
    links = chain.kept(whole.card)[:-1]
    card = whole.card.replace(recipe={**whole.card.recipe, **chain.told(links)})
    Bundle(card, whole.tensors).save(tmp_path / "uncoded")
    pages = [report(path).path.read_text() for path in (made, tmp_path / "uncoded")]
    assert ["Coding loses nothing" in page for page in pages] == [True, False]


def test_a_bundle_that_tells_of_none(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    make_bundle("v1").save(tmp_path / "plain")
    with pytest.raises(UserError, match="plain: its card tells of no steps: report shows"):
        report(tmp_path / "plain")


@pytest.mark.parametrize(
    "bad", [[{"name": "float"}], [1], [{"name": 1, "macs": 1, "params": 1, "size_bytes": 1, "score": 1.0}]]
)
def test_steps_that_can_not_be(bad: list[object], made: Path) -> None:
    bundle = Bundle.load(made)
    with pytest.raises(UserError):
        chain.kept(bundle.card.replace(recipe={chain.KEY: bad}))
