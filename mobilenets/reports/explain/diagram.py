"""A graph of operations as inline SVG: what follows from left to right, what is side by side one below another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mobilenets.arch.operations import Op
from mobilenets.reports.explain.drawings import box, line, svg
from mobilenets.reports.explain.lessons import Way
from mobilenets.reports.explain.parts import Shape
from mobilenets.reports.explain.words import shape

WIDTH, HEIGHT, ACROSS, DOWN = 104, 44, 18, 14  # of a box, and between two, in SVG units
WORDS = {
    "conv": "conv", "depthwise": "depthwise", "pointwise": "1x1", "linear": "linear", "pool": "mean", "add": "+",
    "mul": "×", "maxpool": "max", "avgpool": "mean", "activation": "activation",
}  # fmt: skip


def words(op: Op) -> str:
    """What an operation is: "conv 3x3 /2", "1x1, 3 groups", "concat"."""
    rows, columns = op.kernels
    sized = op.kind in ("conv", "depthwise", "maxpool", "avgpool") and (op.kernels != (1, 1))
    name = "1x1" if op.kind == "conv" and op.kernels == (1, 1) else WORDS.get(op.kind, op.kind)
    size = f" {rows}x{columns}" if sized else ""
    groups = f" in {op.grouped}" if op.grouped and op.kind == "conv" else ""
    return f"{name}{size}{groups}" + (f" /{op.stride}" if op.stride > 1 else "")


def placed(source: str, ops: Sequence[Op]) -> dict[str, tuple[int, int]]:
    """Column and row of the source and of every operation: a column after all it reads, a row of its own in it."""
    at = {source: (0, 0)}
    taken: dict[int, int] = {0: 1}
    for op in ops:
        column = 1 + max(at[name][0] for name in op.inputs)
        # beside what it reads where that is free, so that a chain runs straight on
        row = max(taken.get(column, 0), at[op.inputs[0]][1] if column not in taken else 0)
        if len(op.inputs) > 1:
            row = taken.get(column, 0)
        at[op.name] = column, row
        taken[column] = row + 1
    return at


def drawn(way: Way) -> str:
    """A block operation by operation; a whole network as the maps that its blocks give."""
    return profile(way) if way.whole else diagram(way.source, way.ops, way.shapes, way.name)


def profile(way: Way) -> str:
    """A network as a row of slabs, as tall as its blocks' maps, below them their sides in pixels."""
    arch = way.cost.arch
    sides = [arch.resolution, *(arch.sides[b.output] for b in arch.blocks)]
    wide, apart, tall = 30, 8, 96
    out = []
    for i, side in enumerate(sides):
        x, h = i * (wide + apart) + 1, tall * side / arch.resolution
        out.append(f'<rect class="slab" x="{x}" y="{tall - h + 1:.1f}" width="{wide}" height="{h:.1f}" rx="2"/>')
        out.append(f'<text x="{x + wide / 2}" y="{tall + 16}" class="s">{side}</text>')
    width = len(sides) * (wide + apart) - apart + 2
    label = f"{way.name}: maps of {', '.join(map(str, sides))} pixels"
    return svg("block", f"0 0 {width} {tall + 22}", label, f"--width:{width}px", out)


def diagram(source: str, ops: Sequence[Op], shapes: Mapping[str, Shape], name: str) -> str:
    """Operations, each with the shape of what it gives, from the map they start from; `name` is said of them all."""
    at = placed(source, ops)
    out = []

    def corner(name: str) -> tuple[float, float]:
        column, row = at[name]
        return column * (WIDTH + ACROSS) + 1.0, row * (HEIGHT + DOWN) + 1.0

    for op in ops:
        x, y = corner(op.name)
        for read in op.inputs:
            from_x, from_y = corner(read)
            start, end = (from_x + WIDTH, from_y + HEIGHT / 2), (x, y + HEIGHT / 2)
            if at[op.name][0] - at[read][0] == 1:
                out.append(line(start, end, arrow=True))
            else:  # past the boxes between, below all of them
                low = (1 + max(row for _, row in at.values())) * (HEIGHT + DOWN) - DOWN / 2
                turn, back = start[0] + ACROSS / 3, x - ACROSS / 3
                out.append(line(start, (turn, start[1]), (turn, low), (back, low), (back, end[1]), end, arrow=True))
    for there, text, kind in ((source, "map", ""), *((op.name, words(op), op.kind) for op in ops)):
        x, y = corner(there)
        out.append(box(x, y + HEIGHT / 2, WIDTH, [text, shape(shapes[there])], kind, HEIGHT))
    columns, rows = (1 + max(p[i] for p in at.values()) for i in (0, 1))
    width, height = columns * (WIDTH + ACROSS) - ACROSS + 2, rows * (HEIGHT + DOWN) + 4
    label = f"{name}: {', '.join(map(words, ops))}"
    return svg("block", f"0 0 {width} {height}", label, f"--width:{width}px", out)
