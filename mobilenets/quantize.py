"""Folding and int8 post-training quantization: Bundle -> Bundle. Numpy alone; only calibration runs PyTorch.

The scheme (Krishnamoorthi, arXiv 1806.08342): weights int8, symmetric, a scale per output channel; activations uint8,
asymmetric, a scale per tensor; biases int32 at the product of the two scales; BatchNorm folded first. It is the one
that V1 and V2 survive (with a scale per layer they collapse to 0.1% top-1) and that every runtime of interest takes.

An int8 bundle's tensors, for each layer L: `L.weight` int8, `L.weight_scale` float32 [cout], `L.bias` int32 [cout];
and for each activation A ("input" and every operation's output): `A.scale`, `A.zero_point`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets import bundle as bundles
from mobilenets.bundle import Bundle, Tensors
from mobilenets.errors import UserError
from mobilenets.images import Pixels, Preprocess
from mobilenets.spec import Arch

Array = npt.NDArray[Any]
Folded = dict[str, tuple[Array, Array]]
Ranges = Mapping[str, tuple[float, float]]
CALIBRATION_IMAGES = 512


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


def pack(arch: Arch, preprocess: Preprocess, folded: Folded, ranges: Ranges) -> dict[str, Array]:
    """Folded float weights and activation ranges -> the tensors of an int8 bundle."""
    out: dict[str, Array] = {}
    scales: dict[str, float] = {}
    for name in arch.activations:
        scale, zero = affine(*(input_range(preprocess) if name == "input" else ranges[name]))
        out[f"{name}.scale"], out[f"{name}.zero_point"] = np.asarray(scale), np.asarray(zero)
        scales[name] = float(scale)
    for op in arch.layers:
        name, source = op.name, op.inputs[0]
        weight, bias = folded[name]
        peak = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float64)
        # A channel of tiny weights and a large bias would overflow its int32 bias: widen its scale until it fits.
        scale = np.maximum(np.maximum(peak / 127, np.abs(bias) / (scales[source] * 2**30)), 1e-12).astype(np.float32)
        step = scale.astype(np.float64)
        out[f"{name}.weight"] = np.clip(np.rint(weight / step[:, None, None, None]), -127, 127).astype(np.int8)
        out[f"{name}.weight_scale"] = scale
        out[f"{name}.bias"] = np.rint(bias / (scales[source] * step)).astype(np.int32)
    return out


def quantize_bundle(source: Bundle, images: Pixels) -> Bundle:
    """Int8 bundle from a float one, its activation ranges measured on `images`, uint8 [N, H, W, 3]."""
    from mobilenets.simulate import calibrate

    card = source.card
    if card.precision != "float32":
        raise UserError(f"this bundle is {card.precision} already; quantize the float bundle it came from")
    if not len(images):
        raise UserError("quantization needs at least one calibration image")
    preprocess, folded = for_pixels(card.arch, card.preprocess, fold(card.arch, source.tensors))
    tensors = pack(card.arch, preprocess, folded, calibrate(source, images))
    return Bundle(card.replace(precision="int8", preprocess=preprocess, metrics=(), parent=source.digest), tensors)


def quantize(bundle: Path, data: str | None = None, *, out: Path, root: Path | None = None) -> Bundle:
    """Quantize a float bundle to int8: per channel, calibrated on training images.

    Parameters
    ----------
    bundle
        A float bundle's folder, or a run's.
    data
        Images to calibrate on; the training split of the data the bundle was trained on, if left out.
    out
        Folder of the int8 bundle.
    root
        Where local copies of named data sets are.
    """
    from mobilenets import data as datas

    source = Bundle.load(bundles.find_bundle(bundle))
    images = datas.of_card(source.card, data, root).sample("train", CALIBRATION_IMAGES, source.card.preprocess)
    return quantize_bundle(source, images.pixels).save(out)
