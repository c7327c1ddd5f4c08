"""Geolocation: the globe in cells, distances, losses; positions from tables and EXIF; training, files, reports."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from small import TINY

from mobilenets import tasks
from mobilenets.arch import cost, zoo
from mobilenets.arch.heads import LOGITS, PROBABILITIES
from mobilenets.deploy import engines
from mobilenets.deploy.export import export_bundle
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.reports import places as reported
from mobilenets.reports import style
from mobilenets.tasks.geolocate import cells, lessons, losses, sphere
from mobilenets.tasks.geolocate.scores import shares
from mobilenets.tasks.geolocate.task import TASK, partitions_of, probabilities_of
from mobilenets.training.recipes import Recipe

VIENNA, BARCELONA, SYDNEY = (48.2082, 16.3738), (41.3874, 2.1686), (-33.8688, 151.2093)
OSLO = (59.9139, 10.7522)
PLACES = {"red": VIENNA, "green": OSLO, "blue": SYDNEY}  # the first two on one face of the cube
NET = [word for pair in {**TINY, "--batch": "8"}.items() for word in pair]


def scattered(n=3000, seed=0):
    """Positions all over the globe, most of them around a few cities."""
    rng = np.random.default_rng(seed)
    middle = np.array([*PLACES.values(), (0.0, 0.0), (70.0, -170.0)])
    at = middle[rng.integers(0, len(middle), n)] + rng.normal(0, 1, (n, 2)) * rng.choice([0.05, 1, 8], (n, 1))
    return np.clip(at, (-90, -180), (90, 180))


# ---- the globe


def test_distances_are_those_of_a_sphere_of_6371_km():
    assert sphere.distance((0, 0), (0, 90)) == pytest.approx(np.pi / 2 * 6371)
    assert sphere.distance((90, 0), (-90, 77)) == pytest.approx(np.pi * 6371)
    assert sphere.distance(VIENNA, BARCELONA) == pytest.approx(1347, abs=3)  # as maps have it
    assert sphere.distance((10, 179.5), (10, -179.5)) == pytest.approx(109.5, abs=0.1)  # over the date line


def test_the_mean_of_positions_crosses_the_date_line():
    lat, lon = sphere.mean([(10, 179), (10, -179)])
    assert (lat, abs(lon)) == (pytest.approx(10, abs=0.01), pytest.approx(180))
    assert sphere.best_point([VIENNA, VIENNA, SYDNEY], 25) == pytest.approx(VIENNA)


@pytest.mark.parametrize(("most", "least"), [(200, 10), (40, 5), (5, 1)])
def test_a_cell_holds_as_many_photos_as_asked(most, least):
    at = scattered()
    made = cells.partition(at, most, least)
    inside = made.find(at)
    counts = np.bincount(inside[inside >= 0], minlength=len(made))
    assert counts.tolist() == made.counts.tolist()
    assert least <= counts.min() <= counts.max() <= most
    for c in (0, len(made) - 1):
        own = at[inside == c]
        assert made.means[c] == pytest.approx(sphere.mean(own))
        assert made.spreads[c] == pytest.approx(np.median(sphere.distance(made.means[c], own)))
    again = cells.Partition.from_json(json.loads(json.dumps(made.to_json())))
    assert again.find(at).tolist() == inside.tolist()


def test_cells_are_s2s():
    """A cell that was quartered is none, and its quarters are cells of S2's by its own count."""
    import s2sphere

    at = scattered(400)
    made = cells.partition(at, 50, 1)
    ids = [s2sphere.CellId.from_token(t) for t in made.tokens()]
    assert all(c.is_valid() for c in ids)
    assert not any(a.contains(b) for a in ids for b in ids if a != b)
    where = made.find(at)
    for p, c in list(zip(at, where, strict=True))[:50]:
        assert ids[c].contains(s2sphere.CellId.from_lat_lng(s2sphere.LatLng.from_degrees(*p)))


def test_coarser_cells_hold_finer_ones():
    at = scattered()
    parts = [cells.partition(at, most, 1) for most in (20, 200)]
    (above,) = cells.hierarchy(parts)
    fine, coarse = (p.find(at) for p in parts)
    assert above[fine].tolist() == coarse.tolist()


