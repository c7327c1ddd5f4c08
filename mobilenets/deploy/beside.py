"""What lies beside an exported file, for programs that can't read the card inside: its card, and its labels. No torch.

A browser has no way to an ONNX file's metadata. Beside `x.onnx` are `x.onnx.card.json` and `x.onnx.labels.txt`: the
file's own name comes first, so that several files in a folder, of one network or of many, have each their own.
"""

from __future__ import annotations

import json
from pathlib import Path

from mobilenets import files
from mobilenets.errors import UserError
from mobilenets.model.card import Card

CARD, LABELS = ".card.json", ".labels.txt"


def card_path(path: Path) -> Path:
    """Where the card of the file at `path` is."""
    return path.with_name(path.name + CARD)


def labels_path(path: Path) -> Path:
    """Where its labels are, one a line in the order of its outputs."""
    return path.with_name(path.name + LABELS)


def _labels(card: Card) -> str:
    return "".join(" ".join(label.split()) + "\n" for label in card.labels)


def check(path: Path, card: Card) -> None:
    """A UserError where files of another origin have the names of what would be written beside `path`."""
    written = _card_at(card_path(path))
    own = {_labels(card), *([_labels(written)] if written else [])}
    strange = [card_path(path)] if card_path(path).exists() and written is None else []
    if labels_path(path).exists() and labels_path(path).read_bytes().decode(errors="replace") not in own:
        strange.append(labels_path(path))
    if strange:
        raise UserError(f"{strange[0]} is there already, and not of an export: move it, or choose another name")


def write(path: Path, card: Card) -> None:
    """The card, and the labels where there are some, beside the file at `path`; see `check`."""
    files.write_json(card_path(path), card.to_json())
    if card.labels:
        with files.atomic_file(labels_path(path)) as tmp:
            tmp.write_text(_labels(card), encoding="utf-8", newline="\n")
    else:
        labels_path(path).unlink(missing_ok=True)  # of a classifier that had the name before


def _card_at(path: Path) -> Card | None:
    """The card in a file; None where there is none."""
    try:
        return Card.from_json(json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError, UserError):
        return None
