"""What tests of sweeps and of comparisons share."""

import dataclasses

import pytest

from mobilenets.commands import sweep
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.training import trainer as train


@pytest.fixture
def quick(monkeypatch):
    """Training that only draws initial weights, and measuring that takes no time; gives the networks it trained."""
    trained = []

    def train_bundle(d, arch, _recipe, out, *, task, seed, resume, init, log):  # noqa: ARG001
        from mobilenets.model.bundle import random_bundle

        assert task.name == "classify"

        trained.append((out.name, resume))
        if (arch.alpha, seed) in quick_failures:
            raise UserError("the loss became nan in epoch 1")
        b = random_bundle(arch, "float32")
        b = Bundle(b.card.with_labels(d.labels).replace(data=d.describe()), b.tensors)
        (out / "logs").mkdir(parents=True, exist_ok=True)
        (out / "logs" / "metrics.csv").write_text("epoch,val_top1,seconds\n1,50,1.5\n2,60,1.25\n")
        return b.save(out / "float")

    quick_failures = set()
    monkeypatch.setattr(train, "train_bundle", train_bundle)
    monkeypatch.setattr(
        sweep,
        "timed",
        lambda runs, *_: [r if r.error else dataclasses.replace(r, latency_ms=r.macs / 1e6) for r in runs],
    )
    train_bundle.trained, train_bundle.failures = trained, quick_failures
    return train_bundle
