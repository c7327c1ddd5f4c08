"""All types of rows, by the names that an `Arch` on disk has them by. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mobilenets.arch import rows, rows_branches, rows_units
from mobilenets.arch.operations import ACTIVATIONS
from mobilenets.arch.rows import Row
from mobilenets.errors import UserError, unknown

TYPES: tuple[type[Row], ...] = (
    rows.Conv,
    rows.Separable,
    rows.InvertedResidual,
    rows.FusedInvertedResidual,
    rows.Attention,
    rows_branches.Branches,
    rows_units.InvertedBottleneck,
    rows_units.BiasedSeparable,
    rows_units.ShuffleUnit,
    rows_units.GroupedShuffleUnit,
    rows_units.BareSeparable,
    rows_units.XceptionBlock,
    rows_units.GhostBottleneck,
    rows_units.Flattened,
    rows_units.Factorized,
)
ROW_TYPES: dict[str, type[Row]] = {t.__name__: t for t in TYPES}
LEAST = {"start": 0, "kernel": 0, "mid": 0}  # 0 is none
MOST = {"repeats": 16}  # what makes layers


def row_from_json(d: Mapping[str, Any]) -> Row:
    """The inverse of `{"type": ..., **asdict(row)}`."""
    fields = dict(d)
    name = fields.pop("type")
    if name not in ROW_TYPES:
        raise unknown("row type", str(name), ROW_TYPES)
    flags = {f.name for f in dataclasses.fields(ROW_TYPES[name]) if isinstance(f.default, bool)}
    if not all(type(fields[k]) is bool for k in flags & {*fields}):
        raise UserError(f"not an Arch: of a {name} row, {', '.join(sorted(flags))} are true or false")
    if name == rows_branches.Branches.__name__:
        steps = tuple(rows_branches.Step(**step) for step in fields.pop("steps"))
        return rows_branches.Branches(steps, **fields)
    activation = fields.get("activation")
    if activation is not None and activation not in ACTIVATIONS:
        raise unknown("activation", str(activation), ACTIVATIONS)
    numbers = {k: v for k, v in fields.items() if k != "activation" and k not in flags}
    if not all(isinstance(v, int | float) and LEAST.get(k, 1) <= v <= MOST.get(k, 65536) for k, v in numbers.items()):
        raise UserError(f"not an Arch: a {name} row needs whole numbers from 1 to 65536 ({MOST}), not {numbers}")
    if not all(isinstance(v, int) for k, v in numbers.items() if k != "expand"):
        raise UserError(f"not an Arch: a {name} row needs whole numbers, not {numbers}")
    return ROW_TYPES[name](**fields)
