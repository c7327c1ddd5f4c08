import dataclasses
import functools
import itertools
import math
import subprocess
import sys

import pytest

from mobilenets.arch import zoo
from mobilenets.errors import UserError
from mobilenets.model.bundle import Bundle
from mobilenets.training.recipes import RECIPES, TRIED, Overrides, Recipe, recipe

FIELDS = [f.name for f in dataclasses.fields(Recipe)]
WORDS = {
    "find_lr": "on",
    "probe": "on",
    "norms": "kept",
    "optimizer": "sgd",
    "schedule": "exponential",
    "augment": "glyph",
    "training_precision": "float32",
    "class_weights": "balanced",
    "accumulate": "2",
    "loss": "symmetric",
}


def other_value(name):
    """A valid value of a field that no recipe has, as written on a command line."""
    default = getattr(Recipe(), name)
    return WORDS.get(name) or ("7" if isinstance(default, int) else "0.375")


def test_an_unknown_recipe_suggests_the_near_miss():
    with pytest.raises(UserError, match="unknown recipe 'modren': did you mean 'modern'"):
        recipe("modren")


def test_overrides_change_only_what_they_name():
    for name, base in RECIPES.items():
        got = recipe(name, Overrides(epochs=3, mixup=0.0))
        assert got == dataclasses.replace(base, epochs=3, mixup=0.0)
        assert recipe(name) == recipe(name, Overrides()) == base
    assert RECIPES["modern"] != RECIPES["finetune"]


def test_an_override_of_zero_counts():
    assert recipe("finetune", Overrides(frozen_epochs=0)).frozen_epochs == 0


def test_overrides_have_every_field_with_its_help():
    assert [f.name for f in dataclasses.fields(Overrides)] == FIELDS
    for f in dataclasses.fields(Recipe):
        assert f.metadata["help"].endswith(".")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("batch", 0), ("lr", 0.0), ("lr", -1.0), ("lr", math.nan), ("body_lr", 0.0),
        ("weight_decay", -0.1), ("mixup", -1.0), ("clip", -1.0), ("frozen_epochs", -1), ("warmup", 1.0),
        ("warmup", -0.1), ("label_smoothing", 1.0), ("erasing", 1.5), ("ema", 1.0), ("dropout", 1.0),
        ("min_scale", 0.0), ("min_scale", 1.5), ("progressive", 0.0), ("progressive", 1.1),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(field, value):
    with pytest.raises(UserError, match=field):
        recipe("modern", Overrides(**{field: value}))


def test_a_recipe_survives_json():
    for r in RECIPES.values():
        assert Recipe(**r.to_json()) == r


def test_a_misspelt_override_is_a_type_error():
    with pytest.raises(TypeError):
        Overrides(epoch=3)


# ---- on the command line -------------------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch, command):
    """`parsed("train", "DATA", ...)`: what the verb's function was called with."""
    from mobilenets.commands import fit, train

    calls = []
    for module, name in ((train, "train"), (fit, "fit")):
        verb = getattr(module, name)

        @functools.wraps(verb)
        def stand_in(*args, **kwargs):
            calls.append((args, kwargs))

        monkeypatch.setattr(module, name, stand_in)

    def parse(*line):
        ran = command(*line)
        assert ran.code == 0, ran.err
        return calls.pop()

    return parse


@pytest.mark.sampled(24)
@pytest.mark.parametrize("verb", ["train", "fit"])
@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_an_option(parsed, verb, field):
    option, text = f"--{field.replace('_', '-')}", other_value(field)
    _, given = parsed(verb, "digits", "--out", "x", option, text)
    got = recipe("modern", given["overrides"])
    value = getattr(got, field)
    assert value == type(getattr(Recipe(), field))(text)
    assert type(value) is type(getattr(Recipe(), field))
    assert got == dataclasses.replace(RECIPES["modern"], **{field: value})


def test_options_may_be_written_with_an_equals_sign(parsed):
    _, given = parsed("train", "digits", "--out=x", "--epochs=3", "--lr=1e-2", "--recipe=finetune")
    expected = dataclasses.replace(RECIPES["finetune"], epochs=3, lr=0.01, find_lr="off")  # a rate that is given counts
    assert recipe(given["recipe"], given["overrides"]) == expected


@pytest.mark.parametrize("verb", ["train", "fit"])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [("--epochs", "three", "epochs"), ("--augment", "photograph", "augment"), ("--epochs", "0", "epochs must be 1")],
)
def test_a_bad_option(command, tmp_path, verb, option, value, message):
    assert message in command(verb, "digits", "--out", tmp_path / "r", option, value).line
    assert not list(tmp_path.iterdir())


# ---- what the learner makes of them --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    from mobilenets.model.module import build

    return build(zoo.arch("v2", 0.35, 32, 5))


