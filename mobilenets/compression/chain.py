"""How a network came to be as small as it is: each step's size and score, as its card keeps them. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from mobilenets.arch import cost, fields
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card

KEY = "chain"  # of a card's recipe


@dataclass(frozen=True)
class Link:
    """A network on the way: "float", "pruned", "shared" (stored in few bits), "trained" as that, "coded".

    `score` is the task's on the val split; `size_bytes` are the weights' as they lie, of "coded" the file's.
    """

    name: str
    macs: int
    params: int
    size_bytes: int
    score: float

    @classmethod
    def of(cls, name: str, bundle: Bundle, score: float, size_bytes: int | None = None) -> Link:
        """A bundle as a step; `size_bytes` where it isn't that of its tensors."""
        rows = cost.layers(bundle.card.graph)
        size = sum(t.nbytes for t in bundle.tensors.values()) if size_bytes is None else size_bytes
        return cls(name, sum(r.macs for r in rows), sum(r.params for r in rows), size, float(score))


def kept(card: Card) -> tuple[Link, ...]:
    """The steps that a card tells of; none where it tells of none. Raises `UserError` for what can't be."""
    try:
        links = tuple(Link(**d) for d in card.recipe.get(KEY, ()))
        for link in links:
            fields.check(link, Link, KEY)
    except (TypeError, ValueError) as e:
        raise UserError(f"the steps on the bundle's card can't be read: {e}") from e
    return links


def begun(source: Bundle, score: float) -> tuple[Link, ...]:
    """The steps up to `source`, a bundle of this score: at least itself."""
    return kept(source.card) or (Link.of("pruned" if "pruned" in source.card.recipe else "float", source, score),)


def told(links: tuple[Link, ...]) -> dict[str, Any]:
    """What a card's recipe says of it."""
    return {KEY: [dataclasses.asdict(link) for link in links]}
