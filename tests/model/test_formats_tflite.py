"""Reading TFLite's files."""

import math
import zipfile

import numpy as np
import pytest
from foreign_files import line, network, weights, write_lite, zipped

from mobilenets.model.convert.formats import tflite as lite

OPS = ("CONV_2D", "PAD", "DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED", "SOFTMAX")


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", ["float32", "float16", "dynamic", "uint8", "int8"])
def test_tflite(tmp_path, kind, per_channel):
    g = lite.read(write_lite(tmp_path / "m.tflite", network(kind, per_channel)))
    stored = kind if kind in ("uint8", "int8") else "float32"
    assert (g.input_size, g.num_classes, g.input_type, g.precision, g.labels) == (16, 5, stored, stored, None)
    assert g.ops == OPS
    assert g.wires == ((-1,), (0,), (1,), (2,), (3,), (4,))
    zero = 128 if kind == "uint8" else 0
    assert g.input_quantization == (None if stored == "float32" else (0.0078125, zero))
    assert [(x.name, x.kind, x.stride, x.padding, x.pad, x.activation) for x in g.layers] == [
        ("conv1/Relu6", "conv", 2, "same", (0, 0, 0, 0), "relu6"),
        ("conv_dw_1/Relu", "depthwise", 2, "valid", (0, 1, 0, 1), "relu"),
        ("logits", "linear", 1, "valid", (0, 0, 0, 0), "linear"),
    ]
    for layer, (weight, bias) in zip(g.layers, weights(), strict=True):
        assert layer.output_quantization == (None if stored == "float32" else (pytest.approx(0.05), 3))
        for found, expected in ((layer.weight, weight), (layer.bias, bias)):
            assert found.shape == expected.shape
            assert found.dtype == np.float32
        other = (1, 2, 3) if per_channel else None
        step = np.abs(weight).max(axis=other, keepdims=True) / 100
        error = {"float32": 0, "float16": 2e-3}.get(kind, step * 0.501)
        assert (np.abs(layer.weight - weight) <= error).all()
        assert np.abs(layer.bias - bias).max() <= {"float32": 0, "float16": 2e-3, "dynamic": 0}.get(kind, 0.00051)


def test_tflite_dequantizes_exactly(tmp_path):
    graph = network("int8")
    (_, _, shape, q, (scale, _, _)) = next(t for t in graph["tensors"] if t[0] == "w2")
    found = lite.read(write_lite(tmp_path / "m.tflite", graph)).layers[1].weight
    expected = q.astype(np.float32) * np.array(scale, np.float32)
    np.testing.assert_array_equal(found, expected.reshape(shape).transpose(3, 0, 1, 2))


def test_tflite_without_a_bias(tmp_path):
    graph = network("float32")
    for i, left in ((0, 2), (2, 3)):  # left out, or -1
        name, options, inputs, outputs = graph["ops"][i]
        graph["ops"][i] = (name, options, [*inputs[:2], -1][:left], outputs)
    g = lite.read(write_lite(tmp_path / "m.tflite", graph))
    assert not g.layers[0].bias.any()
    assert not g.layers[1].bias.any()
    assert g.layers[2].bias.any()


def test_tflite_labels(tmp_path):
    path = tmp_path / "m.tflite"
    text = "rose\ntulip, red\nüber\n\nlast\n"
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_lite(path, network("uint8"), zipped({"labels.txt": text, "vocab.bin": b"x"}, method))
        assert lite.read(path).labels == ("rose", "tulip, red", "über", "", "last")
    write_lite(path, network("uint8"), zipped({"readme.txt": text}))
    assert lite.read(path).labels is None
    write_lite(path, network("uint8"), zipped({"labels.txt": b"x" * 2**24}, zipfile.ZIP_DEFLATED))
    assert line(lite.read, path) == "damaged TFLite file (labels of more than 1,048,576 bytes)"


