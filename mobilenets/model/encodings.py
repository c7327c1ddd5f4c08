"""Weights as numbers: folded, rounded, packed into an int8 bundle and out of it. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping

import numpy as np

from mobilenets.arch import matrices
from mobilenets.arch.graph import Graph
from mobilenets.arch.matrices import DENSE
from mobilenets.arch.operations import Op
from mobilenets.errors import UserError, unknown
from mobilenets.model.card import Card, Precision
from mobilenets.model.codes import TINY as TINY
from mobilenets.model.codes import Array as Array
from mobilenets.model.codes import Encoding as Encoding
from mobilenets.model.codes import binary, even, hashed, kmeans, product, sparse, ternary
from mobilenets.model.images import Preprocess

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
Tensors = Mapping[str, Array]
Folded = dict[str, tuple[Array, Array]]

Ranges = Mapping[str, tuple[float, float]]

BLOCK = 32  # inputs that share a scale in 4 bits


def weight_name(op: Op) -> str:
    """What the weights of a layer that isn't folded are called."""
    return f"{op.name}.weight" if op.kind == "linear" else f"{op.name}.conv.weight"


def tensor_shapes(card: Card) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a bundle with this card holds; `quantize` says what the int8 ones are."""
    shapes: dict[str, tuple[int, ...]] = {}
    for op in card.graph.layers:
        name, weight = op.name, op.weight_shape
        if card.precision == "int8":
            shapes |= {f"{name}.weight": weight, f"{name}.bias": (op.cout,)}
            if name not in card.float_ops:
                shapes[f"{name}.weight_scale"] = (op.cout,)
        elif op.structure != DENSE:
            parts = matrices.vectors(op.structure, op.cin, op.cout)
            shapes |= {f"{name}.{k}": shape for k, shape in parts.items()} | {f"{name}.bias": (op.cout,)}
        elif op.kind == "linear":
            shapes |= {f"{name}.weight": weight[:2], f"{name}.bias": (op.cout,)}
        else:
            if op.kind != "norm":
                shapes[f"{name}.conv.weight"] = weight
            if op.bias:
                shapes[f"{name}.conv.bias"] = (op.cout,)
            if op.norm:
                shapes |= {f"{name}.norm.{k}": (op.cout,) for k in NORM_TENSORS}
                shapes[f"{name}.norm.num_batches_tracked"] = ()
    shapes |= card.graph.constants
    for name, encoding in card.encodings.items():
        key = weight_name(card.graph.op(name))
        stored = find(encoding).shapes(shapes.pop(key))
        shapes |= {key + suffix: shape for suffix, shape in stored.items()}
    if card.precision == "int8":
        shapes |= {f"{a}.{k}": () for a in card.graph.activations for k in ("scale", "zero_point")}
    return shapes


def fold(card: Card, tensors: Tensors) -> Folded:
    """Layer name -> (weight [cout, cin/groups, K, K], bias [cout]), BatchNorm in them, float32.

    `tensors` are a float bundle's, stored plainly.
    """
    out: Folded = {}
    for op in card.graph.layers:
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
        s = gamma / np.sqrt(var + card.arch.bn_eps)
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


def for_pixels(graph: Graph, preprocess: Preprocess, folded: Folded) -> tuple[Preprocess, Folded]:
    """Preprocessing by one whole mean and one deviation, and the first layer changed so that it makes no difference.

    Then the image's own pixels are the quantized input, and no time goes into normalizing them: as much as the whole of
    a small network takes. Only where the first layer pads, it now pads with the new mean instead of the old ones.
    """
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    whole, common = float(np.rint(mean.mean())), float(std.mean())
    if np.allclose(mean, whole) and np.allclose(std, common):
        return preprocess, folded
    readers = graph.readers[graph.source]
    if len(readers) != 1 or not readers[0].is_layer:  # what else reads the image would have to change too
        return preprocess, folded
    first = readers[0].name
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
    graph: Graph,
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
    for name in graph.activations:
        seen = graph.moved(name)  # what only moves numbers keeps their scale
        step, zero = affine(*(input_range(preprocess) if seen == graph.source else ranges[seen]))
        out[f"{name}.scale"], out[f"{name}.zero_point"] = np.asarray(step), np.asarray(zero)
        scales[name] = float(step)
    for op in graph.layers:
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
    for op in card.graph.layers:
        weight, bias = tensors[f"{op.name}.weight"], tensors[f"{op.name}.bias"]
        if op.name not in card.float_ops:
            step = tensors[f"{op.name}.weight_scale"].astype(np.float64)
            weight = (weight * _along(step, weight)).astype(np.float32)
            bias = (bias * step * float(tensors[f"{op.inputs[0]}.scale"])).astype(np.float32)
        out[op.name] = weight, bias
    return out


# ---- how a float bundle stores the weights of a layer


def _blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    """Of weights stored in 4 bits: values in a row of blocks, and blocks in it."""
    count = -(-math.prod(shape[1:]) // BLOCK)
    return count * BLOCK, count


def _halves(weight: Array) -> bool:
    """Whether weights are within what 16-bit floats can say."""
    return bool(np.abs(weight).max(initial=0) < np.finfo(np.float16).max)


def _encode_int8(weight: Array) -> dict[str, Array]:
    codes, scale = int8_weights(weight)
    return {"": codes, "_scale": scale}


def _encode_int4(weight: Array) -> dict[str, Array]:
    """Two codes to a byte, the first in its lower half; the last block of a channel is filled up."""
    row, _ = _blocks(weight.shape)
    flat = weight.reshape(len(weight), -1, 1, 1)
    codes, scale = int4_weights(flat)
    whole = np.zeros((len(weight), row), np.uint8)
    whole[:, : flat.shape[1]] = codes[:, :, 0, 0].astype(np.uint8) & 15
    return {"": whole[:, ::2] | whole[:, 1::2] << 4, "_scale": scale}


def _decode_int4(stored: Mapping[str, Array], shape: tuple[int, ...]) -> Array:
    both = np.stack([stored[""] & 15, stored[""] >> 4], 2).reshape(shape[0], -1).astype(np.int8)
    codes = np.where(both > 7, both - 16, both).astype(np.float32)
    values = codes * np.repeat(stored["_scale"], BLOCK, 1)
    out: Array = values[:, : math.prod(shape[1:])].reshape(shape).astype(np.float32)
    return out


PLAIN = "plain"
ENCODINGS: dict[str, Encoding] = {
    PLAIN: Encoding(lambda s: {"": s}, lambda w: {"": w}, lambda t, _: t[""]),
    "half": Encoding(lambda s: {"": s}, lambda w: {"": half(w)}, lambda t, _: t[""].astype(np.float32), _halves),
    "int8": Encoding(
        lambda s: {"": s, "_scale": (s[0],)},
        _encode_int8,
        lambda t, _: np.asarray(t[""] * _along(t["_scale"], t[""]), np.float32),
    ),
    "int4": Encoding(
        lambda s: {"": (s[0], _blocks(s)[0] // 2), "_scale": (s[0], _blocks(s)[1])},
        _encode_int4,
        _decode_int4,
        codes=lambda _s: {"": 4},
    ),
    "int3": even(3),
    "int2": even(2),
    "ternary": ternary(),
    "binary": binary(),
    "kmeans": kmeans(),
    "product": product(),
    "hashed": hashed(),
    "sparse": sparse(),
}


def find(name: str) -> Encoding:
    """The encoding called `name`; numbers after it are other than its usual: "kmeans-3", "product-4-256".

    A UserError suggests the nearest.
    """
    family, *numbers = str(name).split("-")
    if family not in ENCODINGS:
        raise unknown("encoding", str(name), ENCODINGS)
    found = ENCODINGS[family]
    if not numbers:
        return found
    try:
        if found.varied is None:
            raise ValueError("no numbers")
        if not all(n.isascii() and n.isdigit() for n in numbers):
            raise ValueError("whole numbers from 1 on")
        return found.varied(*(int(n) for n in numbers))
    except ValueError as e:
        raise UserError(f"the encoding {family} takes {e}, not {'-'.join(numbers)[:40]!r}") from e


def encode(card: Card, tensors: Tensors, encodings: Mapping[str, str]) -> dict[str, Array]:
    """Plain tensors of a float bundle with the weights of the layers named in `encodings` stored so."""
    out = dict(tensors)
    for name, encoding in encodings.items():
        key = weight_name(card.graph.op(name))
        out |= {key + suffix: t for suffix, t in find(encoding).encode(out.pop(key)).items()}
    return out


def decode(card: Card, tensors: Tensors) -> dict[str, Array]:
    """The plain tensors of a bundle whose card says that some are stored otherwise."""
    out = dict(tensors)
    for name, encoding in card.encodings.items():
        how, (key, shape) = find(encoding), _stored(card, name)
        out[key] = how.decode({suffix: out.pop(key + suffix) for suffix in how.shapes(shape)}, shape)
    return out


def multiplied_out(card: Card, tensors: Tensors) -> dict[str, Array]:
    """A bundle's tensors with the matrices in the place of the vectors that some are made of (see `arch.matrices`)."""
    out = dict(tensors)
    for op in card.graph.layers:
        if op.structure != DENSE:
            parts = {k: out.pop(f"{op.name}.{k}") for k in matrices.vectors(op.structure, op.cin, op.cout)}
            out[f"{op.name}.weight"] = matrices.matrix(op.structure, op.cin, op.cout, parts, np).astype(np.float32)
    return out


def code_bits(card: Card) -> dict[str, int]:
    """Bits of a code, by the name of each tensor of a bundle that is made of codes (see `Encoding`)."""
    out: dict[str, int] = {}
    for name, encoding in card.encodings.items():
        key, shape = _stored(card, name)
        out |= {key + suffix: bits for suffix, bits in find(encoding).codes(shape).items()}
    return out


def _stored(card: Card, name: str) -> tuple[str, tuple[int, ...]]:
    """What a layer's weights are called, and their shape."""
    op = card.graph.op(name)
    return weight_name(op), op.weight_shape[:2] if op.kind == "linear" else op.weight_shape
