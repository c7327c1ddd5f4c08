"""Boxes as people have them: each format gives the same boxes; places, splits and sizes are found."""

import json
import shutil
import zipfile

import annotated
import numpy as np
import pytest
from annotated import LABELS, TRUTH, found
from PIL import Image

from mobilenets.data import rle
from mobilenets.data.annotations.open import open_boxes
from mobilenets.errors import UserError

NEEDED = {annotated.write_voc: "defusedxml", annotated.write_cvat: "defusedxml", annotated.write_yolo: "yaml"}


def small(root):
    return annotated.write_label_studio(root, small=True)


def unnamed(root):
    return annotated.write_yolo(root, yaml=None)


WRITERS = [
    annotated.write_coco, annotated.write_voc, annotated.write_yolo, annotated.write_table,
    annotated.write_label_studio, small, annotated.write_cvat,
]  # fmt: skip


def zipped(root):
    path = root.with_suffix(".zip")
    shutil.make_archive(str(root), "zip", root.parent, root.name)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__)
def test_each_format_gives_the_same_boxes(write, packed, tmp_path):
    if write in NEEDED:
        pytest.importorskip(NEEDED[write])
    root = write(tmp_path / "set")
    data = open_boxes(str(zipped(root) if packed else root))
    assert found(data) == TRUTH
    assert set(data.labels) == set(LABELS)
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 3, "val": 1}
    assert all(t.size == (64, 48) for s in data.splits.values() for t in s.targets)
    assert data.faults == {"no_boxes": tuple(n for s in data.splits.values() for n in s.names if "d.png" in n)}
    image = data.splits["train"].rgb(0)
    assert image.size == (64, 48)
    assert data.images["count"] == 4


@pytest.mark.parametrize("write", [annotated.write_coco, annotated.write_table], ids=lambda w: w.__name__)
def test_the_file_itself_is_a_source(write, tmp_path):
    root = write(tmp_path / "set")
    (file,) = [*root.glob("boxes.*")]
    assert found(open_boxes(str(file))) == TRUTH
    other = tmp_path / "elsewhere" / file.name
    other.parent.mkdir()
    file.rename(other)
    assert found(open_boxes(str(other), root)) == TRUTH
    with pytest.raises(UserError, match=r"none of its images is there, as a\.png; b\.png; --root names"):
        open_boxes(str(other))
    assert found(open_boxes(str(other), zipped(root))) == TRUTH


# ---- COCO


def coco(tmp_path, change=lambda _: None, name="boxes.json"):
    annotated.images(tmp_path / "photos")
    value = annotated.coco()
    change(value)
    (tmp_path / name).write_text(json.dumps(value))
    return open_boxes(str(tmp_path))


def whole(data):
    """The targets of all images, by the image's stem."""
    return {n.split("/")[-1][:1]: t for s in data.splits.values() for n, t in zip(s.names, s.targets, strict=True)}


def test_coco_labels_are_by_id_and_ids_are_kept(tmp_path):
    data = coco(tmp_path)
    assert data.labels == ("dog", "cat")
    assert data.category_ids == {"dog": 3, "cat": 7}
    assert whole(data)["a"].ids.tolist() == [1, 2]
    assert data.form == "COCO JSON"


def test_coco_masks_and_crowds(tmp_path):
    mask = np.zeros((48, 64), bool)
    mask[10:20, 4:9] = True
    packed = rle.encode(mask)
    counts = rle.from_text(packed["counts"]).tolist()

    def change(value):
        shapes = ([[4, 8, 20, 8, 20, 24, 4, 24]], {"size": [48, 64], "counts": counts}, packed)
        for one, shape, crowd in zip(value["annotations"], shapes, (0, 1, 0), strict=False):
            one["segmentation"], one["iscrowd"] = shape, crowd
            del one["area"]

    data = coco(tmp_path, change)
    a, b = whole(data)["a"], whole(data)["b"]
    assert a.crowd.tolist() == [False, True]
    assert a.area.tolist() == [256, 50]
    assert a.masks[1] == packed == b.masks[0]
    assert rle.area(a.masks[0]) == 256
    assert whole(data)["d"].masks is not None
    assert len(data.faults["no_mask"]) == 3
    assert rle.area(whole(data)["c"].masks[2]) == 20 * 14  # its box


