"""What an embedding is for: images in, vectors of length 1 out, near each other where two show the same. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import console
from mobilenets.arch.graph import Head, Output
from mobilenets.arch.heads import FEATURES
from mobilenets.arch.operations import Op
from mobilenets.arch.spec import Arch
from mobilenets.data import alignment, pairs, splitting
from mobilenets.data import open as opening
from mobilenets.data.alignment import Template
from mobilenets.data.dataset import Data, Split
from mobilenets.data.identities import IDENTITIES
from mobilenets.data.source import Reading, Source
from mobilenets.errors import UserError
from mobilenets.model.card import Card, Precision
from mobilenets.tasks import features
from mobilenets.tasks.embed.options import MOST, EmbedOptions
from mobilenets.tasks.embed.options import Head as Kind
from mobilenets.tasks.embed.scores import VECTOR, VectorTally
from mobilenets.tasks.embed.verification import best_threshold, drawn_pairs
from mobilenets.tasks.features import Features
from mobilenets.tasks.labelled import Labelled
from mobilenets.tasks.linear import Probe
from mobilenets.tasks.task import Answer, MetricSpec, Outputs, Parity, Sizes, Task, Transform

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobilenets.model.bundle import Bundle
    from mobilenets.model.images import Framing, Preprocess
    from mobilenets.tasks.task import Objective

PRIMARY = MetricSpec("accuracy", "verification accuracy", share=True)
DIM = 128
GLOBAL, PROJECTION, PROJECTED = "global", "projection", "projected"


@dataclass(frozen=True)
class Vector(Features):
    """An image's vector, float32 [K], of length 1."""

    def to_json(self) -> dict[str, Any]:
        return {"vector": [float(f"{v:.7g}") for v in self.values]}


