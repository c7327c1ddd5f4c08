"""`mobilenets show`: what a bundle, run or file says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets.arguments import StrPath, checked
from mobilenets.console import Notebook
from mobilenets.deploy import engines
from mobilenets.files import size_on_disk
from mobilenets.model.bundle import Bundle, is_bundle, located
from mobilenets.model.card import Card
from mobilenets.reports.card import card_table

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Shown(Notebook):
    """The card of each network found at a path."""

    cards: dict[str, Card]

    def to_json(self) -> dict[str, Any]:
        return {path: card.to_json() for path, card in self.cards.items()}

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        return Group(*(card_table(path, card, size_on_disk(Path(path))) for path, card in self.cards.items()))


@checked
def show(path: StrPath) -> Shown:
    """What is known of a network: its card, verified.

    Parameters
    ----------
    path
        Bundle, run or exported file.

    Returns
    -------
    Shown
        `cards`, by path: one, or a run's float and int8 bundles'.

    Raises
    ------
    UserError
        For a path that isn't there, or holds nothing that has a card.

    Examples
    --------
    >>> import mobilenets
    >>> [card.arch.title for card in mobilenets.show("cifar10-v1-0.25").cards.values()]
    ['v1-cifar 0.25-32']
    """
    path = located(Path(path))
    if path.is_dir() and not is_bundle(path):
        inside = [p for p in (path / "float", path / "int8") if is_bundle(p)]
        if inside:
            return Shown({str(p): Bundle.load(p).card for p in inside})
    if is_bundle(path) or (path.is_dir() and path.suffix not in engines.SUFFIXES):
        return Shown({str(path): Bundle.load(path).card})
    return Shown({str(path): engines.card_of(path)})
