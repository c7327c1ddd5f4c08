"""Reading shards, from a folder and from a web server."""

import collections
import fcntl
import hashlib
import json
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mobilenets import files, web
from mobilenets.data import dataset as data
from mobilenets.data import remote
from mobilenets.data import shard_reader as sharded
from mobilenets.data.open import open_data
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import BadImage, Preprocess
from mobilenets.training import loader
from mobilenets.training.recipes import Recipe

# ---- an index that isn't right -------------------------------------------------------------------------------------


def copy(written, folder):
    folder.mkdir()
    for p in written.out.iterdir():
        (folder / p.name).write_bytes(p.read_bytes())
    return folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda i: i.pop("labels"),
        lambda i: i["labels"].pop(),  # a class fewer than the targets have
        lambda i: i["splits"]["train"]["shards"].pop(),
        lambda i: i["splits"]["train"]["shards"][0].update(bytes=10),
        lambda i: i["splits"]["train"]["shards"][0].update(file="../../secret.tar"),
        lambda i: i["splits"]["train"]["shards"][0].update(count="3"),
        lambda i: i["splits"]["train"]["table"].update(file="val.npz"),
        lambda i: i.update(splits=[]),
        lambda i: i.update(format="mobilenets-shards-2"),
        lambda i: i.pop("scan"),
    ],
)
def test_a_wrong_index_is_one_line(written, tmp_path, command, damage):
    folder = copy(written, tmp_path / "s")
    index = json.loads((folder / "index.json").read_text())
    damage(index)
    (folder / "index.json").write_text(json.dumps({"note": "mobilenets-shards-1", **index}))
    assert "index" in command("train", folder, "--out", tmp_path / "r").line
    assert not (tmp_path / "r").exists()


def test_a_shard_that_is_cut_or_gone(written, tmp_path):
    folder = copy(written, tmp_path / "s")
    split = open_data(str(folder)).split("train")
    (folder / "train-000000.tar").write_bytes(b"")
    with pytest.raises(BadImage, match=r"train-000000.tar ends before it"):
        split.rgb(0)
    (folder / "train-000001.tar").unlink()
    with pytest.raises(BadImage, match=r"train-000001.tar can't be read"):
        split.rgb(split.shards[0])


def test_a_folder_of_ones_own_with_an_index(tmp_path, write_images):
    root = write_images(tmp_path / "d", {"a": 5, "b": 5})
    (root / "index.json").write_text('{"format": "mine"}')
    assert open_data(str(root)).labels == ("a", "b")


# ---- reading -------------------------------------------------------------------------------------------------------


def test_many_threads_with_few_files_open(written, colours, monkeypatch):
    monkeypatch.setattr(sharded, "OPEN", 2)
    split = open_data(str(written.out)).split("train")
    rng = np.random.default_rng(0)
    wanted = rng.integers(0, len(split), 4000)
    opened = Path("/proc/self/fd")
    before = len(list(opened.iterdir())) if opened.is_dir() else None
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: hashlib.sha256(split.read(int(i))).digest(), wanted))
    expected = [hashlib.sha256((colours / n).read_bytes()).digest() for n in split.names]
    assert got == [expected[i] for i in wanted]
    if before is not None:
        assert len(list(opened.iterdir())) <= before + 3


def test_a_sample_reads_few_shards(written, monkeypatch):
    d = open_data(str(written.out))
    opened = []
    monkeypatch.setattr(sharded, "_Open", lambda path, one=sharded._Open: (opened.append(path.name), one(path))[1])
    assert len(d.sample("train", 6, Preprocess(32)).pixels) == 6
    assert len(set(opened)) <= 3


# ---- the order of reading ------------------------------------------------------------------------------------------

COUNTS = tuple(np.random.default_rng(0).integers(80, 121, 60).tolist())  # images in each of 60 shards
TOTAL, BATCH = sum(COUNTS), 64


def drawn(world, epoch, counts=COUNTS, batch=BATCH, seed=0):
    """[rank][step]: the images of that batch."""
    split = data.Split("train", range(sum(counts)), np.zeros(sum(counts), np.int64), lambda _: b"", shards=counts)
    out = []
    for rank in range(world):
        images = loader.TrainImages(split, None, seed)
        batches = loader.train_loader(images, Recipe(batch=batch, workers=0), world, rank)
        batches.sampler.set_epoch(epoch)
        keys = list(batches.batch_sampler)
        assert len(keys) == len(batches)
        assert all(e == epoch for b in keys for e, _ in b)
        out.append([[i for _, i in b] for b in keys])
    return out


@pytest.mark.parametrize("counts", [COUNTS, COUNTS[:5], (1000,), (3,) * 400])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_each_image_once_an_epoch_over_all_processes(world, counts):
    one = [i for rank in drawn(world, 3, counts) for b in rank for i in b]
    batch = BATCH // world * world
    assert len(one) == len(set(one)) == sum(counts) // batch * batch
    assert set(one) <= set(range(sum(counts)))


