"""A float bundle stored in a given size, or in one given way, with the least loss: chosen, refined, trained, scored."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mobilenets import console, tasks
from mobilenets.compression import books, chain, coded, shared
from mobilenets.compression.mixed import points, scored
from mobilenets.data.dataset import Data
from mobilenets.errors import UserError
from mobilenets.model import mnz
from mobilenets.model.bundle import Bundle, sealed
from mobilenets.model.card import stamp
from mobilenets.model.encodings import code_bits
from mobilenets.model.images import Pixels

NEAR = 0.98  # of the size asked for: training changes the numbers beside the codes, and their size with them
CARD = 512  # bytes that a card takes more once it says how the network was made, at most
TRIES = 8  # to meet it: what codes take is known exactly only when they are coded


@dataclass(frozen=True)
class Plan:
    """What is asked for: a size in bytes or an encoding for all layers; what may be lost; epochs of training, and what
    network's answers are learned, if not those of the float one itself.
    """

    size: int | None = None
    encoding: str = ""
    max_drop: float | None = None
    epochs: int = 3
    teacher: Bundle | None = None


def check_teacher(source: Bundle, teacher: Bundle) -> None:
    """Raises `UserError` where `teacher` can't say of an image what `source` is to say."""
    own, other = source.card, teacher.card
    if other.precision != "float32":
        raise UserError(f"the teacher is {other.precision}; take the float bundle that it came from")
    if (own.task, own.labels, own.outputs) != (other.task, other.labels, other.outputs):
        raise UserError("the teacher answers something else: it must be of the same task and classes")
    if own.preprocess.input_size != other.preprocess.input_size:
        sides = ["{}x{}".format(*c.preprocess.input_size) for c in (other, own)]
        raise UserError(f"the teacher sees {sides[0]} pixels, the network {sides[1]}: both must see the same")


def file_size(made: Bundle) -> int:
    """Bytes of a bundle as a .mnz file."""
    return len(mnz.pack(sealed(stamp(made.card), made.tensors), made.tensors, code_bits(made.card)))


def fitted(
    damage: shared.Damage, found: dict[str, list[coded.Option]], size: int
) -> tuple[Bundle, dict[str, coded.Option]]:
    """The network of `damage` in at most `size` bytes, or as small as can be, codes refined; and what was chosen."""
    bits, step, nearest = size * 8.0, 1.0, (True, math.inf)
    for _ in range(TRIES):
        tried = damage.refined(coded.choose(found, bits))
        candidate = damage.assembled(tried)
        over = file_size(candidate) - size
        if (rank := (over > 0, abs(over))) < nearest:
            nearest, made, chosen = rank, candidate, tried
        if -0.02 * size <= over <= 0 or (over > 0 and bits == 0):
            break
        bits = max(0.0, bits - 8 * step * (over + 0.005 * size))
        step *= 1.5 if over > 0 else 0.5
    ways = Counter(o.encoding for o in chosen.values())
    console.note(f"layers stored as {', '.join(f'{name} ({n})' for name, n in ways.most_common())}")
    return made, chosen


def compressed(source: Bundle, data: Data, images: Pixels, plan: Plan, folder: Path | None = None) -> Bundle:
    """`source` stored as `plan` asks, its val score on its card; the test split isn't looked at.

    `images`, uint8 [N, H, W, 3], are what damage is measured on. Raises `UserError` where the size or the loss can't be
    met: it says the nearest, and its score.
    """
    score = tasks.of(source.card).primary
    if score is None:
        raise UserError(f"the task {source.card.task} has no score, by which compression is measured")
    if not tasks.of(source.card).taps and (plan.size is not None or plan.epochs):
        raise UserError("of a detector of two stages nothing is compared here: say a --method, and --epochs 0")
    plain = coded.canonical(source)
    damage = shared.Damage(plain, images)
    if plan.size is None:
        chosen = coded.uniform(plain, plan.encoding)
        made = damage.assembled(damage.refined(chosen))
    else:
        made, chosen = fitted(damage, damage.measured(), int(NEAR * plan.size))
    before = scored(source, data, score).value

    def fits(tried: Bundle) -> bool:
        return plan.size is None or file_size(tried) + CARD <= plan.size

    metric = scored(made, data, score)
    links = (*chain.begun(source, before), chain.Link.of("shared", made, metric.value))
    if plan.epochs and fits(made):
        rates, recipe = {name: o.rate for name, o in chosen.items()}, books.recipe(plan.epochs)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            tuned = books.tuned(
                source, made, damage, data, Path(work), recipe, rates=rates, fits=fits, teacher=plan.teacher
            )
        learned = scored(tuned, data, score)
        if fits(tuned) and score.lost(metric.value, learned.value) <= 0:
            made, metric = tuned, learned
            links = (*links, chain.Link.of("trained", made, metric.value))
        else:
            console.note("training made it no better: what it started from is kept (more images or epochs may help)")
    how = {"epochs": plan.epochs, "encodings": dict(Counter(made.card.encodings.values()))}
    if plan.teacher:
        how["teacher"] = plan.teacher.digest

    def carded(size: int) -> Bundle:
        steps = chain.told((*links, chain.Link.of("coded", made, metric.value, size)))
        recipe = {**source.card.recipe, "compress": how, **steps}
        return Bundle(made.card.replace(metrics=(metric,), parent=source.digest, recipe=recipe), made.tensors)

    taken = file_size(carded(file_size(made)))
    made = carded(taken)
    lost = score.lost(before, metric.value)
    came = f"{taken / 1000:.1f} kB with {score.label} {score.say(metric.value)}, {points(score, lost)} below float"
    if plan.size is not None and taken > plan.size:
        raise UserError(f"{plan.size / 1000:g} kB can't be met: the nearest is {came}")
    if plan.max_drop is not None and lost > plan.max_drop:
        raise UserError(f"max-drop {plan.max_drop:g} can't be met: the nearest is {came}")
    console.note(came)
    return made
