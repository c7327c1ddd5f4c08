"""What a report shows of a network that places photos: a map, the nearest and the farthest guesses, floors.

A photo's own position is private: what is shown of it is the mean position of its cell.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets.deploy import engines, predict
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage
from mobilenets.reports import answers, style
from mobilenets.tasks import data_of
from mobilenets.tasks.geolocate import sphere
from mobilenets.tasks.geolocate.scores import CALLED, DISTANCES
from mobilenets.tasks.geolocate.task import TASK, partitions_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mobilenets.reports.fit import Page

TEMPLATE = "places.html"
LISTED = 10  # of the nearest and of the farthest guesses
SECONDS = 20.0  # at most, in which guesses are made for the map
# Natural Earth's land, 1:110 million (public domain), from npm's world-atlas 2.0.2, in tenths of a degree: rings of
# [longitude, latitude].
LAND = "land.json"
SOUTH = -60  # degrees: where the map ends, as there is but Antarctica beyond


@dataclass(frozen=True)
class Guessed:
    """A photo's place: its cell's mean position, the guess, their distance from the photo's own to the guess in km."""

    name: str
    true: tuple[float, float]
    guess: tuple[float, float]
    km: float


def columns(page: Page) -> list[tuple[str, str, str]]:  # noqa: ARG001
    """Scores of a step beside the primary one: title, name in steps.json, format."""
    return [
        ("within 1 km, %", "within1", "%.2f"), ("within 750 km, %", "within750", "%.2f"),
        ("median, km", "median_km", "%.1f"),
    ]  # fmt: skip


def check(page: Page) -> None:
    """Raises `UserError` where the scores have no shares at the usual distances."""
    scores = page.shipped.scores
    floors = scores.get("floors")
    found = [scores.get(name) for name in DISTANCES]
    for floor in floors.values() if isinstance(floors, Mapping) else [None]:
        found += [floor.get(name) if isinstance(floor, Mapping) else None for name in DISTANCES]
    if not all(type(v) in (int, float) for v in found):
        raise UserError("its scores aren't shares of photos by distance")


def values(page: Page, root: Path | None) -> dict[str, Any]:
    """What the template takes."""
    scores = page.shipped.scores
    rows = [
        {
            "name": f"{km:,.0f} km, {CALLED[name]}",
            "share": scores[name],
            "floors": [f[name] for f in scores["floors"].values()],
        }
        for name, km in DISTANCES.items()
    ]
    try:
        found = guessed(page.fitted.file, scores["split"], root)
    except UserError:
        found = []
    ranked = sorted(found, key=lambda g: g.km)
    return {
        **answers.values(page, root, draw=False),
        "distances": rows,
        "floors": list(scores["floors"]),
        "partitions": [(len(p), p.most, p.least) for p in partitions_of(page.card.config)],
        "map": style.markup(world(found), "Where photos were taken and where they were placed") if found else "",
        "nearest": ranked[:LISTED],
        "farthest": ranked[::-1][:LISTED],
        "mapped": len(found),
    }


def guessed(file: Path, split_name: str, root: Path | None) -> list[Guessed]:
    """A split's photos as the file places them, as many as time allows, drawn at random. Raises `UserError`."""
    engine = engines.load(file)
    card, data = engine.card, data_of(engine.card, None, root)
    split, (fine, *_) = data.split(split_name), partitions_of(card.config)
    order = np.random.default_rng(data.seed).permutation(len(split)).tolist()
    end, out = time.monotonic() + SECONDS, []
    cells = fine.find(split.targets)
    for i, outputs in predict.stream(engine, order, lambda i: split.pixels(i, card.preprocess)):
        if time.monotonic() > end:
            break
        if isinstance(outputs, BadImage) or cells[i] < 0:
            continue
        guess = fine.means[int(TASK.scored(outputs, card).argmax())]  # type: ignore[attr-defined]
        away = float(sphere.distance(guess, split.targets[i]))
        out.append(Guessed(split.names[i], _pair(fine.means[cells[i]]), _pair(guess), away))
    return out


def _pair(at: npt.NDArray[np.float64]) -> tuple[float, float]:
    return float(at[0]), float(at[1])


@functools.cache
def land() -> list[npt.NDArray[np.float64]]:
    """The coasts: rings [N, 2] of longitude and latitude, one that crosses the date line once on either side."""
    out = []
    for ring in json.loads(Path(__file__).with_name(LAND).read_text(encoding="utf-8")):
        lon, lat = np.array(ring).T
        if lat.max() < SOUTH:
            continue
        whole = np.unwrap(lon, period=360)
        out += [np.stack([whole + off, lat], 1) for off in (0, -360, 360) if abs(whole + off).min() < 180]
    return out


@style.styled
def world(found: list[Guessed]) -> Figure:
    """A map of true places and guesses, a line from each to its guess where they are more than 25 km apart."""
    fig = style.figure(3.9)
    ax = fig.add_subplot()
    for ring in land():
        ax.fill(ring[:, 0], ring[:, 1], facecolor=style.GRID, linewidth=0)
    for g in found:
        if g.km > DISTANCES["within25"]:
            ax.plot([g.true[1], g.guess[1]], [g.true[0], g.guess[0]], color=style.MUTED, linewidth=0.5, alpha=0.5)
    for name, colour, marker, size, which in (
        ("taken", style.BLUE, "o", 16, [g.true for g in found]),
        ("placed", style.ORANGE, "x", 10, [g.guess for g in found]),
    ):
        lat, lon = np.unique(np.array(which).reshape(-1, 2), axis=0).T
        ax.scatter(lon, lat, s=size, color=colour, marker=marker, linewidths=0.8, label=name)
    ax.set(xlim=(-180, 180), ylim=(SOUTH, 85), xlabel="longitude, degrees", ylabel="latitude, degrees")
    ax.set_aspect("equal")
    ax.legend(loc="lower left")
    return fig
