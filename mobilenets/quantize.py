"""Folding and int8 post-training quantization: Bundle -> Bundle. Numpy alone; only calibration runs PyTorch.

The scheme (Krishnamoorthi, arXiv 1806.08342): weights int8, symmetric, a scale per output channel; activations uint8,
asymmetric, a scale per tensor; biases int32 at the product of the two scales; BatchNorm folded first. It is the one
that V1 and V2 survive (with a scale per layer they collapse to 0.1% top-1) and that every runtime of interest takes.

An int8 bundle's tensors, for each layer L: `L.weight` int8, `L.weight_scale` float32 [cout], `L.bias` int32 [cout];
and for each activation A ("input" and every operation's output): `A.scale`, `A.zero_point`.

Operations in the card's `float_ops` stay in float: such a layer has `L.weight` float32 [cout, cin/groups, K, K] and
`L.bias` float32 [cout], its BatchNorm in them, and no `weight_scale`. It reads what is there and its output isn't
rounded; an int8 operation that reads it rounds what it reads, to that activation's scale.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from mobilenets import bundle as bundles
from mobilenets.bundle import Bundle, Card, Precision, Tensors
from mobilenets.errors import UserError, unknown
from mobilenets.images import Pixels, Preprocess
from mobilenets.options import commas
from mobilenets.spec import Arch

Array = npt.NDArray[Any]
Folded = dict[str, tuple[Array, Array]]
Calibration = Literal["minmax", "percentile", "mse"]
Ranges = Mapping[str, tuple[float, float]]
CALIBRATION_IMAGES = 256  # more changed nothing on the networks measured; 64 would nearly do
BLOCK = 32  # inputs that share a scale in 4 bits
TINY = 1e-12  # the least scale, for weights that are all zero


def fold(arch: Arch, tensors: Tensors) -> Folded:
    """Layer name -> (weight [cout, cin/groups, K, K], bias [cout]), BatchNorm in them, float32."""
    out: Folded = {}
    for op in arch.layers:
        name = op.name
        if op.kind == "linear":
            out[name] = tensors[f"{name}.weight"][:, :, None, None], tensors[f"{name}.bias"]
            continue
        # A BatchNorm alone is a depthwise 1x1 convolution.
        w = np.ones((op.cout, 1, 1, 1)) if op.kind == "norm" else tensors[f"{name}.conv.weight"].astype(np.float64)
        if not op.norm:
            bias = tensors[f"{name}.conv.bias"] if op.bias else np.zeros(op.cout, np.float32)
            out[name] = w.astype(np.float32), bias
            continue
        gamma, beta, mean, var = (
            tensors[f"{name}.norm.{k}"].astype(np.float64) for k in ("weight", "bias", "running_mean", "running_var")
        )
        s = gamma / np.sqrt(var + arch.bn_eps)
        out[name] = (w * s[:, None, None, None]).astype(np.float32), (beta - mean * s).astype(np.float32)
    return out


def affine(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of uint8 values covering [low, high] and zero exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    exact = -low / (max(high - low, 1e-6) / 255)

    def step(zero: int) -> float:
        return max(-low / max(zero, 1e-9), high / max(255 - zero, 1e-9), 1e-6 / 255)

    # A whole zero point: of the two around the exact one, that which covers both ends with the smaller step. Rounding
    # it and keeping the step would put every pixel of an image normalized by 127.5 half-way between two values.
    zero = min((math.floor(exact), min(math.ceil(exact), 255)), key=step)
    return np.float32(step(zero)), np.uint8(zero)


def input_range(preprocess: Preprocess) -> tuple[float, float]:
    """What the normalized input can span: the uint8 image's own range, whatever the calibration images hold."""
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    return float(((0 - mean) / std).min()), float(((255 - mean) / std).max())


def for_pixels(arch: Arch, preprocess: Preprocess, folded: Folded) -> tuple[Preprocess, Folded]:
    """Preprocessing by one whole mean and one deviation, and the first layer changed so that it makes no difference.

    Then the image's own pixels are the quantized input, and no time goes into normalizing them: as much as the whole of
    a small network takes. Only where the first layer pads, it now pads with the new mean instead of the old ones.
    """
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    whole, common = float(np.rint(mean.mean())), float(std.mean())
    if np.allclose(mean, whole) and np.allclose(std, common):
        return preprocess, folded
    first = arch.layers[0].name
    weight, bias = folded[first]  # of (pixel - mean) / std = (pixel - whole) / common x common / std + shift
    shift = ((whole - mean) / std)[None, :, None, None]
    changed = (weight * (common / std)[None, :, None, None]).astype(np.float32)
    moved = (bias + (weight * shift).sum((1, 2, 3))).astype(np.float32)
    new = dataclasses.replace(preprocess, mean=(whole,) * 3, std=(common,) * 3)
    return new, {**folded, first: (changed, moved)}


