"""What training does to images before it shows them. Each step draws what it needs, and moves targets with the image.

The draws are torchvision's transforms' own, and so is what is done, by its functions; but its transforms look through
every sample for what they could change, which takes ten times as long as changing an image of 32 pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import TVTensor

from mobilenets.model.images import GREY, Preprocess

_BILINEAR = v2.InterpolationMode.BILINEAR
Change = Callable[[Any], Any]
Step = Callable[[int, int], Change | None]  # (height, width) of what is there -> what is done to it, if anything
TRIES = 10  # for a rectangle that fits
BLANK_RATIO = 10 / 3  # of a blank's sides, at most


class Augmentation:
    """RGB image (Pillow) of any size and its target -> uint8 [3, R, R], target on it. Random, by torch's generator.

    `moves` change where things are, `looks` the image alone. Boxes, masks and points that are torchvision's
    `tv_tensors` go where their image's pixels go; a class stays what it is. On Pillow images: small tensor operations
    wait on threads. `blank`: the least and the largest share of the image that is blanked, with probability `erasing`.
    """

    def __init__(
        self,
        moves: Sequence[Step],
        looks: Sequence[Change] = (),
        erasing: float = 0.0,
        blank: tuple[float, float] = (0.02, 0.33),
    ) -> None:
        self.moves, self.looks, self.erasing, self.blank = moves, looks, erasing, blank

    def __repr__(self) -> str:
        steps = [said(step) for step in (*self.moves, *self.looks)]
        return f"Augmentation({', '.join(steps)}, erasing={self.erasing}, blank={self.blank})"

    def __call__(self, image: Image.Image, target: Any) -> tuple[Tensor, Any]:
        moving = not isinstance(target, int) and any(isinstance(part, TVTensor) for part in tree_leaves(target))
        for move in self.moves:
            if change := move(image.height, image.width):
                image = change(image)
                if moving:
                    target = tree_map(lambda part, do=change: do(part) if isinstance(part, TVTensor) else part, target)
        for look in self.looks:
            image = look(image)
        pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
        if self.erasing and _uniform()[0] < self.erasing:
            _blank(pixels, self.blank)
        return pixels, target


class Shifting(Augmentation):
    """To `size`, (rows, columns), whatever the image's sides; then a shift by up to `margin` pixels, a mirror, a blank.

    So little is done to an image that many of one size are varied at once: in a fifth of the time, or on a GPU.
    """

    numbers = 4 + 4 * TRIES  # that are drawn for each image of a batch

    def __init__(self, size: tuple[int, int], margin: int, looks: Sequence[Change], erasing: float) -> None:
        moves: list[Step] = [functools.partial(_resize, size), functools.partial(_shift, margin), _mirror]
        super().__init__(moves, looks, erasing, (0.05, 0.25))
        self.size, self.margin = size, margin

    def fit(self, image: Image.Image) -> npt.NDArray[np.int32]:
        """An image as `batch` takes it: [rows, columns], of which a number's bytes are red, green, blue, 0."""
        change = _resize(self.size, image.height, image.width)
        pixels = np.asarray(change(image) if change else image)
        return np.pad(pixels, ((0, 0), (0, 0), (0, 1))).view(np.int32)[..., 0]

    def batch(self, fitted: Tensor, index: npt.NDArray[np.int64], drawn: npt.NDArray[np.float64]) -> Tensor:
        """Those images of `fitted`, [M, rows, columns], varied on its device: uint8 [N, 3, rows, columns].

        As `numbers` from [0, 1) say that are drawn for each, [N, numbers].
        """
        rows, columns = self.size
        down, right = np.floor(drawn[:, :2].T * (2 * self.margin + 1)) - self.margin
        blanks = _rectangles(rows, columns, self.blank, drawn[:, 4:]) * (drawn[:, 3:4] < self.erasing)
        table = np.column_stack([index, down, right, drawn[:, 2] < 0.5, blanks]).astype(np.int64)
        each = torch.from_numpy(table).to(fitted.device).T[..., None]
        image, down, right, mirrored, top, left, height, width = each
        y, x = (torch.arange(side, device=fitted.device) for side in self.size)
        at_y, at_x = y + down, torch.where(mirrored > 0, columns - 1 - x, x) + right
        shown = fitted[image[..., None], at_y.clamp(0, rows - 1)[:, :, None], at_x.clamp(0, columns - 1)[:, None]]
        inside = ((at_y >= 0) & (at_y < rows))[:, :, None] & ((at_x >= 0) & (at_x < columns))[:, None]
        blank = ((y >= top) & (y < top + height))[:, :, None] & ((x >= left) & (x < left + width))[:, None]
        packed = torch.where(blank, GREY * 0x010101, shown * inside)
        return packed.view(torch.uint8).view(*packed.shape, 4)[..., :3].permute(0, 3, 1, 2)


