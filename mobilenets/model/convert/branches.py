"""Layers that are trained as branches beside one another, as the one convolution that they add up to. No torch.

MobileOne (2206.04040, section 3): of a block, some convolutions of one kernel, one of 1x1, and the input itself, each
with a BatchNorm, are summed. All are linear, so that their sum is one convolution with a bias.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mobilenets.errors import UserError
from mobilenets.model.convert.recognise import Array, Arrays

FIRST = ".conv_kxk.0.conv.weight"  # of timm's blocks
EPS = 1e-5


def joined(tensors: Arrays) -> Arrays:
    """`tensors` with each block of branches as timm's own `reparam_conv`; those without any as they are.

    Raises `UserError` where a branch lacks a tensor, or has one of another shape.
    """
    blocks = [name.removesuffix(FIRST) for name in tensors if name.endswith(FIRST)]
    if not blocks:
        return tensors
    inside = tuple(f"{b}.{part}" for b in blocks for part in ("conv_kxk.", "conv_scale.", "identity."))
    out = {name: a for name, a in tensors.items() if not name.startswith(inside)}
    for block in blocks:
        try:
            weights, biases = zip(*_branches(tensors, block), strict=True)
        except KeyError as e:
            raise UserError(f"a block of branches without {e.args[0]}") from e
        except (ValueError, IndexError) as e:
            raise UserError(f"the branches of {block} don't fit one another: {e}") from e
        out[f"{block}.reparam_conv.weight"] = np.sum(weights, 0).astype(np.float32)
        out[f"{block}.reparam_conv.bias"] = np.sum(biases, 0).astype(np.float32)
    return out


def _branches(tensors: Arrays, block: str) -> Iterator[tuple[Array, Array]]:
    """The weights and bias of each branch, all of one kernel."""
    i = 0
    while (name := f"{block}.conv_kxk.{i}") + ".conv.weight" in tensors:
        yield _folded(tensors, tensors[f"{name}.conv.weight"], f"{name}.bn")
        i += 1
    shape = tensors[block + FIRST].shape
    cout, share, side, _ = shape
    centre = np.zeros(shape)
    if f"{block}.conv_scale.conv.weight" in tensors:
        one = centre.copy()
        one[:, :, side // 2, side // 2] = tensors[f"{block}.conv_scale.conv.weight"][:, :, 0, 0]
        yield _folded(tensors, one, f"{block}.conv_scale.bn")
    if f"{block}.identity.weight" in tensors:
        centre[np.arange(cout), np.arange(cout) % share, side // 2, side // 2] = 1
        yield _folded(tensors, centre, f"{block}.identity")


def _folded(tensors: Arrays, weight: Array, norm: str) -> tuple[Array, Array]:
    """A convolution with its BatchNorm in it."""
    gamma, beta, mean, var = (
        np.asarray(tensors[f"{norm}.{k}"], np.float64) for k in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(var + EPS)
    return np.asarray(weight, np.float64) * scale[:, None, None, None], beta - mean * scale
