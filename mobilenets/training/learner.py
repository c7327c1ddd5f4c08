"""The LightningModule that trains any network for any task, by any recipe. Lightning owns the loop."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torchmetrics
from torch import Tensor
from torch.utils._pytree import tree_map
from torchvision.transforms import v2

from mobilenets.arch.graph import Graph
from mobilenets.arch.operations import Op
from mobilenets.errors import UserError
from mobilenets.model.images import Preprocess
from mobilenets.model.module import Taps, Walker
from mobilenets.tasks.task import Following, Objective, Shaped, Task
from mobilenets.training.loader import mix
from mobilenets.training.optim import OPTIMIZERS, ROW, STRAIGHT_DOWN, parameter_groups, schedule
from mobilenets.training.recipes import Recipe
from mobilenets.training.recorded import Recorder

RECENT = 16  # batches
READ = 32  # steps between looks at a loss that lies on a GPU


def own_part(graph: Graph, own: Collection[str], taps: Collection[str]) -> tuple[tuple[Op, ...], tuple[str, ...]]:
    """Of the operations that compute `taps`, the task's: its `own` layers and all that depends on them; and its border.

    The border: the values of the body, the rest of the network, that the task's part reads.
    """
    ops = graph.upto(taps).after(own)
    there = {op.name for op in ops}
    return ops, tuple(dict.fromkeys(name for op in ops for name in op.inputs if name not in there))


def reseed(seed: int) -> None:
    """`torch.manual_seed`, which writes the whole stack down where no GPU is in use yet: half a millisecond or more."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


def _kept(graph: Graph, share: float) -> tuple[Op, ...]:
    """The layers of the first rows, that share of all."""
    rows = {op: int(m[1]) for op in graph.layers if (m := ROW.match(op.name))}
    count = int(share * (max(rows.values(), default=-1) + 1))
    return tuple(op for op, row in rows.items() if row < count)


