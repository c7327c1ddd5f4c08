"""Quantization-aware training: a folded float network learns with every rounding of its int8 version in place.

What is trained computes what `simulate` computes of the int8 bundle that comes out, value for value. Gradients pass a
rounding as if it weren't there. Weights have the scale of their channel's largest, as `quantize.pack` gives them; the
ranges of activations are learned from the calibrated ones on: a value that is clipped moves the end that clips it, the
others both ends, by their rounding errors (LSQ: Esser and others, arXiv 1902.08153).

The float network is the teacher: int8 is to answer as it does. So no label is needed, and none is learned by heart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mobilenets import console, files, tasks
from mobilenets.arch.operations import Op
from mobilenets.arch.rounding import with_rounding
from mobilenets.compression.calibrate import BATCH
from mobilenets.compression.quantize import Measured
from mobilenets.data import checks
from mobilenets.data.dataset import Data, cache_side
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.model.encodings import TINY, affine, input_range
from mobilenets.model.images import Pixels, Preprocess
from mobilenets.model.module import Taps, Walker
from mobilenets.model.reference import Layer, RoundedNetwork, float_model
from mobilenets.tasks.task import Task
from mobilenets.training import loop
from mobilenets.training.distributed import world
from mobilenets.training.lock import LOCK, alone
from mobilenets.training.recipes import Recipe
from mobilenets.training.zeros import keep_zeros, sparse

# Whatever is trained is measured in a unit of its own (see `QatLayer`), so one learning rate suits every network.
RECIPE = Recipe(
    epochs=3,
    lr=3e-5,
    weight_decay=0.0,
    warmup=0.1,
    mixup=0.0,
    label_smoothing=0.0,
    min_scale=0.5,
    ema=0.0,
    clip=0.0,
    training_precision="float32",  # 16-bit floats have no more digits than int8: they would round everything again
)
TEMPERATURE = 4.0  # of the teacher's probabilities
CHECKED = 512  # held-out images on which int8 is compared with float, before and after
STARTED = "started.json"


class _StraightThrough(torch.autograd.Function):
    """`rounded` in the place of `value`; the gradient goes to `value`."""

    @staticmethod
    def forward(_ctx: Any, _value: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Round(torch.autograd.Function):
    """`x` at the 256 values that cover low to high."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
        step, zero = affine(low.item(), high.item())
        scale, point = float(step), int(zero)
        ctx.ends = -point * scale, (255 - point) * scale
        y = torch.fake_quantize_per_tensor_affine(x, scale, point, 0, 255)
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,), (x, y), (low, high) = grads, ctx.saved_tensors, ctx.ends
        below, above = x < low, x > high
        passed = grad.masked_fill(below | above, 0)
        # y - x is the same share of a step whatever the range, and a step is 1/255 of it.
        rounding = (passed * (y - x)).sum() / (high - low)
        return passed, (grad * below).sum() - rounding, (grad * above).sum() + rounding


class LearnedRange(nn.Module):
    """The range of an activation: rounds to it. Its ends are learned as shares of what they are at first: 0 stays 0."""

    def __init__(self, low: float, high: float, learned: bool = True) -> None:
        super().__init__()
        self.register_buffer("start", torch.tensor([low, high], dtype=torch.float64))
        self.share = nn.Parameter(torch.ones(2), requires_grad=learned)

    start: Tensor

    @property
    def ends(self) -> tuple[float, float]:
        low, high = (self.start * self.share).tolist()
        return low, high

    @property
    def scale(self) -> float:
        return float(affine(*self.ends)[0])

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, _Round.apply(x, *(self.start * self.share)))


