"""Weights that were pruned to zero stay zero in whatever training follows. No torch."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mobilenets.model.card import Card

if TYPE_CHECKING:
    from torch import Tensor, nn


def sparse(card: Card) -> bool:
    """Whether zeros among a network's weights were pruned; in others they are what they happen to be."""
    return "zeros" in card.recipe.get("pruned", {})


def pruned(card: Card) -> dict[str, Any]:
    """The part of a network's recipe that says how it was pruned, which whatever is trained from it keeps."""
    return {k: v for k, v in card.recipe.items() if k == "pruned"}


def keep_zeros(weights: Iterable[nn.Parameter]) -> None:
    """Give the zeros among `weights` a gradient of zero: no optimizer moves a weight of zero without one.

    Decay and momentum are multiples of what is zero, and so is an average.
    """
    for weight in weights:
        if (weight.detach() == 0).any():
            weight.register_hook(functools.partial(_masked, weight))  # type: ignore[no-untyped-call]


def _masked(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(weight.detach() == 0, 0)
