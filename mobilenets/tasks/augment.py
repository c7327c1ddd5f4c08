"""What training does to images before it shows them: torchvision's transforms, which move targets with the image.

Boxes, masks and points that are torchvision's `tv_tensors` go where their image's pixels go; a class stays what it is.
"""

from __future__ import annotations

from typing import Any

from torchvision.transforms import v2

from mobilenets.model.images import Preprocess

_BILINEAR = v2.InterpolationMode.BILINEAR


def augmentation(kind: str, preprocess: Preprocess, recipe: Any) -> v2.Transform:
    """RGB image of any size -> uint8 [3, R, R], random. On Pillow images: small tensor operations wait on threads."""
    size = preprocess.input_size
    least = min(size)
    random = [v2.RandAugment(magnitude=recipe.randaugment)] if recipe.randaugment else []
    if kind == "photo":
        return v2.Compose([
            v2.RandomResizedCrop(size, scale=(recipe.min_scale, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            *(random or [v2.ColorJitter(0.3, 0.3, 0.3)]),
            v2.PILToTensor(),
            v2.RandomErasing(recipe.erasing, value=128),
        ])  # fmt: skip
    if kind == "shift":
        return v2.Compose([
            v2.Resize(size, antialias=True),
            v2.RandomCrop(size, padding=least // 8),
            v2.RandomHorizontalFlip(),
            *random,
            v2.PILToTensor(),
            v2.RandomErasing(recipe.erasing, scale=(0.05, 0.25), value=128),
        ])  # fmt: skip
    fit = [v2.Resize(preprocess.short_side, antialias=True), v2.CenterCrop(size)]
    if kind == "glyph":
        move = v2.RandomAffine(10, translate=(0.1, 0.1), scale=(0.85, 1.15), shear=8, interpolation=_BILINEAR)
        return v2.Compose([*fit, move, *random, v2.PILToTensor()])
    return v2.Compose([*fit, v2.PILToTensor()])


def aligned(preprocess: Preprocess, recipe: Any) -> v2.Transform:
    """RGB image of an aligned face -> uint8 [3, H, W]: a mirror, small moves that alignment makes too, light."""
    size = preprocess.input_size
    return v2.Compose([
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(4, translate=(0.03, 0.03), scale=(0.94, 1.06), interpolation=_BILINEAR, fill=128),
        v2.Resize(size, antialias=True),
        v2.ColorJitter(0.3, 0.3, 0.2),
        v2.PILToTensor(),
        v2.RandomErasing(recipe.erasing, scale=(0.02, 0.1), value=128),
    ])  # fmt: skip
