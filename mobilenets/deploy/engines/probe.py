"""The child process that tries a file: `python -m mobilenets.deploy.engines.probe ENGINE FILE NAME` (see `trial`)."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from mobilenets import files
from mobilenets.deploy import engines
from mobilenets.deploy.engines import trial
from mobilenets.errors import UnknownName, UserError
from mobilenets.model import child

MEMORY, TIMES = 512 << 20, 32  # bytes; and so many times the file's size
IMAGES = 2  # one alone, then together


def tried(name: str, path: Path, called: str, out: int = 1) -> int:
    """The exit code; a reason against the file, `called` as the user does, is written to the file descriptor `out`."""
    module = engines.module(name)
    seconds = trial.seconds(path)
    faulthandler.dump_traceback_later(trial.WAIT * seconds, exit=True)  # also when native code never comes back
    child.limit(CPU=int(time.process_time()) + 1 + seconds)
    if taken := child.memory():
        child.limit(AS=taken + MEMORY + TIMES * files.size_on_disk(path))
    try:
        engine = module.load(path, 1)
        images = np.random.default_rng(0).integers(0, 256, (IMAGES, *engine.card.preprocess.input_size, 3), np.uint8)
        engine(images[:1])
        engine(images)
        return 0
    except UserError as e:
        if isinstance(e, UnknownName) or isinstance(e.__cause__, UnknownName):
            return trial.STRANGE
        reason = str(e).replace(str(path), called)
    except MemoryError:
        reason = f"{called}: damaged: {name} takes more memory than it can need"
    except Exception as e:  # a runtime raises nearly anything
        reason = f"{called}: damaged: {name} can't run it ({type(e).__name__}: {e})"[:400]
    os.write(out, " ".join(reason.split()).encode(errors="backslashreplace"))
    return trial.REFUSED


if __name__ == "__main__":
    child.limit(CORE=0)
    told = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # runtimes print what they think of a file
    try:
        code = tried(sys.argv[1], Path(sys.argv[2]), sys.argv[3], told)
    except BaseException:
        traceback.print_exc()
        code = trial.FAILED
    os._exit(code)  # past the runtimes' clean-up, which can crash too
