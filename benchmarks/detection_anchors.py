"""How well detectors' anchors fit the boxes of data: the default ones, and those fitted to the training's boxes.

python benchmarks/detection_anchors.py DATA... > results/detect/anchors.csv

Each DATA as `mobilenets train --task detect` takes it; fitted to train, measured on train and on val.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from mobilenets import tasks
from mobilenets.arch import detectors
from mobilenets.tasks.detect import anchors
from mobilenets.tasks.detect.config import Config

SIDE = 320
DETECTORS = (("ssdlite", "v2"), ("ssdlite-torchvision", "v3-large"), ("ssd-fpnlite", "v2"))
MATCHED = 0.5


def main(sources: list[str]) -> None:
    columns = [
        f"{which}_{split}_{what}"
        for which in ("default", "fitted")
        for split in ("train", "val")
        for what in ("iou", "matched_percent")
    ]
    out = csv.writer(sys.stdout)
    out.writerow(["data", "detector", "train_boxes", "val_boxes", *columns, "default_anchors", "fitted_anchors"])
    for source in sources:
        data = tasks.find("detect").open(source, None, 0, None)
        boxes = {}
        for split in ("train", "val"):
            each = [t.xyxy[~t.crowd] / np.array([*t.size, *t.size], np.float32) for t in data.split(split).targets]
            boxes[split] = np.concatenate(each)
        for family, backbone in DETECTORS:
            arch = detectors.detector_arch(family, backbone, 1.0, SIDE)
            default = Config.of(detectors.detection_config(arch, list(data.labels), family)).anchors
            fitted = anchors.fitted(default, boxes["train"])
            best = [anchors.best_overlaps(a, boxes[s]) for a in (default, fitted) for s in boxes]
            numbers = [n for b in best for n in (f"{b.mean():.3f}", f"{100 * (b >= MATCHED).mean():.1f}")]
            counts = [len(boxes["train"]), len(boxes["val"])]
            out.writerow([Path(source).stem, family, *counts, *numbers, default.count, fitted.count])


if __name__ == "__main__":
    main(sys.argv[1:])
