"""The heads that need nothing but an arch: probabilities of its classes, and features. No torch."""

from __future__ import annotations

from mobilenets.arch.graph import Head, Output
from mobilenets.arch.operations import Op
from mobilenets.arch.spec import CLASSIFIER, Arch
from mobilenets.errors import UserError

PROBABILITIES, LOGITS, FEATURES = "probabilities", "logits", "features"


def classifier_head(arch: Arch) -> Head:
    """Softmax of what the arch's own classifier gives, its values by the name "logits"."""
    return _probabilities(arch, "softmax")


def tag_head(arch: Arch) -> Head:
    """The same with a sigmoid: each label has a probability of its own, and any number of them may hold.

    Raises `UserError` for an arch whose classifier gives no number below 0.
    """
    if arch.classifies == "map":
        raise UserError(f"{arch.name} gives no label a number below 0, which a tag that isn't there needs")
    return _probabilities(arch, "sigmoid")


def _probabilities(arch: Arch, kind: str) -> Head:
    last = arch.ops[-1]
    ops = (
        Op(LOGITS, "flatten", last.cout, last.cout, inputs=(last.name,)),
        Op(PROBABILITIES, kind, last.cout, last.cout, inputs=(LOGITS,)),
    )
    return Head(ops, (Output(PROBABILITIES, PROBABILITIES, "of each label"),), (CLASSIFIER,))


def feature_head(arch: Arch, tap: str = "") -> Head:
    """What the network sees, before any classifier: its pooled vector; or the output of the operation `tap`.

    A tapped map is given as it is, [channels, height, width], a single position as a vector. Raises `UserError`.
    """
    graph = arch.graph
    op = graph.op(tap) if tap else graph.ops[-2 if arch.num_classes else -1]
    channels, height, width = graph.shapes[op.name]
    if height * width > 1:
        return Head((), (Output(FEATURES, op.name, f"output of {op.name}"),))
    what = f"output of {op.name}" if tap else "pooled features"
    return Head((Op(FEATURES, "flatten", channels, channels, inputs=(op.name,)),), (Output(FEATURES, FEATURES, what),))
