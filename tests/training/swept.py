"""A training of a sweep, as if it had been."""

import dataclasses

from mobilenets.arch import cost, zoo
from mobilenets.training.sweep import Trained


def made(alpha=0.25, resolution=32, seed=0, score=90.0, latency=1.0, arch="v1", **changes):
    counted = cost.count(zoo.arch(arch, alpha, resolution, 3))
    cost_of = counted.macs, counted.params
    trained = Trained(arch, alpha, resolution, seed, *cost_of, "somewhere", "val", 24, score, 900_000, 2.0, latency)
    return dataclasses.replace(trained, **changes)
