"""Reading shards from a web server: what is kept, fetched ahead, damaged on the way."""

import collections
import fcntl
import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from copies import copy, damage

from mobilenets import web
from mobilenets.data import remote
from mobilenets.data import shard_reader as sharded
from mobilenets.data.open import open_data
from mobilenets.errors import UserError
from mobilenets.training import loader
from mobilenets.training.recipes import Recipe


def kept(tmp_path):
    return list((tmp_path / "cache" / "shards").iterdir())


def test_images_from_a_server(written, colours, serve, tmp_path):
    server = serve(written.out)
    for source in (server.url, f"{server.url}/", f"{server.url}/index.json"):
        d = open_data(source)
        split = d.split("train")
        for i, name in enumerate(split.names):
            assert split.read(i) == (colours / name).read_bytes()
    asked = collections.Counter(name for name, _ in server.asked)
    assert asked.pop("index.json") == 3
    assert set(asked.values()) == {1}  # each once
    assert not [p for p in kept(tmp_path) if p.suffix == ".part"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_goes_on_where_it_was(written, colours, serve, ranges):
    server = serve(written.out, ranges=ranges)
    server.cut = {"train-000000.tar": 5000}
    server.fail = {"train-000000.tar": 2, "index.json": 1, "train.npz": 1}
    split = open_data(server.url).split("train")
    assert split.read(0) == (colours / split.names[0]).read_bytes()
    asked = [at for name, at in server.asked if name == "train-000000.tar"]
    assert asked == [0, 0, 0, 5000]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_cuts_every_answer_is_given_up(written, serve, ranges):
    server = serve(written.out, ranges=ranges)
    server.always = 300  # bytes of each answer
    with pytest.raises(UserError, match=r"index\.json: can't be fetched \(the connection broke\)"):
        open_data(server.url)
    assert len(server.asked) == web.ATTEMPTS


@pytest.mark.parametrize(
    "headers", [{"Content-Length": "banana"}, {"Location": "http://[bad"}, {"Location": "http://a b"}]
)
def test_a_malformed_answer_is_one_line(written, serve, headers):
    server = serve(written.out)
    server.headers = headers
    with pytest.raises(UserError, match=r"index\.json: (the server's answer can't be understood|can't be fetched)"):
        open_data(server.url)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t["offset"].__setitem__(0, 2**62) or t["size"].__setitem__(0, 2**62),
        lambda t: t.update(offset=t["offset"][:, None]),
        lambda t: t.update(offset=t["offset"] * 1.0),
        lambda t: t.update(target=t["target"].astype(str)),
        lambda t: t.update(names=np.zeros(3)),
        lambda t: t.update(size=np.zeros(10_000_000, np.int64)),
        lambda t: t.update(nothing=t.pop("names")),
        lambda _: b"",
        lambda _: b"PK\x05\x06" + bytes(18),
        lambda _: b"PK\x03\x04 and no more",
    ],
)
def test_a_damaged_table_is_one_line(written, tmp_path, command, change):
    damage(copy(written, tmp_path / "s"), change)
    assert (
        "its index isn't one of shards, or is damaged" in command("train", tmp_path / "s", "--out", tmp_path / "r").line
    )


@pytest.mark.parametrize(
    "change",
    [
        {"labels": [1, 2, 3]}, {"labels": 3}, {"kind": "photos"}, {"val_fraction": "x"}, {"splits": []}, {"scan": []},
        {"scan": {"counts": 3}}, {"splits": {"val": {"table": {}, "shards": []}}}, {"format": []},
    ],
)  # fmt: skip
def test_an_index_of_wrong_types_is_one_line(written, tmp_path, command, change):
    folder = copy(written, tmp_path / "s")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **change}))
    assert "index" in command("train", folder, "--out", tmp_path / "r").line


