"""`mobilenets predict`: what a network says of images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, overload

from cyclopts import Parameter

from mobilenets import tasks
from mobilenets.arguments import DataSource, StrPath, checked
from mobilenets.commands.options import as_task
from mobilenets.data.alignment import Faces
from mobilenets.deploy import answers, drawings, engines
from mobilenets.deploy.answers import Written
from mobilenets.deploy.inputs import is_video, sources, spread, there
from mobilenets.deploy.predict import Model, Prediction
from mobilenets.deploy.tiles import Tiles
from mobilenets.deploy.trust import Doubts, Views, seen, with_logits
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle, find_bundle, is_bundle, located
from mobilenets.model.card import Card
from mobilenets.tasks.task import FromTable, Task


def stream(
    model: Path,
    *images: Path,
    top: int = 5,
    task: str = "",
    tap: str = "",
    reject_below: float | None = None,
    flag_unlike: bool = False,
    tta: Views | None = None,
    nearest: int | None = None,
    among: DataSource | None = None,
    gallery: StrPath | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
    faces: Annotated[Faces | None, Parameter(name="*")] = None,
    draw: Path | None = None,
    camera: str | None = None,
    ray: str | None = None,
    out: Path | None = None,
) -> Iterator[Prediction] | Written:
    """Say what a network makes of images: files, folders, zips, any number of them; of a video, or of a camera.

    Parameters
    ----------
    model
        Exported file, bundle or run.
    images
        Images, folders or zips of images; or one video.
    top
        Labels per image.
    task
        features: what the network sees instead of its answers, the pooled vector; of a bundle or run (through PyTorch),
        or of a file that was exported with --task features.
    tap
        The operation whose output the features are, by its name in `mobilenets cost ARCH --layers`; it implies
        --task features.
    reject_below
        The probability below which an answer is "unsure"; the card's if left out, where it has one (`mobilenets eval
        --wanted-precision` finds it). Of a detector, the least score of a box; 0.3 if left out.
    flag_unlike
        Say which images are unlike those of the training (5% of its own are), where the card knows: a bundle, by the
        energy of its logits; a file, which gives probabilities alone, by the best of them, a weaker sign.
    tta
        flip: the mean over each image and its mirror image, at twice the time.
    nearest
        Instead of labels, the images that are most alike by the bundle's features, this many.
    among
        Where --nearest looks: a folder, a zip or a set's name; the images it was trained on, if left out.
    gallery
        Of places, a table of positions that the answers are taken from: those that a photo can be from.
    tiles
        Of a detector: look at large images in squares of so many pixels that overlap, and in all of each image, so that
        what is small in them is found too; boxes that were found twice are told once.
    overlap
        The share of a tile that the next one has in common with it; 0.2 if left out.
    draw
        Write each image with what was said of it, as its task draws that (a detector's boxes), into this folder.
    camera
        Look through this camera until Ctrl-C, by its number or its device; frames that come too fast are skipped.
    ray
        Answer them on the Ray cluster at this address (auto, local, 10.0.0.1:6379), whose machines must see the same
        files; --out rows.parquet is a folder then. Broken off, the same command goes on where it was.
    out
        Write them to this file instead of printing: .jsonl, .parquet, or .npy for features. Of a video or a camera also
        .mp4, .mkv or .mov: the video with what is said drawn in, the sound as it was.
    """
    if not (images or camera):
        raise UserError("name at least one image, folder or zip")
    if top < 1:
        raise UserError(f"top must be 1 or more, not {top}")
    tiled = Tiles.asked(tiles, overlap)
    asked = Asked(task, tap, reject_below, flag_unlike, tta, nearest, among, gallery, faces, tiled)
    if camera is not None or any(map(is_video, images)):
        if draw is not None:
            raise UserError("--draw is of images: --out labelled.mp4 is a video with what is said drawn in")
        if ray is not None:
            raise UserError("--ray is of images, not of a video")
        return moving(asked, model, images, top, camera, out)
    if ray is not None:
        if draw is not None or out is None:
            raise UserError("--ray writes what is said into a folder: --out rows.parquet, and no --draw")
        return by_cluster(asked, model, images, top, ray, out)
    if draw is not None and nearest is not None:
        raise UserError("--draw draws answers, and --nearest gives images: leave out one of them")
    if draw is None:
        found = asked.of(model)(sources(images), top)
    else:
        found = drawings.drawn(asked.model(model), sources(images), top, draw)
    return answers.write(found, out) if out else found


@overload
def predict(
    model: StrPath,
    *images: Any,
    top: int = 5,
    task: str = "",
    tap: str = "",
    reject_below: float | None = None,
    flag_unlike: bool = False,
    tta: Views | None = None,
    nearest: int | None = None,
    among: DataSource | None = None,
    gallery: StrPath | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
    faces: Annotated[Faces | None, Parameter(name="*")] = None,
) -> list[Prediction]: ...
@overload
def predict(
    model: StrPath,
    *images: Any,
    top: int = 5,
    task: str = "",
    tap: str = "",
    reject_below: float | None = None,
    flag_unlike: bool = False,
    tta: Views | None = None,
    nearest: int | None = None,
    among: DataSource | None = None,
    gallery: StrPath | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
    faces: Annotated[Faces | None, Parameter(name="*")] = None,
    out: StrPath,
) -> Written: ...
@checked
def predict(
    model: StrPath,
    *images: Any,
    top: int = 5,
    task: str = "",
    tap: str = "",
    reject_below: float | None = None,
    flag_unlike: bool = False,
    tta: Views | None = None,
    nearest: int | None = None,
    among: DataSource | None = None,
    gallery: StrPath | None = None,
    tiles: int | None = None,
    overlap: float | None = None,
    faces: Annotated[Faces | None, Parameter(name="*")] = None,
    out: StrPath | None = None,
) -> list[Prediction] | Written:
    """What a network makes of images, any number of them.

    `load(model).predict(image)` keeps the network for the next images, and gives one answer for one.

    Parameters
    ----------
    model
        Exported file, bundle or run, or the name of a network that comes with the package.
    images
        Whatever `Model.predict` takes: paths of images, folders or zips, images of Pillow's, arrays, tensors, ...; or
        the path of one video.
    top
        Labels per image.
    task
        features: what the network sees instead of its answers, the pooled vector; of a bundle or run (through PyTorch),
        or of a file that was exported with it.
    tap
        The operation whose output the features are, by its name in `cost(arch).rows`; it implies task="features".
    reject_below
        The probability below which an answer is unsure, its `label` None; the card's if left out, where it has one. Of
        a detector, the least score of a box; 0.3 if left out.
    flag_unlike
        Say which images are unlike those of the training, where the card knows: a bundle, by the energy of its logits;
        a file, which gives probabilities alone, by the best of them, a weaker sign.
    tta
        "flip": the mean over each image and its mirror image, at twice the time.
    nearest
        Instead of labels, the images that are most alike by the bundle's features, this many.
    among
        Where `nearest` looks: a folder, a zip or a set's name; the images it was trained on, if left out.
    gallery
        Of places, a table of positions that the answers are taken from: those that a photo can be from.
    tiles
        Of a detector: look at large images in squares of so many pixels that overlap, and in all of each image, so that
        what is small in them is found too; boxes that were found twice are told once.
    overlap
        The share of a tile that the next one has in common with it; 0.2 if left out.
    faces
        Where the landmarks are, for a network that takes faces aligned.
    out
        Write them to this file instead: .jsonl, .parquet, or .npy for features, float32 [images, ...]; of a video also
        .mp4, .mkv or .mov: the video with what is said drawn in.

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
    tiled = Tiles.asked(tiles, overlap)
    asked = Asked(task, tap, reject_below, flag_unlike, tta, nearest, among, gallery, faces, tiled)
    if any(isinstance(i, str | Path) and is_video(Path(i)) for i in images):
        said = moving(asked, Path(model), images, top, None, None if out is None else Path(out))
        return said if isinstance(said, Written) else list(said) if out is None else answers.counted(said, Path(out))
    found = asked.of(Path(model))(spread(images), top)
    return list(found) if out is None else answers.write(found, Path(out))


@dataclass(frozen=True)
class Asked:
    """What is asked of a network, beside its images. Raises `UserError` for what doesn't go together."""

    task: str
    tap: str
    reject_below: float | None
    flag_unlike: bool
    tta: Views | None
    nearest: int | None
    among: DataSource | None
    gallery: StrPath | None = None
    faces: Faces | None = None
    tiles: Tiles | None = None

    def __post_init__(self) -> None:
        if self.nearest is None:
            if self.among is not None:
                raise UserError("--among says where --nearest looks: give that too")
            return
        if self.nearest < 1:
            raise UserError(f"nearest must be 1 or more, not {self.nearest}")
        labels = self.task, self.tap, self.flag_unlike, self.tta, self.gallery, self.tiles
        if any(labels) or self.reject_below is not None:
            raise UserError("--nearest shows images instead of labels: leave out the options that change these")

    def of(self, model: Path) -> Callable[[Iterable[Any], int], Iterator[Prediction]]:
        """What answers images, `top` labels each, one after another."""
        if self.nearest is not None:
            from mobilenets.deploy.nearest import gallery

            count, found = (
                self.nearest,
                gallery(Bundle.load(find_bundle(model)), None if self.among is None else str(self.among)),
            )
            return lambda images, _top: found.stream(images, count)
        return self.model(model).stream

    def model(self, model: Path) -> Model:
        """The network that answers."""
        engine = _engine(model, self.task, self.tap)
        doubts = Doubts.of(engine.card, self.reject_below, self.flag_unlike)
        path = located(model)
        if self.flag_unlike and is_bundle(path) and engines.for_path(path) == "torch":
            engine = engines.module("torch").TorchEngine(with_logits(Bundle.load(path)), 1)
        task = self._reading(engine.card)
        return Model(seen(engine, self.tta), doubts=doubts, task=task, faces=self.faces, tiles=self.tiles)

    def _reading(self, card: Card) -> Task | None:
        """The task that reads a network's answers otherwise than its card's does; None: as that does."""
        if self.gallery is None:
            return None
        task = tasks.of(card)
        if not isinstance(task, FromTable):
            raise UserError(f"--gallery is of places (--task geolocate): this network is for {card.task}")
        return task.among(str(self.gallery))


def moving(
    asked: Asked, model: Path, images: Sequence[Any], top: int, camera: str | None, out: Path | None
) -> Iterator[Prediction] | Written:
    """What is said of a video or a camera's frames, one after another. Raises `UserError`."""
    from mobilenets.deploy import video

    if len(images) + (camera is not None) != 1:
        raise UserError("give one video, or --camera, and nothing besides")
    if asked.nearest is not None:
        raise UserError("--nearest is of images, not of a video")
    drawn = out if out and is_video(out) else None
    if images:
        there(images[0])
    if images and drawn and drawn.exists() and drawn.samefile(images[0]):
        raise UserError(f"{drawn} is the video itself, which would be replaced: choose another --out")
    # Before the network is loaded: what can't be opened is said at once.
    opened = video.Video.file(Path(images[0])) if images else video.Video.camera(str(camera))
    said = (video.predicted if images else video.watched)(asked.model(model), opened, top, drawn)
    return said if drawn or not out else answers.write(said, out)


def by_cluster(asked: Asked, model: Path, images: Sequence[Path], top: int, address: str, out: Path) -> Written:
    """What is said of images by a Ray cluster, in a folder of Parquet files. Raises `UserError`."""
    from mobilenets.commands import predict_jobs

    ask = functools.partial(asked.of, model)
    job = predict_jobs.Job(ask, predict_jobs.described(model, asked, top), top, Path.cwd(), out)
    return predict_jobs.predict(job, sources(images), address)


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
