"""The command line: one line per verb. A verb's function is its interface, its docstring the help; it is imported when
called, so `--help` is quick.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib.util
import inspect
import io
import json
import os
import sys
import typing
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from mobilenets import __version__
from mobilenets.console import plain
from mobilenets.errors import Missing, UserError, needed_by, unknown

VERBS = {
    "fit": (
        "fit:fit",
        "Data and budget -> the best network, trained, quantized, exported, measured.",
    ),
    "choose": ("choose:choose", "Measure all networks here; pick the best within a budget."),
    "list": ("list:list_networks", "Every network, its published accuracy and exact cost."),
    "cost": ("cost:cost", "Macs, params, memory of a network, layer by layer."),
    "import": (
        "import_weights:import_weights",
        "Weights from torchvision, timm, Keras, TensorFlow -> a bundle.",
    ),
    "fetch": ("fetch:fetch", "Published weights -> this machine, or a folder for another."),
    "explain": (
        "explain:explain",
        "A network made understandable: blocks, shapes, where the cost sits.",
    ),
    "reproduce": (
        "reproduce:reproduce",
        "The papers' tables: printed beside counted, errata named.",
    ),
    "data check": ("check_data:check_data", "What is wrong with images, labels and boxes."),
    "shards": ("shards:shards", "A large data set as tar files that stream, with an index."),
    "recipes": (
        "recipes:recipes",
        "Training recipes, each with its command, duration and score.",
    ),
    "train": ("train:train", "Train one network."),
    "sweep": (
        "sweep:sweep",
        "Train the grid of widths and resolutions; accuracy against cost, drawn.",
    ),
    "compare": ("compare:compare", "Networks of the same macs, trained alike: which makes the most of them."),
    "tune": ("tune:tune", "Find the batch size and the learning rate to train with."),
    "distill": (
        "distill:distill",
        "Train a small network on what a larger one says of the images.",
    ),
    "eval": ("evaluate:evaluate", "Score a network on labelled images."),
    "predict": ("predict:stream", "Label images, any number of them."),
    "serve": ("serve:serve", "Networks behind HTTP: a server for production."),
    "verify": ("verify:verify", "Whether two images show the same."),
    "index": ("index:index", "Images enrolled by name, to be searched."),
    "search": ("search:search", "Who or what is on images, among those of an index."),
    "bench": (
        "bench:bench",
        "Latency, throughput, memory: of files, or of a network on every runtime.",
    ),
    "latency-table": (
        "choose:latency_table",
        "Measure all networks here, for `choose --table` elsewhere.",
    ),
    "measure": ("measure:measure", "Measure all networks in a browser: on the phone that opens the page."),
    "prune": ("prune:prune", "Fewer channels or weights: by macs, by latency measured, by share."),
    "quantize": ("quantize:quantize", "Float bundle -> int8 bundle."),
    "compress": ("compress:compress", "Float bundle -> the same in so many kilobytes, one coded file."),
    "export": ("export:export", "Bundle -> a file that runs, proved against PyTorch."),
    "app": ("app:app", "Networks -> a page that runs them on the device that opens it."),
    "push": ("push:push_to_hub", "A bundle, with what its run ships -> the Hugging Face Hub."),
    "update key": ("update:update_key", "A key to sign updates with."),
    "update make": ("update:make_update", "Two networks -> what turns one into the other."),
    "update show": ("update:show_update", "What an update changes, and whose it is."),
    "update apply": ("update:apply_update", "An update -> the network installed, all at once."),
    "update rollback": ("update:roll_back", "The network installed before the last update."),
    "update serve": ("update_server:serve_updates", "Updates -> a folder for any web server, its index signed."),
    "update pull": ("update_server:pull_updates", "What is new at an address -> the network installed."),
    "show": ("show:show", "What a bundle, run or file says of itself."),
    "report": ("report:report", "A run's report, one HTML page."),
}
# Need PyTorch, whatever is asked of them.
TRAINING = ("fit", "train", "sweep", "compare", "tune", "distill", "prune", "quantize", "compress", "export")
HOMES = {  # of verbs that are said in two words
    "data": "What is wrong with images, labels and boxes: `data check DATA`.",
    "update": "Networks replaced where they run: updates made, signed, applied, undone, served.",
}
NAMES = list(dict.fromkeys(verb.partition(" ")[0] for verb in VERBS))
# Options that say which network, which `fit` finds out.
NETWORK = ("--arch", "--alpha", "--resolution")
HELP = """MobileNets, exact and practical: from your data, device and budget to a file that runs there.

Every verb takes `--json` (results for programs, on stdout) and `--debug` (the traceback of an error).
"""


def main() -> None:
    """Entry point of `mobilenets`. Exit code 0; 1 if some images couldn't be read; 2 with one clear line on stderr."""
    # GNU OpenMP's idle threads spin, by default so long that a second busy program slows training many times over;
    # 20,000 turns are as quick on an idle machine and bounded on a busy one. It is read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what matters is whether the pixels decode
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    sys.exit(run(sys.argv[1:]))


# What tables and drawings are made of, as one letter each of any terminal's.
PLAIN = str.maketrans("→●✓✗★·×±≈≠≥²…“”▶", '>*+x*.x~~!>2."">')


def _plain(e: UnicodeError) -> tuple[str, int]:
    """For a terminal that lacks a letter: one that looks like it, so that columns stay; else its number."""
    if not isinstance(e, UnicodeEncodeError):
        raise e
    return "".join(map(_like, e.object[e.start : e.end])), e.end


