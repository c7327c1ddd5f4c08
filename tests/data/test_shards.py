import errno
import gc
import hashlib
import json
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image
from small import SMALL_SHARD

from mobilenets.commands.shards import shards
from mobilenets.data import checks, shard_writer
from mobilenets.data import dataset as data
from mobilenets.data.open import open_data
from mobilenets.errors import UserError


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.tar"))}


# ---- what is written -----------------------------------------------------------------------------------------------


def test_every_image_is_there_as_it_was(written, colours):
    before, after = open_data(str(colours)), open_data(str(written.out))
    assert after.labels == before.labels
    assert list(after.splits) == ["train", "val"]
    for name, split in before.splits.items():
        got = after.splits[name]
        assert sorted(got.names) == sorted(split.names)
        assert list(got.names) != list(split.names)  # shuffled
        where = {n: i for i, n in enumerate(split.names)}
        for i, n in enumerate(got.names):
            assert got.targets[i] == split.targets[where[n]]
            assert got.read(i) == (colours / n).read_bytes()
    assert len(after.splits["train"].shards) > 16
    assert sum(after.splits["train"].shards) == 72


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_them(written):
    wds = pytest.importorskip("webdataset")
    got = open_data(str(written.out)).splits["train"]
    tars = sorted(str(p) for p in written.out.glob("train-*.tar"))
    rows = list(wds.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    assert len(rows) == 72
    for i, (pixels, target) in enumerate(rows):
        assert np.array_equal(pixels, np.asarray(got.rgb(i)))
        assert target == got.targets[i]
    del rows
    gc.collect()  # of files that it leaves open


@pytest.mark.slow
def test_the_same_whatever_the_workers(written, colours, tmp_path):
    for workers in (1, 4):
        out = shards(str(colours), tmp_path / str(workers), shard_mb=SMALL_SHARD, workers=workers).out
        assert digests(out) == digests(written.out)
        other = json.loads((out / "index.json").read_text())
        assert other == json.loads((written.out / "index.json").read_text())
    assert digests(shards(str(colours), tmp_path / "s", shard_mb=SMALL_SHARD, seed=1).out) != digests(written.out)


def test_the_index_names_what_is_there(written):
    index = json.loads((written.out / "index.json").read_text())
    known = [p for s in index["splits"].values() for p in (s["table"], *s["shards"])]
    assert {p["file"] for p in known} | {"index.json"} == {p.name for p in written.out.iterdir()}
    for part in known:
        content = (written.out / part["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (part["bytes"], part["sha256"])
    for part in index["splits"]["train"]["shards"]:
        with tarfile.open(written.out / part["file"]) as tar:
            assert len(tar.getnames()) == 2 * part["count"]


def test_large_images_shrink(tmp_path, write_images):
    root = write_images(tmp_path / "d", {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}, side=96)
    Image.new("RGB", (60, 40)).save(root / "train" / "a" / "small.png")
    out = shards(str(root), tmp_path / "s", short_side=64).out
    split = open_data(str(out)).split("train")
    sizes = {n: split.rgb(i).size for i, n in enumerate(split.names)}
    assert sizes.pop("train/a/small.png") == (60, 40)
    assert set(sizes.values()) == {(64, 64)}
    for i, name in enumerate(split.names):
        with Image.open(root / name) as img:
            off = np.asarray(img.convert("RGB").resize(split.rgb(i).size, Image.Resampling.LANCZOS)).astype(int)
        assert np.abs(off - np.asarray(split.rgb(i))).mean() < 4


def test_images_without_files(tmp_path):
    """`digits` are arrays: as PNG, nothing of them is lost."""
    out = shards("digits", tmp_path / "s", shard_mb=1).out
    before, after = open_data("digits"), open_data(str(out))
    assert (after.kind, after.val_fraction) == ("glyph", 0.2)
    where = {n: i for i, n in enumerate(before.split("val").names)}
    for i, n in enumerate(after.split("val").names):
        assert np.array_equal(np.asarray(after.split("val").rgb(i)), np.asarray(before.split("val").rgb(where[n])))


def test_what_is_printed(colours, command, tmp_path):
    ran = command("shards", colours, tmp_path / "s")
    assert "train" in ran.out
    assert f"mobilenets train {tmp_path / 's'}" in "".join(ran.out.split("\n")).replace("  ", "")
    again = command("shards", colours, tmp_path / "s", "--json").json
    assert again["splits"]["train"] == {
        "shards": 1,
        "images": 72,
        "bytes": (tmp_path / "s/train-000000.tar").stat().st_size,
    }


# ---- what is wrong with the images ---------------------------------------------------------------------------------


@pytest.fixture
def faulty(write_images, tmp_path):
    """One damaged image, one in both splits."""
    root = write_images(tmp_path / "d", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2})
    (root / "train/a/001.png").write_bytes((root / "train/a/001.png").read_bytes()[:200])
    (root / "val/a/000.png").write_bytes((root / "train/a/002.png").read_bytes())
    return root


def test_pictures_without_contrast_are_told_of_when_shards_are_read_too(write_images, command, tmp_path):
    root = write_images(tmp_path / "d", {"a": 4, "b": 4})
    Image.new("RGB", (9, 9), (40, 40, 40)).save(root / "b" / "one.png")
    assert command("shards", root, tmp_path / "s").code == 0
    assert any("b/one.png (40..40)" in f for f in checks.scan(open_data(str(tmp_path / "s"))).findings())


def test_damaged_images_are_listed_or_left_out(faulty, command, tmp_path):
    out = tmp_path / "s"
    ran = command("shards", faulty, out, "--shard-mb", 0.004)
    assert ran.code == 2
    assert "train/a/001.png: damaged image" in ran.err
    assert ran.err.splitlines()[-1].startswith("mobilenets: ")
    assert "--skip-bad" in ran.err
    assert not (out / "index.json").exists()
    with pytest.raises(UserError, match="aren't finished"):
        open_data(str(out))
    kept = {p: p.stat().st_mtime_ns for p in out.glob("*-*.npz")}
    ran = command("shards", faulty, out, "--shard-mb", 0.004, "--skip-bad", "--json").json
    assert len(kept) + 1 == ran["splits"]["train"]["shards"] + ran["splits"]["val"]["shards"]
    assert ran["left_out"] == ["train/a/001.png"]
    assert ran["leaks"] == [["train/a/002.png", "val/a/000.png"]]
    d = open_data(str(out))
    assert sorted(d.split("train").names) == sorted(
        p.relative_to(faulty).as_posix()
        for p in (faulty / "train").rglob("*.png")
        if p.name != "001.png" or "/b/" in str(p)
    )
    assert checks.scan(d).leaks == [("train/a/002.png", "val/a/000.png")]


def test_training_doesnt_look_at_all_images_again(written, colours, monkeypatch):
    d, plain = open_data(str(written.out)), open_data(str(colours))
    monkeypatch.setattr(data.Split, "rgb", lambda *_: pytest.fail("decoded"))
    found = checks.check(d)
    monkeypatch.undo()
    expected = checks.scan(plain)
    assert {**found.to_json(), "source": ""} == {**expected.to_json(), "source": ""}
    assert not d.split("train").cache


# ---- stopped and started again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "No space left on device")])
def test_a_stopped_call_goes_on(written, colours, tmp_path, monkeypatch, how):
    out = tmp_path / "s"
    add, count = shard_writer._add, iter(range(10**6))

    def until(*args):
        if next(count) == 100:  # of 192
            raise how
        return add(*args)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "_add", until)
        with pytest.raises(UserError if isinstance(how, OSError) else how):
            shards(str(colours), out, shard_mb=SMALL_SHARD)
    assert not [p for p in out.iterdir() if ".tmp." in p.name]
    done = {p.with_suffix(".tar"): p.with_suffix(".tar").stat().st_mtime_ns for p in out.glob("*-*.npz")}
    assert 3 < len(done) < len(digests(written.out))
    with pytest.raises(UserError, match="aren't finished"):
        open_data(str(out))
    with pytest.raises(UserError, match="shards of other shard_mb"):
        shards(str(colours), out, shard_mb=1)
    shards(str(colours), out, shard_mb=SMALL_SHARD)
    assert digests(out) == digests(written.out)
    assert (out / "index.json").read_text() == (written.out / "index.json").read_text()
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert {p.name for p in out.iterdir()} == {p.name for p in written.out.iterdir()}


@pytest.mark.slow
def test_a_killed_call_goes_on(write_images, tmp_path):
    root = write_images(tmp_path / "d", {f"{s}/{c}": 40 for s in ("train", "val") for c in "ab"}, side=128)
    whole, out = tmp_path / "whole", tmp_path / "s"
    line = [sys.executable, "-m", "mobilenets", "shards", root, out, "--shard-mb", "0.2"]
    process = subprocess.Popen([*map(str, line)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.glob("train-*.npz")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    (out / ".123.tmp.train-000000.tar").write_bytes(b"half")  # as a kill in the middle of a write leaves
    assert not (out / "index.json").exists()
    shards(str(root), out, shard_mb=0.2)
    shards(str(root), whole, shard_mb=0.2)
    assert digests(out) == digests(whole)
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


def test_other_images_are_not_mixed_in(colours, written, write_images, tmp_path):
    before = digests(written.out)
    with pytest.raises(UserError, match="shards of other seed 0"):
        shards(str(colours), written.out, shard_mb=SMALL_SHARD, seed=3)
    root = write_images(tmp_path / "d", {"train/a": 4, "train/b": 4})
    out = shards(str(root), tmp_path / "s").out
    (root / "train/a/000.png").rename(root / "train/a/new.png")
    with pytest.raises(UserError, match="shards of other images"):
        shards(str(root), out)
    assert digests(written.out) == before
    with pytest.raises(UserError, match="holds no shards"):
        shards(str(root), root)
    with pytest.raises(UserError, match="is shards already"):
        shards(str(out), tmp_path / "t")


@pytest.mark.parametrize(
    ("option", "value"), [("shard_mb", 0), ("shard_mb", float("nan")), ("short_side", 8), ("workers", 0)]
)
def test_arguments_out_of_range(colours, tmp_path, option, value):
    with pytest.raises(UserError, match=f"{option} must be"):
        shards(str(colours), tmp_path / "s", **{option: value})
    assert not (tmp_path / "s").exists()
