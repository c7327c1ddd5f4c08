"""What a repository on the Hugging Face Hub says of a bundle: its README.md, metadata and words. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from mobilenets import console
from mobilenets.arch import cost
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card, Metric
from mobilenets.training.fitted import Step

# The Hub's own words for what is known here by others: licences, tasks, data sets, metrics.
LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "gpl-3.0", "lgpl-3.0", "mpl-2.0", "unlicense",
)  # fmt: skip
PIPELINES = {
    "classify": "image-classification",
    "attributes": "image-classification",
    "geolocate": "image-classification",
    "embed": "image-feature-extraction",
    "features": "image-feature-extraction",
}
DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist"}
METRICS = {"top1": "accuracy"}
LABELS_SHOWN = 20


def model_card(bundle: Bundle, repository: str, shipped: Sequence[Step] = ()) -> str:
    """README.md of the bundle in `repository` ("user/name"), with the files of its run that go there too."""
    card = bundle.card
    head = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in _metadata(card, repository))
    address, name = f"hf://{repository}", repository.partition("/")[2]
    parts = [
        f"---\n{head}---",
        f"# {name}",
        f"{card.arch.title}, {card.precision}: {_purpose(card)}. Made with mobilenets; `card.json` has all that is "
        "known of it.",
        _table(("", ""), _facts(bundle)),
        f"## Use\n\n```sh\npip install mobilenets\nmobilenets predict {address} photo.jpg\n```",
        f'```python\nimport mobilenets\n\nmodel = mobilenets.load("{address}")\n'
        'print(model.predict(["photo.jpg"])[0])\n```',
    ]
    if shipped:
        rows = [
            (f"`{PurePath(s.path).name}`", s.engine, s.precision, console.megabytes(s.size_bytes), *_scored(s, card))
            for s in shipped
        ]
        columns = ("file", "runtime", "precision", "MB", "score", "latency ms, one image, where it was made")
        parts.append(f"## Files that run\n\n{_table(columns, rows)}")
    parts.append(f"## How it was trained\n\n{_training(card)}")
    return "\n\n".join(parts) + "\n"


def _metadata(card: Card, repository: str) -> list[tuple[str, Any]]:
    """The front matter, in order. JSON is YAML too, whatever is in the texts."""
    licence = card.licence.lower()
    found: list[tuple[str, Any]] = []
    if licence in LICENCES:
        found.append(("license", licence))
    elif licence:
        found += [("license", "other"), ("license_name", re.sub(r"[^a-z0-9.]+", "-", licence).strip("-") or "other")]
    found.append(("library_name", "mobilenets"))
    if card.task in PIPELINES:
        found.append(("pipeline_tag", PIPELINES[card.task]))
    found.append(("tags", ["mobilenets", "mobilenet", card.arch.name, card.precision]))
    if known := _dataset(card.data.get("source", "")):
        found.append(("datasets", [known]))
    if card.metrics and card.task in PIPELINES:
        results = [_result(m, PIPELINES[card.task]) for m in card.metrics]
        found.append(("model-index", [{"name": repository.partition("/")[2], "results": results}]))
    return found


def _result(m: Metric, pipeline: str) -> dict[str, Any]:
    name = _source(m.data)
    value = round(m.value / 100, 6) if m.unit == "%" else m.value
    return {
        "task": {"type": pipeline},
        "dataset": {"name": name, "type": _dataset(m.data) or "imagefolder", "split": m.split},
        "metrics": [{"type": METRICS.get(m.name, m.name), "name": m.name, "value": value}],
    }


def _purpose(card: Card) -> str:
    if not card.labels:
        return f"it gives {', '.join(card.outputs)} of an image"
    shown = ", ".join(map(_plain, card.labels[:LABELS_SHOWN]))
    more = f" and {len(card.labels) - LABELS_SHOWN} more" if len(card.labels) > LABELS_SHOWN else ""
    if card.head.ops[-1].kind == "sigmoid":
        return f"it says which of {len(card.labels)} tags hold for an image ({shown}{more})"
    return f"it tells {len(card.labels)} classes of images apart ({shown}{more})"


def _facts(bundle: Bundle) -> list[tuple[str, ...]]:
    card, counted = bundle.card, cost.count(bundle.card.arch)
    size = sum(t.nbytes for t in bundle.tensors.values())
    return [
        ("input", dict(card.facts())["input"]),
        ("multiply-adds", f"{counted.macs / 1e6:.1f} M"),
        ("parameters", f"{counted.params / 1e6:.2f} M"),
        ("size", f"{console.megabytes(size)} MB"),
        *((m.name, f"{m.value:.2f}{m.unit}, {_source(m.data)} {m.split}, {m.count} images") for m in card.metrics),
        ("licence", card.licence or "not stated"),
    ]


def _scored(step: Step, card: Card) -> tuple[str, str]:
    name = card.metrics[0].name if card.metrics else ""
    score = step.scores.get(name)
    said = f"{name} {score:.2f}{card.metrics[0].unit}" if isinstance(score, int | float) else ""
    return said, "" if step.latency_ms is None else console.ms(step.latency_ms)


def _training(card: Card) -> str:
    counts = ", ".join(f"{n} {split}" for split, n in card.data.get("counts", {}).items())
    said = []
    command = str(card.recipe.get("command", ""))
    if command and not command.startswith("("):  # else it was no command
        said.append(f"```sh\n{_plain(command, False)}\n```")
    if source := _source(card.data.get("source", "")):
        said.append(f"On {_plain(source)}" + (f", {counts} images." if counts else "."))
    if teacher := (card.recipe.get("teacher") or {}).get("name"):
        said.append(f"It learned from {_plain(_source(teacher))}.")
    made = ", ".join(f"{k} {v}" for k, v in card.versions.items())
    return "\n\n".join([*said, f"{card.created}, {made}."])


def _dataset(source: str) -> str:
    """What the Hub calls a set, named or in a folder or zip of its name; empty where it isn't known."""
    return DATASETS.get(PurePath(source).stem, "")


def _source(source: str) -> str:
    """What data or a teacher is called: of a path, not where it lay."""
    return source if "://" in source else PurePath(source).name


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str, markup: bool = True) -> str:
    """A text on one line, that ends neither a cell nor a block of code, and is no HTML."""
    line = console.plain(" ".join(text.split()))
    return line.replace("|", "\\|").replace("<", "&lt;") if markup else line.replace("```", "")
