import math

import pytest
import torch

from mobilenets.training.optim import TensorFlowRMSprop, schedule
from mobilenets.training.recipes import RECIPES, Overrides, Recipe, recipe

GRADIENTS = [0.5, -2.0, 0.1, 0.0, 3.0]


def path(make, start=1.0):
    """Where an optimizer goes under GRADIENTS."""
    p = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = make([p])
    out = []
    for g in GRADIENTS:
        p.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        out.append(p.item())
    return out


def by_hand(lr, eps, weight_decay=0.0, decay=0.9, momentum=0.9):
    """TensorFlow's definition, in plain numbers (tf.compat.v1.train.RMSPropOptimizer)."""
    p, square, moved, out = 1.0, 1.0, 0.0, []
    for g in GRADIENTS:
        g += weight_decay * p
        square = decay * square + (1 - decay) * g * g
        moved = momentum * moved + lr * g / math.sqrt(square + eps)
        p -= moved
        out.append(p)
    return out


@pytest.mark.parametrize(("lr", "eps", "weight_decay"), [(0.045, 1.0, 0.0), (0.045, 1.0, 4e-5), (0.1, 1e-10, 0.01)])
def test_rmsprop_is_tensorflows(lr, eps, weight_decay):
    got = path(lambda ps: TensorFlowRMSprop(ps, lr=lr, eps=eps, weight_decay=weight_decay))
    assert got == pytest.approx(by_hand(lr, eps, weight_decay), rel=1e-12)


def test_torchs_rmsprop_goes_elsewhere():
    """Epsilon outside of the root, sqrt(v) + 1 for sqrt(v + 1), and v from 0: after four steps a quarter less far."""
    ours = path(lambda ps: TensorFlowRMSprop(ps, lr=0.045))
    theirs = path(lambda ps: torch.optim.RMSprop(ps, lr=0.045, alpha=0.9, momentum=0.9, eps=1.0))
    assert (theirs[3] - 1) / (ours[3] - 1) == pytest.approx(0.745, abs=0.001)


def test_a_changed_rate_applies_to_new_steps_alone():
    """The momentum holds steps, not gradients: what was gathered at the old rate stays."""
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = TensorFlowRMSprop([p], lr=1.0)
    p.grad = torch.ones(1)
    optimizer.step()
    first = 1 - p.item()
    optimizer.param_groups[0]["lr"] = 0.0
    before = p.item()
    optimizer.step()
    assert before - p.item() == pytest.approx(0.9 * first)


def test_its_state_survives_a_checkpoint():
    def run(interrupted):
        torch.manual_seed(0)
        p = torch.nn.Parameter(torch.randn(4))
        optimizer = TensorFlowRMSprop([p], lr=0.1)
        for i in range(6):
            if interrupted and i == 3:
                state = optimizer.state_dict()
                optimizer = TensorFlowRMSprop([p], lr=0.1)
                optimizer.load_state_dict(state)
            p.grad = p.detach() * (i + 1)
            optimizer.step()
        return p.detach()

    assert torch.equal(run(True), run(False))


def test_the_papers_rate_falls_in_each_epoch_and_is_scaled_to_the_batch():
    v2 = RECIPES["v2-paper"]
    per_epoch = 10
    total = v2.epochs * per_epoch
    rates = [schedule(s, total, v2) for s in range(total)]
    assert rates[:per_epoch] == [1.0] * per_epoch
    assert rates[3 * per_epoch] == pytest.approx(0.98**3)
    assert v2.peak_lr == pytest.approx(0.045)
    assert recipe("v2-paper", Overrides(batch=192)).peak_lr == pytest.approx(0.09)
    assert Recipe(batch=192, lr=0.1).peak_lr == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1-paper", "v2-paper", "v3-paper"])
def test_the_papers_recipes_train(tiny_train, tmp_path, name):
    run = tiny_train(tmp_path / "r", "--recipe", name, "--epochs", 4, "--batch", 8, "--lr", 0.01, "--lr-batch", 8)
    assert run.ran.code == 0, run.ran.err
    assert "train_loss" in (run.out / "logs" / "metrics.csv").read_text()