@pytest.mark.parametrize(
    ("damage", "value"),
    [("cells", []), ("cells", ["x", "y"]), ("means", [[91, 0]] * 2), ("spreads_km", [float("nan")] * 2), ("counts", 3)],
)
def test_a_hostile_partition_is_one_line(damage, value):
    made = {**cells.partition(scattered(100), 60, 1).to_json(), damage: value}
    with pytest.raises(UserError, match="not a partition of the globe"):
        cells.Partition.from_json(made)


def test_cells_asked_for():
    assert cells.parse("200,10;50,5") == ((50, 5), (200, 10))
    for wrong in ("50", "a,b", "50,5;", "1,2,3"):
        with pytest.raises(UserError, match="T_MAX,T_MIN"):
            cells.parse(wrong)
    with pytest.raises(UserError, match="t_max"):
        cells.partition(scattered(10), 5, 6)
    with pytest.raises(UserError, match="no cell holds"):
        cells.partition(scattered(30), 1000, 500)


def test_the_papers_network():
    """V1 paper, section 4.4: 10,000 cells are 13 million weights; its "0.58 Million" mult-adds are .58 billion."""
    made = cost.count(zoo.arch("v1", num_classes=10_000))
    assert (round(made.weights / 1e6, 1), round(made.macs / 1e6, 1)) == (13.4, 578.0)


# ---- training's parts


def _config(*pairs, soft=0.0):
    at = scattered()
    parts = [cells.partition(at, *p).to_json() for p in pairs]
    return {"partitions": parts, "soft_cells_km": soft, "floors": {"cell": VIENNA, "point": SYDNEY}}


def test_the_loss_is_of_every_partition_and_of_no_photo_without_a_cell():
    config = _config((40, 20), (400, 20))
    fine, coarse = partitions_of(config)
    loss = TASK.objective(config, Recipe(label_smoothing=0), None)
    at = torch.from_numpy(scattered(300, seed=1))
    targets = loss.targets((None, at))
    assert targets.shape == (300, 2)
    assert (targets[:, 0] == -1).any()  # too few were there for a cell
    outputs = {LOGITS: torch.randn(300, len(fine)), "logits2": torch.randn(300, len(coarse))}
    found = float(loss(outputs, targets))
    each = []
    for x, y in zip(outputs.values(), targets.T, strict=True):
        each.append(float(torch.nn.functional.cross_entropy(x[y >= 0], y[y >= 0])))
    assert found == pytest.approx(np.mean(each), rel=1e-5)
    with pytest.raises(UserError, match="--class-weights"):
        TASK.objective(config, Recipe(class_weights="balanced"), None)


def test_soft_cells_are_partly_right_by_their_distance():
    config = _config((40, 2), soft=100.0)
    (fine,) = partitions_of(config)
    loss = TASK.objective(config, Recipe(label_smoothing=0), None)
    at = torch.from_numpy(scattered(50, seed=2))
    targets = loss.targets((None, at))
    assert targets.sum(1).tolist() == pytest.approx([1.0] * 50)
    inside = fine.find(at.numpy())
    assert (targets.argmax(1).numpy()[inside >= 0] == inside[inside >= 0]).all()
    row = targets[int(np.flatnonzero(inside >= 0)[0])].numpy()
    near = sphere.distance(at.numpy()[np.flatnonzero(inside >= 0)[0]], fine.means)
    a, b = np.argsort(near)[3:5]
    assert np.log(row[a] / row[b]) == pytest.approx((near[b] - near[a]) / 100, rel=0.01)


def test_trainings_shares_are_the_evaluations():
    config = _config((40, 2))
    (fine,) = partitions_of(config)
    at, z = scattered(200, seed=3), np.random.default_rng(0).normal(size=(200, len(fine))).astype(np.float32)
    z[np.arange(100), np.maximum(fine.find(at[:100]), 0)] += 9
    metric = losses.scores(fine, {"within25": 25.0})["val_within25"]
    for half in (slice(0, 120), slice(120, 200)):
        metric.update(torch.from_numpy(z[half]), torch.from_numpy(at[half]))
    within, median = shares(fine.means[z.argmax(1)], at)
    assert 100 * float(metric.compute()) == pytest.approx(within["within25"])
    assert 5 < within["within25"] <= within["within200"] <= within["within2500"]
    assert median > 0


