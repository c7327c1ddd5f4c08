"""CSV, TSV and JSON lines as data: columns found or named, splits, groups; what is wrong with one, in a line."""

import csv
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import smooth_images

from mobilenets.arch import zoo
from mobilenets.data import text_tables
from mobilenets.data.checks import check, scan
from mobilenets.data.dataset import Data
from mobilenets.data.open import of_card, open_data, open_unlabelled
from mobilenets.data.source import Reading, spelled
from mobilenets.errors import UserError
from mobilenets.model.card import Card, classifier_card
from mobilenets.model.images import Preprocess

HEAD = ("path", "label")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with 40 images, no classes, in img/."""
    root = tmp_path / "photos"
    (root / "img").mkdir(parents=True)
    for i, pixels in enumerate(smooth_images(40)):
        Image.fromarray(pixels).save(root / "img" / f"{i:02}.png")
    return root


def rows(extra=lambda _: (), count=40):
    return [(f"img/{i:02}.png", ("cat", "dog")[i % 2], *extra(i)) for i in range(count)]


def table(path: Path, head, lines, delimiter=",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, delimiter=delimiter)
        writer.writerow(head)
        writer.writerows(lines)
    return path


def opened(path: Path, root=None, seed=0, val=None, **reading) -> Data:
    return open_data(spelled(path, Reading(**reading)), root, seed, val)


def test_a_table_is_data(photos):
    data = opened(table(photos / "photos.csv", HEAD, rows()))
    assert data.labels == ("cat", "dog")
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 32, "val": 8}
    for split in data.splits.values():
        for i in range(len(split)):
            number = int(Path(split.names[i]).stem)
            assert data.labels[split.targets[i]] == ("cat", "dog")[number % 2]
            assert (np.asarray(split.rgb(i)) == smooth_images(40)[number]).all()


@pytest.mark.parametrize(
    ("head", "delimiter", "name"),
    [
        (("file_name", "category"), ",", "t.csv"),
        (("Image Path", "Class"), ";", "t.csv"),
        (("FILENAME", "target"), "\t", "t.tsv"),
        (("img", "labels"), "\t", "t.csv"),
    ],
)
def test_columns_are_known_by_what_they_are_called(head, delimiter, name, photos):
    assert len(opened(table(photos / name, head, rows(), delimiter)).split("all")) == 40


def test_json_lines_and_other_encodings(photos):
    lines = [json.dumps({"file_name": p, "label": c}) for p, c in rows()]
    (photos / "t.jsonl").write_text("\n".join(lines))
    same = opened(photos / "t.jsonl").splits["val"].names
    text = table(photos / "t.csv", HEAD, rows()).read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        (photos / "t.csv").write_text(text, encoding=encoding)
        assert opened(photos / "t.csv").splits["val"].names == same


def test_named_columns_count(photos):
    where = table(photos / "t.csv", ("a", "b", "label", "path"), [(p, c, "x", "y") for p, c in rows()])
    data = opened(where, images_column="a", label_column="b")
    assert data.labels == ("cat", "dog")
    assert data.source == f"{where} --images-column a --label-column b"


def test_splits_of_the_table(photos):
    said = ("Training", "valid", "test_set", "train")
    data = opened(table(photos / "t.csv", (*HEAD, "split"), rows(lambda i: (said[i % 4],))))
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 20, "val": 10, "test": 10}


def test_numbers_are_classes_in_their_order(photos):
    where = table(photos / "t.csv", HEAD, [(p, i % 12) for i, (p, _) in enumerate(rows())])
    assert opened(where).labels == tuple(map(str, range(12)))


def test_groups_are_not_parted(photos):
    where = table(photos / "t.csv", (*HEAD, "patient"), rows(lambda i: (f"p{i % 8}" if i < 32 else "",)))
    for seed in range(4):
        data = opened(where, seed=seed, group_column="patient")
        held = {int(Path(n).stem) % 8 for n in data.splits["val"].names if int(Path(n).stem) < 32}
        trained = {int(Path(n).stem) % 8 for n in data.splits["train"].names if int(Path(n).stem) < 32}
        assert not held & trained
        assert 5 <= len(data.splits["val"]) <= 11
        counts = np.bincount(data.splits["val"].targets)
        assert abs(counts[0] - counts[1]) <= 4


def test_what_is_left_out_is_said(photos):
    lines = [*rows(), ("img/00.png", "cat"), ("", "cat"), ("img/01.png", "")]
    data = opened(table(photos / "t.csv", HEAD, lines))
    assert len(data.split("all")) == 40
    said = [line.replace(str(photos), "") for line in data.left_out]
    assert said == [
        "1 row without image, left out: row 42 of /t.csv",
        "1 row without class, left out: row 43 of /t.csv",
        "1 row the same as an earlier one, left out",
    ]


def test_a_missing_image_is_a_damaged_one(photos):
    where = table(photos / "t.csv", HEAD, [*rows(), ("img/lost.png", "cat")])
    (damaged,) = scan(opened(where)).damaged
    assert damaged == "img/lost.png: no such file"


@pytest.mark.parametrize("as_zip", [False, True])
def test_names_that_are_not_quite_the_files(photos, tmp_path, as_zip):
    """Another suffix, or other capitals: the line says which file is there."""
    source = table(photos / "metadata.csv", HEAD, [(p.replace("png", "JPG"), c) for p, c in rows()])
    if as_zip:
        source = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    with pytest.raises(UserError, match=r"as img/00\.JPG, img/01\.JPG; but 00\.png is: write names as the files"):
        opened(source)


def test_paths_from_elsewhere(photos, tmp_path):
    where = table(tmp_path / "t.csv", HEAD, rows())
    with pytest.raises(UserError, match=r"none of its images is in .*, as img/00\.png, img/01\.png; --root names"):
        opened(where)
    assert len(opened(where, photos).split("all")) == 40
    absolute = table(photos / "a.csv", HEAD, [(str(photos / p), c) for p, c in rows()])
    assert opened(absolute).splits["val"].names == opened(table(photos / "t.csv", HEAD, rows())).splits["val"].names


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "img/../../secret.png", "..\\secret.png", ".."])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_path_that_leads_out_is_refused(path, zipped, photos, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    where = table(photos / "metadata.csv", HEAD, [*rows(), (path, "cat")])
    if zipped:
        where = tmp_path / "a.zip"
        with zipfile.ZipFile(where, "w") as z:
            for p in sorted(photos.rglob("*.*")):
                z.write(p, p.relative_to(photos))
    with pytest.raises(UserError, match=r"the path in row 41, .*, leads out of .*: --root names"):
        opened(where)


@pytest.mark.parametrize(
    ("head", "lines", "reading", "message"),
    [
        (("path", "file", "label"), [], {}, "path or file may have the images: --images-column says which"),
        (("path", "label", "class"), [], {}, "label or class may have the classes: --label-column says which"),
        (("path", "x", "y"), [], {}, r"no column is called as the classes are, .*\(there are: path, x, y\): --label-"),
        (HEAD, [], {"label_column": "lable"}, "unknown column 'lable': did you mean 'label'"),
        (HEAD, [], {"group_column": "camera"}, "unknown column 'camera'"),
        (HEAD, [], {}, "no row has an image and a class"),
        (
            HEAD,
            [("img/00.png", "cat"), ("img/00.png", "dog")],
            {},
            "row 2 .*says of img/00.png what row 1 ",
        ),
        (("path", "label", "label"), [], {}, "two columns are called 'label'"),
        (HEAD, [("img/00.png", "cat", "x")], {}, "row 2 has 3 values, 2 columns are named"),
        (HEAD, [("https://x.org/a.png", "cat")], {}, "row 1 is an address, https://x.org/a.png: download"),
        (HEAD, [("img/00.png", "a\x1bb")], {}, "the class 'a.x1bb' isn't UTF-8 text, or has control characters"),
        (HEAD, [("img/\x1b.png", "a")], {}, "the path in row 1 has control characters"),
        (
            (*HEAD, "split"),
            [("img/00.png", "a", "fold 3")],
            {},
            "column 'split' says fold 3, which isn't train, val ",
        ),
        ((*HEAD, "split"), [("img/00.png", "a", "")], {}, r"column 'split' says \(none\), which isn't"),
        (
            (*HEAD, "split", "g"),
            [("img/00.png", "a", "train", "p"), ("img/01.png", "b", "val", "p")],
            {"group_column": "g"},
            "group 'p' is in train and in val: mend the splits, or leave them out",
        ),
        (HEAD, rows(), {"class_from_name": True}, "--class-from-name is for folders"),
    ],
)
def test_a_wrong_table_is_one_line(head, lines, reading, message, photos):
    where = table(photos / "t.csv", head, lines)
    with pytest.raises(UserError, match=message) as e:
        opened(where, **reading)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "an empty table"),
        ("t.csv", b"path,label\nimg/00.png,caf\xe9\n", "not UTF-8 text .*; save it as CSV in UTF-8"),
        ("t.csv", b"path,label\nimg/00.png\0,cat\n", "as it has NUL characters"),
        ("t.csv", b'path,label\n"' + b"x" * 200_000, "not a readable table: field larger than"),
        ("t.csv", b"path,label\n" + b"x" * 2000, "over 0 MB, the limit for a table of text"),
        ("t.jsonl", b"{", "line 1 isn't JSON"),
        ("t.jsonl", b"[" * 100_000, "line 1 isn't JSON: nested too deep"),
        ("t.jsonl", b"[1]", "line 1 isn't an object"),
        ("t.jsonl", b'{"path": "img/00.png", "label": ["a", "b"]}', "column 'label' holds several values in a row"),
        ("t.jsonl", b'{"path": "img/\\u0000.png", "label": "a"}', "the path in row 1 has control characters"),
        ("t.jsonl", b"", "no column is called as the images are"),
    ],
)
def test_a_hostile_table_is_one_line(name, content, message, photos, monkeypatch):
    if "limit" in message:
        monkeypatch.setattr(text_tables, "TABLE_BYTES", 1000)
    (photos / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as e:
        opened(photos / name)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 500


def test_columns_of_what_is_no_table(write_images, tmp_path):
    classes = write_images(tmp_path / "classes", {"a": 3, "b": 3})
    for source in (classes, "digits"):
        with pytest.raises(UserError, match=r"--label-column is for tables"):
            opened(source, label_column="x")
    table(classes / "one.csv", HEAD, [])
    table(classes / "two.csv", HEAD, [])
    with pytest.raises(UserError, match=r"--label-column may be meant for one\.csv, two\.csv: give one instead"):
        opened(classes, label_column="x")


# ---- Hugging Face's imagefolder, and zips


def zipped(root: Path, out: Path, top: str = "") -> Path:
    with zipfile.ZipFile(out, "w") as z:
        for p in sorted(root.rglob("*.*")):
            z.write(p, top + p.relative_to(root).as_posix())
    return out


@pytest.mark.parametrize("form", ["folder", "zip", "zip of a folder"])
def test_metadata_says_the_classes(form, photos, tmp_path):
    table(photos / "metadata.csv", ("file_name", "label"), rows())
    where = photos if form == "folder" else zipped(photos, tmp_path / "a.zip", "top/" if " of " in form else "")
    data = opened(where)
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 32, "val": 8}
    assert scan(data).damaged == []


def test_metadata_in_each_split(photos):
    for split, some in (("train", rows()[:30]), ("validation", rows()[30:])):
        (photos / split / "img").mkdir(parents=True)
        for path, _ in some:
            (photos / path).rename(photos / split / path)
        lines = [json.dumps({"file_name": p, "label": c}) for p, c in some]
        (photos / split / "metadata.jsonl").write_text("\n".join(lines))
    data = opened(photos)
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 30, "val": 10}
    assert data.splits["val"].names[0] == "validation/img/30.png"
    assert scan(data).damaged == []


def test_metadata_without_classes_leaves_them_to_the_folders(write_images, tmp_path):
    root = write_images(tmp_path, {"cat": 5, "dog": 5})
    table(root / "metadata.csv", ("file_name", "caption"), [("cat/000.png", "a cat")])
    assert opened(root).labels == ("cat", "dog")


def test_the_table_in_a_folder_serves_where_columns_are_named(photos, tmp_path):
    table(photos / "breeds.csv", ("a", "b"), rows())
    for where in (photos, zipped(photos, tmp_path / "a.zip")):
        assert len(opened(where, images_column="a", label_column="b").split("all")) == 40


def test_what_a_zips_table_names_and_the_zip_lacks_is_damaged(photos, tmp_path):
    table(photos / "metadata.csv", HEAD, [*rows(), ("img/lost.png", "cat")])
    (damaged,) = scan(opened(zipped(photos, tmp_path / "a.zip"))).damaged
    assert damaged == "img/lost.png: no such file in the zip"


def test_without_labels_a_table_is_its_images(photos):
    where = table(photos / "t.csv", ("path", "note"), rows())
    data = open_unlabelled(str(where))
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 36, "val": 4}


# ---- another val, limits, what was held out


def test_val_from_another_folder(photos, write_images, tmp_path):
    where = table(photos / "t.csv", HEAD, rows())
    val = write_images(tmp_path / "val", {"dog": 3})
    data = opened(where, val_from=str(val))
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 40, "val": 3}
    assert (data.splits["val"].targets == 1).all()
    assert data.images["count"] == 43
    again = opened(where, val_from=str(table(photos / "v.csv", HEAD, rows()[:4])))
    assert len(again.splits["val"]) == 4
    assert scan(again).leaks
    strange = write_images(tmp_path / "strange", {"dog": 3, "cow": 2})
    with pytest.raises(UserError, match=r"strange: class 'cow' isn't one of .*t\.csv \(cat, dog\)"):
        opened(where, val_from=str(strange))
    with pytest.raises(UserError, match=r"has a val split of its own: leave out --val$"):
        opened(where, val=0.1, val_from=str(val))
    own = write_images(tmp_path / "own", {"train/cat": 3, "train/dog": 3, "val/cat": 1})
    with pytest.raises(UserError, match="has a val split of its own: leave out --val-from"):
        opened(own, val_from=str(val))


@pytest.mark.parametrize("own_val", [False, True])
def test_a_limit_is_of_training_images_alone(own_val, write_images, tmp_path):
    counts = {"train/cat": 20, "train/dog": 30, "val/cat": 9, "val/dog": 9} if own_val else {"cat": 20, "dog": 30}
    root = write_images(tmp_path, counts)
    whole, some, few = (opened(root, limit_per_class=n) for n in (None, 10, 3))
    assert {*few.splits["train"].names} < {*some.splits["train"].names} < {*whole.splits["train"].names}
    assert np.bincount(few.splits["train"].targets).tolist() == [3, 3]
    assert few.splits["val"].names == some.splits["val"].names == whole.splits["val"].names


def card_of(data: Data) -> Card:
    arch = zoo.arch("v1", 0.25, 32).replace(num_classes=len(data.labels))
    return classifier_card(arch, Preprocess(32), data.labels, data=data.describe())


def test_what_was_held_out_is_known_again(photos):
    where = table(photos / "t.csv", ("path", "label", "class", "who"), rows(lambda i: ("x", f"p{i % 10}")))
    data = opened(where, seed=3, label_column="label", group_column="who", limit_per_class=5)
    for source in (None, str(where), data.source):
        found = of_card(card_of(data), source)
        assert found.splits["val"].names == data.splits["val"].names
        assert found.splits["train"].names == data.splits["train"].names
        assert found.as_trained


def test_a_table_without_training_images_is_for_scoring(photos):
    data = opened(table(photos / "t.csv", (*HEAD, "split"), rows(lambda _: ("test",))))
    assert {k: len(s) for k, s in data.splits.items()} == {"test": 40}
    with pytest.raises(UserError, match="has no training images, only test"):
        check(data)


@pytest.mark.parametrize("changing", [False, True], ids=["digits", "a table"])
def test_a_fold_is_known_again(changing, photos):
    data = opened(table(photos / "t.csv", HEAD, rows())) if changing else open_data("digits", seed=5)
    held = []
    for fold in data.in_folds(3):
        found = of_card(Card.from_json(json.loads(json.dumps(card_of(fold).to_json()))), None)
        assert [*found.splits["val"].names] == [*fold.splits["val"].names]
        assert found.as_trained
        assert not {*fold.splits["val"].names} & {*fold.splits["train"].names}
        held += fold.splits["val"].names
    assert sorted(held) == sorted(data.split("all").names)


@pytest.mark.parametrize("fold", [[0, 0], [-1, 3], [3, 3], [0, 10**15]])
def test_a_fold_that_cant_be_is_none(fold):
    data = open_data("digits")
    card = card_of(data)
    found = of_card(card.replace(data={**card.data, "fold": fold}), None)
    assert len(found.splits["val"]) == len(data.splits["val"])
