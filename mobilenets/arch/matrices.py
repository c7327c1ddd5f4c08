"""Matrices that are made of a few vectors: of which, and how. NumPy or PyTorch; no torch is imported here.

Both are stacks of square blocks of the input's width, as many as the outputs need. What they save is numbers to train,
to keep and to send; files have the matrix that they stand for, which is what runtimes multiply by.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

DENSE = "dense"
RANK = 4  # of the displacement
SEED = 0  # of Fastfood's permutation, which is drawn, not trained

Vectors = dict[str, tuple[int, ...]]


def _toeplitz_vectors(cin: int, blocks: int) -> Vectors:
    return {"g": (blocks, RANK, cin), "h": (blocks, RANK, cin)}


def _toeplitz(parts: Any, cin: int, xp: Any) -> Any:
    """Sums of a circulant by a skew-circulant matrix (Sindhwani et al. 2015, 1510.01722), transposed."""
    import numpy as np  # which what only counts needs not

    g, h = parts["g"], parts["h"]
    at = np.arange(cin)
    behind = at[None, :] - at[:, None]  # [column, row]
    turned = xp.asarray(np.where(behind < 0, -1, 1).astype(np.float32))
    skew = h[..., xp.asarray(behind % cin)] * turned
    both = xp.fft.fft(skew) * xp.fft.fft(g)[..., None, :]
    return xp.fft.ifft(both.sum(1)).real


def _fastfood_vectors(cin: int, blocks: int) -> Vectors:
    return dict.fromkeys(("b", "g", "s"), (blocks, block("fastfood", cin)))


def _fastfood(parts: Any, cin: int, xp: Any) -> Any:
    """S H G P H B (Yang et al. 2015, 1412.7149, the adaptive one), transposed: its columns are rows."""
    import numpy as np

    b, g, s = (parts[k] for k in "bgs")
    width = b.shape[-1]
    diagonal = xp.asarray(np.eye(cin, width, dtype=np.float32)) * b[:, None]
    mixed = _hadamard(diagonal, xp)[..., xp.asarray(np.random.default_rng(SEED).permutation(width))]
    return _hadamard(mixed * g[:, None], xp) * s[:, None]


def _hadamard(x: Any, xp: Any) -> Any:
    """The Walsh-Hadamard transform of the last axis, a power of two, scaled to keep lengths."""
    shape, half = x.shape, 1
    while half < shape[-1]:
        pairs = x.reshape(*shape[:-1], -1, 2, half)
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        x = xp.stack([first + second, first - second], -2).reshape(shape)
        half *= 2
    return x / math.sqrt(shape[-1])


MADE = {"toeplitz": (_toeplitz_vectors, _toeplitz), "fastfood": (_fastfood_vectors, _fastfood)}
PROPORTIONAL = {DENSE: "weight", "toeplitz": "g", "fastfood": "s"}  # the numbers that a product grows with
STRUCTURES = (DENSE, *MADE)


def vectors(structure: str, cin: int, cout: int) -> Vectors:
    """What a matrix [cout, cin] is made of: names and shapes."""
    return MADE[structure][0](cin, -(-cout // block(structure, cin)))


def block(structure: str, cin: int) -> int:
    """Outputs of a block."""
    return 1 << (cin - 1).bit_length() if structure == "fastfood" else cin


def matrix(structure: str, cin: int, cout: int, parts: Any, xp: Any) -> Any:
    """The matrix [cout, cin] that vectors stand for; `xp`: the library that they are of, numpy or torch."""
    columns = MADE[structure][1](parts, cin, xp)  # [blocks, cin, outputs of a block]
    return columns.swapaxes(1, 2).reshape(-1, cin)[:cout]


def random(structure: str, cin: int, cout: int, deviation: float, rng: np.random.Generator) -> dict[str, Any]:
    """Vectors whose matrix has entries of about this deviation, float32."""
    import numpy as np

    made = {k: rng.standard_normal(s, np.float32) for k, s in vectors(structure, cin, cout).items()}
    if structure == "fastfood":
        made["b"] = np.sign(made["b"]) + (made["b"] == 0)
        made["s"] = np.full_like(made["s"], deviation * math.sqrt(made["s"].shape[-1]))
        return made
    size = np.float32((deviation**2 / (RANK * cin)) ** 0.25)
    return {k: v * size for k, v in made.items()}
