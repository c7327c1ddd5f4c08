"""The optimizers of the recipes, by name."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor, nn

from mobilenets.training.recipes import Recipe

ROW = re.compile(r"blocks\.(\d+)\.")  # of a parameter's name


def parameter_groups(model: nn.Module, recipe: Recipe, own: Collection[str] = ()) -> list[dict[str, Any]]:
    """Parameters by (decayed or not) x (row of the network, or the task's `own` layers).

    One rule for weight decay: weights of more than one input each have it; depthwise filters (V1 paper, section 3.2),
    norms and biases don't. The rate of a row is `recipe.layer_decay` times that of the row after it.
    """
    plain = {
        id(m.weight)
        for m in model.modules()
        if (isinstance(m, nn.Conv2d) and m.groups == 1) or isinstance(m, nn.Linear)
    }
    groups: dict[tuple[bool, int | None], list[nn.Parameter]] = {}
    prefixes = tuple(f"{name}." for name in own)
    numbered = {name: ROW.match(name) for name, _ in model.named_parameters()}
    rows = {name: int(m[1]) for name, m in numbered.items() if m}
    head = max(rows.values(), default=-1) + 1  # what follows all rows counts as one
    for name, p in model.named_parameters():
        of_body = head - rows.get(name, head) if recipe.layer_decay < 1 else 0
        behind = None if name.startswith(prefixes) else of_body
        groups.setdefault((id(p) in plain, behind), []).append(p)
    return [
        {
            "params": params,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
            "lr": recipe.peak_lr * (1.0 if behind is None else recipe.body_lr * recipe.layer_decay**behind),
        }
        for (decayed, behind), params in groups.items()
    ]


STRAIGHT_DOWN = Recipe(warmup=0.0)  # a schedule


def schedule(step: int, total: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at `step` of `total`: a linear rise, then a cosine to 0 or a fall by epochs."""
    rise = max(1, round(recipe.warmup * total))
    if step < rise:
        return (step + 1) / rise
    if recipe.schedule == "exponential":
        return float(recipe.lr_decay ** (step * recipe.epochs // total))
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


class TensorFlowRMSprop(torch.optim.Optimizer):
    """RMSprop as TensorFlow has it, which the papers' networks were trained with.

    Against `torch.optim.RMSprop`: epsilon is inside the root, the mean square starts at 1 instead of 0 (so that the
    first steps aren't huge), and the momentum gathers steps, learning rate and all, instead of gradients. With the
    large epsilon of TF-slim, 1, the first makes all the difference. `weight_decay` is added to the gradient (L2).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        decay: float = 0.9,
        momentum: float = 0.9,
        eps: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "decay": decay, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [cast(Tensor, p.grad) for p in params]
            if group["weight_decay"]:
                grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            for p in params:
                if not self.state[p]:
                    self.state[p] = {"mean_square": torch.ones_like(p), "moved": torch.zeros_like(p)}
            squares = [self.state[p]["mean_square"] for p in params]
            moved = [self.state[p]["moved"] for p in params]
            torch._foreach_mul_(squares, group["decay"])
            torch._foreach_addcmul_(squares, grads, grads, value=1 - group["decay"])
            roots = torch._foreach_sqrt(torch._foreach_add(squares, group["eps"]))
            torch._foreach_mul_(moved, group["momentum"])
            torch._foreach_addcdiv_(moved, grads, roots, value=group["lr"])
            torch._foreach_sub_(params, moved)
        return loss


def _fused(optimizer: Callable[..., torch.optim.Optimizer], params: Any, **settings: Any) -> torch.optim.Optimizer:
    """An optimizer of PyTorch whose step is one kernel, and not several for each of a hundred small layers."""
    made = optimizer(params, fused=True, **settings)
    made._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # bf16 has none, and Lightning would not clip
    return made


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": functools.partial(_fused, torch.optim.AdamW),
    "sgd": functools.partial(_fused, torch.optim.SGD, momentum=0.9, nesterov=True),
    "rmsprop": TensorFlowRMSprop,
}
