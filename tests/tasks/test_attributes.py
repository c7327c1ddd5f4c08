"""Tags: losses and scores that leave out what nobody knows, thresholds, answers, proof; training, every runtime."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from small import TINY

from mobilenets import tasks
from mobilenets.arch.heads import PROBABILITIES
from mobilenets.deploy import engines
from mobilenets.deploy.engines import RUNTIMES
from mobilenets.deploy.export import export_bundle
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.model.trust import Trust
from mobilenets.tasks import linear, tag_losses, tagging
from mobilenets.tasks.attributes import TASK, Attributes, Tag, Tags
from mobilenets.tasks.precision import average_precision
from mobilenets.training.objectives import Distilled
from mobilenets.training.recipes import Distillation, Recipe

LABELS = ("bright", "red", "striped")
QUICK = [name for name in ("onnxruntime", "litert", "openvino", "ncnn", "torch") if engines.available(name)]


def drawn(n=300, missing=0.1, seed=0):
    """Logits and tags that depend on them, float32 [n, 3], NaN here and there."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3)).astype(np.float32) * 2 - np.array([0, 1, 2.5], np.float32)
    y = (rng.random(z.shape) < 1 / (1 + np.exp(-z))).astype(np.float32)
    y[rng.random(y.shape) < missing] = np.nan
    return z, y


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# ---- scores


def test_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    p = np.round(rng.random(400), 2)  # with equal scores
    y = (rng.random(400) < p).astype(float)
    assert average_precision(p, y) == pytest.approx(average_precision_score(y, p))
    y[:50] = np.nan
    assert average_precision(p, y) == pytest.approx(average_precision_score(y[50:], p[50:]))
    assert math.isnan(average_precision(p, np.zeros(400)))


@pytest.mark.parametrize("count", [1, 3])
def test_trainings_scores_are_the_evaluations(count):
    """Torchmetrics' in training, NumPy's in a file's evaluation, with tags that nobody knows."""
    z, y = (x[:, :count] for x in drawn())
    found = tag_losses.tag_scores(count)
    for metric in found.values():
        for part in (slice(0, 200), slice(200, None)):
            metric.update(torch.from_numpy(z[part]), torch.from_numpy(y[part]))
    tally = tagging.TagTally(LABELS[:count], ())
    tally.update({PROBABILITIES: sigmoid(z)[:120]}, list(y[:120]))
    tally.update({PROBABILITIES: sigmoid(z)[120:]}, list(y[120:]))
    scores = tally.compute("d", "val", ("bad",))
    values = {k: 100 * float(m.compute()) for k, m in found.items()}
    assert values == pytest.approx(
        {"val_map": scores.map, "val_accuracy": scores.accuracy, "val_balanced": scores.balanced}
    )
    loss = float(tag_losses.binary_cross_entropy(torch.from_numpy(z), torch.from_numpy(y)))
    assert loss == pytest.approx(scores.loss, rel=1e-4)
    assert scores.value == scores.map > scores.chance
    assert scores.accuracy > scores.majority
    assert json.loads(json.dumps(scores.to_json()))["per_label"]["bright"]["count"] < 300


def test_a_tag_that_none_has_counts_in_no_mean():
    z, y = drawn()
    y[:, 2] = 0
    tally = tagging.TagTally(LABELS, ())
    tally.update({PROBABILITIES: sigmoid(z)}, list(y))
    scores = tally.compute("d", "val")
    assert math.isnan(scores.tags[2].ap)
    assert scores.map == pytest.approx((scores.tags[0].ap + scores.tags[1].ap) / 2)
    said = scores.to_json()["per_label"]["striped"]
    assert (said["ap"], said["balanced"], said["few"]) == (None, None, True)
    metric = tag_losses.tag_scores(3)["val_map"]
    metric.update(torch.from_numpy(z), torch.from_numpy(y))
    assert 100 * float(metric.compute()) == pytest.approx(scores.map)


