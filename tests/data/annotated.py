"""Small images with boxes, written in every format that is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (64, 48)
# Of three images, and one without boxes: class, x1, y1, x2, y2 in pixels.
TRUTH = {
    "a": [("cat", 4, 8, 20, 24), ("dog", 30, 10, 60, 40)],
    "b": [("dog", 0, 0, 64, 48)],
    "c": [("cat", 10, 10, 12, 30), ("cat", 40, 2, 50, 12), ("dog", 5, 30, 25, 44)],
    "d": [],
}
LABELS = ("cat", "dog")
Truth = dict[str, list[tuple[str, float, float, float, float]]]


def images(folder: Path, names=TRUTH, size=SIZE, orientation: int = 1, suffix: str = ".png") -> None:
    """Images whose colours differ, so that none is another's copy."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        noise = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        exif = image.getexif()
        if orientation != 1:
            exif[0x0112] = orientation
        image.save(folder / f"{name}{suffix}", exif=exif)


def coco(truth: Truth = TRUTH, suffix: str = ".png", size=SIZE) -> dict:
    """COCO's JSON, the categories' ids with gaps and out of order."""
    ids = {"dog": 3, "cat": 7}
    value: dict = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for n, i in ids.items()]}
    for number, (name, boxes) in enumerate(truth.items(), 100):
        value["images"].append({"id": number, "file_name": name + suffix, "width": size[0], "height": size[1]})
        for label, x1, y1, x2, y2 in boxes:
            value["annotations"].append({
                "id": len(value["annotations"]) + 1, "image_id": number, "category_id": ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
            })  # fmt: skip
    return value


def write_coco(root: Path, **how) -> Path:
    images(root / "photos")
    (root / "boxes.json").write_text(json.dumps(coco(**how)))
    return root


def voc_xml(name: str, boxes, size=SIZE, suffix: str = ".png", database: str = "mine", more: str = "") -> str:
    objects = "".join(
        f"<object><name>{c}</name><difficult>0</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for c, x1, y1, x2, y2 in boxes
    )
    return (
        f"<annotation><folder>x</folder><filename>{name}{suffix}</filename><source><database>{database}</database>"
        f"</source><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}{more}</annotation>"
    )


def write_voc(root: Path, truth: Truth = TRUTH, **how) -> Path:
    images(root / "JPEGImages", truth)
    (root / "Annotations").mkdir()
    for name, boxes in truth.items():
        (root / "Annotations" / f"{name}.xml").write_text(voc_xml(name, boxes, **how))
    return root


def yolo_rows(boxes, labels=LABELS, size=SIZE) -> str:
    w, h = size
    return "".join(
        f"{labels.index(c)} {(x1 + x2) / 2 / w:.7f} {(y1 + y2) / 2 / h:.7f} {(x2 - x1) / w:.7f} {(y2 - y1) / h:.7f}\n"
        for c, x1, y1, x2, y2 in boxes
    )


def write_yolo(root: Path, yaml: str | None = "path: ../elsewhere\ntrain: images\nnames: [cat, dog]\n") -> Path:
    images(root / "images")
    (root / "labels").mkdir()
    for name, boxes in TRUTH.items():
        if boxes:
            (root / "labels" / f"{name}.txt").write_text(yolo_rows(boxes))
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root


def write_table(root: Path) -> Path:
    images(root)
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    for name, boxes in TRUTH.items():
        rows = [(c, *map(str, box)) for c, *box in boxes] or [("",) * 5]
        lines += [",".join([f"{name}.png", "64", "48", *row]) for row in rows]
    (root / "boxes.csv").write_text("\n".join(lines))
    return root


def write_label_studio(root: Path, small: bool = False) -> Path:
    images(root)
    tasks = []
    for number, (name, boxes) in enumerate(TRUTH.items()):
        values = [
            {
                "x": 100 * x1 / 64, "y": 100 * y1 / 48, "width": 100 * (x2 - x1) / 64, "height": 100 * (y2 - y1) / 48,
                "rotation": 0, "rectanglelabels": [c],
            }
            for c, x1, y1, x2, y2 in boxes
        ]  # fmt: skip
        size = {"original_width": 64, "original_height": 48}
        where = f"/data/upload/1/0a1b2c3d-{name}.png"
        if small:
            task = {"id": number, "image": where, "label": [{**v, **size} for v in values], "annotation_id": number}
        else:
            results = [{"type": "rectanglelabels", "value": v, **size} for v in values]
            task = {"id": number, "data": {"image": where}, "annotations": [{"result": results}]}
        tasks.append(task)
    (root / "project-1.json").write_text(json.dumps(tasks))
    return root


def write_cvat(root: Path) -> Path:
    images(root / "images")
    pictures = "".join(
        f'<image id="{i}" name="{name}.png" width="64" height="48">'
        + "".join(f'<box label="{c}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>' for c, x1, y1, x2, y2 in boxes)
        + "</image>"
        for i, (name, boxes) in enumerate(TRUTH.items())
    )
    labels = "<meta><labels><label><name>cat</name></label><label><name>dog</name></label></labels></meta>"
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{labels}{pictures}</annotations>")
    return root


def found(data) -> Truth:
    """What a data set holds, as `TRUTH` is written."""
    out: Truth = {}
    for split in data.splits.values():
        for name, target in zip(split.names, split.targets, strict=True):
            rows = [
                (data.labels[c], *np.round(box, 2).tolist()) for c, box in zip(target.classes, target.xyxy, strict=True)
            ]
            out[Path(name).stem] = rows
    return dict(sorted(out.items()))
