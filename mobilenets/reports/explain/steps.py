"""A part as what is drawn of it: boxes in order, an operation each, and what is written in them."""

from __future__ import annotations

from dataclasses import dataclass

from mobilenets.arch.operations import Activation, Op
from mobilenets.reports.explain.parts import Part, short
from mobilenets.reports.explain.words import shape

ACTIVATIONS: dict[Activation | None, str] = {
    "relu": "ReLU", "relu6": "ReLU6", "hard_swish": "hard-swish", "hard_sigmoid": "hard-sigmoid", "gelu": "GELU",
    None: "linear",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One box of a drawing: an operation with its activation, a squeeze-excite, or attention with its `branches`."""

    kind: str
    op: Op
    activation: Activation | None = None
    branches: tuple[tuple[Op, ...], ...] = ()

    @property
    def stride(self) -> str:
        return f"/{self.op.stride}" if self.op.stride > 1 else ""


def steps(part: Part) -> list[Step]:
    """A part's operations as boxes, in order; its shortcut is `part.shortcut`."""
    activations = {op.inputs[0]: op.activation for op in part.ops if op.kind == "activation"}
    by_name = {short(op): op for op in part.ops}
    out = []
    for op in part.ops:
        name = short(op)
        if name == "se":
            out.append(Step("se", op, branches=((by_name["se_reduce"], by_name["se_expand"]),)))
        elif op.kind == "attend":
            branch = tuple(
                tuple(by_name[n] for n in (f"{b}_down", b) if n in by_name) for b in ("query", "key", "value")
            )
            out.append(Step("attend", op, branches=branch))
        elif op.kind not in ("add", "activation") and not name.startswith(("se_", "query", "key", "value")):
            out.append(Step(op.kind, op, activations.get(op.name, op.activation)))
    return out


def caption(s: Step, part: Part) -> list[str]:
    """The three lines inside a step's box."""
    out = shape((s.op.cout, part.sides[s.op.name], part.sides[s.op.name]))
    size = f"{s.op.kernels[0]}x{s.op.kernels[1]}{s.stride}"
    role = {"expand": "expand", "project": "project", "pointwise": "pointwise", "output": "output"}.get(short(s.op), "")
    match s.kind:
        case "se":
            return ["squeeze-excite", out, f"by way of {s.branches[0][0].cout}"]
        case "attend":
            return ["attend", out, f"{s.op.heads} heads"]
        case "norm":
            return ["BatchNorm", out, ""]
        case "pool":
            return ["mean", out, ""]
        case "maxpool":
            return [f"max {size}", out, ""]
        case "avgpool":
            return [f"mean {size}", out, ""]
        case "shuffle" | "slice" | "concat":
            return [s.kind, out, ""]
        case "depthwise":
            role = "depthwise"
        case "conv" if not role:
            role = "convolution"
        case "linear":
            return ["linear", str(s.op.cout), "softmax"]
    return [f"{size} {role}".strip(), out, ACTIVATIONS[s.activation]]
