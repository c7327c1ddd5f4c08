"""Importing runtimes without what some of them say, or tell their makers, while they are imported."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def suppress_warnings() -> Iterator[None]:
    """Without warnings, log lines and progress bars: of experimental parts, of versions of libraries not used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """As if `package` weren't installed, for those who would use it if it were."""
    there = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if there:
            sys.modules[package] = there
