"""What goes on beside the training loop: averaged weights, checkpoints, the log, the progress bar."""

from __future__ import annotations

import contextlib
import csv
import io
import signal
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.plugins import TorchCheckpointIO
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mobilenets import console, files
from mobilenets.errors import UserError
from mobilenets.model.convert.formats import one_line
from mobilenets.training import pace
from mobilenets.training.distributed import world
from mobilenets.training.learner import Learner
from mobilenets.training.loader import EpochSampler


class Averaging(WeightAveraging):
    """An exponential moving average of the weights over `horizon` steps, which is what is validated and kept.

    Averaged weights give smaller activations than those they are averaged over, while weights still move fast; with
    averaged statistics each BatchNorm then shrinks them further, until the whole network answers the same for any
    image. So the statistics are measured anew, with the averaged weights, on the epoch's last training images.
    """

    def __init__(self, horizon: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / max(1.0, horizon)))  # type: ignore[no-untyped-call]

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_validation_epoch_start(trainer, module)  # the module now has the averaged weights
        assert isinstance(module, Learner)
        if module.recent and not module.frozen:
            with trainer.precision_plugin.forward_context():
                measure_statistics(module, trainer.world_size)


@torch.no_grad()
def measure_statistics(learner: Learner, processes: int = 1) -> None:
    """Set every BatchNorm's statistics to those of `learner.recent`, batches as large as they will be predicted."""
    kept = {m for part in learner.kept for m in part.modules()}
    norms = [m for m in learner.model.modules() if isinstance(m, nn.BatchNorm2d) and m not in kept]
    if not norms:
        return
    momenta: list[Any] = [m.momentum for m in norms]
    counts = [m.num_batches_tracked.clone() for m in norms if m.num_batches_tracked is not None]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain mean over batches
    training = learner.model.training
    learner.model.train()
    learner.keep()
    for images in learner.recent:
        learner(images)
    learner.model.train(training)
    for m, momentum, count in zip(norms, momenta, counts, strict=True):
        m.momentum = momentum
        if m.num_batches_tracked is not None:
            m.num_batches_tracked.copy_(count)
        for statistic in (m.running_mean, m.running_var):
            if processes > 1 and statistic is not None:
                dist.all_reduce(statistic)
                statistic /= processes


class Checkpoints(TorchCheckpointIO):
    """Checkpoints written beside and renamed into place.

    Lightning's own are written in the temporary folder and moved: from another disk, that is a copy over the last one,
    which a full disk or a kill leaves half-written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ARG002
        buffer = io.BytesIO()  # torch.save to a file hides a full disk's OSError
        torch.save(checkpoint, buffer)
        with files.atomic_file(Path(path)) as tmp:
            tmp.write_bytes(buffer.getbuffer())

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class Best(ModelCheckpoint):
    """The checkpoint of the best epoch; of those alike, as many are where few images are held out, the latest.

    By then the learning rate is lower and the average over more steps: `results/README.md` has what that is worth.
    """

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        alike = current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
        if trainer.strategy.reduce_boolean_decision(alike):  # all processes or none
            return True
        return super().check_monitor_top_k(trainer, current)


NEEDED = ("state_dict", "epoch", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `Checkpoints` wrote, every checksum in it verified. Raises `UserError` for a damaged one."""
    try:
        with zipfile.ZipFile(path) as whole:
            if damaged := whole.testzip():
                raise ValueError(f"{damaged} in it was altered")
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if absent := [k for k in NEEDED if k not in found]:
            raise ValueError(f"it has no {absent[0]}")
    except Exception as e:  # of zipfile, of PyTorch's reader and its unpickler
        raise UserError(
            f"{path}: a damaged checkpoint ({one_line(e)}); remove it, to start from the beginning, or restore it"
        ) from e
    return found


