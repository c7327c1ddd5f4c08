"""Others' detectors as small files, written as their libraries write them, of a network of ours with random weights."""

import re
import struct

import numpy as np
from foreign_files import varint, write_lite

from mobilenets.arch import detectors
from mobilenets.model.bundle import with_random_weights
from mobilenets.model.card import Card
from mobilenets.model.encodings import fold
from mobilenets.model.images import Preprocess

PREPROCESS = Preprocess(64, 1.0, (127.5,) * 3, (127.5,) * 3, framing="stretch")
BUILTIN = {"conv": "CONV_2D", "pointwise": "CONV_2D", "depthwise": "DEPTHWISE_CONV_2D"}


def small(family="ssd", backbone="v1", labels=("cat", "dog", "tree"), seed=0):
    """A detector on a network of alpha .5 at 64x64, all its tensors different from the usual ones."""
    arch = detectors.detector_arch(family, backbone, 0.5, 64)
    head = detectors.ssd_head(arch, len(labels) + 1, family)
    config = detectors.detection_config(arch, labels, family)
    bundle = with_random_weights(Card(arch, PREPROCESS, head, task="detect", config=config))
    rng = np.random.default_rng(seed)
    for array in bundle.tensors.values():
        if array.ndim == 1:
            array += rng.normal(0, 0.1, array.shape).astype(np.float32)
    return bundle


def anchors(bundle):
    """[A, 4]: centre y, x, height, width."""
    out = []
    for (rows, columns), shapes in zip(*(bundle.card.config["anchors"][k] for k in ("maps", "boxes")), strict=True):
        out += [
            ((y + 0.5) / rows, (x + 0.5) / columns, h, w)
            for y in range(rows)
            for x in range(columns)
            for w, h in shapes
        ]
    return np.array(out, np.float32)


OPTIONS = {
    "max_detections": 7, "max_classes_per_detection": 1, "num_classes": 3, "nms_score_threshold": 1e-8,
    "nms_iou_threshold": 0.6, "y_scale": 10.0, "x_scale": 10.0, "h_scale": 5.0, "w_scale": 5.0,
}  # fmt: skip