def test_what_is_left_out_differs_from_epoch_to_epoch():
    left = [set(range(TOTAL)) - {i for b in drawn(1, e)[0] for i in b} for e in range(8)]
    assert all(len(x) == TOTAL % BATCH for x in left)
    assert not set.intersection(*left)


@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_batch_is_the_same_images_over_any_number_of_processes(world):
    whole, split = drawn(1, 2)[0], drawn(world, 2)
    assert len(whole) == len(split[0])
    for step, batch in enumerate(whole):
        assert sorted(batch) == sorted(i for rank in split for i in rank[step])


def test_the_order_is_anew_in_each_epoch_and_for_each_seed():
    assert drawn(1, 0) == drawn(1, 0)
    assert len({str(drawn(1, e, seed=s)) for e in range(3) for s in range(3)}) == 9
    first = [sorted(drawn(1, e)[0][0]) for e in range(2)]
    assert len(set(first[0]) & set(first[1])) < BATCH / 4


def test_few_shards_are_read_at_a_time():
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    batches = drawn(1, 1)[0]
    window = [len({shard_of[i] for b in batches[k : k + 4] for i in b}) for k in range(len(batches) - 4)]
    assert max(window) <= sharded.STREAMS * (sharded.WINDOW + 2) < len(COUNTS)
    per_rank = [{int(shard_of[i]) for b in rank for i in b} for rank in drawn(4, 1)]
    for a in range(4):
        others = set().union(*(per_rank[b] for b in range(4) if b != a))
        assert len(per_rank[a] & others) <= 2 * 2 + 1  # those that a cut goes through, at both ends


def test_a_batch_mixes_many_shards():
    """One that came from few would have images of few sources, and BatchNorm would know."""
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    mixed = [len({shard_of[i] for i in b}) for b in drawn(1, 1)[0]]
    assert min(mixed) >= sharded.STREAMS
    assert np.mean(mixed) > 1.5 * sharded.STREAMS


# ---- from a web server ---------------------------------------------------------------------------------------------


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


def damage(folder, change):
    """The val table of the shards in `folder` with `change`d columns, or bytes; the index says so."""
    table, index = folder / "val.npz", json.loads((folder / "index.json").read_text())
    columns = dict(np.load(table))
    content = change(columns)
    if isinstance(content, bytes):
        table.write_bytes(content)
    else:
        np.savez_compressed(table, **columns)
    entry = index["splits"]["val"]["table"]
    entry |= {"bytes": table.stat().st_size, "sha256": files.sha256(table)}
    (folder / "index.json").write_text(json.dumps(index))


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


# ---- training ------------------------------------------------------------------------------------------------------


def weights(out):
    return (out / "float" / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_training_from_a_folder_and_from_a_server_with_workers(written, serve, tiny_train, tmp_path):
    """The same weights: what is drawn doesn't depend on where the shards are, nor on who reads them."""
    options = ("--epochs", 2, "--batch", 16)
    a = tiny_train(tmp_path / "a", *options, data=written.out)
    assert a.ran.code == 0, a.ran.err
    server = serve(written.out)
    b = tiny_train(tmp_path / "b", *options, "--workers", 2, data=server.url)
    assert b.ran.code == 0, b.ran.err
    assert weights(a.out) == weights(b.out)
    assert Bundle.load(a.out / "float").card.data["counts"] == {"train": 72, "val": 24}


@pytest.mark.slow
def test_a_stopped_epoch_of_shards_goes_on(written, tiny_train, command, tmp_path, monkeypatch):
    from mobilenets.training.learner import Learner

    options = ("--epochs", 2, "--batch", 3, "--checkpoint-minutes", 0)
    whole = tiny_train(tmp_path / "whole", *options, data=written.out)
    step = Learner.training_step

    def stop(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 5):
            raise UserError("stopped")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "training_step", stop)
        stopped = tiny_train(tmp_path / "stopped", *options, data=written.out)
        assert stopped.ran.err.splitlines()[-1] == "mobilenets: stopped"
    assert command(*stopped.arguments, "--resume").code == 0
    assert weights(stopped.out) == weights(whole.out)


def test_a_shard_that_goes_while_training(written, serve, tiny_train, tmp_path):
    """In a worker process, far from the command line: still one line."""
    folder = copy(written, tmp_path / "s")
    server = serve(folder)
    (folder / "train-000003.tar").unlink()
    for workers in (0, 2):
        ran = tiny_train(tmp_path / f"r{workers}", "--workers", workers, data=server.url).ran
        assert ran.code == 2
        assert "Traceback" not in ran.err
        assert re.fullmatch(r"mobilenets: .*train-000003.tar: the server says 404.*", ran.err.splitlines()[-1])
