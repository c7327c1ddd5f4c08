"""What a network says of a video, frame by frame, and the video with it drawn in; of a camera, as it runs. No torch.

PyAV reads and writes them. A camera's frames that come while one is being answered are skipped; a file's never.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.container
import av.error
from PIL import Image

from mobilenets import console, files
from mobilenets.deploy.predict import Model, Prediction
from mobilenets.errors import UserError
from mobilenets.model.images import MAX_PIXELS

CODECS = ("libx264", "mpeg4")  # to write with: the first that PyAV was built with
TICKS = Fraction(1, 60_000)  # of what is written: every usual frame rate in whole ones, and MPEG-4 takes no finer
SHORT = 0.01  # share of a file's frames that may not come before it passes for cut off
DEVICES = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}


@dataclass(frozen=True)
class Frame:
    """An upright RGB image; `seconds`: from the video's beginning; `pts`: the same in TICKS, as its file counts."""

    number: int
    seconds: float
    pts: int
    image: Image.Image


@dataclass(frozen=True)
class FramePrediction(Prediction):
    """What is said of frame number `frame`, counted from 0, at so many `seconds`."""

    frame: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"frame": self.frame, "seconds": round(self.seconds, 3), **super().to_json()}

    def __str__(self) -> str:
        return f"{self.image}\t{self.seconds:.3f} s\t{self.answer or self.error}"


class Video:
    """A file or a camera, open. `error`: why its frames ended too soon, if they did. Raises `UserError`."""

    def __init__(self, name: str, container: av.container.InputContainer) -> None:
        self.name, self.container, self.error = name, container, None
        self.told: Callable[[Any], None] = lambda _: None  # of packets that are no frames: the sound's
        if not container.streams.video:
            raise UserError(f"{name}: has no video")
        self.stream = container.streams.video[0]
        self.stream.thread_type = "AUTO"
        width, height = self.stream.width, self.stream.height
        if width * height > MAX_PIXELS:
            raise UserError(f"{name}: frames of {width}x{height} pixels, over the limit of {MAX_PIXELS:,}")
        self.sound = container.streams.audio[0] if container.streams.audio else None

    error: str | None

    @classmethod
    def file(cls, path: Path) -> Video:
        if not files.local(path).is_file():
            raise UserError(f"{path}: no such file")
        try:
            return cls(str(path), av.open(str(path)))
        except av.error.FFmpegError as e:
            raise UserError(f"{path}: not a video that can be read ({_said(e)})") from e

    @classmethod
    def camera(cls, which: str) -> Video:
        """By its number, or its device's own name."""
        kind, device = DEVICES.get(sys.platform, DEVICES["linux"])
        address = device.format(which) if which.isdigit() or sys.platform == "win32" else which
        try:
            return cls(f"camera {which}", av.open(address, format=kind))
        except (av.error.FFmpegError, ValueError) as e:
            raise UserError(f"camera {which}: can't be opened ({_said(e)}): is it there, and free?") from e

    def frames(self) -> Iterator[Frame]:
        """All of them, in order; of a damaged file, those before the damage, and `error` says that there were more."""
        number = 0
        wanted = [s for s in (self.stream, self.sound) if s is not None]
        try:
            for packet in self.container.demux(wanted):
                if packet.stream is self.sound:
                    if packet.dts is not None:
                        self.told(packet)
                    continue
                for frame in packet.decode():
                    yield self._frame(frame, number)
                    number += 1
        except (av.error.FFmpegError, OSError) as e:
            self.error = f"{self.name}: damaged after {number} frames ({_said(e)})"
        else:
            whole = self.stream.frames or self._told_frames()
            if whole - number > max(2, SHORT * whole):
                self.error = (
                    f"{self.name}: ends after {number} of its {'about ' * (not self.stream.frames)}{whole} frames"
                )

    def _told_frames(self) -> int:
        """About how many frames there are by the length that a file says it has; 0 where it doesn't."""
        rate = self.stream.average_rate
        return int((self.container.duration or 0) / av.time_base * rate) if rate else 0

    def _frame(self, frame: Any, number: int) -> Frame:
        rate = self.stream.average_rate or 25
        seconds = Fraction(number) / rate if frame.pts is None else frame.pts * frame.time_base
        image = frame.to_image()
        if frame.rotation:  # as phones turn them
            image = image.rotate(frame.rotation, expand=True)
        return Frame(number, float(seconds), round(seconds / TICKS), image)

    def newest(self) -> Iterator[Frame]:
        """A camera's, until Ctrl-C: each time, the newest that it has; those before it are skipped."""
        latest: deque[Frame] = deque(maxlen=1)
        came, ended = threading.Event(), threading.Event()

        def watch() -> None:
            try:
                for frame in self.frames():
                    latest.append(frame)
                    came.set()
                    if ended.is_set():
                        return
            except Exception as e:  # of this thread, told by the other
                self.error = f"{self.name}: can't be read any more ({e or type(e).__name__})"
            finally:
                ended.set()
                came.set()

        with _until_interrupted(ended, came):
            thread = threading.Thread(target=watch, daemon=True)
            thread.start()
            last = False
            while not last:
                came.wait()
                came.clear()
                last = ended.is_set()  # asked after `came` was cleared: what ends it later sets that again
                if latest:
                    yield latest.pop()
            thread.join(5)


