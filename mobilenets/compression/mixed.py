"""Int8 held to a limit on the score it may lose, with the fewest operations in float that it takes."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence

import numpy as np
import torch

from mobilenets import console, processor, tasks
from mobilenets.compression.calibrate import batches
from mobilenets.compression.quantize import Measured
from mobilenets.data.dataset import Data
from mobilenets.deploy import engines, evaluate
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Metric
from mobilenets.model.encodings import Array
from mobilenets.model.images import Pixels
from mobilenets.model.reference import FoldedNetwork, SimulatedInt8
from mobilenets.tasks.task import MetricSpec

RANKING_IMAGES = 16
DECIDES = "val"


def quantize_within(
    max_drop: float,
    source: Bundle,
    data: Data,
    measured: Measured,
    images: Pixels,
    float_ops: Sequence[str],
    *,
    mixed: bool,
) -> Bundle:
    """`measured` as an int8 bundle that loses at most `max_drop` of its task's score on the val split against `source`.

    Its score there is on its card; `float_ops` are in float anyhow. The test split isn't looked at: what its images
    have chosen they can't test. Where int8 loses more: with `mixed`, the fewest operations that make up for it are kept
    in float too, those first that `images`, uint8 [N, H, W, 3], show to be the most sensitive; without, a `UserError`
    names them.
    """
    score = tasks.of(source.card).primary
    if score is None:
        raise UserError(f"the task {source.card.task} has no score that max-drop could be a limit to; leave it out")
    floating = scored(source, data, score).value

    @functools.cache
    def attempt(more: tuple[str, ...]) -> tuple[Bundle, float]:
        made = measured.bundle((*float_ops, *more))
        metric = scored(made, data, score)
        lost, kept = score.lost(floating, metric.value), len(made.card.float_ops)
        change = f"{points(score, abs(lost))} {'worse' if lost >= 0 else 'better'}"
        console.note(
            f"operations in float: {kept}; {score.label} {score.say(metric.value)}, {change} than {score.say(floating)}"
        )
        return Bundle(made.card.replace(metrics=(metric,)), made.tensors), lost

    plain, lost = attempt(())
    if lost <= max_drop:
        return plain
    if not tasks.of(source.card).taps:
        raise UserError(
            f"int8 loses {points(score, lost)} of {score.label}, more than the {max_drop:g} allowed; which operations "
            "lose it can't be told of a detector in two stages: name some to keep in float, by --keep-float"
        )
    ranked = [n for n in sensitivity(measured, images[:RANKING_IMAGES]) if n not in float_ops]
    first = [tuple(ranked[:n]) for n in range(len(ranked) + 1)]
    names = first[bisect.bisect_left(first, True, hi=len(ranked), key=lambda names: attempt(names)[1] <= max_drop)]
    made, left = attempt(names)
    if left > max_drop:
        lost_anyway = f"{points(score, left)} of {score.label} are lost even with everything in float"
        raise UserError(f"max-drop {max_drop:g} can't be met: {lost_anyway}")
    if not mixed:
        raise UserError(
            f"int8 loses {points(score, lost)} of {score.label} ({score.say(floating)} in float, {data.source} "
            f"{DECIDES}), more than the {max_drop:g} allowed; add --mixed, which keeps the most sensitive operations "
            f"in float, or name them: --keep-float {','.join((*float_ops, *names))}"
        )
    return made


def sensitivity(measured: Measured, images: Pixels) -> dict[str, float]:
    """What int8 costs in each operation: signal over noise in what training reads, in dB, with it alone in int8.

    `images`: uint8 [N, H, W, 3]. Of several values that training reads, it is the noisiest's. The lowest come first.
    """
    card, folded = measured.card, measured.folded
    graph, taps = card.graph, tasks.of(card).taps
    inputs = list(batches(card.preprocess, images))
    are_logits = [{op.kind for op in graph.readers[tap]} == {"softmax"} for tap in taps]

    def values(network: FoldedNetwork) -> list[Array]:
        """Of each tap; of logits, less what all classes share, which changes no probability."""
        with torch.inference_mode():
            made = [network.run({graph.source: x}, taps) for x in inputs]
        whole = [torch.cat([m[tap] for m in made]).double() for tap in taps]
        return [
            (y - y.mean(1, keepdim=True) if logits else y).numpy() for y, logits in zip(whole, are_logits, strict=True)
        ]

    exact = values(FoldedNetwork(card.arch, graph, folded, measured.constants).eval())
    out = {}
    names = graph.activations[1:]
    for name in names:
        alone = values(SimulatedInt8(measured.bundle([n for n in names if n != name])).eval())
        ratios = [(e**2).mean() / max(((a - e) ** 2).mean(), 1e-30) for a, e in zip(alone, exact, strict=True)]
        out[name] = 10 * float(np.log10(min(ratios)))
    return dict(sorted(out.items(), key=lambda item: item[1]))


def points(score: MetricSpec, lost: float) -> str:
    """So much of a score; of percent, points."""
    return f"{lost:.2f} points" if score.unit == "%" else score.say(lost)


def scored(bundle: Bundle, data: Data, score: MetricSpec) -> Metric:
    """The score on the val split, run as the file that `export` makes by default."""
    engine, _ = engines.build("onnxruntime", bundle, bundle.card.precision, processor.cores())
    scores = evaluate.score(engine, data, DECIDES)
    value = round(scores.value, 4)
    return Metric(score.name, value, data.source, DECIDES, scores.count, score.unit, score.higher_is_better)
