from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from small import smooth_images

from mobilenets.compression import mixed
from mobilenets.compression.quantize import measure_ranges, quantize_bundle
from mobilenets.compression.scheme import Scheme
from mobilenets.data.dataset import Data, Split
from mobilenets.deploy import engines, evaluate
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.tasks import features
from mobilenets.tasks.task import MetricSpec

# The first's output is read by the second alone; 8 bits can't hold it, and each of the two rounds it.
KEEP = {"blocks.1.project", "blocks.2.expand"}


@pytest.fixture(scope="module")
def fragile(make_bundle):
    """V2 with one activation that 8 bits can't hold: a channel of it spans a thousand times what the others do."""
    bundle = make_bundle("v2")
    tensors = {k: v.copy() for k, v in bundle.tensors.items()}
    for k in ("weight", "bias"):
        tensors[f"blocks.1.project.norm.{k}"][0] *= 1000
    tensors["blocks.2.expand.conv.weight"][:, 0] /= 1000
    return Bundle(bundle.card.with_labels([f"class {i}" for i in range(10)]), tensors)


@pytest.fixture(scope="module")
def data(fragile):
    """Images whose right answers are the float network's own: it scores 100%. Those of its test split stay unread."""
    images = [Image.fromarray(p) for p in smooth_images(96, 40, seed=7)]
    split = Split("val", [f"{i}" for i in range(96)], np.zeros(96, np.int64), images.__getitem__)
    pixels = np.stack([split.pixels(i, fragile.card.preprocess) for i in range(96)])
    engine, _ = engines.build("onnxruntime", fragile, "float32", 1)
    split.targets = engine(pixels)["probabilities"].argmax(1)
    test = Split("test", ["kept for later"], np.zeros(1, np.int64), lambda _: pytest.fail("a test image was read"))
    return Data("noise", fragile.card.labels, {"train": split, "val": split, "test": test})


def top1(bundle, data):
    engine, _ = engines.build("onnxruntime", bundle, bundle.card.precision, 1)
    return evaluate.score(engine, data, "val").value


@pytest.mark.slow
def test_what_8_bits_cannot_hold_is_the_most_sensitive(fragile, pixels):
    found = mixed.sensitivity(measure_ranges(fragile, pixels), pixels[:8])
    assert set(found) == {op.name for op in fragile.card.arch.ops}
    assert list(found.values()) == sorted(found.values())
    assert set(list(found)[:2]) == KEEP
    second, third = list(found.values())[1:3]
    assert second < third - 10  # dB


@pytest.mark.slow
def test_a_network_within_the_limit_is_plain_int8(make_bundle, data, pixels):
    source = Bundle(make_bundle("v2").card.with_labels(data.labels), make_bundle("v2").tensors)
    made = mixed.quantize_within(30, source, data, measure_ranges(source, pixels), pixels, (), mixed=False)
    assert made.card.float_ops == ()
    (metric,) = made.card.metrics
    assert (metric.name, metric.data, metric.split, metric.count) == ("top1", "noise", "val", 96)
    assert (metric.unit, metric.higher_is_better) == ("%", True)
    assert metric.value == pytest.approx(top1(made, data))


@pytest.mark.slow
def test_beyond_the_limit_the_operations_to_keep_are_named(fragile, data, pixels):
    plain = quantize_bundle(fragile, pixels)
    lost = 100 - top1(plain, data)
    assert lost > 50
    with pytest.raises(UserError, match=f"int8 loses {lost:.2f} points of top-1 .100.00% in float, noise val.") as e:
        mixed.quantize_within(20, fragile, data, measure_ranges(fragile, pixels), pixels, (), mixed=False)
    named = str(e.value).rsplit(" ", 1)[1].split(",")
    assert set(named) >= KEEP
    assert "add --mixed" in str(e.value)
    assert "\n" not in str(e.value)
    kept = quantize_bundle(fragile, pixels, Scheme(float_ops=tuple(named)))
    assert 100 - top1(kept, data) <= 20


def test_mixed_keeps_the_fewest_that_meet_the_limit(fragile, data, pixels):
    made = mixed.quantize_within(20, fragile, data, measure_ranges(fragile, pixels), pixels, (), mixed=True)
    assert set(made.card.float_ops) == KEEP
    assert 100 - top1(made, data) <= 20
    assert made.card.metrics[0].value == pytest.approx(top1(made, data))