def lite(bundle, kind="float32", options=OPTIONS, given=None):
    """The detector as TensorFlow's converter writes it (see `foreign_files.write_lite`): float32 or uint8.

    Predictors of boxes and classes by turns, each reshaped, joined, a sigmoid, and the operator that makes boxes.
    """
    from flatbuffers import flexbuffers

    graph, folded = bundle.card.graph, fold(bundle.card, bundle.tensors)
    tensors, ops, at = [], [], {}

    def computed(name, shape):
        tensors.append((name, kind, [1, *shape], None, None if kind == "float32" else ([0.1], [100], 0)))
        return len(tensors) - 1

    def constant(name, array, q=None):
        dtype = {"int32": "int32"}.get(str(array.dtype), "float32")
        if q is None and kind == "uint8" and dtype == "float32":
            scale = float(np.abs(array).max() / 120)
            q = (scale, 0 if array.ndim == 1 else 121)
        if q is None:
            tensors.append((name, dtype, array.shape, array, None))
        else:
            codes = np.rint(array / q[0]).astype(np.int64) + q[1]
            stored = "int32" if array.ndim == 1 else "uint8"
            tensors.append((name, stored, array.shape, codes.astype(stored), ([q[0]], [q[1]], 0)))
        return len(tensors) - 1

    height, width = bundle.card.arch.input_size
    tensors.append(("image", kind, [1, height, width, 3], None, None if kind == "float32" else ([2 / 255], [128], 0)))
    at["input"] = 0
    layers = [op for op in graph.ops if op.is_layer]
    heads = [op for op in layers if op.name.split(".")[1] in ("box", "class")]
    body = [op for op in layers if op not in heads]
    heads.sort(key=lambda op: (int(op.name.split(".")[2]), op.name.split(".")[1]))
    for op in (*body, *heads):
        weight, bias = folded[op.name]
        depthwise = op.kind == "depthwise"
        w = constant(
            f"{op.name}/w", np.ascontiguousarray(weight.transpose((1, 2, 3, 0) if depthwise else (0, 2, 3, 1)))
        )
        b = constant(f"{op.name}/b", bias)
        channels, rows, columns = graph.shapes[op.name]
        out = computed(op.name, (rows, columns, channels))
        how = {
            "Padding": 0,
            "StrideH": op.stride,
            "StrideW": op.stride,
            "FusedActivationFunction": 3 if op.activation else 0,
        }
        which = "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions"
        ops.append((BUILTIN[op.kind], (which, how), [at[op.inputs[0]], w, b], [out]))
        at[op.name] = out
        if op.name.split(".")[1] in ("box", "class") and not op.activation:
            wide = 4 if ".box." in op.name else len(bundle.card.labels) + 1
            shape = constant(f"{op.name}/shape", np.array([1, -1, wide], np.int32))
            rows_of = computed(f"{op.name}/rows", (rows * columns * channels // wide, wide))
            ops.append(("RESHAPE", ("ReshapeOptions", {}), [out, shape], [rows_of]))
            at[f"{op.name}.rows"] = rows_of
    total = graph.shapes["offsets"][0]
    for name, what, wide in (("offsets", ".box.", 4), ("logits", ".class.", len(bundle.card.labels) + 1)):
        joined = [at[f"{op.name}.rows"] for op in heads if what in op.name and not op.activation]
        at[name] = computed(name, (total, wide))
        ops.append(("CONCATENATION", ("ConcatenationOptions", {"Axis": 1}), joined, [at[name]]))
    at["scores"] = computed("scores", (total, len(bundle.card.labels) + 1))
    ops.append(("LOGISTIC", None, [at["logits"]], [at["scores"]]))
    boxes = anchors(bundle) if given is None else given
    fixed = constant("anchors", boxes, (float(boxes.max()) / 255, 0) if kind == "uint8" else None)
    outs = []
    for name in ("boxes", "classes", "scores", "count"):
        tensors.append((name, "float32", [], None, None))
        outs.append(len(tensors) - 1)
    raw = bytes(flexbuffers.Dumps(options))
    ops.append(("TFLite_Detection_PostProcess", raw, [at["offsets"], at["scores"], fixed], outs))
    return {"tensors": tensors, "ops": ops, "inputs": [0], "outputs": outs}


def write_detector(path, *how, **more):
    return write_lite(path, lite(*how, **more))


# ---- TensorFlow's frozen graphs


def field(number, value):
    """A field of a protocol buffer: bytes, text, a number or, as 4 bytes, a float."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def node(name, kind, inputs=(), **attributes):
    made = b"".join(field(5, field(1, k) + field(2, v)) for k, v in attributes.items())
    return field(1, field(1, name) + field(2, kind) + b"".join(field(3, i) for i in inputs) + made)


CODES = {"float32": 1, "int32": 3}


def constant(name, array):
    array = np.asarray(array)
    shape = b"".join(field(2, field(1, int(n))) for n in array.shape)
    code = CODES[str(array.dtype)]
    if array.size == 1:  # as TensorFlow writes a single one
        value = field(5, array.tobytes()) if code == 1 else field(7, varint(int(array.reshape(-1)[0])))
    else:
        value = field(4, array.tobytes())
    return node(name, "Const", value=field(8, field(1, code) + field(2, shape) + value))


def _ints(*values):
    return field(1, field(3, b"".join(map(varint, values))))


def variable(name, array):
    return constant(name, array) + node(f"{name}/read", "Identity", [name])


def frozen(tensors, strides, epsilon=0.001, more=b""):
    """A frozen graph of tensors by TensorFlow's names; `strides` by the names of convolutions' weights."""
    out = node("image_tensor", "Placeholder")
    for name, array in tensors.items():
        out += variable(name, array)
        scope, _, what = name.rpartition("/")
        if what in ("weights", "depthwise_weights"):
            kind = "DepthwiseConv2dNative" if what.startswith("depthwise") else "Conv2D"
            s = strides.get(name, 1)
            attributes = {"strides": _ints(1, s, s, 1), "padding": field(2, "SAME"), "data_format": field(2, "NHWC")}
            out += node(f"{scope}/{kind}", kind, ["image_tensor", f"{name}/read"], **attributes)
        if what == "gamma":
            out += node(f"{scope}/FusedBatchNorm", "FusedBatchNorm", [], epsilon=field(4, epsilon))
    return out + more


def api_scope(bundle, layer):
    """What the Object Detection API calls a layer of a V1 detector."""
    depths = {op.name: op.cout for op in bundle.card.graph.layers}
    words = layer.split(".")
    separate = "_depthwise" * (words[-1] == "depthwise")
    if words[0] == "blocks":
        return f"FeatureExtractor/MobilenetV1/Conv2d_{words[1]}{'' if words[2] == 'conv' else f'_{words[2]}'}"
    if words[1] != "extra":
        predictor = {"box": "BoxEncodingPredictor", "class": "ClassPredictor"}[words[1]]
        return f"BoxPredictor_{words[2]}/{predictor}{separate}"
    extra, n = f"detect.extra.{words[2]}", int(words[2]) + 2
    wide = depths.get(f"{extra}.pointwise") or depths.get(f"{extra}.conv")
    shape = f"1_Conv2d_{n}_1x1_{depths[layer]}" if words[3] == "reduce" else f"2_Conv2d_{n}_3x3_s2_{wide}{separate}"
    return f"FeatureExtractor/MobilenetV1/Conv2d_13_pointwise_{shape}"


ROLES = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def api_names(bundle):
    """A V1 detector's tensors as the API names and lays them out."""
    out = {}
    for name, array in bundle.tensors.items():
        layer = re.sub(r"\.(conv\.(weight|bias)|norm\.\w+)$", "", name)
        theirs, depthwise = api_scope(bundle, layer), layer.endswith("depthwise")
        if name.endswith(".conv.weight"):
            array = np.ascontiguousarray(array.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0)))
            out[f"{theirs}/{'depthwise_weights' if depthwise else 'weights'}"] = array
        elif name.endswith(".conv.bias"):
            out[f"{theirs}/biases"] = array
        elif not name.endswith("num_batches_tracked"):
            out[f"{theirs}/BatchNorm/{ROLES[name.rpartition('.')[2]]}"] = array
    return out


