"""A run's report: one HTML page with everything in it. No torch."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import io
import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mobilenets import cost, data, engines, files, plots, recipes
from mobilenets import predict as predicting
from mobilenets.bench import size_on_disk
from mobilenets.bundle import CARD, Card
from mobilenets.cost import Cost
from mobilenets.data import Data, Scan
from mobilenets.errors import UserError
from mobilenets.fit import CHOICE, REPORT, SCAN, STEPS
from mobilenets.images import BadImage
from mobilenets.run import CONFIG
from mobilenets.spec import Arch
from mobilenets.train import FLOAT, LOGS

if TYPE_CHECKING:
    from rich.console import RenderableType

TEMPLATE = "report.html"
METRICS = f"{LOGS}/metrics.csv"
# What each file must have for the page to be made from it.
NEEDED = {
    CONFIG: ("verb", "source", "budget", "engine", "precision", "threads", "recipe", "seed"),
    CHOICE: ("pick", "arch", "budget", "engine", "engine_version", "precision", "threads", "machine", "front",
             "candidates"),
    SCAN: ("source", "counts", "native_side"),
    STEPS: ("file", "top1", "latency_ms", "predicted_latency_ms", "size_bytes", "seconds", "steps"),
    f"{FLOAT}/{CARD}": ("digest",),
}  # fmt: skip
SAMPLES, MISTAKES = 12, 6
SEARCH_IMAGES, SEARCH_SECONDS = 1000, 20.0  # at most, in search of mistakes to show
THUMBNAIL, PIXELATED = 176, 64  # pixels; a smaller original is kept as it is and enlarged without smoothing
ROWS = 10  # of a list of worst classes or pairs
BYTES = {"int8": 1, "float32": 4}
UNITS = {
    "latency_ms": ("latency", "ms"), "size_mb": ("size", "MB"), "macs_m": ("mult-adds", "M"),
    "params_m": ("parameters", "M"), "memory_mb": ("activations", "MB"),
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """The page that was written, and what it had to do without."""

    path: Path
    size_bytes: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"report": str(self.path), "size_bytes": self.size_bytes, "notes": list(self.notes)}

    def __rich__(self) -> RenderableType:
        from rich.text import Text

        return Text("\n".join([f"report   {self.path}", *self.notes]))


def report(run: Path, *, root: Path | None = None) -> Report:
    """Write a finished run's report: RUN/report.html, one page with everything in it.

    Parameters
    ----------
    run
        Folder of a run that `mobilenets fit` finished.
    root
        Where local copies of named data sets are.
    """
    page = _Page.read(run)
    html = page.render(root)
    out = run / REPORT
    text = html.encode("utf-8", "replace")  # a file's name may hold what is no character
    with files.atomic_file(out) as tmp:
        tmp.write_bytes(text)
    return Report(out, len(text), tuple(page.notes))


# ---- reading -------------------------------------------------------------------------------------------------------


def _read(run: Path) -> dict[str, dict[str, Any]]:
    """A finished run's JSON files by name. Raises `UserError`."""
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; report needs the folder of a finished mobilenets fit")
    out: dict[str, dict[str, Any]] = {}
    for name, keys in NEEDED.items():
        path = run / name
        if not path.is_file():
            raise UserError(
                f"{run} is not a finished run: {name} is missing; report needs the folder of a finished mobilenets fit "
                "(one that was stopped goes on with --resume)"
            )
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, OSError) as e:
            raise UserError(f"{path}: not readable as JSON: {e}") from e
        absent = [k for k in keys if not isinstance(value, dict) or k not in value]
        if absent:
            raise UserError(f"{path}: not a file of a finished run: it has no {absent[0]!r}")
        out[name] = value
    return out


