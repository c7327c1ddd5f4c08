"""Five points moved to a template; where images' points are known from; faults of landmarks."""

import numpy as np
import pytest
from PIL import Image

from mobilenets.data.alignment import (
    TEMPLATES,
    AsTemplate,
    Faces,
    Template,
    align,
    located,
    placed,
    read_landmarks,
    similarity,
    template,
)
from mobilenets.errors import UserError
from mobilenets.model.images import BadImage

ARCFACE, LFW = TEMPLATES["arcface"], TEMPLATES["lfw-crop"]


def dotted(points, size):
    """An image with a bright dot at each point."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    dots = sum(np.exp(-((x - px) ** 2 + (y - py) ** 2) / 6) for px, py in points)
    return Image.fromarray((255 * np.clip(dots, 0, 1)).astype(np.uint8)).convert("RGB")


def test_a_similarity_is_found_again():
    points = ARCFACE.on(112, 112)
    a, b = 1.3 * np.exp(0.4j), 7 - 3j
    moved = a * (points[:, 0] + 1j * points[:, 1]) + b
    found = similarity(points, np.stack([moved.real, moved.imag], 1))
    assert found == (pytest.approx(a), pytest.approx(b))


@pytest.mark.parametrize(("turn", "scale"), [(0.0, 1.0), (0.5, 0.8), (-0.3, 1.9), (0.2, 4.0)])
def test_the_points_lie_where_the_template_has_them(turn, scale):
    """Of a turned face of any size, bright dots at its landmarks end at the template's."""
    z = scale * np.exp(1j * turn) * np.array([complex(*p) for p in ARCFACE.on(112, 112) - 56])
    size = (round(170 * scale), round(180 * scale))
    points = np.stack([z.real + size[0] / 2, z.imag + size[1] / 2], 1)
    out = align(dotted(points, size), points, ARCFACE)
    values = np.asarray(out)[:, :, 0].astype(float)
    for x, y in ARCFACE.on(*out.size):
        near = values[int(y) - 6 : int(y) + 7, int(x) - 6 : int(x) + 7]
        row, column = np.unravel_index(near.argmax(), near.shape)
        assert abs(int(y) - 6 + row + 0.5 - y) < 2
        assert abs(int(x) - 6 + column + 0.5 - x) < 2


def test_what_lies_beyond_the_edge_is_the_edge_again():
    grey = Image.new("RGB", (90, 90), (90, 120, 30))
    out = np.asarray(placed(grey, "x", AsTemplate(LFW), ARCFACE))
    assert out.shape[0] == out.shape[1]
    assert (out == (90, 120, 30)).all()


def test_an_image_that_is_aligned_so_already_is_left_alone():
    image = dotted(LFW.on(90, 90), (90, 90))
    assert placed(image, "x", AsTemplate(LFW), LFW) is image


def test_a_template_survives_its_card_and_a_hostile_one_does_not():
    assert Template.from_json(ARCFACE.to_json()) == ARCFACE
    for damage in ({"points": []}, {"width": 0}, {"points": [[1e9, 0]] * 5}, {"points": "x"}):
        with pytest.raises(UserError, match="not a template of landmarks"):
            Template.from_json({**ARCFACE.to_json(), **damage})
    with pytest.raises(UserError, match="did you mean 'arcface'"):
        template("arcfce")


def landmarks(path, rows):
    head = "image," + ",".join(
        f"{p}_{xy}" for p in ("lefteye", "righteye", "nose", "leftmouth", "rightmouth") for xy in "xy"
    )
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]))
    return read_landmarks(str(path))


def test_landmarks_of_a_table(tmp_path):
    where = landmarks(tmp_path / "points.csv", [("Ann/1.jpg", *range(10, 20)), ("2.png", *range(10))])
    image = Image.new("RGB", (40, 40))
    assert where("faces/Ann/1.webp", image)[0].tolist() == [10.5, 11.5]
    assert where("any/where/2.png", image)[4].tolist() == [8.5, 9.5]
    with pytest.raises(BadImage, match="no landmarks in"):
        where("faces/Bo/1.webp", image)
    with pytest.raises(BadImage, match="a landmark at 16, 17 isn't on its 15x40"):
        where("Ann/1.jpg", Image.new("RGB", (15, 40)))


def test_landmarks_that_are_none(tmp_path):
    where = landmarks(tmp_path / "points.csv", [("1.jpg", *[5] * 9, "nan"), ("2.jpg", *[5] * 9, "")])
    for name in ("1.jpg", "2.jpg"):
        with pytest.raises(BadImage, match="isn't on its"):
            where(name, Image.new("RGB", (40, 40)))
    with pytest.raises(UserError, match="row 1 has something else"):
        landmarks(tmp_path / "points.csv", [("1.jpg", *[5] * 9, "left")])
    (tmp_path / "few.csv").write_text("image,x1,y1\n1.jpg,2,3\n")
    with pytest.raises(UserError, match="there are 2 called so"):
        read_landmarks(str(tmp_path / "few.csv"))
    with pytest.raises(UserError, match="no such table of landmarks"):
        read_landmarks(str(tmp_path / "none.csv"))


def test_images_of_other_proportions_are_not_so_aligned():
    with pytest.raises(BadImage, match="89x109 pixels, and aligned as arcface"):
        AsTemplate(ARCFACE)("1.jpg", Image.new("RGB", (89, 109)))
    AsTemplate(TEMPLATES["celeba"])("1.jpg", Image.new("RGB", (89, 109)))


def test_a_network_that_wants_landmarks_says_so():
    with pytest.raises(UserError, match=r"aligned as arcface has them .112x112.* --landmarks FILE has them"):
        located(None, ARCFACE, "the network")
    with pytest.raises(UserError, match="nothing says"):
        located(Faces(), ARCFACE, "the network")