def test_several_files_are_splits(tmp_path):
    for split in ("train", "val"):
        annotated.images(tmp_path / f"{split}2017")
    halves = {"train": {k: TRUTH[k] for k in "ab"}, "val": {k: TRUTH[k] for k in "cd"}}
    for split, truth in halves.items():
        (tmp_path / f"instances_{split}2017.json").write_text(json.dumps(annotated.coco(truth)))
    (tmp_path / "captions_train2017.json").write_text("{")
    data = open_boxes(str(tmp_path))
    assert {k: sorted(s.names) for k, s in data.splits.items()} == {
        "train": ["train2017/a.png", "train2017/b.png"], "val": ["val2017/c.png", "val2017/d.png"],
    }  # fmt: skip
    assert len(data.faults["unannotated"]) == 4
    with pytest.raises(UserError, match="has a val split of its own"):
        open_boxes(str(tmp_path), val=0.5)
    (tmp_path / "more_train.json").write_text(json.dumps(annotated.coco(halves["train"])))
    with pytest.raises(UserError, match=r"both annotate a\.png: give one of them"):
        open_boxes(str(tmp_path))


def test_roboflows_first_category_goes(tmp_path):
    data = coco(tmp_path, lambda v: v["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"}))
    assert data.labels == ("dog", "cat")
    assert "category 0, 'animals', has no boxes" in data.left_out[0]


def test_a_network_that_knows_more_classes_gives_the_numbers(tmp_path):
    from mobilenets.data.dataset import in_order

    data = in_order(coco(tmp_path), ("bird", "cat", "dog"))
    assert [data.labels[c] for c in whole(data)["a"].classes] == ["cat", "dog"]
    assert data.category_ids["dog"] == 3


# ---- VOC


def test_voc_lists_are_splits(tmp_path):
    pytest.importorskip("defusedxml")
    annotated.write_voc(tmp_path)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, stems in {"train": "a", "val": "b", "trainval": "ab", "cat_train": "d"}.items():
        (lists / f"{name}.txt").write_text("".join(f"{s}\n" for s in stems))
    data = open_boxes(str(tmp_path))
    assert {k: s.names for k, s in data.splits.items()} == {"train": ["JPEGImages/a.png"], "val": ["JPEGImages/b.png"]}
    assert data.faults["unlisted"] == ("c.png", "d.png")


def test_vocs_own_files_count_from_one_and_difficult_is_not_scored(tmp_path):
    pytest.importorskip("defusedxml")
    annotated.write_voc(tmp_path, {"a": [("cat", 1, 1, 64, 48)], "b": []}, database="The VOC2007 Database")
    path = tmp_path / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    a = whole(open_boxes(str(tmp_path)))["a"]
    assert a.xyxy.tolist() == [[0, 0, 64, 48]]
    assert a.crowd.tolist() == [True]


# ---- YOLO


def test_yolo_folders_are_splits_and_outlines_masks(tmp_path):
    pytest.importorskip("yaml")
    for split, names in {"train": "ab", "valid": "c", "test": "d"}.items():
        annotated.images(tmp_path / split / "images", names)
        (tmp_path / split / "labels").mkdir()
        for name in names:
            (tmp_path / split / "labels" / f"{name}.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    (tmp_path / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: {0: thing}\n"
    )
    data = open_boxes(str(tmp_path))
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 2, "val": 1, "test": 1}
    a = whole(data)["a"]
    assert a.xyxy.tolist() == [[16, 12, 48, 36]]
    assert (a.area[0], rle.area(a.masks[0])) == (32 * 24, 32 * 24)


def test_yolo_without_names(tmp_path):
    root = unnamed(tmp_path / "set")
    data = open_boxes(str(root))
    assert data.labels == ("0", "1")
    assert "called by their numbers" in data.left_out[0]
    (root / "labels" / "classes.txt").write_text("cat\ndog\n")
    assert found(open_boxes(str(root))) == TRUTH


