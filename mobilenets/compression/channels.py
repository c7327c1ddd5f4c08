"""Channels of a network that go together, by torch-pruning's dependency graph: what each is worth, and a network less.

A channel out of a layer is one into those that read it, one of every depthwise layer and BatchNorm on its way, and one
of all layers that a shortcut joins: they are kept or removed as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from mobilenets.compression.goals import Importance
from mobilenets.errors import UserError
from mobilenets.model.module import MobileNet

LAYERS = ("conv", "depthwise", "pointwise", "linear", "global", "norm")


@dataclass(frozen=True)
class Measure:
    """How a channel's worth is judged: `make` gives what scores a group, of its weights or their gradients too.

    `of_loss`: scores are changes of the loss, to be compared between layers by what a channel costs. Others compare
    with their layer's mean.
    """

    make: Callable[[], Any]
    of_loss: bool = False


MEASURES: dict[Importance, Measure] = {
    # What the loss changes by, to first order, when the channel is left out (Molchanov and others 2019, section 3.1):
    # of all weights that read or make it.
    "taylor": Measure(lambda: tp.importance.GroupTaylorImportance("sum", None, multivariable=True), of_loss=True),
    # The norm of its weights (Li and others, arXiv 1608.08710).
    "magnitude": Measure(lambda: tp.importance.GroupMagnitudeImportance()),
    # The size of BatchNorm's scale (Liu and others, arXiv 1708.06519).
    "bn-scale": Measure(lambda: tp.importance.BNScaleImportance()),
}


@dataclass(frozen=True)
class Channels:
    """`count` channels that go together, out of each of `layers`, by the first of which they are called.

    `follows`: their number is what the rows make of another's, as a squeeze-and-excite's.
    """

    name: str
    layers: tuple[str, ...]
    count: int
    group: Any

    @property
    def follows(self) -> bool:
        return self.name.endswith(".se_reduce")


class Coupled:
    """The channels of a network that may go, by name; `net` is what is pruned."""

    def __init__(self, net: MobileNet) -> None:
        self.net = net
        graph = net.graph
        if any(op.kind == "crop" for op in graph.ops):
            raise UserError("the channels of a two-stage detector can't be pruned: what follows a crop isn't traced")
        layers = [op for op in graph.layers if op.kind in LAYERS]
        image = torch.zeros(1, *graph.source_shape)
        self.graph = tp.DependencyGraph().build_dependency(
            net,
            image,
            forward_fn=lambda m, x: [*m.run({graph.source: x}, [op.name for op in layers]).values()],
            verbose=False,
        )
        of = {module: op.name for op in layers for module in net.of(op).modules()}
        order = {op.name: i for i, op in enumerate(layers)}
        self.found: dict[str, Channels] = {}
        for group in self.graph.get_all_groups(ignored_layers=[*self._fixed()]):
            makes = {of[d.target.module] for d, _ in group if self._makes(d) and d.target.module in of}
            names = sorted(makes, key=order.__getitem__)
            self.found[names[0]] = Channels(names[0], tuple(names), len(group[0].idxs), group)

    def _makes(self, dependency: Any) -> bool:
        """Whether a layer's output is what loses channels by this."""
        is_layer = isinstance(dependency.target.module, nn.Conv2d | nn.Linear)
        return is_layer and bool(self.graph.is_out_channel_pruning_fn(dependency.handler))

    def _fixed(self) -> Iterable[nn.Module]:
        """What keeps the channels that it gives: a task's own layers, the classifier, the inside of an attention."""
        arch, graph = self.net.arch, self.net.graph
        own = {op.name for op in graph.ops if op.name not in arch.graph.by_name and op.groups == 1}
        read_by_attention = {name for op in graph.ops if op.kind == "attend" for name in op.inputs}
        for op in graph.layers:
            if op.name in own | read_by_attention or op.kind == "linear":
                yield from (m for m in self.net.of(op).modules() if isinstance(m, nn.Conv2d | nn.Linear))

    def keep(self, best: Mapping[str, Tensor]) -> None:
        """Leave of the channels named in `best` those alone, by their indices, in the network's own weights."""
        for name, kept in best.items():
            own = self.found[name]
            gone = sorted({*range(own.count)} - {*kept.tolist()})
            root = own.group[0]
            if gone:
                self.graph.get_pruning_group(root.dep.target.module, root.dep.handler, gone).prune()

    def worth(self, how: Importance, losses: Iterable[Tensor]) -> dict[str, Tensor]:
        """What each channel is worth, float64 [count], by name: the mean over `losses`, each computed when asked for.

        They are of batches, by the network in eval mode. Only taylor asks for any.
        """
        measure = MEASURES[how]
        score = measure.make()
        if not measure.of_loss:
            return {name: _scored(score, own) for name, own in self.found.items()}
        sums = {name: torch.zeros(own.count, dtype=torch.float64) for name, own in self.found.items()}
        batches = 0
        for loss in losses:
            self.net.zero_grad(set_to_none=False)
            torch.autograd.backward(loss)
            for p in self.net.parameters():
                if p.grad is None:  # it has no part in what training reads
                    p.grad = torch.zeros_like(p)
            for name, own in self.found.items():
                sums[name] += _scored(score, own)
            batches += 1
        self.net.zero_grad()
        return {name: total / max(batches, 1) for name, total in sums.items()}


def _scored(score: Any, own: Channels) -> Tensor:
    made: Tensor | None = score(own.group)
    if made is None:  # no BatchNorm among them
        return torch.ones(own.count, dtype=torch.float64)
    return made.detach().double().cpu()


def ranked(worth: Tensor, count: int) -> Tensor:
    """The indices of the `count` channels worth most, in the order they have in the network."""
    return worth.argsort(descending=True, stable=True)[:count].sort().values
