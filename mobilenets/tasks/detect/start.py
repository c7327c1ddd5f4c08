"""What a detector can start from: a classifier's body, or another detector, its classes as far as they are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mobilenets.model.bundle import Bundle
from mobilenets.tasks.detect.config import Config

PREFIX = "detect."  # of the names of everything that is a detector's
BOX_LAYERS = ("box.0", "box.1", "box.classes", "box.boxes")  # of a two-stage detector, for each proposal
OF_LABELS = ("box.classes.", "box.boxes.", "mask.logits.")  # its tensors that are bound to labels
CLASSES = "detect.class."  # of what gives logits

Tensors = dict[str, npt.NDArray[Any]]


def transferred(bundle: Bundle, config: Mapping[str, Any], task: str) -> Tensors:
    """Of another network what a detector with `config` can begin with.

    Of a detector with as many anchors in each place, everything: the logits of labels that it knows are theirs, those
    of others begin as the mean of all, which finds objects of any kind. Of any other network, the body.
    """
    tensors = bundle.dense().tensors
    own = tuple(f"{name}." for name in bundle.card.head.own)
    body = {k: np.array(v) for k, v in tensors.items() if not k.startswith((PREFIX, *own))}
    if bundle.card.task != task or "anchors" not in config:
        return body
    before, now = Config.of(bundle.card.config), Config.of(config)
    same = before.family == now.family and before.scores == now.scores and before.background == now.background
    if not same or [len(s) for s in before.anchors.boxes] != [len(s) for s in now.anchors.boxes]:
        return body
    every = {k: np.array(v) for k, v in tensors.items()}
    if before.labels == now.labels:
        return every
    columns = _columns(before, now)
    return {k: _chosen(v, before.columns, columns) if _gives_logits(bundle, k) else v for k, v in every.items()}


def two_stage_transferred(bundle: Bundle, config: Mapping[str, Any]) -> Tensors:
    """Of another network what a two-stage detector with `config` can begin with.

    Of one of its family all but what is bound to labels, where these differ. Of any other network, the body.
    """
    own = tuple(f"{name}." for name in bundle.card.head.own)
    kept = {k: np.array(v) for k, v in bundle.dense().tensors.items() if not k.endswith(".anchors")}
    if bundle.card.config.get("family") != config["family"]:
        return {k: v for k, v in kept.items() if not k.startswith((PREFIX, *own))}
    if list(bundle.card.labels) == list(config["labels"]):
        return kept
    return {k: v for k, v in kept.items() if not k.startswith(OF_LABELS)}


def _gives_logits(bundle: Bundle, tensor: str) -> bool:
    """Whether a tensor is of a layer whose output is logits: those that a "rows" operation reads."""
    if not tensor.startswith(CLASSES):
        return False
    graph = bundle.card.graph
    layer = next(op for op in graph.layers if tensor.startswith(f"{op.name}."))
    return any(op.kind == "rows" for op in graph.readers[layer.name])


def _columns(before: Config, now: Config) -> list[int]:
    """Where each of the new logits is among the old ones; -1 of a label that is new."""
    known = {label: i + before.background for i, label in enumerate(before.labels)}
    return [*([0] if now.background else []), *(known.get(label, -1) for label in now.labels)]


def _chosen(tensor: npt.NDArray[Any], count: int, columns: list[int]) -> npt.NDArray[Any]:
    """Of a tensor [K * count, ...] the rows of some columns of each anchor: [K * len(columns), ...]."""
    each = tensor.reshape(-1, count, *tensor.shape[1:])
    labels = each[:, 1:] if columns[:1] == [0] else each
    mean = labels.mean(1, keepdims=True)
    parts = [mean if c < 0 else each[:, c : c + 1] for c in columns]
    return np.concatenate(parts, 1).reshape(-1, *tensor.shape[1:])