def test_floors_are_what_can_be_had_without_looking():
    y = np.array([[1, 0, np.nan], [1, 0, 1], [0, 0, 1], [1, 1, np.nan]], np.float32)
    tally = tagging.TagTally(LABELS, ())
    tally.update({PROBABILITIES: np.full((4, 3), 0.5, np.float32)}, list(y))
    scores = tally.compute("d", "val")
    assert scores.majority == pytest.approx((75 + 75 + 100) / 3)
    assert scores.chance == pytest.approx((75 + 25 + 100) / 3) == pytest.approx(scores.map)


# ---- thresholds


def test_thresholds_are_where_most_is_right():
    z, y = drawn(4000)
    p = sigmoid(z - 1.5)  # too low: each should hold from about .18 on
    found = tagging.thresholds(p, y)
    for c, t in enumerate(found):
        known = ~np.isnan(y[:, c])
        right = [((p[known, c] >= at) == (y[known, c] == 1)).mean() for at in (t, 0.5, t - 0.05, t + 0.05)]
        assert right[0] == max(right)
        assert t == pytest.approx(sigmoid(-1.5), abs=0.1)
    balanced = tagging.thresholds(p, y, balanced=True)
    assert balanced[2] < found[2]  # of a rare tag, those that have it count as much as the others


def test_a_tag_of_too_few_images_holds_from_one_half_on():
    z, y = drawn(200, missing=0)
    y[:, 2] = 0
    y[:3, 2] = 1
    assert tagging.thresholds(sigmoid(z / 3), y)[2] == 0.5


def test_one_half_stays_where_no_other_is_better_by_more_than_chance():
    rng = np.random.default_rng(0)
    p = rng.random((1000, 8))
    assert tagging.thresholds(p, (rng.random(p.shape) < p).astype(np.float32)).count(0.5) >= 7


def test_never_can_be_the_best_answer():
    p = np.linspace(0.6, 0.9, 100)[:, None]
    y = (np.arange(100) < 12).astype(np.float32)[:, None]  # the less probable have it
    assert 0.9 < tagging.thresholds(p, y)[0] < 1


# ---- losses


def test_what_nobody_knows_teaches_nothing():
    z, y = map(torch.from_numpy, drawn())
    z.requires_grad_()
    tag_losses.binary_cross_entropy(z, y, 0.1).backward()
    assert (z.grad[y.isnan()] == 0).all()
    assert (z.grad[~y.isnan()] != 0).all()
    assert float(tag_losses.binary_cross_entropy(z.detach(), torch.full_like(y, float("nan")))) == 0


def test_smoothing_and_weights():
    z, y = torch.zeros(4, 1), torch.tensor([[1.0], [0.0], [0.0], [0.0]])
    weights = tag_losses.tag_weights(y.numpy())
    assert weights.tolist() == [[pytest.approx(2 / 3)], [2.0]]  # both sides weigh the same, 1 in the mean
    assert float(tag_losses.binary_cross_entropy(z, y, 0.0, weights)) == pytest.approx(math.log(2))
    z = torch.full((1, 1), 3.0)
    smooth = float(tag_losses.binary_cross_entropy(z, torch.ones(1, 1), 0.2))
    assert smooth == pytest.approx(-0.9 * math.log(sigmoid(3)) - 0.1 * math.log(1 - sigmoid(3)))
    assert tag_losses.tag_weights(np.zeros((5, 1), np.float32)).tolist() == [[1], [1]]


