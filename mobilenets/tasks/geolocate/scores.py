"""How near guessed places are to the true ones, beside what can be had without looking. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets.console import Notebook
from mobilenets.tasks.geolocate import sphere

if TYPE_CHECKING:
    from rich.console import RenderableType

# km, as Im2GPS has them (Hays and Efros 2008; Vo, Jacobs and Hays 2017): street, city, region, country, continent.
DISTANCES = {"within1": 1.0, "within25": 25.0, "within200": 200.0, "within750": 750.0, "within2500": 2500.0}
CALLED = {
    "within1": "street", "within25": "city", "within200": "region", "within750": "country", "within2500": "continent"
}  # fmt: skip


@dataclass(frozen=True)
class PlaceScores(Notebook):
    """Shares of `count` photos, percent, that were placed within each of `DISTANCES`; `median_km` of all.

    `floors`: the same of the answers that need no look: always the most frequent cell, always the best single point.
    """

    within: dict[str, float]
    median_km: float
    loss: float
    count: int
    split: str
    data: str
    floors: dict[str, dict[str, float]]
    skipped: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        return self.within["within25"]

    def to_json(self) -> dict[str, Any]:
        return {
            **self.within,
            "median_km": self.median_km,
            "loss": self.loss,
            "count": self.count,
            "split": self.split,
            "data": self.data,
            "floors": self.floors,
            "skipped": list(self.skipped),
        }

    def details(self) -> dict[str, Any]:
        return {}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        from mobilenets.console import many, table

        t = table(f"{self.data}, {self.split} split", ["placed within", "value", *self.floors], left=("placed within",))
        for name, km in DISTANCES.items():
            floors = (f"{one[name]:.2f}" for one in self.floors.values())
            t.add_row(f"{km:,.0f} km, {CALLED[name]} (%)", f"{self.within[name]:.2f}", *floors)
        t.add_row(
            "median distance (km)", f"{self.median_km:,.1f}", *(f"{f['median_km']:,.1f}" for f in self.floors.values())
        )
        t.add_row("loss (nats)", f"{self.loss:.4f}", *[""] * len(self.floors))
        t.add_row("images", f"{self.count:,}", *[""] * len(self.floors))
        bad = f"{many(len(self.skipped), 'damaged image')} skipped: {'; '.join(self.skipped[:5])}"
        return Group(t, *[bad] * bool(self.skipped))


def shares(guessed: npt.ArrayLike, true: npt.ArrayLike) -> tuple[dict[str, float], float]:
    """Percent of guesses [N, 2] or [2] within each distance of true positions [N, 2], and the median distance, km."""
    away = np.broadcast_to(sphere.distance(guessed, true), (len(np.asarray(true)),))
    if not len(away):
        return dict.fromkeys(DISTANCES, 0.0), 0.0
    return {name: 100 * float((away <= km).mean()) for name, km in DISTANCES.items()}, float(np.median(away))


class PlaceTally:
    """Adds up batches of guesses into `PlaceScores`: four numbers of each photo are kept.

    `floors`: by name, the single position [2] that is always given.
    """

    def __init__(self, floors: dict[str, Sequence[float]]) -> None:
        self.floors = floors
        self.guessed: list[npt.NDArray[np.float64]] = []
        self.true: list[npt.NDArray[np.float64]] = []
        self.nats: list[npt.NDArray[np.float64]] = []

    def add(
        self, guessed: npt.NDArray[np.float64], true: npt.NDArray[np.float64], probable: npt.NDArray[np.float64]
    ) -> None:
        """Guesses and true positions [N, 2], and how probable the true cell was [N], NaN of what lies in none."""
        self.guessed.append(guessed)
        self.true.append(true)
        self.nats.append(-np.log(np.maximum(probable, 1e-12)))

    def compute(self, data: str, split: str, skipped: tuple[str, ...] = ()) -> PlaceScores:
        none = [np.empty((0, 2))]
        guessed, true = (np.concatenate(some or none) for some in (self.guessed, self.true))
        nats = np.concatenate(self.nats or [np.empty(0)])
        known = nats[~np.isnan(nats)]
        within, median = shares(guessed, true)
        floors = {}
        for name, at in self.floors.items():
            found, far = shares(at, true)
            floors[name] = {**found, "median_km": far}
        loss = float(known.mean()) if len(known) else 0.0
        return PlaceScores(within, median, loss, len(true), split, data, floors, skipped)
