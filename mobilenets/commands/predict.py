"""`mobilenets predict`: what a network says of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

from mobilenets.arguments import StrPath, checked
from mobilenets.commands.options import as_task
from mobilenets.deploy import answers, engines
from mobilenets.deploy.answers import Written
from mobilenets.deploy.predict import Model, Prediction, sources, spread, there
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, is_bundle, located


def stream(
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


@overload
def predict(model: StrPath, *images: Any, top: int = 5, task: str = "", tap: str = "") -> list[Prediction]: ...
@overload
def predict(model: StrPath, *images: Any, top: int = 5, task: str = "", tap: str = "", out: StrPath) -> Written: ...
@checked
def predict(
    model: StrPath, *images: Any, top: int = 5, task: str = "", tap: str = "", out: StrPath | None = None
) -> list[Prediction] | Written:
    """What a network makes of images, any number of them.

    `load(model).predict(image)` keeps the network for the next images, and gives one answer for one.

    Parameters
    ----------
    model
        Exported file, bundle or run, or the name of a network that comes with the package.
    images
        Whatever `Model.predict` takes: paths of images, folders or zips, images of Pillow's, arrays, tensors, ...
    top
        Labels per image.
    task
        features: what the network sees instead of its answers, the pooled vector; of a bundle or run (through PyTorch),
        or of a file that was exported with it.
    tap
        The operation whose output the features are, by its name in `cost(arch).rows`; it implies task="features".
    out
        Write them to this file instead: .jsonl, .parquet, or .npy for features, float32 [images, ...].

    Returns
    -------
    list of Prediction, or Written
        In the order of the images, one that can't be read with its `error` set. With `out`, the file, how many images
        are in it and which couldn't be read.

    Raises
    ------
    UserError
        For a model or image that isn't there or isn't one, a folder without images, an address.

    Examples
    --------
    >>> import mobilenets
    >>> said = mobilenets.predict("cifar10-v1-0.25", "flowers/val/red", "flowers/val/blue/000.png", top=1)
    >>> len(said), len(said[0].top)
    (9, 1)
    >>> mobilenets.predict("cifar10-v1-0.25", "flowers/val", task="features", out="features.npy").images
    24
    """
    if not images:
        raise UserError("name at least one image, folder or zip")
    for image in images:
        if isinstance(image, str | Path):
            there(image)
    loaded = Model(_engine(Path(model), task, tap))
    if out is None:
        return loaded.predict(images, top)
    return answers.write(loaded.stream(spread(images), top), Path(out))


def _engine(model: Path, task: str, tap: str) -> engines.Engine:
    """The network at `model`, for another task where one is asked for."""
    path = located(model)
    if task or tap:
        for p in (path, path / "float"):
            if is_bundle(p):
                engine: engines.Engine = engines.module("torch").TorchEngine(as_task(Bundle.load(p), task, tap), 1)
                return engine
    loaded = engines.load(path)
    if tap or task not in ("", loaded.card.task):
        raise UserError(
            f"{model} gives {', '.join(loaded.card.outputs)}; export its bundle with --task {task or 'features'}"
            f"{f' --tap {tap}' if tap else ''}, or name the bundle itself"
        )
    return loaded
