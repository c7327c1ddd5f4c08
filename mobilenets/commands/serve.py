"""`mobilenets serve`: networks behind HTTP."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from mobilenets.arguments import StrPath, checked
from mobilenets.errors import UserError


@checked
def serve(
    *models: StrPath,
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int | None = None,
    threads: int | None = None,
    batch: int | None = None,
    max_waiting: int = 256,
    max_images: int = 64,
    max_body_mb: float = 16.0,
    max_pixels: int = 50_000_000,
    timeout: float = 30.0,
    receive_timeout: float = 10.0,
    token_file: StrPath | None = None,
    allow_urls: bool = False,
    aligned: str | None = None,
    app: bool = False,
    quiet: bool = False,
) -> None:
    """Serve networks over HTTP until SIGTERM or Ctrl-C; what is under way then is finished.

    `POST /v1/models/NAME:predict` takes an image's bytes, or JSON with several in base64; `/v2` is KServe's protocol,
    for Triton's and KServe's clients; `/docs` says all there is to ask, `/` is a page with an upload, `/healthz`,
    `/readyz` and `/metrics` are for who runs it. A network whose file is replaced is loaded again.

    Parameters
    ----------
    models
        Exported files, bundles, runs, names of networks that come with the package; NAME=PATH says what one is called.
    host
        Address to serve at: 0.0.0.0 is all of this machine's, for whoever reaches it.
    port
        Its port; 0: any that is free, which the first line of the log tells.
    workers
        Processes: one for each core, and 8 at most, if left out. One that ends loses its own requests alone, and is
        started again.
    threads
        Threads that decode and run, in each process; as many as give each core one, if left out.
    batch
        Images of all requests together in one call at most; as many as pay, which is measured, if left out.
    max_waiting
        Images that may wait, in each process; who comes then is told to come again (429).
    max_images
        Images in one request.
    max_body_mb
        Megabytes of one request's body.
    max_pixels
        Pixels of one image.
    timeout
        Seconds until an answer.
    receive_timeout
        Seconds for a request's headers, and for its body, which has one more for each 16 kB; then it is hung up on.
    token_file
        File of a token that requests must bear ("Authorization: Bearer ..."); /healthz, /readyz and / need none.
    allow_urls
        Fetch images from addresses of the open internet that requests name.
    aligned
        Of a network of faces: the template by which they come aligned.
    app
        Also a page, at /app/, that runs the networks on the device that opens it, as `mobilenets app` writes it: it
        gives the networks themselves, bundles or .mnet files, to whoever opens it.
    quiet
        Log what needs somebody to look at it, not each request.

    Returns
    -------
    None
        When it was stopped.

    Raises
    ------
    UserError
        For a network that can't be loaded, an address that is taken, numbers that can't be.
    """
    from mobilenets.deploy.names import named
    from mobilenets.deploy.server.run import serve as run
    from mobilenets.deploy.server.settings import Settings, usual_workers

    networks = named(map(str, models))
    token = _token(Path(token_file)) if token_file else ""
    if app and token:
        raise UserError(
            "--app gives the networks to whoever opens its page, and --token-file wants a token: leave out one of them"
        )
    workers = usual_workers() if workers is None else workers
    with _site(dict(networks)) if app else contextlib.nullcontext() as site:
        run(
            Settings(
                networks, host, port, workers, threads, batch, max_waiting, max_images, max_body_mb, max_pixels,
                timeout, receive_timeout, token, allow_urls, aligned, quiet, site,
            )
        )  # fmt: skip


@contextlib.contextmanager
def _site(networks: Mapping[str, Path]) -> Iterator[Path]:
    """A folder with the page of these networks, as long as it is served. Raises `UserError` for what no page runs."""
    from mobilenets.deploy.app import site

    with tempfile.TemporaryDirectory(prefix="mobilenets-app-") as folder:
        yield site([*networks.values()], Path(folder) / "app", names=[*networks]).path


def _token(path: Path) -> str:
    """The token in a file. Raises `UserError`."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: no token can be read there: {e}") from e
    if not token or len(token.split()) != 1:
        raise UserError(f"{path}: a token is one word of letters and digits")
    return token