def test_teaching_is_the_divergence_of_each_tag():
    teacher, student = ({"logits": torch.from_numpy(drawn(20, seed=s)[0])} for s in (0, 1))
    assert float(TASK.teach(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)
    p, q = (sigmoid(x["logits"].double().numpy() / 2) for x in (teacher, student))
    expected = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert float(TASK.teach(teacher, student, 2.0)) == pytest.approx(expected, rel=1e-4)
    how = Distillation(temperature=2.0, labels=0.25, views=1)
    learned = Distilled(tag_losses.BinaryCrossEntropy(Recipe(label_smoothing=0.0), 3), how, 0, 3, 0)
    y = torch.from_numpy(drawn(20)[1])
    targets = learned.targets((None, y, teacher["logits"]))
    assert targets.shape == (20, 6)
    known = float(tag_losses.binary_cross_entropy(student["logits"], y))
    assert float(learned(student, targets)) == pytest.approx(0.25 * known + 0.75 * expected, rel=1e-4)


# ---- the probe


def test_a_probe_for_each_tag():
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=(300, 20))).astype(np.float32)
    z = (x - x.mean(0)) @ rng.normal(size=(3, 20)).T
    y = (z + rng.normal(size=z.shape) > np.array([0, 1, 40])).astype(np.float32)
    y[:30, 0] = np.nan
    probe = linear.fit_tags(x, y, 0)
    assert probe.weight.shape == (3, 20)
    low, high = probe.interval
    assert low < probe.score < high
    assert probe.score > 85
    assert 0 < probe.right.mean() <= 1
    assert (x @ probe.weight.T + probe.bias)[:, 2].max() < -5  # nobody has it
    scale = np.sqrt(np.square(x).mean())
    one = LogisticRegression(C=probe.penalty, max_iter=1000).fit(x[30:] / scale, y[30:, 0])
    np.testing.assert_allclose(probe.weight[0] * scale, one.coef_[0], atol=0.05 * np.abs(one.coef_).max())


# ---- answers and proof


@pytest.fixture
def bundle(short_bundle):
    """A network for ten tags, each with a threshold of its own."""
    b = short_bundle(3)
    card = b.card.replace(task="attributes", head=TASK.head(b.card.arch, {}))
    return Bundle(card.trusted(Trust(100, thresholds=tuple(0.1 * i for i in range(10)))), b.tensors)


@pytest.mark.parametrize(("thresholds", "said"), [((0.5, 0.5), "from 0.50 on"), ((0.5, 0.25), "from 0.25 to 0.50 on")])
def test_a_card_says_from_where_on_tags_hold(thresholds, said):
    assert str(Trust(120, thresholds=thresholds)) == f"tags hold {said}, by thresholds found on 120 images"


def test_answers_are_read_by_the_cards_thresholds(bundle, tmp_path):
    bundle.save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b")
    assert loaded.card.trust == bundle.card.trust
    outputs = {PROBABILITIES: np.full((1, 10), 0.45, np.float32)}
    (answer,) = TASK.decode(outputs, loaded.card, [(1, 1)], 5)
    assert [t.holds for t in answer.tags] == [True] * 5 + [False] * 5
    assert answer.to_json()["tags"] == [f"class {i}" for i in range(5)]
    assert str(answer).startswith("class 0 45.0%\t")
    assert str(Tags((Tag("a", 0.1, False),))) == "none"
    seen = TASK.draw(Image.new("RGB", (160, 160)), answer)
    assert np.asarray(seen).max() == 255
    assert TASK.told(answer, [1.0, np.nan, 0, *[1] * 7], loaded.card)[0].split("|")[:2] == ["class 0", "class 3"]


def test_parity_is_of_tags_and_probabilities(bundle):
    task = tasks.of(bundle.card)
    a = np.full((20, 10), 0.46, np.float32)
    b = a.copy()
    b[0] += 0.1
    made = task.parity({PROBABILITIES: a}, {PROBABILITIES: b}, "int8")
    assert (made.agreement, made.ties) == (pytest.approx(99.5), 1)  # the sixth holds from one half on
    assert made.ok
    assert made.difference == pytest.approx(0.1)
    assert "of the tags agree" in task.parity({PROBABILITIES: a}, {PROBABILITIES: 1 - b}, "float32").reason
    # From one half on, all ten tags of that image are others.
    assert Attributes().parity({PROBABILITIES: a}, {PROBABILITIES: b}, "int8").agreement == pytest.approx(95)


@pytest.mark.parametrize(
    ("thresholds", "wrong"), [((0.5,), "one for each label"), ((2.0,) * 10, "numbers that can't be")]
)
def test_thresholds_that_are_none(bundle, thresholds, wrong):
    with pytest.raises(UserError, match=wrong):
        bundle.card.trusted(Trust(thresholds=thresholds))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", QUICK)
def test_in_every_runtime(bundle, pixels, name, tmp_path):
    made = export_bundle(bundle, pixels, tmp_path / f"m{RUNTIMES[name].suffix}", "noise", name)
    assert (made.task, made.agreement) == ("attributes", 100)
    engine = engines.load(made.path)
    assert engine.card.trust.thresholds == bundle.card.trust.thresholds
    p = engine(pixels)[PROBABILITIES]
    assert p.sum(1).max() > 1.5  # each by itself


