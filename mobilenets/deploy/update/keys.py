"""Ed25519 keys, as PEM files: one that signs, and beside it, `.pub`, one that verifies. No torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mobilenets.errors import UserError, disk_errors

PUBLIC = ".pub"
MOST = 1 << 14  # bytes of a key's file
SIGNATURE = 64  # bytes


def make(path: Path) -> tuple[Path, Path]:
    """Write a new key, which only its owner can read, and its public one; returns both paths. Raises `UserError`."""
    if path.name in ("", ".."):
        raise UserError(f"{str(path)!r} is no name of a file: give the new key one")
    public = path.with_name(path.name + PUBLIC)
    for p in (path, public):
        if os.path.lexists(p):  # a link to nowhere too
            raise _taken(p)
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with disk_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as e:  # made by another process since: its key stays
            raise _taken(path) from e
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(secret)
            public.write_bytes(public_pem(key.public_key()))
        except BaseException:
            path.unlink(missing_ok=True)
            public.unlink(missing_ok=True)
            raise
    return path, public


def _taken(path: Path) -> UserError:
    return UserError(f"{path} is there already, and a key that is lost can't be made again: choose another name")


def public_pem(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def signing(path: Path) -> Ed25519PrivateKey:
    """The key of a file that signs. Raises `UserError`."""
    try:
        key = serialization.load_pem_private_key(_read(path), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise UserError(f"{path}: not a key that signs; `mobilenets update key NAME` makes one") from e
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: not an Ed25519 key; `mobilenets update key NAME` makes one")
    return key


def verifying(path: Path) -> Ed25519PublicKey:
    """The public key of a file. Raises `UserError`, for one that signs too: no device is to have it."""
    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise UserError(f"{path} is the key that signs, and is to stay where it is; {path.name}{PUBLIC} verifies")
    return of_pem(data, str(path))


def of_pem(data: bytes, where: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise UserError(f"{where}: not a public key; `mobilenets update key NAME` makes NAME{PUBLIC}") from e
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{where}: not an Ed25519 key; `mobilenets update key NAME` makes one")
    return key


def name(key: Ed25519PublicKey) -> str:
    """What a key is called by: 16 hexadecimal digits of its digest."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def verifies(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            return f.read(MOST)
    except OSError as e:
        raise UserError(f"{path}: no key can be read there ({e.strerror})") from e