def augmentation(kind: str, preprocess: Preprocess, recipe: Any) -> Augmentation:
    """RGB image of any size -> uint8 [3, R, R], random, as the recipe's `augment` (kind) says."""
    size = preprocess.input_size
    random: list[Change] = [v2.RandAugment(magnitude=recipe.randaugment)] if recipe.randaugment else []
    if kind == "photo":
        crop = functools.partial(_random_resized_crop, size, (recipe.min_scale, 1.0))
        looks = random or [functools.partial(_jitter, (0.3, 0.3, 0.3))]
        return Augmentation([crop, _mirror], looks, recipe.erasing)
    if kind == "shift":
        return Shifting(size, min(size) // 8, random, recipe.erasing)
    whole = [functools.partial(_resize, preprocess.short_side), functools.partial(_centre, size)]
    if kind == "glyph":
        turn = functools.partial(_affine, 10.0, (0.1, 0.1), (0.85, 1.15), 8.0, 0)
        return Augmentation([*whole, turn], random)
    return Augmentation(whole)


def aligned(preprocess: Preprocess, recipe: Any) -> Augmentation:
    """RGB image of an aligned face -> uint8 [3, H, W]: a mirror, small moves that alignment makes too, light."""
    turn = functools.partial(_affine, 4.0, (0.03, 0.03), (0.94, 1.06), 0.0, GREY)
    moves: list[Step] = [_mirror, turn, functools.partial(_resize, preprocess.input_size)]
    return Augmentation(moves, [functools.partial(_jitter, (0.3, 0.3, 0.2))], recipe.erasing, (0.02, 0.1))


def said(step: Any) -> str:
    """A step by its name and settings: what a teacher's kept answers to augmented images are known by."""
    if isinstance(step, functools.partial):
        return f"{step.func.__name__}{step.args}"
    return getattr(step, "__name__", repr(step))


def _uniform(count: int = 1) -> list[float]:
    """Numbers from [0, 1)."""
    return torch.rand(count).tolist()


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _mirror(_height: int, _width: int) -> Change | None:
    return F.horizontal_flip if _uniform()[0] < 0.5 else None


def _resize(size: int | tuple[int, int], height: int, width: int) -> Change | None:
    """To `size`, (height, width), or a short side of that."""
    if (height, width) == size or min(height, width) == size:
        return None
    return lambda x: F.resize(x, [size] if isinstance(size, int) else list(size), antialias=True)


def _centre(size: tuple[int, int], height: int, width: int) -> Change | None:
    return None if (height, width) == size else lambda x: F.center_crop(x, list(size))


def _shift(margin: int, height: int, width: int) -> Change:
    """By up to `margin` pixels each way; black comes in."""
    down, right = (int(u * (2 * margin + 1)) - margin for u in _uniform(2))
    return lambda x: F.crop(x, down, right, height, width)


def _rectangle(height: int, width: int, scale: tuple[float, float], ratio: float) -> tuple[int, int, int, int] | None:
    """A rectangle inside, (top, left, height, width): its area as a share in `scale`, its sides' ratio up to `ratio`.

    None if none was found that fits.
    """
    for _ in range(TRIES):
        share, slant, y, x = _uniform(4)
        area = height * width * _between(*scale, share)
        aspect = math.exp(_between(-math.log(ratio), math.log(ratio), slant))  # width to height
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    return None


def _rectangles(
    height: int, width: int, scale: tuple[float, float], drawn: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """The same for many images by what is drawn for each, [N, 4 * TRIES]: [N, 4], zeros where none was found."""
    share, slant, y, x = np.moveaxis(drawn.reshape(-1, TRIES, 4), 2, 0)
    area, aspect = height * width * (scale[0] + (scale[1] - scale[0]) * share), BLANK_RATIO ** (2 * slant - 1)
    h, w = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    every = np.stack([np.floor(y * (height - h + 1)), np.floor(x * (width - w + 1)), h, w], -1) * fits[..., None]
    first: npt.NDArray[np.int64] = every[np.arange(len(every)), fits.argmax(1)].astype(np.int64)
    return first


def _random_resized_crop(size: tuple[int, int], scale: tuple[float, float], height: int, width: int) -> Change:
    """Inception's crop (Szegedy and others 2014): a ratio of 3/4 to 4/3; where none fits, the largest in the middle."""
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    box = _rectangle(height, width, scale, 4 / 3) or ((height - h) // 2, (width - w) // 2, h, w)
    return lambda x: F.resized_crop(x, *box, size=list(size), antialias=True)


def _affine(
    degrees: float,
    translate: tuple[float, float],
    scale: tuple[float, float],
    shear: float,
    fill: int,
    height: int,
    width: int,
) -> Change:
    """A turn, a shift in shares of the sides, a size and a slant about the centre, each drawn evenly."""
    u = _uniform(5)
    across, down = (
        round(_between(-share * side, share * side, v))
        for share, side, v in zip(translate, (width, height), u, strict=False)
    )
    how: dict[str, Any] = {
        "angle": _between(-degrees, degrees, u[2]),
        "translate": [across, down],
        "scale": _between(*scale, u[3]),
        "shear": [_between(-shear, shear, u[4]), 0.0],
    }
    return lambda x: F.affine(x, **how, interpolation=_BILINEAR, fill=fill)


def _jitter(strengths: tuple[float, float, float], image: Image.Image) -> Image.Image:
    """Brightness, contrast and saturation, each by a factor within its strength of 1, in a random order."""
    changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    factors = [_between(1 - s, 1 + s, u) for s, u in zip(strengths, _uniform(3), strict=True)]
    for i in torch.randperm(3).tolist():
        image = changes[i](image, factors[i])
    return image


def _blank(pixels: Tensor, scale: tuple[float, float]) -> None:
    """Make a rectangle of uint8 [3, H, W] grey (random erasing, Zhong and others 2017: a ratio of .3 to 3.3)."""
    _, rows, columns = pixels.shape
    if box := _rectangle(rows, columns, scale, BLANK_RATIO):
        top, left, height, width = box
        pixels[:, top : top + height, left : left + width] = GREY
