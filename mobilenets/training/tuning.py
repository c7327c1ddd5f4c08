"""The batch size and the learning rate to train with, found by trying: images per second by batch, loss by rate."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mobilenets import console, processor, tasks
from mobilenets.arch.spec import Arch
from mobilenets.data.dataset import CACHE_SIDE, Data, Split, cache_side, memory
from mobilenets.deploy import bench
from mobilenets.errors import Interrupted, UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import BadImage
from mobilenets.tasks.detect.config import DetectorOptions
from mobilenets.tasks.task import Task
from mobilenets.training import loop
from mobilenets.training.recipes import Recipe
from mobilenets.training.setup import setup

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Floats = npt.NDArray[np.float64]
SAMPLE = 2048  # images tried with; they are decoded beforehand, as `train` keeps them
SMALLEST, STEPS_IN_EPOCH = 16, 8  # a larger batch would leave an epoch fewer steps than that
NEAR = 0.95  # of the best throughput is as good: a smaller batch takes more steps in an epoch
MEMORY_SHARE = 0.8  # of what is available; the rest is for validation and other programs
STEPS, SECONDS, MOST_SECONDS = 3, 1.5, 20.0  # at least, at least, and at most so long for each batch size
BELOW, ABOVE = 1e-2, 30.0  # the rates tried, as shares of the recipe's
DIVERGED = 3.0  # times the smallest loss
RISEN = 0.1  # of the first loss
TOLD = 50  # steps of the range test between two lines of a log
FAR = 1.75  # times the least loss: a trained network's loss is noisy, and has its least at the smallest rates
FINE_RATES, FINE_STEPS = (3e-5, 3e-2), 80  # of AdamW: none of these networks bears more
SMALL_SIDE = 128  # pixels
SKIPPED = 5  # first steps, in which the loss says more of the initial weights than of the rate


@dataclass(frozen=True)
class Speed:
    """Training at one batch size: memory in bytes, `accelerator_bytes` where there is one."""

    batch: int
    images_per_s: float
    peak_rss_bytes: int
    accelerator_bytes: int | None = None


@dataclass(frozen=True)
class Trial:
    """What is trained for some steps. It can be pickled."""

    source: str
    root: Path | None
    arch: Arch
    recipe: Recipe
    init: Bundle | None
    seed: int
    task: str = "classify"
    detector: DetectorOptions | None = None

    @property
    def asked(self) -> Task:
        """What the network is for, with the options that it was asked for with."""
        return tasks.with_options(tasks.find(self.task), {"detect": self.detector}, self.init)


def sample(data: Data, side: int = CACHE_SIDE) -> Split:
    """Up to SAMPLE readable training images, decoded, with a short side of at most `side`."""
    split = data.split("train")
    n = len(split)  # in shards, they lie in random order already, and near ones can be read without the others
    chosen = split.subset((np.arange(n) if split.shards else np.random.default_rng(data.seed).permutation(n))[:SAMPLE])

    def decode(i: int) -> None:
        with contextlib.suppress(BadImage):
            chosen.cache[i] = chosen.cached(i, side)

    with ThreadPoolExecutor(processor.cores()) as pool:
        list(pool.map(decode, range(len(chosen))))
    chosen.cached_at = side
    return chosen.subset(sorted(chosen.cache))


def run_steps(trial: Trial, data: Data, images: Split, steps: int, callback: Any) -> None:
    """Train `trial` as `train` does, on `images`, for `steps` steps or until `callback` stops it. Writes no file."""
    import pytorch_lightning as pl
    import torch

    from mobilenets.training import loader

    made = setup(data, images, trial.arch, trial.recipe, trial.seed, trial.init, task=trial.asked)
    with loop.suppress_warnings():
        trainer = pl.Trainer(
            max_epochs=-1,
            max_steps=steps,
            accelerator="auto" if torch.cuda.is_available() else "cpu",
            devices=1,
            precision=made.precision,
            gradient_clip_val=trial.recipe.clip or None,
            logger=False,
            callbacks=[callback],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(made.learner, loader.train_loader(made.images, trial.recipe, 1, 0))
        except SystemExit as e:  # how Lightning ends on Ctrl-C
            raise Interrupted("interrupted; nothing was written") from e


def time_training(trial: Trial, data: Data, images: Split, batch: int) -> Speed:
    """Images per second of training at `batch`, the first step of each epoch left out, and the peak memory."""
    import torch
    from pytorch_lightning import Callback, Trainer

    accelerated = torch.cuda.is_available()
    began = time.perf_counter()
    seconds: list[float] = []

    class Stopwatch(Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            self.last = 0.0

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if accelerated:
                torch.cuda.synchronize()
            now = time.perf_counter()
            if self.last:
                seconds.append(now - self.last)
            self.last = now
            enough = len(seconds) >= STEPS and sum(seconds) >= SECONDS
            trainer.should_stop = enough or bool(seconds and now - began > MOST_SECONDS)

    if accelerated:
        torch.cuda.reset_peak_memory_stats()
    run_steps(_at(trial, batch=batch), data, images, 100_000, Stopwatch())
    used = torch.cuda.max_memory_allocated() if accelerated else None
    return Speed(batch, batch / statistics.median(seconds), bench.peak_rss(), used)


def _at(trial: Trial, **changes: Any) -> Trial:
    """`trial` as in the hardest steps of its training: everything learns, at full resolution, in one piece."""
    changes = {"accumulate": 1, "frozen_epochs": 0, "progressive": 1.0, **changes}
    return dataclasses.replace(trial, recipe=dataclasses.replace(trial.recipe, **changes))


def _child(trial: Trial, pipe: Connection) -> None:
    """A `Speed` for each batch size received; None for one that the memory doesn't hold."""
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt, Interrupted):
        try:
            data = trial.asked.open(trial.source, trial.root, trial.seed, None)
            images = sample(data, cache_side(max(trial.arch.input_size)))
            if len(images) < 2 * SMALLEST:
                raise UserError(f"{trial.source}: {len(images)} readable training images are too few to try batches on")
            pipe.send(min(len(images) // 2, len(data.split("train")) // STEPS_IN_EPOCH))
            while batch := pipe.recv():
                pipe.send(time_training(trial, data, images, batch))
        except UserError as e:
            pipe.send(str(e))
        except (MemoryError, RuntimeError) as e:
            if "memory" not in str(e).lower() and not isinstance(e, MemoryError):
                raise
            pipe.send(None)


def next_batch(speeds: Sequence[Speed], largest: int, memory: int) -> int | None:
    """The batch size to try after `speeds`; None where two in a row were no faster, or beyond `largest` or the memory.

    `memory`: bytes that the process may have; what a batch will need is foreseen from the last two.
    """
    if not speeds:
        return SMALLEST
    batch = 2 * speeds[-1].batch
    if batch > largest:
        return None
    if len(speeds) > 2 and max(s.images_per_s for s in speeds[-2:]) <= max(s.images_per_s for s in speeds[:-2]):
        return None
    growth = speeds[-1].peak_rss_bytes - speeds[-2].peak_rss_bytes if len(speeds) > 1 else 0
    return batch if speeds[-1].peak_rss_bytes + 2 * growth <= memory else None


def best_batch(speeds: Sequence[Speed]) -> int:
    """The smallest batch within 5% of the best throughput."""
    best = max(s.images_per_s for s in speeds)
    return min(s.batch for s in speeds if s.images_per_s >= NEAR * best)


def try_batches(trial: Trial) -> tuple[Speed, ...]:
    """Train at 16, 32, 64, ... images in a process of its own, so that running out of memory ends that alone."""
    memory = _available()
    pipe, child = bench.start(_child, trial, daemon=False)
    speeds: list[Speed] = []

    def receive() -> Any:
        try:
            got = pipe.recv()
        except EOFError:  # killed: that is how a system without memory ends a process
            return None
        if isinstance(got, str):
            raise UserError(got)
        return got

    try:
        largest = receive() or 0
        with console.progress("batch sizes") as bar:
            task = bar.add_task("measuring", total=None, status="")
            while batch := next_batch(speeds, largest, memory):
                bar.update(task, advance=1, status=f"batch {batch}")
                pipe.send(batch)
                if (got := receive()) is None:
                    return _some(speeds)
                speeds.append(got)
                console.done(f"batch {batch}: {got.images_per_s:.1f} images/s")
            for i, s in enumerate(speeds):  # once more: another program may have been busy
                bar.update(task, advance=1, status=f"batch {s.batch} again")
                pipe.send(s.batch)
                if got := receive():
                    speeds[i] = max(s, got, key=lambda s: s.images_per_s)
                    console.done(f"batch {s.batch} again: {got.images_per_s:.1f} images/s")
    finally:
        pipe.close()
        child.join(2)
        child.kill()
    return _some(speeds)


def _some(speeds: Sequence[Speed]) -> tuple[Speed, ...]:
    if not speeds:
        raise UserError(f"a batch of {SMALLEST} doesn't fit in the memory: try a smaller --resolution or --alpha")
    return tuple(speeds)


def _available() -> int:
    """Bytes that training may take of this machine's memory."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = memory()
    return int(MEMORY_SHARE * free)


def smooth(losses: Sequence[float]) -> Floats:
    """`losses` averaged over their neighbours (a Hann window of a sixth of them), without shifting them."""
    window = np.hanning(2 * (len(losses) // 12) + 3)
    half = len(window) // 2
    weight = np.convolve(np.ones(len(losses)), window)[half : half + len(losses)]
    total: Floats = np.convolve(losses, window)[half : half + len(losses)]
    return total / weight


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the smoothed loss falls fastest per decade, before it rises by a tenth of what it was at first.

    Raises `UserError` where it doesn't fall by more than it scatters.
    """
    smoothed, first = smooth(losses), max(len(losses) // 3, SKIPPED)
    scatter = float(np.std(np.diff(losses[:first]))) / 2**0.5
    risen = np.flatnonzero(smoothed > np.minimum.accumulate(smoothed) + RISEN * smoothed[0])
    end = int(risen[0]) if len(risen) else len(smoothed)
    lowest = SKIPPED + int(smoothed[SKIPPED:end].argmin()) if end > SKIPPED else 0
    if lowest < SKIPPED + 2 or smoothed[:first].mean() - smoothed[lowest] < 1.5 * scatter:
        raise UserError(
            f"the loss falls at no rate from {rates[0]:.2g} to {rates[len(losses) - 1]:.2g} in {len(losses)} steps: "
            "give the test more --steps, or train with the recipe's own rate"
        )
    slopes = np.gradient(smoothed[SKIPPED : lowest + 1], np.log10(rates[SKIPPED : lowest + 1]))
    return float(f"{rates[SKIPPED + int(slopes.argmin())]:.2g}")


def gentle(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Half of the rate at which the smoothed loss has risen to FAR times its least: what a trained network bears.

    One that begins near its minimum has no steepest descent to look for. None where the loss rises at no rate.
    """
    smoothed = smooth(losses)
    least = np.minimum.accumulate(smoothed)
    risen = np.flatnonzero(smoothed > FAR * least)
    if len(risen):
        return float(f"{rates[int(risen[0])] / 2:.2g}")
    return float(f"{rates[len(losses) - 1] / 2:.2g}") if len(losses) < len(rates) else None


def try_rates(trial: Trial, steps: int) -> tuple[list[float], list[float]]:
    """Rates and losses: rates rise exponentially around the recipe's, until `steps` steps or the loss diverges."""
    data = trial.asked.open(trial.source, trial.root, trial.seed, None)
    images = sample(data, cache_side(max(trial.arch.input_size)))
    peak = trial.recipe.peak_lr
    rates = [float(r) for r in np.geomspace(BELOW * peak, ABOVE * peak, steps)]
    losses = losses_at(_at(trial), data, images, rates)
    return rates[: len(losses)], losses


def borne(data: Data, trial: Trial) -> tuple[float | None, list[float], list[float]]:
    """The rate for a trial's `init` to be fine-tuned with (see `gentle`); the rates tried for it, and their losses.

    On small images, where those of training are larger: what a rate does to weights hardly depends on them.
    """
    side = min(SMALL_SIDE, trial.arch.resolution)
    arch = trial.arch if trial.arch.resolution <= side else trial.arch.replace(resolution=side, size=None)
    few = _at(dataclasses.replace(trial, arch=arch), batch=SMALLEST)
    split = data.split("train")
    images = split.subset(np.arange(len(split))[: SMALLEST * FINE_STEPS]) if split.shards else split
    rates = [float(r) for r in np.geomspace(*FINE_RATES, FINE_STEPS)]
    losses = losses_at(few, data, images, rates)
    return gentle(rates, losses), rates[: len(losses)], losses


def losses_at(trial: Trial, data: Data, images: Split, rates: Sequence[float]) -> list[float]:
    """The loss of a step at each rate, one after another, until it diverges.

    Lightning's `Tuner.lr_find` isn't used: it gives every parameter group the same rate, seeks the steepest descent
    over the rate instead of its logarithm, which favours the smallest rates, and a loss that isn't finite loses it all.
    """
    from pytorch_lightning import Callback, LightningModule, Trainer

    peak, losses = trial.recipe.peak_lr, list[float]()

    class Rising(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            for group in trainer.optimizers[0].param_groups:
                group["lr"] = group["initial_lr"] / peak * rates[len(losses)]

        def on_train_batch_end(self, trainer: Trainer, _module: LightningModule, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))
            bar.advance(task)
            if len(losses) % TOLD == 0 or len(losses) == len(rates):
                console.done(f"learning rates: {len(losses)} of {len(rates)} steps, loss {losses[-1]:.3f}")
            trainer.should_stop = losses[-1] > DIVERGED * min(losses)

    with console.progress("steps") as bar:
        task = bar.add_task("learning rates", total=len(rates), status="")
        try:
            run_steps(trial, data, images, len(rates), Rising())
        except UserError as e:  # a loss that isn't finite ends the test, unless it hardly began
            if isinstance(e, Interrupted) or len(losses) <= 2 * SKIPPED:
                raise
    return losses
