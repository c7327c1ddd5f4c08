"""Where a training's numbers go beside its own metrics.csv: TensorBoard, MLflow, Weights & Biases. No torch."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilenets import console, files
from mobilenets.errors import Missing, UserError, unknown
from mobilenets.training.run import LOGS

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

MODULES = {"tensorboard": "tensorboard", "csv": "", "mlflow": "mlflow", "wandb": "wandb"}  # what each imports
DEFAULT = ("tensorboard",)
IDS = "loggers.json"  # in the run's logs: what each service calls the run, so that a resumed one goes on there
# Without these MLflow asks a server that isn't there for ten minutes, and refuses the folder that is its own default.
MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_ALLOW_FILE_STORE": "true",
}  # fmt: skip
WANDB_SECONDS = 30  # to wait for its server

Facts = Mapping[str, Any]  # what is logged of a training beside its numbers: recipe, network, data


def check(names: Sequence[str]) -> None:
    """Raise `UserError` for a logger that there isn't, or whose package isn't installed."""
    for name in names:
        if name not in MODULES:
            raise unknown("logger", name, MODULES)
        if MODULES[name] and importlib.util.find_spec(MODULES[name]) is None:
            raise UserError(str(Missing.of(f"--log {name}", MODULES[name])))  # the verb itself does without


def loggers(names: Sequence[str], out: Path, facts: Facts, score: str) -> list[Logger]:
    """Lightning's loggers of those names for the run in `out`, opened when they are first used.

    None of them stops a training: see `Forgiving`. `csv` is metrics.csv, which is written without them. `score` is the
    name that the primary metric is logged by.
    """
    from mobilenets.training.callbacks import Forgiving

    openers: dict[str, Callable[[Path, Facts, str], Logger]] = {
        "tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb,
    }  # fmt: skip
    chosen = [name for name in dict.fromkeys(names) if name in openers]
    return [Forgiving(name, functools.partial(openers[name], out, facts, score)) for name in chosen]


def _tensorboard(out: Path, facts: Facts, score: str) -> Logger:
    from pytorch_lightning.loggers import TensorBoardLogger
    from torch.utils.tensorboard.summary import hparams

    made = TensorBoardLogger(out, name=LOGS, version="", default_hp_metric=False)
    made.log_hyperparams(dict(facts))  # as hparams.yaml; its own summary would need a score, and log it
    writer = made.experiment._get_file_writer()
    for part in hparams(_flat(facts), {score: 0.0}):  # type: ignore[no-untyped-call]
        writer.add_summary(part)
    return made


def _mlflow(out: Path, facts: Facts, _score: str) -> Logger:
    for name, value in MLFLOW.items():
        os.environ.setdefault(name, value)
    from pytorch_lightning.loggers import MLFlowLogger

    known = _known(out)
    made = MLFlowLogger(
        os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mobilenets",
        run_name=out.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or (out / LOGS / "mlruns").resolve().as_uri(),
        run_id=known.get("mlflow"),
    )
    if "mlflow" in known:
        made.experiment.update_run(known["mlflow"], "RUNNING")
    else:
        _keep(out, {**known, "mlflow": str(made.run_id)})
        made.log_hyperparams(dict(facts))
    return made


def _wandb(out: Path, facts: Facts, _score: str) -> Logger:
    os.environ.setdefault("WANDB_SILENT", "true")  # its lines would break the progress bar
    import wandb
    from pytorch_lightning.loggers import WandbLogger

    class Finished(WandbLogger):
        """Lightning leaves its run open, and the next training of this process would go on in it."""

        def finalize(self, status: str) -> None:
            super().finalize(status)
            self.experiment.finish(exit_code=int(status != "success"))

    folder, known = out / LOGS, _known(out)
    folder.mkdir(parents=True, exist_ok=True)
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
    made = Finished(
        out.name,
        folder,
        project=os.environ.get("WANDB_PROJECT") or "mobilenets",
        id=known.get("wandb"),
        mode=mode,
        settings=wandb.Settings(silent=True, console="off", init_timeout=WANDB_SECONDS),
    )
    made.log_hyperparams(dict(facts))
    if "wandb" not in known:
        _keep(out, {**known, "wandb": str(made.experiment.id)})
    if mode == "offline":
        console.note(f"wandb is offline (WANDB_API_KEY or WANDB_MODE changes that): wandb sync {folder}/wandb/*run-*")
    return made


def _known(out: Path) -> dict[str, str]:
    path = out / LOGS / IDS
    return files.read_json(path, (), "a run's loggers") if path.exists() else {}


def _keep(out: Path, ids: Mapping[str, str]) -> None:
    files.write_json(out / LOGS / IDS, dict(ids))


def _flat(facts: Facts, before: str = "") -> dict[str, Any]:
    """One level deep, as "recipe/lr", and of the types that TensorBoard takes."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{key}/")
        else:
            flat[before + key] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
