"""A choice and a run's log, made up."""

from __future__ import annotations

from pathlib import Path

from mobilenets.arch.spec import Arch
from mobilenets.deploy.choose import Budget, Candidate, Choice
from mobilenets.deploy.latency import Setting
from mobilenets.tasks.labelled import PRIOR
from mobilenets.tasks.task import Prior


def make_choice(arch: Arch, count: int = 6, **budget: float) -> Choice:
    out = []
    for i in range(count):
        a, setting = arch.replace(alpha=arch.alpha + 0.1 * i), Setting("onnxruntime", "int8", 1)
        kind = "published" if i else "extrapolated"
        out.append(Candidate(a, setting, Prior(PRIOR, 50.0 + 3 * i, kind), 0.1 * 1.5**i, 0.2 + 0.1 * i, 1, 1, 0.1))
    limits = Budget(**{f"max_{k}": v for k, v in budget.items()})
    pick = max((c for c in out if c.overshoot(limits) <= 1), key=lambda c: c.prior.value)
    return Choice(pick, tuple(out), limits, "a machine x2", {"onnxruntime": "1.0"})


def write_metrics(path: Path, epochs: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{e},{2 / e},{3 / e},{90 - 10 / e},0.001,1.5" for e in range(1, epochs + 1)]
    path.write_text("\n".join(["epoch,train_loss,val_loss,val_top1,lr,seconds", *rows]) + "\n")
    return path
