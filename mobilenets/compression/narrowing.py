"""Which channels go: those worth least for what they cost, as many as a goal takes, in multiples that engines like."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mobilenets import tasks
from mobilenets.arch.narrow import narrowed, unlike
from mobilenets.arch.spec import Arch
from mobilenets.compression.channels import MEASURES, Channels, Coupled, ranked
from mobilenets.compression.goals import Goal, Importance, Unmet
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.encodings import tensor_shapes

Widths = Mapping[str, int]  # channels by the name of those that go together


@dataclass(frozen=True)
class Scheme:
    """How channels are chosen: by what, in which multiples, and the least that each layer keeps, by name."""

    importance: Importance
    multiple: int
    least: Widths


def card_of(card: Card, arch: Arch) -> Card:
    """The card of the same network with other channels. Raises `UserError` where the task's head is of another kind."""
    head = tasks.of(card).head(arch, card.config)
    if [(op.name, op.kind) for op in head.ops] != [(op.name, op.kind) for op in card.head.ops]:
        raise UserError(f"the head of this {card.task} network isn't one that is trained here, so it can't be narrowed")
    return card.replace(arch=arch, head=head)


def narrow(
    source: Bundle, coupled: Coupled, worth: Mapping[str, Tensor], scheme: Scheme, goal: Goal, limit: float
) -> Bundle:
    """`source`, whose network `coupled` has, with the fewest channels removed that bring `goal` to `limit`.

    `limit` may be above the goal's own, on the way to it. Raises `Unmet` where the least of every layer is too much.
    """
    free = {name: own for name, own in coupled.found.items() if not own.follows}
    wide = {name: own.count for name, own in free.items()}
    of_layer = {layer: name for name, own in free.items() for layer in own.layers}
    apart = [(of_layer[a], of_layer[b]) for a, b in unlike(source.card.arch) if a in of_layer and b in of_layer]

    @functools.cache
    def card(removed: int) -> Card:
        """With so many of the blocks gone that are worth least."""
        widths = dict(wide)
        for name, block in gone[:removed]:
            widths[name] -= block
        return card_at(_kept_apart(widths, wide, apart, scheme.multiple))

    def card_at(widths: Widths) -> Card:
        layers = {layer: widths[name] for layer, name in of_layer.items()}
        return card_of(source.card, narrowed(source.card.arch, layers))

    def saves(name: str) -> float:
        """What a channel costs, those around it at their width."""
        block = min(scheme.multiple, wide[name] - 1)
        here = {**wide, name: wide[name] - block}
        return (goal.price(source.card) - goal.price(card_at(_kept_apart(here, wide, apart, 1)))) / block

    gone = _order(free, worth, scheme, saves if MEASURES[scheme.importance].of_loss else lambda _: 1.0)
    measured = functools.cache(lambda removed: goal.of(card(removed)))
    if measured(len(gone)) > goal.limit:
        raise Unmet(
            f"no width meets a {goal.called} of {goal.limit:.4g} {goal.unit}: a tenth of each layer has "
            f"{measured(len(gone)):.4g} {goal.unit}",
            _cut(source, coupled, worth, card(len(gone))),
        )
    removed = bisect.bisect_left(range(len(gone)), True, key=lambda n: measured(n) <= limit)
    return _cut(source, coupled, worth, card(removed))


def _order(
    free: Mapping[str, Channels], worth: Mapping[str, Tensor], scheme: Scheme, price: Callable[[str], float]
) -> list[tuple[str, int]]:
    """Blocks of channels in the order in which they go: (name, channels), those worth least for their price first."""
    blocks: list[tuple[float, str, int]] = []
    for name, own in free.items():
        each = worth[name].sort().values.tolist()
        cost, left, latest = max(price(name), 1e-9), own.count, float("-inf")
        while True:
            block = left % scheme.multiple or scheme.multiple
            if left - block < scheme.least[name]:
                break
            start = own.count - left
            latest = max(latest, sum(each[start : start + block]) / block / cost)
            blocks.append((latest, name, block))
            left -= block
    return [(name, block) for _, name, block in sorted(blocks, key=lambda b: b[0])]


def _kept_apart(widths: Widths, wide: Widths, apart: list[tuple[str, str]], multiple: int) -> Widths:
    """`widths` with a block given back wherever two that must differ would be the same."""
    out = dict(widths)
    while same := next(((a, b) for a, b in apart if out[a] == out[b]), None):
        name = next(n for n in reversed(same) if out[n] < wide[n])
        out[name] = min(wide[name], out[name] + multiple)
    return out


def _cut(source: Bundle, coupled: Coupled, worth: Mapping[str, Tensor], card: Card) -> Bundle:
    """The bundle of `card` with the channels worth most; `coupled` loses the others."""
    counts = {name: card.graph.op(name).cout for name in coupled.found}
    coupled.keep({name: ranked(worth[name], count) for name, count in counts.items()})
    state = {name: t.detach().cpu().numpy() for name, t in coupled.net.state_dict().items()}
    return Bundle(card, {name: state[name] for name in tensor_shapes(card)}, source.digest)
