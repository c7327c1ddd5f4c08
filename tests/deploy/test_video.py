"""Videos and cameras: every frame answered, drawn in, the sound as it was; what is damaged, what is skipped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from small import smooth_images

import mobilenets
from mobilenets.deploy import predict, video
from mobilenets.deploy.engines import trial
from mobilenets.errors import UserError

FRAMES, RATE, SIDE = 24, 12, 64


@pytest.fixture(scope="module", autouse=True)
def _ours() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "check", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of 24 different frames, with sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as out:
        pictures = out.add_stream("libx264", rate=RATE)
        pictures.width, pictures.height, pictures.pix_fmt = SIDE + 2, SIDE, "yuv420p"
        sound = out.add_stream("aac", rate=16000)
        sound.layout = "mono"
        for n, image in enumerate(smooth_images(FRAMES, SIDE, 3)):
            wide = np.concatenate([image, image[:, :2]], 1)
            out.mux(pictures.encode(av.VideoFrame.from_ndarray(wide, "rgb24")))
            tone = np.sin(np.arange(16000 * n // RATE, 16000 * (n + 1) // RATE) / 9).astype(np.float32)
            heard = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
            heard.sample_rate, heard.pts, heard.time_base = 16000, 16000 * n // RATE, Fraction(1, 16000)
            out.mux(sound.encode(heard))
        out.mux(pictures.encode(None))
        out.mux(sound.encode(None))
    return path


def sound(path: Path) -> list[bytes]:
    with av.open(str(path)) as f:
        return [bytes(p) for p in f.demux(f.streams.audio[0]) if p.size]


def test_every_frame_is_answered_in_order(clip: Path, model: Path, command: Callable[..., Any]) -> None:
    ran = command("predict", model, clip, "--top", 2, "--json")
    assert ran.code == 0, ran.err
    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [r["frame"] for r in rows] == list(range(FRAMES))
    assert [r["seconds"] for r in rows] == [round(n / RATE, 3) for n in range(FRAMES)]
    assert rows[3]["image"] == f"{clip}#3"
    with av.open(str(clip)) as f:
        images = [frame.to_image() for frame in f.decode(video=0)]
    wanted = predict.load(model).predict(images, top=2)
    assert [r["top"] for r in rows] == [p.to_json()["top"] for p in wanted]
    line = command("predict", model, clip).out.splitlines()[6]
    assert line.startswith(f"{clip}#6\t0.500 s\t{wanted[6].top[0][0]} ")


def test_a_labelled_video(clip: Path, model: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "labelled.mp4"
    ran = command("predict", model, clip, "--out", out, "--json")
    assert (ran.code, len(ran.out.splitlines())) == (0, FRAMES), ran.err
    with av.open(str(out)) as f, av.open(str(clip)) as before:
        pictures = list(f.decode(video=0))
        assert f.streams.video[0].codec_context.name == "h264"
        assert [float(p.time) for p in pictures] == pytest.approx([n / RATE for n in range(FRAMES)], abs=1e-3)
        assert (pictures[0].width, pictures[0].height) == (SIDE + 2, SIDE)
        changed = [
            np.abs(a.to_ndarray(format="rgb24").astype(int) - b.to_ndarray(format="rgb24"))
            for a, b in zip(pictures, before.decode(video=0), strict=True)
        ]
    assert all(c[:14, :14].mean() > 20 for c in changed)  # the label
    assert np.mean([c[-16:].mean() for c in changed]) < 8  # and nothing below it
    assert sound(out) == sound(clip)
    assert [p.name for p in tmp_path.iterdir()] == ["labelled.mp4"]


def test_rows_into_a_file_and_the_same_from_python(clip: Path, model: Path, tmp_path: Path) -> None:
    written = mobilenets.predict(model, clip, out=tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert (written.images, len(rows), rows[-1]["frame"]) == (FRAMES, FRAMES, FRAMES - 1)
    assert mobilenets.predict(model, clip, out=tmp_path / "x.mkv").images == FRAMES
    assert [p.to_json() for p in mobilenets.predict(model, str(clip))] == rows


def test_a_video_that_is_cut_off(clip: Path, model: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size * 2 // 3])
    ran = command("predict", model, cut, "--out", tmp_path / "labelled.mp4")
    assert ran.code == 1
    rows = ran.out.splitlines()
    assert 3 < len(rows) < FRAMES
    *wrote, first, line = ran.err.splitlines()  # a long path takes a line of its own
    assert " ".join(wrote) == f"{tmp_path / 'labelled.mp4'}: {len(rows)} frames"
    assert first == "mobilenets: 1 image could not be read:"
    assert f"{cut}: " in line
    assert f"after {len(rows)} " in line
    with av.open(str(tmp_path / "labelled.mp4")) as f:
        assert len(list(f.decode(video=0))) == len(rows)


def test_a_video_with_damage_in_it(clip: Path, model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = np.frombuffer(clip.read_bytes(), np.uint8)
    for n in range(12):
        hurt = data.copy()
        at = rng.integers(0, len(data), 60)
        hurt[at] = rng.integers(0, 256, len(at))
        (tmp_path / f"{n}.mp4").write_bytes(hurt.tobytes())
        with contextlib.suppress(UserError):  # any other fault is one of ours
            assert all(p.answer for p in mobilenets.predict(model, tmp_path / f"{n}.mp4", top=1)[:-1])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("absent.mp4",), "absent.mp4: no such file"),
        (("text.mp4",), "text.mp4: not a video that can be read"),
        (("sound.mp4",), "sound.mp4: has no video"),
        (("CLIP", "CLIP"), "give one video, or --camera, and nothing besides"),
        (("CLIP", "--camera", "0"), "give one video, or --camera, and nothing besides"),
        (("CLIP", "--draw", "x"), "--out labelled.mp4 is a video"),
        (("CLIP", "--nearest", "3"), "--nearest is of images"),
        (("--camera", "99"), "camera 99: can't be opened"),
        (("CLIP", "--out", "x.gif"), "predictions go into .jsonl"),
    ],
)
def test_what_is_wrong_is_one_line(
    clip: Path, model: Path, command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], line: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video")
    with av.open("sound.mp4", "w") as out, av.open(str(clip)) as f:
        copied = out.add_stream_from_template(f.streams.audio[0])
        for packet in f.demux(f.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
    assert line in command("predict", model, *[str(clip) if o == "CLIP" else o for o in options]).line
    assert {p.name for p in tmp_path.iterdir()} == {"text.mp4", "sound.mp4"}


def test_a_camera_skips_what_comes_too_fast(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file plays the camera: 24 frames, 20 ms apart, for a network that takes 100 ms."""
    network = predict.load(model)
    engine = network.engine.answer
    monkeypatch.setattr(network.engine, "answer", lambda x: time.sleep(0.1) or engine(x))
    plain = video.Video.frames

    def paced(self: video.Video) -> Iterator[video.Frame]:
        for frame in plain(self):
            time.sleep(0.02)
            yield frame

    monkeypatch.setattr(video.Video, "frames", paced)
    monkeypatch.setattr(video.Video, "camera", classmethod(lambda cls, _: cls.file(clip)))
    said = list(video.watched(network, video.Video.camera("0"), 1, tmp_path / "seen.mp4"))
    numbers = [p.frame for p in said]
    assert numbers == sorted(set(numbers))
    assert 3 <= len(numbers) < 15
    assert numbers[-1] == FRAMES - 1
    with av.open(str(tmp_path / "seen.mp4")) as f:
        times = [float(frame.time) for frame in f.decode(video=0)]
    assert times == pytest.approx([n / RATE for n in numbers], abs=2e-3)


