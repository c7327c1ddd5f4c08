import json

import numpy as np
import pytest
from PIL import Image

from mobilenets.commands.evaluate import evaluate
from mobilenets.data.open import open_data
from mobilenets.deploy import engines
from mobilenets.deploy.writers import onnx as onnx_graph
from mobilenets.tasks.classify import Tally, best

LABELS = [f"class {i}" for i in range(10)]


@pytest.fixture(scope="module")
def model(make_bundle, tmp_path_factory):
    bundle = make_bundle("v1")
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(onnx_graph.onnx_model(bundle))
    return path


@pytest.fixture
def labelled(write_images, tmp_path, model):
    """train, val and test splits of the network's own classes; half the labels are what the network answers."""
    root = write_images(tmp_path / "all", {"x": 90}, side=40)
    engine = engines.load(model)
    rng = np.random.default_rng(1)
    for k, p in enumerate(sorted((root / "x").iterdir())):
        split = ("train", "val", "test")[k % 3]
        answer = int(engine(engine.card.preprocess.read(p)[None])["probabilities"][0].argmax())
        c = answer if k % 2 else int(rng.integers(10))
        to = tmp_path / "data" / split / LABELS[c]
        to.mkdir(parents=True, exist_ok=True)
        p.rename(to / p.name)
    for split in ("train", "val", "test"):
        for c in LABELS:
            (tmp_path / "data" / split / c).mkdir(exist_ok=True)
    return tmp_path / "data"


def directly(model, folder):
    """(top1, top5, loss, per class, confusion) of a split's folder, by numpy from single images."""
    engine = engines.load(model)
    labels = engine.card.labels
    rows = [(p, labels.index(p.parent.name)) for p in sorted(folder.rglob("*.png"))]
    probabilities = np.stack([engine(engine.card.preprocess.read(p)[None])["probabilities"][0] for p, _ in rows])
    targets = np.array([t for _, t in rows])
    rank = (probabilities > probabilities[np.arange(len(rows)), targets][:, None]).sum(1)
    confusion = np.zeros((10, 10), int)
    for t, p in zip(targets, probabilities.argmax(1), strict=True):
        confusion[t, p] += 1
    per_class = {labels[c]: 100 * (rank[targets == c] == 0).mean() for c in set(targets)}
    loss = -np.log(probabilities[np.arange(len(rows)), targets].astype(float)).mean()
    return 100 * (rank == 0).mean(), 100 * (rank < 5).mean(), loss, per_class, confusion


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_scores_are_what_numpy_says(model, labelled, split):
    got = evaluate(model, str(labelled), split=split)
    top1, top5, loss, per_class, confusion = directly(model, labelled / split)
    assert 20 < top1 < 90
    assert top1 < top5
    assert got.top1 == pytest.approx(top1)
    assert got.top5 == pytest.approx(top5)
    assert got.loss == pytest.approx(loss, rel=1e-4)
    assert got.per_class == pytest.approx(per_class)
    assert got.balanced == pytest.approx(np.mean(list(per_class.values())))
    given = confusion.sum(0)
    assert got.precision == pytest.approx({
        c: 100 * confusion[i, i] / given[i] if given[i] else 0 for i, c in enumerate(LABELS)
    })  # fmt: skip
    assert np.array_equal(got.confusion.matrix, confusion)
    assert (got.count, got.split, got.labels) == (30, split, tuple(LABELS))


def test_test_is_the_default_where_there_is_one(model, labelled, tmp_path):
    assert evaluate(model, str(labelled)).split == "test"
    (labelled / "test").rename(tmp_path / "aside")
    assert evaluate(model, str(labelled)).split == "val"


def test_json(model, labelled, command):
    got = command("eval", model, labelled, "--json").json
    numbers = {"top1", "top5", "balanced", "loss", "ece", "ece_adaptive", "count", "per_class", "per_class_precision"}
    assert set(got) == numbers | {"data", "split", "skipped"}
    assert got["count"] == 30
    assert got["split"] == "test"
    assert got["skipped"] == []
    assert 0 <= got["top1"] <= got["top5"] <= 100
    assert all(0 <= v <= 100 for v in got["per_class"].values())
    assert set(got["per_class"]) <= set(LABELS)


def test_the_table(model, labelled, command):
    ran = command("eval", model, labelled, "--split", "val")
    assert ran.code == 0
    top1, top5, *_ = directly(model, labelled / "val")
    assert f"{top1:.2f}" in ran.out
    assert f"{top5:.2f}" in ran.out
    assert "val split" in ran.out


def test_bundle_and_file_score_alike(model, make_bundle, labelled, tmp_path):
    make_bundle("v1").save(tmp_path / "b")
    a, b = evaluate(model, str(labelled)), evaluate(tmp_path / "b", str(labelled))
    assert np.array_equal(a.confusion.matrix, b.confusion.matrix)
    assert a.loss == pytest.approx(b.loss, abs=1e-4)


