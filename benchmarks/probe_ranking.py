"""Whether a linear probe's accuracy ranks networks as fine-tuning does: Kendall's tau over the candidates at hand.

    python benchmarks/probe_ranking.py flowers.zip OUT --seconds 60 --candidates v2-1.0@128,v1-0.25@224

A candidate is weights, as --init takes them, at a resolution. Each is probed (the cross-validated accuracy that `fit`
ranks by) and fine-tuned for the same time by the recipe `finetune`, its epoch chosen on a tenth of train and scored on
the data's val. Candidates that are in OUT/probe_ranking.csv are skipped. --processor-time: as in fine_tuning.py.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from fine_tuning import OWN, count_processor_time, opened, read, tuned
from scipy.stats import kendalltau

from mobilenets import console, files, tasks
from mobilenets.deploy import evaluate
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.model.convert import starts
from mobilenets.training import probing
from mobilenets.training import trainer as train

COLUMNS = ("data", "seconds", "candidate", "seed", "probe_top1_percent", "test_top1_percent", "epochs", "took_s")


def measured(a: argparse.Namespace, candidate: str, rows: Sequence[Mapping[str, str]]) -> tuple[str, ...] | None:
    """The row of a candidate; None where `rows` have it."""
    name, _, side = candidate.rpartition("@")
    a.resolution, init = int(side), starts.opened(name)
    title = f"{train.initial_arch(init, a.resolution).title} from {Path(name).stem if Path(name).is_file() else name}"
    setting = (Path(a.source).stem, str(a.seconds), title, str(a.seed))
    if any(tuple(r[c] for c in COLUMNS[:4]) == setting for r in rows):
        return None
    d, out = opened(a, a.seed), a.out / f"run-{candidate.replace('/', '-')}"
    task, since = tasks.find("classify"), time.monotonic()
    headed = probing.with_head(init, train.initial_arch(init, a.resolution), d, task, a.seed)
    assert headed is not None
    made, epochs = tuned(d, init, OWN, a, a.seed, out)
    top1 = evaluate.score(TorchEngine(made, 2), d, "test").value
    took = time.monotonic() - since
    return *setting, f"{headed.probe.score:.2f}", f"{top1:.2f}", str(epochs), f"{took:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--candidates", required=True, help="weights@resolution, with commas between")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processor-time", action="store_true")
    a = parser.parse_args()
    if a.processor_time:
        count_processor_time()
    a.folds, a.per_class, a.test_images, path = 0, None, None, a.out / "probe_ranking.csv"
    for candidate in a.candidates.split(","):
        console.step(candidate)
        row = measured(a, candidate, read(path))
        rows = [*map(tuple, (r.values() for r in read(path))), *filter(None, [row])]
        with files.atomic_file(path) as tmp, tmp.open("w", newline="") as f:
            csv.writer(f).writerows([COLUMNS, *rows])
    rows = read(path)
    t = console.table("", ["candidate", "probe %", "fine-tuned %"], left=("candidate",))
    for r in sorted(rows, key=lambda r: -float(r["probe_top1_percent"])):
        t.add_row(r["candidate"], r["probe_top1_percent"], r["test_top1_percent"])
    console.note(t)
    probes, finals = ([float(r[c]) for r in rows] for c in COLUMNS[4:6])
    console.note(f"Kendall's tau {kendalltau(probes, finals).statistic:.2f} over {len(rows)} candidates")


if __name__ == "__main__":
    main()
