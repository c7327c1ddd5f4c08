"""Images with what a network says of them, drawn as its task draws it, into a folder. No torch."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from mobilenets import files
from mobilenets.deploy.inputs import Source, content
from mobilenets.deploy.predict import Model, Prediction
from mobilenets.errors import UserError
from mobilenets.model.images import open_rgb

QUALITY = 92


def drawn(model: Model, images: Iterable[Source], top: int, folder: Path) -> Iterator[Prediction]:
    """What a network says of images, each of them drawn into `folder` when its turn comes, by its own name.

    Two of one name are told apart by a number. Raises `UserError` where the folder can't be written.
    """
    waiting: deque[Source] = deque()
    taken: set[str] = set()

    def noted() -> Iterator[Source]:
        for item in images:
            waiting.append(item)
            yield item

    for said in model.stream(noted(), top):
        source = waiting.popleft()
        if said.answer is not None:
            image = model.task.draw(open_rgb(content(source), source.name), said.answer)
            whole = io.BytesIO()
            image.save(whole, "JPEG", quality=QUALITY)
            path = folder / _free(PurePath(source.name).stem, taken)
            if path.exists() and Path(source.name).exists() and path.samefile(source.name):
                raise UserError(
                    f"{path} is the image itself, which would be replaced: choose another folder to draw into"
                )
            with files.atomic_file(path) as tmp:
                tmp.write_bytes(whole.getbuffer())
        yield said


def _free(stem: str, taken: set[str]) -> str:
    """A file's name that isn't taken; it is now."""
    name, number = f"{stem}.jpg", 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}.jpg"
    taken.add(name)
    return name
