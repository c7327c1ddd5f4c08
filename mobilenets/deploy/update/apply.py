"""An update applied to an installed network: whole, or not at all. No torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mobilenets.deploy.update import keys, labels
from mobilenets.deploy.update.installed import Installation, State
from mobilenets.deploy.update.package import Head, Package
from mobilenets.errors import UserError


@dataclass(frozen=True)
class Step:
    """A network that took another's place: versions and digests; version 0: it was put there by hand.

    `labels`: what changed of its classes, in one line; "" where nothing did.
    """

    head: Head
    version_before: int
    before: str
    labels: str = ""


def apply(place: Installation, package: Package, key: Ed25519PublicKey | None, allow_rollback: bool = False) -> Step:
    """Check an update's signature, by `key` or the one that was asked for before, and apply it. Raises `UserError`.

    Nobody else may change the installation meanwhile (`Installation.alone`).
    """
    state = place.state()
    if key is None and state.key:
        key = keys.of_pem(state.key.encode(), str(place.pointer))
    if key is not None:
        package.check(key)
        state = dataclasses.replace(state, key=keys.public_pem(key).decode())
    elif package.head.key:
        raise UserError(f"{package.path}: signed by {package.head.key}: say by --verify which key you trust")
    return apply_trusted(place, package, state, allow_rollback)


def apply_trusted(place: Installation, package: Package, state: State, allow_rollback: bool = False) -> Step:
    """Apply an update whose signature was checked already; `state` takes the place of the installation's."""
    head, path = package.head, package.path
    if state.name and head.name != state.name:
        raise UserError(f"{path}: for the network {head.name!r}, and here is {state.name!r}; nothing was changed")
    installed = place.contents()
    version = state.versions.get(installed.digest, 0)
    if head.to == installed.digest:
        raise UserError(f"{path}: version {head.version} is installed already")
    if (head.version < state.highest or head.version <= version) and not allow_rollback:
        raise UserError(
            f"{path}: version {head.version} isn't newer than {max(state.highest, version)}, which was installed here; "
            "--allow-rollback takes it nevertheless"
        )
    if head.base and head.base != installed.digest:
        raise UserError(
            f"{path}: changes the network {head.base[:16]}, and here is {installed.digest[:16]}"
            f"{f', version {version}' if version else ''}; nothing was changed"
        )
    made = package.contents(installed)
    known = {installed.digest: version, head.to: head.version}
    state = dataclasses.replace(
        state, name=head.name, versions=known, highest=max(head.version, state.highest if not allow_rollback else 0)
    )
    place.replace(made, state)
    return Step(head, version, installed.digest, labels.changed(installed.labels, made.labels))
