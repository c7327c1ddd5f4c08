"""What a user would otherwise run: the same network by PyTorch, torchvision, timm and a plain ONNX export.

A peer takes the uint8 images that our files take, normalizes them as tutorials do, runs in float32, and ends in a
softmax. Its weights are the bundle's where the module is ours and random otherwise: latency depends on neither.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mobilenets import files
from mobilenets.arch.heads import PROBABILITIES
from mobilenets.arch.spec import Arch
from mobilenets.deploy.engines import Engine, Outputs
from mobilenets.errors import unknown
from mobilenets.model.bundle import Bundle, find_bundle
from mobilenets.model.card import Card
from mobilenets.model.images import Pixels
from mobilenets.model.reference import float_model

# Our network -> torchvision's, and timm's by width.
TORCHVISION = {"v2": "mobilenet_v2", "v3-large": "mobilenet_v3_large", "v3-small": "mobilenet_v3_small"}
TIMM = {
    "v1": {1.0: "mobilenetv1_100"},
    "v2": {0.35: "mobilenetv2_035", 0.5: "mobilenetv2_050", 0.75: "mobilenetv2_075", 1.0: "mobilenetv2_100",
           1.4: "mobilenetv2_140"},
    "v3-large": {0.75: "mobilenetv3_large_075", 1.0: "mobilenetv3_large_100"},
    "v3-small": {0.5: "mobilenetv3_small_050", 0.75: "mobilenetv3_small_075", 1.0: "mobilenetv3_small_100"},
    "v4-conv-s": {1.0: "mobilenetv4_conv_small"},
    "v4-conv-m": {1.0: "mobilenetv4_conv_medium"},
    "v4-conv-l": {1.0: "mobilenetv4_conv_large"},
    "v4-hybrid-m": {1.0: "mobilenetv4_hybrid_medium"},
    "v4-hybrid-l": {1.0: "mobilenetv4_hybrid_large"},
}  # fmt: skip


class _Peer:
    """A PyTorch network as an engine; `form`: how its images lie in memory."""

    concurrent = False

    def __init__(self, name: str, card: Card, run: Callable[[Tensor], Tensor], form: torch.memory_format) -> None:
        self.name, self.card, self.run, self.form = name, card, run, form
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (card.preprocess.mean, card.preprocess.std))

    def __call__(self, images: Pixels) -> Outputs:
        with torch.inference_mode():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
            x = ((x - self.mean) / self.std).contiguous(memory_format=self.form)
            return {PROBABILITIES: torch.softmax(self.run(x), 1).numpy()}


class _OnnxPeer:
    """`torch.onnx.export` of the module as it is, run by onnxruntime with its defaults but for the threads."""

    concurrent = True

    def __init__(self, name: str, card: Card, net: nn.Module, threads: int) -> None:
        from mobilenets.deploy.engines.onnxruntime import session

        self.name, self.card = name, card
        example = torch.zeros(2, 3, *card.preprocess.input_size)
        with files.temporary() as folder:
            path = folder / "model.onnx"
            torch.onnx.export(net, (example,), path, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)
            self.session = session(str(path), threads)
        self.input = self.session.get_inputs()[0].name

    def __call__(self, images: Pixels) -> Outputs:
        logits = self.session.run(None, {self.input: self.card.preprocess.normalize(images)})[0]
        e = np.exp(logits - logits.max(1, keepdims=True))
        return {PROBABILITIES: e / e.sum(1, keepdims=True)}


def _torchvision(arch: Arch) -> nn.Module:
    from torchvision import models

    net: nn.Module = models.get_model(TORCHVISION[arch.name], num_classes=arch.num_classes, width_mult=arch.alpha)
    return net.eval()


def _timm(arch: Arch) -> nn.Module:
    import timm

    net: nn.Module = timm.create_model(TIMM[arch.name][arch.alpha], num_classes=arch.num_classes)
    return net.eval()


PEERS = (
    "torchvision eager", "timm eager", "PyTorch eager", "PyTorch channels_last", "torch.compile",
    "torch.onnx.export, onnxruntime",
)  # fmt: skip


def available(arch: Arch) -> list[str]:
    """The peers that have this network and are installed."""
    has = {
        "torchvision eager": arch.name in TORCHVISION,
        "timm eager": arch.alpha in TIMM.get(arch.name, {}) and importlib.util.find_spec("timm") is not None,
        "torch.onnx.export, onnxruntime": importlib.util.find_spec("onnxscript") is not None,
    }
    return [p for p in PEERS if has.get(p, True)]


def load(name: str, path: Path, threads: int) -> Engine:
    """A peer's form of the float bundle at `path`, on `threads` threads, which it sets for the whole process."""
    if name not in PEERS:
        raise unknown("peer", name, PEERS)
    bundle = Bundle.load(find_bundle(path))
    card = bundle.card
    torch.set_num_threads(threads)
    plain, last = torch.contiguous_format, torch.channels_last
    match name:
        case "torchvision eager":
            return _Peer(name, card, _torchvision(card.arch), plain)
        case "timm eager":
            return _Peer(name, card, _timm(card.arch), plain)
        case "PyTorch eager":
            return _Peer(name, card, float_model(bundle), plain)
        case "PyTorch channels_last":
            return _Peer(name, card, float_model(bundle).to(memory_format=last), last)
        case "torch.compile":
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it says that there's no CUDA
            return _Peer(name, card, torch.compile(float_model(bundle)), plain)
        case _:
            return _OnnxPeer(name, card, float_model(bundle), threads)