def _like(letter: str) -> str:
    if "\u2500" <= letter <= "\u257f":  # box drawings
        return {"\u2500": "-", "\u2501": "-", "\u2502": "|", "\u2503": "|"}.get(letter, "+")
    if "\u2580" <= letter <= "\u259f":  # blocks, whole ones and parts, which bars end with
        return "#" if letter < "\u258d" else "."
    return letter.translate(PLAIN).encode("ascii", "backslashreplace").decode()


def run(arguments: list[str]) -> int:
    """Carry out one command line and return its exit code."""
    as_json, debug = "--json" in arguments, "--debug" in arguments
    arguments = [a for a in arguments if a not in ("--json", "--debug")]
    try:
        if arguments and not arguments[0].startswith("-") and arguments[0] not in NAMES:
            raise unknown("verb", arguments[0], NAMES)
        trains = arguments and arguments[0] in TRAINING and not {"--help", "-h"} & {*arguments}
        if trains and importlib.util.find_spec("torch") is None:
            raise Missing.of(arguments[0], "torch")
        return _print(_call(arguments), as_json)
    except UserError as e:
        if debug:
            raise
        return _fail(str(e))
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail("interrupted; nothing was left half-written")
    except _ReaderLeft:
        sys.stderr.close()
        return 0


def _call(arguments: list[str]) -> Any:
    import cyclopts

    app = cyclopts.App(
        name="mobilenets",
        help=HELP,
        version=__version__,
        result_action="return_value",
        help_format="markdown",
        default_parameter=cyclopts.Parameter(negative=(), converter=_converted),  # --resume needs no --no-resume
        suppress_keyboard_interrupt=False,  # else it ends without a word
    )
    homes = {name: cyclopts.App(name=name, help=summary) for name, summary in HOMES.items()}
    for name, (target, summary) in VERBS.items():
        first, _, second = name.partition(" ")
        if first in homes and first not in app:
            app.command(homes[first])
        homes.get(first, app).command(f"mobilenets.commands.{target}", name=second or first, help=summary)
    try:
        with needed_by(arguments[0] if arguments else "help"):
            return app(arguments or ["--help"], exit_on_error=False, print_error=False)
    except Missing as e:  # of the function, whose name may be another than the verb's
        raise Missing.of(arguments[0], e.module) from e
    except cyclopts.CycloptsError as e:
        two = " ".join(arguments[:2])
        raise UserError(_said(two if two in VERBS else arguments[0], e)) from e


def _converted(kind: Any, tokens: Sequence[Any]) -> Any:
    """What words of the command line stand for. Cyclopts rounds 1.5 to a whole number; here that is an error."""
    import cyclopts

    if int in (kind, *typing.get_args(kind)) and float not in typing.get_args(kind):
        for t in tokens:
            with contextlib.suppress(ValueError):
                if not float(t.value).is_integer():
                    raise UserError(f"{t.keyword or 'the argument'} takes a whole number, not {t.value}")
    return cyclopts.convert(kind, tokens)


def _said(verb: str, e: Any) -> str:
    """One line about a command line that isn't understood."""
    import cyclopts

    if isinstance(e, cyclopts.MissingArgumentError) and e.argument is not None:
        named = e.argument.field_info.kind == inspect.Parameter.KEYWORD_ONLY
        what = e.argument.name if named else e.argument.name.removeprefix("--").upper()
        return f"{verb} needs {what}: mobilenets {verb} --help"
    if isinstance(e, cyclopts.UnusedCliTokensError):
        return (
            f"{verb} takes no more than was given before {' '.join(e.unused_tokens or ())!r}: mobilenets {verb} --help"
        )
    if isinstance(e, cyclopts.UnknownOptionError) and verb == "fit" and e.token.keyword in NETWORK:
        return f"fit chooses the network itself: {e.token.keyword} is an option of mobilenets train"
    return " ".join(str(e).split())


def _print(result: Any, as_json: bool) -> int:
    """Print what a verb returned, a stream as it comes. Images that couldn't be read are listed last: exit code 1."""
    unread: list[str] = []
    try:
        if isinstance(result, Iterator):
            for item in result:
                if item.error:
                    unread.append(item.error)
                if as_json:
                    _line(json.dumps(item.to_json()))
                elif not item.error:
                    _line(str(item))
        elif result is not None:
            unread += getattr(result, "skipped", ())
            _print_whole(result, as_json)
    finally:
        if unread:
            print(f"mobilenets: {len(unread)} image{'s' * (len(unread) > 1)} could not be read:", file=sys.stderr)
            print(*(f"  {plain(reason)}" for reason in unread), sep="\n", file=sys.stderr)
    return 1 if unread else 0


def _print_whole(result: Any, as_json: bool) -> None:
    if as_json:
        _line(json.dumps(result.to_json(), indent=2))
        return
    from mobilenets import console
    from mobilenets.reports.screen import screen

    console.print_whole(console.out(), screen(result))


class _ReaderLeft(Exception):
    """The reader of our output has seen enough."""


def _line(text: str) -> None:
    try:
        print(plain(text))
    except BrokenPipeError as e:  # caught here alone: elsewhere it is a fault
        raise _ReaderLeft from e


def _fail(message: str) -> int:
    line = plain(message).replace("\n", "\\n")  # one, whatever a file's name holds
    print(f"mobilenets: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