# ---- the verbs


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A folder of 160 images, red or bright or striped or several of it, and a table of which."""
    root, rng = tmp_path_factory.mktemp("tagged"), np.random.default_rng(0)
    with (root / "tags.csv").open("w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["file", *LABELS])
        for i in range(160):
            bright, red, striped = rng.random(3) < (0.4, 0.5, 0.3)
            pixels = rng.normal(50, 15, (32, 32, 3)) + 70 * bright
            pixels[:, :, 0] += 80 * red
            pixels[::8] = 255 if striped else pixels[::8]
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"{i:03}.png")
            table.writerow([f"{i:03}.png", int(bright), int(red), "" if i % 8 == 0 else int(striped)])
    return root


@pytest.fixture(scope="module")
def trained(tagged, command, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "t"
    net = [word for pair in TINY.items() for word in pair]
    ran = command(
        "train", tagged, "--task", "attributes", "--out", out, *net, "--epochs", 8, "--lr", 0.01, "--mixup", 0.1,
        "--val", 0.65, "--augment", "none", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return out


def test_it_is_trained(trained):
    b = Bundle.load(trained / "float")
    assert (b.card.task, b.card.labels) == ("attributes", LABELS)
    assert b.card.metrics[0].name == "map"
    assert b.card.metrics[0].value > 60
    assert (len(b.card.trust.thresholds), b.card.trust.images) == (3, 104)
    assert b.card.graph.ops[-1].kind == "sigmoid"


def test_eval_and_predict(trained, tagged, command, tmp_path):
    scores = command("eval", trained, tagged, "--json").json
    assert scores["map"] == pytest.approx(Bundle.load(trained / "float").card.metrics[0].value, abs=0.01)
    assert scores["accuracy"] >= scores["floors"]["accuracy"]
    flipped = command("eval", trained, tagged, "--tta", "flip", "--json").json
    assert flipped["map"] != scores["map"]
    assert "mAP (%)" in command("eval", trained, tagged).out
    said = command("predict", trained, tagged / "001.png", "--json").json
    assert set(said["labels"]) == {*LABELS}
    assert said["tags"] == [c for c in said["tags"] if said["labels"][c]["holds"]]
    assert command("predict", trained, tagged, "--out", tmp_path / "p.parquet").code == 0
    from pyarrow import parquet

    rows = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    again = json.loads(rows[1]["answer"])
    assert again["tags"] == said["tags"]
    assert again["labels"]["red"]["probability"] == pytest.approx(said["labels"]["red"]["probability"], abs=1e-4)
    assert "doubts are a classifier's" in command("predict", trained, tagged / "001.png", "--reject-below", 0.5).line
    near = command("predict", trained, tagged / "001.png", "--nearest", 2)
    assert near.code == 0, near.err


def test_a_student_needs_no_labels(trained, tagged, command, tmp_path):
    """Of a teacher's bundle, whose tags are what its scores are measured by."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for p in sorted(tagged.glob("*.png"))[:60]:
        (plain / p.name).write_bytes(p.read_bytes())
    net = [word for pair in TINY.items() for word in pair]
    line = ("distill", trained, plain, "--out", tmp_path / "d", *net, "--epochs", 2, "--views", 1)
    assert "is for attributes, and the student for classify" in command(*line).line
    ran = command(*line, "--task", "attributes", "--unlabelled")
    assert ran.code == 0, ran.err
    b = Bundle.load(tmp_path / "d" / "float")
    assert (b.card.task, b.card.labels) == ("attributes", LABELS)
    assert b.card.recipe["teacher"]["labels"] == 0


@pytest.mark.slow
def test_folds(tagged, command, tmp_path):
    net = [word for pair in TINY.items() for word in pair]
    ran = command("train", tagged, "--task", "attributes", "--out", tmp_path / "f", *net, "--epochs", 1, "--folds", 2)
    assert ran.code == 0, ran.err
    with (tmp_path / "f" / "folds" / "predictions.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 160
    assert len(rows[0]["probability_percent"].split("|")) == 3
