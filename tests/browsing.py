"""Chromium, driven: a page of a folder on this machine's own address, what it says, what it asks for."""

from __future__ import annotations

import contextlib
import functools
import http.server
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NODE = Path(__file__).parents[1] / ".venv" / "node" / "node_modules"  # by `make browser`
PHONE, DESKTOP = (390, 844), (1280, 800)


def chromium() -> str:
    """The program; the test is skipped, and says so, where there is none, or nothing to drive it by."""
    pytest.importorskip("playwright", reason="no playwright: pip install 'mobilenets[dev]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium: make browser")
    return found


def node_module(path: str) -> Path:
    """A file of npm's, of `make browser` or beside; the test is skipped where there is none."""
    for root in (NODE, *(parent / "node_modules" for parent in Path(__file__).parents)):
        if (root / path).exists():
            return root / path
    pytest.skip(f"no {path.partition('/')[0]} of npm's: make browser")


@contextlib.contextmanager
def served(folder: Path, asked: list[str] | None = None) -> Iterator[str]:
    """A folder's address, as any web server gives it; `asked`: gets what comes in."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *said: object) -> None:
            if asked is not None:
                asked.append(str(said))

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@contextlib.contextmanager
def browser(camera: Path | None = None, arguments: Sequence[str] = ()) -> Iterator[Any]:
    """Playwright's Browser; `camera`: a .y4m that it sees over and over."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    seen = [f"--use-file-for-fake-video-capture={camera}"] if camera else []
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=["--no-sandbox", *fake, *seen, *arguments])
        try:
            yield found
        finally:
            found.close()


@dataclass
class Visit:
    """A page, what it asked for, and what went wrong in it."""

    page: Any
    asked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def elsewhere(self, home: str) -> list[str]:
        """Requests that leave the machine, or the site."""
        return [url for url in self.asked if not url.startswith((home, "blob:", "data:"))]


@contextlib.contextmanager
def visit(browser: Any, size: tuple[int, int] = DESKTOP, **options: Any) -> Iterator[Visit]:
    """A page in a profile of its own; `options`: of Playwright's contexts."""
    width, height = size
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    made = Visit(context.new_page())
    context.on("request", lambda request: made.asked.append(request.url))  # of workers too
    made.page.on("console", lambda said: made.wrong.append(said.text) if said.type in ("error", "warning") else None)
    made.page.on("pageerror", lambda error: made.wrong.append(str(error)))
    try:
        yield made
    finally:
        context.close()


def write_video(path: Path, pictures: Sequence[Image.Image], rate: int = 30) -> Path:
    """Pictures of one size, of even sides, as frames of a .y4m."""
    width, height = pictures[0].size
    with path.open("wb") as f:
        f.write(f"YUV4MPEG2 W{width} H{height} F{rate}:1 Ip A1:1 C420jpeg\n".encode())
        for picture in pictures:
            y, u, v = (np.asarray(plane) for plane in picture.convert("YCbCr").split())
            halves = (
                np.asarray(Image.fromarray(p).resize((width // 2, height // 2), Image.Resampling.BOX)) for p in (u, v)
            )
            f.write(b"FRAME\n" + y.tobytes() + b"".join(h.tobytes() for h in halves))
    return path
