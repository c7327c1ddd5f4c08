"""What a server is told when it starts; it goes to each of its processes. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mobilenets import processor
from mobilenets.errors import UserError

MOST = 8  # processes, if nobody says how many: each takes memory for a network and for Python


def usual_workers() -> int:
    """A process for each core, since Python itself runs on one core in each."""
    return min(processor.cores(), MOST)


@dataclass(frozen=True)
class Settings:
    """Raises `UserError` for numbers that can't be.

    `models`: (name, path) of each network. `threads`: that run them, in each process; None: all cores together.
    `batch`: images in one call at most; None: as many as pay, measured when a network is loaded. `max_waiting`: images
    that may wait; `max_images`: of one request; `max_body_mb`, `max_pixels`: of one request, of one image; `timeout`:
    seconds until an answer; `receive_timeout`: for a request's head, and for its body. `token`: what requests must
    bear, if anything. `allow_urls`: fetch images from addresses of the web. `aligned`: the template that faces come
    aligned by. `app`: the folder of a page that runs the networks where it is opened.
    """

    models: tuple[tuple[str, Path], ...]
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    threads: int | None = None
    batch: int | None = None
    max_waiting: int = 256
    max_images: int = 64
    max_body_mb: float = 16.0
    max_pixels: int = 50_000_000
    timeout: float = 30.0
    receive_timeout: float = 10.0
    token: str = ""
    allow_urls: bool = False
    aligned: str | None = None
    quiet: bool = False
    app: Path | None = None

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "batch", "max_waiting", "max_images", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
        for name in ("max_body_mb", "timeout", "receive_timeout"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name):g}")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port is from 0 to 65535, not {self.port}")

    @property
    def body_bytes(self) -> int:
        return int(self.max_body_mb * 1e6)

    @property
    def own_threads(self) -> int:
        """Of one process."""
        return self.threads or max(1, processor.cores() // self.workers)
