"""Mistakes of users, as errors."""

import importlib
import pickle

from mobilenets.errors import UserError


def kinds(of: type[UserError]) -> list[type[UserError]]:
    return [of, *(k for one in of.__subclasses__() for k in kinds(one))]


def test_a_mistake_comes_through_from_another_process() -> None:
    """As a pool's process sends it, and as a data loader's: made of the message alone."""
    for name in ("web", "compression.goals", "deploy.lowering", "deploy.update.residual", "data.annotations.open"):
        importlib.import_module(f"mobilenets.{name}")
    every = kinds(UserError)
    assert {"UserError", "Missing", "Refused", "Unmet", "Unsupported"} <= {k.__name__ for k in every}
    for kind in every:
        for made in (kind("said"), pickle.loads(pickle.dumps(kind("said")))):
            assert (type(made), str(made)) == (kind, "said")