# ---- positions


def table(root, rows, header=("file", "lat", "lon")):
    root.mkdir(exist_ok=True)
    for i, _ in enumerate(rows):
        Image.new("RGB", (20, 20), (i, 0, 0)).save(root / f"{i}.png")
    with (root / "places.csv").open("w", newline="") as f:
        csv.writer(f).writerows([header, *([f"{i}.png", *r] for i, r in enumerate(rows))])
    return root


def test_positions_of_a_table(tmp_path):
    rows = [VIENNA, SYDNEY, ("", ""), (0, 0), ("nan", 3), *[BARCELONA] * 5]
    made = TASK.open(str(table(tmp_path / "d", rows)), None, 0, None)
    every = made.split("all")
    assert len(every) == 7
    assert sorted(every.targets.tolist()) == sorted([[*VIENNA], [*SYDNEY], *[[*BARCELONA]] * 5])
    assert (every.targets.dtype, made.labels) == (np.float64, ())
    assert any("3 rows without position" in line for line in made.left_out)


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([(91, 5), (10, 100)], ("file", "lat", "lon"), "beyond 90 degrees"),
        ([(10, 5), (91, 5)], ("file", "lat", "lon"), "91 in row 2"),
        ([(151.2, -33.9), (16.4, 48.2)], ("file", "lat", "lon"), "--label-column lon,lat"),
        ([(10, 181)], ("file", "lat", "lon"), "beyond 180 degrees"),
        ([("north", 181)], ("file", "lat", "lon"), "says 'north' in row 1, which is no number"),
        ([(1, 2)], ("file", "y", "x"), "no column is called as a latitude is"),
        ([(1, "inf")], ("file", "latitude", "lng"), "no number"),
    ],
)
def test_what_is_no_position_is_one_line(rows, header, said, tmp_path):
    where = table(tmp_path / "d", rows, header)
    with pytest.raises(UserError) as e:
        TASK.open(f"{where / 'places.csv'}", None, 0, None)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def test_swapped_headers_can_be_read(tmp_path):
    where = table(tmp_path / "d", [(lon, lat) for lat, lon in (VIENNA, SYDNEY, BARCELONA)], ("file", "lat", "lon"))
    made = TASK.open(f"{where / 'places.csv'} --label-column lon,lat", None, 0, None)
    assert sorted(made.split("all").targets.tolist()) == sorted([[*VIENNA], [*SYDNEY], [*BARCELONA]])


def test_positions_of_exif(tmp_path, capsys):
    def degrees(value):
        value = abs(value)
        return (int(value), int(value % 1 * 60), round(value * 60 % 1 * 60, 3))

    for i, (lat, lon) in enumerate([*PLACES.values(), (0, 0)]):
        image = Image.new("RGB", (20, 20), (i, 9, 9))
        exif = image.getexif()
        gps = ExifTags.GPS
        exif.get_ifd(ExifTags.IFD.GPSInfo).update({
            gps.GPSLatitudeRef: "NS"[lat < 0], gps.GPSLatitude: degrees(lat),
            gps.GPSLongitudeRef: "EW"[lon < 0], gps.GPSLongitude: degrees(lon),
        })  # fmt: skip
        image.save(tmp_path / f"{i}.jpg", exif=exif)
    Image.new("RGB", (20, 20)).save(tmp_path / "none.jpg")
    made = TASK.open(str(tmp_path), None, 0, None)
    found = sorted(made.split("all").targets.tolist())
    assert np.array(found) == pytest.approx(np.array(sorted(PLACES.values())), abs=1e-5)
    assert "2 images without GPS" in " ".join(capsys.readouterr().err.split())
    for p in tmp_path.glob("[0-3].jpg"):
        p.unlink()
    with pytest.raises(UserError, match="no image says where it was taken"):
        TASK.open(str(tmp_path), None, 0, None)


