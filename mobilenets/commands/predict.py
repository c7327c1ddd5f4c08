"""`mobilenets predict`: what a network says of images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mobilenets.deploy.predict import Prediction, load, sources
from mobilenets.errors import UserError


def predict(model: Path, *images: Path, top: int = 5) -> Iterator[Prediction]:
    """Label images: files, folders, zips, any number of them.

    Parameters
    ----------
    model
        Exported file, bundle or run.
    images
        Images, folders or zips of images.
    top
        Labels per image.
    """
    if not images:
        raise UserError("name at least one image, folder or zip")
    if top < 1:
        raise UserError(f"top must be 1 or more, not {top}")
    loaded = load(model)
    return loaded.stream(sources(images), top)
