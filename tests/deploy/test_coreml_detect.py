"""A detector's Core ML program, read back and computed here, as macOS would: it gives PyTorch's boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import box_convert, nms

from mobilenets.arch import detectors
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.export import generated
from mobilenets.model.bundle import Bundle, with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.images import Preprocess
from mobilenets.tasks.detect import finish

coreml = pytest.importorskip("mobilenets.deploy.engines.coreml")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
MOST = 12


def computed(op: Any, x: dict[str, Any]) -> tuple[Any, ...]:
    """One of MIL's operations, as its documentation defines it; `x`: its inputs by name."""
    two = {
        "add": torch.add, "sub": torch.sub, "mul": torch.mul, "real_div": torch.div, "greater": torch.gt,
        "greater_equal": torch.ge, "logical_and": torch.logical_and, "maximum": torch.maximum,
    }  # fmt: skip
    kind = op.op_type
    if kind in two:
        return (two[kind](torch.as_tensor(x["x"]), torch.as_tensor(x["y"])),)
    match kind:
        case "cast":
            return (x["x"].float() if "fp" in str(x["dtype"]) else x["x"].long(),)
        case "conv":
            top, bottom, left, right = (int(p) for p in x["pad"])
            padded = torch.nn.functional.pad(x["x"], (left, right, top, bottom))
            stride = [int(s) for s in x["strides"]]
            return (torch.conv2d(padded, x["weight"], x["bias"], stride, groups=int(x["groups"])),)
        case "relu6":
            return (x["x"].clamp(0, 6),)
        case "sigmoid" | "exp":
            return (getattr(torch, kind)(x["x"]),)
        case "transpose":
            return (x["x"].permute(*(int(p) for p in x["perm"])),)
        case "reshape":
            return (x["x"].reshape(*(int(s) for s in x["shape"])),)
        case "concat":
            return (torch.cat([torch.as_tensor(v) for v in x["values"]], int(x["axis"])),)
        case "stack":
            return (torch.stack(x["values"], int(x["axis"])),)
        case "split":
            return tuple(x["x"].chunk(int(x["num_splits"]), int(x["axis"])))
        case "slice_by_size":
            at = tuple(slice(int(b), int(b) + int(n)) for b, n in zip(x["begin"], x["size"], strict=True))
            return (x["x"][at],)
        case "topk":
            return tuple(x["x"].topk(int(x["k"]), int(x["axis"])))
        case "floor_div":
            return (x["x"] // x["y"],)
        case "mod":
            return (x["x"] % x["y"],)
        case "gather":
            return (x["x"].index_select(int(x["axis"]), torch.as_tensor(x["indices"]).long()),)
        case "expand_dims":
            return (x["x"].unsqueeze(int(x["axes"][0])),)
        case "select":
            a, b = (torch.as_tensor(x[k]) for k in ("a", "b"))
            return (torch.where(x["cond"].bool(), a, b),)
        case "reduce_sum":
            return (x["x"].sum([int(a) for a in x["axes"]], keepdim=bool(x["keep_dims"])),)
        case "non_maximum_suppression":
            boxes = box_convert(x["boxes"][0].T, "cxcywh", "xyxy")
            kept = nms(boxes, x["scores"][0, 0], float(x["iou_threshold"]))[: int(x["max_boxes"])]
            filled = torch.cat([kept, kept.new_zeros(int(x["max_boxes"]) - len(kept))])
            return boxes[filled].T[None], x["scores"][:, :, filled], filled[None]
    raise AssertionError(f"{kind} isn't known here")


def given(var: Any, values: dict[str, Any]) -> Any:
    if isinstance(var, list | tuple):
        return [given(v, values) for v in var]
    if var.name in values:
        return values[var.name]
    v = var.val
    return torch.as_tensor(v) if isinstance(v, np.ndarray | np.number) else v


@pytest.mark.sampled(1)
@pytest.mark.parametrize("above", [3, 200])
def test_boxes(above: int, tmp_path: Path) -> None:
    """With so many scores above the least: fewer than there is room for, and more."""
    from coremltools.converters.mil.frontend.milproto.load import load

    arch = detectors.detector_arch("ssdlite", "v1", 0.25, 64)
    config = detectors.detection_config(arch, ["cat", "dog", "cow"], "ssdlite")
    head = detectors.ssd_head(arch, 4, "ssdlite")
    raw = with_random_weights(Card(arch, Preprocess(64, framing="stretch"), head, task="detect", config=config))
    card = raw.card
    (image,) = generated(card.preprocess, 1)
    scores = np.sort(TorchEngine(raw, 1)(image[None])["scores"][0, :, 1:].ravel())[::-1]
    least = float(scores[above - 1] + scores[above]) / 2
    config["suppression"] = {"score": least, "iou": 0.4, "per_class": MOST, "most": MOST}
    whole = finish.finished(Bundle(card.replace(config=config), raw.tensors))
    small = {k: v / 8 if k.startswith("detect.box") and k.endswith("pointwise.conv.weight") else v
             for k, v in whole.tensors.items()}  # fmt: skip
    whole = Bundle(whole.card, small)
    path = tmp_path / "m.mlpackage"
    coreml.write(whole, path, None)
    spec = coreml.ct.utils.load_spec(str(path))
    operations = load(spec, spec.specificationVersion, str(path / "Data/com.apple.CoreML/weights"))
    values: dict[str, Any] = {"image": torch.from_numpy(image).permute(2, 0, 1)[None].float()}
    for op in operations.functions["main"].operations:
        if op.op_type != "const":
            made = computed(op, {k: given(v, values) for k, v in op.inputs.items() if v is not None})
            values.update(zip([o.name for o in op.outputs], made, strict=True))
    expected = TorchEngine(whole, 1)(image[None])
    assert 0 < expected["count"][0] <= min(above, MOST)
    for name, numbers in expected.items():
        np.testing.assert_allclose(values[name].numpy().reshape(numbers.shape), numbers, atol=1e-4, err_msg=name)
