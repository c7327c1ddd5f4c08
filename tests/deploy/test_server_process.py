"""The server as its processes: what hostile clients, signals and kills do to it."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hostile
import pytest

from mobilenets.arch import zoo
from mobilenets.deploy.engines import trial
from mobilenets.deploy.engines.onnxruntime import version
from mobilenets.deploy.server import run
from mobilenets.deploy.server.settings import Settings
from mobilenets.deploy.writers.onnx import onnx_model
from mobilenets.errors import UserError
from mobilenets.model.bundle import random_bundle

PROGRAM = (sys.executable, "-m", "mobilenets")
PHOTO = hostile.jpeg(random.Random(1))


class Running:
    """A server in processes of its own, its log in a file."""

    def __init__(self, model: Path, folder: Path, *options: object, program: Sequence[str] = PROGRAM) -> None:
        trial.remember(model, "onnxruntime", version())
        self.log = folder / "log"
        line = [*program, "serve", f"tiny={model}", "--port", "0"]
        with self.log.open("wb") as out:
            self.process = subprocess.Popen([*line, *map(str, options)], stdout=out, stderr=out)
        self.port = int(self.wait(lambda: self.events("serving"))[0]["address"].rpartition(":")[2])
        self.wait(self.answers)

    def wait(self, seen: Callable[[], Any], seconds: float = 60.0) -> Any:
        until = time.monotonic() + seconds
        while not (found := seen()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.02)
        return found

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["event"] == name]

    def answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask() == 200
        return False

    def ask(self) -> int:
        """The status of an honest request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request("POST", hostile.PREDICT, PHOTO, {"Content-Type": "image/jpeg"})
            return connection.getresponse().status

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.end()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes share a socket")
def test_each_process_has_a_socket_of_the_address_and_no_other_server_takes_it_too(tmp_path: Path) -> None:
    several = Settings((("tiny", tmp_path),), port=0, workers=3)
    with run._bound(several) as sockets:
        assert len({sock.fileno() for sock in sockets}) == 3
        (port,) = {sock.getsockname()[1] for sock in sockets}
        other = dataclasses.replace(several, port=port)
        with pytest.raises(UserError, match=f"port {port}"), run._bound(other):
            pass


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """V1 .25-32 of random weights, which are had in a moment."""
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(onnx_model(random_bundle(zoo.arch("v1", 0.25, 32, 10))))
    return path


