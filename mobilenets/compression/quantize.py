"""Folding and int8 post-training quantization: Bundle -> Bundle. Numpy alone; only calibration runs PyTorch.

The scheme (Krishnamoorthi, arXiv 1806.08342): weights int8, symmetric, a scale per output channel; activations uint8,
asymmetric, a scale per tensor; biases int32 at the product of the two scales; BatchNorm folded first. It is the one
that V1 and V2 survive (with a scale per layer they collapse to 0.1% top-1) and that every runtime of interest takes.

An int8 bundle's tensors, for each layer L: `L.weight` int8, `L.weight_scale` float32 [cout], `L.bias` int32 [cout];
and for each activation A ("input" and the outputs that are rounded, see `Graph.activations`): `A.scale`,
`A.zero_point`.

Operations in the card's `float_ops` stay in float: such a layer has `L.weight` float32 [cout, cin/groups, K, K] and
`L.bias` float32 [cout], its BatchNorm in them, and no `weight_scale`. It reads what is there and its output isn't
rounded; an int8 operation that reads it rounds what it reads, to that activation's scale.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field

from mobilenets import tasks
from mobilenets.compression.scheme import DEFAULT, Scheme
from mobilenets.errors import UserError, unknown
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Precision
from mobilenets.model.encodings import Folded, Ranges, Tensors, fold, for_pixels, pack, rounded, unpack
from mobilenets.model.images import Pixels
from mobilenets.tasks.task import Finishing


@dataclass(frozen=True)
class Measured:
    """A float network ready for int8: its weights folded, what its activations span, the card of what it becomes.

    `corrected`: the weights that are rounded, their biases bias-corrected where that was asked for; `folded`: those
    that stay in float. `constants`: what operations read besides weights, as anchors, which stay as they are.
    """

    card: Card
    folded: Folded
    corrected: Folded
    ranges: Ranges
    per_layer: bool
    constants: Tensors = field(default_factory=dict)

    def bundle(self, float_ops: Collection[str] = ()) -> Bundle:
        """The int8 bundle that keeps `float_ops` in float."""
        kept = frozenset(float_ops)
        card = self.card.replace(float_ops=tuple(op.name for op in self.card.graph.ops if op.name in kept))
        weights = {n: (self.folded if n in kept else self.corrected)[n] for n in self.folded}
        tensors = pack(card.graph, card.preprocess, weights, self.ranges, per_layer=self.per_layer, float_ops=kept)
        return Bundle(card, {**tensors, **self.constants})


def measure_ranges(source: Bundle, images: Pixels, scheme: Scheme = DEFAULT) -> Measured:
    """What `scheme` makes of a float bundle, its activations measured on `images`, uint8 [N, H, W, 3]."""
    from mobilenets.compression.calibrate import OBSERVERS, calibrate
    from mobilenets.compression.equalize import correct, equalize
    from mobilenets.model.reference import FoldedNetwork

    source = source.dense()
    card = source.card
    if card.precision != "float32":
        raise UserError(f"this bundle is {card.precision} already; quantize the float bundle it came from")
    if not len(images):
        raise UserError("quantization needs at least one calibration image")
    if scheme.calibration not in OBSERVERS:
        raise unknown("calibration", scheme.calibration, OBSERVERS)
    for name in scheme.float_ops:
        if name not in card.graph.activations[1:]:
            raise unknown("operation", name, card.graph.activations[1:])
    preprocess, folded = for_pixels(card.graph, card.preprocess, fold(card, source.tensors))
    card = card.replace(precision="int8", preprocess=preprocess, metrics=(), parent=source.digest)
    constants = {name: source.tensors[name] for name in card.graph.constants}
    if scheme.equalize:
        folded = equalize(card, folded, images, constants)
    network = FoldedNetwork(card.arch, card.graph, folded, constants).eval()
    ranges = calibrate(network, preprocess, images, scheme.calibration)
    measured = Measured(card, folded, folded, ranges, scheme.per_layer, constants)
    if not scheme.bias_correction:
        return measured
    stored = unpack(card, measured.bundle().tensors)
    return dataclasses.replace(measured, corrected=correct(card, folded, stored, images, constants))


def quantize_bundle(source: Bundle, images: Pixels, scheme: Scheme = DEFAULT) -> Bundle:
    """Int8 bundle from a float one, its activation ranges measured on `images`, uint8 [N, H, W, 3]."""
    return measure_ranges(source, images, scheme).bundle(kept_in_float(source.card, scheme))


def kept_in_float(card: Card, scheme: Scheme = DEFAULT) -> tuple[str, ...]:
    """The operations that a scheme keeps in float, and those that the task can't do with 256 values of."""
    task = tasks.of(card)
    fine = task.fine(card) if isinstance(task, Finishing) else ()
    return tuple(dict.fromkeys((*scheme.float_ops, *fine)))


def correct_bundle(source: Bundle, precision: Precision, images: Pixels) -> Bundle:
    """A float bundle with biases that make up for what rounding its weights to `precision` adds to channels' means.

    For files of int4, dynamic and float16, which round weights alone. `images`: uint8 [N, H, W, 3]. Layers without a
    bias or BatchNorm stay as they are.
    """
    from mobilenets.compression.equalize import correct

    card, tensors, plain = source.card, dict(source.tensors), source.dense().tensors
    folded = fold(card, plain)
    corrected = correct(card, folded, rounded(folded, precision), images, plain)
    for op in card.graph.layers:
        name = f"{op.name}.bias" if op.kind == "linear" else f"{op.name}.{'norm' if op.norm else 'conv'}.bias"
        if op.norm or op.bias:
            tensors[name] = tensors[name] + corrected[op.name][1] - folded[op.name][1]
    return Bundle(card, tensors, source.digest)
