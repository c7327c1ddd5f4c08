import csv
import json
import shutil
from types import SimpleNamespace

import pytest

from mobilenets.commands import fit
from mobilenets.data.open import open_data
from mobilenets.deploy import choose, engines
from mobilenets.model.bundle import Bundle
from mobilenets.tasks.confusion import Confusion
from mobilenets.training import trainer as train

BUDGET = {"latency_ms": 50.0, "size_mb": 0.5}
STEP = {
    "name", "path", "engine", "precision", "size_bytes", "latency_ms", "agreement", "difference", "top1", "top5",
    "count", "split", "data", "loss", "per_class", "per_class_precision", "balanced", "skipped", "confusion",
    "ece", "ece_adaptive", "reliability",
}  # fmt: skip


EPOCHS = 6


def arguments(data, out, *more, epochs=EPOCHS):
    return (
        "fit", data, "--out", out, "--max-latency-ms", 50, "--max-size-mb", 0.5, "--epochs", epochs, "--lr", 0.01,
        "--batch", 12, "--workers", 0, *more,
    )  # fmt: skip


pytestmark = pytest.mark.usefixtures("small_grid")


@pytest.fixture(scope="module")
def fitted(colours, command, tmp_path_factory):
    """One whole `fit` on the three colours."""
    out = tmp_path_factory.mktemp("fit") / "run"
    ran = command(*arguments(colours, out, "--json"))
    assert ran.code == 0, ran.err
    return SimpleNamespace(out=out, ran=ran, json=ran.json)


def test_every_file_is_there(fitted):
    expected = [
        "run.json", "scan.json", "choice.json", "steps.json", "report.html", "model.onnx", "model-int8.onnx",
        "float/card.json", "float/weights.safetensors", "int8/card.json", "int8/weights.safetensors",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "logs/metrics.csv",
    ]  # fmt: skip
    assert [f for f in expected if not (fitted.out / f).is_file()] == []
    assert not [p for p in fitted.out.rglob("*") if ".tmp." in p.name or ".old." in p.name]
    Bundle.load(fitted.out / "float")
    Bundle.load(fitted.out / "int8")


def test_the_choice_meets_the_budget(fitted):
    choice = json.loads((fitted.out / "choice.json").read_text())
    assert choice["budget"] == BUDGET
    assert choice["pick"]["latency_ms"] <= 50
    assert choice["pick"]["size_mb"] <= 0.5
    assert {c["resolution"] for c in choice["candidates"]} == {32, 64}  # for images of 32 pixels
    assert all(c["imagenet_top1"] <= choice["pick"]["imagenet_top1"] for c in choice["candidates"] if meets(c))
    card = Bundle.load(fitted.out / "float").card
    pick = choice["pick"]
    assert (card.arch.name, card.arch.alpha, card.arch.resolution) == (pick["arch"], pick["alpha"], pick["resolution"])
    assert (fitted.out / "model-int8.onnx").stat().st_size == pytest.approx(1e6 * pick["size_mb"], rel=0.05)


def meets(c):
    return c["latency_ms"] <= BUDGET["latency_ms"] and c["size_mb"] <= BUDGET["size_mb"]


def test_json(fitted):
    got = fitted.json
    assert set(got) == {
        "file", "arch", "alpha", "resolution", "top1", "latency_ms", "predicted_latency_ms", "size_bytes", "budget",
        "seconds", "steps",
    }  # fmt: skip
    assert got["file"] == str(fitted.out / "model-int8.onnx")
    assert got["budget"] == BUDGET
    assert got["top1"] == got["steps"][-1]["top1"]
    assert 0 < got["latency_ms"] < 1000
    assert got == json.loads((fitted.out / "steps.json").read_text())


def test_every_step_is_scored(fitted):
    steps = fitted.json["steps"]
    assert [(s["engine"], s["precision"]) for s in steps] == [
        ("torch", "float32"), ("onnxruntime", "float32"), ("torch", "int8"), ("onnxruntime", "int8"),
    ]  # fmt: skip
    for s in steps:
        assert set(s) == STEP
        assert (s["count"], s["split"], s["skipped"]) == (24, "val", [])
        confusion = Confusion.from_json(s["confusion"])
        assert confusion.total == 24
        assert s["top1"] == pytest.approx(100 * confusion.right.sum() / 24)
        assert (s["latency_ms"] is None) == (s["engine"] == "torch")
        assert (s["agreement"] is None) == (s["engine"] == "torch")
    assert steps[0]["top1"] > 50  # of three classes
    assert steps[1]["top1"] == pytest.approx(steps[0]["top1"], abs=0.1)
    assert steps[3]["size_bytes"] < 0.5 * steps[1]["size_bytes"]


