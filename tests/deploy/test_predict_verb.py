"""`mobilenets predict`: what it prints, what is damaged."""

import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image
from predicted import expected


def test_a_folder_a_zip_and_files(model, photos, command, tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as z:
        for p in sorted(photos.rglob("*.png")):
            z.write(p, p.relative_to(photos).as_posix())
        z.writestr("readme.txt", "no image")
        z.writestr("__MACOSX/a/._000.png", "no image")
    (photos / "notes.txt").write_text("no image")
    paths = sorted(photos.rglob("*.png"))
    names = [p.relative_to(photos).as_posix() for p in paths]
    answers = expected(model, paths, 2)
    for where, prefix in ((photos, photos), (tmp_path / "z.zip", tmp_path / "z.zip")):
        ran = command("predict", model, where, "--top", 2, "--json")
        assert ran.code == 0, ran.err
        rows = [json.loads(line) for line in ran.out.splitlines()]
        assert [r["image"] for r in rows] == [f"{prefix}/{n}" for n in names]
        assert [[t["label"] for t in r["top"]] for r in rows] == [[c for c, _ in a] for a in answers]
    mixed = command("predict", model, paths[5], tmp_path / "z.zip", paths[0], "--json")
    images = [json.loads(line)["image"] for line in mixed.out.splitlines()]
    assert images == [str(paths[5]), *(f"{tmp_path / 'z.zip'}/{n}" for n in names), str(paths[0])]


def test_a_line_for_each_image(model, photos, command):
    path = photos / "a" / "003.png"
    ran = command("predict", model, path)
    ((label, p), *_) = expected(model, [path])[0]
    assert ran.out.startswith(f"{path}\t{label} {100 * p:.1f}%\t")
    assert ran.out.count("\t") == 5
    assert ran.out.count("\n") == 1
    assert ran.err == ""


def test_json_lines(model, photos, command):
    ran = command("predict", model, photos / "b", "--json")
    for line in ran.out.splitlines():
        row = json.loads(line)
        assert set(row) == {"image", "top"}
        assert len(row["top"]) == 5
        assert all(set(t) == {"label", "probability"} for t in row["top"])
        assert sum(t["probability"] for t in row["top"]) <= 1.0001


@pytest.mark.parametrize("as_json", [False, True])
def test_a_folder_with_one_percent_damaged_finishes_lists_them_and_exits_with_1(
    model, write_images, command, tmp_path, as_json
):
    folder = write_images(tmp_path / "photos", {"a": 120, "b": 80}, side=16)
    bad = {folder / "a" / "007.png": "damaged image", folder / "b" / "079.png": "not an image"}
    cut, text = bad
    cut.write_bytes(cut.read_bytes()[:60])
    text.write_text("no image")
    ran = command("predict", model, folder, *(["--json"] if as_json else []))
    assert ran.code == 1
    first, *listed = ran.err.splitlines()
    assert first == "mobilenets: 2 images could not be read:"
    assert len(listed) == 2
    for line, (path, reason) in zip(listed, bad.items(), strict=True):
        assert line.startswith(f"  {path}: ")
        assert reason in line
    assert len(ran.out.splitlines()) == (200 if as_json else 198)
    if as_json:
        rows = [json.loads(line) for line in ran.out.splitlines()]
        assert {r["image"]: r["error"] for r in rows if "error" in r} == {
            str(path): line.strip() for path, line in zip(bad, listed, strict=True)
        }
    else:
        assert not any(str(path) in ran.out for path in bad)


def test_one_damaged_image_alone(model, command, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff")
    ran = command("predict", model, tmp_path / "a.jpg")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[0] == "mobilenets: 1 image could not be read:"


def test_damaged_images_are_listed_before_a_mistake_ends_it(model, photos, command, tmp_path):
    (photos / "a" / "004.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    cores = os.cpu_count() or 1
    ran = command("predict", model, *[photos] * (cores + 1), tmp_path / "empty")
    assert ran.code == 2
    _, *listed, mistake = ran.err.splitlines()
    assert listed
    assert all("004.png" in line for line in listed)
    assert mistake == f"mobilenets: {tmp_path / 'empty'}: no images in this folder"


def odd(kind):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)
    if kind == "16-bit.png":
        return Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    if kind == "cmyk.jpg":
        return small.convert("CMYK")
    if kind == "palette.png":
        return small.convert("P", palette=Image.Palette.ADAPTIVE)
    return small.convert("LA")


@pytest.mark.parametrize("kind", ["16-bit.png", "cmyk.jpg", "palette.png", "grey-alpha.png"])
def test_odd_images_simply_work(model, command, tmp_path, kind):
    image = odd(kind)
    image.save(tmp_path / kind)
    plain = odd("16-bit.png").convert("I") if kind == "16-bit.png" else image
    if kind == "16-bit.png":
        plain = Image.fromarray((np.asarray(plain) >> 8).astype(np.uint8))
    plain.convert("RGB").save(tmp_path / "plain.png")
    ran = command("predict", model, tmp_path / kind, tmp_path / "plain.png", "--json")
    assert ran.code == 0, ran.err
    a, b = (json.loads(line)["top"] for line in ran.out.splitlines())
    tolerance = 0.15 if kind == "cmyk.jpg" else 0.01  # JPEG loses a little
    assert a[0]["label"] == b[0]["label"]
    assert a[0]["probability"] == pytest.approx(b[0]["probability"], abs=tolerance)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("MODEL",), "name at least one image"),
        (("MODEL", "gone.png"), "gone.png: no such file or folder"),
        (("MODEL", "EMPTY"), "no images in this folder"),
        (("MODEL", "ZIP"), "no images in this zip"),
        (("MODEL", "PHOTOS", "--top", "0"), "top must be 1 or more"),
        (("gone.onnx", "PHOTOS"), "gone.onnx: no such file or folder"),
        (("EMPTY", "PHOTOS"), "neither a bundle nor a finished run"),
        ((), "MODEL"),
    ],
)
def test_bad_arguments(model, photos, command, tmp_path, line, message):
    (tmp_path / "empty").mkdir()
    zipfile.ZipFile(tmp_path / "z.zip", "w").close()
    words = {"MODEL": model, "PHOTOS": photos, "EMPTY": tmp_path / "empty", "ZIP": tmp_path / "z.zip"}
    assert message in command("predict", *(words.get(a, a) for a in line)).line


def test_a_missing_path_is_told_before_any_work(model, photos, command, tmp_path):
    message = command("predict", model, *(photos / "a" / f"{i:03d}.png" for i in range(20)), tmp_path / "gone.png").line
    assert message == f"mobilenets: {tmp_path / 'gone.png'}: no such file or folder"


def test_a_zip_damaged_inside(model, photos, command, tmp_path):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as z:
        for p in sorted((photos / "b").iterdir()):
            z.write(p, p.name)
        offset = z.getinfo("004.png").header_offset
    raw = bytearray(path.read_bytes())
    raw[offset + 200] ^= 0xFF
    path.write_bytes(raw)
    ran = command("predict", model, path)
    assert ran.code == 1
    assert len(ran.out.splitlines()) == 9
    assert "004.png" in ran.err


def test_a_zip_whose_directory_is_damaged(model, photos, command, tmp_path):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as z:
        z.write(photos / "b" / "000.png", "000.png")
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"PK\x01\x02", b"PK\x09\x09"))
    assert "z.zip: not a readable zip" in command("predict", model, path).line
