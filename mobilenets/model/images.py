"""From an image file of any kind to the uint8 pixels a network takes. No torch: training, predict and eval share it."""

from __future__ import annotations

import contextlib
import io
import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from mobilenets.arch.spec import check_resolution
from mobilenets.errors import UserError, unknown

Pixels = npt.NDArray[np.uint8]

# Pillow opens others too, of which some start a program (PostScript's) or read other files.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "TGA")
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga",
)  # fmt: skip
# Pictures of other kinds: told of, where they lie among images.
UNREADABLE = (
    ".heic", ".heif", ".hif", ".jxl", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
)  # fmt: skip
HEIF = re.compile(rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", re.DOTALL)
_LARGE_TURN = threading.Lock()
Interpolation = Literal["bilinear", "bicubic"]
Framing = Literal["crop", "letterbox", "stretch"]
FRAMINGS: tuple[Framing, ...] = ("crop", "letterbox", "stretch")
FULL_SIZE = "full_size"  # in a decoded image's `info`: its (width, height) before it was decoded at a fraction
GREY = 128  # around a letterboxed image
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
MAX_PIXELS = 100_000_000  # decoded; an image beyond this is taken for a decompression bomb, and costs 300 MB
MAX_JPEG_PIXELS = 178_000_000  # of one that is decoded at a fraction, as the largest phones' are; Pillow's own limit
DEPTHS = (8, 12, 16, 24, 31)  # bits that a grey value may have
# A JPEG is decoded at a fraction that leaves this times the short side needed. It changes about as many answers as
# saving the photo at another quality does, and hardly a score (results/scaled_decode.csv).
MARGIN = 2.0
# What decoding takes, in bytes for each pixel, measured with Pillow 13: in formats that aren't named, what the image
# takes; in a progressive JPEG all its coefficients, whatever fraction it is decoded at.
DECODING = {"WEBP": 16, "AVIF": 12, "JPEG2000": 20, "TIFF": 8}
PROGRESSIVE = 6
# A file that takes more bytes than this, and over so many times its own size, is made to fill the memory.
BYTES, TIMES = 250_000_000, 100
SCANS = 100  # of a progressive JPEG: each goes over the whole image
LARGE = 16_000_000  # pixels: images beyond this are decoded one at a time, and made smaller strip by strip


class BadImage(UserError):
    """A file that can't be decoded to its last pixel."""


def open_rgb(source: Path | bytes, name: str = "", short_side: int = 0, max_pixels: int | None = None) -> Image.Image:
    """Decode a whole image to upright 8-bit RGB, whatever it holds: 16-bit, CMYK, palette, transparent (over white).

    `short_side`: the size it will be resized to, if known. A large JPEG is then decoded at a half, quarter or eighth of
    its size, never under MARGIN times `short_side`, which saves most of the decoding.
    Its own size is in the image's `info` then, as FULL_SIZE. `max_pixels`: what it may have, whatever fraction it is
    decoded at. Raises `BadImage` for a file that is damaged, truncated, too large or no image.
    """
    name = name or str(source if isinstance(source, Path) else "image")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as img:
            before, least = img.size, math.ceil(MARGIN * short_side)
            if max_pixels and math.prod(before) > max_pixels:
                raise BadImage(f"{name}: {before[0]}x{before[1]} pixels, over the limit of {max_pixels:,}")
            if short_side and img.format == "JPEG" and math.prod(before) <= MAX_JPEG_PIXELS:
                img.draft(None, (least, least))
            if math.prod(img.size) > MAX_PIXELS:
                raise BadImage(f"{name}: {before[0]}x{before[1]} pixels, over the limit of {MAX_PIXELS:,}")
            _check_effort(img, math.prod(before), source, name)
            large = math.prod(before) > LARGE
            with _LARGE_TURN if large else contextlib.nullcontext():
                out = upright_rgb(img, least if large else 0)
            turned = img.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            out.info[FULL_SIZE] = before[::-1] if turned else before
            return out
    except (Exception, RecursionError) as e:  # Pillow's decoders raise nearly anything on hostile bytes
        if isinstance(e, BadImage):
            raise
        if isinstance(e, FileNotFoundError):
            raise BadImage(f"{name}: no such file") from e
        if type(e).__name__ == "UnidentifiedImageError":
            if _is_heif(source):
                raise BadImage(f"{name}: HEIC can't be read here: convert it to JPEG") from e
            raise BadImage(f"{name}: damaged image (not an image, or of an unknown kind)") from e
        reason = str(e)
        raise BadImage(f"{name}: damaged image ({reason})") from e


def _is_heif(source: Path | bytes) -> bool:
    """Whether it is a phone's HEIC or a relative, whatever it is called."""
    if isinstance(source, bytes):
        return bool(HEIF.match(source))
    with source.open("rb") as f:
        return bool(HEIF.match(f.read(16)))


def _check_effort(img: Image.Image, pixels: int, source: Path | bytes, name: str) -> None:
    """`BadImage` for an opened file that is far too small for the memory or the time that decoding it would take."""
    own = 2 if "16" in img.mode else 1 if img.mode in ("1", "L", "P") else 4
    each = DECODING.get(img.format or "", own)
    if img.format == "JPEG":
        progressive = "progressive" in img.info
        scans = (source if isinstance(source, bytes) else source.read_bytes()).count(b"\xff\xda") if progressive else 1
        if scans > SCANS:
            raise BadImage(f"{name}: a JPEG of {scans:,} scans, over the limit of {SCANS}")
        each = PROGRESSIVE if progressive else 0  # and what it is decoded to, which has a limit
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if pixels * each > max(BYTES, TIMES * size):
        raise BadImage(f"{name}: {size:,} bytes that decode to {pixels * each:,}, taken for a bomb; save it smaller")


def upright_rgb(img: Image.Image, least: int = 0) -> Image.Image:
    """An opened image as 8-bit RGB, whatever it holds, turned as its camera says.

    `least`: a short side to which it may be made smaller, by 2, 4 or 8, as a JPEG that is decoded at a fraction.
    """
    img.load()
    if img.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # exif_transpose copies an upright image too
        img = ImageOps.exif_transpose(img)
    factor = next((k for k in (8, 4, 2) if least and min(img.size) // k >= least), 1)
    if img.mode == "RGB" and factor == 1:
        return img
    width, height = img.size
    rows = max(LARGE // 4 // width // 8, 1) * 8
    convert = _deep(img, rows) if img.mode.startswith("I") or img.mode == "F" else _rgb
    if rows >= height:
        whole = convert(img)
        return whole.reduce(factor) if factor > 1 else whole
    out = Image.new("RGB", (-(-width // factor), -(-height // factor)))  # two whole copies more would be 1 GB
    for k, strip in enumerate(_strips(img, rows)):
        out.paste(convert(strip).reduce(factor), (0, k * rows // factor))
    return out


def _strips(img: Image.Image, rows: int) -> Iterator[Image.Image]:
    """The image in strips of at most so many rows, from the top."""
    for y in range(0, img.height, rows):
        yield img.crop((0, y, img.width, min(y + rows, img.height)))


def _deep(img: Image.Image, rows: int) -> Callable[[Image.Image], Image.Image]:
    """What makes RGB of a strip of an image of grey values of more than 8 bits.

    Floats up to 1 are shares of white, others are counts. A file doesn't say how many of its bits are used (cameras and
    scanners put 12 into 16): the fewest of DEPTHS that hold the brightest pixel. Floats may go over white by half, as
    sharpened pictures do.
    """
    most = max((float(_finite(strip).max(initial=0)) for strip in _strips(img, rows)), default=0.0)
    white = next((w for w in (1, 255) if most <= 1.5 * w), 0) if img.mode == "F" else 0
    shift = next((bits for bits in DEPTHS if most < 1 << bits), DEPTHS[-1]) - 8

    def convert(strip: Image.Image) -> Image.Image:
        values = _finite(strip)
        if white:
            eight = (values.clip(0, white) * (255 / white)).round()
        else:
            eight = (values.astype(np.int64) >> shift).clip(0, 255)
        return Image.fromarray(eight.astype(np.uint8)).convert("RGB")

    return convert


def _finite(strip: Image.Image) -> npt.NDArray[Any]:
    values = np.asarray(strip)
    return np.nan_to_num(values, posinf=0, neginf=0) if values.dtype.kind == "f" else values


def _rgb(img: Image.Image) -> Image.Image:
    if img.mode == "RGB":
        return img
    if img.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in img.info:
        rgba = img.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return img.convert("RGB")


class Placement(NamedTuple):
    """Where an image lies in a network's input: input = image x scale + offset, in pixels from the top left corner."""

    scale_x: float
    scale_y: float
    left: float
    top: float

    def into(self, points: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Points of the image, [..., 2] as x and y, as points of the input."""
        return np.asarray(np.asarray(points) * np.array(self[:2]) + np.array(self[2:]), np.float64)

    def back(self, points: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Points of the input as points of the image."""
        return np.asarray((np.asarray(points) - np.array(self[2:])) / np.array(self[:2]), np.float64)


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input; it travels with the weights, inside the exported file too.

    `framing` "crop": the centre of `crop` x the short side, in the input's proportions, is resized (antialiased) to
    `resolution` pixels, or to `size`, (height, width), where the input isn't a square: uint8 [H, W, 3] RGB.
    "letterbox": the whole image, its proportions kept, grey around it; "stretch": the whole image, out of proportion.
    Then (pixel - mean) / std, in units of 0..255, per channel. The default mean and std, 128, make the uint8 pixels
    themselves the int8 network's quantized input: a scale of 1/128 and a zero point of 128, no arithmetic.
    """

    resolution: int
    crop: float = 0.875
    mean: tuple[float, float, float] = (128.0, 128.0, 128.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    interpolation: Interpolation = "bilinear"
    framing: Framing = "crop"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for side in (self.resolution, *self.input_size):
            check_resolution(side)
        if self.framing not in FRAMINGS:
            raise unknown("framing", str(self.framing), FRAMINGS)
        if not 0 < self.crop <= 1:
            raise UserError(f"crop must be above 0 and at most 1, not {self.crop}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise UserError("mean and std need three numbers each, std above 0")
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)):
            raise UserError("mean and std need finite numbers")
        if self.interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", str(self.interpolation), INTERPOLATIONS)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return self.size or (self.resolution, self.resolution)

    @property
    def short_side(self) -> int:
        """The short side an image would have if it were resized whole; of an elongated one, more than is needed."""
        crop = self.crop if self.framing == "crop" else 1.0
        return round(max(self.input_size) / crop)

    def place(self, width: int, height: int) -> Placement:
        """Where an image of so many pixels lies in the input."""
        rows, columns = self.input_size
        if self.framing == "stretch":
            return Placement(columns / width, rows / height, 0.0, 0.0)
        if self.framing == "letterbox":
            scale = min(columns / width, rows / height)
            wide, high = max(1, round(width * scale)), max(1, round(height * scale))
            return Placement(wide / width, high / height, (columns - wide) // 2, (rows - high) // 2)
        scale = max(columns / width, rows / height) / self.crop
        return Placement(scale, scale, (columns - width * scale) / 2, (rows - height * scale) / 2)

    def fit(self, img: Image.Image) -> Pixels:
        """RGB image of any size -> uint8 [H, W, 3] of the input's size."""
        rows, columns = self.input_size
        method = INTERPOLATIONS[self.interpolation]
        if self.framing == "crop":
            wide = high = min(img.size) * self.crop
            if rows != columns:
                part = min(img.width / columns, img.height / rows) * self.crop  # pixels of it to one of the input
                wide, high = columns * part, rows * part
            left, top = (img.width - wide) / 2, (img.height - high) / 2
            return np.asarray(img.resize((columns, rows), method, box=(left, top, left + wide, top + high)))
        if self.framing == "stretch":
            return np.asarray(img.resize((columns, rows), method))
        at = self.place(*img.size)
        whole = Image.new("RGB", (columns, rows), (GREY,) * 3)
        inner = round(img.width * at.scale_x), round(img.height * at.scale_y)
        whole.paste(img.resize(inner, method), (int(at.left), int(at.top)))
        return np.asarray(whole)

    def read(self, source: Path | bytes, name: str = "") -> Pixels:
        """Image file -> uint8 [H, W, 3] of the input's size; raises `BadImage`."""
        return self.read_sized(source, name)[0]

    def read_sized(
        self, source: Path | bytes, name: str = "", max_pixels: int | None = None
    ) -> tuple[Pixels, tuple[int, int]]:
        """`read`, and the image's own (width, height)."""
        image = open_rgb(source, name, self.short_side, max_pixels)
        return self.fit(image), image.info[FULL_SIZE]

    def normalize(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], what the PyTorch network takes."""
        x = (pixels.astype(np.float32) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))

    def to_json(self) -> dict[str, Any]:
        d = asdict(self)
        if self.size is None:
            del d["size"]
        return d

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> Preprocess:
        try:
            interpolation = d.get("interpolation", "bilinear")  # earlier cards have none
            framing = d.get("framing", "crop")
            size = d.get("size") and (int(d["size"][0]), int(d["size"][1]))
            mean, std = tuple(d["mean"]), tuple(d["std"])
            return cls(int(d["resolution"]), float(d["crop"]), mean, std, interpolation, framing, size)
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"not a Preprocess: {e}") from e