def test_int8_is_near_float(fitted):
    steps = fitted.json["steps"]
    assert abs(steps[2]["top1"] - steps[0]["top1"]) < 13  # three images of 24
    assert abs(steps[3]["top1"] - steps[2]["top1"]) < 5
    assert abs(steps[3]["loss"] - steps[0]["loss"]) < 0.3


def test_the_cards_say_how_they_came_about(fitted):
    f, q = Bundle.load(fitted.out / "float"), Bundle.load(fitted.out / "int8")
    o = engines.load(fitted.out / "model-int8.onnx").card
    assert q.card.parent is not None
    assert o.parent == q.digest
    assert engines.load(fitted.out / "model.onnx").card.parent == f.digest
    assert q.card.precision == "int8"
    for b, step in ((f, 0), (q, 2)):
        (metric,) = b.card.metrics
        assert (metric.name, metric.split, metric.count) == ("top1", "val", 24)
        assert metric.value == pytest.approx(fitted.json["steps"][step]["top1"], abs=1e-3)


def test_the_int8_bundles_parent_is_the_float_bundle(fitted):
    """Which fit saves twice: after training, and with its score on the held-out split."""
    assert Bundle.load(fitted.out / "int8").card.parent == Bundle.load(fitted.out / "float").digest


def test_the_run_is_a_model(fitted, colours, command):
    ran = command("predict", fitted.out, colours / "val" / "red", "--json")
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 8
    got = command("eval", fitted.out, "--json").json  # on the data of its card
    assert got["top1"] == pytest.approx(fitted.json["top1"])


def test_without_weights_it_says_what_is_lost_and_ends_well(fitted):
    said = " ".join(fitted.ran.err.split())
    assert said.count("no pretrained weights on this machine") == 1
    assert "`mobilenets fetch" in said
    assert "--weights weights/" in said
    assert Bundle.load(fitted.out / "float").card.recipe["probe"] == "off"


def test_what_was_found_in_the_images(fitted):
    scan = json.loads((fitted.out / "scan.json").read_text())
    assert scan["native_side"] == 32
    assert scan["counts"] == {s: dict.fromkeys(("blue", "green", "red"), n) for s, n in (("train", 24), ("val", 8))}
    assert scan["damaged"] == []


def test_progress_is_on_stderr_and_results_on_stdout(fitted):
    for i in range(1, 7):
        assert f"{i}/6" in fitted.ran.err
    assert fitted.ran.out.startswith("{")


@pytest.mark.slow
def test_a_finished_run_resumed_does_not_train_or_measure_again(fitted, colours, command, monkeypatch):
    before = (fitted.out / "float" / "weights.safetensors").read_bytes()
    monkeypatch.setattr(train, "train_bundle", lambda *_a, **_k: pytest.fail("trained again"))
    monkeypatch.setattr(choose, "pick", lambda *_a, **_k: pytest.fail("chose again"))
    ran = command(*arguments(colours, fitted.out, "--resume"))
    assert ran.code == 0, ran.err
    assert (fitted.out / "float" / "weights.safetensors").read_bytes() == before
    assert fitted.json["arch"] in ran.out
    assert "predict" in ran.out  # the next command to try
    fitted_again = json.loads((fitted.out / "steps.json").read_text())
    assert [s["top1"] for s in fitted_again["steps"]] == [s["top1"] for s in fitted.json["steps"]]


@pytest.mark.parametrize(
    ("more", "said"),
    [((), "holds a run already"), (("--resume", "--seed", 3), "seed 0, not 3"),
     (("--resume", "--precision", "float32"), "precision int8, not float32"),
     (("--resume", "--threads", 2), "threads 1, not 2"),
     (("--resume", "--max-memory-mb", 3), "memory_mb None, not 3")],
)  # fmt: skip
def test_a_run_is_resumed_by_its_own_command_alone(fitted, colours, command, more, said):
    assert said in command(*arguments(colours, fitted.out, *more)).line


@pytest.mark.slow
def test_a_damaged_image_stops_it_before_anything_is_done(colours, command, tmp_path):
    data = shutil.copytree(colours, tmp_path / "data")
    bad = data / "train" / "red" / "005.png"
    bad.write_bytes(bad.read_bytes()[:100])
    (data / "val" / "blue" / "001.png").write_text("no image")
    out = tmp_path / "run"
    ran = command(*arguments(data, out, epochs=1))
    assert ran.code == 2
    assert "2 damaged images" in ran.err.splitlines()[-1]
    assert "--skip-bad" in ran.err.splitlines()[-1]
    assert "train/red/005.png" in ran.err.replace("\n", "")
    assert not (out / "checkpoints").exists()
    assert not (out / "choice.json").exists()
    ran = command(*arguments(data, out, "--skip-bad", "--resume", "--json", epochs=1))
    assert ran.code == 0, ran.err
    assert ran.json["steps"][0]["count"] == 23
    scan = json.loads((out / "scan.json").read_text())
    assert len(scan["damaged"]) == 2
    assert scan["counts"]["train"]["red"] == 23
    assert Bundle.load(out / "float").card.data["counts"] == {"train": 71, "val": 23}


