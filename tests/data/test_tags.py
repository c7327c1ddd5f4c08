"""Tags from columns, lists, CelebA's files and folders; what is wrong with them, in a line; how they are held out."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import smooth_images

from mobilenets.data import splitting
from mobilenets.data.checks import check
from mobilenets.data.dataset import in_order
from mobilenets.data.open import of_card, open_data
from mobilenets.data.source import Reading, Source, spelled
from mobilenets.data.tags import TAGS
from mobilenets.errors import UserError
from mobilenets.tasks import attributes

NAN = float("nan")


def opened(path, root=None, val=None, **reading):
    return open_data(spelled(path, Reading(**reading)), root, 0, val, TAGS)


def said(data):
    """Of each image's own name, what is said of it by tag."""
    whole = data.split("all")
    return {
        Path(n).name: dict(zip(data.labels, t.tolist(), strict=True))
        for n, t in zip(whole.names, whole.targets, strict=True)
    }


@pytest.fixture
def photos(tmp_path):
    """A folder with 20 images, no labels."""
    root = tmp_path / "photos"
    root.mkdir()
    for i, pixels in enumerate(smooth_images(20)):
        Image.fromarray(pixels).save(root / f"{i:02}.png")
    return root


def text(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def columns(
    path, count=20, head="file,young,smiling,who", line=lambda i: f"{i % 2},{('yes', 'no', '')[i % 3]},p{i % 4}"
):
    return text(path, head, *(f"{i:02}.png,{line(i)}" for i in range(count)))


def test_all_columns_of_yes_and_no_are_tags(photos):
    data = opened(columns(photos / "t.csv"))
    assert data.labels == ("young", "smiling")
    targets = data.split("all").targets
    assert (targets.shape, targets.dtype) == ((20, 2), np.float32)
    by_name = said(data)
    assert by_name["03.png"] == {"young": 1, "smiling": 1}
    assert by_name["04.png"] == {"young": 0, "smiling": 0}
    assert np.isnan(by_name["05.png"]["smiling"])
    assert opened(photos).labels == data.labels  # the only table among the images


def test_a_column_with_one_wrong_answer_is_named(photos, capsys):
    path = columns(photos / "t.csv", head="file,young,bald,age", line=lambda i: f"{i % 2},{'?' if i == 3 else 1},{i}")
    assert opened(path).labels == ("young",)
    said = " ".join(capsys.readouterr().err.split())
    assert "column 'bald' is taken for no tag, as row 4 says '?': correct that, or name the tags" in said
    assert "'age'" not in said


@pytest.mark.parametrize("values", ["1 0", "1 -1", "True FALSE", "yes no", "1.0 0.0", "Y n"])
def test_what_yes_and_no_are(photos, values):
    data = opened(columns(photos / "t.csv", head="file,tag", line=lambda i: values.split()[i % 2]))
    assert said(data)["00.png"] == {"tag": 1}
    assert said(data)["01.png"] == {"tag": 0}


def test_named_columns_in_their_order(photos):
    path = columns(photos / "t.csv")
    assert opened(path, label_column="smiling,young").labels == ("young", "smiling")  # as the table has them
    assert opened(path, label_column="smiling").labels == ("smiling",)
    with pytest.raises(UserError, match="unknown column 'smilin': did you mean 'smiling'"):
        opened(path, label_column="young, smilin")
    with pytest.raises(UserError, match=r"column 'who' says 'p0' in row 1, which is neither yes nor no"):
        opened(path, label_column="who,young")


def test_a_list_of_tags_in_a_cell(photos):
    line = ("red| big", "", "big", "red|striped ")
    data = opened(columns(photos / "t.csv", head="file,label", line=lambda i: line[i % 4]), label_delimiter="|")
    assert data.labels == ("big", "red", "striped")
    assert said(data)["00.png"] == {"big": 1, "red": 1, "striped": 0}
    assert said(data)["01.png"] == {"big": 0, "red": 0, "striped": 0}
    again = Source.parse(data.source)
    assert again.reading.label_delimiter == "|"
    assert open_data(data.source, labelling=TAGS).labels == data.labels


CELEBA = ("4", "Bald Young", *(f"{i:02}.png {a}  {b}" for i, (a, b) in enumerate([(1, -1), (-1, 1), (-1, -1), (1, 1)])))


def test_celebas_lists(photos, tmp_path):
    data = opened(text(tmp_path / "list_attr_celeba.txt", *CELEBA), photos)
    assert said(data)["01.png"] == {"Bald": 0, "Young": 1}
    text(photos / "list_attr_celeba.txt", *CELEBA)
    text(photos / "README.txt", "what this is")
    assert opened(photos).labels == ("Bald", "Young")
    for lines, wrong in (
        (("5", *CELEBA[1:]), "it says that it has 5 images, and has 4"),
        ((*CELEBA[:2], "00.png 1"), "image 1 has 1 values, 2 labels are named"),
        (("hello", "there"), "not a list as CelebA's is"),
    ):
        with pytest.raises(UserError, match=wrong):
            opened(text(tmp_path / "list.txt", *lines), photos)


def folders(root, **where):
    for tag, numbers in where.items():
        (root / tag).mkdir(parents=True)
        for i in numbers:
            Image.fromarray(smooth_images(20)[i]).save(root / tag / f"{i:02}.png")
    return root


def test_an_image_in_several_folders_has_several_tags(tmp_path):
    root = folders(tmp_path / "tags", red=range(10), big=range(5, 15))
    shutil.copy(root / "red/00.png", root / "big/other name.png")
    data = opened(root)
    assert (data.labels, len(data.split("all"))) == (("big", "red"), 15)
    by_name = said(data)
    assert by_name["07.png"] == {"big": 1, "red": 1}
    assert by_name["other name.png"] == {"big": 1, "red": 1}  # the same bytes as red/00.png
    assert by_name["12.png"] == {"big": 1, "red": 0}
    with zipfile.ZipFile(tmp_path / "tags.zip", "w") as z:
        for p in sorted(root.rglob("*.png")):
            z.write(p, p.relative_to(root))
    assert said(opened(tmp_path / "tags.zip")) == by_name
    Image.fromarray(smooth_images(20)[19]).save(root / "big/01.png")
    with pytest.raises(UserError, match=r"big/01\.png and red/01\.png are called the same and are two images"):
        opened(root)


def test_folders_of_splits_and_tags(tmp_path):
    root = folders(tmp_path / "tags", red=range(10), big=range(5, 15))
    for split, numbers in (("train", range(12)), ("val", range(12, 15))):
        for tag in ("red", "big"):
            for i in numbers:
                if (found := root / tag / f"{i:02}.png").exists():
                    (tmp_path / "split" / split / tag).mkdir(parents=True, exist_ok=True)
                    shutil.copy(found, tmp_path / "split" / split / tag)
    data = opened(tmp_path / "split")
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 12, "val": 3}
    assert said(data)["06.png"] == {"big": 1, "red": 1}


