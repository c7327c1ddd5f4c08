"""What is known of a network beside its weights: what it is, how well it does, where it came from. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError, unknown
from mobilenets.model.images import Preprocess

FORMAT = 1

# Of bundles, float32 and int8. The others are of exported files: their weights in 16-bit floats (activations too, where
# the runtime can); dynamic: int8 weights, and activations that are quantized as they come; int4: weights in 4 bits.
Precision = Literal["float32", "float16", "int8", "dynamic", "int4"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "dynamic", "int4")


@dataclass(frozen=True)
class Metric:
    """A measured number and what it was measured on. Accuracies are in percent."""

    name: str
    value: float
    data: str
    split: str
    count: int


@dataclass(frozen=True)
class Card:
    """What a network is, what it was trained on, how well it does, and where it came from.

    `float_ops`: names of the operations that an int8 network keeps in float (`quantize` says how).
    """

    arch: Arch
    preprocess: Preprocess
    labels: tuple[str, ...]
    task: str = "classify"
    precision: Precision = "float32"
    float_ops: tuple[str, ...] = ()
    metrics: tuple[Metric, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    parent: str | None = None
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.arch.classes != len(self.labels):
            raise UserError(f"the card has {len(self.labels)} labels for a network of {self.arch.classes} classes")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.float_ops and self.precision != "int8":
            raise UserError(
                f"the card of a {self.precision} network names operations to keep in float; only int8's can"
            )
        for name in self.float_ops:
            if name not in self.arch.activations[1:]:
                raise unknown("operation", name, self.arch.activations[1:])

    def replace(self, **changes: Any) -> Card:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "arch": self.arch.to_json(),
            "preprocess": self.preprocess.to_json(),
            "labels": list(self.labels),
            "float_ops": list(self.float_ops),
            "metrics": [dataclasses.asdict(m) for m in self.metrics],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any], where: str = "card") -> Card:
        """The inverse of `to_json`; a UserError for one that is newer than this program, or malformed."""
        if not isinstance(d, dict) or not isinstance(d.get("format"), int):
            raise UserError(f"{where}: not a mobilenets card")
        if d["format"] > FORMAT:
            raise UserError(
                f"{where}: written by a newer mobilenets (card format {d['format']}, this one reads up to {FORMAT}); "
                "upgrade with: pip install --upgrade mobilenets"
            )
        try:
            fields = {f.name: d[f.name] for f in dataclasses.fields(cls) if f.name != "float_ops"}
            return cls(**{
                **fields,
                "arch": Arch.from_json(d["arch"]),
                "preprocess": Preprocess.from_json(d["preprocess"]),
                "labels": tuple(d["labels"]),
                "float_ops": tuple(d.get("float_ops", ())),  # earlier cards have none
                "metrics": tuple(Metric(**m) for m in d["metrics"]),
            })  # fmt: skip
        except (KeyError, TypeError) as e:
            raise UserError(f"{where}: a field is missing or malformed: {e}") from e


def stamp(card: Card) -> Card:
    """`card` with the time and the versions of what made it."""
    versions = {"python": platform.python_version()}
    for name in ("mobilenets", "torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return card.replace(created=now, versions=versions)


CARD_KEY = "mobilenets.card"
