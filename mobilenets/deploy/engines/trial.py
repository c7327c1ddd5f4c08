"""Files from outside are tried in a child process before they are run in this one.

Runtimes are native code that trusts its files: damaged ones end the process, or take all of its time or memory. So a
file is run once in a process of its own (`probe`), which has limits. One that has been seen to run isn't tried again:
its SHA-256 is kept in the user's cache, by runtime and version, and that of each file exported here, which its proof
has run.
"""

from __future__ import annotations

import contextlib
import platform
import signal
from pathlib import Path

from mobilenets import files
from mobilenets.errors import UserError
from mobilenets.model import child

# Of a processor's time, once the runtime is imported; one more for so many bytes of the file.
SECONDS, RATE = 8, 4 << 20
WAIT = 3  # times as many seconds may pass, on a busy machine
START = 120  # seconds at most until the runtime is imported: PyTorch takes that on a slow disk
REFUSED, SLOW = 3, 1  # exit codes: a reason was written; `faulthandler`'s, when the time is up
FAILED = 5  # the child itself: Python's own exit code would be `faulthandler`'s
STRANGE = 4  # a name that a program of the user's may know, who added an operation or a task to the package's
TIME_UP = -getattr(signal, "SIGXCPU", 256)  # the system's for that

_seen: set[str] = set()  # of this process, where the cache can't be written


def _key(path: Path, name: str, version: str) -> str:
    return f"{name}-{version}-{platform.machine()}-{files.sha256(path)}"


def _kept(key: str) -> Path:
    return files.cache_root() / "runs" / key


def seconds(path: Path) -> int:
    """What loading and running a file may take of a processor's time."""
    return SECONDS + files.size_on_disk(path) // RATE


def remember(path: Path, name: str, version: str) -> None:
    """Note that engine `name`, of a runtime's `version`, ran the file or folder at `path`, here or in a child."""
    _remember(_key(path, name, version))


def _remember(key: str) -> None:
    _seen.add(key)
    with contextlib.suppress(OSError):  # it is tried again next time
        _kept(key).parent.mkdir(parents=True, exist_ok=True)
        _kept(key).touch()


def known(path: Path, name: str, version: str) -> bool:
    """Whether the file or folder at `path` has been noted, here or by another process of this user."""
    key = _key(path, name, version)
    return key in _seen or _kept(key).exists()


def check(path: Path, name: str, version: str) -> None:
    """A UserError for a file that engine `name` can't load and run."""
    try:
        key = _key(path, name, version)
    except OSError as e:
        raise UserError(f"{path}: can't be read ({e.strerror})") from e
    if key in _seen or _kept(key).exists():
        return
    most = START + WAIT * seconds(path)
    try:
        code, said = child.run("mobilenets.deploy.engines.probe", name, path.absolute(), path, seconds=most)
    except child.TooSlow:
        code, said = SLOW, b""
    if code == STRANGE:
        return
    if code == REFUSED:
        raise UserError(said.decode(errors="replace"))
    if code in (SLOW, TIME_UP):
        raise UserError(f"{path}: damaged, or too much for this machine: {name} takes over {seconds(path)} s to run it")
    if code:
        raise UserError(f"{path}: damaged: {name} crashed when it was loaded (exit code {code})")
    _remember(key)
