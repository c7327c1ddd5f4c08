"""Packages of npm's, fetched once by npm itself and kept in the cache: never a part of this package. No torch."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from mobilenets import files
from mobilenets.errors import UserError

TIMEOUT_SECONDS = 300


def fetched(name: str, version: str) -> Path:
    """The folder of a package of this version. Raises `UserError` where it isn't kept, and npm can't fetch it."""
    kept = files.cache_root() / "npm" / f"{name}-{version}"
    if kept.is_dir():
        return kept
    program = shutil.which("npm")
    if program is None:
        raise UserError(f"{name} is fetched by npm, which isn't here: install Node.js (nodejs.org)")
    with tempfile.TemporaryDirectory() as temporary, files.atomic_dir(kept) as out:
        command = [program, "pack", f"{name}@{version}", "--silent", "--pack-destination", temporary]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as e:
            raise UserError(f"npm can't fetch {name} {version}: it takes too long; check the network") from e
        packed = sorted(Path(temporary).glob("*.tgz"))
        if ran.returncode or not packed:
            said = (ran.stderr.strip().splitlines() or ["no reason given"])[0]
            raise UserError(f"npm can't fetch {name} {version}: {said}")
        with tarfile.open(packed[0]) as tar:
            tar.extractall(temporary, filter="data")
        shutil.copytree(Path(temporary) / "package", out, dirs_exist_ok=True)
    return kept
