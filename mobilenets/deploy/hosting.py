"""A web server for one visitor: pages on this machine's own address or its network's, behind a token. No torch."""

from __future__ import annotations

import contextlib
import datetime
import hmac
import http
import http.server
import io
import ipaddress
import secrets
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from mobilenets import console
from mobilenets.errors import UserError

TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".mjs": "text/javascript",
    ".json": "application/json", ".wasm": "application/wasm", ".svg": "image/svg+xml", ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}  # fmt: skip
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address has the token in it
    "Cache-Control": "no-store",
    # So that a page's clock is fine, and its workers may share memory.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
MOST_BYTES = 1_000_000  # of what a page may send
PATIENCE_SECONDS = 30.0  # with a visitor that doesn't go on
DAYS = 30  # that a certificate of ours is good for
NOBODY = "192.0.2.1"  # an address that nobody has (RFC 5737): nothing is sent there

Answer = Callable[[str, bytes | None], bytes | None]


@dataclass(frozen=True)
class Hosting:
    """Where a page is served."""

    lan: bool = field(
        default=False, metadata={"help": "Open it to the whole local network, to phones; else to this machine alone."}
    )
    https: bool = field(
        default=False,
        metadata={"help": "By a certificate made for this once, which browsers warn of: for cameras, and for --lan."},
    )
    port: int = field(default=0, metadata={"help": "The port; 0: any that is free."})


def own_address() -> str:
    """This machine's address in its local network. Raises `UserError` where it has none."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((NOBODY, 9))
            return str(s.getsockname()[0])
    except OSError as e:
        raise UserError(f"this machine is in no network that a phone could reach it by ({e})") from e


def qr(address: str) -> str:
    """An address as a code for a phone's camera, in characters of a terminal."""
    import segno

    out = io.StringIO()
    segno.make(address, error="l").terminal(out, compact=True)
    return out.getvalue()


def tell(address: str, how: Hosting) -> None:
    """Say where a page is, and who can reach it."""
    if how.lan:
        console.note(qr(address))
    console.note(address)
    if how.lan:
        console.note("open to everyone in this network who has this address; Ctrl-C closes it")
    else:
        console.note("open to this machine alone (a phone needs --lan); Ctrl-C closes it")


def in_folder(folder: Path) -> Answer:
    """Answers with the files of a folder, and of no other place."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return lambda path, sent: found[path].read_bytes() if sent is None and path in found else None


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A visitor who goes away, or speaks another protocol, is nobody's fault."""


@contextlib.contextmanager
def hosted(answer: Answer, how: Hosting) -> Iterator[str]:
    """Serve what `answer` gives for a path and what was sent there, None for nothing; yields the address.

    Only visitors with the token in it get an answer. Raises `UserError` for a port that can't be had.
    """
    token = secrets.token_urlsafe(12)
    flying: set[int] = set()  # threads that are answering
    landed = threading.Condition()
    host = own_address() if how.lan else "127.0.0.1"

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = PATIENCE_SECONDS
        protocol_version = "HTTP/1.1"
        server_version, sys_version = "mobilenets", ""

        def do_GET(self) -> None:
            self.give(None)

        def do_POST(self) -> None:
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > MOST_BYTES:
                self.close_connection = True
                self.send_error(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
                return
            self.give(self.rfile.read(int(size)))

        def give(self, sent: bytes | None) -> None:
            with landed:
                flying.add(threading.get_ident())
            try:
                self.told(sent)
            finally:
                with landed:
                    flying.discard(threading.get_ident())
                    landed.notify_all()

        def told(self, sent: bytes | None) -> None:
            given, _, path = self.path.partition("?")[0].removeprefix("/").partition("/")
            known = hmac.compare_digest(given.encode(), token.encode())
            body = answer(path or "index.html", sent) if known else None
            self.send_response(http.HTTPStatus.NOT_FOUND if body is None else http.HTTPStatus.OK)
            kind = TYPES.get(PurePosixPath(path or "index.html").suffix, "application/octet-stream")
            for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body or b""))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    try:
        server = _Server(("" if how.lan else host, how.port), Handler)
    except (OSError, OverflowError) as e:
        raise UserError(f"port {how.port} can't be had: {e}; choose another --port, or 0 for any that is free") from e
    with server:
        if how.https:
            # The handshake is the visitor's thread's, so that one who is slow at it holds up nobody.
            server.socket = _context(host).wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http{'s' * how.https}://{host}:{server.server_port}/{token}/"
        finally:
            server.shutdown()
            thread.join()
            with landed:  # the last answer may be the one that ended it
                landed.wait_for(lambda: not flying, PATIENCE_SECONDS)


def _context(host: str) -> ssl.SSLContext:
    """TLS by a certificate for this address, made now and kept nowhere."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mobilenets")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:  # ssl reads files alone; nobody else may read this folder
        path = Path(folder) / "both.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + made.public_bytes(serialization.Encoding.PEM)
        )
        context.load_cert_chain(path)
    return context