@dataclass
class _Page:
    """All that a page is made of; each method is a section's data."""

    run: Path
    config: dict[str, Any]
    choice: dict[str, Any]
    scan: dict[str, Any]
    result: dict[str, Any]
    card_json: dict[str, Any]
    card: Card
    cost: Cost
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, run: Path) -> _Page:
        got = _read(run)
        card_json = got[f"{FLOAT}/{CARD}"]
        page = cls(
            run,
            got[CONFIG],
            got[CHOICE],
            got[SCAN],
            got[STEPS],
            card_json,
            Card.from_json(card_json, str(run / FLOAT / CARD)),
            cost.count(Arch.from_json(got[CHOICE]["arch"])),
        )
        if not page.steps or page.shipped.get("confusion") is None:
            raise UserError(f"{run / STEPS}: not a file of a finished run: it has no scores of {page.file_name}")
        if np.shape(page.shipped["confusion"]) != (len(page.labels), len(page.labels)):
            raise UserError(f"{run / STEPS}: its confusion matrix is not of the card's {len(page.labels)} classes")
        return page

    @property
    def labels(self) -> tuple[str, ...]:
        return self.card.labels

    @property
    def steps(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = self.result["steps"]
        return steps

    @property
    def file_name(self) -> str:
        return Path(self.result["file"]).name

    @property
    def shipped(self) -> dict[str, Any]:
        """The step of the file to ship."""
        return next((s for s in self.steps if Path(s["path"]).name == self.file_name), {})

    @property
    def file(self) -> Path:
        """The shipped file, wherever the run's folder is now."""
        return self.run / self.file_name

    @property
    def confusion(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.shipped["confusion"], np.int64)

    def render(self, root: Path | None) -> str:
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"ms": ms, "mb": mb, "count": count, "short": lambda s: s[:16], "network": plots.network}
        html: str = environment.get_template(TEMPLATE).render(
            page=self,
            pick=self.choice["pick"],
            pick_title=plots.network(self.choice["pick"]),
            shipped=self.shipped,
            limits=self.limits(),
            why=self.why(),
            front=self.front(),
            best_epoch=self.card.recipe.get("best_epoch"),
            recipe=self.recipe(),
            classes=self.classes(),
            pairs=self.pairs(),
            right=int(np.trace(self.confusion)),
            interval=plots.wilson(self.shipped["top1"], self.shipped["count"]),
            samples=self.samples(root),
            scan=self.scanned(),
            shares=[(cost.TYPE_NAMES[k], *v) for k, v in self.cost.shares().items() if any(v)],
            bytes=BYTES[self.choice["precision"]],
            files=self.files(),
            command=self.command(),
            plots=self.plots(),
            now=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            rows=ROWS,
        )
        return html

    # ---- sections --------------------------------------------------------------------------------------------------

    def plots(self) -> dict[str, Any]:
        """Each figure as markup, which is safe: matplotlib escapes the text in it."""
        from markupsafe import Markup

        figures = {
            "pareto": (plots.pareto(self.choice), "ImageNet top-1 over measured latency of every network considered"),
            "steps": (plots.steps(self.steps), "Top-1 at each step from float to the exported file"),
            "confusion": (plots.confusion(self.confusion, self.labels), "Confusion matrix"),
            "shares": (plots.cost_shares(self.cost), "Share of macs and weights by layer type"),
            "layers": (plots.layers(self.cost), "Macs and activations of each layer"),
        }
        out: dict[str, Any] = {k: Markup(plots.svg(fig, title)) for k, (fig, title) in figures.items()}
        out["curves"] = None
        try:
            fig = plots.curves(self.run / METRICS, self.card.recipe.get("best_epoch"))
            out["curves"] = Markup(plots.svg(fig, "Loss and held-out top-1 by epoch"))
        except UserError as e:
            self.notes.append(f"the training curves were left out: {e}")
            out["no_curves"] = str(e)
        return out

    def limits(self) -> list[dict[str, Any]]:
        """Each limit of the budget beside what was measured: in the shipped file, where it can be."""
        measured = {**self.choice["pick"], "size_mb": self.shipped["size_bytes"] / 1e6}
        measured["latency_ms"] = self.shipped["latency_ms"]
        return [
            {"name": UNITS[k][0], "unit": UNITS[k][1], "limit": v, "value": measured[k], "met": measured[k] <= v}
            for k, v in self.choice["budget"].items()
        ]

    def why(self) -> list[str]:
        """In plain sentences: what was picked, from what, and what stood in the way of more accuracy."""
        pick, every = self.choice["pick"], self.choice["candidates"]
        fitting = [c for c in every if not self._missed(c)]
        kind = "extrapolated" if pick["imagenet_top1_source"] == "extrapolated" else "published"
        budget = " and ".join(f"{UNITS[k][0]} {v:g} {UNITS[k][1]}" for k, v in self.choice["budget"].items())
        if len(every) == 1:
            out = [f"{plots.network(pick)} was the only network to choose from."]
        elif len(fitting) == 1:
            out = [f"Of {len(every)} networks, {plots.network(pick)} is the only one that meets the budget ({budget})."]
        else:
            among = f"the {len(fitting)} of {len(every)} networks that meet the budget ({budget})"
            if not budget:
                among = f"all {len(every)} networks: no budget was set"
            top1 = f"{kind} ImageNet top-1, {pick['imagenet_top1']:.1f}%"
            out = [f"{plots.network(pick)} has the highest {top1}, of {among}."]
        better = [c for c in every if c["imagenet_top1"] > pick["imagenet_top1"] and self._missed(c)]
        if better:
            top = max(better, key=lambda c: c["imagenet_top1"])
            reasons = " and ".join(f"{UNITS[k][0]} {self._measured(top, k)}" for k in self._missed(top))
            many = f"{len(better)} more accurate networks are" if len(better) > 1 else "One more accurate network is"
            out.append(f"{many} over it; the best of them, {plots.network(top)}, has {reasons}.")
        side, most = self.scan["native_side"], max(c["resolution"] for c in every)
        if self.config.get("init"):
            out.append("The width is that of the bundle it was fine-tuned from: the resolution alone was chosen.")
        elif 0 < side <= most and most < 224:
            out.append(
                f"The images' short side is {side} pixels (median), so no resolution over {most} was considered."
            )
        unmeasured = sum(c["latency_ms"] is None for c in every)
        if unmeasured:
            out.append(f"{unmeasured} networks over another limit were not timed.")
        return out

    def _missed(self, c: Mapping[str, Any]) -> list[str]:
        """Which limits a candidate misses."""
        return [k for k, v in self.choice["budget"].items() if c[k] is not None and c[k] > v]

    def _measured(self, c: Mapping[str, Any], k: str) -> str:
        value = ms(c[k]) if k == "latency_ms" else f"{c[k]:.2f}"
        return f"{value} {UNITS[k][1]}"

    def front(self) -> list[dict[str, Any]]:
        """The Pareto front, fastest first, with the pick in it even where a bigger network hides it."""
        pick = self.choice["pick"]
        rows = self.choice["front"] if pick in self.choice["front"] else [*self.choice["front"], pick]
        return [
            {
                **c,
                "picked": c == pick,
                "top1": f"{'≈' * (c['imagenet_top1_source'] == 'extrapolated')}{c['imagenet_top1']:.1f}",
                "missed": " and ".join(UNITS[k][0] for k in self._missed(c)),
            }
            for c in sorted(rows, key=lambda c: c["latency_ms"])
        ]

    def recipe(self) -> list[tuple[str, str, str]]:
        """Name, value and meaning of every field, as they were when it trained."""
        meaning = {f.name: f.metadata["help"] for f in dataclasses.fields(recipes.Recipe)}
        given = {**self.config["recipe"], "seed": self.config["seed"]}
        return [(k, f"{v:g}" if isinstance(v, float) else str(v), meaning.get(k, "Seed of everything random."))
                for k, v in given.items()]  # fmt: skip

    def classes(self) -> list[dict[str, Any]]:
        """Classes from the worst: accuracy, images, and what each is most often taken for."""
        m = self.confusion
        out = []
        for i in np.flatnonzero(m.sum(1)):
            wrong = np.where(np.arange(len(m)) == i, 0, m[i])
            j = int(wrong.argmax())
            out.append({
                "label": self.labels[i],
                "count": int(m[i].sum()),
                "top1": 100 * float(m[i, i] / m[i].sum()),
                "taken_for": self.labels[j] if wrong[j] else "",
                "taken": int(wrong[j]),
            })  # fmt: skip
        return sorted(out, key=lambda c: c["top1"])

    def pairs(self) -> list[dict[str, Any]]:
        """The pairs of classes most often confused, in either direction."""
        m = self.confusion
        both = np.triu(m + m.T, 1)
        order = np.argsort(-both, axis=None, kind="stable")[:ROWS]
        cells = [(int(k) // len(m), int(k) % len(m)) for k in order]
        return [
            {"a": self.labels[i], "b": self.labels[j], "ab": int(m[i, j]), "ba": int(m[j, i])}
            for i, j in cells
            if both[i, j]
        ]

    def scanned(self) -> dict[str, Any]:
        known = {f.name for f in dataclasses.fields(Scan)}
        scan = Scan(**{k: v for k, v in self.scan.items() if k in known})
        counts = scan.counts
        classes = [(c, [per.get(c, 0) for per in counts.values()]) for c in self.labels]
        return {
            "splits": {k: sum(per.values()) for k, per in counts.items()},
            "classes": classes[:20],
            "more": max(0, len(classes) - 20),
            "findings": list(scan.findings()),
            "native_side": scan.native_side,
        }

    def files(self) -> list[dict[str, Any]]:
        """The files and bundles of each step that are still there: bytes and digest."""
        out = []
        for s in self.steps:
            path = self.run / Path(s["path"]).name
            if path.is_file():
                digest = f"sha256 {files.sha256(path)}"
            elif (path / CARD).is_file():
                digest = f"card {json.loads((path / CARD).read_bytes()).get('digest', '')}"
            else:
                continue
            out.append({
                "name": path.name + "/" * path.is_dir(),
                "size_bytes": size_on_disk(path),
                "digest": digest,
                "shipped": s is self.shipped,
            })  # fmt: skip
        return out

    def command(self) -> str:
        """The command that makes this run, as run.json has it: what differs from the defaults is spelt out."""
        c = self.config
        processes = self.card.recipe.get("processes", 1)
        start = ["torchrun", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
        words = [*start, "mobilenets", "fit", str(c["source"])]
        for k, v in c["budget"].items():
            words += [f"--max-{k.replace('_', '-')}", f"{v:g}"]
        for k, default in (("engine", "onnxruntime"), ("precision", "int8"), ("threads", 1), ("seed", 0)):
            if c[k] != default:
                words += [f"--{k}", str(c[k])]
        usual = "finetune" if c.get("init") else "modern"
        changed = {
            name: {k: v for k, v in c["recipe"].items() if recipe.to_json().get(k) != v}
            for name, recipe in recipes.RECIPES.items()
        }
        name = min(changed, key=lambda n: (len(changed[n]), n != usual))
        if name != usual:
            words += ["--recipe", name]
        for k, v in changed[name].items():
            words += [f"--{k.replace('_', '-')}", str(v)]
        if c.get("init"):
            words += ["--init", "BUNDLE"]
        if self.scan.get("damaged"):
            words.append("--skip-bad")
        return shlex.join([*words, "--out", str(self.run)])

    # ---- sample predictions ----------------------------------------------------------------------------------------

    def samples(self, root: Path | None) -> dict[str, Any]:
        """Held-out images with what the shipped file says of them, some mistakes first; or why there are none."""
        if not self.file.is_file():
            return self._no_samples(f"{self.file} is missing")
        try:
            engine = engines.load(self.file)
            d = data.of_card(engine.card, None, root)
            split = d.split(self.shipped["split"])
            found = self._search(engine, d)
        except UserError as e:
            return self._no_samples(str(e))
        wrong = [s for s in found if s["label"] != s["predicted"]]
        right = [s for s in found if s["label"] == s["predicted"]]
        shown = _varied(wrong, MISTAKES, "predicted")
        shown += _varied(right, SAMPLES - len(shown), "label")
        out = []
        for s in shown:
            try:
                uri, small = _thumbnail(split.rgb(s["index"], THUMBNAIL), engine.card.preprocess.crop)
            except BadImage:
                continue
            out.append({**s, "uri": uri, "small": small, "name": split.names[s["index"]]})
        mistakes = sum(s["label"] != s["predicted"] for s in out)
        return {"images": out, "mistakes": mistakes, "note": "" if out else "no held-out image could be read"}

    def _no_samples(self, reason: str) -> dict[str, Any]:
        self.notes.append(f"the sample predictions were left out: {reason}")
        return {"images": [], "mistakes": 0, "note": reason}

    def _search(self, engine: engines.Engine, d: Data) -> list[dict[str, Any]]:
        """Predictions for a seeded sample of the split, until there are mistakes enough to show; bounded in time."""
        split = d.split(self.shipped["split"])
        if not len(split):
            return []
        m = self.confusion
        expected = min(MISTAKES, int(m.sum() - np.trace(m)))
        rng = np.random.default_rng(d.seed)
        order = rng.permutation(len(split))
        errors = 1 - np.diag(m) / np.maximum(m.sum(1), 1)
        # The first few at random; then, in search of mistakes, classes that have some, the worst first.
        hard = sorted(order[2 * SAMPLES :], key=lambda i: -errors[split.targets[i]])
        order = np.array([*order[: 2 * SAMPLES], *hard][:SEARCH_IMAGES])
        out: list[dict[str, Any]] = []
        mistakes, end = 0, time.monotonic() + SEARCH_SECONDS
        results = predicting.stream(engine, order.tolist(), lambda i: split.pixels(i, engine.card.preprocess))
        for i, scores in results:
            if isinstance(scores, BadImage):
                continue
            true, best = int(split.targets[i]), int(scores.argmax())
            mistakes += true != best
            out.append({
                "index": i,
                "label": self.labels[true],
                "predicted": self.labels[best],
                "probability": 100 * float(scores[best]),
                "of_label": 100 * float(scores[true]),
            })  # fmt: skip
            enough = mistakes >= expected and len(out) >= 2 * SAMPLES
            if enough or time.monotonic() > end:
                break
        return out


def _varied(found: list[dict[str, Any]], most: int, by: str) -> list[dict[str, Any]]:
    """Up to `most` of `found`, taken in turn from its groups by `by`."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for s in found:
        groups.setdefault(s[by], []).append(s)
    rounds = max(map(len, groups.values()), default=0)
    return [g[i] for i in range(rounds) for g in groups.values() if i < len(g)][:most]


def _thumbnail(img: Image.Image, crop: float) -> tuple[str, bool]:
    """The square a network looks at, as a data URI, and whether it is so small that it is shown pixel by pixel."""
    side = max(1, round(min(img.size) * crop))
    left, top = (img.width - side) // 2, (img.height - side) // 2
    img = img.crop((left, top, left + side, top + side))
    small = side < PIXELATED
    out = io.BytesIO()
    if small:
        img.save(out, "PNG")
    else:
        shown = min(side, THUMBNAIL)
        img.resize((shown, shown), Image.Resampling.LANCZOS).save(out, "JPEG", quality=82)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}", small


# ---- numbers -------------------------------------------------------------------------------------------------------


def ms(v: float | None) -> str:
    """Milliseconds to three figures or three decimals, whichever is shorter."""
    if v is None:
        return ""
    return f"{v:.3f}" if v < 10 else f"{v:.2f}" if v < 100 else f"{v:,.0f}"


def mb(n: float) -> str:
    """Bytes as megabytes (10^6)."""
    return f"{n / 1e6:.2f}" if n >= 1e5 else f"{n / 1e6:.3f}"


def count(n: float) -> str:
    return f"{n:,.0f}"