class QatLayer(nn.Module):
    """A layer with int8 weights and int32 biases, before its output is rounded.

    A channel's weights are learned as shares of their largest at first, biases as shares of the output's range: the
    channels of a folded network differ a hundredfold, and steps of one size would be lost on some and ruin others.
    """

    def __init__(self, layer: Layer, source: LearnedRange, out: LearnedRange, per_layer: bool) -> None:
        super().__init__()
        self.layer, self.per_layer = layer, per_layer
        self.source = (source,)  # a tuple: it isn't this module's to learn
        self.register_buffer("unit", _power_of_2(layer.weight.abs().amax((1, 2, 3), keepdim=True)))
        self.register_buffer("bias_unit", _power_of_2((out.start[1] - out.start[0]).float()))
        self.weight, self.bias = nn.Parameter(layer.weight / self.unit), nn.Parameter(layer.bias / self.bias_unit)

    unit: Tensor
    bias_unit: Tensor

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight [cout, cin/groups, K, K] and bias [cout] as they are learned, not rounded."""
        return self.weight * self.unit, self.bias * self.bias_unit

    def rounded(self) -> tuple[Tensor, Tensor]:
        """The same as an int8 bundle holds them; in float64 until they are done, as `quantize.pack` does it."""
        weight, bias = self.folded()
        with torch.no_grad():
            w, b, source = weight.double(), bias.double(), self.source[0].scale
            step = torch.maximum(w.abs().amax((1, 2, 3)) / 127, b.abs() / (source * 2**30)).clamp(min=TINY)
            step = (step.amax().expand_as(step) if self.per_layer else step).float().double()
            each = step[:, None, None, None]
            w = (w / each).round_().clamp_(-127, 127).mul_(each)
            b = (b / (source * step)).round_().mul_(step).mul_(source)
        through: Any = _StraightThrough.apply
        return through(weight, w.float()), through(bias, b.float())

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layer.act(self.layer.sums(x, *self.rounded())))


def _power_of_2(x: Tensor) -> Tensor:
    """The one from `x` to twice that: what is divided by it and multiplied again is what it was."""
    return torch.exp2(x.clamp(min=TINY).log2().ceil())


class FakeQuantized(RoundedNetwork):
    """What `reference.SimulatedInt8` is of `start.bundle(float_ops)`, ready to be trained; float operations are not."""

    def __init__(self, start: Measured, float_ops: Collection[str] = ()) -> None:
        card = start.card
        weights = {n: (start.folded if n in float_ops else start.corrected)[n] for n in start.folded}
        super().__init__(card.arch, with_rounding(card.graph, float_ops), weights, start.constants)
        self.start = start
        source, *others = card.graph.activations
        images = LearnedRange(*input_range(card.preprocess), learned=False)
        self.ranges = nn.ModuleList([images, *(LearnedRange(*start.ranges[name]) for name in others)])
        self.range_at = {name: i for i, name in enumerate((source, *others))}
        for op in card.graph.layers:
            if op.name not in float_ops:
                layer = cast(Layer, self.of(op))
                trained = QatLayer(layer, self.range(op.inputs[0]), self.range(op.name), start.per_layer)
                if sparse(card):
                    keep_zeros([trained.weight])
                self.layers[self.at[op.name]] = trained

    def range(self, activation: str) -> LearnedRange:
        return cast(LearnedRange, self.ranges[self.range_at[activation]])

    def round(self, x: Tensor, activation: str) -> Tensor:
        return cast(Tensor, self.range(activation)(x))

    def run(self, values: Mapping[str, Tensor], taps: Collection[str], ops: Sequence[Op] | None = None) -> Taps:
        device = next(iter(values.values())).device.type
        with torch.autocast(device, enabled=False):  # whose 16-bit floats would round everything again
            return super().run({name: x.float() for name, x in values.items()}, taps, ops)

    def measured(self) -> Measured:
        """What was learned, in the place of what it started from."""
        layers = ((op.name, self.of(op)) for op in self.start.card.graph.layers)
        trained = {name: m.folded() for name, m in layers if isinstance(m, QatLayer)}
        weights = {n: (w.detach().cpu().numpy(), b.detach().cpu().numpy()) for n, (w, b) in trained.items()}
        ranges = {name: self.range(name).ends for name in self.start.card.graph.activations[1:]}
        return dataclasses.replace(self.start, corrected={**self.start.corrected, **weights}, ranges=ranges)


class TeacherLoss(nn.Module):
    """The objective: what `teacher` says of a batch's images is what the network is to say, as `task` compares it."""

    def __init__(self, teacher: Callable[[Tensor], Taps], task: Task) -> None:
        super().__init__()
        self.teacher, self.task = teacher, task

    def targets(self, batch: Sequence[Any]) -> Taps:
        return self.teacher(batch[0])

    def forward(self, outputs: Mapping[str, Tensor], targets: Taps) -> Tensor:
        return self.task.teach(targets, outputs, temperature=TEMPERATURE)

    def mixes(self) -> tuple[()]:
        return ()


