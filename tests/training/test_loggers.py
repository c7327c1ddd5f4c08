"""Where a training's numbers go: each logger for real where it is installed, and by what it is told where it isn't."""

import csv
import json
import os
import signal
import sys
import types

import pytest
import pytorch_lightning.loggers as lightning

from mobilenets.errors import EXTRAS, UserError
from mobilenets.training import callbacks, loggers

FACTS = {"arch": "v1", "recipe": {"lr": 0.1, "augment": None}, "data": {"source": "flowers", "train": 3}}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """Neither the user's services nor what opening a logger sets."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "WANDB"))})


def scalars(out):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "logs"))
    events.Reload()
    return events, {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def opened(name, out, facts=FACTS):
    (made,) = loggers.loggers([name], out, facts, "val_top1")
    return made


# ---- what a training writes ----------------------------------------------------------------------------------------


def test_tensorboard_has_what_the_log_has(tiny_train, tmp_path):
    out = tmp_path / "run"
    assert tiny_train(out, "--epochs", 2).ran.code == 0
    with (out / "logs" / "metrics.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    events, seen = scalars(out)
    assert seen.keys() >= {"train_loss", "val_loss", "val_top1", "lr"}
    for column in ("val_loss", "val_top1", "lr"):
        assert seen[column] == pytest.approx([float(r[column]) for r in rows], rel=1e-4)
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert "lr" in (out / "logs" / "hparams.yaml").read_text()


def test_csv_is_the_log_alone(tiny_train, tmp_path):
    out = tmp_path / "run"
    assert tiny_train(out, "--epochs", 1, "--log", "csv").ran.code == 0
    assert [p.name for p in (out / "logs").iterdir()] == ["metrics.csv"]


def test_an_unknown_logger(command, tmp_path):
    line = command("train", "digits", "--out", tmp_path / "run", "--log", "tensorboard,wandbb").line
    assert "unknown logger 'wandbb': did you mean 'wandb'?" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["train", "fit", "sweep"])
def test_one_that_is_not_installed(command, monkeypatch, tmp_path, verb):
    monkeypatch.setitem(loggers.MODULES, "mlflow", "no_such_module")
    monkeypatch.setitem(EXTRAS, "no_such_module", ("MLflow", "mlflow"))
    line = command(verb, "digits", "--out", tmp_path / "run", "--log", "csv,mlflow").line
    assert line == "mobilenets: --log mlflow needs MLflow: pip install 'mobilenets[mlflow]'"


def test_the_check_names_what_to_install(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda _name: None)
    for name, module in loggers.MODULES.items():
        if module:
            with pytest.raises(UserError, match=rf"^--log {name} needs .*'mobilenets\[(train|mlflow|wandb)\]'"):
                loggers.check([name])
    loggers.check(["csv"])


# ---- failures ------------------------------------------------------------------------------------------------------


class Failing(callbacks.Logger):
    """A service that is gone after so many calls."""

    name, version = "failing", ""

    def __init__(self, calls):
        self.left, self.seen = calls, []

    def log_metrics(self, metrics, _step=None):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the server\nis gone")
        self.seen.append(metrics)

    def log_hyperparams(self, params):
        raise NotImplementedError


@pytest.mark.sampled(1)
@pytest.mark.parametrize("calls", [0, 2])
def test_a_logger_that_fails_is_a_line_and_no_failed_training(tiny_train, tmp_path, monkeypatch, calls):
    failing = Failing(calls)
    monkeypatch.setattr(loggers, "_mlflow", lambda *_: failing)
    monkeypatch.setattr(loggers, "check", lambda _names: None)
    ran = tiny_train(tmp_path / "run", "--epochs", 2, "--log", "mlflow").ran
    assert ran.code == 0
    assert len(failing.seen) == calls
    assert ran.err.count("--log mlflow ended, and training goes on without it: ") == 1
    assert "Traceback" not in ran.err


def test_one_that_cannot_be_opened_is_tried_once(capsys):
    tries = []

    def opener():
        tries.append(1)
        raise OSError("no such server")

    made = callbacks.Forgiving("mlflow", opener)
    for step in range(3):
        made.log_metrics({"x": 1.0}, step)
    made.finalize("success")
    assert len(tries) == 1
    assert capsys.readouterr().err.count("no such server") == 1


def test_ctrl_c_waits_for_a_logger_and_a_second_one_does_not():
    """Amid a hand-over to TensorBoard's thread it left their queue locked: the training never ended."""
    presses, done = [1], []

    class Slow(Failing):
        def log_metrics(self, *_):
            for _ in range(presses[0]):
                signal.raise_signal(signal.SIGINT)
            done.append(1)

    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for presses[0], finished in ((1, [1]), (2, [1])):
            with pytest.raises(KeyboardInterrupt):
                callbacks.Forgiving("slow", lambda: Slow(0)).log_metrics({"x": 1.0}, 0)
            assert done == finished
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_only_the_first_process_opens_one(monkeypatch):
    monkeypatch.setattr(callbacks, "world", lambda: (2, 1))
    made = callbacks.Forgiving("mlflow", lambda: pytest.fail("opened"))
    made.log_metrics({"x": 1.0}, 0)
    made.finalize("success")


def test_one_that_was_never_used_is_not_opened_to_be_closed():
    callbacks.Forgiving("mlflow", lambda: pytest.fail("opened")).finalize("failed")


# ---- MLflow and Weights & Biases, by what they are told ----------------------------------------------------------


