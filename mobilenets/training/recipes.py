"""Training recipes as data, each with what a run of it took and reached. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mobilenets.arch.spec import CLASSIFIER, Arch
from mobilenets.arguments import checked
from mobilenets.errors import UserError, unknown

FEW_EPOCHS, FEW_STEPS = 3, 400  # fewer than both want a lower rate


def _doc(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@checked
@dataclass(frozen=True)
class Recipe:
    """How to train. Sizes are of the global batch, whatever the number of processes it is split over."""

    epochs: int = _doc(60, "Passes over the training images.")
    batch: int = _doc(64, "Images in a step, over all processes.")
    accumulate: int = _doc(1, "Pieces that a step's batch is computed in, for batches larger than the memory.")
    optimizer: Literal["adamw", "sgd", "rmsprop"] = _doc(
        "adamw", "adamw; sgd with Nesterov momentum 0.9; or TensorFlow's rmsprop, decay and momentum 0.9."
    )
    lr: float = _doc(2e-3, "Peak learning rate.")
    plain_lr: float = _doc(
        0.0,
        "Peak learning rate from scratch of a network with BatchNorm throughout and no shortcuts, as V1, which bears a "
        "higher one; 0 takes lr.",
    )
    lr_batch: int = _doc(0, "Batch that lr is meant for: for another, it is scaled in proportion; 0 takes lr as it is.")
    find_lr: Literal["off", "on"] = _doc(
        "off",
        "on: with --init, find the rate by a short range test of the network, unless --lr is given; lr is taken where "
        f"that finds none. For fewer than {FEW_EPOCHS} epochs and {FEW_STEPS} steps it is lowered.",
    )
    schedule: Literal["cosine", "exponential"] = _doc(
        "cosine", "After the rise: a cosine to 0, or a fall by lr_decay in each epoch."
    )
    lr_decay: float = _doc(0.98, "What the learning rate is multiplied by in each epoch of an exponential schedule.")
    weight_decay: float = _doc(0.02, "Decay of convolution and classifier weights; none on depthwise, norms, biases.")
    warmup: float = _doc(0.05, "Share of the steps in which the learning rate rises; then it falls on a cosine to 0.")
    label_smoothing: float = _doc(0.1, "Probability spread over the wrong classes in the targets.")
    loss: Literal["cross-entropy", "bootstrap", "symmetric", "co-teaching"] = _doc(
        "cross-entropy",
        "Of labels of which many are wrong, one of the others may learn more: bootstrap (targets are partly what the "
        "network says itself), symmetric cross-entropy, co-teaching (two networks, each of which chooses what the "
        "other learns). With --noisy, of the first stage.",
    )
    noise: float = _doc(0.2, "Share of the labels that are wrong, about, by which bootstrap and co-teaching go.")
    class_weights: Literal["none", "balanced"] = _doc(
        "none", "balanced: every class counts the same in the loss, and in choosing the best epoch, however few images."
    )
    mixup: float = _doc(0.1, "Beta parameter of mixup; 0 is off.")
    mosaic: float = _doc(0.0, "Share of a detector's batches that are mosaics of four images each; 0 is off.")
    cutmix: float = _doc(0.0, "Beta parameter of CutMix; 0 is off. With mixup too, each batch has one of them.")
    augment: Literal["auto", "photo", "shift", "glyph", "none"] = _doc(
        "auto",
        "photo: random crops, mirror, colour. shift: mirror and an eighth's shift, for small images. glyph: small "
        "shifts and turns, no mirror. auto: photo or glyph, by the data.",
    )
    min_scale: float = _doc(0.35, "Smallest share of a photo's area that a random crop keeps.")
    randaugment: int = _doc(0, "Magnitude, up to 30, of two random operations of RandAugment on each image; 0 is off.")
    erasing: float = _doc(0.0, "Probability of blanking a random rectangle of a photo or a shifted image.")
    progressive: float = _doc(
        1.0, "Resolution of the first epochs as a share of the network's; it grows over the first 60% of the epochs."
    )
    ema: float = _doc(0.02, "Weight averaging: its horizon as a share of all steps; 0 is off.")
    dropout: float = _doc(0.0, "Dropout before the classifier.")
    frozen_epochs: int = _doc(0, "First epochs that train the classifier alone.")
    frozen_passes: int = _doc(30, "Passes of the classifier over the features of each frozen epoch, computed once.")
    body_lr: float = _doc(1.0, "Learning rate of everything but the classifier, as a share of lr.")
    frozen_rows: float = _doc(
        0.0, "Share of the network's rows, the first, that stay as they are: half of the time, for little to learn."
    )
    norms: Literal["batch", "kept"] = _doc(
        "batch",
        "BatchNorm's statistics in training: the batch's, or those that the network began with, kept, as where a batch "
        "is small or the last maps are of few positions.",
    )
    layer_decay: float = _doc(
        1.0, "Learning rate of each row of the network as a share of that of the row after it; the classifier has lr."
    )
    probe: Literal["off", "on"] = _doc(
        "off",
        "on: with --init and other classes, the classifier begins as the best linear one of what the network sees "
        "already (cross-validated logistic regression), and is kept if no epoch beats it.",
    )
    clip: float = _doc(1.0, "Largest norm of the gradient; 0 is off.")
    patience: int = _doc(0, "Epochs without a better validation score after which training stops; 0 is never.")
    training_precision: Literal["auto", "bf16", "float32"] = _doc(
        "auto", "Numbers in training; auto takes bf16 where the processor has instructions for it."
    )
    workers: int = _doc(-1, "Processes that prepare images; -1 decides by the cores.")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, not {getattr(self, name)}")
        positive = ("weight_decay", "mixup", "cutmix", "clip", "frozen_epochs", "frozen_passes", "lr_batch", "patience")
        for name in positive:
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.randaugment <= 30:
            raise UserError(f"randaugment must be from 0 to 30, not {self.randaugment}")
        if self.batch % self.accumulate:
            raise UserError(f"a batch of {self.batch} can't be split into {self.accumulate} equal pieces")
        if not 0 <= self.mosaic <= 1:
            raise UserError(f"mosaic must be from 0 to 1, not {self.mosaic}")
        for name in ("warmup", "label_smoothing", "erasing", "ema", "dropout", "frozen_rows", "noise"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be in [0, 1), not {getattr(self, name)}")
        if not self.lr > 0 or not self.body_lr > 0 or self.plain_lr < 0:
            raise UserError("lr and body_lr must be above 0, and plain_lr not below")
        for name in ("min_scale", "progressive", "lr_decay", "layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")

    @property
    def peak_lr(self) -> float:
        return self.lr * self.batch / self.lr_batch if self.lr_batch else self.lr

    def from_scratch(self, arch: Arch) -> Recipe:
        """This recipe for a network that begins with nothing: at the rate that one of its kind bears."""
        shortcuts = any(op.kind == "add" for op in arch.ops)
        plain = not shortcuts and all(op.norm for op in arch.ops if op.is_layer and op.name != CLASSIFIER)
        return dataclasses.replace(self, lr=self.plain_lr, plain_lr=0.0) if self.plain_lr and plain else self

    def for_few_epochs(self, images: int) -> Recipe:
        """This recipe for a network that has learned, at a lower rate where it has few epochs of few steps.

        At a rate that such a network bears it loses some of what it knew in the first epoch, which only later ones win
        back. Not where the rate was given.
        """
        steps = self.epochs * images / self.batch
        share = min(1.0, max(self.epochs / FEW_EPOCHS, steps / FEW_STEPS))
        return self if self.find_lr == "off" else dataclasses.replace(self, lr=self.lr * share**2)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


# V2 paper, section 6.1: RMSprop, decay and momentum 0.9, rate 0.045 x 0.98 an epoch, weight decay 4e-5, batch 96.
V2_PAPER = Recipe(
    epochs=200,
    batch=96,
    optimizer="rmsprop",
    lr=0.045,
    lr_batch=96,
    schedule="exponential",
    lr_decay=0.98,
    weight_decay=4e-5,
    warmup=0.0,
    label_smoothing=0.0,
    mixup=0.0,
    min_scale=0.08,
    ema=0.0,
    clip=0.0,
    dropout=0.2,
)
FINETUNE = Recipe(
    epochs=20,
    lr=3e-3,
    find_lr="on",
    probe="on",
    frozen_rows=0.25,
    layer_decay=0.8,
    mixup=0.0,
    weight_decay=0.01,
    min_scale=0.5,
    ema=0.05,
    patience=6,
)
CLEAN = "noisy-then-clean"
CO_TEACHING = "co-teaching"
# As finetune, but for what is new: half of a detector's layers. Its losses are sums over many anchors, and so are
# their gradients. SGD as SSD's papers have it needs thousands of steps; here there are hundreds.
DETECT = Recipe(
    epochs=60,
    batch=16,
    lr=2e-3,
    frozen_rows=0.25,
    layer_decay=0.85,
    warmup=0.1,
    label_smoothing=0.0,
    mixup=0.0,
    clip=10.0,
    patience=15,
)
RECIPES: dict[str, Recipe] = {
    "modern": Recipe(plain_lr=8e-3, patience=20),
    # V1 paper, sections 3.2 and 4: RMSprop, no label smoothing, light augmentation, no decay on depthwise filters. It
    # doesn't print rates: these are V2's.
    "v1-paper": dataclasses.replace(V2_PAPER, min_scale=0.5, dropout=0.0),
    "v2-paper": V2_PAPER,
    # V3 paper, section 6.1: RMSprop 0.9, lr 0.1 for batches of 4096, x 0.99 every 3 epochs, decay 1e-5, dropout 0.2 (it
    # prints 0.8, the share that is kept), averaged weights.
    "v3-paper": dataclasses.replace(
        V2_PAPER, batch=128, lr=0.1, lr_batch=4096, lr_decay=0.99 ** (1 / 3), weight_decay=1e-5, ema=0.02
    ),
    "cifar": Recipe(
        epochs=55,
        batch=128,
        optimizer="sgd",
        lr=0.15,
        weight_decay=5e-4,
        warmup=0.2,
        mixup=0.0,
        augment="shift",
        erasing=0.25,
        progressive=0.5,
        clip=0.0,
    ),
    "finetune": FINETUNE,
    # V1 paper, section 4.3, after Krause and others (2016): first the many noisy labels, by modern or, with --init,
    # finetune; then the few clean ones, by this. All of the network goes on learning: it began with wrong labels.
    CLEAN: dataclasses.replace(FINETUNE, frozen_rows=0.0),
    "detect": DETECT,
    # Its last maps, of a few positions, have statistics already: a batch's own are mostly chance. Many small steps.
    "redetect": dataclasses.replace(DETECT, epochs=20, batch=8, lr=5e-4, norms="kept"),
    # An image says more here, by 64 of its proposals, and costs more.
    "two-stage": dataclasses.replace(DETECT, epochs=20, batch=4, lr=4e-4, patience=8),
}


@dataclass(frozen=True)
class Tried:
    """What a recipe is for, and a run of it: the command, its data, on what, how long, and the score to expect."""

    purpose: str
    command: str
    data: str
    hardware: str
    duration: str
    score: str
    source: str


CORES = "2 cores of an AMD EPYC with bf16"
IMAGENET = "ImageNet, 1.28 M images"
PAPERS = "not run here"
TRIED: dict[str, Tried] = {
    "modern": Tried(
        "from scratch, a few thousand images, one machine",
        "mobilenets train flowers.zip --arch v1 --alpha 0.25 --epochs 30 --out runs/flowers",
        "5 kinds of flowers, 2,000 images", CORES, "7 min", "73.0% top-1", "results/finetune",
    ),
    "finetune": Tried(
        "from pretrained weights: the best linear classifier of what they see, then everything but the first rows",
        "mobilenets train flowers.zip --init mobilenet_v1_0.25_224.h5 --epochs 12 --out runs/flowers",
        "5 kinds of flowers, 2,000 images", "2 cores of an AMD EPYC with AVX2", "21 min beside other jobs",
        "88.2% top-1", "results/finetune",
    ),
    CLEAN: Tried(
        "few clean labels and many noisy ones, as of a web search: first the noisy, then the clean",
        "mobilenets train breeds --noisy web --recipe noisy-then-clean --init mobilenet_v1_0.25_224.h5 "
        "--resolution 128 --val .2 --out runs/breeds",
        "10 breeds of dog: 600 photos of which half are mislabelled, 200 clean",
        "a core of an AMD EPYC with AVX2, beside other jobs", "6 min",
        "44.3% top-1 of 300 test photos, which ImageNet's weights have seen", "results",
    ),
    "detect": Tried(
        "detectors, from pretrained weights of their body: everything but the first rows",
        "mobilenets train penn_fudan.zip --task detect --recipe detect --init mobilenet_v2_1.0_224_quant.tflite "
        "--anchors auto --time 16m --out runs/people",
        "Penn-Fudan, 136 photos of people", "a core of an AMD EPYC with AVX2, beside other jobs", "16 min, 9 epochs",
        "84.0% AP50, 35.6% AP of 34 photos", "results/detect",
    ),
    "redetect": Tried(
        "detectors, from another whose labels they share or not: BatchNorm's statistics stay",
        "mobilenets train penn_fudan.zip --task detect --recipe redetect --init ssd --lr 1e-4 "
        "--epochs 2 --out runs/people",
        "Penn-Fudan, 136 photos of people", "a core of an AMD EPYC with AVX2, beside other jobs",
        "4 min, beside five others", "58.3% AP of 34 photos, and 59.7% before: what it began with is given back",
        "results/detect",
    ),
    "two-stage": Tried(
        "detectors of two stages, from pretrained weights of their body",
        "mobilenets train penn_fudan.zip --task detect --detector mask-rcnn --recipe two-stage --init "
        "mobilenet_v2_1.0_224_quant.tflite --time 36m --out runs/people",
        "Penn-Fudan, 136 photos of people", "a core of an AMD EPYC with AVX2, beside other jobs", "39 min, 9 epochs",
        "88.6% AP50 of boxes, 84.0% of masks, of 34 photos", "results/detect",
    ),
    "cifar": Tried(
        "images of 32 pixels from scratch, with V1's or V2's strides for them",
        "mobilenets train cifar10.zip --arch v2-cifar --recipe cifar --out runs/cifar10-v2",
        "CIFAR-10, 45,000 images", CORES, "3 h 11 min beside other jobs",
        "93.2% top-1 of test; 93.5% after 32 more epochs with CutMix", "results/cifar10-v2",
    ),
    "v1-paper": Tried(
        "V1 as its paper trained it",
        "mobilenets train imagenet/ --arch v1 --recipe v1-paper --out runs/v1",
        IMAGENET, "not printed", PAPERS, "70.6% top-1", "V1 table 4",
    ),
    "v2-paper": Tried(
        "V2 as its paper trained it",
        "mobilenets train imagenet/ --arch v2 --recipe v2-paper --out runs/v2",
        IMAGENET, "16 GPUs, asynchronously", PAPERS, "72.0% top-1", "V2 section 6.1, table 4",
    ),
    "v3-paper": Tried(
        "V3 as its paper trained it",
        "mobilenets train imagenet/ --arch v3-large --recipe v3-paper --batch 4096 --out runs/v3",
        IMAGENET, "4x4 TPU pod", PAPERS, "75.2% top-1", "V3 section 6.1, table 3",
    ),
}  # fmt: skip


if TYPE_CHECKING:

    class Overrides(Recipe):
        """Recipe fields to change; None keeps the recipe's. From Python: `Overrides(epochs=3)`."""

