"""A network's forward and backward pass on a GPU as one recording each.

Its layers are so small there that starting each takes longer than it does: a recording (a CUDA graph) starts them all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mobilenets import console
from mobilenets.model.convert.formats import one_line
from mobilenets.model.module import Taps

Forward = Callable[[Tensor], Taps]


class Passes(nn.Module):
    """`forward` of images through `model`, the one module with parameters that it uses, recorded for images alike."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self.through = model, forward

    def forward(self, images: Tensor) -> Taps:
        return self.through(images)


class Recorder:
    """Images -> taps with their gradients, by a recording of `forward`, a new one for images of another kind."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        self.model, self.forward, self.recorded = model, forward, forward
        self.like: tuple[torch.Size, torch.dtype] | None = None  # what was recorded, or tried to

    def __call__(self, images: Tensor) -> Taps:
        if self.like != (images.shape, images.dtype):
            self.like = images.shape, images.dtype
            self.recorded = self.forward  # the memory of the last is free for the next
            self.recorded = record(self.model, self.forward, images)
        return self.recorded(images)


def record(model: nn.Module, forward: Forward, images: Tensor) -> Forward:
    """`forward` as a recording, for images like these; as it is where it can't be recorded, which is said."""
    passes = Passes(model, forward)
    kept = {name: value.clone() for name, value in passes.named_buffers()}
    mixed, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    made = forward
    # It is recorded on a stream of its own: PyTorch says of the gradients that they come from another, and waits.
    if quiet := getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None):  # not in 2.9
        quiet(False)
    try:
        with torch.autocast("cuda", dtype, mixed, cache_enabled=False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")  # the first in its thread
            graphed = torch.cuda.make_graphed_callables(passes, (images.clone(),), allow_unused_input=True)
        made = cast(Forward, graphed)
    except RuntimeError as e:
        console.note(f"this GPU starts every layer by itself, since it can't record them: {one_line(e)}")
    for name, value in passes.named_buffers():  # trying it counted in BatchNorm's statistics
        value.copy_(kept[name])
    return made
