"""Where a network is installed, and how it is replaced: all at once, with the one before it kept. No torch.

A folder has its versions in folders of their own, and `installed.json`, which names the one in use and is replaced in
one step. A .mnz file is itself replaced in one step; what is known of it lies in a folder beside it. Whenever a step is
interrupted, what is read is the old network or the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mobilenets import files
from mobilenets.arch import fields
from mobilenets.deploy.update.contents import Contents, put, sync
from mobilenets.deploy.update.lock import alone
from mobilenets.errors import UserError, disk_errors
from mobilenets.model import bundle as bundles
from mobilenets.model import mnz
from mobilenets.model.bundle import CARD, WEIGHTS
from mobilenets.model.installed import ITSELF, POINTER, inside

VERSIONS, LOCK, INDEX = "versions", "lock", "index"
OLD, NEW, KEPT = "old" + mnz.SUFFIX, "new" + mnz.SUFFIX, "kept" + mnz.SUFFIX


@dataclass(frozen=True)
class State:
    """What is known of an installed network.

    `name`: of the network that it is updated as; `current` and `old`: of a folder, its versions' names; `versions`: by
    their digests; `highest`: the highest version that ever was; `key`: the public key (PEM) that updates must be signed
    with, once one was; `seen`: when an index was last found fresh (ISO 8601).
    """

    name: str = ""
    current: str = ITSELF
    old: str = ""
    versions: dict[str, int] = field(default_factory=dict)
    highest: int = 0
    key: str = ""
    seen: str = ""

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> State:
        state = cls(**{f.name: d[f.name] for f in dataclasses.fields(cls)})
        fields.check(state, cls, "installed")
        return state


class Installation:
    """The network installed at `path`: a bundle's folder, or a .mnz file. Raises `UserError` where there is none."""

    def __init__(self, path: Path) -> None:
        self.path = files.local(path)
        if self.path.is_file() and self.path.suffix == mnz.SUFFIX:
            self.path = self.path.resolve() if self.path.is_symlink() else self.path  # whoever reads what it names too
            self.home, self.one_file = self.path.with_name(f".{self.path.name}.updates"), True
        elif bundles.is_bundle(self.path) or (self.path / POINTER).is_file():
            self.home, self.one_file = self.path, False
        else:
            raise UserError(f"{self.path}: no network is installed there: give a bundle's folder or a .mnz file")

    @property
    def pointer(self) -> Path:
        return self.home / POINTER

    def state(self) -> State:
        return files.read_object(self.pointer, State.from_json, "an installation") if self.pointer.exists() else State()

    def contents(self) -> Contents:
        return Contents.read(self.path)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from changing it. Raises `UserError` where another does already."""
        with disk_errors(str(self.home)):
            self.home.mkdir(exist_ok=True)
            with alone(self.home / LOCK, self.path):
                for left in self.home.glob(".*.tmp.*"):  # of a process that was killed
                    left.unlink(missing_ok=True)
                yield

    def replace(self, new: Contents, state: State) -> State:
        """Put a network in the place of the one installed, and what is known in place of `state`, but for `current`."""
        with disk_errors(str(self.path)):
            return (self._replace_file if self.one_file else self._replace_folder)(new, state)

    def keep(self, state: State) -> None:
        """Write down what is known. Raises `UserError`."""
        files.write_json(self.pointer, dataclasses.asdict(state))
        sync(self.home)

    def roll_back(self) -> str:
        """Have the network before this one again, and this one as the one before; returns its digest.

        Raises `UserError` where there is none, or it isn't sound any more.
        """
        state = self.state()
        old = self.home / OLD if self.one_file else inside(self.home, state.old or "none")
        if not (self.one_file or state.old) or not old.exists():
            raise UserError(f"{self.path}: no older version is kept")
        digest = str(bundles.read(old)[1]["digest"])  # of that very folder, whatever is in use there
        if digest == self.contents().digest:
            raise UserError(f"{self.path}: no older version is kept: an update was interrupted")
        with disk_errors(str(self.path)):
            if self.one_file:
                _copy(self.path, self.home / KEPT)
                _copy(old, self.home / NEW)
                self._move(self.home / NEW, self.path)
                self._move(self.home / KEPT, old)
            else:
                self.keep(dataclasses.replace(state, current=state.old, old=state.current))
        return digest

    # ---- a folder

    def _replace_folder(self, new: Contents, state: State) -> State:
        name = f"{VERSIONS}/{state.versions[new.digest]}-{new.digest[:16]}"
        made = self.home / name
        try:
            if name not in (state.current, state.old):
                shutil.rmtree(made, ignore_errors=True)  # of an update that was interrupted
                new.save(made)
            sync(made.parent)
            state = dataclasses.replace(state, current=name, old=state.current)
            self.keep(state)
        finally:
            self._tidy(self.state())
        return state

    def _tidy(self, state: State) -> None:
        """Remove what is neither the version in use nor the one before it."""
        used = {inside(self.home, n) for n in (state.current, state.old) if n}
        for path in (self.home / VERSIONS).glob("*"):
            if path not in used:
                shutil.rmtree(path, ignore_errors=True)
        if self.home not in used:
            for name in (CARD, WEIGHTS):
                with contextlib.suppress(OSError):
                    (self.home / name).unlink()

    # ---- a file

    def _replace_file(self, new: Contents, state: State) -> State:
        begun = self.home / NEW
        try:
            new.save(begun)
            self.keep(dataclasses.replace(state, highest=self.state().highest))  # the new one isn't there yet
            _copy(self.path, self.home / KEPT)
            self._move(self.home / KEPT, self.home / OLD)
            self._move(begun, self.path)
            with contextlib.suppress(UserError, OSError):  # `versions` says it too, of what is in use
                self.keep(state)
        finally:
            for left in (begun, self.home / KEPT):
                left.unlink(missing_ok=True)
        return state

    def _move(self, source: Path, target: Path) -> None:
        source.replace(target)
        sync(target.parent)


def _copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    put(target, source.read_bytes())