def test_what_is_decayed(net):
    from mobilenets.training.optim import parameter_groups

    r = recipe("finetune", Overrides(layer_decay=1.0))
    names = {id(p): n for n, p in net.named_parameters()}
    groups = parameter_groups(net, r)
    seen = {}
    for g in groups:
        for p in g["params"]:
            assert names[id(p)] not in seen
            seen[names[id(p)]] = g["weight_decay"], g["lr"]
    assert set(seen) == set(names.values())
    for name, (decay, lr) in seen.items():
        dense = name.endswith((".conv.conv.weight", "expand.conv.weight", "project.conv.weight", "classifier.weight"))
        assert decay == (r.weight_decay if dense else 0.0), name
        assert lr == pytest.approx(r.lr if name.startswith("classifier") else r.lr * r.body_lr), name
    for name in ("blocks.0.conv.norm.weight", "blocks.1.depthwise.conv.weight", "classifier.bias"):
        assert seen[name][0] == 0


@pytest.mark.parametrize(("total", "warmup"), [(100, 0.05), (1000, 0.2), (7, 0.5), (50, 0.0), (1, 0.05)])
def test_the_schedule_rises_then_falls_to_nothing(total, warmup):
    from mobilenets.training.optim import schedule

    values = [schedule(s, total, Recipe(warmup=warmup)) for s in range(total)]
    rise = max(1, round(warmup * total))
    assert values[rise - 1] == 1
    assert max(values) == 1
    assert all(a < b for a, b in itertools.pairwise(values[:rise]))
    assert all(a >= b for a, b in itertools.pairwise(values[rise:]))
    assert 0 < values[0] <= 1
    assert schedule(total, total, Recipe(warmup=warmup)) == pytest.approx(0 if total > rise else 1)
    if total > 20:
        half = rise + (total - rise) // 2
        assert values[half] == pytest.approx(0.5, abs=0.05)
        assert values[-1] < 0.01


# ---- what each did -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_says_how_it_was_run(parsed, name):
    """Its command parses, and is of this recipe."""
    tried = TRIED[name]
    program, verb, *line = tried.command.split()
    assert (program, verb) == ("mobilenets", "train")
    _, given = parsed(verb, *line)
    assert (given.get("recipe") or ("finetune" if given.get("init") else "modern")) == name
    recipe(name, given.get("overrides"))
    assert all(dataclasses.asdict(tried).values())
    assert "%" in tried.score
    assert tried.score[0].isdigit()


def test_the_recipe_book(command):
    every = command("recipes")
    assert every.code == 0
    assert all(name in every.out for name in RECIPES)
    one = command("recipes", "cifar", "--json").json
    assert one["cifar"]["recipe"] == RECIPES["cifar"].to_json()
    text = command("recipes", "v2-paper").out
    assert all(f"--{f.replace('_', '-')}" in text for f in FIELDS)
    assert "did you mean 'cifar'?" in command("recipes", "cifra").line


def test_recipes_need_no_torch():
    line = "import sys, mobilenets.cli as c; c.run(['recipes', '--json']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("epochs", "images", "share"),
    [(1, 1500, 1 / 9), (2, 1500, 4 / 9), (3, 1500, 1), (1, 12_800, 1 / 4), (1, 50_000, 1), (60, 100, 1)],
)
def test_few_epochs_of_few_steps_are_at_a_lower_rate(epochs, images, share):
    r = recipe("finetune", Overrides(epochs=epochs))
    made = r.for_few_epochs(images)
    assert made.lr == pytest.approx(share * r.lr)
    assert dataclasses.replace(made, lr=r.lr) == r
    given = recipe("finetune", Overrides(epochs=epochs, lr=1e-3))
    assert given.for_few_epochs(images) == given


def test_networks_without_shortcuts_begin_at_a_higher_rate_where_nobody_says_one():
    rates = {n: recipe("modern").from_scratch(zoo.arch(n)).lr for n in ("v1", "v2", "v3-small", "squeezenet-1.1")}
    assert rates == {"v1": 8e-3, "v2": 2e-3, "v3-small": 2e-3, "squeezenet-1.1": 2e-3}  # SqueezeNet has no BatchNorm
    assert recipe("modern", Overrides(lr=3e-3)).from_scratch(zoo.arch("v1")).lr == 3e-3
    assert recipe("modern", Overrides(plain_lr=5e-3)).from_scratch(zoo.arch("v1")).lr == 5e-3
    assert recipe("cifar").from_scratch(zoo.arch("v1")).lr == RECIPES["cifar"].lr


def test_a_network_that_begins_with_weights_keeps_the_recipes_rate(tiny_train, learned, tmp_path):
    rates = []
    for name, begin in (("nothing", ()), ("weights", ("--init", learned.out))):
        ran = tiny_train(tmp_path / name, "--epochs", 1, "--recipe", "modern", *begin)
        assert ran.ran.code == 0, ran.ran.err
        rates.append(Bundle.load(tmp_path / name / "float").card.recipe["lr"])
    assert rates == [8e-3, 2e-3]