@pytest.mark.parametrize(
    ("head", "line", "wrong"),
    [
        ("file,who", lambda i: f"p{i}", "no column is of yes and no alone"),
        ("file,tag", lambda _: "", "no column is of yes and no alone"),
        ("file,tag", lambda i: (0, -1, 1)[i % 3], "column 'tag' has both 0 and -1"),
    ],
)
def test_tables_that_are_none(photos, head, line, wrong):
    with pytest.raises(UserError, match=wrong):
        opened(columns(photos / "t.csv", head=head, line=line))


def test_ways_of_reading_that_have_no_meaning(photos, colours):
    path = columns(photos / "t.csv")
    for reading, wrong in (
        ({"limit_per_class": 3}, "--limit-per-class is for one class an image"),
        ({"class_from_name": True}, "--class-from-name is for one class an image"),
        ({"label_delimiter": " "}, "label_delimiter is what is between tags"),
    ):
        with pytest.raises(UserError, match=wrong):
            opened(path, **reading)
    with pytest.raises(UserError, match="--label-delimiter is for tags"):
        open_data(spelled(path, Reading(label_delimiter="|")))
    with pytest.raises(UserError, match="--label-delimiter is for tables"):
        opened(colours, label_delimiter="|")
    with pytest.raises(UserError, match="tags are read from tables and folders"):
        opened("digits")


def test_rows_without_any_answer_are_left_out(photos):
    data = opened(columns(photos / "t.csv", head="file,a,b", line=lambda i: "," if i == 3 else f"{i % 2},1"))
    assert len(data.split("all")) == 19
    assert "1 row without tag, left out" in data.left_out[0]


def test_the_check_counts_tags_and_images(photos):
    found = check(opened(columns(photos / "t.csv", head="file,a,b", line=lambda i: f"{i % 2},1"), val=0.2))
    assert found.totals == {"train": 16, "val": 4}
    assert found.counts["train"] == {"a": 8, "b": 16}
    assert found.alike == ["b"]
    assert any("nothing to learn" in line for line in found.findings())


def tags(n=400, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((n, 3)) < (0.5, 0.2, 0.03)).astype(np.float32)


def test_every_tag_keeps_its_share():
    y = tags()
    y[:40, 0] = NAN
    held = splitting.stratified(y, 0.2, 0)
    assert len(held) == 80
    share = np.nansum(y[held], 0) / np.nansum(y, 0)
    assert np.abs(share - 0.2).max() < 0.1
    assert not np.array_equal(held, splitting.stratified(y, 0.2, 1))
    fold = splitting.folds(y, None, 4, 0)
    assert np.bincount(fold).tolist() == [100] * 4
    rare = [y[fold == k, 2].sum() for k in range(4)]
    assert max(rare) - min(rare) <= 2


def test_groups_stay_whole(photos):
    data = opened(columns(photos / "t.csv"), group_column="who", val=0.25)
    there = [{*data.splits[s].groups.tolist()} for s in ("train", "val")]
    assert not there[0] & there[1]
    assert all(there)


def test_val_from_elsewhere(photos):
    path = columns(photos / "t.csv", 12)
    other = columns(photos / "u.csv", 20, head="file,smiling,young", line=lambda i: f"{i % 2},1")
    data = opened(path, val_from=str(other))
    assert (len(data.split("train")), len(data.split("val"))) == (12, 20)
    assert data.split("val").targets[1].tolist() == [1, 1]
    assert data.split("val").targets[0].tolist() == [1, 0]


def test_in_a_networks_order(photos):
    data = in_order(opened(columns(photos / "t.csv")), ("smiling", "bald", "young"))
    row = said(data)["03.png"]
    assert (row["smiling"], row["young"]) == (1, 1)
    assert np.isnan(row["bald"])
    with pytest.raises(UserError, match="class 'young' isn't one the network knows"):
        in_order(opened(columns(photos / "t.csv")), ("smiling",))


def test_a_card_finds_again_what_was_held_out(photos, make_bundle):
    data = opened(columns(photos / "t.csv"), val=0.25)
    card = make_bundle("v1").card.replace(task="attributes", config={}, data=data.describe())
    again = of_card(card, None, None, attributes.TASK.open)
    assert again.split("val").names == data.split("val").names