def changed(graph, tensor=None, op=None, **top):
    """The graph with a tensor's or an operator's fields replaced: `tensor=("w1", 2, [8])`, `op=(0, 2, [0, 1, 2])`."""
    graph = {**graph, "tensors": list(graph["tensors"]), "ops": list(graph["ops"]), **top}
    for part, change in (("tensors", tensor), ("ops", op)):
        if change:
            which, field, value = change
            names = [t[0] for t in graph[part]]
            i = names.index(which)
            graph[part][i] = (*graph[part][i][:field], value, *graph[part][i][field + 1 :])
    return graph


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tensor": ("w1", 2, [8, 3, 3, 4])}, "damaged TFLite file (tensor 1 has 216 bytes, not [8, 3, 3, 4] of 1)"),
        ({"tensor": ("w1", 2, [8, -3, -3, 3])}, "damaged TFLite file (tensor 1 has 216 bytes"),
        ({"tensor": ("w1", 3, None)}, "the weights at tensor 1 aren't constant"),
        ({"tensor": ("w1", 4, None)}, "damaged TFLite file (tensor 1 is quantized, without a scale)"),
        ({"tensor": ("w1", 4, ([0.1] * 3, [0] * 3, 0))}, "damaged TFLite file (tensor 1 has 3 scales for"),
        ({"tensor": ("w1", 4, ([math.nan], [0], 0))}, "damaged TFLite file (tensor 1 has scales that aren't positive"),
        ({"tensor": ("conv1/Relu6", 4, None)}, "damaged TFLite file"),
        ({"tensor": ("b1", 2, [2, 4])}, "damaged TFLite file (conv1/Relu6: a bias of shape (2, 4) for 8 channels)"),
        ({"tensor": ("input", 2, [1, 16, 20, 3])}, "its input is [1, 16, 20, 3], not [1, size, size, 3]"),
        ({"tensor": ("softmax", 2, [1, 4, 5])}, "its output is [1, 4, 5], not [1, classes]"),
        ({"op": ("CONV_2D", 2, [0, 999, 2])}, "damaged TFLite file (tensor 999 of"),
        ({"op": ("CONV_2D", 2, [0, -5, 2])}, "damaged TFLite file (tensor -5 of"),
        ({"op": ("CONV_2D", 2, [0, 0, 2])}, "the weights at tensor 0 aren't constant"),
        ({"op": ("CONV_2D", 1, ("Conv2DOptions", {"StrideH": 2, "StrideW": 1}))}, "conv1/Relu6: strides 2 and 1"),
        ({"op": ("CONV_2D", 1, ("Conv2DOptions", {}))}, "conv1/Relu6: strides 0 and 0"),
        ({"op": ("CONV_2D", 1, None)}, "damaged TFLite file (conv1/Relu6: no options)"),
        ({"op": ("PAD", 2, [3, 0])}, "a PAD in it that isn't of height and width"),
        ({"graphs": 2}, "more than one graph in it, or none"),
        ({"inputs": [0, 0]}, "neither a classifier, of one input and one output, nor a detector"),
        ({"ops": []}, "no layers in it"),
        ({"outputs": [1], "tensors": None}, "its output is"),
    ],
)
def test_tflite_that_no_mobilenet_is(tmp_path, change, said):
    graph = network("int8")
    if "tensors" in change:
        change = {**change, "tensors": graph["tensors"]}
    assert said in line(lite.read, write_lite(tmp_path / "m.tflite", changed(graph, **change)))


def test_damaged_tflite(tmp_path):
    path = write_lite(tmp_path / "m.tflite", network("int8"))
    data = path.read_bytes()
    for cut in range(0, len(data) - 4, 97):
        path.write_bytes(data[:cut])
        line(lite.read, path)
    path.write_bytes(b"x" * 100)
    assert line(lite.read, path) == "damaged TFLite file (no TFL3 at its start)"


def test_a_quoted_name_is_fit_for_a_terminal(tmp_path):
    graph = changed(
        network("int8"), op=("CONV_2D", 1, ("Conv2DOptions", {})), tensor=("conv1/Relu6", 0, "\x1b[2J\na" * 99)
    )
    said = line(lite.read, write_lite(tmp_path / "m.tflite", graph))
    assert said.isprintable()
    assert len(said) < 250


def test_tflite_weights_shared_by_many_layers(tmp_path):
    """A small file whose layers all point to the same weights would unpack to any size."""
    graph = network("float32")
    graph["ops"] = graph["ops"][:1] * 4_000 + graph["ops"][1:]
    w = next(i for i, t in enumerate(graph["tensors"]) if t[0] == "w1")
    graph["tensors"][w] = ("w1", "float32", [8, 3, 3, 900], np.zeros((8, 3, 3, 900), np.float32), None)
    said = "damaged TFLite file (its layers unpack to far more than its size)"
    assert line(lite.read, write_lite(tmp_path / "m.tflite", graph)) == said