class Told:
    """Stands for Lightning's logger of a service: keeps what it is given."""

    name, version = "told", ""
    made = ()

    def __init__(self, *given, **named):
        self.given, self.named, self.metrics, self.facts, self.status = given, named, [], None, []
        self.id = named.get("id") or "new-id"
        self.run_id = named.get("run_id") or "new-run"
        self.experiment = self
        Told.made = (*Told.made, self)

    def log_metrics(self, metrics, step):
        self.metrics.append((metrics, step))

    def log_hyperparams(self, facts):
        self.facts = facts

    def update_run(self, run, status):
        self.status.append((run, status))

    def finalize(self, status):
        self.status.append(status)

    def finish(self, exit_code):
        self.status.append(exit_code)


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(Told, "made", ())
    monkeypatch.setattr(lightning, "MLFlowLogger", Told)
    monkeypatch.setattr(lightning, "WandbLogger", Told)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Settings=dict))
    return Told


def test_mlflow_is_told_once_and_a_resumed_run_goes_on(told, tmp_path):
    for status in ("failed", "success"):
        made = opened("mlflow", tmp_path / "run")
        made.log_metrics({"val_top1": 50.0}, 7)
        made.finalize(status)
    first, second = told.made
    assert first.given == ("mobilenets",)
    assert first.named["run_name"] == "run"
    assert first.named["tracking_uri"] == (tmp_path / "run" / "logs" / "mlruns").as_uri()
    assert (first.named["run_id"], second.named["run_id"]) == (None, "new-run")
    assert (first.facts, second.facts) == (FACTS, None)  # MLflow's parameters are written once
    assert first.metrics == [({"val_top1": 50.0}, 7)]
    assert (first.status, second.status) == (["failed"], [("new-run", "RUNNING"), "success"])


def test_mlflow_where_the_environment_says(told, tmp_path):
    os.environ |= {"MLFLOW_TRACKING_URI": "http://tracking", "MLFLOW_EXPERIMENT_NAME": "birds"}
    opened("mlflow", tmp_path / "run").log_metrics({"x": 1.0}, 0)
    (made,) = told.made
    assert (made.given, made.named["tracking_uri"]) == (("birds",), "http://tracking")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"


@pytest.mark.parametrize(
    ("environment", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_wandb_goes_on_and_is_offline_unless_told(told, tmp_path, environment, mode, capsys):
    os.environ |= environment
    for status in ("failed", "success"):
        made = opened("wandb", tmp_path / "run")
        made.log_metrics({"x": 1.0}, 0)
        made.finalize(status)
    first, second = told.made
    assert first.given == ("run", tmp_path / "run" / "logs")
    assert (first.named["mode"], first.named["project"]) == (mode, "mobilenets")
    assert (first.named["id"], second.named["id"]) == (None, "new-id")
    assert first.facts == FACTS
    assert (first.status, second.status) == (["failed", 1], ["success", 0])
    assert ("wandb sync" in capsys.readouterr().err) == (mode == "offline")


def test_both_keep_their_ids_and_a_damaged_file_of_them_is_a_line(told, tmp_path, capsys):
    out = tmp_path / "run"
    for made in loggers.loggers(["mlflow", "wandb", "mlflow"], out, FACTS, "val_top1"):
        made.log_metrics({"x": 1.0}, 0)
    assert len(told.made) == 2
    kept = out / "logs" / loggers.IDS
    assert json.loads(kept.read_text()) == {"mlflow": "new-run", "wandb": "new-id"}
    kept.write_text("{")
    opened("wandb", out).log_metrics({"x": 1.0}, 0)
    assert "not readable as JSON" in capsys.readouterr().err


# ---- and for real --------------------------------------------------------------------------------------------------


def test_mlflow_for_real(tiny_train, tmp_path):
    mlflow = pytest.importorskip("mlflow", exc_type=ImportError)
    out = tmp_path / "run"
    assert tiny_train(out, "--epochs", 2, "--log", "mlflow").ran.code == 0
    client = mlflow.MlflowClient((out / "logs" / "mlruns").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "mobilenets"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["arch"] == "v1"
    assert run.data.params["recipe/epochs"] == "2"
    assert len(client.get_metric_history(run.info.run_id, "val_top1")) == 2

    again = opened("mlflow", out)
    again.log_metrics({"val_top1": 1.0}, 99)
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    again.finalize("success")
    (same,) = client.search_runs([experiment.experiment_id])
    assert (same.info.run_id, same.data.metrics["val_top1"]) == (run.info.run_id, 1.0)


def test_wandb_for_real(tiny_train, tmp_path):
    pytest.importorskip("wandb", exc_type=ImportError)
    out = tmp_path / "run"
    assert tiny_train(out, "--epochs", 1, "--log", "wandb").ran.code == 0
    name = json.loads((out / "logs" / loggers.IDS).read_text())["wandb"]
    again = opened("wandb", out)
    again.log_metrics({"val_top1": 1.0}, 99)
    again.finalize("success")
    folders = [p.name for p in (out / "logs" / "wandb").glob("offline-run-*")]
    assert len({*folders}) in (1, 2)  # by the second that they were made in
    assert all(f.endswith(f"-{name}") for f in folders)


def test_an_argument_error_names_the_loggers():
    with pytest.raises(UserError, match="known: tensorboard, csv, mlflow, wandb"):
        loggers.check(["x" * 20])
