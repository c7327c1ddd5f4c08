"""Zips from outside: what is read of a member is bounded, whatever the zip says of it."""

import io
import tracemalloc
import zipfile

import pytest
from PIL import Image

from mobilenets.data.folder import open_zip, read_member
from mobilenets.model.images import BadImage


def bomb(path, claimed=None, kind=zipfile.ZIP_DEFLATED):
    """A zip of an image and of `a/big.png`, 150 MB of zeros in it, of which its directory `claimed` other sizes."""
    with zipfile.ZipFile(path, "w", kind) as z:
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, "PNG")
        z.writestr("a/small.png", out.getvalue())
        with z.open("a/big.png", "w") as f:
            for _ in range(150):
                f.write(bytes(10**6))
        if claimed is not None:
            z.infolist()[1].file_size = claimed  # the directory is written at the end
    return path


@pytest.mark.parametrize(
    "kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, pytest.param(zipfile.ZIP_LZMA, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("claimed", [None, 1000])
def test_a_member_that_unpacks_to_far_more_than_an_image_is_refused(tmp_path, kind, claimed):
    if claimed is None and kind != zipfile.ZIP_DEFLATED:
        pytest.skip("what is refused by its size isn't unpacked")
    with open_zip(bomb(tmp_path / "a.zip", claimed, kind)) as z:
        assert read_member(z, "a/small.png", "small")
        tracemalloc.start()
        try:
            with pytest.raises(BadImage, match=r"^big: .*from the zip"):
                read_member(z, "a/big.png", "big")
            assert tracemalloc.get_traced_memory()[1] < 90e6
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_members_are_read_however_they_are_packed(tmp_path, kind):
    content = bytes(range(256)) * 400
    with zipfile.ZipFile(tmp_path / "a.zip", "w", kind) as z:
        z.writestr("a.bmp", content)
        z.writestr("empty.bmp", b"")
    with open_zip(tmp_path / "a.zip") as z:
        assert read_member(z, "a.bmp", "a") == content
        assert read_member(z, "empty.bmp", "e") == b""
