"""Updates as a folder that any web server serves, with the index of The Update Framework. No torch.

The roles, their checks and the files are TUF's (theupdateframework.github.io/specification, 1.0), by python-tuf:
`root` names the keys, `targets` every update by its size and digest, `snapshot` which `targets` is the newest, and
`timestamp`, which runs out within days, which `snapshot`. Whoever shows old files of the folder, or mixes them, is
found out by those who follow it.

    metadata/timestamp.json, N.snapshot.json, N.targets.json, N.root.json
    targets/<sha256>.<digest of what it applies to>.mnu, targets/<sha256>.<name>.mnu for a whole network
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.exceptions import StorageError
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from mobilenets import files
from mobilenets.deploy.update import keys, package
from mobilenets.deploy.update.lock import alone
from mobilenets.deploy.update.package import Package
from mobilenets.errors import UserError, disk_errors

METADATA, TARGETS = "metadata", "targets"
LOCK = ".lock"
TIMESTAMP = "timestamp.json"
YEAR = datetime.timedelta(days=365)  # after which root, targets and snapshot run out, unless they are signed anew
MADE = "made"  # of a timestamp, beside TUF's own fields: when it was signed
VERSION, TO = "version", "to"  # of a target, among its own fields: what an update makes, its digest


def target(base: str, name: str) -> str:
    """What an update is called in an index: by what it applies to, or, of a whole network, by its name."""
    return f"{base or name}.mnu"


def serve(
    folder: Path,
    updates: Sequence[Package],
    key: Ed25519PrivateKey | None,
    fresh: Ed25519PrivateKey | None,
    days: int,
) -> tuple[tuple[str, ...], datetime.datetime]:
    """Add updates to a folder, which is made where there is none, and sign its index anew, for so many days.

    `key` signs all but the timestamp, which `fresh` signs, a key that can be kept where the index is signed every day;
    by default it is the same. Without `key` nothing can be added. Returns the names of the updates that are there,
    and when the index runs out. Raises `UserError`.
    """
    if key is None and not (folder / METADATA / TIMESTAMP).exists():
        raise UserError(f"{folder}: a new index needs the key that signs it: --sign KEY")
    with disk_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / LOCK, folder):
            made = Index(folder / METADATA, key, fresh)
            if updates:
                made.add(folder / TARGETS, updates)
            return tuple(sorted(made.targets.signed.targets)), made.sign(days)


class Index:
    """The four roles of a folder: those that are there, or new ones."""

    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]
    root: Metadata[Root]

    def __init__(self, folder: Path, key: Ed25519PrivateKey | None, fresh: Ed25519PrivateKey | None) -> None:
        self.folder, self.now = folder, package.now()
        self.verifying = key.public_key() if key else None
        self.key = CryptoSigner(key) if key else None
        self.fresh = CryptoSigner(fresh) if fresh else self.key
        self.changed: list[tuple[str, Metadata[Any]]] = []
        self.there = (folder / TIMESTAMP).exists()
        if self.there:
            self._open()
            self._check(self.key, "root", "--sign")
            self._check(self.fresh, "timestamp", "--refresh-key")
            if self.key:
                self._renew()
            return
        assert self.key is not None  # or none is begun
        assert self.fresh is not None
        root = Root(expires=self.now + YEAR)
        for role in ("root", "targets", "snapshot"):
            root.add_key(self.key.public_key, role)
        root.add_key(self.fresh.public_key, "timestamp")
        self.root, self.targets = Metadata(root), Metadata(Targets(expires=self.now + YEAR))
        self.snapshot = Metadata(Snapshot(expires=self.now + YEAR))
        self.timestamp = Metadata(Timestamp())
        for role, metadata in (("targets", self.targets), ("snapshot", self.snapshot), ("root", self.root)):
            self.changed.append((f"1.{role}.json", metadata))

    def _open(self) -> None:
        """Read the roles of a folder that has some. Raises `UserError`."""
        try:
            self.timestamp = self._read(TIMESTAMP)
            version = self.timestamp.signed.snapshot_meta.version
            self.snapshot = self._read(f"{version}.snapshot.json")
            version = self.snapshot.signed.meta["targets.json"].version
            self.targets = self._read(f"{version}.targets.json")
            newest = max(int(p.name.split(".")[0]) for p in self.folder.glob("[0-9]*.root.json"))
            self.root = self._read(f"{newest}.root.json")
            for listed in self.targets.signed.targets.values():
                int(listed.unrecognized_fields["custom"][VERSION])
            if not isinstance(self.root.signed, Root):
                raise TypeError("no root")
        except (AttributeError, KeyError, TypeError, ValueError) as e:  # one in the place of another, or none
            raise UserError(f"{self.folder}: not readable as an index: restore it, or begin a new folder") from e

    def add(self, folder: Path, updates: Sequence[Package]) -> None:
        """Copy updates to the folder of targets and name them. Raises `UserError`."""
        if self.verifying is None:
            raise UserError(f"{folder.parent}: adding updates needs the key that signs them: --sign KEY")
        listed = self.targets.signed.targets
        for update in sorted(updates, key=lambda u: u.head.version):
            head, name = update.head, target(update.head.base, update.head.name)
            there = listed.get(name)
            if there and there.unrecognized_fields["custom"][VERSION] >= head.version:
                raise UserError(f"{update.path}: the folder has one as new for the same network: versions only go up")
            if head.key and not keys.verifies(self.verifying, update.seal, update.signed):
                raise UserError(f"{update.path}: signed by {head.key}, another key than the folder's")
            file = TargetFile.from_file(name, str(update.path), ["sha256"])
            file.unrecognized_fields["custom"] = {VERSION: head.version, TO: head.to}
            with files.atomic_file(folder / f"{file.hashes['sha256']}.{name}") as tmp:
                shutil.copyfile(update.path, tmp)
            listed[name] = file
        self._bump("targets", self.targets)
        self.snapshot.signed.meta["targets.json"] = MetaFile(self.targets.signed.version)
        self._bump("snapshot", self.snapshot)

    def sign(self, days: int) -> datetime.datetime:
        """Write what has changed, and a timestamp for so many days, last; returns when the first of all runs out."""
        assert self.fresh is not None  # or it wasn't opened
        for name, metadata in self.changed:
            assert self.key is not None
            self._write(name, metadata, self.key)
        stamp = self.timestamp.signed
        stamp.version, stamp.expires = stamp.version + self.there, self.now + datetime.timedelta(days=days)
        stamp.snapshot_meta = MetaFile(self.snapshot.signed.version)
        stamp.unrecognized_fields[MADE] = self.now.isoformat()
        self._write(TIMESTAMP, self.timestamp, self.fresh)
        return min(m.signed.expires for m in (self.timestamp, self.snapshot, self.targets, self.root))

    def _renew(self) -> None:
        """Have what runs out within half a year signed for a whole one."""
        for role, metadata in (("targets", self.targets), ("snapshot", self.snapshot), ("root", self.root)):
            if metadata.signed.expires < self.now + YEAR / 2:
                self._bump(role, metadata)
        if any(name.endswith(".targets.json") for name, _ in self.changed):
            self.snapshot.signed.meta["targets.json"] = MetaFile(self.targets.signed.version)

    def _bump(self, role: str, metadata: Metadata[Any]) -> None:
        metadata.signed.version += 1
        metadata.signed.expires = self.now + YEAR
        self.changed = [(n, m) for n, m in self.changed if m is not metadata]
        self.changed.append((f"{metadata.signed.version}.{role}.json", metadata))

    def _check(self, signer: CryptoSigner | None, role: str, option: str) -> None:
        known = self.root.signed.roles[role].keyids
        if signer is None and role == "timestamp":
            raise UserError(f"{self.folder.parent}: its index is signed anew with a key: --sign KEY or {option} KEY")
        if signer is not None and signer.public_key.keyid not in known:
            raise UserError(f"{self.folder.parent}: its index is signed by another key than that of {option}")

    def _read(self, name: str) -> Metadata[Any]:
        path = self.folder / name
        try:
            return Metadata.from_file(str(path))
        except (StorageError, DeserializationError, RepositoryError, ValueError) as e:
            raise UserError(f"{path}: not readable as an index: restore it, or begin a new folder") from e

    def _write(self, name: str, metadata: Metadata[Any], signer: CryptoSigner) -> None:
        metadata.sign(signer)
        with files.atomic_file(self.folder / name) as tmp:
            tmp.write_bytes(metadata.to_bytes())
