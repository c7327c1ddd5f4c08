"""Parquet files and Hugging Face's datasets on disk, written here as `datasets` writes them."""

import io
import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image
from small import smooth_images

from mobilenets.data import arrow, checks
from mobilenets.data.open import open_data, open_unlabelled
from mobilenets.data.source import Reading, spelled
from mobilenets.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

PIXELS = smooth_images(30)
NAMES = ["zebra", "ant", "cat"]  # not in the alphabet's order


def encoded(i):
    out = io.BytesIO()
    Image.fromarray(PIXELS[i]).save(out, "PNG")
    return out.getvalue()


def features(**more):
    """The schema's metadata, as `datasets` writes it."""
    said = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}, **more}
    return {b"huggingface": json.dumps({"info": {"features": said}}).encode()}


def made(index=range(30), path=lambda i: f"{i:02}.png", labels=None, metadata=None):
    images = [{"bytes": encoded(i), "path": path(i)} for i in index]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({
        "image": pa.array(images, kind),
        "label": pa.array([i % 3 for i in index] if labels is None else labels),
        "who": pa.array([f"p{i % 5}" for i in index]),
        "vector": pa.array([[0.5, 1.5]] * len(images)),
    })  # fmt: skip
    return table.replace_schema_metadata(features() if metadata is None else metadata)


def save(folder, table, parts=1):
    """As Dataset.save_to_disk."""
    folder.mkdir(parents=True)
    names = [f"data-{k:05}-of-{parts:05}.arrow" for k in range(parts)]
    step = -(-len(table) // parts)
    for k, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as f, pa.ipc.new_stream(f, table.schema) as writer:
            writer.write_table(table.slice(k * step, step), max_chunksize=4)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names]}))
    (folder / "dataset_info.json").write_text("{}")


def is_right(data, labels=tuple(NAMES)):
    assert data.labels == labels
    for split in data.splits.values():
        for i in range(len(split)):
            number = next(n for n in range(30) if (np.asarray(split.rgb(i)) == PIXELS[n]).all())
            assert data.labels[split.targets[i]] == NAMES[number % 3]
    return {k: len(s) for k, s in data.splits.items()}


def test_a_parquet_file_of_images(tmp_path):
    pq.write_table(made(), tmp_path / "pets.parquet", row_group_size=7)
    data = open_data(str(tmp_path / "pets.parquet"))
    assert is_right(data) == {"train": 24, "val": 6}
    assert checks.scan(data).damaged == []
    assert {*data.split("all").names} == {f"{i:02}.png" for i in range(30)}


def test_names_that_repeat_become_numbers(tmp_path):
    pq.write_table(made(path=lambda _: None), tmp_path / "a.parquet")
    assert open_data(str(tmp_path / "a.parquet")).split("all").names[0].endswith(".png")
    assert is_right(open_data(str(tmp_path / "a.parquet")))


def test_parquet_files_of_a_repository(tmp_path):
    (tmp_path / "data").mkdir()
    for k in range(2):
        pq.write_table(made(range(10 * k, 10 * k + 10)), tmp_path / "data" / f"train-0000{k}-of-00002.parquet")
    pq.write_table(made(range(20, 25)), tmp_path / "data" / "validation-00000-of-00001.parquet")
    pq.write_table(made(range(25, 30)), tmp_path / "data" / "test-00000-of-00001.parquet")
    assert is_right(open_data(str(tmp_path))) == {"train": 20, "val": 5, "test": 5}


def test_a_dataset_saved_to_disk(tmp_path):
    save(tmp_path / "d", made(), parts=3)
    data = open_data(spelled(tmp_path / "d", Reading(group_column="who")))
    assert is_right(data) == {"train": 24, "val": 6}
    assert len({*data.splits["val"].groups.tolist()}) == 1
    (tmp_path / "dict").mkdir()
    save(tmp_path / "dict" / "train", made(range(20)))
    save(tmp_path / "dict" / "test", made(range(20, 30)))
    save(tmp_path / "dict" / "unsupervised", made(range(3), labels=[-1] * 3))
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test", "unsupervised"]}')
    assert is_right(open_data(str(tmp_path / "dict"))) == {"train": 17, "val": 3, "test": 10}