def check_trainable(card: Card) -> None:
    """Raises `UserError` for a network that can't be trained to answer as another does."""
    task = tasks.of(card)
    if task.primary is None:
        raise UserError(f"the task {task.name} has no score, which quantization-aware training needs: leave out --qat")
    if not task.taps:
        raise UserError(
            "a detector in two stages isn't trained in int8: float and int8 make other proposals, and what they say of "
            "these can't be compared; leave out --qat"
        )


@contextlib.contextmanager
def train_int8(
    source: Bundle, start: Measured, data: Data, epochs: int, float_ops: Collection[str], out: Path
) -> Iterator[Measured]:
    """`learn` for so many epochs, in a folder beside the bundle `out` that is to be, in which no other process trains.

    The block saves what was learned; after it the folder goes. Where it fails, the next begins with what was trained.
    """
    recipe, folder = dataclasses.replace(RECIPE, epochs=epochs), out.with_name(f"{out.name}.qat")
    _started(folder)  # before anything is written to what may be someone else's
    with alone(folder) if world()[1] == 0 else contextlib.nullcontext():
        measured = learn(source, start, data, folder, float_ops=float_ops, recipe=recipe)
        try:
            yield measured
        except UserError:
            console.note(
                f"what was trained is kept in {folder}: the same command, or with --mixed or another --max-drop, goes "
                "on from there"
            )
            raise
    shutil.rmtree(folder, ignore_errors=True)


def learn(
    source: Bundle,
    start: Measured,
    data: Data,
    folder: Path,
    *,
    float_ops: Collection[str] = (),
    recipe: Recipe = RECIPE,
    seed: int = 0,
) -> Measured:
    """Train `start`, made of the float bundle `source`, to answer as `source` does of the training images of `data`.

    `folder` holds the checkpoints of the training: called again with the same arguments, it goes on from the last one,
    to the same numbers. Where int8 comes no nearer to float on held-out images, `start` comes back. Raises `UserError`
    (a full disk, a worker process that died), `Interrupted` on Ctrl-C.
    """
    card = start.card
    check_trainable(source.card)
    arguments = {
        "start": _digest(start), "teacher": source.digest, "data": data.describe(), "float_ops": sorted(float_ops),
        "recipe": recipe.to_json(), "seed": seed,
    }  # fmt: skip
    _prepare(folder, arguments)
    found = checks.scan(data, side=cache_side(max(source.card.preprocess.input_size)))
    if found.damaged:
        console.note(f"{console.many(len(found.damaged), 'damaged image')} left out: {'; '.join(found.damaged[:5])}")
    torch.manual_seed(seed)
    net = FakeQuantized(start, float_ops)
    setup = taught(source, net, net.start.card.preprocess, data, recipe, seed)
    resume = (folder / loop.LAST).exists()
    with loop.suppress_warnings():
        loop.train(
            setup, data.split("val"), folder, resume=resume, where=folder, resume_hint="the same command goes on"
        )
    held_out = data.sample("val", CHECKED, card.preprocess).pixels
    before, after = (distance(n, source, held_out) for n in (FakeQuantized(start, float_ops), net))
    console.note(f"int8's distance from float on held-out images is {after:.4f}, {before:.4f} before training")
    if after >= before:
        console.note("training brought it no nearer: what it started from is kept (more images or epochs may help)")
    how = {k: getattr(recipe, k) for k in ("epochs", "batch", "lr")}
    how |= {"distance_before": round(before, 6), "distance_after": round(after, 6)}
    learned = net.measured() if after < before else start
    return dataclasses.replace(learned, card=card.replace(recipe={**card.recipe, "qat": how}))


