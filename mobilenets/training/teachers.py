"""Networks to learn from: a bundle or run, an exported file through its engine, torchvision's and timm's by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mobilenets import files
from mobilenets.deploy import engines
from mobilenets.errors import UserError, unknown
from mobilenets.model import bundle, imagenet
from mobilenets.model import reference as simulate
from mobilenets.model.bundle import Bundle
from mobilenets.model.convert import hubs
from mobilenets.model.images import Preprocess
from mobilenets.training.distributed import fast_bf16

Answers = Callable[[Tensor], Tensor]


@dataclass
class Teacher:
    """A trained classifier that says what it sees. `width`: the numbers in its embedding, 0 if it can't be reached.

    `answer` takes uint8 [N, 3, R, R] of the teacher's own resolution and gives float32 [N, labels + width]: logits (up
    to a constant of each image, which no probability depends on), then what its classifier reads.
    """

    name: str
    digest: str
    labels: tuple[str, ...]
    preprocess: Preprocess
    width: int
    answer: Answers = field(repr=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Answers for uint8 (or mixed, float) images of any resolution, [N, 3, R, R] -> [N, labels + width]."""
        side = self.preprocess.resolution
        if images.shape[-1] != side:
            mode = self.preprocess.interpolation
            images = F.interpolate(images.float(), (side, side), mode=mode, antialias=True).clamp(0, 255)
        return self.answer(images)


def open_teacher(name: str, threads: int = 1) -> Teacher:
    """The teacher called `name`: a path, "torchvision:resnet50", "timm:resnet50.a1_in1k". Raises `UserError`."""
    library, _, which = name.partition(":")
    if library in HUBS and which:
        return HUBS[library](which)
    path = engines.resolve(_best(Path(name)))
    if bundle.is_bundle(path):
        loaded = Bundle.load(path)
        if loaded.card.precision == "float32":
            return of_bundle(loaded, name)
    return _of_engine(engines.load(path, threads), name, path)


def _best(path: Path) -> Path:
    """A run's float bundle, which knows more than the small file it ships; anything else as it is."""
    return path / "float" if bundle.is_bundle(path / "float") else path


def of_bundle(loaded: Bundle, name: str) -> Teacher:
    """A float bundle, with its embedding; one without classes gives its embedding alone."""
    net, card = simulate.folded_network(loaded), loaded.card
    classifier = net.layers[-1] if card.arch.classes else None
    return _of_module(net, classifier, name, loaded.digest, card.labels, card.preprocess, card.arch.width)


def _of_engine(engine: engines.Engine, name: str, path: Path) -> Teacher:
    def answer(images: Tensor) -> Tensor:
        pixels = images.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(np.log(np.maximum(engine(pixels), 1e-7)))  # below it, probabilities are rounding

    digest = files.sha256(path if path.is_file() else path / bundle.CARD)
    return Teacher(name, digest, engine.card.labels, engine.card.preprocess, 0, answer)


def _of_module(
    net: nn.Module,
    classifier: nn.Module | None,
    name: str,
    digest: str,
    labels: tuple[str, ...],
    preprocess: Preprocess,
    width: int,
) -> Teacher:
    """A PyTorch network; its embedding is whatever goes into `classifier`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = fast_bf16()
    form = torch.channels_last if bf16 else torch.contiguous_format
    net = net.eval().requires_grad_(False).to(device, memory_format=form)  # type: ignore[call-overload]
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    seen: list[Tensor] = []
    if classifier is not None:
        classifier.register_forward_pre_hook(lambda _m, x: seen.append(x[0].flatten(1).float()))

    def answer(images: Tensor) -> Tensor:
        seen.clear()
        x = ((images.to(device).float() - mean) / std).contiguous(memory_format=form)
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = net(x).float()
        return torch.cat([logits, *seen], dim=1)

    return Teacher(name, digest, labels, preprocess, width, answer)


def torchvision(name: str) -> Teacher:
    """A classifier of torchvision: "resnet50", with its best weights, or "resnet50.IMAGENET1K_V1"."""
    from torchvision import models

    builder, weights = hubs.torchvision_weights(name, models.list_models(models))
    folder = f"put the file into {Path(torch.hub.get_dir()) / 'checkpoints'}"
    source = f"torchvision:{builder}.{weights.name}"
    net = hubs.fetch(source, weights.url, lambda: models.get_model(builder, weights=weights), folder)
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


def _foreign(net: nn.Module, name: str, labels: tuple[str, ...], preprocess: Preprocess) -> Teacher:
    """Another library's classifier; what its last linear layer for the classes reads is the embedding."""
    heads = [m for m in net.modules() if isinstance(m, nn.Linear) and m.out_features == len(labels)]
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.detach().cpu().numpy().tobytes())
    classifier = heads[-1] if heads else None
    width = classifier.in_features if classifier is not None else 0
    return _of_module(net, classifier, name, digest.hexdigest(), labels, preprocess, width)
