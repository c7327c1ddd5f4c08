"""Reading TensorFlow's checkpoints."""

import numpy as np
import pytest
from foreign_files import line, masked_crc, same, slim_arrays, varint, write_checkpoint

from mobilenets.errors import UserError
from mobilenets.model.convert import formats
from mobilenets.model.convert.formats import tf_checkpoint


@pytest.fixture
def slim():
    return slim_arrays()


@pytest.mark.parametrize(("shards", "blocks"), [(1, 1), (1, 2), (3, 5)])
def test_checkpoint(tmp_path, slim, shards, blocks):
    prefix = write_checkpoint(tmp_path / "m.ckpt", {**slim, "global_step": np.array(7, np.int64)}, shards, blocks)
    same(tf_checkpoint.read(prefix), slim)
    for path in tmp_path.iterdir():
        same(tf_checkpoint.read(path), slim)
        assert formats.reader(path) == "tf_checkpoint"


def test_checkpoint_of_other_precision(tmp_path, slim):
    names = list(slim)
    other = {names[0]: slim[names[0]].astype(np.float16), names[1]: slim[names[1]].astype(np.float64)}
    rounded = (slim[names[2]].view(np.uint32) >> 16).astype(np.uint16)  # bfloat16
    found = tf_checkpoint.read(write_checkpoint(tmp_path / "m.ckpt", {**other, names[2]: rounded}))
    same(found, {**other, names[2]: (rounded.astype(np.uint32) << 16).view(np.float32)})
    np.testing.assert_allclose(found[names[2]], slim[names[2]], rtol=2**-7)


def test_checkpoint_prefers_moving_averages(tmp_path, slim):
    averaged = {f"{k}/ExponentialMovingAverage": a + 1 for k, a in slim.items() if "gamma" not in k}
    found = tf_checkpoint.read(write_checkpoint(tmp_path / "m.ckpt", slim | averaged))
    same(found, {k: a + ("gamma" not in k) for k, a in slim.items()})


def test_checkpoint_of_objects(tmp_path, slim):
    named = {f"{k}/.ATTRIBUTES/VARIABLE_VALUE": a for k, a in slim.items()}
    same(tf_checkpoint.read(write_checkpoint(tmp_path / "m.ckpt", named)), slim)


def test_crc32c():
    """The values of RFC 3720, B.4."""
    known = {b"123456789": 0xE3069283, bytes(32): 0x8A9136AA, b"\xff" * 32: 0x62A8AB43, bytes(range(32)): 0x46DD794E}
    assert {k: tf_checkpoint.crc32c(k) for k in known} == known
    rng = np.random.default_rng(0)
    for size in (0, 1, 3, 4, 5, 63, 64, 65, 1000, 4097):
        data = rng.bytes(size)
        crc = tf_checkpoint.crc32c(data)
        assert ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF == masked_crc(data)


def failed(path, prefix):
    return line(lambda _: tf_checkpoint.read(prefix), path)


def test_checkpoint_failures(tmp_path, slim):
    prefix = tmp_path / "m.ckpt"
    index, data = tmp_path / "m.ckpt.index", tmp_path / "m.ckpt.data-00000-of-00001"
    assert failed(index, prefix) == "no such file"
    write_checkpoint(prefix, slim)
    data.rename(tmp_path / "elsewhere")
    assert failed(data, prefix) == "no such file"
    whole = (tmp_path / "elsewhere").read_bytes()
    data.write_bytes(whole[:-4])
    assert "reaches past the end of m.ckpt.data-00000-of-00001" in failed(index, prefix)
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "the checksum of MobilenetV1/Logits/Conv2d_1c_1x1/biases doesn't match" in failed(index, prefix)
    (tmp_path / "old.ckpt").write_bytes(b"x")
    said = "not a version 2 checkpoint: there is no old.ckpt.index beside it"
    assert line(tf_checkpoint.read, tmp_path / "old.ckpt") == said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compression": 1}, "its index is compressed with snappy"),
        ({"header": b"\x08\x01\x10\x01"}, "a big-endian checkpoint"),
        ({"header": b"\x08" + varint(2**62)}, "no such file"),
        ({"offset": 2**62}, "reaches past the end"),
        ({"code": 2}, "bytes, not ["),
        ({"handles": lambda h: h * 1000}, "its blocks overlap"),
        ({"handles": lambda h: [(h[0][0], varint(2**40) + varint(9))]}, "a block reaches past its end"),
        ({"handles": lambda h: [(b"k" * 2000, h[0][1])]}, "an entry of its index reaches past its end"),
        ({"handles": lambda _: []}, "no header, so not a version 2 checkpoint"),
    ],
)
def test_checkpoint_with_a_bad_index(tmp_path, slim, options, said):
    prefix = write_checkpoint(tmp_path / "m.ckpt", slim, **options)
    with pytest.raises(UserError) as e:
        tf_checkpoint.read(prefix)
    assert said in str(e.value)
    assert str(e.value).startswith(f"{prefix}.")


def test_checkpoint_whose_tensors_all_claim_the_same_bytes(tmp_path):
    arrays = {f"v{i}": np.zeros(256, np.float32) for i in range(50)}
    prefix = write_checkpoint(tmp_path / "m.ckpt", arrays, offset=0)
    data = tmp_path / "m.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:2048])
    assert "v10 reaches past the end" in failed(tmp_path / "m.ckpt.index", prefix)
