"""What to try next, by what a run's curves and scores show, in plain sentences: the most useful first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mobilenets.data.checks import Scan
from mobilenets.tasks.task import MetricSpec
from mobilenets.training.fitted import Step

FEW = 10_000  # training images below which pretrained weights decide
PHOTO = 64  # pixels of a short side; smaller ones look like nothing that weights for photos know
FEW_OF_A_CLASS = 20
RISING = 1.0  # what the last fifth of the epochs brought, in the metric's unit
OVERFITTED = 1.15  # the last held-out loss as a multiple of the least
UNDERFITTED = 0.6  # the training loss as a share of that of guessing
LOST = 1.0  # from float to the file, in the metric's unit
SLOWER = 1.1  # times the latency of float
FEWEST = 3  # images: a share that fewer make up is chance
WASTED = 5  # epochs after the best one
MOST = 4

Curves = Mapping[str, Mapping[int, float]]  # by column of the log, by epoch


def advise(
    curves: Curves,
    steps: Sequence[Step],
    scan: Scan,
    recipe: Mapping[str, Any],
    metric: MetricSpec,
    *,
    pretrained: bool,
    classes: int,
    over: Sequence[str] = (),
) -> list[str]:
    """At most MOST sentences; none where nothing stands out.

    `classes`: 0 of what isn't a classifier; `over`: the limits that the file misses.
    """
    images = scan.totals.get("train", 0)
    out = [
        f"The file misses the limit of {name}: choose again on a quiet machine (--remeasure), or with a lower limit."
        for name in over
    ]
    if not pretrained and images < FEW and scan.native_side >= PHOTO:
        out.append(
            f"It was trained from scratch on {images:,} images. On so few, starting from pretrained weights is worth "
            "more than anything else: where there is a network fit fetches them, and --weights takes a folder of them."
        )
    out += _of_curves(curves, recipe, metric, classes)
    before, after = steps[0].scores, steps[-1].scores
    lost = metric.lost(before[metric.name], after[metric.name])
    if lost > LOST and not (metric.share and lost / 100 * after["count"] < FEWEST):
        amount = f"{lost:.1f} points" if metric.unit == "%" else metric.say(lost)
        out.append(
            f"{steps[-1].precision} lost {amount} of {metric.label} from float: mobilenets quantize --qat trains the "
            "rounding, and --precision int8,float16 chooses between two."
        )
    shipped, floats = steps[-1], [s.latency_ms for s in steps if s.precision == "float32" and s.latency_ms]
    if floats and shipped.precision != "float32" and (shipped.latency_ms or 0.0) > SLOWER * min(floats):
        out.append(
            f"{shipped.precision} is slower here than float32 ({shipped.latency_ms:.3g} ms, {min(floats):.3g} ms): "
            f"--precision float32,{shipped.precision} ships what is better within the budget."
        )
    counts = scan.counts.get("train", {}) if classes else {}
    if counts and min(counts.values()) < FEW_OF_A_CLASS:
        name = min(counts, key=lambda c: counts[c])
        few = sum(n < FEW_OF_A_CLASS for n in counts.values())
        if few > len(counts) / 2:
            out.append(
                f"{few} of {len(counts)} classes have fewer than {FEW_OF_A_CLASS} training images: more help most."
            )
        else:
            out.append(f"Class {name} has only {counts[name]} training images: more of the small classes help most.")
    return out[:MOST]


def _of_curves(curves: Curves, recipe: Mapping[str, Any], metric: MetricSpec, classes: int) -> list[str]:
    score, val, train = (curves.get(k, {}) for k in (f"val_{metric.name}", "val_loss", "train_loss"))
    if len(score) < 2:
        return []
    last = max(score)
    best = max(score, key=lambda e: (metric.rank(score[e]), -e))
    out = []
    before = [e for e in score if e <= last - max(1, last // 5)]
    gained = metric.lost(score[last], max((score[e] for e in before), key=metric.rank)) if before else 0.0
    if best > 0.9 * last and gained > RISING:
        out.append(f"The score was still rising at the end: train for longer (--epochs {2 * last}).")
    least = min(val.values(), default=0.0)
    if (
        val
        and train
        and val.get(last, least) > OVERFITTED * least
        and train.get(last, 0.0) <= min(train.values()) * 1.02
    ):
        out.append(
            f"Held-out loss rose from {least:.2f} to {val[last]:.2f} while training loss fell: it learns its training "
            "images by heart. More images, stronger augmentation (--randaugment 9 --mixup 0.2) or a smaller network."
        )
    elif best <= last / 2 and last - best >= WASTED:
        out.append(f"Epochs after {best} brought nothing: more or better images would, not more epochs.")
    guess = math.log(classes) if classes else 0.0
    if train and guess and train.get(best, 0.0) > UNDERFITTED * guess and not recipe.get("mixup"):
        out.append(
            f"The training loss itself stayed high ({train[best]:.2f}; guessing has {guess:.2f}): a larger network, "
            "a higher resolution or more epochs."
        )
    return out
