"""Where images were taken: latitude and longitude from a table's columns, or from the images' own EXIF. No torch.

Targets are float64 [N, 2], degrees: latitude from -90 to 90, longitude from -180 to 180.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from mobilenets import console
from mobilenets.data.labelling import Encode
from mobilenets.data.listing import Listing
from mobilenets.data.source import Reading, Source
from mobilenets.data.table import Cell, Table, called
from mobilenets.errors import UserError, unknown
from mobilenets.model.images import BadImage

Position = tuple[float, float]  # latitude, longitude
KINDS = ("latitude", "longitude")
MISSING = {"", "nan", "na", "n/a", "none", "null"}
STRATUM = 10  # degrees: how near images lie that count as one kind when some are held out


class Positions:
    """A latitude and a longitude for each image."""

    noun, least, loose = "position", 0, True

    def check(self, asked: Source) -> None:
        for option, value in (
            ("--class-from-name", asked.reading.class_from_name),
            ("--limit-per-class", asked.reading.limit_per_class),
            ("--levels", asked.reading.levels),
            ("--label-delimiter", asked.reading.label_delimiter),
        ):
            if value:
                raise UserError(f"{asked.path}: {option} is for classes and tags, and places have none")

    def too_few(self, labels: tuple[str, ...]) -> str:  # noqa: ARG002
        return "no positions"

    def check_numbered(self, asked: Source) -> None:
        raise UserError(
            f"{asked.path}: positions are read from tables and from images' EXIF; this has one class for each image"
        )

    def kinds(self, reading: Reading) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def among(self, listing: Listing, reading: Reading) -> Sequence[str]:
        """The only table; of several, the only one that lies beside images and isn't named otherwise."""
        return listing.tables if reading.columns or len(listing.tables) == 1 else _beside(listing)

    def is_meant(self, table: Table, reading: Reading) -> bool:
        """One without positions, or that names no images, says something else."""
        located = all(any(called(c, kind) for c in table.columns) for kind in KINDS)
        return bool(reading.columns) or (located and any(called(c, "images") for c in table.columns))

    def said(self, table: Table, columns: Mapping[str, str], reading: Reading, count: int) -> Sequence[Position | None]:  # noqa: ARG002
        """By row; None where nobody knows. Raises `UserError` for what can't be a position."""
        names = position_columns(table, reading.label_column)
        latitudes, longitudes = (_numbers(table, name) for name in names)
        _check_swapped(table, names, latitudes, longitudes)
        out: list[Position | None] = []
        for i, (lat, lon) in enumerate(zip(latitudes, longitudes, strict=True), 1):
            if lat is None or lon is None or lat == lon == 0:
                out.append(None)
                continue
            for name, value, most in ((names[0], lat, 90), (names[1], lon, 180)):
                if abs(value) > most:
                    raise UserError(f"{table.name}: column {name!r} says {value:g} in row {i}, beyond {most} degrees")
            out.append((lat, lon))
        if nowhere := sum(lat == lon == 0 for lat, lon in zip(latitudes, longitudes, strict=True)):
            console.note(
                f"{table.name}: {console.many(nowhere, 'image')} at 0, 0, which is open sea and what is written where "
                "nobody knows: left out"
            )
        return out

    def in_folders(self, source: str, listing: Listing, rows: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
        """Images whose EXIF says where they were taken. Raises `UserError` where none does."""
        found = [(f, of_image(listing, f)) for f, _ in rows]
        located = [(f, where) for f, where in found if where is not None]
        if not located:
            raise UserError(
                f"{source}: no image says where it was taken: give a table with columns of the images, latitude and "
                "longitude, or photos with GPS in their EXIF"
            )
        if left := len(found) - len(located):
            console.note(f"{source}: {console.many(left, 'image')} without GPS in the EXIF: left out")
        return [*located]

    def targets(self, source: str, said: set[Any], tables: Sequence[Table] = ()) -> tuple[tuple[str, ...], Encode]:  # noqa: ARG002
        """No labels: positions are numbers."""
        return (), lambda rows: np.array(list(rows), np.float64).reshape(-1, 2)

    def strata(self, targets: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """The square of the globe that each image lies in [N], so that what is held out comes from everywhere."""
        squares = np.floor(targets / STRATUM).astype(np.int64)
        return np.asarray(squares[:, 0] * 1000 + squares[:, 1])


def _beside(listing: Listing) -> Sequence[str]:
    """Tables that are called as one of what images are, among several."""
    return [n for n in listing.tables if "image" in (stem := n.rsplit("/", 1)[-1].lower()) or "place" in stem]


def position_columns(table: Table, asked: str | None) -> tuple[str, str]:
    """The columns of latitude and longitude: "LAT,LON" as asked, or by what they are called. Raises `UserError`."""
    if asked is not None:
        names = [name.strip() for name in asked.split(",")]
        if len(names) != 2:
            raise UserError("--label-column names two columns of positions: latitude,longitude")
        for name in names:
            if name not in table.columns:
                raise UserError(f"{table.name}: {unknown('column', name, table.columns)}")
        return names[0], names[1]
    found = []
    for kind in KINDS:
        may = [c for c in table.columns if called(c, kind)]
        if len(may) != 1:
            what = f"{' or '.join(may)} may be the {kind}" if may else f"no column is called as a {kind} is"
            raise UserError(f"{table.name}: {what}: --label-column LATITUDE,LONGITUDE names both")
        found += may
    return found[0], found[1]


def _numbers(table: Table, name: str) -> list[float | None]:
    """A column's degrees; None where there are none. Raises `UserError` for what is no number."""
    out = []
    for i, value in enumerate(table.values(name), 1):
        out.append(_number(value, f"{table.name}: column {name!r} says {value!r} in row {i}, which is no number"))
    return out


def _number(value: Cell, otherwise: str) -> float | None:
    if value is None or value.strip().lower() in MISSING:
        return None
    try:
        number = float(value)
    except ValueError as e:
        raise UserError(f"{otherwise} of degrees, as 48.2082") from e
    if not math.isfinite(number):
        raise UserError(f"{otherwise} of degrees, as 48.2082")
    return number


def _check_swapped(
    table: Table, names: tuple[str, str], latitudes: Sequence[float | None], longitudes: Sequence[float | None]
) -> None:
    """Raises `UserError` where latitudes lie beyond 90 degrees and longitudes never do: their headers are swapped."""
    beyond = [v for v in latitudes if v is not None and abs(v) > 90]
    if beyond and all(abs(v) <= 90 for v in longitudes if v is not None):
        lat, lon = names
        row = [*latitudes].index(beyond[0]) + 1
        raise UserError(
            f"{table.name}: {console.many(len(beyond), 'latitude')} beyond 90 degrees ({beyond[0]:g} in row {row} of "
            f"column {lat!r}) and no longitude: if the headers are swapped, --label-column {lon},{lat} reads them so"
        )


def of_image(listing: Listing, name: str) -> Position | None:
    """Where an image's EXIF says that it was taken; None where it doesn't, or can't be read."""
    try:
        content = listing.read(name)
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else Path(content)) as image:
            gps = image.getexif().get_ifd(ExifTags.IFD.GPSInfo)
    except (OSError, ValueError, SyntaxError, BadImage, Image.DecompressionBombError):
        return None
    return of_gps(gps)


def of_gps(gps: Mapping[int, Any]) -> Position | None:
    """EXIF's degrees, minutes and seconds, with N or S and E or W, as degrees; None of what isn't that."""
    with contextlib.suppress(KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        lat = _degrees(gps[ExifTags.GPS.GPSLatitude], gps[ExifTags.GPS.GPSLatitudeRef], "S")
        lon = _degrees(gps[ExifTags.GPS.GPSLongitude], gps[ExifTags.GPS.GPSLongitudeRef], "W")
        if abs(lat) <= 90 and abs(lon) <= 180 and (lat, lon) != (0, 0):
            return lat, lon
    return None


def _degrees(parts: Sequence[Any], reference: Any, negative: str) -> float:
    degrees, minutes, seconds = (float(p) for p in parts)
    value = degrees + minutes / 60 + seconds / 3600
    if not math.isfinite(value):
        raise ValueError("not a number")
    letter = reference.decode("ascii", "replace") if isinstance(reference, bytes) else str(reference)
    return -value if letter.strip("\0 ").upper() == negative else value


POSITIONS = Positions()
