"""One network, called by several threads, in forked processes, pickled, loaded a hundred times."""

import functools
import gc
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small import quantized

import mobilenets
from mobilenets.deploy import engines
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.deploy.predict import Model
from mobilenets.errors import UserError

QUICK = [n for n in engines.installed() if engines.runtime(n).runs_here and n not in ("executorch", "torch")]


@pytest.fixture(scope="module")
def bundle(make_bundle, pixels):
    return quantized(make_bundle("v1"), pixels)


@pytest.fixture
def load(bundle, tmp_path):
    """`load("litert", threads)`: an int8 network as that engine's file, loaded; PyTorch's is the bundle."""

    def made(name, threads=1):
        if name == "torch":
            return TorchEngine(bundle, threads)
        path = tmp_path / f"m{engines.runtime(name).suffix}"
        if not path.exists():
            engines.module(name).write(bundle, path, None)
        return engines.module(name).load(path, threads)

    return made


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [*QUICK, "torch"])
def test_four_threads_at_one_engine(load, pixels, name):
    engine = load(name)
    right = [engine(pixels[i : i + 3]) for i in range(4)]

    def ask(i):
        return all(same(engine(pixels[i : i + 3]), right[i]) for _ in range(8))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, [i % 4 for i in range(16)]))


@pytest.mark.sampled(6)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [*QUICK, "torch"])
def test_a_forked_process_answers_or_says_why_not(load, pixels, name, threads):
    if not hasattr(os, "fork"):
        pytest.skip("no processes are forked here")
    engine = load(name, threads)
    right = engine(pixels)

    def work(said):
        try:
            said.put("right" if same(engine(pixels), right) else "wrong")
        except UserError as e:
            said.put(str(e))

    context = multiprocessing.get_context("fork")
    said = context.Queue()
    process = context.Process(target=work, args=(said,), daemon=True)
    process.start()
    answer = said.get(timeout=60)
    process.join(60)
    if name == "openvino" or (threads == 2 and name not in ("tflm", "c")):
        assert answer.startswith(f"this process was forked after its {name} network was loaded")
    else:
        assert answer == "right"


def test_a_lock_that_is_held_while_a_process_is_forked_isnt_held_in_it(load, pixels):
    if not hasattr(os, "fork"):
        pytest.skip("no processes are forked here")
    engine = load("torch")
    with engine.turn():
        process = multiprocessing.get_context("fork").Process(target=engine, args=(pixels[:1],), daemon=True)
        process.start()
    process.join(60)
    assert process.exitcode == 0


def test_a_model_is_pickled_by_its_file(load, pixels, tmp_path, monkeypatch):
    load("onnxruntime")
    monkeypatch.chdir(tmp_path)
    model = mobilenets.load("m.onnx", threads=2)
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(model))
    assert [p.top for p in again.predict(pixels[:2])] == [p.top for p in model.predict(pixels[:2])]
    with pytest.raises(UserError, match="can't be pickled: it wasn't loaded from a file"):
        pickle.dumps(Model(model.engine))


def used():
    """Open files, threads, and megabytes of this process; skips where the system doesn't say."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system doesn't say")
    gc.collect()
    status = Path("/proc/self/status").read_text()
    memory = int(status.split("VmRSS:")[1].split()[0]) / 1024
    return len(os.listdir("/proc/self/fd")), int(status.split("Threads:")[1].split()[0]), memory  # noqa: PTH208


FEW = ("onnxruntime", "litert")  # of the others a hundred loads take long
LOADED = [pytest.param(n, marks=[pytest.mark.slow] * (n not in FEW)) for n in dict.fromkeys((*QUICK, "torch"))]


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADED)
def test_a_hundred_loads_leave_nothing_behind(load, pixels, name):
    one = functools.partial(pixels.__getitem__, slice(0, 1))
    for _ in range(10):
        load(name)(one())
    files, threads, memory = used()
    for _ in range(100):
        load(name)(one())
    after = used()
    assert after[0] <= files + 2
    assert after[1] <= threads + 2
    assert after[2] < memory + 30  # MB; a network is 1
    assert threading.active_count() < 50
