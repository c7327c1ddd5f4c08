import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mobilenets.commands.shards import shards
from mobilenets.errors import UserError
from mobilenets.training import distributed as processes

# `mobilenets` with BatchNorm over the images of all processes (PyTorch's own is for GPUs only), so that two processes
# compute what one does; in float64, since a few steps of small batches make a difference of 1e-7 one of 1e-2; and with
# a note of every image that was drawn.
SAME = """
import os, sys
import torch
import torch.distributed as dist
from torch.distributed.nn.functional import all_reduce
from mobilenets import cli
from mobilenets.model import module as model
from mobilenets.training import distributed as processes, learner, loader

def mean(t):
    return all_reduce(t) / dist.get_world_size() if dist.is_initialized() else t

def forward(self, x):
    if not self.training:
        return torch.nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
    m = mean(x.mean((0, 2, 3)))
    v = mean((x - m[:, None, None]).square().mean((0, 2, 3)))
    with torch.no_grad():
        n = x.numel() / x.shape[1] * processes.world()[0]
        self.running_mean.lerp_(m, self.momentum)
        self.running_var.lerp_(v * n / (n - 1), self.momentum)
    shape = (1, -1, 1, 1)
    return (x - m.view(shape)) * (self.weight * (v + self.eps).rsqrt()).view(shape) + self.bias.view(shape)

torch.nn.BatchNorm2d.forward = forward
build, normalize = model.build, learner.Learner.normalize
model.build = lambda *network: build(*network).double()
learner.Learner.normalize = lambda self, images: normalize(self, images).double()
get = loader.TrainImages.__getitem__

def noted(self, key):
    with open(f"{os.environ['SEEN']}/{processes.world()[1]}", "a") as f:
        print(*key, file=f)
    return get(self, key)

loader.TrainImages.__getitem__ = noted
sys.exit(cli.run(sys.argv[1:]))
"""
VARIABLES = (
    "WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID",
    "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NNODES", "SLURM_STEP_NUM_NODES", "SLURM_NTASKS_PER_NODE",
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_NODELIST", "SLURM_NODEID",
)  # fmt: skip
TORCHRUN = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_NNODES": "2",
    "SLURM_JOB_ID": "1234567", "SLURM_NODELIST": "node[07-08]", "SLURM_NODEID": "1",
}  # fmt: skip


@pytest.fixture
def variables(monkeypatch):
    """`variables(RANK="1")`: of the variables that say what processes there are, these alone."""

    def only(**values):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    yield only
    for name in ("MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS_PER_NODE"):  # as Lightning set them
        os.environ.pop(name, None)


