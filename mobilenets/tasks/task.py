"""What a task is: the one place that knows what a network's answers mean. No torch but in what training asks for.

Everything else (training, distillation, quantization-aware training, the choice of a network, proofs, scores, reports)
asks the card's task instead of assuming one. A new task is a file with a class that has these methods, and its line in
`tasks.TASKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.arch.graph import Head
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data, Split
from mobilenets.model.card import Card, Precision
from mobilenets.model.images import Framing
from mobilenets.model.trust import Trust

if TYPE_CHECKING:
    from rich.console import RenderableType
    from torch import Tensor, nn

    from mobilenets.model.bundle import Bundle
    from mobilenets.model.images import Preprocess
    from mobilenets.model.module import Walker
    from mobilenets.tasks.linear import Probe

Outputs = Mapping[str, npt.NDArray[np.float32]]  # by the card's names, each [N, *shape]
Tile = tuple[int, int, int, int]  # a part of an image: left, top, right, bottom in pixels
Transform = Callable[[Any, Any], tuple[Any, Any]]  # an RGB Pillow image, target -> uint8 tensor [3, H, W], target on it
Sizes = Sequence[tuple[int, int]]  # (width, height) of each image before it was fitted to the input


@dataclass(frozen=True)
class MetricSpec:
    """A task's score: its `name` on cards and in logs, how tables call it (`label`), its unit, which way is better.

    `share`: it is a share of images, so that its interval follows from their number (Wilson's).
    """

    name: str
    label: str
    unit: str = "%"
    higher_is_better: bool = True
    share: bool = False

    @property
    def mode(self) -> str:
        """How training frameworks say which way is better: "max" or "min"."""
        return "max" if self.higher_is_better else "min"

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def column(self) -> str:
        """What the column of a table file is called, its unit in the name."""
        return f"{self.name}_percent" if self.unit == "%" else f"{self.name}_{self.unit}" if self.unit else self.name

    def rank(self, value: float) -> float:
        """`value` such that higher is better."""
        return value if self.higher_is_better else -value

    def lost(self, before: float, after: float) -> float:
        """By how much `after` is worse than `before`, in the metric's unit; below 0 where it is better."""
        return before - after if self.higher_is_better else after - before

    def say(self, value: float) -> str:
        """A value with its unit, as a line of text has it."""
        return f"{value:.2f}{self.unit if self.unit == '%' else f' {self.unit}' if self.unit else ''}"


@dataclass(frozen=True)
class Parity:
    """How a file's answers compare with PyTorch's: percent of images with the same answer, the largest difference.

    `reason` says what is wrong where they differ by more than they may; empty where they don't. `limits`: the least
    agreement and the largest difference that a file is kept with. `ties`: of the other answers, those where PyTorch's
    own was nearly another.
    """

    agreement: float
    difference: float
    reason: str = ""
    limits: tuple[float, float] | None = None
    ties: int = 0

    @property
    def ok(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class Prior:
    """What is known of a network before it is trained, to rank it by; `source` is "extrapolated" where it's a guess."""

    metric: MetricSpec
    value: float
    source: str

    @property
    def rank(self) -> float:
        """Higher is better."""
        return self.metric.rank(self.value)

    def to_json(self) -> dict[str, Any]:
        return {self.metric.name: self.value, f"{self.metric.name}_source": self.source}

    def __str__(self) -> str:
        return f"≈{self.value:.0f}" if self.source == "extrapolated" else f"{self.value:.1f}"


class Answer(Protocol):
    """What a network says of one image."""

    def to_json(self) -> dict[str, Any]: ...

    def __str__(self) -> str: ...


class Scores(Protocol):
    """How well a network did on `count` images of a split of `data`: `value` is the primary metric's."""

    @property
    def split(self) -> str: ...

    @property
    def data(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def skipped(self) -> tuple[str, ...]:
        """Damaged images, by name."""

    @property
    def value(self) -> float: ...

    def to_json(self) -> dict[str, Any]: ...

    def details(self) -> dict[str, Any]:
        """What a report needs besides, as JSON."""

    def __rich__(self) -> RenderableType: ...


class Metrics(Protocol):
    """Adds up batches of answers at constant memory."""

    def update(self, outputs: Outputs, targets: Sequence[Any]) -> None: ...

    def compute(self, data: str, split: str, skipped: tuple[str, ...] = ()) -> Scores: ...


class Objective(Protocol):
    """What a training minimises; a `torch.nn.Module`, its parameters are learned too."""

    def targets(self, batch: Sequence[Any]) -> Any:
        """What the network is to say of a batch, as `__call__` takes it, mixed with other images' perhaps."""

    def __call__(self, outputs: Mapping[str, Tensor], targets: Any) -> Tensor:
        """The loss of the values of the task's `taps`."""

    def mixes(self) -> Sequence[nn.Module]:
        """Ways to mix the images of a batch with their targets, of which each step draws one; none is usual."""

    def parameters(self) -> Any: ...


@runtime_checkable
class Following(Protocol):
    """An objective that runs layers of the network itself, as those that look at the proposals it drew by the targets.

    `sees`: the operations whose values its task's validation reads, beside `taps`.
    """

    taps: Sequence[str]
    sees: Sequence[str]

    def targets(self, batch: Sequence[Any]) -> Any: ...

    def follow(self, network: Walker) -> None:
        """Be of this network: it is called before anything else."""

    def held_out(self, outputs: Mapping[str, Tensor], targets: Any) -> Tensor:
        """The loss of the taps' values on held-out images, as far as these alone tell it."""


class Task(Protocol):
    """`name` is Card.task. `primary`: what is monitored, kept, tabled and bounded; None for what has no score.

    `taps`: the operations whose values training reads, by name; `embedding`: that of them which another network's can
    be compared with, of any task, if there is one. `ragged`: targets differ in shape from image to image, as boxes do,
    so that a batch has a list of them.
    """

    name: str
    primary: MetricSpec | None
    taps: tuple[str, ...]
    ragged: bool

    # data
    def open(self, source: str, root: Any, seed: int, val: float | None) -> Data: ...

    def transforms(self, preprocess: Preprocess, recipe: Any, kind: str) -> Transform: ...

    # network
    def config(self, data: Data) -> dict[str, Any]: ...

    def arch(self, arch: Arch, config: Mapping[str, Any]) -> Arch: ...

    def head(self, arch: Arch, config: Mapping[str, Any]) -> Head: ...

    # training
    def objective(self, config: Mapping[str, Any], recipe: Any, training: Split) -> Objective: ...

    def validation(self, config: Mapping[str, Any]) -> nn.ModuleDict: ...

    def validation_loss(self, outputs: Mapping[str, Tensor], targets: Any, config: Mapping[str, Any]) -> Tensor: ...

    def monitor(self, recipe: Any) -> str: ...

    def transfer(self, bundle: Bundle, config: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]: ...

    def probe(
        self,
        features: npt.NDArray[np.float32],
        targets: Any,
        config: Mapping[str, Any],
        seed: int,
        balanced: bool = False,
    ) -> Probe | None:
        """The best linear head of fixed features [N, K]; None where the task's own part is no linear layer."""

    def teach(self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:
        """How far the student's taps are from the teacher's, the mean over images; 0 where they say the same.

        `temperature` softens answers that are probabilities; others it leaves as they are.
        """

    # answers
    def decode(self, outputs: Outputs, card: Card, sizes: Sizes, top: int) -> list[Answer]: ...

    def draw(self, image: Image.Image, answer: Answer) -> Image.Image: ...

    def metrics(self, card: Card) -> Metrics: ...

    # proof and choice
    def parity(
        self, reference: Outputs, other: Outputs, precision: Precision, limits: tuple[float, float] | None = None
    ) -> Parity: ...

    def prior(self, arch: Arch) -> Prior | None: ...


@runtime_checkable
class Settled(Protocol):
    """A task whose answers are read by what is found on held-out images after training, and kept on the card."""

    def settled(self, outputs: Outputs, targets: npt.NDArray[Any], card: Card) -> Trust:
        """What is found of the outputs of a network with this card, for its card."""

    def of(self, card: Card) -> Task:
        """The task by what a card has of that."""


@runtime_checkable
class Finishing(Protocol):
    """A task whose answers can be made inside a file, as boxes are of a detector's offsets and scores."""

    def finished(self, bundle: Bundle) -> Bundle:
        """The bundle with the operations and outputs that make them."""

    def fine(self, card: Card) -> tuple[str, ...]:
        """The layers whose outputs 256 values are too few for: int8 keeps them in float."""


@runtime_checkable
class Optioned(Protocol):
    """A task that a training can be given options of, and a card has its own of."""

    def asked(self, options: Any, start: Bundle | None) -> Task:
        """The task with its own options, or None, of a training that starts from a network."""

    def by(self, config: Mapping[str, Any]) -> Task:
        """The task of a network with this config, whole."""


@runtime_checkable
class Matched(Optioned, Protocol):
    """A task whose answer is a vector that another network can learn as it is.

    `matched`: its name among the taps. `together`: images of one identity that a batch has, next to each other.
    `framing`: how its images are fitted to the input, None where that is as usual.
    """

    matched: str

    @property
    def framing(self) -> Framing | None: ...

    def taught(self) -> Task:
        """The same, where a teacher's vectors are all that is learned from."""

    def threshold(self, outputs: Outputs, targets: npt.NDArray[Any]) -> float | None:
        """The cosine that tells two images that show the same from others best; None where no two do."""

    @property
    def together(self) -> int: ...


@runtime_checkable
class Shaped(Optioned, Protocol):
    """A task whose answers are bound to its network's shape, as a detector's anchors are to the sizes of its maps.

    Its `config` of data alone isn't whole: `shaped` completes it. `recipes`: those that it is trained by where none is
    named, from another network and from nothing; `framing`: how its images are fitted to the input.
    """

    framing: Framing

    @property
    def recipes(self) -> tuple[str, str]: ...

    def network(self, arch: str | None, alpha: float | None, resolution: int | None) -> Arch:
        """The network of this name as the task has it from nothing, without a head."""

    def resolution(self) -> int:
        """The input's side in pixels where none is asked for."""

    def shaped(self, config: Mapping[str, Any], arch: Arch, data: Data) -> dict[str, Any]:
        """`config` with what depends on the network."""

    def begin(self, network: nn.Module, head: Head, config: Mapping[str, Any]) -> None:
        """Give the head's own layers the weights that they begin with."""

    def tensors(self, target: Any) -> Any:
        """What is known of an image, on it as it is: boxes, masks and points as `tv_tensors`."""


@runtime_checkable
class Ranged(Protocol):
    """A task whose networks aren't those of the zoo as they are: what `choose` and `fit` measure, and rank by `prior`.

    `called`: what they are besides an arch, as a detector's family and how many classes it tells apart.
    """

    called: str

    def variants(self, classes: int) -> list[Task]:
        """The task in each way that its networks can be built, telling `classes` labels apart."""

    def networks(self, native_side: int | None) -> list[Arch]:
        """Every network that is worth measuring, for images of this short side in pixels."""

    def untrained(self, arch: Arch) -> Card:
        """What one is before anything is known of its weights: what it costs is its graph's."""

    def random(self, arch: Arch, precision: Precision) -> Bundle:
        """One with random weights: latency and size don't depend on what they are."""


@runtime_checkable
class Teaching(Protocol):
    """A task whose answers are probabilities of labels, which another network can learn (see `training.distill`).

    `agreeing`: what `agreement` is of. Its objective has `num_classes`, `rows`, `soften` and `off`, as
    `tasks.losses.CrossEntropy` has.
    """

    agreeing: str

    def unread(self, probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits [N, C] that would give probabilities [N, C], as those of an exported file."""

    def read(self, logits: npt.NDArray[np.float32], trust: Trust) -> npt.NDArray[Any]:
        """What logits [N, C] say of images, as targets are; `trust`: of the card of the network that they are from."""

    def agreement(self, said: npt.NDArray[Any], targets: npt.NDArray[Any]) -> float:
        """How much of what `read` gave is so, percent."""


@runtime_checkable
class Tabled(Protocol):
    """A task whose answers fit into a row of a table, beside what is true."""

    def told(self, answer: Answer, target: Any, card: Card) -> tuple[str, str, str]:
        """The true label, the one that was given, and how probable that is in percent."""


@runtime_checkable
class Choosing(Protocol):
    """A task that can be trained by several `losses`, as where labels may be wrong: the recipe names one."""

    losses: tuple[str, ...]


@runtime_checkable
class Joining(Protocol):
    """A task whose answers to an image's tiles are one to the image, as boxes are."""

    def joined(self, answers: Sequence[Answer], tiles: Sequence[Tile], size: tuple[int, int], card: Card) -> Answer:
        """The answer to an image of `size` (width, height), of those to its tiles."""


@runtime_checkable
class FromTable(Protocol):
    """A task whose answers can be taken from a table of all that there are, as places from a gallery."""

    def among(self, gallery: str) -> Task:
        """The task with such answers. Raises `UserError` for a table that isn't there or isn't one."""
