"""Images as programs have them (Pillow's, arrays, tensors) as Pillow's RGB images. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets.errors import UserError
from mobilenets.model.images import BadImage, Pixels, upright_rgb

if TYPE_CHECKING:
    from torch import Tensor

Picture: TypeAlias = "Image.Image | npt.NDArray[Any] | Tensor"
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def is_picture(given: Any) -> bool:
    """Whether it is an image in memory, or a batch of them."""
    if isinstance(given, Image.Image):
        return True
    holds_numbers = getattr(getattr(given, "dtype", None), "kind", "f") not in "USO"  # and not the names of files
    return hasattr(given, "__array__") and holds_numbers and not isinstance(given, np.generic)


def is_batch(picture: Picture) -> bool:
    """Whether it is several images in one array, [N, H, W, C], or tensor, [N, C, H, W]."""
    return getattr(picture, "ndim", 0) == 4


def pictures(given: Picture) -> Sequence[Picture]:
    """The images of a batch; or the one that it is."""
    return list(given) if is_batch(given) else [given]  # type: ignore[arg-type]


def rgb_image(picture: Picture) -> Image.Image:
    """One image as an upright 8-bit RGB one.

    Arrays are [H, W] or [H, W, C], torch's tensors [H, W] or [C, H, W], of 1, 3 or 4 channels: grey, RGB, RGBA; uint8,
    or floats from 0 to 1. Raises `UserError` for any other, `BadImage` for one of Pillow's that is damaged.
    """
    if isinstance(picture, Image.Image):
        try:
            return upright_rgb(picture)
        except Exception as e:  # opened lazily, so damaged perhaps; Pillow's decoders raise nearly anything
            raise BadImage(f"damaged image ({e})") from e
    pixels = _bytes(_channels_last(picture))
    return upright_rgb(Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def _channels_last(picture: Any) -> npt.NDArray[Any]:
    """An array or tensor of one image as [H, W, C]."""
    torch = sys.modules.get("torch")  # nobody has a tensor where it isn't loaded
    tensor = torch is not None and isinstance(picture, torch.Tensor)
    if tensor:
        picture = picture.detach().cpu()
        picture = picture.float() if picture.is_floating_point() else picture
    values = np.asarray(picture)
    shape = list(values.shape)
    if values.ndim == 2:
        values, tensor = values[:, :, None], False
    what, axes = ("a tensor's image", "[C, H, W]") if tensor else ("an array's image", "[H, W, C]")
    if values.ndim != 3:
        raise UserError(f"{what} is {axes} or [H, W], not {shape}")
    if 0 in shape:
        raise UserError(f"an image of {shape} has no pixels")
    own, other = (0, -1) if tensor else (-1, 0)
    if shape[own] not in CHANNELS and len(shape) == 3:
        turn = "x.movedim(-1, -3)" if tensor else "numpy.moveaxis(x, -3, -1)"
        hint = f"turn it: {turn}" if shape[other] in CHANNELS else "it has 1, 3 or 4 channels"
        raise UserError(f"{what} is {axes}, not {shape}: {hint}")
    return values.transpose(1, 2, 0) if tensor else values


def _bytes(values: npt.NDArray[Any]) -> Pixels:
    """Pixels as uint8: themselves, or floats from 0 to 1."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise UserError(f"pixels are uint8, or floats from 0 to 1, not {values.dtype}")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN too
        raise UserError(
            f"pixels that are floats go from 0 to 1, not from {low:.4g} to {high:.4g}: give uint8 from 0 to 255, or "
            "the image before it was normalized, which is the network's own part"
        )
    return np.asarray(np.rint(values * 255), np.uint8)