@pytest.fixture(scope="module")
def running(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two workers; the tests of it go from what leaves it as it is to its end."""
    folder = tmp_path_factory.mktemp("server")
    server = Running(model, folder, "--workers", 2, "--threads", 1, "--batch", 4, "--receive-timeout", 0.7)
    with contextlib.closing(server):
        yield server


def attack(server: Running, requests: int, seed: int, clients: int) -> Counter[str]:
    """Hostile requests from several clients at once; what came of them, by status, "" where the server hung up."""
    said: Counter[str] = Counter()
    wrong: list[str] = []

    def client(number: int) -> None:
        for n in range(number, requests, clients):
            rng = random.Random(seed + n)
            kind = hostile.KINDS[n % len(hostile.KINDS)]
            answer = hostile.send(server.port, kind(rng))
            status = answer[9:12].decode() if answer.startswith(b"HTTP/1.1 ") else ""
            said[status] += 1
            if b"Traceback" in answer or b'File "' in answer or status.startswith("5") or (answer and not status):
                wrong.append(f"{kind.__name__} {seed + n}: {answer[:300]!r}")

    threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
    return said


def workers(server: Running) -> list[int]:
    found = []
    for p in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = p.read_text().rpartition(")")
            line = (p.parent / "cmdline").read_bytes()
            if int(rest.split()[1]) == server.process.pid and b"spawn_main" in line:
                found.append(int(name.split()[0]))
    return sorted(found)


def metrics(server: Running) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def growth(server: Running, processes: list[int], seconds: float) -> float:
    """The processes' memory after so long beside that after a third, while 8 clients ask, honestly and not."""
    until = time.monotonic() + seconds

    def client(n: int) -> None:
        while time.monotonic() < until:
            rng = random.Random(n)
            hostile.send(server.port, rng.choice([hostile.truncated, hostile.wrong_json, hostile.flipped])(rng))
            assert server.ask() == 200
            n += 8

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    time.sleep(seconds / 3)
    before = sum(map(resident_mb, processes))
    for t in threads:
        t.join()
    return sum(map(resident_mb, processes)) / before


def resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_hostile_requests(running: Running) -> None:
    said = attack(running, 300, 0, 4)
    assert sum(said.values()) == 300
    assert {"400", "404", "413", "415"} <= set(said)
    assert running.ask() == 200
    assert running.events("a fault of ours") == []


def test_clients_that_are_too_slow_are_hung_up_on(running: Running) -> None:
    """Nothing sent; a head that doesn't end, a byte at a time; a body that stops."""
    head = hostile.request(hostile.PREDICT, PHOTO)
    begun = time.monotonic()
    lines = [socket.create_connection(("127.0.0.1", running.port), 20) for _ in range(3)]
    lines[2].sendall(head[: len(head) - 100])
    with contextlib.suppress(ConnectionError):
        for n in range(40):
            lines[1].sendall(head[n : n + 1])
            time.sleep(0.05)
    assert running.ask() == 200
    answers = []
    for line in lines:
        with line, contextlib.suppress(ConnectionError):
            answers.append(line.recv(9))
    assert answers[-1] == b"HTTP/1.1 "
    assert time.monotonic() - begun < 10
    assert running.wait(lambda: [r["status"] for r in running.events("request") if r.get("reason") == "slow"]) == [408]


def test_an_idle_connection_is_used_again(running: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=30)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("POST", hostile.PREDICT, PHOTO, {"Content-Type": "image/jpeg"})
            assert connection.getresponse().read().startswith(b'{"model"')
            time.sleep(0.5)
        sock = connection.sock
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        assert connection.sock is sock


def test_load_takes_no_more_memory(running: Running) -> None:
    """For moments: that there is no leak of whole requests. Ten minutes of it are a slow test."""
    assert growth(running, workers(running), 1.5) < 1.2


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_worker_that_is_killed_loses_its_own_requests_alone(running: Running) -> None:
    lost: list[Exception] = []
    answered: list[int] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                answered.append(running.ask())
            except (OSError, http.client.HTTPException) as e:
                lost.append(e)

    clients = [threading.Thread(target=client) for _ in range(4)]
    for t in clients:
        t.start()
    gone, stays = workers(running)
    running.wait(lambda: len(answered) > 10)
    os.kill(gone, signal.SIGKILL)
    seen = len(answered)
    running.wait(lambda: len(answered) > seen + 10)  # the other one goes on
    running.wait(lambda: len(workers(running)) == 2 and gone not in workers(running))
    stop.set()
    for t in clients:
        t.join()
    assert len(lost) <= len(clients), lost
    assert set(answered) == {200}
    assert stays in workers(running)
    assert metrics(running).count("mobilenets_queue_depth 0.0") == 1


def test_what_is_under_way_is_finished(running: Running) -> None:
    """The last test of this server."""
    statuses: list[int] = []
    asking = [threading.Thread(target=lambda: statuses.append(running.ask())) for _ in range(6)]
    half = socket.create_connection(("127.0.0.1", running.port), 20)
    whole = hostile.request(hostile.PREDICT, PHOTO)
    half.sendall(whole[:-10])
    for t in asking:
        t.start()
    running.wait(lambda: len(statuses) >= 2)
    running.process.send_signal(signal.SIGTERM)
    half.sendall(whole[-10:])
    assert half.recv(100).startswith(b"HTTP/1.1 200")
    half.close()
    assert running.process.wait(60) == 0
    for t in asking:
        t.join()
    assert running.lines()[-1]["event"] == "stopped"


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_process_that_is_stuck_is_started_again_and_all_end_with_who_started_them(
    model: Path, tmp_path: Path
) -> None:
    """With four seconds' patience in the place of twenty; and however the first one ends."""
    patient = "import sys; from mobilenets.deploy.server import processes; processes.SILENT = 4.0; "
    patient += "from mobilenets.cli import main; main()"
    program = [sys.executable, "-c", patient]
    with contextlib.closing(Running(model, tmp_path, "--workers", 2, program=program)) as server:
        server.wait(lambda: len(server.events("Application startup complete.")) == 2)  # one that starts has longer
        stuck, other = workers(server)
        os.kill(stuck, signal.SIGSTOP)
        server.wait(lambda: len(found := workers(server)) == 2 and stuck not in found)
        assert other in workers(server)
        both = workers(server)
        server.process.kill()
        server.process.wait(60)
        until = time.monotonic() + 30
        while any(Path(f"/proc/{p}").exists() for p in both):
            assert time.monotonic() < until
            time.sleep(0.05)


@pytest.mark.slow  # it waits 13 s
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process")
def test_a_process_that_is_stuck_does_not_keep_the_server_from_ending(model: Path, tmp_path: Path) -> None:
    with contextlib.closing(Running(model, tmp_path, "--workers", 2, "--timeout", 1)) as server:
        os.kill(workers(server)[0], signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


@pytest.mark.slow
def test_ten_thousand_hostile_requests(model: Path, tmp_path: Path) -> None:
    with contextlib.closing(Running(model, tmp_path, "--workers", 2, "--receive-timeout", 2)) as server:
        said = attack(server, 10_000, 1000, 16)
        assert sum(said.values()) == 10_000
        assert server.ask() == 200
        assert server.events("a fault of ours") == []
        assert server.end() == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_of_load_take_no_more_memory(model: Path, tmp_path: Path) -> None:
    with contextlib.closing(Running(model, tmp_path, "--workers", 2, "--quiet")) as server:
        assert growth(server, [server.process.pid, *workers(server)], 600) < 1.05
