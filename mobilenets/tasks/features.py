"""Features: what a network sees of an image, as a vector, or as a map from inside it. No torch, nothing is trained.

A bundle of any task has them: its own head is left out. They are for search, clustering, another classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.arch.graph import Head
from mobilenets.arch.heads import FEATURES, feature_head
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data, Split
from mobilenets.data.open import open_unlabelled
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Precision
from mobilenets.model.encodings import tensor_shapes
from mobilenets.tasks.task import Answer, MetricSpec, Outputs, Parity, Prior, Sizes, Task, Transform

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobilenets.model.images import Preprocess
    from mobilenets.tasks.linear import Probe
    from mobilenets.tasks.task import Metrics, Objective

SHOWN = 6  # numbers of a vector in a line of text
STRIP = 24  # pixels high, of a drawing
# The least cosine of a right export's features with PyTorch's, and the largest difference as a share of the largest
# value: answers' limits are of probabilities, and these are what probabilities are made of. LEAST percent of the images
# have to have that cosine.
LEAST = 99.0
LIMITS: dict[Precision, tuple[float, float]] = {
    "float32": (0.9999, 1e-3),
    "float16": (0.999, 0.05),
    "int8": (0.9, 0.6),
    "dynamic": (0.9, 0.6),
    "int4": (0.99, 0.2),
}


@dataclass(frozen=True)
class Features:
    """An image's features, float32 [K] or [C, H, W]."""

    values: npt.NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.values.shape), "features": [float(f"{v:.7g}") for v in self.values.ravel()]}

    def __str__(self) -> str:
        some = " ".join(f"{v:.4g}" for v in self.values.ravel()[:SHOWN])
        return f"{list(self.values.shape)}\t{some}{' ...' if self.values.size > SHOWN else ''}"


def of_bundle(bundle: Bundle, tap: str = "") -> Bundle:
    """The same network without its task's head: its pooled features, or the output of the operation `tap`.

    Raises `UserError` for an operation that isn't there.
    """
    card = bundle.card
    arch = card.arch.replace(num_classes=0) if card.arch.num_classes and tap != "classifier" else card.arch
    known = {op.name for op in arch.ops}
    float_ops = tuple(n for n in card.float_ops if n in known)
    encodings = {n: e for n, e in card.encodings.items() if n in known}
    new = card.replace(
        arch=arch, head=feature_head(arch, tap), task="features", config={}, float_ops=(), encodings={}, metrics=()
    )
    kept = {*new.graph.by_name}
    new = new.replace(
        float_ops=tuple(n for n in float_ops if n in kept), encodings={n: e for n, e in encodings.items() if n in kept}
    )
    return Bundle(new, {name: bundle.tensors[name] for name in tensor_shapes(new)}, bundle.digest)


class FeaturesTask:
    """Features have no labels, no loss and no score."""

    name = "features"
    primary: MetricSpec | None = None
    taps: tuple[str, ...] = (FEATURES,)
    ragged = False

    def open(self, source: str, root: Path | None, seed: int, val: float | None) -> Data:  # noqa: ARG002
        return open_unlabelled(source, root, seed)

    def transforms(self, preprocess: Preprocess, recipe: Any, kind: str) -> Transform:
        from mobilenets.tasks.augment import augmentation

        return augmentation(kind, preprocess, recipe)

    def config(self, data: Data) -> dict[str, Any]:  # noqa: ARG002
        return {}

    def arch(self, arch: Arch, config: Mapping[str, Any]) -> Arch:  # noqa: ARG002
        return arch.replace(num_classes=0)

    def head(self, arch: Arch, config: Mapping[str, Any]) -> Head:
        return feature_head(arch, str(config.get("tap", "")))

    def objective(self, config: Mapping[str, Any], recipe: Any, training: Split) -> Objective:  # noqa: ARG002
        raise UserError("features aren't trained by themselves: train a classifier, and take its features")

    def validation(self, config: Mapping[str, Any]) -> nn.ModuleDict:  # noqa: ARG002
        raise self._unscored()

    def validation_loss(self, outputs: Mapping[str, Tensor], targets: Any, config: Mapping[str, Any]) -> Tensor:  # noqa: ARG002
        raise self._unscored()

    def monitor(self, recipe: Any) -> str:  # noqa: ARG002
        raise self._unscored()

    def transfer(self, bundle: Bundle, config: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:  # noqa: ARG002
        own = tuple(f"{name}." for name in bundle.card.head.own)
        return {k: np.array(v) for k, v in bundle.dense().tensors.items() if not k.startswith(own or ("\0",))}

    def probe(self, features: Any, targets: Any, config: Any, seed: int, balanced: bool = False) -> Probe | None:  # noqa: ARG002
        return None

    def teach(self, teacher: Mapping[str, Tensor], student: Mapping[str, Tensor], temperature: float = 1.0) -> Tensor:  # noqa: ARG002
        """The squared difference as a share of the teacher's own square."""
        off = (student[FEATURES].float() - teacher[FEATURES].float()).square().sum()
        return off / teacher[FEATURES].float().square().sum().clamp(min=1e-12)

    def decode(self, outputs: Outputs, card: Card, sizes: Sizes, top: int) -> list[Answer]:  # noqa: ARG002
        return [Features(row) for row in outputs[FEATURES]]

    def draw(self, image: Image.Image, answer: Answer) -> Image.Image:
        """The image with its features as bars of grey below it, the largest white."""
        from PIL import ImageDraw

        assert isinstance(answer, Features)
        values = answer.values.reshape(len(answer.values), -1).mean(1)
        span = float(np.ptp(values)) or 1.0
        row = ((values - values.min()) / span * 255).astype(np.uint8)[None]
        strip = Image.fromarray(row).resize((image.width, STRIP), Image.Resampling.NEAREST)
        out = Image.new("RGB", (image.width, image.height + STRIP))
        out.paste(image.convert("RGB"), (0, 0))
        out.paste(strip.convert("RGB"), (0, image.height))
        ImageDraw.Draw(out).line((0, image.height, image.width, image.height), fill="black")
        return out

    def metrics(self, card: Card) -> Metrics:  # noqa: ARG002
        raise self._unscored()

    def parity(
        self, reference: Outputs, other: Outputs, precision: Precision, limits: tuple[float, float] | None = None
    ) -> Parity:
        """Images whose features point the same way (LIMITS), and the largest difference as a share of the largest."""
        a, b = (x[FEATURES].reshape(len(x[FEATURES]), -1).astype(np.float64) for x in (reference, other))
        least, most = LIMITS[precision]
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = np.where(norms > 0, (a * b).sum(1) / np.maximum(norms, 1e-30), 1.0)
        agreement = 100 * float((cosine >= least).mean())
        difference = float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12))
        loose = precision == "int8" and limits is not None  # of a runtime whose int8 isn't quite a bundle's
        if loose:
            return Parity(agreement, difference)
        if agreement >= LEAST and difference <= most:
            return Parity(agreement, difference, limits=(LEAST, most))
        reason = (
            f"{agreement:.2f}% of the features have a cosine of {least} with PyTorch's; largest difference "
            f"{difference:.3g} of the largest value, limit {most}"
        )
        return Parity(agreement, difference, reason)

    def prior(self, arch: Arch) -> Prior | None:
        from mobilenets.tasks import classify

        return classify.TASK.prior(arch)

    def _unscored(self) -> UserError:
        return UserError("features have no score: there are no labels that they could be right or wrong about")


TASK: Task = FeaturesTask()
