"""`mobilenets update serve` and `update pull`: updates that devices fetch from any web server.

What signs and follows an index is an extra's, and imported when called.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilenets import console
from mobilenets.arguments import StrPath, checked
from mobilenets.commands.update import Updated
from mobilenets.console import Notebook
from mobilenets.errors import UserError


@dataclass(frozen=True)
class ServedUpdates(Notebook):
    """A folder that a web server can serve, the updates in it, and when its index runs out."""

    folder: Path
    updates: tuple[str, ...]
    expires: datetime.datetime

    def to_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "updates": list(self.updates), "expires": self.expires.isoformat()}

    def __rich__(self) -> str:
        return (
            f"folder   {self.folder}: {console.many(len(self.updates), 'update')}, for any web server\n"
            f"fresh    until {self.expires.isoformat()}: sign it anew before, by mobilenets update serve {self.folder} "
            "--sign KEY"
        )


@checked
def serve_updates(
    folder: StrPath,
    *updates: StrPath,
    sign: StrPath | None = None,
    refresh_key: StrPath | None = None,
    days: int = 30,
) -> ServedUpdates:
    """Add updates to a folder that any web server can serve, and sign its index, which `update pull` reads.

    The index runs out: without updates given, it is signed anew for another while, so that devices can tell a server
    that has no news from one that hides them.

    Parameters
    ----------
    folder
        The folder, made where there is none.
    updates
        Files of updates to add.
    sign
        Key that signs the index; needed for the first time, and to add updates.
    refresh_key
        Another key for what runs out soon, so that `sign` needn't be where the index is signed anew every day.
    days
        For how long the index is fresh.

    Returns
    -------
    ServedUpdates
        The `updates` in the folder, and when its index `expires`.

    Raises
    ------
    UserError
        For files that are no updates, or older than those in the folder, and for another key than the folder's.

    Examples
    --------
    >>> import mobilenets
    >>> key = mobilenets.update_key("server")
    >>> _ = mobilenets.make_update("cifar10-v1-0.25", "cifar10-v2-0.25", out="u.mnu", sign=key.private)
    >>> len(mobilenets.serve_updates("updates", "u.mnu", sign=key.private).updates)
    1
    """
    from mobilenets.deploy.update import keys, package, repository

    if not 1 <= days <= repository.YEAR.days:  # after which the rest of the index runs out
        raise UserError(f"days must be 1 to {repository.YEAR.days}, not {days}")
    key, fresh = (keys.signing(Path(k)) if k is not None else None for k in (sign, refresh_key))
    names, expires = repository.serve(Path(folder), [package.read(Path(u)) for u in updates], key, fresh, days)
    return ServedUpdates(Path(folder), names, expires)


@checked
def pull_updates(url: str, installed: StrPath, *, verify: StrPath | None = None, trust_clock: bool = False) -> Updated:
    """Fetch what is new at the address of a folder of `update serve`, and apply it, one update after another.

    A download that broke goes on where it was, in a later call too.

    Parameters
    ----------
    url
        The folder's address, http:// or https://.
    installed
        A bundle's folder or a .mnz file.
    verify
        The public key that must have signed the folder's index; it is remembered.
    trust_clock
        Take the clock for right though it was later once: where it was wrong then.

    Returns
    -------
    Updated
        The updates that were applied, if any.

    Raises
    ------
    UserError
        For an index that isn't signed by the key, is older than one that was seen, ran out or doesn't hang together,
        a clock that was set back, and all that `apply_update` raises it for. The network installed is as it was.
    """
    from mobilenets.deploy.update import keys
    from mobilenets.deploy.update.installed import Installation
    from mobilenets.deploy.update.pull import pull

    place = Installation(Path(installed))
    key = keys.verifying(Path(verify)) if verify is not None else None
    steps, state = tuple(pull(url, place, key, trust_clock)), place.state()
    installed_version = state.versions.get(place.contents().digest, 0)
    return Updated(place.path, steps, state.highest if state.highest > installed_version else 0)
