"""Who may call an engine: any thread, and a forked process where the runtime can do without its threads."""

from __future__ import annotations

import contextlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator

from mobilenets.deploy.engines import Outputs
from mobilenets.errors import UserError
from mobilenets.model.card import Card
from mobilenets.model.images import Pixels

_turns: dict[tuple[str, int], threading.Lock] = {}  # by engine's name and process: a forked one's lock may be held


class Guarded(ABC):
    """An engine whose calls wait for each other unless its runtime is `concurrent`.

    They wait for those of other networks too: PyTorch's and ExecuTorch's threads are the whole process's. `forks`:
    whether a network on one thread answers in a process that was forked after it was loaded. Threads of a runtime's own
    are gone there, and a call would wait for them for good: it is a `UserError`.
    """

    name: str
    card: Card
    concurrent = False
    forks = True

    def __init__(self, threads: int) -> None:
        self.threads, self._process = threads, os.getpid()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with _turns.setdefault((self.name, os.getpid()), threading.Lock()):
            yield

    def __call__(self, images: Pixels) -> Outputs:
        if os.getpid() != self._process and (self.threads > 1 or not self.forks):
            raise UserError(
                f"this process was forked after its {self.name} network was loaded, whose threads are gone here: start "
                "processes by multiprocessing.get_context('spawn')"
            )
        with contextlib.nullcontext() if self.concurrent else self.turn():
            return self.answer(images)

    @abstractmethod
    def answer(self, images: Pixels) -> Outputs:
        """The card's outputs of uint8 [N, H, W, 3], as an engine's call gives them."""
