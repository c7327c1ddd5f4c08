"""The web server for one visitor: who gets an answer, and who can reach it."""

from __future__ import annotations

import http.client
import socket
import ssl
import urllib.parse
from pathlib import Path

import numpy as np
import pytest

from mobilenets.deploy import hosting
from mobilenets.deploy.hosting import Hosting, hosted, in_folder
from mobilenets.errors import UserError


def asked(
    address: str, path: str = "", method: str = "GET", body: bytes | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """What is answered to one request; `path`: from the address on, or from the root, where it begins with a slash."""
    where = urllib.parse.urlsplit(address)
    assert where.hostname is not None
    if where.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            where.hostname, where.port, context=context
        )
    else:
        connection = http.client.HTTPConnection(where.hostname, where.port, timeout=5)
    connection.request(method, path if path.startswith("/") else where.path + path, body)
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "site" / "sub").mkdir(parents=True)
    (tmp_path / "site" / "index.html").write_text("hello")
    (tmp_path / "site" / "sub" / "a.js").write_text("1")
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "site"


def test_only_who_has_the_token_gets_an_answer(folder: Path) -> None:
    with hosted(in_folder(folder), Hosting()) as address:
        status, body, headers = asked(address)
        assert (status, body) == (200, b"hello")
        assert headers["Referrer-Policy"] == "no-referrer"
        assert asked(address, "sub/a.js")[2]["Content-Type"] == "text/javascript"
        for path in ("/", "/index.html", "/favicon.ico", "/wrong/index.html", "//index.html", "/" + "x" * 5000):
            assert asked(address, path)[0] == 404, path
        for path in ("../secret", "%2e%2e/secret", "sub/../../secret", "sub", "..\\secret", "/etc/passwd"):
            assert asked(address, path)[0] == 404, path
        assert asked(address, method="PUT", body=b"x")[0] == 501


def test_what_is_sent_has_a_limit() -> None:
    taken: list[bytes | None] = []

    def answer(_path: str, sent: bytes | None) -> bytes:
        taken.append(sent)
        return b"ok"

    with hosted(answer, Hosting()) as address:
        assert asked(address, "table", "POST", b"x" * 1000)[0] == 200
        assert asked(address, "/no/table", "POST", b"x")[0] == 404
        where = urllib.parse.urlsplit(address)
        assert where.port is not None
        for size in ("2000000", "-1", "many"):
            with socket.create_connection(("127.0.0.1", where.port), timeout=5) as s:
                s.sendall(f"POST {where.path}table HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
                assert b" 413 " in s.recv(100)
    assert taken == [b"x" * 1000]


def test_it_is_this_machines_alone_unless_it_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hosted(in_folder(folder), Hosting()) as address:
        assert address.startswith("http://127.0.0.1:")
    monkeypatch.setattr(hosting, "own_address", lambda: "127.0.0.2")
    with hosted(in_folder(folder), Hosting(lan=True)) as address:
        assert address.startswith("http://127.0.0.2:")
        assert asked(address)[0] == 200
    with pytest.raises(OSError, match="refused"):
        asked(address)  # it is closed with the block


def test_https(folder: Path) -> None:
    pytest.importorskip("cryptography")
    with hosted(in_folder(folder), Hosting(https=True)) as address:
        where = urllib.parse.urlsplit(address)
        assert where.port is not None
        with socket.create_connection(("127.0.0.1", where.port)):  # who says nothing holds up nobody
            assert asked(address)[1] == b"hello"


def test_a_port_that_is_taken(folder: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with (
            pytest.raises(UserError, match="another --port"),
            hosted(in_folder(folder), Hosting(port=s.getsockname()[1])),
        ):
            pass
    with pytest.raises(UserError, match="another --port"), hosted(in_folder(folder), Hosting(port=70000)):
        pass


def test_a_camera_reads_the_code() -> None:
    pytest.importorskip("segno")
    cv2 = pytest.importorskip("cv2")
    address = "https://192.168.1.20:8080/abcdefghijklmnop/"
    lines = [line for line in hosting.qr(address).splitlines() if line]
    halves = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}  # white above and below
    rows = np.array([[halves[c] for c in line] for line in lines], np.uint8).transpose(0, 2, 1)
    image = np.kron(255 * rows.reshape(-1, rows.shape[2]), np.ones((8, 8), np.uint8))
    assert cv2.QRCodeDetector().detectAndDecode(image)[0] == address
