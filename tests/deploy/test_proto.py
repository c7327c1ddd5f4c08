import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mobilenets.arch import zoo
from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.deploy.writers import proto
from mobilenets.errors import UserError
from mobilenets.model.bundle import random_bundle


@pytest.mark.parametrize("n", [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)])
def test_whole_numbers_of_every_size(n):
    read = onnx.AttributeProto.FromString(proto.message((1, "n"), (3, n), (20, 2)))
    assert helper.get_attribute_value(read) == n
    assert proto.fields(memoryview(proto.field(3, n))) == {3: [n % 2**64]}


@pytest.mark.parametrize(
    "attributes",
    [{"axis": -1}, {"alpha": 1 / 6}, {"pads": [0, 1, 0, 1]}, {"mode": "linear"}, {"beta": 0.5, "perm": [0, 3, 1, 2]}],
)
def test_an_operator_is_what_onnx_writes(attributes):
    read = onnx.NodeProto.FromString(proto.node("Conv", ["x", "w"], ["y"], "first", **attributes))
    assert read == helper.make_node("Conv", ["x", "w"], ["y"], "first", **attributes)


@pytest.mark.parametrize(
    "kind", ["float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "int64", "bool"]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 1, 1)])
def test_a_tensor_is_what_onnx_reads(kind, shape):
    array = np.random.default_rng(0).integers(-3, 4, shape).astype(kind)
    read = onnx.TensorProto.FromString(proto.tensor("t", array))
    assert read == numpy_helper.from_array(array, "t")
    got = numpy_helper.to_array(read)
    assert (got.dtype, got.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize(("kind", "low", "high"), [("int4", -8, 8), ("uint4", 0, 16)])
@pytest.mark.parametrize("count", [1, 2, 7, 32])
def test_four_bits_a_number(kind, low, high, count):
    codes = np.random.default_rng(count).integers(low, high, (count, 1)).astype(np.int8)
    read = onnx.TensorProto.FromString(proto.tensor("t", codes, kind))
    assert read.data_type == getattr(TensorProto, kind.upper())
    assert len(read.raw_data) == (count + 1) // 2
    np.testing.assert_array_equal(numpy_helper.to_array(read).astype(np.int8), codes)


def test_big_endian_arrays_are_turned():
    read = onnx.TensorProto.FromString(proto.tensor("t", np.array([1, 2], ">i4")))
    assert numpy_helper.to_array(read).tolist() == [1, 2]


def test_inputs_have_any_batch():
    read = onnx.ValueInfoProto.FromString(proto.value("image", "uint8", ["N", 32, 32, 3]))
    assert read == helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 32, 32, 3])


def test_type_numbers_are_onnxs():
    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    assert {k: getattr(TensorProto, names.get(k, k.upper())) for k in proto.TYPES} == proto.TYPES


# ---- whole files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    def write(precision):
        b = random_bundle(zoo.arch("v1", 0.25, 32, 10), precision)
        (tmp_path / "m.onnx").write_bytes(onnx_graph.onnx_model(b))
        return tmp_path / "m.onnx"

    return write


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_file_is_valid_and_read_as_onnx_reads_it(file, precision):
    path = file(precision)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert (model.producer_name, model.ir_version) == ("mobilenets", onnx_graph.IR)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_graph.OPSET)]
    assert model.SerializeToString() == path.read_bytes()
    graph = proto.read(path)
    assert graph.nodes == [(n.op_type, list(n.input), list(n.output)) for n in model.graph.node]
    assert {k: proto.TYPES[v] for k, v in graph.types.items()} == {c.name: c.data_type for c in model.graph.initializer}
    assert graph.origin("blocks.1.depthwise.conv") == ""
    assert onnx_graph.stored_precision(path) == precision


def test_files_of_others_are_read(tmp_path):
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    packed = helper.make_tensor("w", TensorProto.BFLOAT16, [1], [1.5])
    node = helper.make_node("Foo", ["x", "w"], ["y"], domain="their.own", values=[1.0, 2.0], doc_string="what it does")
    model = helper.make_model(helper.make_graph([node], "g", [x], [y], [packed]), functions=[])
    onnx.save(model, tmp_path / "m.onnx")
    assert proto.read(tmp_path / "m.onnx") == ([("Foo", ["x", "w"], ["y"])], {"w": "of another type"}, {})


def test_a_circle_ends():
    graph = proto.Graph([proto.Node("Relu", ["a"], ["b"]), proto.Node("Relu", ["b"], ["a"])], {}, {})
    assert graph.origin("a") == ""


def test_a_damaged_file_is_a_clear_line_or_read(file):
    path = file("int8")
    whole, rng, failed = path.read_bytes(), np.random.default_rng(0), 0
    cut = [whole[: rng.integers(len(whole))] for _ in range(100)]
    flipped = []
    for _ in range(200):
        data = bytearray(whole)
        for at in rng.integers(0, 20_000, rng.integers(1, 20)):  # where the structure is; the rest is weights
            data[at] = rng.integers(256)
        flipped.append(bytes(data))
    for data in (b"", b"\0", b"\xff" * 40, b"\x08" * 7, rng.bytes(300), *cut, *flipped):
        path.write_bytes(data)
        try:
            onnx_graph.stored_precision(path)
        except UserError as e:
            assert str(e).startswith(f"{path}: not a readable ONNX file: ")  # noqa: PT017
            failed += 1
    assert failed > 150
