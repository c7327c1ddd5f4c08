"""What many tests begin with: small images, networks quantized once, the command line in this process."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobilenets import cli
from mobilenets.compression.scheme import DEFAULT, Scheme
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import Array, weight_name
from mobilenets.model.images import Pixels

SMALL_SHARD = 0.015  # MB: three of the colours' images
COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 70), "red": (200, 50, 40)}
TINY = {"--arch": "v1", "--alpha": "0.25", "--resolution": "32", "--batch": "24", "--workers": "0"}


def smooth_images(count: int, side: int = 32, seed: int = 0) -> Pixels:
    """Random images with structure, uint8 [count, side, side, 3]: noise at an eighth of the size, enlarged."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, max(side // 8, 2), max(side // 8, 2), 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(c).resize((side, side), Image.Resampling.BICUBIC)) for c in coarse])


def colour_images(root: Path, counts: dict[str, int], side: int = 32) -> Path:
    rng = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.array(COLOURS[Path(folder).name]) + rng.normal(0, 25, (side, side, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / folder / f"{i:03d}.png")
    return root


_QUANTIZED: dict[tuple[int, bytes, Any], tuple[Bundle, Bundle]] = {}


def quantized(source: Bundle, images: Pixels, scheme: Scheme = DEFAULT) -> Bundle:
    """`quantize_bundle`, once for each of `make_bundle`'s: what many tests begin with takes most of their time."""
    from mobilenets.compression.quantize import quantize_bundle

    key = (id(source), images.tobytes(), scheme)
    if key not in _QUANTIZED:
        _QUANTIZED[key] = source, quantize_bundle(source, images, scheme)
    return _QUANTIZED[key][1]


def few_values(weights: Array, values: int) -> Array:
    """Every channel of so many values, of its own size."""
    rows = weights.reshape(len(weights), -1)
    most = np.maximum(np.abs(rows).max(1, keepdims=True).astype(np.float32), 1e-3)
    levels = np.floor((rows / most + 1) / 2 * (values - 1e-3)) - values // 2
    return np.asarray(levels * (most / values)).astype(weights.dtype).reshape(weights.shape)


def mostly_zeros(weights: Array, share: float = 0.8) -> Array:
    kept = np.random.default_rng(weights.size).random(weights.shape) >= share
    return np.where(kept, weights, 0).astype(weights.dtype)


def changed(bundle: Bundle, change: Callable[[Array], Array]) -> Bundle:
    """With other weights in all layers."""
    whole = bundle.card.precision == "int8"
    names = [f"{op.name}.weight" if whole else weight_name(op) for op in bundle.card.graph.layers]
    return Bundle(bundle.card, {**bundle.tensors, **{n: change(bundle.tensors[n]) for n in names}})


@dataclass(frozen=True)
class Ran:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line on stderr of a command that failed as it should: exit code 2, nothing else said."""
        assert self.code == 2, self.err
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith("mobilenets: ")
        assert "Traceback" not in line
        return line


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the command line that made it, what that printed."""

    out: Path
    arguments: tuple[str, ...]
    ran: Ran


def run_cli(*arguments: object) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run([str(a) for a in arguments])
    return Ran(code, out.getvalue(), err.getvalue())
