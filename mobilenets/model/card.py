"""What is known of a network beside its weights: what it is, how well it does, where it came from. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from mobilenets import console
from mobilenets.arch import fields
from mobilenets.arch.graph import Graph, Head
from mobilenets.arch.heads import PROBABILITIES, classifier_head, feature_head
from mobilenets.arch.operations import Shape
from mobilenets.arch.spec import Arch
from mobilenets.errors import UserError, unknown
from mobilenets.model.images import Preprocess
from mobilenets.model.trust import KEY, Trust

FORMAT = 2

# Of bundles, float32 and int8. The others are of exported files: their weights in 16-bit floats (activations too, where
# the runtime can); dynamic: int8 weights, and activations that are quantized as they come; int4: weights in 4 bits.
Precision = Literal["float32", "float16", "int8", "dynamic", "int4"]
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8", "dynamic", "int4")


@dataclass(frozen=True)
class Metric:
    """A measured number and what it was measured on. `unit` is "%" for accuracies."""

    name: str
    value: float
    data: str
    split: str
    count: int
    unit: str = "%"
    higher_is_better: bool = True


class TrainedOn(TypedDict, total=False):
    """What a card says of its data, as far as anything reads it again (see `Data.describe`)."""

    source: str
    counts: dict[str, int]
    split_seed: int
    val_fraction: float | None
    fold: tuple[int, int]


class Teacher(TypedDict, total=False):
    """The network that a student learned from."""

    name: str
    digest: str


class Trained(TypedDict, total=False):
    """What a card says of its recipe, as far as anything reads it again."""

    command: str
    teacher: Teacher
    augment: str
    best_epoch: int
    pruned: dict[str, Any]
    chain: list[dict[str, Any]]


@dataclass(frozen=True)
class Card:
    """What a network is, what it is for, what it was trained on, how well it does, and where it came from.

    `task` is the task's name, `config` what it knows of its answers (a classifier's labels), as JSON; `head` are the
    operations it adds to the arch's own, and the outputs. `precision` is what is computed in; `encodings` say, by
    layer, how weights are stored where that isn't plainly (see `encodings`). `float_ops`: names of the operations that
    an int8 network keeps in float (`arch.rounding` says how).
    """

    arch: Arch
    preprocess: Preprocess
    head: Head
    task: str = "classify"
    config: dict[str, Any] = field(default_factory=dict)
    precision: Precision = "float32"
    float_ops: tuple[str, ...] = ()
    encodings: dict[str, str] = field(default_factory=dict)
    metrics: tuple[Metric, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    parent: str | None = None
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = self.config.get("labels", [])
        if not isinstance(labels, list | tuple) or not all(isinstance(n, str) and fields.is_text(n) for n in labels):
            raise UserError("the card's labels aren't a list of names")
        try:
            Trust.of(self.config)
        except (TypeError, ValueError, OverflowError) as e:
            raise UserError(f"the card's {e}") from e
        if self.task == "classify" and self.arch.num_classes != len(labels):
            raise UserError(f"the card has {len(labels)} labels for a network of {self.arch.num_classes} classes")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.float_ops and self.precision != "int8":
            raise UserError(
                f"the card of a {self.precision} network names operations to keep in float; only int8's can"
            )
        if self.preprocess.input_size != self.arch.input_size:
            sizes = (" x ".join(map(str, size)) for size in (self.preprocess.input_size, self.arch.input_size))
            raise UserError("the card's images are {} pixels, its network's {}".format(*sizes))
        if not self.head.outputs:
            raise UserError("the card names no outputs")
        given = next((o.op for o in self.head.outputs if o.name == PROBABILITIES), "")
        if labels and given in self.graph.by_name and self.graph.op(given).kind in ("softmax", "sigmoid"):
            wide = self.outputs[PROBABILITIES]
            if wide != (len(labels),):
                raise UserError(f"the card has {len(labels)} labels for {wide[0]} probabilities")
        if len(Trust.of(self.config).thresholds) not in (0, len(labels)):
            raise UserError("the card's thresholds aren't one for each label")
        for name in self.float_ops:
            if name not in self.graph.activations[1:]:
                raise unknown("operation", name, self.graph.activations[1:])
        for name in (*self.encodings, *self.head.own):
            if not self.graph.op(name).is_layer:
                raise UserError(f"the card speaks of weights of {name}, which has none")

    @functools.cached_property
    def graph(self) -> Graph:
        """The arch's operations and the task's, as far as its outputs need them."""
        return self.arch.graph.with_head(self.head)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of a classifier's classes, in order; none for other tasks."""
        return tuple(self.config.get("labels", ()))

    @property
    def trust(self) -> Trust:
        """How far a classifier's answers can be trusted, as far as that was measured."""
        return Trust.of(self.config)

    @property
    def outputs(self) -> dict[str, Shape]:
        """What a call gives, by name: the shape of one image's."""
        return self.graph.output_shapes

    def facts(self) -> list[tuple[str, str]]:
        """What a person reads of it, by name: network, task, input, a row for each metric, data, licence, lineage."""
        p, counts = self.preprocess, self.data.get("counts", {})
        labels = ", ".join(self.labels[:8]) + (f", ... ({len(self.labels)})" if len(self.labels) > 8 else "")
        side = f"{p.input_size[1]}x{p.input_size[0]}"
        trained = f"{self.data.get('source')} ({', '.join(f'{n} {k}' for k, n in counts.items())})"
        return [
            ("network", f"{self.arch.title}, {self.precision}"),
            ("task", f"{self.task}: {labels}" if labels else self.task),
            ("input", f"{side} RGB, {_framed(p)}, (pixel - {_one(p.mean)}) / {_one(p.std)}"),
            *((m.name, f"{m.value:.2f}%, {m.data} {m.split}, {m.count} images") for m in self.metrics),
            *((("probabilities", str(self.trust)),) if KEY in self.config else ()),
            ("trained on", trained if "source" in self.data else "not stated"),
            ("licence", self.licence or "not stated"),
            ("parent", (self.parent or "none")[:16]),
            ("made", f"{self.created}, {', '.join(f'{k} {v}' for k, v in self.versions.items())}"),
        ]

    def _repr_html_(self) -> str:
        return console.facts("card", self.facts())

    def replace(self, **changes: Any) -> Card:
        return dataclasses.replace(self, **changes)

    def with_labels(self, labels: Sequence[str]) -> Card:
        """The same classifier, its classes called otherwise."""
        return self.replace(config={**self.config, "labels": list(labels)})

    def trusted(self, trust: Trust) -> Card:
        """The same card with what was measured of its answers."""
        return self.replace(config={**self.config, KEY: trust.to_json()})

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "arch": self.arch.to_json(),
            "preprocess": self.preprocess.to_json(),
            "head": self.head.to_json(),
            "float_ops": list(self.float_ops),
            "metrics": [dataclasses.asdict(m) for m in self.metrics],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any], where: str = "card") -> Card:
        """The inverse of `to_json`, of earlier formats too; a UserError for one that is newer, or malformed."""
        if not isinstance(d, dict) or type(d.get("format")) is not int:
            raise UserError(f"{where}: not a mobilenets card")
        if d["format"] > FORMAT:
            raise UserError(
                f"{where}: written by a newer mobilenets (card format {d['format']}, this one reads up to {FORMAT}); "
                "upgrade with: pip install --upgrade mobilenets"
            )
        try:
            arch = Arch.from_json(d["arch"])
            d = migrate(d, arch)
            card = cls(**{
                **{f.name: d[f.name] for f in dataclasses.fields(cls)},
                "arch": arch,
                "preprocess": Preprocess.from_json(d["preprocess"]),
                "head": Head.from_json(d["head"]),
                "config": dict(d["config"]),
                "encodings": dict(d["encodings"]),
                "float_ops": tuple(d["float_ops"]),
                "metrics": tuple(Metric(**m) for m in d["metrics"]),
            })  # fmt: skip
            fields.check(card, cls, "card")
            fields.check(card.data, TrainedOn, "data")
            fields.check(card.recipe, Trained, "recipe")
        except UserError as e:
            raise UserError(f"{where}: {e}") from e
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError) as e:
            raise UserError(f"{where}: a field is missing or malformed: {e}") from e
        return card


