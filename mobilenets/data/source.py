"""Where data is and how it is read, as one text: on cards, in run.json, from process to process. No torch."""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilenets.arguments import checked
from mobilenets.errors import UserError

BY_NAME = "name:"  # before the path of images whose classes are in their names: Abyssinian_12.jpg


def _doc(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@checked
@dataclass(frozen=True)
class Reading:
    """How labelled images are read. What isn't given is found out: columns by their names, splits by the data's own.

    Raises `UserError` for a number that can't be.
    """

    class_from_name: bool = _doc(
        "The class of an image is what its name says before its number: Abyssinian_12.jpg.", False
    )
    levels: int | None = _doc(
        "Folders that a class's name is made of, 1 if left out: with 2, cat/siamese/1.jpg is of the class cat/siamese. "
        "Scores are of each level too."
    )
    images_column: str | None = _doc("Column of a table with the images, or with their paths from the table's folder.")
    label_column: str | None = _doc(
        "Column of a table with the classes; of tags, the columns of yes and no (0/1, -1/1, true/false), with commas "
        "between, all there are if left out."
    )
    label_delimiter: str | None = _doc(
        "What is between tags, where one column lists those that hold: | of smiling|young."
    )
    split_column: str | None = _doc("Column of a table that says train, val or test.")
    group_column: str | None = _doc(
        "Column of a table that says which images belong together (patient, camera): none of a group is held out while "
        "others are trained on."
    )
    val_from: str | None = _doc("The validation images: another folder, zip or table of the same classes.")
    cells: str | None = _doc(
        "Of places, how the globe is parted: T_MAX,T_MIN photos that a cell may and must hold (PlaNet's rule), 50,5; "
        "of several partitions, with ; between."
    )
    positions: str | None = _doc(
        "Of places, a table of positions to part the globe by, instead of the training images'."
    )
    soft_cells: float | None = _doc(
        "Of places, cells near the true one are partly right: by exp(-km / this) of their distance."
    )
    limit_per_class: int | None = _doc("Training images of a class, at most; the fewer are among the more.")

    def __post_init__(self) -> None:
        if self.soft_cells is not None and not 0 < self.soft_cells < float("inf"):
            raise UserError(f"soft_cells is a distance in km, above 0, not {self.soft_cells:g}")
        if self.levels is not None and self.levels < 1:
            raise UserError(f"levels must be 1 or more, not {self.levels}")
        if self.limit_per_class is not None and self.limit_per_class < 1:
            raise UserError(f"limit_per_class must be 1 or more, not {self.limit_per_class}")
        if self.label_delimiter is not None and not self.label_delimiter.strip():
            raise UserError("label_delimiter is what is between tags in a cell, as | or ;")

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are named, by what they are for."""
        kinds = ("images", "label", "split", "group")
        return {kind: name for kind in kinds if (name := getattr(self, f"{kind}_column")) is not None}

    def options(self) -> list[str]:
        """As a command line has them."""
        words = ["--class-from-name"] if self.class_from_name else []
        for option, name in OPTIONS.items():
            if (value := getattr(self, name)) is not None:
                words += [option, str(value)]
        return words


OPTIONS = {f"--{f.name.replace('_', '-')}": f.name for f in dataclasses.fields(Reading) if f.name != "class_from_name"}
NUMBERS = {"limit_per_class": int, "levels": int, "soft_cells": float}  # all else is text
_OPTIONS_BEGIN = re.compile(rf" (?=(?:{'|'.join(OPTIONS)}) )")


@dataclass(frozen=True)
class Source:
    """A folder, a zip, a table, an address or a set's name, and how it is read."""

    path: str
    reading: Reading = field(default_factory=Reading)

    def __str__(self) -> str:
        """`name:pets` of classes in names; options as a command line has them: `photos.csv --label-column breed`."""
        words = dataclasses.replace(self.reading, class_from_name=False).options()
        return (BY_NAME if self.reading.class_from_name else "") + " ".join([self.path, *map(shlex.quote, words)])

    @classmethod
    def parse(cls, text: str) -> Source:
        """The inverse of `str`. Raises `UserError` for options that can't be, as a card from elsewhere may have."""
        path, *rest = _OPTIONS_BEGIN.split(text, maxsplit=1)
        try:
            words = shlex.split(rest[0]) if rest else []
            given: dict[str, Any] = {OPTIONS[o]: value for o, value in zip(words[::2], words[1::2], strict=True)}
            for name, kind in NUMBERS.items():
                if name in given:
                    given[name] = kind(given[name])
        except (KeyError, ValueError) as e:
            raise UserError(f"{text}: not how a data set is named: {e}") from e
        return cls(path.removeprefix(BY_NAME), Reading(class_from_name=path.startswith(BY_NAME), **given))

    @property
    def plain(self) -> bool:
        """Whether nothing but its path is said."""
        return self.reading == Reading()


def named(source: str | Path | None, reading: Reading | None) -> str | None:
    """`spelled`, where data may be left out. Raises `UserError` for one that is read in some way and isn't named."""
    if source is None and reading is not None and reading != Reading():
        raise UserError(f"{reading.options()[0]} says how data is read: name the data too")
    return None if source is None else spelled(source, reading)


def spelled(source: str | Path, reading: Reading | None) -> str:
    """How `open_data`, a card or another process is told of a source."""
    return str(source) if reading is None or reading == Reading() else str(Source(str(source), reading))
