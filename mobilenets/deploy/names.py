"""What networks are called that a command line names: NAME=PATH, or a path. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mobilenets.deploy import engines
from mobilenets.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def called(given: str) -> tuple[str | None, Path]:
    """The name that is given to a path, None where none is, and the path."""
    name, equals, path = given.partition("=")
    return (None, Path(given)) if not equals or "/" in name or Path(given).exists() else (name, Path(path))


def named(paths: Iterable[str]) -> tuple[tuple[str, Path], ...]:
    """(name, path) of each: NAME=PATH, or a path, which is named by its last part.

    Raises `UserError` for two of one name, and for a name that an address can't have.
    """
    found: dict[str, Path] = {}
    for given in paths:
        name, path = called(given)
        name = _stem(path) if name is None else name
        if not NAME.fullmatch(name):
            raise UserError(f"{given}: {name!r} can't be a name in an address: give NAME={path}")
        if name in found:
            raise UserError(f"two networks are called {name}: give one of them as NAME={path}")
        found[name] = path
    if not found:
        raise UserError("name at least one network: a file, a bundle or a run")
    return tuple(found.items())


def _stem(path: Path) -> str:
    return path.stem if path.suffix in {*engines.SUFFIXES, ".mnz"} else path.name
