"""Answers from a gallery: which of the places that there are a photo is from, as GeoCLIP answers. No torch.

GeoCLIP (Vivanco Cepeda and others 2023) compares a photo with every position of a gallery. Here the cells do: each
gives its probability to the gallery's positions around it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mobilenets.tasks.geolocate import sphere
from mobilenets.tasks.geolocate.cells import Partition

CELLS = 32  # of an image, the most probable, that have a say: the others have next to nothing to give
NEAR = 1.0  # km: the least distance over which a cell's probability falls to 1/e

Floats = npt.NDArray[np.float64]


class Gallery:
    """Positions [N, 2], degrees, that answers are taken from.

    A cell's probability goes to them by exp(-km / its spread) of their distances from its mean position: to the nearest
    alone, where all are far.
    """

    def __init__(self, positions: Floats) -> None:
        self.positions = np.unique(positions, axis=0)
        self.shares: dict[int, Floats] = {}

    def best(self, scores: Floats, fine: Partition, top: int) -> list[tuple[Floats, float, int]]:
        """Positions [2], the most probable first, by the cells' probabilities [C].

        Each with its probability, and the cell that gave most of it.
        """
        cells = np.argsort(-scores, kind="stable")[:CELLS].tolist()
        given = np.stack([scores[c] * self._share(c, fine) for c in cells])  # [cells, positions]
        total = given.sum(0)
        order = np.argsort(-total, kind="stable")[:top].tolist()
        return [(self.positions[g], float(total[g]), cells[int(given[:, g].argmax())]) for g in order]

    def _share(self, cell: int, fine: Partition) -> Floats:
        """What the positions get of a cell's probability [N]; the sum is 1."""
        if cell not in self.shares:
            away = sphere.distance(fine.means[cell], self.positions) / max(float(fine.spreads[cell]), NEAR)
            near = np.exp(away.min() - away)
            self.shares[cell] = near / near.sum()
        return self.shares[cell]
