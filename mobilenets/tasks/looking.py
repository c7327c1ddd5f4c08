"""Where a classifier looks: its class activation map (Zhou and others 2016, equation 2). No torch.

Where a linear layer reads the mean of the last map, a label's logit is the mean over positions of a linear function of
that map: the share of each position is exact, but for the rounding of an int8 network.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mobilenets.arch.heads import LOGITS
from mobilenets.model.card import Card

KINDS = ("linear", "pointwise", "conv")
Floats = npt.NDArray[np.float32]


def last_map(card: Card) -> tuple[str, str] | None:
    """A classifier's last layer and the map whose mean it reads, by name; None where it is built otherwise."""
    ops = card.graph.by_name
    if card.task != "classify" or LOGITS not in ops or ops[LOGITS].inputs[0] not in ops:
        return None
    layer = ops[ops[LOGITS].inputs[0]]
    if layer.kind not in KINDS or layer.kernels != (1, 1) or layer.inputs[0] not in ops:
        return None
    pool = ops[layer.inputs[0]]
    return (layer.name, pool.inputs[0]) if pool.kind == "pool" else None


def activation(last: Floats, weights: Floats) -> Floats:
    """What speaks for a label at each position, 0 to 1: of the last map [C, H, W] and the label's weights [C]."""
    of = np.maximum(np.tensordot(weights, last, 1), 0)
    most = float(of.max())
    return np.asarray(of / most if most > 0 else of, np.float32)