@pytest.mark.slow
def test_what_is_kept_anyway_stays(fragile, data, pixels):
    scheme = Scheme(float_ops=("blocks.0.conv",))
    made = mixed.quantize_within(
        20, fragile, data, measure_ranges(fragile, pixels), pixels, scheme.float_ops, mixed=True
    )
    assert set(made.card.float_ops) == {*KEEP, "blocks.0.conv"}


@pytest.mark.slow
def test_no_loss_at_all_takes_more_in_float(fragile, data, pixels):
    made = mixed.quantize_within(0, fragile, data, measure_ranges(fragile, pixels), pixels, (), mixed=True)
    assert top1(made, data) == 100
    assert len(made.card.float_ops) > len(KEEP)


@pytest.mark.slow
def test_a_score_that_is_better_when_lower(fragile, data, pixels, monkeypatch, capsys):
    score = MetricSpec("mae", "mean error", "px", higher_is_better=False)
    monkeypatch.setattr(mixed.tasks, "of", lambda _: SimpleNamespace(primary=score, taps=("logits",)))
    values = iter([2.0, 3.5, *[2.0] * 9])
    monkeypatch.setattr(mixed, "scored", lambda _, d, _score: mixed.Metric("mae", next(values), d.source, "val", 8))
    with pytest.raises(UserError, match=r"int8 loses 1.50 px of mean error \(2.00 px in float, noise val\), more than"):
        mixed.quantize_within(1, fragile, data, measure_ranges(fragile, pixels), pixels, (), mixed=False)
    assert "mean error 3.50 px, 1.50 px worse than 2.00 px" in " ".join(capsys.readouterr().err.split())


def test_a_task_without_a_score_has_no_limit(fragile, data, pixels):
    source = features.of_bundle(fragile)
    with pytest.raises(UserError, match="the task features has no score that max-drop could be a limit to"):
        mixed.quantize_within(1, source, data, measure_ranges(source, pixels), pixels, (), mixed=False)


# ---- the verb ------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_disk(fragile, tmp_path, write_images):
    fragile.save(tmp_path / "float")
    write_images(tmp_path / "data", {f"class {i}": 4 for i in range(10)}, side=40)
    return tmp_path / "float", tmp_path / "data"


def test_the_verb_keeps_in_float_what_it_is_told(command, on_disk, tmp_path):
    names = "blocks.2.expand,blocks.1.project"
    done = command("quantize", *on_disk, "--out", tmp_path / "q", "--keep-float", names, "--images", 8)
    assert (done.code, done.err) == (0, "")
    assert set(Bundle.load(tmp_path / "q").card.float_ops) == KEEP


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--keep-float", "blocks.1.projct"), "unknown operation 'blocks.1.projct': did you mean 'blocks.1.project'"),
        (("--mixed",), "--max-drop"),
        (("--images", "0"), "images must be at least 1, not 0"),
        (("--max-drop", "-2"), "max-drop must be 0 or more, not -2"),
        (("--max-drop", "nan"), "max-drop must be 0 or more, not nan"),
    ],
)
def test_the_verbs_mistakes(command, on_disk, tmp_path, arguments, line):
    assert line in command("quantize", *on_disk, "--out", tmp_path / "q", *arguments).line
    assert not (tmp_path / "q").exists()


@pytest.mark.slow
def test_the_verb_holds_to_the_limit(command, on_disk, tmp_path, monkeypatch):
    scores = iter([90.0, 70.0, *[90.0] * 9])  # float, int8, then whatever is tried in float
    monkeypatch.setattr(mixed, "scored", lambda _, d, _score: mixed.Metric("top1", next(scores), d.source, "val", 8))
    done = command("quantize", *on_disk, "--out", tmp_path / "q", "--max-drop", "1")
    assert done.code == 2
    assert "int8 loses 20.00 points of top-1 (90.00% in float" in done.err
    assert not (tmp_path / "q").exists()
    scores = iter([90.0, 70.0, *[90.0] * 9])
    done = command("quantize", *on_disk, "--out", tmp_path / "q", "--max-drop", "1", "--mixed")
    assert done.code == 0
    assert len(Bundle.load(tmp_path / "q").card.float_ops) == 1