else:  # every field of Recipe, optional: what a command line changes
    Overrides = checked(
        dataclasses.make_dataclass(
            "Overrides",
            [
                (f.name, f"{f.type} | None", field(default=None, metadata=f.metadata))
                for f in dataclasses.fields(Recipe)
            ],
            namespace={"__module__": __name__, "__doc__": "Recipe fields to change; None keeps the recipe's."},
            frozen=True,
        )
    )


def recipe(name: str, overrides: Overrides | None = None) -> Recipe:
    """The recipe called `name` with `overrides` (an `Overrides`) applied. Raises `UserError`."""
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    changes = {} if overrides is None else {k: v for k, v in vars(overrides).items() if v is not None}
    if "lr" in changes:
        changes.setdefault("find_lr", "off")
        changes.setdefault("plain_lr", 0.0)
    return dataclasses.replace(RECIPES[name], **changes)


def stages(
    name: str | None,
    usual: str,
    overrides: Overrides | None,
    noisy: str | None,
    noisy_epochs: int | None,
    pretrained: bool,
) -> tuple[Recipe | None, Recipe]:
    """The recipes of a training on noisy labels, where there are any, and of that on clean ones, `name` or the usual.

    `overrides` are of both, but for the epochs, which are the second's, and the loss and its noise, the first's. The
    first is modern or, from pretrained weights, finetune. Raises `UserError`.
    """
    if noisy_epochs is not None and noisy_epochs < 1:
        raise UserError(f"noisy_epochs must be 1 or more, not {noisy_epochs}")
    if noisy is None:
        if name == CLEAN or noisy_epochs is not None:
            raise UserError(f"{CLEAN} begins with noisy labels: --noisy takes a folder, zip or table of images")
        return None, recipe(name or usual, overrides)
    usual = "finetune" if pretrained else "modern"
    first = dataclasses.replace(recipe(usual, overrides), epochs=noisy_epochs or RECIPES[usual].epochs)
    return first, dataclasses.replace(recipe(name or CLEAN, overrides), loss=Recipe.loss, noise=Recipe.noise)