class Embed(Labelled):
    """`config`: the vectors' `dim`, the kind of `head`, the `template` that faces are taken in, or None."""

    name = "embed"
    labelling = IDENTITIES
    primary: MetricSpec | None = PRIMARY
    taps: tuple[str, ...] = (VECTOR,)
    matched = VECTOR

    def __init__(
        self, options: EmbedOptions | None = None, template: Template | None = None, alone: bool = True
    ) -> None:
        """`alone`: it is learned who is on the images, not from a teacher's vectors only."""
        self.alone = alone
        self.options = options or EmbedOptions()
        self.template = template or (alignment.template(self.options.template) if self.options.template else None)

    def asked(self, options: Any, start: Bundle | None) -> Task:
        """As the options say; the vectors of a network for the same are as before, where nothing else is said."""
        options = options or EmbedOptions()
        if start is not None and start.card.task == self.name:
            has = start.card.config
            options = dataclasses.replace(
                options, dim=options.dim or _dim(has), embed_head=options.embed_head or _kind(has)
            )
            return Embed(options, None if options.template else _template(has))
        return Embed(options)

    def by(self, config: Mapping[str, Any]) -> Task:
        options = dataclasses.replace(self.options, dim=_dim(config), embed_head=_kind(config))
        return Embed(options, _template(config), self.alone)

    def taught(self) -> Task:
        return Embed(self.options, self.template, False)

    # ---- data

    @property
    def framing(self) -> Framing | None:
        """An aligned face is seen whole."""
        return "stretch" if self.template else None

    def transforms(self, preprocess: Preprocess, recipe: Any, kind: str) -> Transform:
        """Of aligned faces, small moves alone: a random crop would undo the alignment."""
        from mobilenets.tasks.augment import aligned, augmentation

        return (
            aligned(preprocess, recipe) if self.template and kind == "photo" else augmentation(kind, preprocess, recipe)
        )

    def open(self, source: str, root: Path | None, seed: int, val: float | None) -> Data:
        """Identities of which whole ones are held out; or, where there is a list of pairs, these to test."""
        asked = Source.parse(source)
        data = opening.open_data(source, root, seed, val, self.labelling)
        listed = _listed(asked)
        if listed is not None:
            data = _tested(data, *listed)
        elif data.pool is not None:
            who = np.asarray(data.pool.targets, np.int64)
            data.pool = dataclasses.replace(data.pool, groups=who)
            data.hold_out(splitting.whole_identities(who, data.val_fraction or 0.2, seed))
            _say_single(data)
        wanted = self.template or _taken(asked.reading)
        if wanted is not None:
            where = alignment.located(asked.reading, wanted, "the network")
            for split in {id(s): s for s in (*data.splits.values(), *filter(None, [data.pool]))}.values():
                alignment.aligned(split, where, wanted)
        return data

    def config(self, data: Data) -> dict[str, Any]:
        reading = Source.parse(data.source).reading
        template = self.template or _taken(reading)
        return {
            "dim": self.options.dim or DIM,
            "head": self.options.embed_head or "pool",
            "template": template and template.to_json(),
        }

    # ---- network

    def arch(self, arch: Arch, config: Mapping[str, Any]) -> Arch:  # noqa: ARG002
        return arch.replace(num_classes=0)

    def head(self, arch: Arch, config: Mapping[str, Any]) -> Head:
        """A linear layer of what the network pools, or of a depthwise convolution over its whole last map.

        The latter is MobileFaceNet's (Chen and others 2018): it weighs positions, which a mean doesn't.
        """
        dim, last = _dim(config), arch.ops[-1]
        ops: tuple[Op, ...] = ()
        if _kind(config) == GLOBAL:
            seen = arch.blocks[-1].output
            channels, height, width = arch.graph.shapes[seen]
            last = Op(GLOBAL, GLOBAL, channels, channels, height, norm=True, inputs=(seen,), kernel_width=width)
            ops = (last,)
        ops = (
            *ops,
            Op(PROJECTION, "linear", last.cout, dim, bias=True, inputs=(last.name,)),
            Op(PROJECTED, "flatten", dim, dim, inputs=(PROJECTION,)),
            Op(VECTOR, "l2norm", dim, dim, inputs=(PROJECTED,)),
        )
        own = tuple(op.name for op in ops if op.is_layer)
        return Head(ops, (Output(VECTOR, VECTOR, "of length 1"),), own)

    # ---- training

    def objective(self, config: Mapping[str, Any], recipe: Any, training: Split) -> Objective:  # noqa: ARG002
        from mobilenets.tasks.embed.losses import IdentityLoss, Unlabelled

        if not self.alone:
            return Unlabelled()
        return IdentityLoss(self.options, int(np.max(training.targets)) + 1, _dim(config))

    @property
    def together(self) -> int:
        """Images of an identity that a batch has, next to each other."""
        return self.options.together

    def validation(self, config: Mapping[str, Any]) -> nn.ModuleDict:  # noqa: ARG002
        from mobilenets.tasks.embed.losses import scores

        return scores()

    def validation_loss(self, outputs: Mapping[str, Tensor], targets: Tensor, config: Mapping[str, Any]) -> Tensor:  # noqa: ARG002
        from mobilenets.tasks.embed.losses import contrast

        return contrast(outputs[VECTOR], targets)

    def monitor(self, recipe: Any) -> str:  # noqa: ARG002
        return f"val_{PRIMARY.name}"

    def transfer(self, bundle: Bundle, config: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Everything, or all but the task's own layers where vectors are of another kind."""
        has = bundle.card.config
        same = bundle.card.task == self.name and (has.get("dim"), has.get("head")) == (config["dim"], config["head"])
        own = tuple(f"{name}." for name in bundle.card.head.own)
        tensors = bundle.dense().tensors
        return {k: np.array(v) for k, v in tensors.items() if same or not (own and k.startswith(own))}

    def probe(self, features: Any, targets: Any, config: Any, seed: int, balanced: bool = False) -> Probe | None:  # noqa: ARG002
        """None: a linear layer that tells identities apart isn't what a vector is."""
        return None

    def teach(self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:  # noqa: ARG002
        """The squared difference of the two vectors, the mean over images (V1 paper, section 4.7)."""
        return (student[VECTOR].float() - teacher[VECTOR].float()).square().sum(1).mean()

    def threshold(self, outputs: Outputs, targets: npt.NDArray[Any]) -> float | None:
        pairs_, same, _ = drawn_pairs(np.asarray(targets, np.int64))
        v = outputs[VECTOR]
        cosines = (v[pairs_[:, 0]] * v[pairs_[:, 1]]).sum(1).astype(np.float64)
        return round(best_threshold(cosines, same), 4) if same.any() and not same.all() else None

    # ---- answers

    def decode(self, outputs: Outputs, card: Card, sizes: Sizes, top: int) -> list[Answer]:  # noqa: ARG002
        return [Vector(row) for row in outputs[VECTOR]]

    def draw(self, image: Image.Image, answer: Answer) -> Image.Image:
        return features.TASK.draw(image, answer)

    def metrics(self, card: Card) -> VectorTally:  # noqa: ARG002
        return VectorTally()

    # ---- proof

    def parity(
        self, reference: Outputs, other: Outputs, precision: Precision, limits: tuple[float, float] | None = None
    ) -> Parity:
        """Vectors that point the same way, as features do."""
        a, b = ({FEATURES: x[VECTOR]} for x in (reference, other))
        return features.TASK.parity(a, b, precision, limits)


def _dim(config: Mapping[str, Any]) -> int:
    dim = config.get("dim")
    if type(dim) is int and 1 < dim <= MOST:
        return dim
    raise UserError(f"the card's vectors have {dim!r} numbers, which can't be")


def _kind(config: Mapping[str, Any]) -> Kind:
    kind = config.get("head")
    if kind == "pool":
        return "pool"
    if kind == "global":
        return "global"
    raise UserError(f"the card's head of vectors is {kind!r}, which is none")


def _template(config: Mapping[str, Any]) -> Template | None:
    return Template.from_json(config["template"]) if config.get("template") else None


def _taken(reading: Reading) -> Template | None:
    """The template that a network takes faces in where nothing else is said: theirs, or ArcFace's of landmarks."""
    if reading.aligned is not None:
        return alignment.template(reading.aligned)
    return alignment.template("arcface") if reading.landmarks is not None else None


def _listed(asked: Source) -> tuple[bytes, str] | None:
    """The list of pairs that was named, or lies among the images, and what it is called."""
    if asked.reading.pairs is not None:
        return pairs.list_of(asked.reading.pairs), asked.reading.pairs
    found = opening.text_among(asked.path, pairs.LFW)
    return None if found is None else (found, pairs.LFW)


def _tested(data: Data, content: bytes, where: str) -> Data:
    """All images as a test split that knows its pairs."""
    every = data.split("all")
    known: list[list[tuple[int, bool, int]]] = [[] for _ in range(len(every))]
    for number, pair in enumerate(pairs.read_pairs(content, where, every.names)):
        for i in (pair.a, pair.b):
            known[i].append((number, pair.same, pair.fold))
    seen = [pairs.Seen(int(t), tuple(k)) for t, k in zip(every.targets, known, strict=True)]
    test = dataclasses.replace(every, name="test", targets=seen, groups=None, strata=None)
    return dataclasses.replace(data, splits={"test": test}, pool=None, val_fraction=None)


def _say_single(data: Data) -> None:
    who = np.concatenate([np.asarray(s.targets) for s in data.splits.values()])
    if single := int((np.unique(who, return_counts=True)[1] == 1).sum()):
        console.note(
            f"{data.source}: {single:,} identities with one image: trained on as something that others "
            "aren't, in no pair"
        )


TASK: Task = Embed()