class EpochLog(pl.Callback):
    """A row per epoch in a CSV file, kept whole over `--resume` (Lightning's own logger starts the file anew)."""

    def __init__(self, path: Path, scores: Sequence[str]) -> None:
        """`scores`: names of the columns that the task has beside the losses, the primary metric's first."""
        self.path, self.scores = path, tuple(scores)
        self.columns = ("epoch", "train_loss", "val_loss", *self.scores, "lr", "seconds")
        self.rows: list[dict[str, str]] = []
        if path.exists():
            try:
                with path.open(newline="", encoding="utf-8") as f:
                    self.rows = list(csv.DictReader(f))
                for row in self.rows:
                    int(row["epoch"]), float(row[self.scores[0]])
            except (ValueError, KeyError, TypeError, csv.Error) as e:
                raise UserError(f"{path}: a damaged log of epochs ({one_line(e)}); restore or remove it") from e

    def score(self, epoch: int) -> float:
        """The primary metric of an epoch, counted from 1, in its unit."""
        return float(self.row(epoch)[self.scores[0]])

    def row(self, epoch: int) -> dict[str, str]:
        """What is known of an epoch, counted from 1. Raises `UserError`."""
        for row in self.rows:
            if row["epoch"] == str(epoch):
                return row
        raise UserError(f"{self.path}: has no epoch {epoch}, from which the weights are; restore it, or start anew")

    def since(self, epoch: int, column: str) -> int:
        """The first epoch that was as good as `epoch`, both counted from 1. Raises `UserError`."""
        value = self.row(epoch)[column]
        return min(int(r["epoch"]) for r in self.rows if r[column] == value)

    def on_train_start(self, trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        self.began = time.monotonic()
        self.rows = [r for r in self.rows if int(r["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_end(self, trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        now = time.monotonic()
        m = {k: f"{float(v):.6g}" for k, v in trainer.callback_metrics.items()}
        lr = trainer.optimizers[0].param_groups[-1]["lr"]
        row = {**m, "epoch": str(trainer.current_epoch + 1), "lr": f"{lr:.6g}", "seconds": f"{now - self.began:.2f}"}
        self.began = now
        self.rows.append({c: row.get(c, "") for c in self.columns})
        if trainer.is_global_zero:
            with files.atomic_file(self.path) as tmp, tmp.open("w", newline="", encoding="utf-8") as f:
                writer = csv.DictWriter(f, self.columns)
                writer.writeheader()
                writer.writerows(self.rows)
        for logger in trainer.loggers:  # Lightning gives them the losses and the scores
            logger.log_metrics({"lr": lr}, step=trainer.global_step - 1)


@contextlib.contextmanager
def _unbroken() -> Iterator[None]:
    """Have Ctrl-C wait for the end of the block; a second one doesn't.

    Where it comes as something is handed to a logger's thread, their queue stays locked, and closing it never ends.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []

    def later(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))
        if len(came) > 1:
            before(number, frame)

    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(*came[0])


class Forgiving(Logger):
    """A logger whose failures cost what it would have kept, never the training: one line, and it is left alone.

    `opener` gives the logger itself, when it is first needed, to the first process alone.
    """

    def __init__(self, name: str, opener: Callable[[], Logger]) -> None:
        super().__init__()
        self._name, self._opener = name, opener
        self._inner: Logger | None = None
        self._over = world()[1] != 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def _tell(self, do: Callable[[Logger], object]) -> None:
        if self._over:
            return
        try:
            with _unbroken():
                self._inner = self._inner or self._opener()
                do(self._inner)
        except Exception as e:  # each library has its own, from a full disk to a server that is gone
            self._over = True
            console.note(f"--log {self.name} ended, and training goes on without it: {one_line(e)}")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._tell(lambda inner: inner.log_metrics(dict(metrics), step))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self._tell(lambda inner: inner.log_hyperparams(params))

    def save(self) -> None:
        self._tell(lambda inner: inner.save())

    def finalize(self, status: str) -> None:
        if self._inner:
            self._tell(lambda inner: inner.finalize(status))
        self._over = True


class ProgressBar(pl.Callback):
    """Epoch, rate, last validation score and time left, on rank 0; without a terminal, a line for each epoch."""

    def __init__(self, held_out: int) -> None:
        self.held_out = held_out  # images of a validation

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Learner)
        recipe, batches = module.recipe, int(trainer.num_training_batches)
        self.pace = pace.time_epochs(module, batches, recipe.batch // recipe.accumulate, self.held_out)
        self.bar = console.progress("steps", left=False) if trainer.is_global_zero else None
        if self.bar:
            self.bar.start()
            steps = int(trainer.estimated_stepping_batches)
            self.task = self.bar.add_task("training", total=steps, completed=trainer.global_step, status="")
        self.images, self.since, self.score = 0, time.monotonic(), ""
        done = (trainer.fit_loop.epoch_loop.batch_idx + 1) % batches  # of an epoch that was interrupted
        self.started, self.start = self.since, (trainer.current_epoch, done)

    def left(self, epoch: int, step: int) -> str:
        """Time left when `epoch` epochs and `step` steps are done."""
        seconds = self.pace.left(self.start, (epoch, step), time.monotonic() - self.started)
        return console.duration(seconds)

    def on_train_batch_end(
        self, trainer: pl.Trainer, _module: pl.LightningModule, _out: Any, batch: Any, batch_idx: int
    ) -> None:
        self.images += len(batch[0]) * trainer.world_size
        if self.bar:
            rate = self.images / (time.monotonic() - self.since)
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            left = self.left(trainer.current_epoch, batch_idx + 1)
            status = f"{left} left, {rate:.0f} images/s{self.score}"
            self.bar.update(self.task, completed=trainer.global_step, description=epoch, status=status)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Learner)
        primary, seen = module.task.primary, trainer.callback_metrics
        if primary and f"val_{primary.name}" in seen:
            self.score = f", val {primary.label} {primary.say(float(seen[f'val_{primary.name}']))}"
        if self.bar and self.bar.disable:
            done = trainer.current_epoch + 1
            console.note(f"epoch {done}/{trainer.max_epochs}{self.score}, {self.left(done, 0)} left")
        self.images, self.since = 0, time.monotonic()

    def teardown(self, _trainer: pl.Trainer, _module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        bar = getattr(self, "bar", None)
        if bar:
            bar.stop()


MEANS = "means_so_far"  # in a checkpoint: what the epoch has logged
AGREE = 16  # steps between two looks at the clock by several processes, which wait for each other then


class MidEpoch(Checkpoint):
    """Writes the checkpoint `path` every so many minutes, and starts a resumed epoch's batches where it was stopped.

    What a checkpoint doesn't hold is an accumulated gradient, a frozen epoch's features, or the last batches' images
    that `averaging` measures on: there, it waits for the next step, or for the end of the epoch.
    """

    def __init__(self, path: Path, minutes: float, sampler: EpochSampler, batch: int) -> None:
        self.path, self.seconds, self.sampler, self.batch = path, 60 * minutes, sampler, batch
        self.means: dict[str, list[float]] = {}  # of a resumed epoch, from before it was stopped

    def on_train_start(self, _trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        self.since = time.monotonic()

    def on_train_epoch_end(self, _trainer: pl.Trainer, _module: pl.LightningModule) -> None:
        self.since = time.monotonic()  # the epoch's own checkpoint is written now

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, _outputs: Any, _batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, Learner)
        self._resume_means(trainer)
        to_come = trainer.num_training_batches - (batch_idx + 1)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not stepped or module.frozen or to_come < (module.recent.maxlen or 0):
            return
        if trainer.world_size > 1 and trainer.global_step % AGREE:
            return
        if trainer.strategy.broadcast(time.monotonic() - self.since >= self.seconds):  # all processes or none
            trainer.save_checkpoint(self.path)
            self.since = time.monotonic()

    def on_save_checkpoint(self, trainer: pl.Trainer, _module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[MEANS] = {
            k: [float(trainer.strategy.reduce(m.value.clone(), reduce_op="mean")), float(m.cumulated_batch_size)]
            for k, m in trainer.fit_loop.epoch_loop._results.items()
            if m.meta.on_epoch and m.meta.is_mean_reduction and m.is_tensor
        }

    def on_load_checkpoint(self, _trainer: pl.Trainer, _module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning has the workers draw the first batches before it tells the sampler the epoch.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        whole = progress["is_last_batch"]
        self.sampler.resume_at(checkpoint["epoch"] + whole, 0 if whole else self.batch * progress["current"]["ready"])
        self.means = {} if whole else checkpoint.get(MEANS, {})

    def _resume_means(self, trainer: pl.Trainer) -> None:
        """Lightning's means of an epoch start with the process; those of a resumed epoch start with the epoch."""
        results = trainer.fit_loop.epoch_loop._results
        for key, (total, images) in self.means.items():
            mean = results[key]
            mean.value = torch.as_tensor(total, dtype=mean.value.dtype, device=mean.value.device) + mean.value
            mean.cumulated_batch_size = mean.cumulated_batch_size + int(images)
        self.means = {}
