"""What TensorFlow's detectors say of their boxes besides the weights, in whatever file it stands. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

OPERATOR = "TFLite_Detection_PostProcess"  # the custom operator that ends a detector's .tflite


@dataclass(frozen=True, eq=False)
class PostProcessing:
    """How a detector's raw answers become boxes; None where a file doesn't say.

    `anchors` [A, 4]: centre y, x, height, width in fractions of the input, each rounded to a multiple of `step` (0:
    they aren't). `shapes`: of each map its anchors' (width, height) instead. `scales` divide the numbers of a box: y,
    x, h, w. `score`, `iou`, `per_class` and `most` choose the answers. `together`: boxes of different classes push each
    other out, as TFLite's operator has it unless it is told to go by class. `boxes` and `scores`: the file's operators
    whose outputs the raw answers are.
    """

    anchors: npt.NDArray[np.float32] | None = None
    step: float = 0.0
    shapes: tuple[tuple[tuple[float, float], ...], ...] | None = None
    scales: tuple[float, float, float, float] | None = None
    score: float | None = None
    iou: float | None = None
    per_class: int | None = None
    most: int | None = None
    together: bool = False
    classes: int | None = None
    boxes: int = -1
    scores: int = -1


def of_operator(options: bytes) -> PostProcessing:
    """What the operator's options say: a map in a flexbuffer. Its values are read one by one: it may be anything.

    lite/kernels/detection_postprocess.cc has their names. Raises `ValueError`, or what the flatbuffers library raises.
    """
    from flatbuffers import flexbuffers

    found = flexbuffers.GetRoot(options).AsMap

    def number(name: str, least: float, most: float) -> float:
        given = found[name].AsFloat if found[name].IsFloat else found[name].AsInt
        value = float(str(np.float32(given)))  # .6 as it was written
        if not least <= value <= most:
            raise ValueError(f"{OPERATOR}'s {name} is {value:g}")
        return value

    def flag(name: str) -> bool:
        try:
            return bool(found[name].AsBool)
        except KeyError:
            return False

    y, x, h, w = (number(f"{side}_scale", 1e-3, 1e3) for side in "yxhw")
    most = int(number("max_detections", 1, 1e6))
    by_class = flag("use_regular_nms")
    return PostProcessing(
        scales=(y, x, h, w),
        score=number("nms_score_threshold", 0, 1),
        iou=number("nms_iou_threshold", 0, 1),
        per_class=int(number("detections_per_class", 1, 1e6)) if by_class else most,
        most=most,
        together=not by_class,
        classes=int(number("num_classes", 1, 1e5)),
    )


def of_numbers(numbers: dict[str, npt.NDArray[Any]], kinds: dict[str, str], wires: dict[str, Any]) -> PostProcessing:
    """What the nodes of an Object Detection API's frozen graph say, by the names that the API gives them."""

    def first(*ends: str) -> float | None:
        for end in ends:
            for name, value in numbers.items():
                if name.startswith("Postprocessor/") and name.endswith(end) and value.size == 1:
                    found = float(str(value.reshape(-1)[0]))
                    return found if math.isfinite(found) else None
        return None

    scales = [first(f"Decode/truediv{i}/y") for i in ("", "_1", "_2", "_3")]
    each = "MultiClassNonMaxSuppression/Minimum"
    counts = [
        int(v.reshape(-1)[0])
        for k, v in numbers.items()
        if each in k and k.removesuffix("/x").rpartition("/")[2].startswith("Minimum") and v.size == 1
    ]
    score, iou = first("/score_threshold", "MultiClassNonMaxSuppression/Greater/y"), first("/iou_threshold")
    y, x, h, w = scales
    return PostProcessing(
        scales=(y, x, h, w) if y and x and h and w and min(y, x, h, w) > 0 else None,
        score=score if score is not None and 0 <= score < 1 else None,
        iou=iou if iou and 0 < iou <= 1 else None,
        per_class=counts[0] if counts and counts[0] > 0 else None,
        most=counts[-1] if counts and counts[-1] > 0 else None,
        shapes=_shapes(numbers, kinds, wires),
    )


def _shapes(
    numbers: dict[str, npt.NDArray[Any]], kinds: dict[str, str], wires: dict[str, Any]
) -> tuple[tuple[tuple[float, float], ...], ...] | None:
    """Anchors of each map, of a square input: `MultipleGridAnchorGenerator` divides their scales by roots of ratios."""
    maps = []
    for name, inputs in wires.items():
        if kinds[name] != "RealDiv" or not name.startswith("MultipleGridAnchorGenerator/") or len(inputs) != 2:
            continue
        scales, root = numbers.get(inputs[0]), inputs[1]
        if scales is None or kinds.get(root) != "Sqrt" or not wires[root]:
            continue
        ratios = numbers.get(wires[root][0])
        if ratios is None or ratios.shape != scales.shape or not (ratios > 0).all() or not (scales > 0).all():
            continue
        roots = np.sqrt(ratios.astype(np.float64)).reshape(-1)
        sides = zip((scales.reshape(-1) * roots).tolist(), (scales.reshape(-1) / roots).tolist(), strict=True)
        maps.append(tuple(sides))
    return tuple(maps) or None
