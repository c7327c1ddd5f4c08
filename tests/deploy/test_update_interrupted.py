"""Updates that are cut, altered, killed, or meet a full disk: what is installed is the old network or the new one."""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from damage import mutated
from test_faults import grow, last_line
from updating import applied, digest, install, saved, small, tuned, update

from mobilenets.deploy.update import keys, package
from mobilenets.deploy.update.installed import LOCK, Installation
from mobilenets.errors import UserError

pytest.importorskip("cryptography")
FORMS = ("", ".mnz")
MANY = [pytest.mark.slow, pytest.mark.timeout(3600)]
few_or_many = pytest.mark.parametrize("count", [pytest.param(40, id="few"), pytest.param(2000, id="many", marks=MANY)])


@pytest.fixture(scope="module", params=FORMS)
def ready(request, tmp_path_factory):
    """An old network, a new one, the signed update, its key, and an unsigned one."""
    folder = tmp_path_factory.mktemp("ready")
    old, new = saved(folder, request.param)
    private, public = keys.make(folder / "release")
    update(old, new, folder / "u.mnu", key=keys.signing(private))
    update(old, new, folder / "unsigned.mnu")
    return old, new, folder / "u.mnu", keys.verifying(public), folder / "unsigned.mnu"


class Killed(BaseException):
    """What stands for the end of a process: nothing after it changes anything."""


class Disk:
    """Has the `at`-th change of the disk fail, a write half-way: by a kill, and all after it, or by an error."""

    CHANGES = ("replace", "rename", "mkdir", "unlink", "rmdir", "fsync")

    def __init__(self, monkeypatch, at, error=None):
        self.count, self.at, self.error = 0, at, error
        for name in self.CHANGES:
            monkeypatch.setattr(os, name, self.change(getattr(os, name), name in ("unlink", "rmdir", "fsync")))
        opened = io.open

        def open_(file, mode="r", *rest, **named):
            f = opened(file, mode, *rest, **named)
            if {*mode} & {*"wax+"}:
                return Written(f, self)
            return f

        monkeypatch.setattr(io, "open", open_)

    def fails(self, makes_room=False):
        """Whether the next change does."""
        if self.error:
            self.count += not makes_room
            return not makes_room and self.count == self.at
        self.count += 1
        return self.count >= self.at

    def fail(self):
        raise self.error or Killed

    def change(self, function, makes_room):
        def changed(*args, **named):
            if self.fails(makes_room):
                self.fail()
            return function(*args, **named)

        return changed


