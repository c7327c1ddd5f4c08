"""Networks to learn from: a bundle or run, an exported file through its engine, torchvision's and timm's by name."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets import tasks
from mobilenets.arch.heads import LOGITS, PROBABILITIES
from mobilenets.data.alignment import Template, template_of
from mobilenets.deploy import engines
from mobilenets.deploy.foreign import Foreign, ForeignNetwork
from mobilenets.errors import UserError, unknown
from mobilenets.model import bundle, imagenet
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import Pixels, Preprocess
from mobilenets.model.trust import Trust
from mobilenets.tasks.embed.scores import VECTOR
from mobilenets.tasks.lesson import Instructed
from mobilenets.tasks.task import Matched, Teaching
from mobilenets.training import hubs
from mobilenets.training.distributed import fast_bf16
from mobilenets.training.learner import own_part

EMBEDDING = "embedding"
Said = Mapping[str, Tensor]


@dataclass
class Teacher:
    """A trained network that says what it sees. `width`: the numbers in its embedding, 0 if it can't be reached.

    `task`: what it is for, with the card's `config`; `trust`: how its answers are read; `template`: how it takes faces
    aligned; `variant`: in which other way than its file says it is run; `taps`: whether its task's are in its answers.

    `answer` takes uint8 [N, 3, H, W] of the teacher's own size and gives float32 values by the names of its task's
    taps: a classifier's "logits" [N, labels] (up to a constant of each image, which no probability depends on); and
    what its task's own part reads, EMBEDDING, [N, width]. A detector gives what its anchors say, or its boxes.
    """

    name: str
    digest: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    width: int
    answer: Callable[[Tensor], Said] = field(repr=False)
    task: str = "classify"
    trust: Trust = field(default_factory=Trust)
    template: Template | None = None
    variant: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    taps: bool = False

    def __call__(self, images: Tensor) -> Said:
        """Answers for uint8 (or mixed, float) images of any size, [N, 3, H, W]."""
        size = self.preprocess.input_size
        if images.shape[-2:] != size:
            mode = self.preprocess.interpolation
            images = F.interpolate(images.float(), size, mode=mode, antialias=True).clamp(0, 255)
        return self.answer(images)


def open_teacher(name: str, threads: int = 1, foreign: Foreign | None = None) -> Teacher:
    """The teacher called `name`: a path, "torchvision:resnet50", "timm:resnet50.a1_in1k". Raises `UserError`.

    `foreign`: what another's network of embeddings takes, if it is one.
    """
    if foreign is not None and foreign.given:
        return _of_foreign(ForeignNetwork(Path(name), foreign, threads), name, foreign)
    library, _, which = name.partition(":")
    if library in HUBS and which:
        return HUBS[library](which)
    path = engines.resolve(_best(Path(name)))
    if bundle.is_bundle(path):
        loaded = Bundle.load(path)
        if loaded.card.precision == "float32" and (not loaded.card.head.own or tasks.of(loaded.card).taps):
            return of_bundle(loaded, name)
    return _of_engine(engines.load(path, threads), name, path)


def _best(path: Path) -> Path:
    """A run's float bundle, which knows more than the small file it ships; anything else as it is."""
    return path / "float" if bundle.is_bundle(path / "float") else path


def of_bundle(loaded: Bundle, name: str) -> Teacher:
    """A float bundle: what its task is trained by, and its embedding; one of features gives these alone."""
    net, card = simulate.folded_network(loaded), loaded.card
    graph, own = card.graph, card.head.own
    task = tasks.of(card)
    taps = task.taps if own else ()
    border = own_part(graph, own, taps)[1] if own else tuple(o.op for o in graph.outputs)
    if isinstance(task, Matched):
        border = (task.matched,)
    embedding = border[0] if len(border) == 1 else ""  # of several values, none is the one to compare
    width = math.prod(graph.shapes[embedding]) if embedding else 0

    def values(x: Tensor) -> Said:
        made = net.run({graph.source: x}, [*taps, embedding] if embedding else taps)
        said = {tap: made[tap].float() for tap in taps}
        return {**said, EMBEDDING: made[embedding].flatten(1).float()} if embedding else said

    made = _of_module(net, values, name, loaded.digest, card.labels, card.preprocess, width)
    return dataclasses.replace(
        made, task=card.task, trust=card.trust, template=template_of(card), config=card.config, taps=bool(taps)
    )


def _of_engine(engine: engines.Engine, name: str, path: Path) -> Teacher:
    card, task = engine.card, tasks.of(engine.card)
    digest = bundle.identity(path)
    if isinstance(task, Matched):
        return _of_vectors(engine, task.matched, name, digest, card.preprocess, template_of(card))
    if isinstance(task, Instructed):
        return _of_answers(engine, name, digest)
    if PROBABILITIES not in card.outputs or not isinstance(task, Teaching):
        raise UserError(f"{name} gives no probabilities that another network could learn")
    unread = task.unread

    def answer(images: Tensor) -> Said:
        return {LOGITS: torch.from_numpy(unread(engine(_pixels(images))[PROBABILITIES]))}

    return Teacher(name, digest, card.labels, card.preprocess, 0, answer, card.task, card.trust)


def _of_answers(engine: engines.Engine, name: str, digest: str) -> Teacher:
    """What answers otherwise than by probabilities of an image's labels: its outputs as they are."""

    def answer(images: Tensor) -> Said:
        return {output: torch.from_numpy(np.asarray(x)) for output, x in engine(_pixels(images)).items()}

    card = engine.card
    return Teacher(name, digest, card.labels, card.preprocess, 0, answer, card.task, card.trust, config=card.config)


