"""What a bundle, a run or an exported file says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mobilenets import console
from mobilenets.arch import cost
from mobilenets.compression import chain
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.training.recipes import Recipe

if TYPE_CHECKING:
    from rich.console import RenderableType


def bundle_table(bundle: Bundle) -> RenderableType:
    """A bundle's card as a table."""
    size = sum(t.nbytes for t in bundle.tensors.values())
    when = ", before it is coded" if bundle.card.encodings else ""
    return card_table(f"bundle {bundle.digest[:16]}", bundle.card, size, when)


def card_table(title: str, card: Card, size_bytes: int, when: str = "") -> RenderableType:
    """A card as a table; `when`: of what the size is, where that isn't plain."""
    c, facts = cost.count(card.arch), card.facts()
    t = console.table(title, ["", "value"], left=("", "value"))
    for name, value in (
        *facts[:2],
        ("cost", f"{c.macs / 1e6:.1f} M macs, {c.params / 1e6:.2f} M params"),
        ("size", f"{console.megabytes(size_bytes)} MB{when}"),
        *facts[2:-3],
        *_recipe_rows(card),
        *facts[-3:],
    ):
        t.add_row(name, console.plain(value))
    return t


def _recipe_rows(card: Card) -> Iterator[tuple[str, str]]:
    """How it was trained: fields that are as a recipe has them by default are left out (`--json` has all)."""
    usual = Recipe().to_json()
    fields = {k: v for k, v in card.recipe.items() if k not in usual or v != usual[k]}
    fields.pop(chain.KEY, None)  # which `report` shows
    command, teacher = fields.pop("command", None), dict(fields.pop("teacher", None) or {})
    if command:
        yield "command", command
    if teacher:
        name, digest = teacher.pop("name", "not named"), teacher.pop("digest", "")
        yield "teacher", f"{name} ({digest[:16]}), " + _told(teacher)
    parts = {k: fields.pop(k) for k, v in [*fields.items()] if isinstance(v, dict)}
    yield "recipe", _told(fields) or "not stated"
    for name, part in parts.items():  # as "pruned"
        yield name, _told(part)


def _told(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} ({_told(v)})" if isinstance(v, dict) else f"{k} {v}" for k, v in fields.items())