class Written:
    """A file whose writes may end half-way."""

    def __init__(self, f, disk):
        self.f, self.disk = f, disk

    def __getattr__(self, name):
        return getattr(self.f, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.f.close()

    def write(self, data):
        if self.disk.fails():
            self.f.write(data[: len(data) // 2])
            self.f.flush()
            self.disk.fail()
        return self.f.write(data)


def interrupted(place, file, key, monkeypatch, at, error=None):
    """An update whose `at`-th change of the disk fails: by what it ended, and whether it came so far."""
    with monkeypatch.context() as patch:
        disk, how = Disk(patch, at, error), None
        try:
            applied(place, file, key)
        except (Killed, UserError) as e:
            how = e
        return how, disk.count >= at


@pytest.mark.parametrize("error", [None, errno.ENOSPC], ids=["killed", "full disk"])
def test_at_every_step(ready, error, tmp_path, monkeypatch):
    old, new, file, key, _ = ready
    seen = []
    for at in range(1, 100):
        place = install(old, tmp_path / f"{at}{old.suffix}")
        before = {p.name for p in tmp_path.iterdir()}
        how, reached = interrupted(place, file, key, monkeypatch, at, error and OSError(error, "no space"))
        if not reached:
            break
        seen.append(digest(place))
        if isinstance(how, UserError):
            assert seen[-1] == digest(old)
            assert str(how).startswith("can't write")
            assert "the disk is full; nothing was left half-written" in str(how)
            left = {p.name for p in place.rglob("*") if p.is_file()} if place.is_dir() else set()
            assert left <= {"card.json", "weights.safetensors", "lock", "installed.json"}
            assert {p.name for p in tmp_path.iterdir()} - before <= {f".{place.name}.updates"}
        # and it goes on from there: again, or it is done already
        with contextlib.suppress(UserError):
            applied(place, file, key)
        assert digest(place) == digest(new)
    assert at > 10
    assert set(seen) <= {digest(old), digest(new)}
    if not error:
        assert seen[0] == digest(old)
        assert seen[-1] == digest(new)  # what came after was tidying


@few_or_many
def test_cut_or_altered(ready, count, tmp_path):
    """None of them is taken."""
    old, _, file, key, unsigned = ready
    place, rng = install(old, tmp_path / f"installed{old.suffix}"), np.random.default_rng(count)
    before, bad = digest(place), tmp_path / "bad.mnu"
    for path, by in ((file, key), (unsigned, None)):
        data = path.read_bytes()
        for i in range(count):
            made = data[: rng.integers(len(data))] if i % 2 else mutated(data, rng)
            if made == data:
                continue
            bad.write_bytes(made)
            with pytest.raises(UserError) as e:
                applied(place, bad, by)
            assert "\n" not in str(e.value)
            assert str(e.value).startswith(str(bad))
    assert digest(place) == before


def test_every_byte_of_the_head_counts(ready, tmp_path):
    old, _, file, key, unsigned = ready
    place, bad = install(old, tmp_path / f"installed{old.suffix}"), tmp_path / "bad.mnu"
    for path, by in ((file, key), (unsigned, None)):
        data = bytearray(path.read_bytes())
        for at in range(0, len(package.read(path).signed) + keys.SIGNATURE, 3):
            data[at] ^= 1
            bad.write_bytes(data)
            data[at] ^= 1
            with pytest.raises(UserError):
                applied(place, bad, by)
    assert digest(place) == digest(old)


@few_or_many
def test_a_body_that_its_digest_fits(ready, count, tmp_path):
    """An update made by whoever can: what comes of its bytes is what it says, or nothing."""
    old, new, _, _, unsigned = ready
    place, rng = install(old, tmp_path / f"installed{old.suffix}"), np.random.default_rng(count)
    bad, made = tmp_path / "bad.mnu", package.read(unsigned)
    for i in range(count):
        body = mutated(bytes(made.body), rng)
        d = {**made.head.to_json(), "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        text = json.dumps(d).encode()
        start = package.MAGIC + len(text).to_bytes(4, "little") + text
        bad.write_bytes(start + hashlib.sha512(start).digest() + body)
        try:
            applied(place, bad)
        except UserError as e:
            assert re.search("can't be applied|makes another network than it says", str(e))  # noqa: PT017
        else:  # bits that nothing reads, as the last of a deflated stream
            assert digest(place) == digest(new)
            place = install(old, tmp_path / f"{i}{old.suffix}")
    assert digest(place) == digest(old)


@few_or_many
def test_interrupted_anywhere(ready, count, tmp_path, monkeypatch):
    """One installation that is updated, killed and rolled back over and over."""
    old, new, file, key, _ = ready
    place, rng = install(old, tmp_path / f"installed{old.suffix}"), np.random.default_rng(count)
    good = {digest(old), digest(new)}
    for _ in range(count // 2):
        with contextlib.suppress(UserError):
            interrupted(place, file, key, monkeypatch, int(rng.integers(1, 40)))
        assert digest(place) in good
        if rng.random() < 0.3:
            with monkeypatch.context() as patch, contextlib.suppress(Killed, UserError):
                Disk(patch, int(rng.integers(1, 20)))
                with Installation(place).alone():
                    Installation(place).roll_back()
            assert digest(place) in good


CHILD = """
import sys
from pathlib import Path
from mobilenets.deploy.update import keys, package
from mobilenets.deploy.update.apply import apply
from mobilenets.deploy.update.installed import Installation
from mobilenets.errors import UserError
path, file, key = map(Path, sys.argv[1:])
place, made, key = Installation(path), package.read(file), keys.verifying(key)
print("begun", flush=True)
while True:
    with place.alone():
        try:
            apply(place, made, key)
        except UserError as e:
            assert "is installed already" in str(e), e
        try:
            place.roll_back()
        except UserError as e:
            assert "no older version" in str(e), e
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
@pytest.mark.parametrize("count", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_killed(ready, count, tmp_path):
    old, new, file, _, _ = ready
    place, rng = install(old, tmp_path / f"installed{old.suffix}"), np.random.default_rng(0)
    seen = []
    for _ in range(count):
        line = [sys.executable, "-c", CHILD, place, file, old.parent / "release.pub"]
        child = subprocess.Popen([*map(str, line)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        child.stdout.readline()
        time.sleep(float(rng.random()) / 10)
        child.send_signal(signal.SIGKILL)
        _, said = child.communicate()
        assert child.returncode == -signal.SIGKILL, said
        seen.append(digest(place))
    assert set(seen) <= {digest(old), digest(new)}


def test_what_a_kill_left_is_gone_after_the_next_update(ready, tmp_path):
    old, _, _, _, unsigned = ready
    place = install(old, tmp_path / f"installed{old.suffix}")
    home = Installation(place).home
    home.mkdir(exist_ok=True)
    (home / ".7.tmp.installed.json").write_text("{")
    applied(place, unsigned)
    assert not list(home.glob(".*"))


def test_two_at_once(ready, command, tmp_path):
    old, _, file, _, _ = ready
    place = install(old, tmp_path / f"installed{old.suffix}")
    line = ("update", "apply", place, file, "--verify", old.parent / "release.pub")
    with Installation(place).alone():
        assert command(*line).line.endswith("is being updated by another process; try again later")
        assert command("update", "rollback", place).line.endswith("try again later")
        assert digest(place) == digest(old)
    assert command(*line).code == 0


def test_a_full_disk(command, small_disk, tmp_path):
    """For room for half of the new network, then for all of it; the old one is there all the time."""
    wide = small(width=1 << 12)
    for suffix in FORMS:
        folder = tmp_path / f"networks{suffix}"
        old, new = saved(folder, suffix, wide, tuned(wide))
        update(old, new, folder / "u.mnu")
        size = sum(p.stat().st_size for p in (old.rglob("*") if old.is_dir() else [old]) if p.is_file())
        disk = small_disk(f"{size * 3 // 2 // 1024}k")
        place = install(old, disk / f"installed{suffix}")
        before = {p.name for p in disk.rglob("*")}
        said = last_line(command("update", "apply", place, folder / "u.mnu"))
        assert "the disk is full; nothing was left half-written" in said
        assert {p.name for p in disk.rglob("*")} - before <= {LOCK, "versions", f".{place.name}.updates"}
        assert digest(place) == digest(old)
        grow(disk, f"{size * 4 // 1024}k")
        assert command("update", "apply", place, folder / "u.mnu").code == 0
        assert digest(place) == digest(new)
        shutil.rmtree(folder)