def api_strides(bundle):
    """The strides of its convolutions, by the names of their weights."""
    return {
        f"{api_scope(bundle, op.name)}/{'depthwise_' * (op.kind == 'depthwise')}weights": op.stride
        for op in bundle.card.graph.layers
    }


def post_processing(shapes, per_class=50, most=70, iou=0.5):
    """The nodes of the API that say how boxes are made, of square anchors `shapes` (scale, ratio) of each map."""
    out = constant("Preprocessor/mul/x", np.float32(2 / 255)) + constant("Preprocessor/sub/y", np.float32(1))
    out += constant("Preprocessor/map/while/ResizeImage/stack", np.array([64, 64], np.int32))
    for i, scale in enumerate((10, 10, 5, 5)):
        out += constant(f"Postprocessor/Decode/truediv{f'_{i}' if i else ''}/y", np.float32(scale))
    inside = "Postprocessor/BatchMultiClassNonMaxSuppression/map/while/MultiClassNonMaxSuppression"
    out += constant(f"{inside}/Minimum/x", np.int32(per_class))
    out += constant(f"{inside}/non_max_suppression/iou_threshold", np.float32(iou))
    out += constant(f"{inside}/non_max_suppression/score_threshold", np.float32(1e-8))
    out += constant(f"{inside}/Minimum_1/x", np.int32(most))
    for i, each in enumerate(shapes):
        at = "MultipleGridAnchorGenerator/"
        scales, ratios = (np.array(v, np.float32) for v in zip(*each, strict=True))
        out += constant(f"{at}scales_{i}", scales) + constant(f"{at}ratios_{i}", ratios)
        out += node(f"{at}Sqrt_{i}", "Sqrt", [f"{at}ratios_{i}"])
        out += node(f"{at}truediv_{i}", "RealDiv", [f"{at}scales_{i}", f"{at}Sqrt_{i}"])
    return out
