"""Make a finished run one of the networks that come with the package: scored on its test split, weights in 16 bits.

    python benchmarks/package_model.py runs/cifar10-v2 cifar10-v2 [EARLIER RUN...]

The score is of the 16-bit weights, as they ship. Of a network that was trained in several runs, the earlier ones are
named too, in their order: the card's command is all of theirs. Of files and folders, the card keeps the names alone.
"""

import json
import os
import re
import sys
from pathlib import Path

from mobilenets.data.open import of_card
from mobilenets.deploy import evaluate
from mobilenets.deploy.engines.torch import TorchEngine
from mobilenets.model import bundle
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Metric
from mobilenets.training import run as runs

FOLDERS = re.compile(r'(?<=[" ])(?!https?:)[\w./-]+/')  # of a path, in JSON


def main(run: str, name: str, *before: str) -> None:
    """Score the run's float bundle on what was held out, and store it under the package's models."""
    trained = Bundle.load(bundle.find_bundle(Path(run)))
    out = bundle.MODELS / name
    halved = trained.encoded("half").save(out)
    scores = evaluate.score(TorchEngine(halved, os.cpu_count() or 1), of_card(trained.card, None), "test")
    metric = Metric("top1", round(scores.top1, 4), scores.data, scores.split, scores.count)
    command = " && ".join(runs.recorded_command(Path(r)) for r in (*before, run))
    card = trained.card.replace(
        metrics=(*trained.card.metrics, metric),
        parent=trained.digest,
        licence="Apache-2.0",
        recipe={**trained.card.recipe, "command": command},
    )
    elsewhere = json.loads(FOLDERS.sub("", json.dumps(card.to_json())))
    Bundle(Card.from_json(elsewhere, name).replace(encodings=halved.card.encodings), halved.tensors).save(out)
    size = sum(p.stat().st_size for p in out.iterdir())
    print(f"{out}: {scores.top1:.2f}% of {scores.count} {scores.data} {scores.split} images, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
