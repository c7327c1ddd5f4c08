import os
import threading

import pytest

from mobilenets.deploy.engines.stderr import capture_stderr


def test_what_a_library_writes_is_gathered(capfd):
    with capture_stderr() as lines:
        os.write(2, b"one\ntwo \xff\n")
    os.write(2, b"three\n")
    assert lines == ["one", "two �"]
    assert capfd.readouterr().err == "three\n"


def test_stderr_is_back_after_an_error(capfd):
    said = []

    def fail():
        with capture_stderr() as lines:
            said.append(lines)
            os.write(2, b"said\n")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    os.write(2, b"later\n")
    assert said == [["said"]]
    assert capfd.readouterr().err == "later\n"


def test_one_thread_at_a_time(capfd):
    found = {}

    def work(i):
        for _ in range(20):
            with capture_stderr() as lines:
                os.write(2, f"{i}\n".encode())
            found.setdefault(i, []).extend(lines)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {i: [str(i)] * 20 for i in range(4)}
    assert capfd.readouterr().err == ""