def test_yolo_lists(tmp_path):
    pytest.importorskip("yaml")
    root = annotated.write_yolo(tmp_path, "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")
    (root / "train.txt").write_text("./images/a.png\n./images/b.png\n")
    (root / "val.txt").write_text("/data/images/c.png\n")
    data = open_boxes(str(root))
    assert data.splits["train"].names == ["images/a.png", "images/b.png"]
    assert data.splits["val"].names == ["images/c.png"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "1 .5 .5 .2 .2\n2 .5 .5 .2 .2\n",
            "the rows' classes go from 1 to 2, and 2 are named: YOLO's first class is 0",
        ),
        ("cat .5 .5 .2 .2\n", "line 1 is 'cat .5 .5 .2 .2': YOLO's are a class's number"),
        ("0 .5 .5 .2\n", "line 1 is"),
        ("-1 .5 .5 .2 .2\n", "line 1 is"),
        ("1.5 .5 .5 .2 .2\n", "line 1 is"),
        ("0 .5 .5 .2 .2 .99\n", "a network's own predictions"),
    ],
)
def test_rows_that_are_no_labels(rows, message, tmp_path):
    pytest.importorskip("yaml")
    root = annotated.write_yolo(tmp_path)
    for name in "abc":
        (root / "labels" / f"{name}.txt").write_text(rows)
    with pytest.raises(UserError, match=message):
        open_boxes(str(root))


# ---- tables


@pytest.mark.parametrize(
    "text",
    [
        "path,label,x,y,w,h\na.png,cat,4,8,16,16\n",
        "image_id,class,xmin,ymin,xmax,ymax\na,cat,4,8,20,24\n",
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\na,cat,.0625,.3125,.16666667,.5,0\n",
        "file;category;x_center;y_center;width;height\na.png;cat;12;16;16;16\n",
        'image,label,bbox\na.png,cat,"[4, 8, 16, 16]"\n',
        "filename,class,left,top,right,bottom,split\na.png,cat,4,8,20,24,train\n",
    ],
)
def test_columns_as_people_call_them(text, tmp_path):
    annotated.images(tmp_path, "ab")
    (tmp_path / "t.csv").write_text(text)
    data = open_boxes(str(tmp_path / "t.csv"))
    (target,) = data.split("all").targets
    np.testing.assert_allclose(target.xyxy, [[4, 8, 20, 24]], rtol=1e-5)
    assert data.labels == ("cat",)


def test_named_columns_and_groups(tmp_path):
    annotated.images(tmp_path)
    rows = [f"{name}.png,thing,1,1,9,9,{group}" for name, group in zip("abcd", "xxyy", strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["photo,kind,x1,y1,x2,y2,camera", *rows]))
    source = f"{tmp_path / 't.csv'} --images-column photo --label-column kind --group-column camera"
    data = open_boxes(source, val=0.5)
    assert sorted(map(tuple, ([n[0] for n in s.names] for s in data.splits.values()))) == [("a", "b"), ("c", "d")]
    with pytest.raises(UserError, match="unknown column 'kin': did you mean 'kind'"):
        open_boxes(source.replace("kind", "kin"))
    with pytest.raises(UserError, match="--limit-per-class is for images that have one class"):
        open_boxes(source + " --limit-per-class 3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,x1,y1,x2,y2\na.png,,1,2,3,4\n", "row 1 has a box, and no class"),
        ("path,label,x1,y1,x2,y2\n,cat,1,2,3,4\n", "row 1 has no image"),
        ("path,label,x1,y1,x2,y2,split\na.png,cat,1,2,3,4,some\n", "says 'some', which isn't train, val or test"),
        ("path,x1,y1,x2,y2\na.png,1,2,3,4\n", "no column is called as the classes are"),
    ],
)
def test_rows_that_lack_something(text, message, tmp_path):
    annotated.images(tmp_path, "a")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        open_boxes(str(tmp_path / "t.csv"))


# ---- Label Studio, CVAT, masks