@pytest.mark.parametrize(
    ("values", "world", "machines", "first"),
    [
        ({}, (1, 0), 1, True),
        (TORCHRUN, (8, 5), 2, False),
        ({**TORCHRUN, "RANK": "4", "LOCAL_RANK": "0"}, (8, 4), 2, True),
        (SRUN, (6, 4), 2, False),
        ({**SRUN, "SLURM_NNODES": "8", "SLURM_STEP_NUM_NODES": "3"}, (6, 4), 3, False),  # srun on a part of the job
        ({**SRUN, **TORCHRUN}, (8, 5), 2, False),  # torchrun on each machine, started by srun
        ({k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"}, (1, 0), 1, True),  # a batch script, not in srun
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, (1, 0), 1, True),
    ],
)
def test_who_else_there_is(variables, values, world, machines, first):
    variables(**values)
    assert (processes.world(), processes.machines(), processes.first_here()) == (world, machines, first)


def test_lightning_finds_the_same_processes_under_srun(variables):
    variables(**SRUN)
    found = processes.environment()
    assert (found.world_size(), found.global_rank(), found.local_rank(), found.node_rank()) == (6, 4, 1, 1)
    assert found.main_address == "node07"
    assert found.main_port == 15000 + 4567
    assert not found.auto_requeue
    found.validate_settings(num_devices=3, num_nodes=2)
    variables(**TORCHRUN)
    assert processes.environment() is None  # Lightning sees these itself


def test_processes_that_are_not_spread_evenly(variables):
    variables(**{**SRUN, "SLURM_NTASKS": "5"})
    with pytest.raises(UserError, match="5 processes on 2 machines: start equally many on each"):
        processes.machines()
    variables(WORLD_SIZE="two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two', not a number"):
        processes.world()


def test_without_others(variables):
    variables()
    value = {"a": 1}
    assert processes.from_rank_0(value) is value
    assert processes.environment().world_size() == 1  # Lightning isn't left to ask MPI


def command(script, *arguments):
    return [sys.executable, str(script), *map(str, arguments)]


def together(lines):
    """Several processes at once; all must end well."""
    running = [
        subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for line, env in lines
    ]
    for process in running:
        said = process.communicate(timeout=200)[1]
        assert process.returncode == 0, said


def by_srun(env):
    """What srun adds to the variables of two processes on this machine."""
    job = {
        "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0",
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_NODELIST": "localhost",
    }  # fmt: skip
    own = {k: v for k, v in env.items() if k not in VARIABLES}
    return [{**own, **job, "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r)} for r in range(2)]


def curve(out):
    with (out / "logs" / "metrics.csv").open(newline="") as f:
        return np.array([[float(r[k]) for k in ("train_loss", "val_loss", "val_top1")] for r in csv.DictReader(f)])


def seen(folder):
    """By epoch, the images that all processes drew."""
    drawn = {}
    for path in folder.iterdir():
        for line in path.read_text().splitlines():
            epoch, i = map(int, line.split())
            drawn.setdefault(epoch, []).append(i)
    return drawn


@pytest.mark.parametrize("kind", [pytest.param("torchrun", marks=pytest.mark.slow), "srun"])
def test_two_processes_learn_what_one_does_with_twice_the_batch(colours, tmp_path, kind):
    """From a folder with torchrun, from shards as srun starts it. Each image is seen once an epoch."""
    data, last = colours, 0
    if kind == "srun":
        data = shards(str(colours), tmp_path / "shards", shard_mb=0.015).out
        last = 72 % 32  # images that are left out of an epoch, shards or not
    script = tmp_path / "same.py"
    script.write_text(SAME)
    line = [
        "train", data, "--arch", "v1", "--alpha", "0.25", "--resolution", "32", "--batch", 32 if last else 24,
        "--workers", "0", "--epochs", "2", "--mixup", "0", "--ema", "0", "--optimizer", "sgd", "--lr", "0.02",
        "--training-precision", "float32",
    ]  # fmt: skip
    here = {k: v for k, v in os.environ.items() if k not in VARIABLES}
    env = {}
    for name in ("one", "two"):
        (tmp_path / f"seen {name}").mkdir()
        env[name] = {**here, "SEEN": str(tmp_path / f"seen {name}")}
    one = (command(script, *line, "--out", tmp_path / "one"), env["one"])
    two = [*line, "--out", tmp_path / "two"]
    if kind == "torchrun":
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        together([one, ([*start, *command(script, *two)[1:]], env["two"])])
    else:
        together([one, *((command(script, *two), rank) for rank in by_srun(env["two"]))])
    np.testing.assert_allclose(curve(tmp_path / "two"), curve(tmp_path / "one"), rtol=1e-5)
    both = seen(tmp_path / "seen two")
    assert sorted(both) == [0, 1]
    for epoch, images in seen(tmp_path / "seen one").items():
        assert sorted(both[epoch]) == sorted(images)
        assert len(set(images)) == len(images) == 72 - last
    assert len(list((tmp_path / "seen two").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_that_are_killed_go_on(write_colours, tmp_path):
    """In the middle of an epoch; both at once, as when a machine fails."""
    data = write_colours(tmp_path / "d", {f"{s}/{c}": 64 for s in ("train", "val") for c in ("red", "green", "blue")})
    steps = 48  # an epoch

    def start(out, *more):
        line = [
            sys.executable, "-m", "mobilenets", "train", str(data), "--out", str(out), "--arch", "v1", "--alpha",
            "0.25", "--resolution", "32", "--batch", "4", "--workers", "1", "--epochs", "4", *more,
        ]  # fmt: skip
        return [
            subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
            for env in by_srun(os.environ)
        ]

    def finish(running):
        for process in running:
            said = process.communicate(timeout=300)[1]
            assert process.returncode == 0, said

    finish(start(tmp_path / "whole"))
    running = start(tmp_path / "killed", "--checkpoint-minutes", "0")
    last, step = tmp_path / "killed" / "checkpoints" / "last.ckpt", 0
    while step <= steps or step % steps == 0:
        assert all(process.poll() is None for process in running)
        time.sleep(0.01)
        step = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
    for process in running:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    print(f"killed after step {step}")
    finish(start(tmp_path / "killed", "--resume"))
    weights = [(tmp_path / name / "float" / "weights.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    np.testing.assert_allclose(curve(tmp_path / "killed"), curve(tmp_path / "whole"), rtol=2e-5)
