"""What a training is made of, before it begins: network, objective, augmented images. No torch until it is called."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mobilenets import tasks
from mobilenets.arch.graph import Head
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import Data, Split, cache_side
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import Preprocess
from mobilenets.tasks.task import Matched, Objective, Shaped, Task
from mobilenets.training.distributed import world
from mobilenets.training.loop import Setup
from mobilenets.training.recipes import CO_TEACHING, Recipe
from mobilenets.training.zeros import keep_zeros, sparse

if TYPE_CHECKING:
    from mobilenets.model.module import MobileNet
    from mobilenets.training.distill import Distiller


def setup(
    data: Data,
    training: Split,
    arch: Arch,
    recipe: Recipe,
    seed: int,
    init: Bundle | None = None,
    distiller: Distiller | None = None,
    task: Task | None = None,
) -> Setup:
    """Network, objective and augmented images of a training on `training`, a split of `data`."""
    import torch

    from mobilenets.model import module as model
    from mobilenets.training import loader, statistics
    from mobilenets.training.co_teaching import CoTeaching
    from mobilenets.training.distributed import fast_bf16
    from mobilenets.training.learner import Learner, own_part

    task = task or tasks.find("classify")
    tasks.check_loss(task, recipe.loss)
    arch = arch.replace(dropout=recipe.dropout)
    config = tasks.config_of(task, data, arch)
    if isinstance(task, Matched):
        task = task.by(config)
    head = task.head(arch, config)
    kind = data.kind if recipe.augment == "auto" else recipe.augment
    preprocess = (
        init.card.preprocess if init else Preprocess(arch.resolution, crop=1.0 if kind == "shift" else data.crop)
    )
    preprocess = dataclasses.replace(preprocess, resolution=arch.resolution, size=arch.size)
    if isinstance(task, Shaped) and (init is None or init.card.task != task.name):
        preprocess = dataclasses.replace(preprocess, framing=task.framing, crop=1.0)
    if isinstance(task, Matched) and task.framing:
        preprocess = dataclasses.replace(preprocess, framing=task.framing, crop=1.0)
    torch.manual_seed(seed)
    net = model.build(arch, head)
    if isinstance(task, Shaped):
        task.begin(net, head, config)
    pixels = [net.graph.shapes[op.name][1:] for op in net.graph.ops if op.norm]
    if loader.at_once(recipe, len(training), world()[0]) == 1 and (1, 1) in pixels:
        raise UserError(
            "BatchNorm needs two images at a time where a map is one pixel: take a larger --batch, fewer --accumulate, "
            "or another --resolution"
        )
    measured, fresh = 0, frozenset(head.own)
    if init:
        fresh = _start_from(net, init, task, config, head)
        measured = statistics.settle(net, fresh, training, preprocess, seed)
    objective: Objective = task.objective(config, recipe, training)
    side = cache_side(max(preprocess.input_size))
    images = loader.train_images(training, task.transforms(preprocess, recipe, kind), seed, side, task.ragged)
    if isinstance(task, Matched) and (distiller is None or distiller.how.share):
        images.together = task.together
    if distiller and isinstance(task, Matched):
        images.answers = distiller.vectors(training, recipe.epochs)
        objective = distiller.objective(objective, net.graph, (task.matched,), live=False, matched=True)
    elif distiller:
        images.answers = distiller.ask_beforehand(images, recipe, kind)
        border = own_part(net.graph, head.own, task.taps)[1]
        objective = distiller.objective(objective, net.graph, border, live=images.answers is None)
    if recipe.loss == CO_TEACHING and distiller:
        raise UserError("co-teaching is of two networks without a teacher: another --loss")
    bf16 = recipe.training_precision == "bf16" or (recipe.training_precision == "auto" and fast_bf16())
    if recipe.loss == CO_TEACHING:
        torch.manual_seed(seed + 1)
        peer = model.build(arch, head)
        if init:
            statistics.settle(peer, _start_from(peer, init, task, config, head), training, preprocess, seed)
        objective = CoTeaching(peer, preprocess, recipe, getattr(objective, "weights", None))
    learner = Learner(net, preprocess, recipe, seed, task, config, objective, head.own, fresh)
    if isinstance(objective, CoTeaching):
        objective.epoch = lambda: learner.current_epoch
    return Setup(learner, images, preprocess, "bf16-mixed" if bf16 else "32-true", measured)


def _start_from(net: MobileNet, init: Bundle, task: Task, config: dict[str, Any], head: Head) -> frozenset[str]:
    """Load what fits: everything, or all but some of the task's own layers, whose names it returns.

    Raises `UserError` where more is missing.
    """
    import torch

    state = {k: torch.from_numpy(v) for k, v in task.transfer(init, config).items()}
    there = net.state_dict()
    needed = net.graph.upto(o.op for o in head.outputs).layers
    body = tuple(f"{op.name}." for op in needed if op.name not in head.own)
    wrong = [k for k in state if k not in there or there[k].shape != state[k].shape]
    wrong += [k for k in there if k.startswith(body) and k not in state]
    if wrong:
        raise UserError(f"--init: the bundle's network isn't the one to be trained, as {wrong[0]} shows")
    net.load_state_dict(state, strict=False)
    if sparse(init.card):
        keep_zeros(p for p in net.parameters() if p.ndim > 1)
    return frozenset(name for name in head.own if any(k.startswith(f"{name}.") and k not in state for k in there))
