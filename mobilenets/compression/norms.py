"""BatchNorm's numbers of a network whose weights are stored otherwise: found anew, so that its channels are float's.

An error in a layer's weights moves its channels' means, and the layers after it feel that more than all the rest of the
error. The numbers beside the weights make good for it at no cost in bytes (bias correction: Nagel et al., arXiv
1906.04721, section 4.2), and for what they lose themselves when they are rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from mobilenets import tasks
from mobilenets.arch.operations import Op
from mobilenets.compression.coded import BOOK_BITS, coarse
from mobilenets.model.bundle import Bundle
from mobilenets.model.codes import Array
from mobilenets.model.encodings import weight_name
from mobilenets.model.net import Net, of_tensors

LEAST, MOST = 0.5, 2.0  # times its own, that a channel's factor becomes


def holder(net: Net, op: Op) -> nn.Module:
    """The module whose `weight` is the layer's."""
    module = net.of(op)
    return cast(nn.Module, getattr(module, "conv", module))


def _rows(x: Tensor) -> Tensor:
    """A value [N, C, ...] as channels [C, n], float64."""
    return x.detach().double().transpose(0, 1).flatten(1)


@contextmanager
def _on(module: nn.Module, see: Callable[[nn.Module, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """`see` what the module reads and gives while it runs; what it returns is given instead."""
    handle = module.register_forward_hook(lambda m, inputs, y: see(m, inputs[0], y))
    try:
        yield
    finally:
        handle.remove()


def _rounded(values: Tensor, bits: int) -> Tensor:
    return torch.from_numpy(coarse(values.float().numpy(), bits))


def _line(norm: nn.Module, x: Tensor, wanted: Tensor, bits: int) -> Tensor:
    """Set a BatchNorm of two numbers to the line that comes nearest to `wanted`, both [C, n]; what it then gives."""
    factor, shift = cast(Tensor, norm.weight), cast(Tensor, norm.bias)
    rows, own = _rows(x), factor.double()
    mean, goal = rows.mean(1), wanted.mean(1)
    spread = rows.var(1, correction=0)
    slope = ((rows - mean[:, None]) * (wanted - goal[:, None])).mean(1) / spread.clamp(min=1e-30)
    share = torch.where(own != 0, slope / own, 1).nan_to_num(1).clamp(LEAST, MOST)
    factor.copy_(_rounded(own * torch.where(spread > 0, share, 1), bits))
    shift.copy_(_rounded(goal - factor.double() * mean, bits))
    at = (1, -1, *(1 for _ in x.shape[2:]))
    return x * factor.reshape(at) + shift.reshape(at)


def fitted(made: Bundle, like: Bundle, images: Tensor, norm_bits: int) -> Bundle:
    """`made` with factors, shifts and biases such that each channel is as near as can be to that of `like`.

    Both in canonical form (`coded.canonical`), of the same network; `images` [N, 3, H, W], preprocessed. The layers are
    fitted one after another, each on what those before it give by then. A factor and a shift have `norm_bits` for the
    largest of a layer. A network that can't be run operation by operation stays as it is.
    """
    taps = tasks.of(like.card).taps
    if not taps:
        return made
    true, net = of_tensors(like.card, like.tensors), of_tensors(made.card, made.dense().tensors)
    ops = net.graph.upto(taps).ops
    last = {name: i for i, op in enumerate(ops) for name in op.inputs}
    of_true, of_net = {net.graph.source: images}, {net.graph.source: images}
    out = dict(made.tensors)
    with torch.inference_mode():
        for i, op in enumerate(ops):
            _compute(op, true, net, of_true, of_net, norm_bits)
            for name in (n for n in op.inputs if last[n] == i):
                of_true.pop(name, None)
                of_net.pop(name, None)
            if op.is_layer:
                out |= _numbers(op, net)
    return Bundle(made.card, out, made.digest)


def _compute(
    op: Op, true: Net, net: Net, of_true: dict[str, Tensor], of_net: dict[str, Tensor], norm_bits: int
) -> None:
    """Run one operation of both networks, and fit the second's numbers meanwhile."""
    wanted: list[Tensor] = []

    def note(_m: nn.Module, _x: Tensor, y: Tensor) -> None:
        wanted.append(_rows(y))  # copied: the activation may be computed in its place

    def fit(module: nn.Module, x: Tensor, y: Tensor) -> Tensor | None:
        if op.norm:
            return _line(module, x, wanted[0], norm_bits)
        if not op.bias or op.shares:  # one that is lent is fitted where it is the layer's own
            return None
        bias = cast(Tensor, module.bias)
        away = wanted[0].mean(1) - _rows(y).mean(1)
        new = _rounded(bias.double() + away, BOOK_BITS)
        moved = (new - bias).reshape(1, -1, *(1 for _ in y.shape[2:]))
        bias.copy_(new)
        return y + moved

    def run(of: Net, values: dict[str, Tensor], see: Callable[[nn.Module, Tensor, Tensor], Tensor | None]) -> None:
        inputs = [values[name] for name in op.inputs]
        if not op.is_layer:
            values[op.name] = of.compute(op, inputs)
            return
        with _on(cast(nn.Module, of.of(op).norm) if op.norm else holder(of, op), see):
            values[op.name] = of.compute(op, inputs)

    run(true, of_true, note)
    run(net, of_net, fit)


def _numbers(op: Op, net: Net) -> dict[str, Array]:
    """A layer's numbers beside its weights, by their tensors' names."""
    found: dict[str, Array] = {}
    if op.norm:
        norm = cast(nn.Module, net.of(op).norm)
        found = {f"{op.name}.norm.{k}": cast(Tensor, getattr(norm, k)).numpy().copy() for k in ("weight", "bias")}
    if op.bias and not op.shares:
        bias = cast(Tensor, holder(net, op).bias)
        found[weight_name(op).removesuffix("weight") + "bias"] = bias.detach().numpy().copy()
    return found