# ---- the verbs


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Photos of three cities, each of its own colour, and a table of where they were taken."""
    root, rng = tmp_path_factory.mktemp("places"), np.random.default_rng(0)
    with (root / "places.csv").open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["file", "latitude", "longitude", "split"])
        for i in range(90):
            c = i % 3
            pixels = rng.normal(60, 20, (32, 32, 3))
            pixels[:, :, c] += 120
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{i:02}.png")
            lat, lon = np.array([*PLACES.values()][c]) + rng.normal(0, 0.05, 2)
            out.writerow([f"{i:02}.png", f"{lat:.5f}", f"{lon:.5f}", "test" if i >= 60 else "train"])
    return root


@pytest.fixture(scope="module")
def trained(places, command, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "p"
    ran = command(
        "train", places, "--task", "geolocate", "--cells", "25,5;45,5", "--out", out, *NET, "--epochs", 12,
        "--lr", 0.01, "--ema", 0, "--augment", "none", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return out


def test_it_is_trained_and_better_than_without_looking(trained, places, command):
    b = Bundle.load(trained / "float")
    assert [len(p["cells"]) for p in b.card.config["partitions"]] == [3, 2]
    assert {*b.card.outputs} == {PROBABILITIES, probabilities_of(1)}
    scores = command("eval", trained, places, "--json").json
    assert scores["within25"] > 80 > max(f["within25"] for f in scores["floors"].values())
    held_out = command("eval", trained, places, "--split", "val", "--json").json
    assert held_out["within25"] == pytest.approx(b.card.metrics[0].value, abs=0.01)
    shown = command("eval", trained, places).out
    assert "25 km, city" in shown
    assert "commonest" in shown


def test_predict_says_a_place(trained, places, command):
    said = command("predict", trained, places / "62.png", "--json").json
    assert sphere.distance((said["latitude"], said["longitude"]), SYDNEY) < 30
    assert said["probability"] > 0.5
    assert said["guesses"][0]["cell"] == said["cell"]
    assert "°S 151." in command("predict", trained, places / "62.png").out
    (answer,) = TASK.decode(_outputs(), Bundle.load(trained / "float").card, [], 1)
    assert np.asarray(TASK.draw(Image.new("RGB", (200, 60)), answer)).max() == 255


def test_answers_from_a_gallery(trained, places, command, tmp_path):
    gallery = tmp_path / "gallery.csv"
    gallery.write_text("lat,lon\n-33.9,151.2\n48.2,16.4\n59.9,10.8\n0.5,0.5\n")
    said = command("predict", trained, places / "62.png", "--gallery", gallery, "--json").json
    assert [said["latitude"], said["longitude"]] == [-33.9, 151.2]
    assert len(said["guesses"]) == 4
    assert sum(g["probability"] for g in said["guesses"]) == pytest.approx(1, abs=1e-4)
    ran = command("predict", trained, places / "62.png", "--gallery", tmp_path / "none.csv")
    assert "no such table of positions" in ran.line
    assert (
        "--gallery is of places" in command("predict", "cifar10-v1-0.25", places / "62.png", "--gallery", gallery).line
    )


def _outputs():
    return {PROBABILITIES: np.full((1, 3), 1 / 3, np.float32), probabilities_of(1): np.array([[0.1, 0.9]], np.float32)}


def test_coarser_cells_have_a_say(trained):
    card = Bundle.load(trained / "float").card
    scores = TASK.scored(_outputs(), card)
    (above,) = cells.hierarchy(partitions_of(card.config))
    assert scores[0].sum() == pytest.approx(1)
    assert scores[0][above == 1].min() > scores[0][above == 0].max()


@pytest.mark.parametrize("name", [n for n in ("onnxruntime", "litert", "openvino", "ncnn") if engines.available(n)])
def test_in_every_runtime(trained, pixels, name, tmp_path):
    b = Bundle.load(trained / "float")
    made = export_bundle(b, pixels, tmp_path / engines.file_name(name, "float32"), "noise", name)
    assert (made.task, made.agreement) == ("geolocate", 100)
    assert partitions_of(engines.load(made.path).card.config)[0].tokens() == b.card.config["partitions"][0]["cells"]


def test_the_map_shows_no_photos_own_position(trained):
    b = Bundle.load(trained / "float")
    (fine, *_) = partitions_of(b.card.config)
    found = reported.guessed(trained, "test", None)
    assert len(found) == 30
    assert {g.true for g in found} <= {(float(lat), float(lon)) for lat, lon in fine.means}
    drawn = style.svg(reported.world(found), "map")
    assert drawn.startswith("<svg")
    assert "placed" in drawn
    rings = reported.land()
    assert sum(map(len, rings)) > 4000
    assert max(np.abs(np.diff(ring[:, 0])).max() for ring in rings) < 180  # no coast runs across the whole map


def test_faults(places, command, tmp_path):
    line = ("train", places, "--task", "geolocate", "--out", tmp_path / "r", *NET)
    assert "T_MAX,T_MIN" in command(*line, "--cells", "9").line
    assert "the globe in one cell" in command(*line, "--cells", "90,30").line
    assert "no such table of positions" in command(*line, "--positions", tmp_path / "none.csv").line
    assert "is for classes and tags" in command(*line, "--limit-per-class", 3).line
    assert tasks.find("geolocate").primary.name == "within25"


def test_the_lesson_is_how_probable_the_students_cells_are():
    fine, coarse = partitions_of(_config((40, 20), (400, 20)))
    lesson = lessons.OfCells(fine, (fine, coarse), (LOGITS, "logits2"))
    said = torch.randn(5, len(fine))
    held = torch.from_numpy(coarse.find(fine.means))
    within = torch.zeros(5, len(coarse)).index_add(1, held.clamp(min=0), said.softmax(1) * (held >= 0))
    alike = {LOGITS: said + 3, "logits2": within.clamp(min=1e-30).log()}
    assert float(lesson.off(alike, said, None, 1.0)) == pytest.approx(0, abs=1e-5)
    probabilities = {PROBABILITIES: said.softmax(1)}  # as a file says it
    assert torch.allclose(lesson.read(probabilities).softmax(1), said.softmax(1), atol=1e-6)
    other = {LOGITS: -said, "logits2": alike["logits2"]}
    wanted = torch.nn.functional.kl_div((-said).log_softmax(1), said.softmax(1), reduction="batchmean") / 2
    assert float(lesson.off(other, said, None, 1.0)) == pytest.approx(float(wanted), rel=1e-5)


def test_who_knows_other_parts_of_the_globe_teaches_nothing():
    here, there = (cells.partition(np.array([city] * 30) + np.eye(30, 2), 10, 1) for city in (VIENNA, SYDNEY))
    with pytest.raises(UserError, match="other parts of the globe"):
        lessons.OfCells(here, (there,), (LOGITS,))


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_student_of_other_cells_learns_of_a_network_and_of_its_file(
    trained, places, command, pixels, tmp_path, share
):
    file = tmp_path / engines.file_name("onnxruntime", "float32")
    export_bundle(Bundle.load(trained / "float"), pixels, file, "noise", "onnxruntime")
    line = ("distill", trained if share else file, places, "--task", "geolocate", *NET, "--cells", "12,3")
    ran = command(
        *line, "--labels", share, "--epochs", 12, "--lr", 0.01, "--ema", 0, "--augment", "none", "--out", tmp_path / "s"
    )
    assert ran.code == 0, ran.err
    made = Bundle.load(tmp_path / "s" / "float").card
    assert len(partitions_of(made.config)[0]) > 3  # the teacher's
    assert made.recipe["teacher"]["labels"] == share
    scores = command("eval", tmp_path / "s", places, "--json").json
    assert scores["within25"] > 80 > max(f["within25"] for f in scores["floors"].values())


def test_what_a_teacher_can_and_cannot_teach(trained, places, command, tmp_path):
    line = ("distill", trained, places, "--task", "geolocate", *NET, "--epochs", 1, "--cells", "25,5")
    assert "leave out --embedding" in command(*line, "--embedding", 1, "--out", tmp_path / "r").line
    assert not (tmp_path / "r").exists()
    ran = command(*line, "--labels", 1, "--embedding", 1, "--out", tmp_path / "s")
    assert ran.code == 0, ran.err
    assert Bundle.load(tmp_path / "s" / "float").card.recipe["teacher"]["embedding"] == 1
