"""Networks of different design at the same macs: their widths, and what the seeds can say of them."""

import dataclasses
from pathlib import Path

import pytest
from swept import made

from mobilenets.arch import cost, zoo
from mobilenets.arch.matching import at_macs
from mobilenets.errors import UserError
from mobilenets.tasks.classify import PRIMARY as TOP1
from mobilenets.training import recipes
from mobilenets.training.sweep import Sweep


def test_widths_are_found_by_the_macs():
    for name in ("v1", "v2", "v3-small"):
        found = at_macs(lambda alpha, name=name: zoo.arch(name, alpha, 64, 10), 4_000_000)
        assert abs(cost.count(found).macs - 4_000_000) < 600_000, name
    with pytest.raises(UserError, match="v1 at 64 px has no width with 1e\\+04 M macs: the nearest, 2, has"):
        at_macs(lambda alpha: zoo.arch("v1", alpha, 64, 10), 10_000_000_000)


@pytest.mark.slow
def test_networks_are_compared_at_the_same_macs(command, colours, tmp_path, quick):
    out = tmp_path / "compare"
    line = ("compare", "v1", "v2", "--data", colours, "--out", out, "--resolution", "32", "--seeds", "2")
    got = command(*line, "--macs", "2000000", "--json").json
    assert len(quick.trained) == 4
    assert got["macs"] == 2_000_000
    assert {n["arch"] for n in got["networks"]} == {"v1", "v2"}
    assert all(abs(n["macs"] - 2_000_000) < 300_000 for n in got["networks"])
    assert "what 2 M macs buy" in (out / "sweep.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_the_smallest_network_says_how_many(command, colours, tmp_path):
    line = ("compare", "v1", "v3-small", "--data", colours, "--out", tmp_path / "c", "--seeds", "1", "--json")
    assert command(*line, "--resolution", "32").json["macs"] == cost.count(zoo.arch("v3-small", 1.0, 32)).macs
    assert command("compare", "v1", "--data", colours).err == (
        "mobilenets: compare needs two networks or more: mobilenets compare v1 v2 --data DATA\n"
    )


def test_what_is_chance_is_said():
    v1 = [made(seed=s, score=90 + s) for s in range(3)]
    near = [made(arch="v2", seed=s, score=90.5 + s) for s in range(3)]
    far = [made(arch="v3-small", seed=s, score=70 + s) for s in range(3)]
    of = Sweep(Path("out"), "data", recipes.recipe("modern"), "float32", 1, 9, (*v1, *near, *far), TOP1, 2_000_000)
    assert of.verdict == (
        "of 2 M macs, v2 0.25-32 makes the most (91.50%); v1 0.25-32 may be as good: within two standard errors"
    )
    assert "--seeds 3" in dataclasses.replace(of, runs=(v1[0], near[0])).verdict
    assert dataclasses.replace(of, macs=0).verdict == ""


def test_networks_that_learned_nothing_are_named():
    """SqueezeNet, without BatchNorm, has 17.8% of CIFAR-10 where others have 80, at the rate that they bear."""
    runs = [
        made(arch=name, seed=0, score=score) for name, score in (("v1", 80.0), ("squeezenet-1.1", 17.8), ("v2", 40.0))
    ]
    of = Sweep(Path("out"), "data", recipes.recipe("cifar"), "float32", 1, 3, tuple(runs), TOP1, 0, 10.0)
    assert of.untaught.startswith("squeezenet-1.1 ")
    assert "17.80%" in of.untaught
    assert "10.00%" in of.untaught
    assert "v2" not in of.untaught
    assert dataclasses.replace(of, floor=None).untaught == ""
    assert dataclasses.replace(of, runs=(runs[0], runs[2])).untaught == ""
