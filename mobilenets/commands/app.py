"""`mobilenets app`: networks as a page that runs them, on the device that opens it."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.deploy.app import ENGINE, Site, site
from mobilenets.deploy.hosting import Hosting, hosted, in_folder, tell
from mobilenets.deploy.names import called
from mobilenets.errors import UserError


@checked
def app(
    *networks: StrPath,
    out: StrPath | None = None,
    precision: str = "",
    engine: str = ENGINE,
    serve: bool = False,
    hosting: Annotated[Hosting | None, Parameter(name="*")] = None,
) -> Site | None:
    """Pack networks into a static site: camera and photos in, what the network says of them out, all on the device.

    Any web server can serve it, from any folder; opened once, it works offline, and can be installed. Nothing is sent
    anywhere, which the page's own policy enforces.

    Parameters
    ----------
    networks
        Runs, bundles' folders, .mnet files, names of packaged networks; NAME=PATH says what the page calls one.
    out
        The folder to write; with `serve`, it may be left out.
    precision
        float32 or float16, of the files that are made of float bundles; by default their own, float32.
    engine
        What runs them in the page: native, our own in WebAssembly, or onnxruntime-web, which npm fetches.
    serve
        Serve it until Ctrl-C, to try it: on a phone with --lan, its camera with --https.

    Returns
    -------
    Site
        `path`, `networks`, and `page_bytes`: what a browser fetches before a network's file; None without `out`.

    Raises
    ------
    UserError
        For what is no network, one that our engine can't run, a folder that is no site and would be replaced, a port
        that can't be had.

    Examples
    --------
    >>> import mobilenets
    >>> made = mobilenets.app("cifar10-v1-0.25", out="site")
    >>> made.page_bytes < 250_000
    True
    """
    folder = as_path(out)
    if folder is None and not serve:
        raise UserError("app needs --out, the folder to write, or --serve, to try it at once")
    given = [called(str(network)) for network in networks]
    names, paths = [name or "" for name, _ in given], [path for _, path in given]
    with tempfile.TemporaryDirectory() as temporary:
        made = site(paths, folder or Path(temporary) / "site", precision, engine, names)
        if serve:
            how = hosting or Hosting()
            with hosted(in_folder(made.path), how) as address, contextlib.suppress(KeyboardInterrupt):
                tell(address, how)
                threading.Event().wait()
    return made if folder else None
