"""What a bundle, a run or an exported file says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets import console, cost, engines
from mobilenets.bundle import Bundle, Card, is_bundle, located
from mobilenets.files import size_on_disk
from mobilenets.recipes import Recipe

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Shown:
    """The card of each network found at a path."""

    cards: dict[str, Card]

    def to_json(self) -> dict[str, Any]:
        return {path: card.to_json() for path, card in self.cards.items()}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        return Group(*(card_table(path, card, size_on_disk(Path(path))) for path, card in self.cards.items()))


def card_table(title: str, card: Card, size_bytes: int) -> RenderableType:
    """A card as a table."""
    c = cost.count(card.arch)
    t = console.table(title, ["", "value"], left=("", "value"))
    labels = ", ".join(card.labels[:8]) + (f", ... ({len(card.labels)})" if len(card.labels) > 8 else "")
    p = card.preprocess
    counts = card.data.get("counts", {})
    for name, value in (
        ("network", f"{card.arch.title}, {card.precision}"),
        ("task", f"{card.task}: {labels}"),
        ("cost", f"{c.macs / 1e6:.1f} M macs, {c.params / 1e6:.2f} M params"),
        ("size", f"{console.megabytes(size_bytes)} MB"),
        (
            "input",
            f"{p.resolution}x{p.resolution} RGB of the central {p.crop:g}, (pixel - {_one(p.mean)}) / {_one(p.std)}",
        ),
        *((m.name, f"{m.value:.2f}%, {m.data} {m.split}, {m.count} images") for m in card.metrics),
        (
            "trained on",
            f"{card.data['source']} ({', '.join(f'{n} {k}' for k, n in counts.items())})"
            if "source" in card.data
            else "not stated",
        ),
        *_recipe_rows(card),
        ("licence", card.licence or "not stated"),
        ("parent", (card.parent or "none")[:16]),
        ("made", f"{card.created}, {', '.join(f'{k} {v}' for k, v in card.versions.items())}"),
    ):
        t.add_row(name, value)
    return t


def _recipe_rows(card: Card) -> Iterator[tuple[str, str]]:
    """How it was trained: fields that are as a recipe has them by default are left out (`--json` has all)."""
    usual = Recipe().to_json()
    fields = {k: v for k, v in card.recipe.items() if k not in usual or v != usual[k]}
    command, teacher = fields.pop("command", None), dict(fields.pop("teacher", None) or {})
    if command:
        yield "command", command
    if teacher:
        name, digest = teacher.pop("name"), teacher.pop("digest")
        yield "teacher", f"{name} ({digest[:16]}), " + ", ".join(f"{k} {v}" for k, v in teacher.items())
    yield "recipe", ", ".join(f"{k} {v}" for k, v in fields.items()) or "not stated"


def _one(values: tuple[float, ...]) -> str:
    """The three channels' values, once where they are the same."""
    return ", ".join(f"{v:g}" for v in (values if len(set(values)) > 1 else values[:1]))


def show(path: Path) -> Shown:
    """What is known of a network: its card, verified.

    Parameters
    ----------
    path
        Bundle, run or exported file.
    """
    path = located(path)
    if path.is_dir() and not is_bundle(path):
        inside = [p for p in (path / "float", path / "int8") if is_bundle(p)]
        if inside:
            return Shown({str(p): Bundle.load(p).card for p in inside})
    if is_bundle(path) or (path.is_dir() and path.suffix not in engines.SUFFIXES):
        return Shown({str(path): Bundle.load(path).card})
    return Shown({str(path): engines.load(path).card})
