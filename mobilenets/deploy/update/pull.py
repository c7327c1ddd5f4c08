"""Updates fetched from a folder that a web server serves, and applied, one after another. No torch.

The index is followed by python-tuf's client, which refuses one that is older than what it saw, that has run out, that
mixes versions or isn't signed. What it can't know is whether the clock is right: here one is refused that was set back
to before what was seen or signed, for an index that ran out would pass for fresh.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import SSlibKey
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater

from mobilenets import console, web
from mobilenets.deploy.update import keys, package
from mobilenets.deploy.update.apply import Step, apply_trusted
from mobilenets.deploy.update.installed import INDEX, Installation, State
from mobilenets.deploy.update.make import NAME
from mobilenets.deploy.update.repository import MADE, METADATA, TARGETS, TIMESTAMP, TO, VERSION, target
from mobilenets.errors import UserError, disk_errors

INDEX_MOST = 5 << 20  # bytes of one of its files
SKEW = datetime.timedelta(hours=1)  # that clocks may differ by


class Fetcher(FetcherInterface):
    """How python-tuf gets an index's files: resumed where the line broke, as all that is fetched here."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        try:
            return iter([web.read(url, INDEX_MOST)])
        except web.Refused as e:
            raise DownloadHTTPError(str(e), e.code) from e
        except UserError as e:
            raise DownloadError(str(e)) from e


def pull(url: str, place: Installation, key: Ed25519PublicKey | None, trust_clock: bool = False) -> list[Step]:
    """Apply the updates that a folder at an address has for an installation; returns what was done, in order.

    `key`: which the index must be signed by; it is needed the first time. `trust_clock`: though it was later once.
    Raises `UserError`.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{url}: not an address of the web: http:// or https://")
    url = url.rstrip("/")
    with place.alone():
        state = place.state()
        if key is None and not state.key:
            raise UserError(f"{url}: say by --verify which key it must be signed with; it is remembered from then on")
        key = key or keys.of_pem(state.key.encode(), str(place.pointer))
        state = dataclasses.replace(state, key=keys.public_pem(key).decode())
        if not trust_clock:
            _check_clock(state.seen, "an index was last read", "; --trust-clock if it was wrong then")
        updater = _followed(url, place, key)
        state = dataclasses.replace(state, seen=package.now().isoformat())
        place.keep(state)
        done: list[Step] = []
        digest = place.contents().digest
        while found := _next(updater, digest, state):
            update = _fetched(url, updater, found, place.home)
            done.append(apply_trusted(place, package.read(update), state))
            update.unlink()
            state, digest = place.state(), done[-1].head.to
        return done


def _followed(url: str, place: Installation, key: Ed25519PublicKey) -> Updater:
    """The newest index, all of its signatures and versions checked."""
    folder = place.home / INDEX
    first = folder / "root_history" / "1.root.json"
    with _explained(url), disk_errors(str(folder)):
        root = first.read_bytes() if first.exists() else web.read(f"{url}/{METADATA}/1.root.json", INDEX_MOST)
        if not _signed_by(root, key):
            follows = f"; {folder} is of the index that was followed before" if first.exists() else ""
            raise UserError(f"{url}: its index isn't signed by {keys.name(key)}; nothing was changed{follows}")
        updater = Updater(str(folder), f"{url}/{METADATA}", fetcher=Fetcher(), bootstrap=root)
        updater.refresh()
        stamp: Metadata[Timestamp] = Metadata.from_file(str(folder / TIMESTAMP))
        _check_clock(stamp.signed.unrecognized_fields.get(MADE), "the index was signed")
    return updater


def _signed_by(root: bytes, key: Ed25519PublicKey) -> bool:
    metadata: Metadata[Root] = Metadata.from_bytes(root)
    known = SSlibKey.from_crypto(key)
    signature = metadata.signatures.get(known.keyid)
    if not isinstance(metadata.signed, Root) or signature is None:
        return False
    try:
        known.verify_signature(signature, metadata.signed_bytes)
    except UnverifiedSignatureError:
        return False
    return True


def _next(updater: Updater, digest: str, state: State) -> TargetFile | None:
    """The update that applies to what is installed, or the whole network; None where there is nothing newer."""
    newest = max(state.highest, state.versions.get(digest, 0))
    for name in (target(digest, ""), target("", state.name or NAME)):
        found = updater.get_targetinfo(name)
        if found and found.custom and found.custom[VERSION] > newest and found.custom[TO] != digest:
            return found
    return None


def _fetched(url: str, updater: Updater, found: TargetFile, folder: Path) -> Path:
    """An update, in a folder; what was fetched of it before isn't fetched again."""
    name = f"{found.hashes['sha256']}.{found.path}"
    path = folder / f"{found.hashes['sha256']}.mnu"
    if updater.find_cached_target(found, str(path)):
        return path
    with console.downloading(f"version {found.custom[VERSION]}") as told:
        web.download(f"{url}/{TARGETS}/{name}", path, found.length, told)
    try:
        with path.open("rb") as f:
            found.verify_length_and_hashes(f)
    except LengthOrHashMismatchError as e:
        path.unlink()
        raise UserError(f"{url}/{TARGETS}/{name}: not the update that the index names; nothing was changed") from e
    return path


def _check_clock(seen: str | None, what: str, hint: str = "") -> None:
    """Raises `UserError` where it is earlier than when something is known to have happened."""
    now = package.now()
    try:
        early = seen is not None and seen != "" and now < datetime.datetime.fromisoformat(seen) - SKEW
    except (TypeError, ValueError, OverflowError) as e:
        raise UserError(f"when {what} should be a time, and is {ascii(seen)[:40]}; nothing was changed") from e
    if early:
        raise UserError(
            f"the clock says {now.isoformat()}, which is before {what}, {seen}: set it right, for by a wrong one an "
            f"old index passes for a fresh one{hint}; nothing was changed"
        )


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """What is wrong with an index, in one line."""
    try:
        yield
    except ExpiredMetadataError as e:
        raise UserError(
            f"{url}: its index ran out: nobody has signed it anew (mobilenets update serve DIR --sign KEY), or an old "
            "copy is shown; nothing was changed"
        ) from e
    except BadVersionNumberError as e:
        raise UserError(f"{url}: its index is older than one that was seen before; nothing was changed") from e
    except UnsignedMetadataError as e:
        raise UserError(f"{url}: its index isn't signed by the key that it should be; nothing was changed") from e
    except (RepositoryError, DeserializationError) as e:
        raise UserError(
            f"{url}: its index doesn't hang together ({' '.join(str(e).split())}); nothing was changed"
        ) from e
    except DownloadError as e:
        raise UserError(f"{e}; nothing was changed") from e