@contextlib.contextmanager
def _until_interrupted(*events: threading.Event) -> Iterator[None]:
    """Ctrl-C sets the events, in the main thread: it ends a camera, it doesn't break off what is being written."""

    def end(*_: object) -> None:
        for event in events:
            event.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def watched(model: Model, video: Video, top: int, out: Path | None = None) -> Iterator[FramePrediction]:
    """What is said of a camera's frames, one at a time, until Ctrl-C."""

    def said() -> Iterator[tuple[Frame, FramePrediction]]:
        for frame in video.newest():
            pixels, size = model.prepare(frame.image)
            answer = model.answer(model.engine(pixels[None]), size, top)
            yield frame, _prediction(video, frame, Prediction("", answer))

    return _told(model, video, said(), out)


def predicted(model: Model, video: Video, top: int, out: Path | None = None) -> Iterator[FramePrediction]:
    """What is said of every frame of a video's file; with `out`, the video with it drawn in too, the sound as it was.

    A damaged one ends with a prediction whose `error` says so. Raises `UserError`.
    """
    waiting: deque[Frame] = deque()

    def noted() -> Iterator[Image.Image]:
        for frame in video.frames():
            waiting.append(frame)
            yield frame.image

    def said() -> Iterator[tuple[Frame, FramePrediction]]:
        for one in model.stream(noted(), top):
            frame = waiting.popleft()
            yield frame, _prediction(video, frame, one)

    return _told(model, video, said(), out)


def _prediction(video: Video, frame: Frame, said: Prediction) -> FramePrediction:
    return FramePrediction(f"{video.name}#{frame.number}", said.answer, said.error, frame.number, frame.seconds)


def _told(
    model: Model, video: Video, said: Iterable[tuple[Frame, FramePrediction]], out: Path | None
) -> Iterator[FramePrediction]:
    last = None
    with contextlib.ExitStack() as open_:
        open_.callback(video.container.close)
        writer = open_.enter_context(_written(out, video)) if out else None
        for frame, last in said:
            if writer and last.answer:
                writer.add(frame, model.task.draw(frame.image, last.answer))
            yield last
        if last is None:
            raise UserError(video.error or f"{video.name}: no frame of it can be read")
    if video.error:
        yield FramePrediction(video.name, None, video.error, last.frame + 1, last.seconds)


@contextlib.contextmanager
def _written(out: Path, video: Video) -> Iterator[Labelled]:
    with files.atomic_file(out) as tmp:
        writer = Labelled(tmp, out, video)
        try:
            yield writer
            writer.end()
        except av.error.FFmpegError as e:
            raise UserError(f"{out}: can't be written so ({_said(e)})") from e
        finally:
            writer.close()
    console.note(f"{out}: {console.many(writer.frames, 'frame')}")


class Labelled:
    """A video that is written, with the sound of another; it begins with the first frame, whose size it has."""

    def __init__(self, path: Path, called: Path, source: Video) -> None:
        self.path, self.called, self.source = path, called, source
        self.container: Any = None
        self.stream: Any = None
        self.waiting: list[Any] = []  # the sound that comes before the first frame
        self.last, self.frames = -1, 0
        source.told = self.waiting.append

    def add(self, frame: Frame, image: Image.Image) -> None:
        if self.container is None:
            self._begin(image)
        size = self.stream.width, self.stream.height
        over = {side - own for side, own in zip(image.size, size, strict=True)}
        fitted = image.crop((0, 0, *size)) if over <= {0, 1} else image.resize(size)
        drawn = av.VideoFrame.from_image(fitted)  # type: ignore[no-untyped-call]
        drawn.pts, drawn.time_base = max(frame.pts, self.last + 1), TICKS  # forward, whatever a camera's clock says
        self.last, self.frames = drawn.pts, self.frames + 1
        self.container.mux(self.stream.encode(drawn))

    def _begin(self, image: Image.Image) -> None:
        codec = next(c for c in CODECS if c in av.codecs_available)
        self.container = av.open(str(self.path), "w")
        self.stream = self.container.add_stream(codec, rate=self.source.stream.average_rate or 25)
        self.stream.width, self.stream.height = (max(2, side // 2 * 2) for side in image.size)  # colours are halved
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = TICKS
        if codec == "mpeg4":
            self.stream.codec_context.qmax = 5
        if self.source.sound is None:
            return
        sound = self.container.add_stream_from_template(self.source.sound)

        def copy(packet: Any) -> None:
            packet.stream = sound
            self.container.mux(packet)

        for packet in self.waiting:
            copy(packet)
        self.waiting.clear()
        self.source.told = copy

    def end(self) -> None:
        if self.container is not None:
            self.container.mux(self.stream.encode(None))

    def close(self) -> None:
        self.source.told = lambda _: None
        if self.container is not None:
            self.container.close()


def _said(e: Exception) -> str:
    return str(getattr(e, "strerror", None) or e).splitlines()[0][:200]