@pytest.mark.slow
def test_float_is_shipped_where_it_is_asked_for(colours, command, tmp_path):
    got = command("fit", colours, "--out", tmp_path / "run", "--epochs", 1, "--workers", 0, "--max-macs-m", 2,
                  "--precision", "float32", "--json").json  # fmt: skip
    assert got["file"] == str(tmp_path / "run" / "model.onnx")
    assert [s["precision"] for s in got["steps"]] == ["float32", "float32"]
    assert not (tmp_path / "run" / "int8").exists()
    choice = json.loads((tmp_path / "run" / "choice.json").read_text())
    assert choice["precision"] == "float32"
    assert choice["pick"]["macs_m"] <= 2


@pytest.mark.slow
def test_from_a_bundle_its_network_is_kept(fitted, colours, command, tmp_path):
    """Of its width, the resolution that the budget allows; the recipe that fine-tunes."""
    start = Bundle.load(fitted.out / "float")
    ran = command("fit", colours, "--out", tmp_path / "run", "--init", fitted.out, "--max-latency-ms", 50,
                  "--epochs", 1, "--batch", 12, "--lr", 1e-3, "--halving", "off", "--workers", 0, "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    b = Bundle.load(tmp_path / "run" / "float")
    assert (b.card.arch.name, b.card.arch.alpha) == (start.card.arch.name, start.card.arch.alpha)
    assert b.card.parent == start.digest
    assert b.card.recipe["probe"] == "on"
    choice = json.loads((tmp_path / "run" / "choice.json").read_text())
    assert {(c["arch"], c["alpha"]) for c in choice["candidates"]} == {(start.card.arch.name, start.card.arch.alpha)}
    with (tmp_path / "run" / "logs" / "metrics.csv").open() as f:
        assert len(list(csv.DictReader(f))) == 1


def test_a_budget_nothing_meets_stops_it_before_training(colours, command, tmp_path):
    ran = command("fit", colours, "--out", tmp_path / "run", "--max-latency-ms", 1e-6)
    assert ran.code == 2
    last = ran.err.splitlines()[-1]
    assert last.startswith("mobilenets: no network meets latency 1e-06 ms")
    assert "the nearest is v" in last
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [(("--engine", "onnx"), "unknown engine 'onnx'"), (("--threads", 0), "threads must be 1 or more"),
     (("--recipe", "modren"), "did you mean 'modern'"), (("--max-size-mb", 0), "--max-size-mb must be above 0"),
     (("--init", "nowhere"), "no bundle here"), (("--precision", "int9"), "int9"),
     (("--precision", "dynamic"), "no dynamic networks")],
)  # fmt: skip
def test_bad_arguments(colours, command, tmp_path, more, said):
    assert said in command("fit", colours, "--out", tmp_path / "run", *more).line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_command_gives_the_same_weights(fitted, colours):
    """In Python, from the choice that the command made."""
    from mobilenets.arch.spec import Arch
    from mobilenets.training import recipes
    from mobilenets.training.recipes import Overrides

    d = open_data(str(colours))
    arch = Arch.from_json(json.loads((fitted.out / "choice.json").read_text())["arch"])
    r = recipes.recipe("modern", Overrides(epochs=EPOCHS, lr=0.01, batch=12, workers=0))
    b = train.train_bundle(d, arch, r, fitted.out.parent / "again")
    assert (fitted.out.parent / "again" / "float" / "weights.safetensors").read_bytes() == (
        fitted.out / "float" / "weights.safetensors"
    ).read_bytes()
    assert b.card.arch == Bundle.load(fitted.out / "float").card.arch


@pytest.mark.slow
def test_fit_is_a_function(colours, tmp_path):
    from mobilenets.deploy.choose import Budget
    from mobilenets.training.recipes import Overrides

    got = fit.fit(
        str(colours), out=tmp_path / "run", budget=Budget(max_macs_m=1), overrides=Overrides(epochs=1, workers=0)
    )
    assert got.file == tmp_path / "run" / "model-int8.onnx"
    assert got.shipped.path == str(got.file)
    assert got.arch.title == "v1 0.25-32"


def test_a_network_that_nobody_ranked_is_one_line(command, colours, tmp_path):
    ran = command("fit", colours, "--init", "cifar10-v1-0.25", "--out", tmp_path / "run", "--workers", 0)
    assert ran.code == 2
    assert "mobilenets train --init" in ran.err.splitlines()[-1]
