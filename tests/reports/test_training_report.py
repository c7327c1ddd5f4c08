"""The page of a run of `train` or `distill`: finished, under way, damaged. The run is made here without training."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilenets import files
from mobilenets.arch import cost, zoo
from mobilenets.commands.report import report
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, random_bundle
from mobilenets.model.card import Metric
from mobilenets.reports import training as training_report
from mobilenets.tasks import linear
from mobilenets.training import recipes

ARCH = zoo.arch("v1", 0.25, 32, 2)
RECIPE = recipes.recipe("cifar", recipes.Overrides(epochs=20, progressive=1.0))
TEACHER = {"temperature": 3.0, "labels": 0.25, "embedding": 0.0, "views": 8}
HOSTILE = "<script>alert(1)</script> & more"


def write_metrics(path: Path, epochs: int, balanced: float = 0.0) -> None:
    """Epoch e takes 10 + e seconds; the third is the best. `balanced`: points that the mean over classes is below."""
    top1 = [60.0 + 10 * (e == 3) + e / 10 for e in range(1, epochs + 1)]
    rows = [f"{e},{2 / e},{3 / e},{v},{v - balanced},0.01,{10 + e}" for e, v in enumerate(top1, 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["epoch,train_loss,val_loss,val_top1,val_balanced,lr,seconds", *rows]) + "\n")


def write_run(run: Path, epochs: int = 20, *, finished: bool = True, balanced: float = 0.0, **changes: Any) -> Path:
    """A run of 20 epochs of which `epochs` are done; `changes` are of run.json."""
    config = {
        "verb": "train", "source": "some/pets", "arch": ARCH.to_json(), "recipe": RECIPE.to_json(), "seed": 7,
        "init": None, "command": "mobilenets train some/pets --root 'my sets' --recipe cifar --out pets", **changes,
    }  # fmt: skip
    files.write_json(run / "run.json", config)
    write_metrics(run / "logs" / "metrics.csv", epochs, balanced)
    if finished:
        bundle = random_bundle(ARCH, "float32")
        recipe = {**config["recipe"], "seed": 7, "processes": 2, "best_epoch": 3}
        if "how" in changes:
            recipe["teacher"] = {"name": "the old one", "digest": changes["teacher"], **changes["how"]}
        card = bundle.card.replace(
            config={"labels": ["cat", "dog"]}, recipe=recipe, metrics=(Metric("top1", 70.3, "some/pets", "val", 1234),),
            data={"source": "some/pets", "counts": {"train": 5678, "val": 1234}, "val_fraction": 0.2},
        )  # fmt: skip
        Bundle(card, bundle.tensors).save(run / "float")
    return run


def text_of(run: Path) -> tuple[str, tuple[str, ...]]:
    """What the page of `run` shows, tags and figures' marks aside; and the report's notes."""
    made = report(run)
    assert made.path == run / "report.html"
    return visible(made.path.read_text()), made.notes


def visible(page: str) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page[page.index("<main>") :])))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("training") / "pets")


def test_page_of_a_finished_run_has_its_numbers(trained: Path) -> None:
    text, notes = text_of(trained)
    counted = cost.count(ARCH)
    scores = "top1 70.30% {:.2f} to {:.2f} some/pets val 1,234".format(*linear.wilson(70.3, 1234))
    for value in (
        "v1 0.25-32 on pets", f"{counted.macs:,}", f"{counted.params:,}", f"{counted.weight_bytes(32) / 1e6:.2f} MB",
        f"{counted.weight_bytes(8) / 1e6:.2f} MB", "70.30%", "the weights kept: epoch 3", "20 of 20", "7 min",
        scores, "5,678 train, 1,234 val images", "stratified 20%",
        "seed 7", "processes 2", "mobilenets train some/pets --root 'my sets' --recipe cifar --out pets",
        "★ kept: epoch 3", "the shortest 11 s, the longest 30 s", "loss, nats", "learning rate", "batch 128 not 64",
    ):  # fmt: skip
        assert value in text, value
    for value in ("Not finished", "stimate", "The teacher", "mean over classes"):
        assert value not in text, value
    assert notes == ("20 of 20 epochs are done, in 7 min",)


def test_page_needs_nothing_from_outside(trained: Path) -> None:
    report(trained)
    page = (trained / "report.html").read_text()
    assert not re.search(r"<(script|link|iframe|object|base|img)\b", page)
    assert not re.search(r"https?://|@import", page)
    assert page.count("<section") == page.count("</section>")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)


def test_what_to_try_next_are_commands_of_ours(trained: Path) -> None:
    lines = training_report.Training.read(trained).next_steps().splitlines()
    assert lines == [
        f"mobilenets quantize {trained} --root 'my sets' --out {trained}/int8",
        f"mobilenets export {trained}/int8 --root 'my sets' --out {trained}/model-int8.onnx",
        f"mobilenets predict {trained}/model-int8.onnx IMAGE",
    ]


def test_recipe_marks_what_is_not_the_default() -> None:
    rows = {f.name: f for f in training_report.recipe_fields({**RECIPE.to_json(), "later": 1}, 7)}
    assert set(rows) == {*RECIPE.to_json(), "later", "seed"}
    assert (rows["optimizer"].value, rows["optimizer"].default) == ("sgd", "adamw")
    assert (rows["weight_decay"].value, rows["weight_decay"].default) == ("0.0005", "0.02")
    assert (rows["mixup"].value, rows["mixup"].default) == ("0", "0.1")
    assert (rows["ema"].value, rows["ema"].default) == ("0.02", "")
    assert (rows["later"].default, rows["later"].meaning, rows["seed"].value) == ("", "", "7")
    assert all(f.meaning for f in rows.values() if f.name != "later")


def test_page_escapes_what_users_wrote(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a & b", source=HOSTILE, command=f"mobilenets train '{HOSTILE}'")
    report(run)
    page = (run / "report.html").read_text()
    assert "<script" not in page
    assert html.escape(HOSTILE) in page


# ---- not finished --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undrawn")
def test_page_of_a_run_under_way_says_how_far_it_is(tmp_path: Path) -> None:
    text, notes = text_of(write_run(tmp_path / "run", 8, finished=False))
    # the last five took 14 to 18 s
    for value in (
        "Not finished", "8 of 20 epochs are done", "no bundle", "Estimate: 3 min left, 12 epochs of 16 s, the mean of",
        "the best so far: epoch 3", "mobilenets train some/pets --root 'my sets' --recipe cifar --out pets --resume",
    ):  # fmt: skip
        assert value in text, value
    for value in ("Try next", "Scores", "may be too low", "end sooner"):
        assert value not in text, value
    assert notes == ("8 of 20 epochs are done, in 2 min; about 3 min left, an estimate",)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("epochs", "changes", "why"),
    [
        (8, {"progressive": 0.5}, "smaller images"),
        (16, {"progressive": 0.5}, "smaller images"),
        (17, {"progressive": 0.5}, ""),
        (6, {"frozen_epochs": 2}, "train the classifier alone"),
        (7, {"frozen_epochs": 2}, ""),
        (3, {}, ""),
    ],
)
def test_estimate_says_when_it_may_be_too_low(tmp_path: Path, epochs: int, changes: dict[str, Any], why: str) -> None:
    recipe = {**RECIPE.to_json(), **changes}
    text, _ = text_of(write_run(tmp_path / "run", epochs, finished=False, recipe=recipe))
    assert ("may be too low" in text) == bool(why)
    assert why in text


@pytest.mark.usefixtures("undrawn")
def test_early_stopping(tmp_path: Path) -> None:
    recipe = {**RECIPE.to_json(), "patience": 5}
    text, _ = text_of(write_run(tmp_path / "under way", 6, finished=False, recipe=recipe))
    assert "Training may end sooner: after 5 epochs without a better score." in text
    text, notes = text_of(write_run(tmp_path / "stopped", 8, recipe=recipe))
    assert "8 of 20 then 5 had brought no better score" in text
    assert "Not finished" not in text
    assert notes == ("8 of 20 epochs are done, in 2 min",)


@pytest.mark.usefixtures("undrawn")
def test_all_epochs_done_but_no_bundle(tmp_path: Path) -> None:
    text, notes = text_of(write_run(tmp_path / "run", finished=False))
    assert "Not finished 20 of 20 epochs are done" in text
    assert "stimate" not in text
    assert "left" not in notes[0]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("command", "goes_on"),
    [
        ("mobilenets train x --out y --resume", "mobilenets train x --out y --resume"),
        ("torchrun --nproc-per-node 2 -m mobilenets train x --out y",
         "torchrun --nproc-per-node 2 -m mobilenets train x --out y --resume"),
        ("(called from Python)", ""),
    ],
)  # fmt: skip
def test_how_to_go_on(tmp_path: Path, command: str, goes_on: str) -> None:
    run = write_run(tmp_path / "run", 1, finished=False, command=command)
    assert training_report.Training.read(run).resume_command == goes_on
    text, _ = text_of(run)
    assert ("the same call with resume=True" in text) == (not goes_on)


@pytest.mark.usefixtures("undrawn")
def test_runs_from_before_a_recipe_had_its_later_fields(tmp_path: Path) -> None:
    recipe = {k: v for k, v in RECIPE.to_json().items() if k not in ("accumulate", "class_weights", "patience")}
    text, _ = text_of(write_run(tmp_path / "run", 4, finished=False, recipe=recipe))
    assert "weight_decay" in text
    assert "accumulate" not in text


# ---- classes and teachers ------------------------------------------------------------------------------------------


def test_mean_over_classes_where_it_differs(tmp_path: Path) -> None:
    text, _ = text_of(write_run(tmp_path / "run", balanced=12.0))
    assert "58.30%" in text
    assert "val top-1, mean over classes, %" in text
    assert not training_report.Training.read(write_run(tmp_path / "other", balanced=0.4)).balanced


@pytest.mark.usefixtures("undrawn")
def test_epochs_of_an_older_version_have_no_mean_over_classes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 6, balanced=12.0)
    log = run / "logs" / "metrics.csv"
    log.write_text(re.sub(r"(?m)^([1-4],.*),[^,]*(,0.01,\d+)$", r"\1,\2", log.read_text()))
    assert list(training_report.Training.read(run).columns["val_balanced"]) == [5, 6]
    assert "mean over classes" not in text_of(run)[0]


@pytest.mark.usefixtures("undrawn")
def test_a_probe_that_no_epoch_beat_is_what_was_kept(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    bundle = Bundle.load(run / "float")
    card = bundle.card.replace(recipe={**bundle.card.recipe, "best_epoch": 0})
    Bundle(card, bundle.tensors).save(run / "float")
    page = text_of(run)[0]
    assert "70.30% val split, the linear probe, which no epoch beat" in page
    assert "so the probe is kept" in page
    assert "weights kept" not in page


@pytest.mark.usefixtures("undrawn")
def test_best_so_far_is_by_the_score_that_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 5, finished=False, recipe={**RECIPE.to_json(), "class_weights": "balanced"})
    log = run / "logs" / "metrics.csv"
    lines = [line.split(",") for line in log.read_text().splitlines()]
    lines[5][4] = "99"
    log.write_text("\n".join(",".join(line) for line in lines) + "\n")
    assert training_report.Training.read(run).best_epoch == 5
    assert "the best so far: epoch 5" in text_of(run)[0]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("finished", [True, False])
def test_distilled_run_has_its_teacher(tmp_path: Path, finished: bool) -> None:
    distilled = {"verb": "distill", "teacher": "d1" * 32, "how": TEACHER, "unlabelled": False}
    text, _ = text_of(write_run(tmp_path / "run", finished=finished, **distilled))
    for value in ("The teacher", "d1" * 32, "temperature 3,", "25% the true classes, 75% what the teacher says",
                  "embedding not compared", "8 random views", "the difference to the teacher"):  # fmt: skip
        assert value in text, value
    assert ("the old one" in text) == finished


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"views": 0}, "about every image in every step"),
        ({"views": None}, "unless its answers take too much room"),
        ({"embedding": 2.0}, "its squared difference, with weight 2"),
    ],
)
def test_other_ways_of_teaching(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    distilled = {"verb": "distill", "teacher": "d1" * 32, "how": {**TEACHER, **how}}
    assert said in text_of(write_run(tmp_path / "run", 2, finished=False, **distilled))[0]


@pytest.mark.usefixtures("undrawn")
def test_unlabelled_run_is_scored_by_its_teacher(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", verb="distill", teacher="d1" * 32, how=TEACHER, unlabelled=True)
    text, _ = text_of(run)
    assert "agreement with the teacher 70.30%" in text
    assert f"mobilenets quantize {run} DATA --root" in text


# ---- mistakes ------------------------------------------------------------------------------------------------------


def refused(run: Path) -> str:
    """The one line of a refusal, which leaves no page."""
    with pytest.raises(UserError) as e:
        report(run)
    assert not (run / "report.html").exists()
    assert "\n" not in str(e.value)
    return str(e.value)


def test_what_is_no_run(tmp_path: Path) -> None:
    wanted = "report needs the folder of a run of mobilenets fit, train or distill"
    assert refused(tmp_path / "none") == f"{tmp_path / 'none'}: no such folder; {wanted}"
    assert refused(tmp_path) == f"{tmp_path} is not a run: run.json is missing; {wanted}"
    (tmp_path / "file").write_text("")
    assert "file: not a folder" in refused(tmp_path / "file")
    assert "a run of mobilenets sweep; report makes pages" in refused(write_run(tmp_path / "run", verb="sweep"))


@pytest.mark.parametrize("log", [None, "", "epoch,train_loss,val_loss,val_top1,val_balanced,lr,seconds\n"])
def test_no_finished_epoch(tmp_path: Path, log: str | None) -> None:
    run = write_run(tmp_path / "run", 1, finished=False)
    path = run / "logs" / "metrics.csv"
    path.unlink()
    if log is not None:
        path.write_text(log)
    assert re.search("no epoch (is|was) finished", refused(run))


def no_top1(text: str) -> str:
    return text.replace("val_top1", "other")


@pytest.mark.parametrize(
    "damage",
    [
        no_top1,
        lambda text: text.replace(",12\n", ",nan\n"),
        lambda text: text.replace(",12\n", ",\n"),
        lambda text: text.replace(",12\n", ",x\n"),
        lambda text: text.replace("\n2,", "\n7000000000000,"),
        lambda text: text[:-10],
        lambda text: text.encode().hex(),
    ],
)
def test_damaged_log(tmp_path: Path, damage: Callable[[str], str]) -> None:
    run = write_run(tmp_path / "run", 3, finished=False)
    path = run / "logs" / "metrics.csv"
    path.write_text(damage(path.read_text()))
    assert str(path) in refused(run)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\xff"])
@pytest.mark.parametrize("name", ["run.json", "float/card.json"])
def test_damaged_json(trained: Path, tmp_path: Path, name: str, text: str) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("report.html")))
    (run / name).write_bytes(text.encode("latin-1"))
    assert str(run / name) in refused(run)


@pytest.mark.parametrize(
    "changes",
    [
        {"command": "'"}, {"command": 5}, {"arch": {}}, {"arch": None}, {"arch": {"rows": 3}},
        {"recipe": []}, {"recipe": {"epochs": "5"}},
        {"recipe": {"epochs": 0}}, {"source": 5}, {"verb": "distill"}, {"verb": "distill", "how": {"views": 1}},
    ],
)  # fmt: skip
def test_damaged_fields(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = write_run(tmp_path / "run", 2, finished=False)
    config = json.loads((run / "run.json").read_text()) | changes
    (run / "run.json").write_text(json.dumps(config))
    assert f"{run / 'run.json'}: damaged" in refused(run)


def test_missing_fields(tmp_path: Path) -> None:
    for name in ("source", "arch", "recipe", "seed", "command"):
        run = write_run(tmp_path / name, 2, finished=False)
        config = json.loads((run / "run.json").read_text())
        del config[name]
        (run / "run.json").write_text(json.dumps(config))
        assert f"it has no '{name}'" in refused(run)


def test_imports_no_torch(trained: Path) -> None:
    code = (
        "import sys; from mobilenets.reports import training as r; from pathlib import Path; r.page(Path(sys.argv[1]))"
    )
    code += "; sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(trained)], check=False).returncode == 0