def int8_weights(weight: Array, least: Array | float = 0.0) -> tuple[Array, Array]:
    """Weights [cout, ...] -> codes int8 of that shape, within 127, and their scales float32 [cout], one a channel.

    `least`: no scale is below it.
    """
    peak = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float64)
    scale = np.maximum(np.maximum(peak / 127, least), TINY).astype(np.float32)
    steps = _along(scale.astype(np.float64), weight)
    return np.clip(np.rint(weight / steps), -127, 127).astype(np.int8), scale


def fits_int4(weight: Array) -> bool:
    """Whether a layer's folded weights [cout, cin/groups, K, K] go into 4 bits: those of 1x1 layers wide enough."""
    return weight.shape[2:] == (1, 1) and weight.shape[1] >= BLOCK


def int4_weights(weight: Array) -> tuple[Array, Array]:
    """Weights [cout, cin, 1, 1] -> codes int8 of that shape, in -8..7, and their scales float32 [cout, blocks].

    A scale is shared by 32 inputs (the last block of a channel may have fewer). It is the one, of those that cut off
    none to half of the block's largest weight, which rounds the block with the least squared error.
    """
    cout, cin = weight.shape[:2]
    padded = np.zeros((cout, -(-cin // BLOCK) * BLOCK))
    padded[:, :cin] = weight[:, :, 0, 0]
    blocks = padded.reshape(cout, -1, BLOCK)
    peak = np.maximum(np.abs(blocks).max(2), 7 * TINY)
    best, scale = np.full(peak.shape, np.inf), peak / 7
    for part in np.linspace(0.5, 1, 26):
        tried = (peak / 7 * part).astype(np.float32).astype(np.float64)
        error = ((np.clip(np.rint(blocks / tried[:, :, None]), -8, 7) * tried[:, :, None] - blocks) ** 2).sum(2)
        scale = np.where(error < best, tried, scale)
        best = np.minimum(error, best)
    codes = np.clip(np.rint(blocks / scale[:, :, None]), -8, 7).astype(np.int8)
    return codes.reshape(cout, -1)[:, :cin, None, None], scale.astype(np.float32)


def _along(scale: Array, weight: Array) -> Array:
    """Scales [cout] in a shape that multiplies `weight` [cout, ...]."""
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


def rounded(folded: Folded, precision: Precision) -> Folded:
    """The values that a file of `precision` (float32, float16, dynamic, int4) holds for folded weights; biases float32.

    float16: each to the nearest. dynamic: as `int8_weights`. int4: as `int4_weights` where they fit, else int8.
    """

    def one(weight: Array) -> Array:
        if precision == "float32":
            return weight
        if precision == "float16":
            return half(weight).astype(np.float32)
        if precision == "int4" and fits_int4(weight):
            codes, scale = int4_weights(weight)
            steps = np.repeat(scale, BLOCK, 1)[:, : weight.shape[1], None, None]
        else:
            codes, scale = int8_weights(weight)
            steps = _along(scale, weight)
        return np.asarray(codes * steps, np.float32)

    return {name: (one(weight), bias) for name, (weight, bias) in folded.items()}


def half(weight: Array) -> Array:
    """Float weights as 16-bit floats; what is beyond them becomes their largest."""
    largest = np.finfo(np.float16).max
    clipped: Array = np.clip(weight, -largest, largest)
    return clipped.astype(np.float16)


def pack(
    arch: Arch,
    preprocess: Preprocess,
    folded: Folded,
    ranges: Ranges,
    *,
    per_layer: bool = False,
    float_ops: Collection[str] = (),
) -> dict[str, Array]:
    """Folded float weights and activation ranges -> the tensors of an int8 bundle.

    `per_layer`: one scale for all of a layer's weights, in place of one for each output channel.
    """
    out: dict[str, Array] = {}
    scales: dict[str, float] = {}
    for name in arch.activations:
        step, zero = affine(*(input_range(preprocess) if name == "input" else ranges[name]))
        out[f"{name}.scale"], out[f"{name}.zero_point"] = np.asarray(step), np.asarray(zero)
        scales[name] = float(step)
    for op in arch.layers:
        name, (weight, bias) = op.name, folded[op.name]
        if name in float_ops:
            out[f"{name}.weight"], out[f"{name}.bias"] = weight, bias
            continue
        # A channel of tiny weights and a large bias would overflow its int32 bias: widen its scale until it fits.
        least = np.abs(bias.astype(np.float64)) / (scales[op.inputs[0]] * 2**30)
        if per_layer:
            least = np.full_like(least, max(least.max(), float(np.abs(weight).max()) / 127))
        codes, scale = int8_weights(weight, least)
        out[f"{name}.weight"], out[f"{name}.weight_scale"] = codes, scale
        out[f"{name}.bias"] = np.rint(bias / (scales[op.inputs[0]] * scale.astype(np.float64))).astype(np.int32)
    return out


def unpack(card: Card, tensors: Tensors) -> Folded:
    """The weights and biases that an int8 bundle's tensors stand for, float32: what `pack` made of them, undone."""
    out: Folded = {}
    for op in card.arch.layers:
        weight, bias = tensors[f"{op.name}.weight"], tensors[f"{op.name}.bias"]
        if op.name not in card.float_ops:
            step = tensors[f"{op.name}.weight_scale"].astype(np.float64)
            weight = (weight * _along(step, weight)).astype(np.float32)
            bias = (bias * step * float(tensors[f"{op.inputs[0]}.scale"])).astype(np.float32)
        out[op.name] = weight, bias
    return out


@dataclass(frozen=True)
class Scheme:
    """How a network is quantized; the defaults are what loses least on real networks (`benchmarks/ptq.py`).

    `calibration`: how activation ranges are chosen (see `calibrate`). `per_layer`: one scale for a layer's weights, not
    one for each output channel. `equalize`, `bias_correction`: see `equalize`. `float_ops`: operations kept in float.
    """

    calibration: Calibration = "mse"
    per_layer: bool = False
    equalize: bool = False
    bias_correction: bool = True
    float_ops: tuple[str, ...] = ()


DEFAULT = Scheme()


@dataclass(frozen=True)
class Measured:
    """A float network ready for int8: its weights folded, what its activations span, the card of what it becomes.

    `corrected`: the weights that are rounded, their biases bias-corrected where that was asked for; `folded`: those
    that stay in float.
    """

    card: Card
    folded: Folded
    corrected: Folded
    ranges: Ranges
    per_layer: bool

    def bundle(self, float_ops: Collection[str] = ()) -> Bundle:
        """The int8 bundle that keeps `float_ops` in float."""
        kept = frozenset(float_ops)
        card = self.card.replace(float_ops=tuple(op.name for op in self.card.arch.ops if op.name in kept))
        weights = {n: (self.folded if n in kept else self.corrected)[n] for n in self.folded}
        tensors = pack(card.arch, card.preprocess, weights, self.ranges, per_layer=self.per_layer, float_ops=kept)
        return Bundle(card, tensors)


def measure(source: Bundle, images: Pixels, scheme: Scheme = DEFAULT) -> Measured:
    """What `scheme` makes of a float bundle, its activations measured on `images`, uint8 [N, H, W, 3]."""
    from mobilenets.calibrate import OBSERVERS, calibrate
    from mobilenets.equalize import correct, equalize
    from mobilenets.simulate import FoldedNetwork

    card, arch = source.card, source.card.arch
    if card.precision != "float32":
        raise UserError(f"this bundle is {card.precision} already; quantize the float bundle it came from")
    if not len(images):
        raise UserError("quantization needs at least one calibration image")
    if scheme.calibration not in OBSERVERS:
        raise unknown("calibration", scheme.calibration, OBSERVERS)
    for name in scheme.float_ops:
        if name not in arch.activations[1:]:
            raise unknown("operation", name, arch.activations[1:])
    preprocess, folded = for_pixels(arch, card.preprocess, fold(arch, source.tensors))
    if scheme.equalize:
        folded = equalize(arch, preprocess, folded, images)
    ranges = calibrate(FoldedNetwork(arch, folded).eval(), preprocess, images, scheme.calibration)
    card = card.replace(precision="int8", preprocess=preprocess, metrics=(), parent=source.digest)
    measured = Measured(card, folded, folded, ranges, scheme.per_layer)
    if not scheme.bias_correction:
        return measured
    stored = unpack(card, measured.bundle().tensors)
    return dataclasses.replace(measured, corrected=correct(arch, preprocess, folded, stored, images))


def quantize_bundle(source: Bundle, images: Pixels, scheme: Scheme = DEFAULT) -> Bundle:
    """Int8 bundle from a float one, its activation ranges measured on `images`, uint8 [N, H, W, 3]."""
    return measure(source, images, scheme).bundle(scheme.float_ops)


def correct_bundle(source: Bundle, precision: Precision, images: Pixels) -> Bundle:
    """A float bundle with biases that make up for what rounding its weights to `precision` adds to channels' means.

    For files of int4, dynamic and float16, which round weights alone. `images`: uint8 [N, H, W, 3]. Layers without a
    bias or BatchNorm stay as they are.
    """
    from mobilenets.equalize import correct

    arch, tensors = source.card.arch, dict(source.tensors)
    folded = fold(arch, tensors)
    corrected = correct(arch, source.card.preprocess, folded, rounded(folded, precision), images)
    for op in arch.layers:
        name = f"{op.name}.bias" if op.kind == "linear" else f"{op.name}.{'norm' if op.norm else 'conv'}.bias"
        if op.norm or op.bias:
            tensors[name] = tensors[name] + corrected[op.name][1] - folded[op.name][1]
    return Bundle(source.card, tensors, source.digest)


def quantize(
    bundle: Path,
    data: str | None = None,
    *,
    out: Path,
    calibration: Calibration = DEFAULT.calibration,
    images: int = CALIBRATION_IMAGES,
    per_layer: bool = False,
    equalize: bool = False,
    no_bias_correction: bool = False,
    keep_float: Annotated[tuple[str, ...], commas(str)] = (),
    max_drop: float | None = None,
    mixed: bool = False,
    qat: int = 0,
    layer_report: Path | None = None,
    root: Path | None = None,
) -> Bundle:
    """Quantize a float bundle to int8: per channel, biases corrected, calibrated on training images.

    Parameters
    ----------
    bundle
        A float bundle's folder, or a run's.
    data
        Images to calibrate on; the training split of the data the bundle was trained on, if left out.
    out
        Folder of the int8 bundle.
    calibration
        Range of the activations: all of it (minmax), all but 0.01% at either end (percentile), or the one with the
        least squared rounding error (mse).
    images
        Calibration images, at most.
    per_layer
        One scale for all weights of a layer. It shows why there is one for each channel: most networks collapse.
    equalize
        Scale channels between layers so that weights span the same range before they are rounded.
    no_bias_correction
        Leave the biases as they are, not corrected for what rounding the weights adds to each channel's mean.
    keep_float
        Operations to keep in float, by name, with commas between.
    max_drop
        Points of top-1 that int8 may lose against float on the val split. If it loses more, nothing is written, and
        the operations are named that would have to stay in float.
    mixed
        Keep those in float then.
    qat
        Epochs of quantization-aware training on the training images: the int8 network learns to answer as the float
        one does. One that was stopped goes on when the same command is given again; until then it is in OUT.qat.
    layer_report
        Write an HTML page to this file: each operation's error and ranges on held-out images, the worst first.
    root
        Where local copies of named data sets are.
    """
    from mobilenets import data as datas
    from mobilenets import mixed as mixing

    if layer_report is not None and layer_report.is_dir():
        raise UserError(f"{layer_report} is a folder; --layer-report needs the name of a file")
    bundles.check_out(out)
    source = Bundle.load(bundles.find_bundle(bundle))
    if images < 1:
        raise UserError(f"images must be at least 1, not {images}")
    if max_drop is not None and not max_drop >= 0:
        raise UserError(f"max-drop must be 0 or more, not {max_drop:g}")
    if mixed and max_drop is None:
        raise UserError("--mixed keeps in float what --max-drop needs; say how many points may be lost: --max-drop 1")
    scheme = Scheme(calibration, per_layer, equalize, not no_bias_correction, keep_float)
    d = datas.of_card(source.card, data, root)
    pixels = d.sample("train", images, source.card.preprocess).pixels
    measured = measure(source, pixels, scheme)
    if qat:
        from mobilenets.qat import trained

        measured = trained(source, measured, d, qat, keep_float, out)
    if max_drop is None:
        made = measured.bundle(keep_float)
    else:
        made = mixing.within(max_drop, source, d, measured, pixels, keep_float, mixed=mixed)
    made = made.save(out)
    if layer_report is None:
        return made
    from mobilenets.layer_report import reported

    return reported(made, measured.folded, d, layer_report)
