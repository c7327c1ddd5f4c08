"""Reading shards, from a folder and from a web server."""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from copies import copy

from mobilenets.data import dataset as data
from mobilenets.data import shard_reader as sharded
from mobilenets.data.open import open_data
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.images import BadImage, Preprocess
from mobilenets.training import loader
from mobilenets.training.recipes import Recipe

# ---- an index that isn't right -------------------------------------------------------------------------------------


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
