"""How a network is quantized, as data. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Calibration = Literal["minmax", "percentile", "mse"]
CALIBRATION_IMAGES = 256  # more changed nothing on the networks measured; 64 would nearly do


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
