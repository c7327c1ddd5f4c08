"""Requests that no honest client sends, as bytes on the line; each kind many times over, by a number."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import socket
import struct
import zlib
from collections.abc import Callable

from PIL import Image

PREDICT, INFER = "/v1/models/tiny:predict", "/v2/models/tiny/infer"


def request(path: str, body: bytes, kind: str = "image/jpeg", method: str = "POST", **headers: str) -> bytes:
    """As an honest client would write it; headers in lower case with _ for -."""
    own = {"content-length": str(len(body)), "content-type": kind} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    lines = "".join(f"{k}: {v}\r\n" for k, v in own.items())
    return f"{method} {path} HTTP/1.1\r\nhost: here\r\n{lines}\r\n".encode("latin-1") + body


def jpeg(rng: random.Random, side: int = 40) -> bytes:
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), rng.randbytes(side * side * 3)).save(out, "JPEG")
    return out.getvalue()


def huge(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def truncated(rng: random.Random) -> bytes:
    whole = jpeg(rng)
    return request(PREDICT, whole[: rng.randrange(1, len(whole) - 2)])


def flipped(rng: random.Random) -> bytes:
    data = bytearray(jpeg(rng))
    for _ in range(rng.randrange(1, 30)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return request(PREDICT, bytes(data))


def too_large(rng: random.Random) -> bytes:
    return request(PREDICT, b"", content_length=str(rng.choice([10**9, 10**15, 2**63, 2**64, 10**40])))


def odd_length(rng: random.Random) -> bytes:
    return request(PREDICT, b"x", content_length=rng.choice(["-1", "1e3", "+5", "", "0x10", "5, 6", "\u00b2"]))


def half_a_body(rng: random.Random) -> bytes:
    whole = request(PREDICT, jpeg(rng))
    return whole[: rng.randrange(10, len(whole) - 1)]


def bomb(rng: random.Random) -> bytes:
    return request(PREDICT, huge(rng.randrange(20_000, 2**31), rng.randrange(20_000, 2**31)), "image/png")


def rubbish(rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 400)) + b"\r\n\r\n"


def bad_chunks(rng: random.Random) -> bytes:
    size = rng.choice([b"zz", b"-1", b"ffffffffffffffffff", b"5;" + b"x" * 5000])
    return f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode() + size + b"\r\nabc\r\n"


def path_trick(rng: random.Random) -> bytes:
    name = rng.choice(
        ["../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/x", "tiny%00", "%ff%fe", "\u00e9", "a" * 5000, "{x}",
         "tiny/../tiny", "//tiny", "tiny:predict:predict", "C:\\x", "%", "%zz", "__class__", "${jndi:x}"]
    )  # fmt: skip
    how = rng.choice(["/v1/models/{}:predict", "/v1/models/{}", "/v2/models/{}/infer", "/{}", "/v2/models/{}/ready"])
    return request(how.replace("{}", name), b"{}", method=rng.choice(["POST", "GET"]))


def wrong_json(rng: random.Random) -> bytes:
    image = base64.b64encode(jpeg(rng)).decode()
    value = rng.choice(
        [None, [], {}, {"instances": None}, {"instances": []}, {"instances": {}}, {"instances": [1]}, 7, "x",
         {"instances": [{"b64": 5}]}, {"instances": [{"b64": "not base64!"}]}, {"instances": [{"b64": image}] * 1000},
         {"instances": [{"url": "http://127.0.0.1/"}]}, {"instances": [{"b64": image, "url": "x"}]},
         {"instances": [{"b64": image}], "top": rng.choice([0, -1, "5", 1.5, True, None, 10**30])},
         {"instances": [{"file": "/etc/passwd"}]}, {"instances": [[image]]}]
    )  # fmt: skip
    text = json.dumps(value)
    return request(PREDICT, rng.choice([text, text[: len(text) // 2], text + "]"]).encode(), "application/json")


def deep_json(rng: random.Random) -> bytes:
    depth = rng.randrange(1000, 100_000)
    body = rng.choice([b"[" * depth, b'{"a":' * depth, b"[" * depth + b"]" * depth, b"9" * depth, b"\xff" * 99])
    return request(rng.choice([PREDICT, INFER]), body, "application/json")


def wrong_tensor(rng: random.Random) -> bytes:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 32, 32, 3], "data": [0] * 3072}
    change = rng.choice(
        [{"shape": [1, 32, 32]}, {"shape": [10**12, 32, 32, 3]}, {"shape": [-1, 32, 32, 3]}, {"shape": [True]},
         {"shape": "x"}, {"datatype": "FP32"}, {"datatype": "BYTES", "shape": [1], "data": ["!!"]},
         {"data": [300] * 3072}, {"data": [0.5] * 3072}, {"data": [[1], [1, 2]]}, {"data": "x"}, {"data": None},
         {"name": "other"}, {"parameters": {"binary_data_size": 10**9}}, {"parameters": 5}, {"data": [None] * 3072},
         {"shape": [0, 32, 32, 3]}, {"data": [10**40] * 3072}]
    )  # fmt: skip
    outputs = rng.choice([None, [], [1], [{"name": "x"}], 3])
    body = json.dumps({"inputs": [tensor | change], "outputs": outputs}).encode()
    extra = {"inference_header_content_length": rng.choice(["-5", "x", "9" * 30, str(len(body) + 9)])}
    return request(INFER, body, "application/json", **(extra if rng.random() < 0.3 else {}))


def odd_head(rng: random.Random) -> bytes:
    return rng.choice(
        [request("/", b"", method="BREW"), request(PREDICT, b"x", method="GET"), request(PREDICT, b"x", method="PUT"),
         request(PREDICT, b"x", content_encoding="gzip"), request(PREDICT, b"x", "text/x-nothing"),
         request(PREDICT, b"x", x="y" * 100_000), b"GET / HTTP/9.9\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n",
         request(PREDICT, b"x", upgrade="websocket", connection="upgrade"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
         request(f"{PREDICT}?top=x", b"x"), request(f"{PREDICT}?top=-1", b"x"), b"\r\n" * 500,
         request(f"{PREDICT}?top={'9' * 99}", b"x"), request(PREDICT, b""), request("*", b""),
         request("http://elsewhere/", b"")]
    )  # fmt: skip


KINDS: tuple[Callable[[random.Random], bytes], ...] = (
    truncated, flipped, too_large, odd_length, half_a_body, bomb, rubbish, bad_chunks, path_trick, wrong_json,
    deep_json, wrong_tensor, odd_head,
)  # fmt: skip


def send(port: int, data: bytes, patience: float = 20.0) -> bytes:
    """What the server says to bytes after which the line is closed for writing; empty where it hangs up."""
    with socket.create_connection(("127.0.0.1", port), patience) as s, contextlib.suppress(ConnectionError):
        s.sendall(data)
        with contextlib.suppress(OSError):
            s.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(ConnectionError):
            while piece := s.recv(1 << 16):
                said += piece
        return said
    return b""
