"""An arch with fewer channels in its layers: the same rows, each with channels of its own. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mobilenets.arch.operations import Op
from mobilenets.arch.rows import (
    Attention,
    Conv,
    FusedInvertedResidual,
    InvertedResidual,
    Row,
    Separable,
    round_channels,
)
from mobilenets.arch.rows_units import BiasedSeparable
from mobilenets.arch.spec import Arch, Block
from mobilenets.errors import UserError

# Rows whose layers can have any channels. In others branches are split and joined by what the rows themselves imply.
FREE = (Conv, Separable, BiasedSeparable, InvertedResidual, FusedInvertedResidual, Attention)


def narrowed(arch: Arch, widths: Mapping[str, int]) -> Arch:
    """`arch` with as many channels out of its layers as `widths` says by their names; the others keep theirs.

    Depthwise layers follow what they read, and a squeeze-and-excite its block: its own are a quarter (V3 paper, section
    5.3). Raises `UserError` for widths that rows can't have, as of two layers that a shortcut joins.
    """
    if arch.shortcut == "expansion":
        raise UserError("a network whose shortcuts join its expansions can't be narrowed layer by layer")
    bound = next((row for row in (*arch.rows, *arch.head) if not isinstance(row, FREE)), None)
    if bound is not None:
        raise UserError(
            f"{arch.title} can't be narrowed layer by layer: the channels of a {type(bound).__name__} are tied"
        )
    parts: list[tuple[Row, ...]] = []
    cin = 3
    for rows, blocks in ((arch.rows, arch.blocks), (arch.head, arch.head_blocks)):
        made = []
        for row, block in zip(rows, blocks, strict=True):
            made.append(_narrow(row, block, cin, widths, arch.divisor))
            cin = made[-1].channels
        parts.append(tuple(made))
    new = arch.replace(rows=parts[0], head=parts[1])
    joins = [(op.name, op.kind, op.inputs) for op in arch.ops]
    if [(op.name, op.kind, op.inputs) for op in new.ops] != joins:
        raise UserError(f"{arch.title}: with these channels its rows would have other layers")
    for op in new.ops:
        if op.cout != widths.get(op.name, op.cout):
            raise UserError(f"{arch.title}: its rows can't have {widths[op.name]} channels in {op.name}")
    return new


def _narrow(row: Row, block: Block, cin: int, widths: Mapping[str, int], divisor: int) -> Row:
    """A row that now reads `cin` channels."""
    last = _last_layer(block)
    assert isinstance(row, FREE)
    row = dataclasses.replace(row, channels=widths.get(last.name, last.cout))
    expand = next((op for op in block.ops if op.name.endswith(".expand")), None)
    inner = cin if expand is None else widths.get(expand.name, expand.cout)
    if isinstance(row, FusedInvertedResidual) and inner != round_channels(cin * row.expand, divisor, 1):
        return dataclasses.replace(row, expand=inner / cin)
    if isinstance(row, InvertedResidual):
        implied = round_channels(cin * row.expand, divisor, 1)
        return dataclasses.replace(row, mid=0 if inner == implied else inner)
    return row


def _last_layer(block: Block) -> Op:
    return next(op for op in reversed(block.ops) if op.is_layer)


def unlike(arch: Arch) -> list[tuple[str, str]]:
    """Pairs of layers that must differ in their channels, lest a row become another.

    An expansion to as many channels as it reads is left out, and a shortcut joins what has as many as it reads.
    """
    pairs = []
    source = ""
    for row, block in zip((*arch.rows, *arch.head), (*arch.blocks, *arch.head_blocks), strict=True):
        last = _last_layer(block)
        expand = next((op for op in block.ops if op.name.endswith(".expand")), None)
        if source and expand is not None and isinstance(row, InvertedResidual):
            pairs.append((source, expand.name))
        if source and row.RESIDUAL and row.stride == 1 and not block.shortcut:
            pairs.append((source, last.name))
        source = last.name
    return pairs
