"""Answers from a gallery: which of the places that there are a photo is from, as GeoCLIP answers. No torch.

GeoCLIP (Vivanco Cepeda and others 2023) compares a photo with every position of a gallery. Here the cells do: each
gives its probability to the gallery's positions around it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mobilenets.model.card import Card
from mobilenets.tasks.geolocate import sphere
from mobilenets.tasks.geolocate.cells import Partition
from mobilenets.tasks.geolocate.task import Geolocate, Guess, Place, partitions_of
from mobilenets.tasks.task import Answer, Outputs, Sizes

CELLS = 32  # of an image, the most probable, that have a say: the others have next to nothing to give
NEAR = 1.0  # km: the least distance over which a cell's probability falls to 1/e


class FromGallery(Geolocate):
    """Geolocation whose answers are positions of a gallery [N, 2], degrees.

    A cell's probability goes to the gallery's positions by exp(-km / its spread) of their distances from its mean
    position: to the nearest alone, where all are far.
    """

    def __init__(self, gallery: npt.NDArray[np.float64]) -> None:
        self.gallery = np.unique(gallery, axis=0)
        self.shares: dict[int, npt.NDArray[np.float64]] = {}

    def decode(self, outputs: Outputs, card: Card, sizes: Sizes, top: int) -> list[Answer]:  # noqa: ARG002
        fine = partitions_of(card.config)[0]
        tokens = fine.tokens()
        return [self._place(row, fine, tokens, top) for row in self.scored(outputs, card)]

    def _place(self, scores: npt.NDArray[np.float64], fine: Partition, tokens: list[str], top: int) -> Place:
        cells = np.argsort(-scores, kind="stable")[:CELLS].tolist()
        given = np.stack([scores[c] * self._share(c, fine) for c in cells])  # [cells, gallery]
        total = given.sum(0)
        best = np.argsort(-total, kind="stable")[:top].tolist()
        guesses = []
        for g in best:
            cell = cells[int(given[:, g].argmax())]
            latitude, longitude = map(float, self.gallery[g])
            guesses.append(Guess(latitude, longitude, float(fine.spreads[cell]), float(total[g]), tokens[cell]))
        return Place(tuple(guesses))

    def _share(self, cell: int, fine: Partition) -> npt.NDArray[np.float64]:
        """What the gallery's positions [N] get of a cell's probability; the sum is 1."""
        if cell not in self.shares:
            away = sphere.distance(fine.means[cell], self.gallery) / max(float(fine.spreads[cell]), NEAR)
            near = np.exp(away.min() - away)
            self.shares[cell] = near / near.sum()
        return self.shares[cell]
