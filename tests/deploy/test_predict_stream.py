"""Answers as a stream, images read while others are computed."""

import itertools
import time

import numpy as np
import pytest

from mobilenets.deploy import predict
from mobilenets.model.images import BadImage


class Echo:
    """An engine that says which number is written in an image's first pixel."""

    def __init__(self, concurrent=True, seconds=0.0):
        self.concurrent, self.seconds = concurrent, seconds
        self.running = self.most = 0
        self.batches = []

    def __call__(self, images):
        self.running += 1
        self.most = max(self.most, self.running)
        self.batches.append(len(images))
        time.sleep(self.seconds)
        self.running -= 1
        return {"number": images[:, 0, 0, :1].astype(np.float32)}


def number(i):
    if i % 7 == 3:
        raise BadImage(f"{i} is bad")
    time.sleep(0.002 * (i % 5 == 0))  # so that threads finish out of turn
    return np.full((2, 2, 3), i % 256, np.uint8)


@pytest.mark.parametrize("concurrent", [True, False])
@pytest.mark.parametrize("cores", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 8, 100])
def test_a_stream_is_in_order(concurrent, cores, count):
    engine = Echo(concurrent, 0.001)
    got = list(predict.stream(engine, range(count), number, batch=8, cores=cores))
    assert [i for i, _ in got] == list(range(count))
    for i, answer in got:
        assert str(answer) == f"{i} is bad" if i % 7 == 3 else answer["number"].tolist() == [[i]]
    assert max(engine.batches, default=0) <= 8
    if not concurrent:
        assert engine.most <= 1


@pytest.mark.parametrize("cores", [1, 3])
def test_a_stream_reads_no_further_ahead_than_it_must(cores):
    taken = itertools.count()
    endless = (next(taken) for _ in itertools.repeat(None))
    out = predict.stream(Echo(), endless, number, batch=8, cores=cores)
    for done in range(1, 200):
        next(out)
        ahead = next(taken) - done  # counting takes a number itself
        taken = itertools.count(ahead + done)
        assert ahead <= 8 * (2 * cores + 2)
    out.close()


def test_a_stream_left_early_stops_its_threads():
    import threading

    before = threading.active_count()
    out = predict.stream(Echo(), itertools.count(), number, cores=4)
    next(out)
    assert threading.active_count() > before
    out.close()
    assert threading.active_count() == before
