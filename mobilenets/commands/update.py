"""`mobilenets update`: networks that are replaced where they run, by what has changed, signed, and all at once.

What signs and codes is an extra's, and imported when called.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets.arguments import StrPath, checked
from mobilenets.console import Notebook
from mobilenets.errors import UserError

if TYPE_CHECKING:
    from mobilenets.deploy.update.apply import Step
    from mobilenets.deploy.update.package import Head


@dataclass(frozen=True)
class UpdateKey(Notebook):
    """A new key: the file that signs, which is to be kept safe, and the one that verifies, which devices have."""

    private: Path
    public: Path
    name: str

    def to_json(self) -> dict[str, Any]:
        return {"private": str(self.private), "public": str(self.public), "name": self.name}

    def __rich__(self) -> str:
        return (
            f"key      {self.name}\nsigns    {self.private}: keep it safe, and a copy of it: without it no device "
            f"takes another update\nverifies {self.public}: for the devices"
        )


@dataclass(frozen=True)
class Update(Notebook):
    """An update's file: what it is and what it changes. `verified`: whether a key was given that signed it.

    `labels`: what changes of the classes, in one line, where both networks were there to see it.
    """

    path: Path
    head: Head
    size: int
    verified: bool = False
    labels: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path), "bytes": self.size, "verified": self.verified, "labels": self.labels,
            **self.head.to_json(),
        }  # fmt: skip

    def __rich__(self) -> str:
        h = self.head
        kind = "what has changed" if h.kind == "delta" else "the whole network"
        layers = ", ".join(h.layers) + (f" and {h.more} more" if h.more else "") or "none"
        labels = self.labels or ", ".join([f"+ {n}" for n in h.labels_added] + [f"- {n}" for n in h.labels_removed])
        checked = "" if self.verified or not h.key else ", not checked: --verify KEY does"
        rows = [
            ("update", f"{self.path}, {self.size:,} bytes: {kind}"),
            ("of", f"{h.name}, version {h.version}, made {h.made}"),
            ("network", f"{h.network}, {h.to[:16]}"),
            ("takes", f"the place of {h.base[:16]}" if h.base else f"the place of any version of {h.name}"),
            ("layers", layers),
            *([("labels", labels)] if labels else []),
            ("signed", f"by {h.key}{checked}" if h.key else "by nobody"),
        ]
        return "\n".join(f"{name:<9}{text}" for name, text in rows)


@dataclass(frozen=True)
class Updated(Notebook):
    """What was done to an installed network, step by step; nothing where it was the newest already.

    `undone`: the version that `rollback` left, which isn't pulled again; 0 where it left none.
    """

    path: Path
    steps: tuple[Step, ...]
    undone: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "steps": [
                {"from": s.before, "from_version": s.version_before, "labels": s.labels, **s.head.to_json()}
                for s in self.steps
            ],
        }

    def __rich__(self) -> str:
        if self.undone:
            return f"nothing newer than version {self.undone}, which {self.path} was rolled back from"
        if not self.steps:
            return f"{self.path} has the newest version already"
        lines = [
            f"updated  {self.path}: version {s.version_before or '0, put there by hand,'} -> {s.head.version}, "
            f"{s.head.network}, by {'what has changed' if s.head.kind == 'delta' else 'the whole network'}"
            for s in self.steps
        ]
        lines += [f"labels   {s.labels}" for s in self.steps if s.labels]
        return "\n".join([*lines, f"back     mobilenets update rollback {self.path}"])


@dataclass(frozen=True)
class RolledBack(Notebook):
    """The network that is in use again, by its digest and version; version 0: it was put there by hand."""

    path: Path
    digest: str
    version: int

    def to_json(self) -> dict[str, Any]:
        return {"path": str(self.path), "digest": self.digest, "version": self.version}

    def __rich__(self) -> str:
        return f"{self.path} is version {self.version} again, {self.digest[:16]}; once more undoes it"


@checked
def update_key(path: StrPath) -> UpdateKey:
    """Make a key to sign updates with (Ed25519): NAME, and NAME.pub, which verifies.

    Parameters
    ----------
    path
        File of the new key; the public one gets `.pub` after its name.

    Returns
    -------
    UpdateKey
        Both files, and the `name` that updates call the key by.

    Raises
    ------
    UserError
        Where there is such a file already.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.update_key("keys/release").public.name
    'release.pub'
    """
    from mobilenets.deploy.update import keys

    private, public = keys.make(Path(path))
    return UpdateKey(private, public, keys.name(keys.verifying(public)))


@checked
def make_update(
    old: StrPath,
    new: StrPath,
    *,
    out: StrPath,
    sign: StrPath | None = None,
    name: str | None = None,
    number: int | None = None,
    whole: bool = False,
) -> Update:
    """Make the update that turns one network into another: what has changed, or all of it where that is smaller.

    Both may be folders or .mnz files, float or int8, of the same architecture or not; the task must be the same.

    Parameters
    ----------
    old
        The network that is installed: a bundle.
    new
        The network that is to take its place: a bundle.
    out
        File to write, .mnu.
    sign
        Key to sign it with, of `update key`.
    name
        What the network is called, so that a device that has several takes none for another: "network" if left out.
    number
        The version, which only goes up: the time (YYYYMMDDhhmmss, UTC) if left out.
    whole
        All of the network, for devices that have any version of it.

    Returns
    -------
    Update
        The file's `head`: what it is, what it applies to, and what it changes.

    Raises
    ------
    UserError
        For what is no bundle or no key, networks for different tasks, and where both are the same.

    Examples
    --------
    >>> import mobilenets
    >>> mobilenets.make_update("cifar10-v1-0.25", "cifar10-v2-0.25", out="u.mnu").head.network
    'v2-cifar 0.25-32, float32'
    """
    from mobilenets.deploy.update import keys, labels
    from mobilenets.deploy.update.contents import Contents
    from mobilenets.deploy.update.make import NAME, make
    from mobilenets.deploy.update.package import SUFFIX

    path, key = Path(out), keys.signing(Path(sign)) if sign is not None else None
    if path.suffix != SUFFIX:
        raise UserError(f"{out}: the name of an update ends in {SUFFIX}")
    before, after = Contents.read(Path(old)), Contents.read(Path(new))
    head = make(before, after, path, name=name or NAME, version=number, key=key, whole=whole)
    moved = labels.changed(before.labels, after.labels)
    return Update(path, head, path.stat().st_size, key is not None, moved)


@checked
def apply_update(
    installed: StrPath, update: StrPath, *, verify: StrPath | None = None, allow_rollback: bool = False
) -> Updated:
    """Put the network that an update makes in the place of the one installed, all at once; that one is kept.

    Interrupted at any moment it leaves the old network or the new one. What was updated once by a signed update takes
    none that another key signed, or none.

    Parameters
    ----------
    installed
        A bundle's folder or a .mnz file.
    update
        The update's file.
    verify
        The public key that must have signed it; it is remembered.
    allow_rollback
        Take an update though its version isn't newer than what was installed before.

    Returns
    -------
    Updated
        The versions before and after.

    Raises
    ------
    UserError
        For an update that is damaged, older, for another network, or not signed by the key; where another process
        updates the same network, or the disk is full. The network installed is as it was.

    Examples
    --------
    >>> import mobilenets
    >>> _ = mobilenets.Bundle.load("cifar10-v1-0.25").save("installed")
    >>> _ = mobilenets.make_update("installed", "cifar10-v2-0.25", out="u.mnu")
    >>> mobilenets.apply_update("installed", "u.mnu").steps[0].version_before
    0
    """
    from mobilenets.deploy.update import keys, package
    from mobilenets.deploy.update.apply import apply
    from mobilenets.deploy.update.installed import Installation

    place = Installation(Path(installed))
    key = keys.verifying(Path(verify)) if verify is not None else None
    made = package.read(Path(update))
    with place.alone():
        return Updated(place.path, (apply(place, made, key, allow_rollback),))


@checked
def show_update(update: StrPath, *, verify: StrPath | None = None) -> Update:
    """What an update's file says of itself: what it applies to, and which layers and labels it changes.

    Parameters
    ----------
    update
        The update's file.
    verify
        The public key that must have signed it.

    Returns
    -------
    Update
        Its `head`.

    Raises
    ------
    UserError
        For a file that is none, or damaged, or not signed by the key.

    Examples
    --------
    >>> import mobilenets
    >>> _ = mobilenets.make_update("cifar10-v1-0.25", "cifar10-v2-0.25", out="u.mnu", number=3)
    >>> mobilenets.show_update("u.mnu").head.version
    3
    """
    from mobilenets.deploy.update import keys, package

    path, key = Path(update), None if verify is None else Path(verify)
    made = package.read(path)
    if key is not None:
        made.check(keys.verifying(key))
    return Update(path, made.head, path.stat().st_size, key is not None)


@checked
def roll_back(installed: StrPath) -> RolledBack:
    """Have the network that was installed before the last update again.

    Parameters
    ----------
    installed
        The bundle's folder, or the .mnz file.

    Returns
    -------
    RolledBack
        Which version that is.

    Raises
    ------
    UserError
        Where no older version is kept.

    Examples
    --------
    >>> import mobilenets
    >>> _ = mobilenets.Bundle.load("cifar10-v1-0.25").save("installed")
    >>> _ = mobilenets.make_update("installed", "cifar10-v2-0.25", out="u.mnu")
    >>> _ = mobilenets.apply_update("installed", "u.mnu")
    >>> mobilenets.roll_back("installed").version
    0
    """
    from mobilenets.deploy.update.installed import Installation

    place = Installation(Path(installed))
    with place.alone():
        digest = place.roll_back()
        return RolledBack(place.path, digest, place.state().versions.get(digest, 0))