def migrate(d: Mapping[str, Any], arch: Arch) -> dict[str, Any]:
    """A card's JSON of any format as that of this one. It may raise what a malformed card makes it raise."""
    d = dict(d)
    if d["format"] == 1:  # a classifier, or the features of one: labels stood on the card, the head was understood
        d["task"] = "classify" if arch.num_classes else "features"
        d["head"] = (classifier_head if arch.num_classes else feature_head)(arch).to_json()
        d["config"] = {"labels": list(d.pop("labels"))} if arch.num_classes else {}
        d.setdefault("float_ops", [])
        d["encodings"] = {}
    return d


def classifier_card(arch: Arch, preprocess: Preprocess, labels: Sequence[str], **fields: Any) -> Card:
    """The card of a classifier of `labels`, with the arch's own classifier; of its features where that has none."""
    if arch.num_classes:
        return Card(arch, preprocess, classifier_head(arch), config={"labels": list(labels)}, **fields)
    return Card(arch, preprocess, feature_head(arch), task="features", **fields)


def stamp(card: Card) -> Card:
    """`card` with the time and the versions of what made it."""
    versions = {"python": platform.python_version()}
    for name in ("mobilenets", "torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return card.replace(created=now, versions=versions)


def _framed(p: Preprocess) -> str:
    """What of an image a network sees, in words."""
    if p.framing == "crop":
        return "the centre" if p.crop == 1 else f"the centre ({100 * p.crop:.4g}% of the short side)"
    return "all of it, in bars" if p.framing == "letterbox" else "all of it, stretched"


def _one(values: tuple[float, ...]) -> str:
    """The three channels' values, once where they are the same."""
    return ", ".join(f"{v:g}" for v in (values if len(set(values)) > 1 else values[:1]))


CARD_KEY = "mobilenets.card"
