"""Int8 held to a limit on the accuracy it may lose, with the fewest operations in float that it takes."""

from __future__ import annotations

import bisect
import functools
import os
from collections.abc import Sequence

import numpy as np
import torch

from mobilenets import console
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

RANKING_IMAGES = 16
DECIDES = "val"


def within(
    max_drop: float,
    source: Bundle,
    d: Data,
    measured: Measured,
    images: Pixels,
    float_ops: Sequence[str],
    *,
    mixed: bool,
) -> Bundle:
    """`measured` as an int8 bundle that loses at most `max_drop` points of top-1 on the val split against `source`.

    Its score there is on its card; `float_ops` are in float anyhow. The test split isn't looked at: what its images
    have chosen they can't test. Where int8 loses more: with `mixed`, the fewest operations that make up for it are kept
    in float too, those first that `images`, uint8 [N, H, W, 3], show to be the most sensitive; without, a `UserError`
    names them.
    """
    floating = _top1(source, d).value

    @functools.cache
    def attempt(more: tuple[str, ...]) -> tuple[Bundle, float]:
        made = measured.bundle((*float_ops, *more))
        metric = _top1(made, d)
        lost, kept = floating - metric.value, len(made.card.float_ops)
        console.note(f"operations in float: {kept}; top-1 {metric.value:.2f}%, {lost:.2f} points below {floating:.2f}%")
        return Bundle(made.card.replace(metrics=(metric,)), made.tensors), lost

    plain, lost = attempt(())
    if lost <= max_drop:
        return plain
    ranked = [n for n in sensitivity(measured, images[:RANKING_IMAGES]) if n not in float_ops]
    first = [tuple(ranked[:n]) for n in range(len(ranked) + 1)]
    names = first[bisect.bisect_left(first, True, hi=len(ranked), key=lambda names: attempt(names)[1] <= max_drop)]
    made, left = attempt(names)
    if left > max_drop:
        raise UserError(f"max-drop {max_drop:g} can't be met: {left:.2f} points are lost even with everything in float")
    if not mixed:
        raise UserError(
            f"int8 loses {lost:.2f} points of top-1 ({floating:.2f}% in float, {d.source} {DECIDES}), more than the "
            f"{max_drop:g} allowed; add --mixed, which keeps the most sensitive operations in float, or name them: "
            f"--keep-float {','.join((*float_ops, *names))}"
        )
    return made


def sensitivity(measured: Measured, images: Pixels) -> dict[str, float]:
    """What int8 costs in each operation: the signal over the noise in the logits, in dB, with it alone in int8.

    `images`: uint8 [N, H, W, 3]. The operations with the lowest come first.
    """
    card, folded = measured.card, measured.folded
    inputs = list(batches(card.preprocess, images))

    def logits(network: FoldedNetwork) -> Array:
        with torch.inference_mode():
            y = torch.cat([network(x) for x in inputs]).double()
        return (y - y.mean(1, keepdim=True)).numpy()  # what all classes share changes no probability

    exact = logits(FoldedNetwork(card.arch, folded).eval())
    out = {}
    names = [op.name for op in card.arch.ops]
    for name in names:
        alone = SimulatedInt8(measured.bundle([n for n in names if n != name])).eval()
        noise = ((logits(alone) - exact) ** 2).mean()
        out[name] = 10 * float(np.log10((exact**2).mean() / max(noise, 1e-30)))
    return dict(sorted(out.items(), key=lambda item: item[1]))


def _top1(bundle: Bundle, d: Data) -> Metric:
    """The score on the val split, run as the file that `export` makes by default."""
    engine, _ = engines.build("onnxruntime", bundle, bundle.card.precision, os.cpu_count() or 1)
    scores = evaluate.score(engine, d, DECIDES)
    return Metric("top1", round(scores.top1, 4), d.source, DECIDES, scores.count)
