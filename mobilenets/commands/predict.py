"""`mobilenets predict`: what a network says of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mobilenets.commands.options import as_task
from mobilenets.deploy import answers, engines
from mobilenets.deploy.answers import Written
from mobilenets.deploy.predict import Model, Prediction, sources
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, is_bundle, located


def predict(
    model: Path, *images: Path, top: int = 5, task: str = "", tap: str = "", out: Path | None = None
) -> Iterator[Prediction] | Written:
    """Say what a network makes of images: files, folders, zips, any number of them.

    Parameters
    ----------
    model
        Exported file, bundle or run.
    images
        Images, folders or zips of images.
    top
        Labels per image.
    task
        features: what the network sees instead of its answers, the pooled vector; of a bundle or run (through PyTorch),
        or of a file that was exported with --task features.
    tap
        The operation whose output the features are, by its name in `mobilenets cost ARCH --layers`; it implies
        --task features.
    out
        Write them to this file instead of printing: .jsonl, .parquet, or .npy for features.
    """
    if not images:
        raise UserError("name at least one image, folder or zip")
    if top < 1:
        raise UserError(f"top must be 1 or more, not {top}")
    found = Model(_engine(model, task, tap)).stream(sources(images), top)
    return answers.write(found, out) if out else found


def _engine(model: Path, task: str, tap: str) -> engines.Engine:
    """The network at `model`, for another task where one is asked for."""
    path = located(model)
    if task or tap:
        for p in (path, path / "float"):
            if is_bundle(p):
                engine: engines.Engine = engines.module("torch").TorchEngine(as_task(Bundle.load(p), task, tap), 1)
                return engine
    loaded = engines.load(model)
    if tap or task not in ("", loaded.card.task):
        raise UserError(
            f"{model} gives {', '.join(loaded.card.outputs)}; export its bundle with --task {task or 'features'}"
            f"{f' --tap {tap}' if tap else ''}, or name the bundle itself"
        )
    return loaded
