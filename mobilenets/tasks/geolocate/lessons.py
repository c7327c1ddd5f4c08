"""What a network for places learns of another: how probable this finds the student's cells, whatever its own are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mobilenets.arch.heads import LOGITS, PROBABILITIES
from mobilenets.errors import UserError
from mobilenets.tasks.geolocate.cells import Partition
from mobilenets.tasks.geolocate.losses import NOWHERE
from mobilenets.tasks.lesson import Learning
from mobilenets.tasks.task import Objective
from mobilenets.tasks.taught import Taught

LEAST = 1e-7  # a probability of a file's that isn't told from 0


class OfCells:
    """The teacher's finest cells: each says of the student's cell that its mean position lies in, of every partition.

    Raises `UserError` where none lies in any.
    """

    def __init__(self, theirs: Partition, ours: Sequence[Partition], taps: Sequence[str]) -> None:
        """`taps`: the student's logits, by partition."""
        self.width, self.taps = len(theirs), tuple(taps)
        found = [torch.from_numpy(p.find(theirs.means)) for p in ours]
        if all(bool((cells == NOWHERE).all()) for cells in found):
            raise UserError("none of the teacher's cells lies in the student's: they know other parts of the globe")
        # [teacher's cells, student's cells], 1 where one lies in the other
        self.inside = [F.one_hot(c + 1, len(p) + 1)[:, 1:].float() for c, p in zip(found, ours, strict=True)]
        self.learns = f"{self.width} cells"

    def read(self, said: Mapping[str, Tensor]) -> Tensor:
        """Logits [N, cells], up to a constant of each image: of a network, or of a file's probabilities."""
        if LOGITS in said:
            return said[LOGITS].float()
        return said[PROBABILITIES].float().clamp(min=LEAST).log()

    def off(self, outputs: Mapping[str, Tensor], said: Tensor, _labels: Objective, temperature: float) -> Tensor:
        """T^2 times the divergence of softened probabilities, nats, the mean over partitions.

        Photos that the teacher puts outside all of a partition's cells say nothing of it.
        """
        soft = (said / temperature).softmax(1)
        each = []
        for tap, inside in zip(self.taps, self.inside, strict=True):
            wanted = soft @ inside.to(soft.device)
            sure = wanted.sum(1, keepdim=True)
            wanted = wanted / sure.clamp(min=LEAST)
            log_p = F.log_softmax(outputs[tap].float() / temperature, 1)
            off = F.kl_div(log_p, wanted, reduction="none").sum(1)
            each.append((off * sure[:, 0]).mean())
        return torch.stack(each).mean() * temperature**2

    def objective(self, labels: Objective, how: Learning, ask: Callable[[Tensor], Tensor] | None) -> Objective:
        return Taught(labels, self, how, ask)