def distance(net: FakeQuantized, source: Bundle, images: Pixels) -> float:
    """How far the answers of `net` are from the float network's, as their task compares them; of a classifier, in nats.

    The mean over `images`, uint8 [N, H, W, 3].
    """
    task, teacher, total = tasks.of(source.card), teacher_of(source), 0.0
    net = net.cpu().eval()
    for i in range(0, len(images), BATCH):
        some = images[i : i + BATCH]
        x = torch.from_numpy(net.start.card.preprocess.normalize(some))
        with torch.no_grad():
            ours = net.run({net.graph.source: x}, task.taps)
            true = teacher(torch.from_numpy(some).permute(0, 3, 1, 2))
            total += len(some) * float(task.teach(true, ours))
    return total / max(len(images), 1)


def _digest(start: Measured) -> str:
    said = hashlib.sha256(json.dumps([start.ranges, start.per_layer]).encode())
    for weights in (start.folded, start.corrected):
        for name, both in weights.items():
            said.update(b"".join([name.encode(), *(np.ascontiguousarray(t).tobytes() for t in both)]))
    return said.hexdigest()


def _started(folder: Path) -> dict[str, Any] | None:
    """What the training in `folder` was started with; None where there is none, and nothing else either."""
    path = folder / STARTED
    if path.exists():
        return files.read_json(path, (), "a training")
    if folder.exists() and (not folder.is_dir() or any(p.name != LOCK for p in folder.iterdir())):
        raise UserError(f"{folder} is in the way: remove it, or choose another --out")
    return None


def _prepare(folder: Path, started: dict[str, Any]) -> None:
    """A `folder` without checkpoints, or that of the same training, interrupted."""
    before = _started(folder)
    if before is not None and before != json.loads(json.dumps(started)):
        console.note(f"{folder} holds a training with other arguments: it starts from the beginning")
        (folder / loop.LAST).unlink(missing_ok=True)
    files.write_json(folder / STARTED, started)


def taught(
    source: Bundle, net: Walker, preprocess: Preprocess, data: Data, recipe: Recipe, seed: int,
    teacher: Bundle | None = None,
) -> loop.Setup:  # fmt: skip
    """What trains `net` to say of training images of `data` what a float network says: `source`, or its `teacher`."""
    from mobilenets.training import loader
    from mobilenets.training.learner import Learner

    task = tasks.of(source.card)
    before = source.card.recipe.get("augment", "auto")
    kind = data.kind if before == "auto" else before
    side = cache_side(max(preprocess.input_size))
    transform = task.transforms(preprocess, recipe, kind)
    images = loader.train_images(data.split("train"), transform, seed, side, task.ragged)
    objective = TeacherLoss(teacher_of(teacher or source), task)
    learner = Learner(net, preprocess, recipe, seed, task, source.card.config, objective)
    return loop.Setup(learner, images, preprocess, "32-true")


def teacher_of(source: Bundle) -> Callable[[Tensor], Taps]:
    """What the float network's taps are of uint8 images [N, 3, H, W]. In 16-bit floats it would err as int8 does."""
    net = float_model(source).requires_grad_(False)
    taps, p = tasks.of(source.card).taps, source.card.preprocess

    def ask(images: Tensor) -> Taps:
        net.to(images.device)
        mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (p.mean, p.std))
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return net.run({net.graph.source: (images.float() - mean) / std}, taps)

    return ask
