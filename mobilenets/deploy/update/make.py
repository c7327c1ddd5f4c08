"""An update made of two networks: of what has changed, or whole where that takes less. No torch."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mobilenets.deploy.update import delta, package
from mobilenets.deploy.update.contents import Contents
from mobilenets.deploy.update.package import NAME_MOST, NAMED, VERSION_MOST, Head
from mobilenets.errors import UserError
from mobilenets.model.card import Card

NAME = "network"


def make(
    old: Contents,
    new: Contents,
    out: Path,
    *,
    name: str = NAME,
    version: int | None = None,
    key: Ed25519PrivateKey | None = None,
    whole: bool = False,
) -> Head:
    """Write the update from `old` to `new`; `whole`: for any version of the network `name`. Raises `UserError`.

    `version`: by default the time, as a number of digits YYYYMMDDhhmmss in UTC.
    """
    card, before = Card.from_json(new.card), Card.from_json(old.card)
    if new.digest == old.digest:
        raise UserError("both are the same network: there is nothing to update")
    if card.task != before.task:
        raise UserError(f"a network for {card.task} can't take the place of one for {before.task}")
    if version is not None and not 1 <= version <= VERSION_MOST:
        raise UserError(f"versions are whole numbers from 1 to {VERSION_MOST}, not {str(version)[:40]}")
    if not package.is_name(name):
        raise UserError(
            f"a name has letters that can be printed and be in a file's name, {NAME_MOST} at most, not {name[:40]!r}"
        )
    bodies = {"full": new.pack()}
    if not whole:
        bodies["delta"] = delta.encode(new, old)
    kind = min(bodies, key=lambda k: len(bodies[k]))
    now = package.now()
    layers = _changed(card, new, old)
    head = Head(
        kind="full" if kind == "full" else "delta",
        name=name,
        version=version or int(now.strftime("%Y%m%d%H%M%S")),
        base="" if whole else old.digest,
        to=new.digest,
        made=now.isoformat(),
        network=f"{card.arch.title}, {card.precision}",
        size=0,
        sha256="",
        layers=tuple(layers[:NAMED]),
        more=len(layers[NAMED:]),
        labels_added=tuple(n for n in card.labels if n not in before.labels),
        labels_removed=tuple(n for n in before.labels if n not in card.labels),
    )
    return package.write(out, head, bodies[kind], key)


def _changed(card: Card, new: Contents, old: Contents) -> list[str]:
    """Layers that have other weights, or other scales."""
    names = [n for n, values in new.tensors.items() if not delta.same(values, old.tensors.get(n))]
    return [op.name for op in card.graph.layers if any(n.startswith(f"{op.name}.") for n in names)]