@checked
@dataclass(frozen=True)
class Distillation:
    """How a student learns from its teacher (Hinton and others 2015); `objectives.Distilled` says what the parts are.

    Raises `UserError` for numbers that can't be.
    """

    temperature: float = _doc(4.0, "Softens the teacher's probabilities and the student's, so that small ones count.")
    labels: float | None = _doc(
        None, "Share of the loss that the true classes have; by default 0.1, and 0 with --unlabelled."
    )
    embedding: float = _doc(
        0.0, "Weight of the squared difference to the teacher's embedding (what its classifier reads); 0 is off."
    )
    views: int | None = _doc(
        None,
        "Random views of each image that the teacher is asked about, once; they come round again. 0: it is asked about "
        "every image in every step. By default 16, or 0 where the answers would take over 2 GiB.",
    )

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, not {self.temperature}")
        if self.labels is not None and not 0 <= self.labels <= 1:
            raise UserError(f"labels is a share of the loss, from 0 to 1, not {self.labels}")
        if self.embedding < 0:
            raise UserError(f"embedding must be 0 or more, not {self.embedding}")
        if self.views is not None and self.views < 0:
            raise UserError(f"views must be 0 or more, not {self.views}")

    @property
    def share(self) -> float:
        """`labels`, or what they have where nothing is said."""
        return 0.1 if self.labels is None else self.labels
