"""An image from an address of the web, for a client who names it: of the open internet alone, bounded. No torch.

Who may say what a server fetches could make it ask its neighbours, which trust it. So the address that a connection
reached is looked at, whatever name it was called by and wherever a server sent us on to.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from typing import Any

from mobilenets.model.images import BadImage

CHUNK = 1 << 16


class _Plain(http.client.HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _check(self.sock)


class _Tls(http.client.HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _check(self.sock)


def _check(sock: socket.socket) -> None:
    if not allowed(sock.getpeername()[0]):
        sock.close()
        raise OSError("not an address of the open internet")


def allowed(address: str) -> bool:
    """Whether an IP address is of the open internet, not of this machine or its neighbours."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global


class _Http(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Plain, request)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Tls, request)


def image(url: str, most: int, seconds: float) -> bytes:
    """What lies at http:// or https://, at most so many bytes, in at most so many seconds. Raises `BadImage`.

    The reason isn't told: it would tell what there is behind the server.
    """
    refused = BadImage(f"{url[:200]}: can't be fetched")
    if not url.startswith(("http://", "https://")):
        raise refused
    opener = urllib.request.OpenerDirector()
    for handler in (_Http, _Https, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor,
                    urllib.request.HTTPDefaultErrorHandler):  # fmt: skip
        opener.add_handler(handler())
    until = time.monotonic() + seconds
    pieces: list[bytes] = []
    try:
        with opener.open(urllib.request.Request(url, headers={"User-Agent": "mobilenets"}), timeout=seconds) as answer:
            while piece := answer.read1(CHUNK):
                pieces.append(piece)
                if sum(map(len, pieces)) > most or time.monotonic() > until:
                    raise refused
    except urllib.error.HTTPError as e:
        e.close()  # it holds the connection
        raise refused from e
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise refused from e
    return b"".join(pieces)