def test_what_cannot_be_fetched_is_one_line(written, serve, command, tmp_path):
    server = serve(copy(written, tmp_path / "s"))
    (tmp_path / "s" / "train-000000.tar").unlink()
    split = open_data(server.url).split("train")
    with pytest.raises(UserError, match=r"train-000000.tar: the server says 404"):
        split.read(0)
    server.wrong.add("train-000001.tar")
    with pytest.raises(UserError, match=r"train-000001.tar: not the file that the index names"):
        split.read(split.shards[0])
    server.fail["train-000002.tar"] = 100
    with pytest.raises(UserError, match=r"train-000002.tar: can't be fetched \(503"):
        split.read(sum(split.shards[:2]))
    assert len([n for n, _ in server.asked if n == "train-000002.tar"]) == web.ATTEMPTS
    line = command("train", f"{server.url}/nothing", "--out", tmp_path / "r").line
    assert "the server says 404" in line
    server.close()
    assert "can't be fetched" in command("train", server.url, "--out", tmp_path / "r").line
    assert not (tmp_path / "r").exists()


def test_the_cache_keeps_to_its_size(written, serve, tmp_path, monkeypatch):
    limit = 60_000  # bytes; four shards
    monkeypatch.setenv("MOBILENETS_SHARDS_GB", str(limit / 1e9))
    monkeypatch.setattr(sharded, "OPEN", 2)
    server = serve(written.out)
    split = open_data(server.url).split("train")
    for i in range(len(split)):
        split.read(i)
        assert sum(p.stat().st_size for p in kept(tmp_path)) <= limit
    assert len(server.asked) == len(split.shards) + 3  # in order, each shard still comes once
    monkeypatch.setenv("MOBILENETS_SHARDS_GB", "much")
    with pytest.raises(UserError, match="MOBILENETS_SHARDS_GB is 'much'"):
        open_data(server.url)


def test_shards_are_fetched_before_their_turn(written, serve):
    """Nobody reads an image here: what the server is asked for is what comes next, and no more."""
    server = serve(written.out)
    split = open_data(server.url).split("train")
    shard_of = np.repeat(np.arange(len(split.shards)), split.shards)
    batches = loader.train_loader(loader.TrainImages(split, None, 0), Recipe(batch=8, workers=0), 1, 0)
    line = batches.sampler.order().tolist()
    horizon = sharded.AHEAD * sharded.WINDOW * (len(split) // len(split.shards))

    def asked():
        return {int(n[6:12]) for n, _ in server.asked if re.fullmatch(r"train-\d+\.tar", n)}

    def due(n):
        return {int(shard_of[i]) for i in line[: n + horizon + 1]}

    images = iter(batches.sampler)
    for n in range(len(line)):
        assert next(images)[1] == line[n]
        end = time.monotonic() + 30
        while asked() != due(n) and time.monotonic() < end:
            time.sleep(0.001)
        assert asked() == due(n)
    assert due(0) < due(len(line) - 1)
    assert len([n for n, _ in server.asked if n.endswith(".tar")]) == len(asked())


def test_a_small_cache_isnt_filled_with_what_comes_later(written, serve, monkeypatch):
    monkeypatch.setenv("MOBILENETS_SHARDS_GB", str(60_000 / 1e9))  # four shards
    server = serve(written.out)
    split = open_data(server.url).split("train")
    line = np.random.default_rng(0).permutation(len(split))
    for i in split.read.ahead(line):
        split.read(i)
        time.sleep(0.005)
    asked = collections.Counter(name for name, _ in server.asked if name.endswith(".tar"))
    assert set(asked.values()) == {1}


def test_what_cannot_be_fetched_ahead_is_said_by_its_reader(written, serve):
    server = serve(written.out)
    server.wrong.add("train-000003.tar")
    split = open_data(server.url).split("train")
    read = []
    with pytest.raises(UserError, match=r"train-000003.tar: not the file that the index names"):
        read.extend(split.read(i) for i in split.read.ahead(np.arange(len(split))))
    assert len(read) == sum(split.shards[:3])


def test_a_process_forked_while_fetching_doesnt_hold_the_lock(tmp_path):
    path = tmp_path / "f"
    with path.open("ab") as f, remote._locked(f):
        child = subprocess.Popen(["sleep", "60"], pass_fds=[f.fileno()])
    try:
        with path.open("ab") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError where it does
    finally:
        child.kill()
        child.wait()


def test_many_readers_fetch_each_shard_once(written, serve):
    server = serve(written.out)
    split = open_data(server.url).split("train")
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(split.read, np.random.default_rng(0).permutation(len(split)).repeat(4).tolist()))
    assert len(got) == 4 * len(split)
    asked = collections.Counter(name for name, _ in server.asked if name.endswith(".tar"))
    assert set(asked.values()) == {1}