def test_another_process_reads_them_too(tmp_path):
    save(tmp_path / "d", made(), parts=2)
    split = open_data(str(tmp_path / "d")).split("train")
    read = pickle.loads(pickle.dumps(split.read))
    assert [read(i) for i in range(len(split))] == [split.read(i) for i in range(len(split))]


def test_paths_instead_of_images(tmp_path):
    for i in range(30):
        (tmp_path / f"{i:02}.png").write_bytes(encoded(i))
    pq.write_table(
        pa.table({"path": [f"{i:02}.png" for i in range(30)], "label": [NAMES[i % 3] for i in range(30)]}),
        tmp_path / "t.parquet",
    )
    assert is_right(open_data(str(tmp_path / "t.parquet")), ("ant", "cat", "zebra")) == {"train": 24, "val": 6}
    (tmp_path / "d").mkdir()
    table = made()
    kind = table.schema.field("image").type
    bare = pa.array([{"bytes": None, "path": f"../{i:02}.png" if i else "01.png"} for i in range(30)], kind)
    save(tmp_path / "d" / "s", table.set_column(0, "image", bare))
    for i in range(30):
        (tmp_path / "d" / "s" / f"{i:02}.png").write_bytes(encoded(i))
    damaged = checks.scan(open_data(str(tmp_path / "d" / "s"))).damaged
    assert len(damaged) == 29
    assert all("leads out of" in d for d in damaged)


def test_images_without_labels(tmp_path):
    pq.write_table(made().drop_columns(["label"]), tmp_path / "a.parquet")
    assert len(open_unlabelled(str(tmp_path / "a.parquet")).split("all")) == 30


def test_what_is_not_labelled_is_left_out(tmp_path):
    pq.write_table(made(labels=[-1, None, *(i % 3 for i in range(28))]), tmp_path / "a.parquet")
    data = open_data(str(tmp_path / "a.parquet"))
    assert len(data.split("all")) == 28
    assert data.left_out[0].startswith("2 rows without class, left out: row 1 of")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged, or no Parquet or Arrow file"),
        (b"PAR1" + bytes(range(256)) + b"PAR1", "damaged, or no Parquet or Arrow file"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_damaged_file_is_one_line(content, message, suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=message) as e:
        open_data(str(tmp_path / f"a{suffix}"))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_cut_file_is_one_line(cut, tmp_path):
    pq.write_table(made(), tmp_path / "a.parquet")
    save(tmp_path / "d", made())
    for path in (tmp_path / "a.parquet", next((tmp_path / "d").glob("*.arrow"))):
        os.truncate(path, int(path.stat().st_size * cut))
        with pytest.raises(UserError, match="damaged"):
            open_data(str(path))


def test_wrong_tables_are_one_line(tmp_path, monkeypatch):
    def refused(message, **how):
        pq.write_table(made(**how), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=message) as e:
            open_data(str(tmp_path / "a.parquet"))
        assert "\n" not in str(e.value)

    refused("column 'label' has numbers beyond its 3 classes", labels=[7] * 30)
    refused("holds several values in a row", labels=[[0, 1]] * 30, metadata={})
    refused("only one class, '0'", labels=[0] * 30, metadata={b"huggingface": b"[" * 100_000})
    monkeypatch.setattr(arrow, "memory", lambda: 1000)
    refused("GB of images, too many for this machine's memory: save them to disk")
    (tmp_path / "d").mkdir()
    for splits in (["../x"], "train", ["all"]):
        (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
        with pytest.raises(UserError, match="its splits are"):
            open_data(str(tmp_path / "d"))
