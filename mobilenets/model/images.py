"""From an image file of any kind to the uint8 pixels a network takes. No torch: training, predict and eval share it."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from mobilenets.arch.spec import check_resolution
from mobilenets.errors import UserError, unknown

Pixels = npt.NDArray[np.uint8]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MAX_PIXELS = 100_000_000  # an image beyond this is taken for a decompression bomb, and costs 300 MB
# A JPEG is decoded at a fraction that leaves this times the short side needed. It changes about as many answers as
# saving the photo at another quality does, and hardly a score (results/scaled_decode.csv).
MARGIN = 2.0


class BadImage(UserError):
    """A file that can't be decoded to its last pixel."""


def open_rgb(source: Path | bytes, name: str = "", short_side: int = 0) -> Image.Image:
    """Decode a whole image to upright 8-bit RGB, whatever it holds: 16-bit, CMYK, palette, transparent (over white).

    `short_side`: the size it will be resized to, if known. A large JPEG is then decoded at a half, quarter or eighth of
    its size, never under MARGIN times `short_side`, which saves most of the decoding.
    Raises `BadImage` for a file that is damaged, truncated, too large or no image.
    """
    name = name or str(source if isinstance(source, Path) else "image")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as img:
            if img.width * img.height > MAX_PIXELS:
                raise ValueError(f"{img.width}x{img.height} pixels, over the limit of {MAX_PIXELS:,}")
            if short_side and img.format == "JPEG":
                least = math.ceil(MARGIN * short_side)
                img.draft(None, (least, least))
            return upright_rgb(img)
    except (Exception, RecursionError) as e:  # Pillow's decoders raise nearly anything on hostile bytes
        if isinstance(e, FileNotFoundError):
            raise BadImage(f"{name}: no such file") from e
        reason = "not an image, or of an unknown kind" if type(e).__name__ == "UnidentifiedImageError" else str(e)
        raise BadImage(f"{name}: damaged image ({reason})") from e


def upright_rgb(img: Image.Image) -> Image.Image:
    """An opened image as 8-bit RGB, whatever it holds, turned as its camera says."""
    img.load()
    if img.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # exif_transpose copies an upright image too
        img = ImageOps.exif_transpose(img)
    return _rgb(img)


def _rgb(img: Image.Image) -> Image.Image:
    if img.mode == "RGB":
        return img
    if img.mode.startswith("I"):  # 16 bits, sometimes held in 32
        wide = np.asarray(img).astype(np.int64)
        eight = wide >> 8 if wide.max(initial=0) > 255 or img.mode != "I" else wide
        return Image.fromarray(eight.clip(0, 255).astype(np.uint8)).convert("RGB")
    if img.mode == "F":
        return Image.fromarray(np.nan_to_num(np.asarray(img)).clip(0, 255).astype(np.uint8)).convert("RGB")
    if img.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in img.info:
        rgba = img.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return img.convert("RGB")


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input; it travels with the weights, inside the exported file too.

    The centre square of `crop` x the short side is resized (antialiased) to `resolution` pixels: uint8 [H, W, 3] RGB.
    Then (pixel - mean) / std, in units of 0..255, per channel. The default mean and std, 128, make the uint8 pixels
    themselves the int8 network's quantized input: a scale of 1/128 and a zero point of 128, no arithmetic.
    """

    resolution: int
    crop: float = 0.875
    mean: tuple[float, float, float] = (128.0, 128.0, 128.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        check_resolution(self.resolution)
        if not 0 < self.crop <= 1:
            raise UserError(f"crop must be above 0 and at most 1, not {self.crop}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise UserError("mean and std need three numbers each, std above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", str(self.interpolation), INTERPOLATIONS)

    @property
    def short_side(self) -> int:
        """The short side an image would have if it were resized whole."""
        return round(self.resolution / self.crop)

    def fit(self, img: Image.Image) -> Pixels:
        """RGB image of any size -> uint8 [resolution, resolution, 3]."""
        side = min(img.size) * self.crop
        left, top = (img.width - side) / 2, (img.height - side) / 2
        box = (left, top, left + side, top + side)
        size = (self.resolution, self.resolution)
        return np.asarray(img.resize(size, INTERPOLATIONS[self.interpolation], box=box))

    def read(self, source: Path | bytes, name: str = "") -> Pixels:
        """Image file -> uint8 [resolution, resolution, 3]; raises `BadImage`."""
        return self.fit(open_rgb(source, name, self.short_side))

    def normalize(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], what the PyTorch network takes."""
        x = (pixels.astype(np.float32) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> Preprocess:
        try:
            interpolation = d.get("interpolation", "bilinear")  # earlier cards have none
            return cls(int(d["resolution"]), float(d["crop"]), tuple(d["mean"]), tuple(d["std"]), interpolation)
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"not a Preprocess: {e}") from e