class Learner(pl.LightningModule):
    """A network in training: batches of uint8 [N, 3, H, W], targets, and what else the objective takes.

    `own`: the layers that are the task's own (`Head.own`). Frozen epochs train them alone, with what depends on them.
    `fresh`: those of them that come from no other network; all, if left out.
    The task's metrics get its tap's value, or all of them by name where there are several, and targets.
    """

    def __init__(
        self,
        model: Walker,
        preprocess: Preprocess,
        recipe: Recipe,
        seed: int,
        task: Task,
        config: Mapping[str, Any],
        objective: Objective,
        own: Collection[str] = (),
        fresh: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        self.task: Task = task.by(config) if isinstance(task, Shaped) else task
        self.model, self.recipe, self.seed, self.own = model, recipe, seed, tuple(own)
        self.objective, self.config = objective, config
        if isinstance(objective, Following):
            objective.follow(model)
        self.taps = tuple(dict.fromkeys((*task.taps, *getattr(objective, "taps", ()))))
        self.own_ops, border = own_part(model.graph, self.own, self.taps)
        ours = {op.name for op in model.graph.after(self.own)}
        self.body_ops = tuple(op for op in model.graph.ops if op.name not in ours)
        self.body_taps = tuple(dict.fromkeys((*border, *(name for name in self.taps if name not in ours))))
        self.kept_ops = _kept(model.graph, recipe.frozen_rows)
        known = [model.of(op) for op in model.graph.layers if op.name not in (self.own if fresh is None else fresh)]
        norms = [m for layer in known for m in layer.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        self.kept_norms = norms if recipe.norms == "kept" else []
        for op in self.kept_ops:
            model.of(op).requires_grad_(False)
        self.model.to(memory_format=torch.channels_last)  # 1.1 to 1.45 times as fast, in float32 too (results)
        self.recent: deque[Tensor] = deque(maxlen=RECENT * recipe.accumulate)  # images of the epoch's last batches
        self.features: list[tuple[Taps, Any]] = []  # of the frozen epoch so far, with their targets
        self.mixes = list(objective.mixes())
        self.recorder = Recorder(self.model, self.forward)
        self.scores = task.validation(config)
        self.gone: Callable[[], float] = lambda: (
            0.0
        )  # the share of a given time that is over: the rate keeps up with it
        for name in ("mean", "std"):
            value = torch.tensor(getattr(preprocess, name)).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    mean: Tensor
    std: Tensor

    @property
    def full(self) -> tuple[int, int]:
        """Height and width of the network's input in pixels."""
        _, height, width = self.model.graph.source_shape
        return height, width

    @property
    def idle(self) -> bool:
        """Whether the network has layers that nothing here needs, as a task without its classifier leaves some."""
        graph = self.model.graph
        return len(graph.upto(self.taps).layers) < len(graph.layers)

    @property
    def recordable(self) -> bool:
        """Whether a step's passes can be recorded (`recorded`).

        Not where several processes train together, whose gradients meet on the way back; where a step gathers gradients
        of several batches, since a recording has one place for them; or for ragged targets, whose networks compute as
        much as they find.
        """
        alone = self.trainer.world_size == 1 and self.recipe.accumulate == 1
        return self.mean.is_cuda and alone and not self.task.ragged

    @property
    def frozen(self) -> bool:
        return self.epoch_plan(self.current_epoch)[1]

    def epoch_plan(self, epoch: int) -> tuple[tuple[int, int], bool]:
        """(height, width) that training images have in `epoch`, multiples of 4, at least 16; and if it is frozen."""
        recipe = self.recipe
        grown = min(1.0, epoch / max(1.0, 0.6 * recipe.epochs))
        share = recipe.progressive + (1 - recipe.progressive) * grown
        height, width = (
            full if share == 1 else min(full, max(16, 4 * math.floor(full * share / 4))) for full in self.full
        )
        return (height, width), epoch < recipe.frozen_epochs and bool(self.own_ops)

    @property
    def one_size(self) -> bool:
        """Whether it can't take images as small as the first epoch's, as a network with weights for each position."""
        training, images = self.training, torch.zeros(2, 3, *self.epoch_plan(0)[0], device=self.mean.device)
        try:
            with torch.inference_mode():
                self.eval()(images)
        except RuntimeError:
            return True
        finally:
            self.train(training)
        return False

    def shrink(self, images: Tensor) -> Tensor:
        size = self.epoch_plan(self.current_epoch)[0]
        if images.shape[-2:] == size:
            return images
        return cast(Tensor, v2.functional.resize(images.float(), list(size), antialias=True))

    def normalize(self, images: Tensor) -> Tensor:
        return ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Taps:
        """Images of any size -> the values that the task and the objective read, by name."""
        return self.answers(self.body(images))

    def body(self, images: Tensor) -> Taps:
        """What the task's own part reads of the rest, and the taps among it."""
        return self.model.run({self.model.graph.source: self.normalize(images)}, self.body_taps)

    def answers(self, body: Taps) -> Taps:
        """The taps, of what `body` gave."""
        return self.model.run(body, self.taps, self.own_ops)

    def on_train_epoch_start(self) -> None:
        self.recent.clear()
        frozen = self.frozen
        for op in self.body_ops:  # a frozen body keeps its BatchNorm statistics
            self.model.of(op).train(not frozen)
        self.keep()

    @property
    def kept(self) -> list[torch.nn.Module]:
        """What keeps its BatchNorm statistics: rows that stay as they are, or all layers that had some."""
        return [*map(self.model.of, self.kept_ops), *self.kept_norms]

    def keep(self) -> None:
        for module in self.kept:
            module.eval()

    def training_step(self, batch: Sequence[Any], batch_idx: int) -> Tensor:
        self.recent.append(batch[0])
        images, targets = self.shrink(batch[0]), self.objective.targets(batch)
        reseed(mix(self.seed, self.current_epoch, batch_idx, self.global_rank))  # mixup and dropout
        if self.mixes:
            one = self.mixes[int(torch.randint(len(self.mixes), ()))]
            images, targets = one(images.float(), targets)
        if self.frozen:
            with torch.no_grad():
                body = self.body(images)
            self.features.append(({name: value.float() for name, value in body.items()}, targets))
            outputs = self.answers(body)
        else:
            outputs = self.recorder(images) if self.recordable else self(images)
        loss = self.objective(outputs, targets)
        # Reading a number off a GPU waits for all that it still has to do; once lost, the loss stays so.
        if (loss.device.type == "cpu" or batch_idx % READ == READ - 1) and not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}: the learning rate is too high for "
                f"this data; try again with --lr {self.recipe.lr / 4:g}"
            )
        self.log("train_loss", loss, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(images))
        return loss

    def on_train_batch_end(self, _outputs: Any, _batch: Any, _batch_idx: int) -> None:
        if self.features and self.trainer.is_last_batch:  # validation comes before the epoch's end
            self._reuse_features()

    def _reuse_features(self) -> None:
        """Train the task's own part on the frozen epoch's features, again and again: it costs next to nothing.

        All processes do the same on the features of all.
        """
        recipe = self.recipe
        modules = [self.model.of(op) for op in self.own_ops]
        learnt = [*(p for m in modules for p in m.parameters()), *self.objective.parameters()]
        bodies, wants = zip(*self.features, strict=True)
        x = tree_map(lambda *parts: self._of_all(torch.cat(parts)), *bodies)
        y = (
            self._of_all_lists(wants)
            if self.task.ragged
            else tree_map(lambda *parts: self._of_all(torch.cat(parts)), *wants)
        )
        self.features.clear()
        count = len(next(iter(x.values())))
        generator = torch.Generator().manual_seed(mix(self.seed, self.current_epoch))
        optimizer = torch.optim.AdamW(learnt, recipe.lr, weight_decay=recipe.weight_decay)
        passes = [torch.randperm(count, generator=generator) for _ in range(recipe.frozen_passes)]
        batches = [index for order in passes for index in torch.split(order, recipe.batch)]
        for step, index in enumerate(batches):
            optimizer.param_groups[0]["lr"] = recipe.lr * schedule(step, len(batches), STRAIGHT_DOWN)
            optimizer.zero_grad()
            some = tree_map(lambda t, index=index: t[index], x)
            wanted = [y[i] for i in index] if self.task.ragged else tree_map(lambda t, index=index: t[index], y)
            torch.autograd.backward(self.objective(self.answers(some), wanted))
            optimizer.step()

    def _of_all(self, rows: Tensor) -> Tensor:
        """Rows [N, ...] of all processes, one after another."""
        everywhere = cast(Tensor, self.all_gather(rows))
        return everywhere.flatten(0, 1) if self.trainer.world_size > 1 else everywhere

    def _of_all_lists(self, lists: Sequence[list[Any]]) -> list[Any]:
        """Targets that are no tensors, of all processes, in the order of `_of_all`."""
        own = [target for batch in lists for target in batch]
        if self.trainer.world_size == 1:
            return own
        everywhere: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(everywhere, own)
        return [target for each in everywhere for target in each]

    def validation_step(self, batch: Sequence[Any], _batch_idx: int) -> None:
        images, targets = batch
        outputs = self(images)
        following = self.objective if isinstance(self.objective, Following) else None
        if following:
            outputs |= self.model.run({self.model.graph.source: self.normalize(images)}, following.sees)
        seen = outputs[self.task.taps[0]] if len(self.task.taps) == 1 else outputs
        for score in self.scores.values():
            cast(torchmetrics.Metric, score).update(seen, targets)
        if following:
            loss = following.held_out(outputs, following.targets(batch))
        else:
            loss = self.task.validation_loss(outputs, targets, self.config)
        self.log("val_loss", loss, on_epoch=True, sync_dist=True, batch_size=len(images))

    def on_validation_epoch_end(self) -> None:
        primary = self.task.primary
        unit = 100 if primary is None or primary.unit == "%" else 1  # shares become percent
        for name, score in self.scores.items():
            metric = cast(torchmetrics.Metric, score)
            self.log(name, unit * metric.compute(), sync_dist=True)
            metric.reset()

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.model, self.recipe, self.own)
        if learnt := list(self.objective.parameters()):
            groups.append({"params": learnt, "weight_decay": 0.0, "lr": self.recipe.peak_lr})
        optimizer = OPTIMIZERS[self.recipe.optimizer](groups, lr=self.recipe.peak_lr)
        total = int(self.trainer.estimated_stepping_batches)

        def share(step: int) -> float:
            return schedule(max(step, int(self.gone() * total)), total, self.recipe)

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
