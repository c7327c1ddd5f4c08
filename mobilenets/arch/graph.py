"""The operations that networks are made of. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "relu6", "hard_swish", "hard_sigmoid", "gelu"]
OpKind = Literal["conv", "depthwise", "pointwise", "linear", "norm", "activation", "pool", "add", "mul", "attend"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "relu6", "hard_swish", "hard_sigmoid", "gelu")
# Clipping costs nothing after a layer, in any runtime; every other activation is an operation of its own.
CLIPS = ("relu", "relu6")
LAYERS = ("conv", "depthwise", "pointwise", "linear", "norm")


@dataclass(frozen=True)
class Op:
    """One operation of the network: a layer with weights, or what joins layers.

    `kind`: "conv", "depthwise", "pointwise", "linear": weights, then BatchNorm if `norm`, a bias if `bias`, then
    `activation` ("relu", "relu6" or none); "norm": a BatchNorm alone; "activation": `activation` alone; "pool": the
    mean over all positions; "add", "mul": of two inputs, broadcast; "attend": attention of query, key, value.
    `inputs` are names of earlier operations; in a row's own ops, "" is the block's input.
    """

    name: str
    kind: OpKind
    cin: int
    cout: int
    kernel: int = 1
    stride: int = 1
    activation: Activation | None = None
    norm: bool = False
    bias: bool = False
    heads: int = 0
    inputs: tuple[str, ...] = ()

    @property
    def groups(self) -> int:
        return self.cin if self.kind in ("depthwise", "norm") else 1

    @property
    def is_layer(self) -> bool:
        """Whether it has weights."""
        return self.kind in LAYERS