def test_ctrl_c_ends_a_camera_and_keeps_what_was_seen(
    clip: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = video.Video.frames

    def endless(self: video.Video) -> Iterator[video.Frame]:
        (first, *_) = plain(self)
        for n in range(10_000):
            time.sleep(0.01)
            yield video.Frame(n, n / 100, n * 600, first.image)

    monkeypatch.setattr(video.Video, "frames", endless)
    monkeypatch.setattr(video.Video, "camera", classmethod(lambda cls, _: cls.file(clip)))
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    said = list(video.watched(predict.load(model), video.Video.camera("0"), 1, tmp_path / "seen.mp4"))
    with av.open(str(tmp_path / "seen.mp4")) as f:
        assert len(list(f.decode(video=0))) == len(said) > 3


def test_what_is_predicted_does_not_replace_its_own_source(
    clip: Path, model: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    own = tmp_path / "own.mp4"
    own.write_bytes(clip.read_bytes())
    assert "is the video itself" in command("predict", model, own, "--out", own).line
    assert own.read_bytes() == clip.read_bytes()
    photo = tmp_path / "a.jpg"
    Image.fromarray(smooth_images(1, SIDE)[0]).save(photo)
    before = photo.read_bytes()
    ran = command("predict", model, photo, "--draw", tmp_path)
    assert (ran.code, "is the image itself" in ran.err) == (2, True)
    assert photo.read_bytes() == before


def test_a_cut_off_video_that_does_not_count_its_frames(
    clip: Path, model: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    """By the length that it says it has, as Matroska's do."""
    whole = tmp_path / "whole.mkv"
    with av.open(str(clip)) as read, av.open(str(whole), "w") as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(read.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    assert command("predict", model, whole).code == 0
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    ran = command("predict", model, cut)
    assert ran.code == 1
    assert "cut.mkv" in ran.err
    assert len(ran.out.splitlines()) < FRAMES
