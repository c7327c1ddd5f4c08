"""An update in one file, `.mnu`: what it is, a seal on that, and the network or what of it has changed. No torch.

    "MNU1", bytes of the head (uint32), the head (JSON), the seal (64 bytes), the body

The seal is an Ed25519 signature of all before it; of an unsigned update its SHA-512, which tells damage, not forgery.
The head has the body's size and SHA-256. Of a delta the body is `delta`'s, else a .mnz file.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mobilenets import files
from mobilenets.arch import fields
from mobilenets.deploy.update import delta, keys
from mobilenets.deploy.update.contents import Contents
from mobilenets.errors import UserError
from mobilenets.model import bundle as bundles

SUFFIX = ".mnu"
MAGIC = b"MNU1"
FORMAT = 1
HEAD_MOST, BODY_MOST = 1 << 16, 512 << 20  # bytes
START = len(MAGIC) + 4
VERSION_MOST = 10**18  # in whole numbers that any program can read
NAME_MOST = 100  # letters
DIGEST = re.compile(r"[0-9a-f]{64}")
NAMED = 4  # layers that a head names; of more it says how many

Kind = Literal["full", "delta"]


@dataclass(frozen=True)
class Head:
    """What an update is.

    `name`: of what it updates; `version` only goes up; `base`: the digest of the bundle that it applies to, "" for any
    of that name; `to`: of the bundle that it makes. `size` and `sha256` are the body's, `key` is the name of the key
    that signed it. `layers` have other weights; `more`: how many others do.
    """

    kind: Kind
    name: str
    version: int
    base: str
    to: str
    made: str
    network: str
    size: int
    sha256: str
    key: str = ""
    layers: tuple[str, ...] = ()
    more: int = 0
    labels_added: tuple[str, ...] = ()
    labels_removed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, d: dict[str, Any]) -> Head:
        """The inverse of `to_json`. Raises `UserError` for a newer format, and what a malformed one makes it raise."""
        if d["format"] != FORMAT:
            raise UserError("written by a newer mobilenets; upgrade with: pip install --upgrade mobilenets")
        lists = ("layers", "labels_added", "labels_removed")
        given: dict[str, Any] = {f.name: d[f.name] for f in dataclasses.fields(cls)}
        head = cls(**given | {name: tuple(given[name]) for name in lists})
        fields.check(head, cls, "head")
        if not 1 <= head.version <= VERSION_MOST or not 0 <= head.size <= BODY_MOST:
            raise ValueError(f"version {head.version}, {head.size} bytes")
        if not is_name(head.name) or not all(DIGEST.fullmatch(d) for d in (head.to, head.base or head.to)):
            raise ValueError(f"of {head.base[:64]!r} and the name {head.name[:64]!r}")  # both become names of files
        datetime.datetime.fromisoformat(head.made)
        return head


def is_name(name: str) -> bool:
    """Whether a network can be called so: a part of a file's name, on any system."""
    return name.isprintable() and 0 < len(name.strip()) <= len(name) <= NAME_MOST and not set(name) & set('/\\:*?"<>|')


@dataclass(frozen=True)
class Package:
    """An update as it was read: its seal is right, and so are the body's size and digest."""

    path: Path
    head: Head
    signed: bytes
    seal: bytes
    body: memoryview

    def check(self, key: Ed25519PublicKey) -> None:
        """Raises `UserError` where it isn't signed by a key."""
        if not self.head.key:
            raise UserError(f"{self.path}: not signed, and {keys.name(key)} must have signed it")
        if not keys.verifies(key, self.seal, self.signed):
            raise UserError(
                f"{self.path}: not signed by {keys.name(key)} but by {self.head.key}, or altered since; nothing was "
                "changed"
            )

    def contents(self, base: Contents) -> Contents:
        """The network it makes of what is installed. Raises `UserError`."""
        try:
            made = Contents.unpack(self.body) if self.head.kind == "full" else delta.decode(self.body, base)
            bundles.check_weights(made.card, made.tensors, "its network")
        except UserError as e:
            raise UserError(f"{self.path}: can't be applied: {e}") from e
        if made.digest != self.head.to:
            raise UserError(f"{self.path}: makes another network than it says (digest {made.digest[:16]})")
        return made


def write(path: Path, head: Head, body: bytes, key: Ed25519PrivateKey | None) -> Head:
    """Write an update, signed where there is a key; returns its head as it is written."""
    head = dataclasses.replace(
        head,
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        key=keys.name(key.public_key()) if key else "",
    )
    text = json.dumps(head.to_json(), separators=(",", ":")).encode()
    if len(text) > HEAD_MOST:
        raise UserError(f"{path}: the names of its labels take more than {HEAD_MOST} bytes")
    start = MAGIC + struct.pack("<I", len(text)) + text
    seal = key.sign(start) if key else hashlib.sha512(start).digest()
    with files.atomic_file(path) as tmp:
        tmp.write_bytes(start + seal + body)
    return head


def read(path: Path) -> Package:
    """Read an update; of a signed one, its own seal is `Package.check`'s to judge. Raises `UserError`."""
    try:
        size = path.stat().st_size
        if size > BODY_MOST + HEAD_MOST + 1024:
            raise UserError(f"{path}: {size:,} bytes, more than any update has")
        data = path.read_bytes()
    except OSError as e:
        raise UserError(f"{path}: no update can be read there ({e.strerror})") from e
    if data[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path}: not an update (.mnu)")
    damaged = UserError(f"{path}: cut off or damaged; fetch it again")
    length = int.from_bytes(data[len(MAGIC) : START], "little")
    end = START + length
    if length > HEAD_MOST or len(data) < end + keys.SIGNATURE:
        raise damaged
    signed, seal, body = data[:end], data[end : end + keys.SIGNATURE], memoryview(data)[end + keys.SIGNATURE :]
    try:
        head = Head.from_json(files.parse_json(data[START:end]))
    except UserError as e:
        raise UserError(f"{path}: {e}") from e
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as e:
        raise damaged from e
    if not head.key and hashlib.sha512(signed).digest() != seal:
        raise damaged
    if len(body) != head.size or hashlib.sha256(body).hexdigest() != head.sha256:
        raise damaged
    return Package(path, head, signed, seal, body)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