def _pixels(images: Tensor) -> Pixels:
    """Images [N, 3, H, W] as engines take them, uint8 [N, H, W, 3]."""
    return np.asarray(images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy())


def _of_vectors(
    network: Callable[[Pixels], engines.Outputs], vector: str, name: str, digest: str, preprocess: Preprocess,
    template: Template | None,
) -> Teacher:  # fmt: skip
    """What gives vectors by the name `vector` for uint8 [N, H, W, 3]."""

    def answer(images: Tensor) -> Said:
        return {EMBEDDING: torch.from_numpy(network(_pixels(images))[vector])}

    rows, columns = preprocess.input_size
    width = network(np.zeros((1, rows, columns, 3), np.uint8))[vector].shape[1]
    return Teacher(name, digest, (), preprocess, width, answer, "embed", template=template)


def _of_foreign(network: ForeignNetwork, name: str, how: Foreign) -> Teacher:
    made = _of_vectors(network, VECTOR, name, network.digest, network.preprocess, network.template)
    return dataclasses.replace(made, variant=repr(how))


def _of_module(
    net: nn.Module,
    values: Callable[[Tensor], Said],
    name: str,
    digest: str,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    width: int,
) -> Teacher:
    """A PyTorch network, of which `values` gives what it says of preprocessed images [N, 3, H, W]."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = fast_bf16()
    form = torch.channels_last
    net.eval().requires_grad_(False).to(device, memory_format=form)  # type: ignore[call-overload]
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))

    def answer(images: Tensor) -> Said:
        x = ((images.to(device).float() - mean) / std).contiguous(memory_format=form)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            return values(x)

    return Teacher(name, digest, labels, preprocess, width, answer)


def torchvision(name: str) -> Teacher:
    """A classifier or detector of torchvision: "resnet50", with its best weights, or "resnet50.IMAGENET1K_V1"."""
    from torchvision import models

    detectors = models.list_models(models.detection)
    builder, weights = hubs.torchvision_weights(name, [*models.list_models(models), *detectors])
    folder = f"put the file into {Path(torch.hub.get_dir()) / 'checkpoints'}"
    source = f"torchvision:{builder}.{weights.name}"
    net = hubs.fetch(source, weights.url, lambda: models.get_model(builder, weights=weights), folder)
    if builder in detectors:
        return _of_detector(net, source, tuple(weights.meta["categories"]))
    return _foreign(net, source, tuple(weights.meta["categories"]), hubs.torchvision_preprocess(weights))


def timm(name: str) -> Teacher:
    """A classifier of ImageNet from timm: "resnet50" for its default weights, or "resnet50.a1_in1k"."""
    library = hubs.timm_library()
    known = library.list_pretrained()
    networks = {n.partition(".")[0] for n in known}
    if name not in known and name not in networks:
        raise unknown("timm network", name, known if "." in name else networks)
    config = library.get_pretrained_cfg(name)
    labels = tuple(imagenet.classes().values())
    if config.num_classes != len(labels):
        raise UserError(
            f"timm:{name} has {config.num_classes} classes, whose names aren't known here: take one of 1000"
        )
    where = f"https://huggingface.co/{config.hf_hub_id}"
    net = hubs.fetch(
        f"timm:{name}", where, lambda: hubs.timm_network(name), "put the repository into the Hugging Face cache"
    )
    return _foreign(net, f"timm:{name}", labels, hubs.timm_preprocess(config))


HUBS: dict[str, Callable[[str], Teacher]] = {"torchvision": torchvision, "timm": timm}


def _of_detector(net: nn.Module, name: str, categories: tuple[str, ...]) -> Teacher:
    """A detector of torchvision, `categories` with the background first: its boxes, in fractions of the image."""
    from mobilenets.tasks.detect.config import BOXES, CLASSES, COUNT, SCORE

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net.eval().requires_grad_(False).to(device)
    resize: Any = net.transform  # it resizes and normalizes by itself
    height, width = resize.fixed_size or (min(resize.min_size),) * 2

    def answer(images: Tensor) -> Said:
        with torch.no_grad():
            found = net([image.to(device).float() / 255 for image in images])
        rows, columns = images.shape[-2:]
        unit = torch.tensor([columns, rows, columns, rows], device=device)
        padded = {
            BOXES: [one["boxes"] / unit for one in found],
            SCORE: [one["scores"] for one in found],
            CLASSES: [one["labels"].float() - 1 for one in found],
        }
        counts = torch.tensor([len(one["labels"]) for one in found])
        return {**{k: nn.utils.rnn.pad_sequence(v, batch_first=True) for k, v in padded.items()}, COUNT: counts}

    preprocess = Preprocess(width, crop=1.0, framing="stretch", size=None if height == width else (height, width))
    return Teacher(name, _digest(net), categories[1:], preprocess, 0, answer, "detect")


def _digest(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def _foreign(net: nn.Module, name: str, labels: tuple[str, ...], preprocess: Preprocess) -> Teacher:
    """Another library's classifier; what its last linear layer for the classes reads is the embedding."""
    heads = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == len(labels)]
    classifier = heads[-1] if heads else None
    width = classifier.in_features if classifier is not None else 0
    seen: list[Tensor] = []
    if classifier is not None:
        classifier.register_forward_pre_hook(lambda _m, x: seen.append(x[0].flatten(1).float()))

    def values(x: Tensor) -> Said:
        seen.clear()
        said = {LOGITS: net(x).float()}
        return {**said, EMBEDDING: seen[-1]} if seen else said

    return _of_module(net, values, name, _digest(net), labels, preprocess, width)
