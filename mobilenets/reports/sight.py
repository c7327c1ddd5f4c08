"""What a classifier sees of images: where it looks, and how they lie in its features. No torch."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from mobilenets.arch.graph import Output
from mobilenets.deploy import engines
from mobilenets.deploy.engines import Engine
from mobilenets.errors import UserError, needed_by
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import weight_name
from mobilenets.model.images import Pixels
from mobilenets.reports import style
from mobilenets.reports.style import BLUE, GREEN, MUTED, ORANGE, PINK, SKY
from mobilenets.tasks.looking import activation, last_map

MAP = "last_map"
OPAQUE = 190  # of 255, of the shade over what it doesn't look at
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, "#e69f00", "#882255", "#44aa99")
LEAST = 10  # images of which a map says something
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Sight:
    """A classifier's float network. `weights`: of its last layer, [labels, C], which reads the mean of its last map."""

    engine: Engine
    weights: Floats

    @classmethod
    def of(cls, bundle: Bundle) -> Sight | None:
        """None for a network whose logits aren't a linear function of its last map's mean, as V3's."""
        read = last_map(bundle.card)
        if read is None:
            return None
        layer, last = read
        card, plain = bundle.card, bundle.dense()
        seen = (*card.head.outputs, Output(MAP, last, "what the classifier reads the mean of"))
        shown = Bundle(card.replace(head=dataclasses.replace(card.head, outputs=seen)), plain.tensors)
        weights = plain.tensors[weight_name(card.graph.op(layer))]
        engine, _ = engines.build("onnxruntime", shown, "float32", 1)
        return cls(engine, np.asarray(weights.reshape(len(weights), -1), np.float32))

    def maps(self, pixels: Pixels) -> Floats:
        """The last map of uint8 [N, H, W, 3]: float32 [N, C, h, w]."""
        found = np.asarray(self.engine(pixels)[MAP], np.float32)
        return found.reshape(*found.shape[:2], *(found.shape[2:] or (1, 1)))

    def look(self, last: Floats, label: int) -> str:
        """Where it looks for a label, as a data URI: a pixel for each position of the map, shade over the rest."""
        strength = activation(last, self.weights[label])
        image = np.zeros((*strength.shape, 4), np.uint8)
        image[..., 3] = (OPAQUE * (1 - strength)).round()
        out = io.BytesIO()
        Image.fromarray(image, "RGBA").save(out, "PNG")
        return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def placed(vectors: Floats, seed: int) -> Floats:
    """Places in the plane [N, 2], near each other where the vectors [N, K] are: t-SNE (van der Maaten, Hinton 2008).

    Raises `UserError` where scikit-learn is missing.
    """
    with needed_by("a map of what it sees"):
        from sklearn.manifold import TSNE
    if not np.isfinite(vectors).all() or not np.ptp(vectors, axis=0).any():
        raise UserError("the network sees the same in all images")
    near = min(30.0, (len(vectors) - 1) / 3)
    found = TSNE(perplexity=near, init="pca", random_state=seed, max_iter=500, n_jobs=1).fit_transform(vectors)
    return np.asarray(found, np.float32)


@style.styled
def plane(places: Floats, true: Sequence[int], given: Sequence[int], labels: Sequence[str]) -> Figure:
    """Images at their places [N, 2], coloured by their class, crosses where the network says another.

    Of many classes, those with the most mistakes have a colour.
    """
    of, said = np.asarray(true), np.asarray(given)
    wrong = of != said
    there = np.unique(of)
    worst = sorted(there.tolist(), key=lambda c: (-int(wrong[of == c].sum()), c))[: len(COLOURS)]
    fig = style.figure(4.6)
    ax = fig.add_subplot()
    ax.set_axis_off()
    for c in (*(c for c in there.tolist() if c not in worst), *sorted(worst)):
        colour = COLOURS[sorted(worst).index(c)] if c in worst else MUTED
        faint: dict[str, Any] = {} if c in worst else {"alpha": 0.35}
        name = style.plain(labels[c], 20) if c in worst else None
        right, not_right = (of == c) & ~wrong, (of == c) & wrong
        x, y = places[right].T
        ax.scatter(x, y, s=14, color=colour, lw=0, label=name, **faint)
        x, y = places[not_right].T
        ax.scatter(x, y, s=30, color=colour, marker="x", lw=1.4, **faint)
    if len(there) > len(worst):
        ax.scatter([], [], s=14, color=MUTED, label=f"{len(there) - len(worst)} others")
    ax.scatter([], [], s=30, color=MUTED, marker="x", lw=1.4, label="a mistake")
    fig.legend(loc="outside right upper")
    return fig