def test_more_images_than_are_held_at_once(model, labelled, monkeypatch):
    whole = evaluate(model, str(labelled), split="val")
    added = []
    add = Tally.update
    monkeypatch.setattr(Tally, "update", lambda self, s, t: (added.append(len(t)), add(self, s, t)))
    folder = labelled / "val"
    for p in list(folder.rglob("*.png")):
        for k in range(9):
            (p.parent / f"{p.stem}-{k}.png").write_bytes(p.read_bytes())
    got = evaluate(model, str(labelled), split="val")
    assert got.count == 300
    assert added == [256, 44]
    assert got.top1 == pytest.approx(whole.top1)
    assert got.loss == pytest.approx(whole.loss, rel=1e-5)


def test_fewer_classes_than_the_network_has(model, labelled, tmp_path):
    """The data's class 0 is then another of the network's."""
    for c in LABELS[:4]:
        for split in ("train", "val", "test"):
            to = tmp_path / "aside" / split
            to.mkdir(parents=True, exist_ok=True)
            (labelled / split / c).rename(to / c)
    d = open_data(str(labelled))
    assert d.labels != tuple(LABELS)
    got = evaluate(model, str(labelled), split="test")
    top1, top5, loss, per_class, _ = directly(model, labelled / "test")
    assert got.top1 == pytest.approx(top1)
    assert got.top5 == pytest.approx(top5)
    assert got.loss == pytest.approx(loss, rel=1e-4)
    assert got.per_class == pytest.approx(per_class)


def test_classes_in_another_order(make_bundle, labelled, tmp_path):
    """A network whose labels aren't in alphabetical order."""
    b = make_bundle("v1")
    order = np.random.default_rng(0).permutation(10)
    tensors = {k: v[order] if k.startswith("classifier") else v for k, v in b.tensors.items()}
    type(b)(b.card.with_labels(LABELS[i] for i in order), tensors).save(tmp_path / "shuffled")
    b.save(tmp_path / "plain")
    plain = evaluate(tmp_path / "plain", str(labelled))
    got = evaluate(tmp_path / "shuffled", str(labelled))
    assert got.top1 == plain.top1
    assert got.per_class == plain.per_class
    assert list(got.per_class) != list(plain.per_class)
    assert np.array_equal(got.confusion.matrix, plain.confusion.matrix[np.ix_(order, order)])


@pytest.mark.parametrize("as_json", [True, False])
def test_damaged_images_are_skipped_and_listed_and_the_exit_code_is_1(model, write_images, command, tmp_path, as_json):
    """200 images, the network's own answers as their labels; two of them are damaged."""
    root = write_images(tmp_path / "flat", {"x": 200}, side=16)
    engine = engines.load(model)
    paths = sorted((root / "x").iterdir())
    answers = engine(np.stack([engine.card.preprocess.read(p) for p in paths]))["probabilities"].argmax(1)
    for p, c in zip(paths, answers, strict=True):
        (tmp_path / "data" / LABELS[c]).mkdir(parents=True, exist_ok=True)
        p.rename(tmp_path / "data" / LABELS[c] / p.name)
    cut, text = (next((tmp_path / "data").rglob(name)) for name in ("020.png", "150.png"))
    cut.write_bytes(cut.read_bytes()[:60])
    text.write_text("no image")
    ran = command("eval", model, tmp_path / "data", "--split", "all", *(["--json"] if as_json else []))
    assert ran.code == 1
    first, *listed = ran.err.splitlines()
    assert first == "mobilenets: 2 images could not be read:"
    assert {name for name in (cut.name, text.name) for line in listed if name in line} == {cut.name, text.name}
    assert all("damaged image" in line for line in listed)
    if as_json:
        got = json.loads(ran.out)
        assert (got["count"], got["top1"]) == (198, 100)
        assert got["skipped"] == [line.strip() for line in listed]
    else:
        assert "2 damaged images skipped" in ran.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("--split", "tset"), "has no split 'tset'; it has train, val, test"),
        (("--root",), "root"),
    ],
)
def test_bad_arguments(model, labelled, command, line, message):
    assert message in command("eval", model, labelled, *line).line


def test_a_class_the_network_does_not_know(model, labelled, command):
    (labelled / "test" / "zebra").mkdir()
    Image.new("RGB", (8, 8)).save(labelled / "test" / "zebra" / "0.png")
    assert "class 'zebra' isn't one the network knows" in command("eval", model, labelled).line


def test_no_data_named_and_none_on_the_card(model, command):
    assert "doesn't say what data it was trained on; name some" in command("eval", model).line


def test_the_data_on_the_card(make_bundle, labelled, tmp_path, command):
    b = make_bundle("v1")
    type(b)(b.card.replace(data={"source": str(labelled), "split_seed": 0}), b.tensors).save(tmp_path / "b")
    assert command("eval", tmp_path / "b", "--json").json == command("eval", tmp_path / "b", labelled, "--json").json
    labelled.rename(tmp_path / "moved")
    assert "the data the bundle was trained on can't be opened" in command("eval", tmp_path / "b").line


def test_decode():
    scores = np.array([[0.1, 0.6, 0.3], [0.5, 0.5, 0.0]], np.float32)
    assert [[c for c, _ in x.top] for x in best(scores, ("a", "b", "c"), 2)] == [["b", "c"], ["a", "b"]]
    assert len(best(scores, ("a", "b", "c"), 9)[0].top) == 3


def test_a_tally_of_nothing():
    s = Tally(("a", "b")).compute("d", "val")
    assert (s.top1, s.count, s.per_class) == (0, 0, {})
    assert json.dumps(s.to_json())
