"""`mobilenets app`: networks as a page that runs them, on the device that opens it."""

from __future__ import annotations

from mobilenets.arguments import StrPath, as_path, checked
from mobilenets.deploy.app import Site, site


@checked
def app(*networks: StrPath, out: StrPath, precision: str = "") -> Site:
    """Pack networks into a static site: camera and photos in, what the network says of them out, all on the device.

    Any web server can serve it, from any folder; opened once, it works offline, and can be installed. Nothing is sent
    anywhere, which the page's own policy enforces.

    Parameters
    ----------
    networks
        Runs, bundles' folders, .mnet files, names of packaged networks.
    out
        The folder to write.
    precision
        float32 or float16, of the files that are made of float bundles; by default their own, float32.

    Returns
    -------
    Site
        `path`, `networks`, and `page_bytes`: what a browser fetches before a network's file.

    Raises
    ------
    UserError
        For what is no network, one that our engine can't run, a folder that is no site and would be replaced.

    Examples
    --------
    >>> import mobilenets
    >>> made = mobilenets.app("cifar10-v1-0.25", out="site")
    >>> made.page_bytes < 250_000
    True
    """
    return site(networks, as_path(out), precision)