def test_label_studio_polygons_and_turned_rectangles(tmp_path):
    annotated.images(tmp_path, "a")
    size = {"original_width": 64, "original_height": 48}
    points = [[0, 0], [50, 0], [50, 50], [0, 50]]
    results = [
        {"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["cat"]}, **size},
        {"type": "rectanglelabels", "value": {"x": 50, "y": 50, "width": 25, "height": 25, "rotation": 90,
         "rectanglelabels": ["cat"]}, **size},
        {"type": "keypointlabels", "value": {}},
    ]  # fmt: skip
    drawn = [{"was_cancelled": True, "result": []}, {"result": results}, {"result": [], "ground_truth": False}]
    task = {"data": {"image": "/data/local-files/?d=photos/a.png"}, "annotations": drawn}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    data = open_boxes(str(tmp_path))
    a = data.split("all").targets[0]
    assert np.round(a.xyxy, 3).tolist() == [[0, 0, 32, 24], [20, 24, 32, 40]]
    assert rle.area(a.masks[0]) == 32 * 24
    assert "1 image annotated by several people: one's boxes count" in data.left_out[0]
    assert data.faults["other_shape"] == ("photos/a.png: keypointlabels",)


def test_cvat_shapes(tmp_path):
    pytest.importorskip("defusedxml")
    annotated.images(tmp_path / "images", "a")
    (tmp_path / "annotations.xml").write_text(
        '<annotations><image id="0" name="a.png" subset="Train" width="64" height="48">'
        '<polygon label="cat" points="4,8;20,8;20,24;4,24"/>'
        '<mask label="cat" rle="1, 2, 3" left="10" top="20" width="3" height="2"/>'
        '<box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90"/>'
        '<polyline label="cat" points="1,1;2,2"/></image></annotations>'
    )
    data = open_boxes(str(tmp_path))
    (a,) = data.splits["train"].targets
    assert np.round(a.xyxy, 3).tolist() == [[4, 8, 20, 24], [11, 20, 13, 21], [15, 5, 25, 25]]
    assert a.area.tolist() == [256, 2, 200]
    assert "polyline" in data.faults["other_shape"][0]


def test_masks_beside_photos(tmp_path):
    annotated.images(tmp_path / "Photos", "abc", suffix=".jpg")
    (tmp_path / "PedMasks").mkdir()
    for name, shift in zip("abc", range(3), strict=True):
        mask = np.zeros((48, 64), np.uint8)
        mask[4:20, 2 + shift : 12] = 1
        mask[30:40, 40:60] = 2
        Image.fromarray(mask).save(tmp_path / "PedMasks" / f"{name}_mask.png")
    data = open_boxes(str(zipped(tmp_path)))
    assert data.labels == ("person",)
    a = whole(data)["a"]
    assert a.xyxy.tolist() == [[2, 4, 12, 20], [40, 30, 60, 40]]
    assert [rle.area(m) for m in a.masks] == [160, 200] == a.area.tolist()
    assert sum(len(s) for s in data.splits.values()) == 3
    Image.fromarray(np.random.default_rng(0).integers(0, 60000, (48, 64), np.uint16)).save(
        tmp_path / "PedMasks" / "a_mask.png"
    )
    with pytest.raises(UserError, match="so it is no mask of objects"):
        open_boxes(str(tmp_path))


# ---- which


def test_where_there_are_two_kinds_one_is_read_and_the_other_told_of(tmp_path):
    root = annotated.write_coco(tmp_path)
    annotated.images(root / "images")
    (root / "table.csv").write_text("path,label,x1,y1,x2,y2\na.png,other,1,2,3,4\n")
    shutil.rmtree(root / "images")
    data = open_boxes(str(root))
    assert data.labels == ("dog", "cat")
    assert "COCO JSON was read; there is a table of boxes too, which wasn't" in data.left_out


def test_where_there_are_none_the_kinds_are_named(tmp_path, write_images):
    write_images(tmp_path / "photos", {"cat": 2, "dog": 2})
    with pytest.raises(UserError, match="no boxes of a kind that is read here: COCO JSON, Pascal VOC XML, YOLO"):
        open_boxes(str(tmp_path / "photos"))
    with pytest.raises(UserError, match="no such folder or file"):
        open_boxes(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="seed must be 0 or more"):
        open_boxes(str(tmp_path), seed=-1)


def test_val_from_another_folder(tmp_path):
    train, val = (annotated.write_coco(tmp_path / name) for name in ("one", "two"))
    data = open_boxes(f"{train} --val-from {val}")
    assert {k: len(s) for k, s in data.splits.items()} == {"train": 4, "val": 4}


def test_the_same_images_are_held_out_at_every_opening(tmp_path):
    root = annotated.write_coco(tmp_path / "set")
    first, again = open_boxes(str(root), seed=1), open_boxes(str(zipped(root)), seed=1)
    names = [[n.removeprefix("set/") for n in d.splits["val"].names] for d in (first, again)]
    assert names[0] == names[1]
    assert first.images == again.images
    assert first.describe()["val_fraction"] == 0.2


def test_a_zip_of_other_things_is_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z:
        z.writestr("notes.json", "{")
    with pytest.raises(UserError, match=r"notes\.json: not readable as JSON"):
        open_boxes(str(tmp_path / "x.zip"))
    (tmp_path / "y.zip").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a folder, nor a readable zip"):
        open_boxes(str(tmp_path / "y.zip"))
