"""Where a bundle's bytes are: how each layer is stored, and how near its codes come to their entropy. No torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from mobilenets import console
from mobilenets.model import mnz
from mobilenets.model.bundle import Bundle
from mobilenets.model.encodings import PLAIN, code_bits, weight_name

if TYPE_CHECKING:
    from rich.console import RenderableType

REST = "BatchNorm, biases, scales"
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Line:
    """A layer's weights: how many, and the bytes they take as floats, as stored, by Huffman's code, coded, at least.

    `least`: the entropy of the symbols, which no code of them one by one goes below. What a decoder must know of their
    frequencies is in none of these.
    """

    name: str
    kind: str
    encoding: str
    weights: int
    before: int
    raw: float
    huffman: float
    coded: float
    least: float

    @property
    def bits(self) -> float:
        """Bits that a weight takes when coded."""
        return 8 * self.coded / max(self.weights, 1)


@dataclass(frozen=True)
class Stored(console.Notebook):
    """Every layer's weights, in the network's order, and all else; `file` is the size of the whole as a .mnz file."""

    title: str
    lines: tuple[Line, ...]
    file: int
    html: Path | None = None

    @property
    def total(self) -> Line:
        def of(name: str) -> Any:
            return sum(getattr(line, name) for line in self.lines)

        numbers = (of(f.name) for f in dataclasses.fields(Line)[3:])
        return Line("all", "", "", *numbers)

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "file_bytes": self.file,
            "layers": [{**dataclasses.asdict(line), "bits": round(line.bits, 4)} for line in self.lines],
            "total": dataclasses.asdict(self.total),
        }

    def __rich__(self) -> RenderableType:
        columns = ["layer", "stored as", "weights", "float kB", "raw kB", "Huffman", "coded", "entropy", "bits each"]
        t = console.table(f"where {self.title}'s bytes are", columns, left=("layer", "stored as"))
        for line in (*self.lines, self.total):
            sizes = (line.before, line.raw, line.huffman, line.coded, line.least)
            t.add_row(
                line.name, line.encoding, f"{line.weights:,}", *(f"{v / 1000:.2f}" for v in sizes), f"{line.bits:.2f}"
            )
        t.caption = (
            f"as one .mnz file {self.file / 1000:.1f} kB, with its card and the frequencies of its symbols, which the "
            "columns leave out; where those would take more than coding saves, symbols are stored as they are"
        )
        return t


def stored(bundle: Bundle) -> Stored:
    """What of a bundle takes how many bytes."""
    card, bits = bundle.card, code_bits(bundle.card)
    left, lines = dict(bundle.tensors), []

    def line(name: str, kind: str, encoding: str, weights: int, keys: Sequence[str]) -> Line:
        sizes = [mnz.sizes(left.pop(key), bits.get(key, 0)) for key in keys]
        sums = (sum(s[i] for s in sizes) for i in range(4))
        return Line(name, kind, encoding, weights, FLOAT_BYTES * weights, *sums)

    for op in card.graph.layers:
        key = f"{op.name}.weight" if card.precision == "int8" else weight_name(op)
        keys = [k for k in left if k.startswith(key)]
        if op.kind != "norm" and keys:
            how = card.encodings.get(op.name, PLAIN if card.precision != "int8" else "int8")
            lines.append(line(op.name, op.kind, how, math.prod(op.weight_shape), keys))
    rest = sum(v.size for v in left.values())
    lines.append(line(REST, "", PLAIN, rest, list(left)))
    return Stored(card.arch.title, tuple(lines), len(mnz.pack(bundle.to_json(), bundle.tensors, bits)))


def drawing(found: Stored) -> Markup:
    """Each layer as a bar of its floats' bytes, and in it what is left when coded; widths by the square root."""
    most = max(line.before for line in found.lines) ** 0.5
    row, left, width = 15, 230, 560
    out = []
    for i, line in enumerate(found.lines):
        y, (whole, part) = row * i, (width * (v**0.5) / most for v in (line.before, line.coded))
        tip = f"{line.name}: {line.before:,} bytes as floats, {line.coded:,.0f} coded, {line.bits:.2f} bits each"
        out.append(
            f"<g><title>{tip}</title>"
            f'<text x="{left - 8}" y="{y + 11}" class="s" style="text-anchor:end">{line.name}</text>'
            f'<rect x="{left}" y="{y + 2}" width="{whole:.1f}" height="{row - 4}" style="fill:var(--grid)"/>'
            f'<rect x="{left}" y="{y + 2}" width="{part:.1f}" height="{row - 4}" style="fill:var(--blue)"/>'
            f'<text x="{left + whole + 6:.1f}" y="{y + 11}" class="s" style="text-anchor:start">'
            f"{line.encoding}, {line.bits:.2f} bits</text></g>"
        )
    label = f'role="img" aria-label="bytes of each layer of {found.title}, as floats and coded"'
    return Markup(f'<svg class="net" viewBox="0 0 900 {row * len(found.lines)}" {label}>{"".join(out)}</svg>')


def page(found: Stored) -> str:
    """The same as one HTML page with everything in it."""
    from mobilenets.reports import pages

    return pages.render("stored.html", {"kb": lambda v: f"{v / 1000:.2f}"}, r=found, picture=drawing(found))
