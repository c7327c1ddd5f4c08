"""`push`, by huggingface_hub's own client to a Hub on this machine, and what is said of a bundle there."""

import json
import re
import sys

import pytest
from fake_hub import Hub

import mobilenets
from mobilenets.commands.push import README
from mobilenets.errors import UserError
from mobilenets.files import sha256
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Metric
from mobilenets.model.hub import CARD, WEIGHTS
from mobilenets.reports import model_card as module
from mobilenets.reports.model_card import model_card
from mobilenets.training.fitted import Step

yaml = pytest.importorskip("yaml")
NAME = "cifar10-v1-0.25"


@pytest.fixture
def server(serve, monkeypatch):  # noqa: ARG001  (its cache, and its patience)
    made = Hub("secret")
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield made
    if made.thread.is_alive():
        made.close()


def at(server, name="me/tiny", revision="main"):
    found = server.repositories[name]
    return found["commits"][found["refs"][revision]]


def front_matter(text):
    return yaml.safe_load(text.split("---\n")[1])


# ---- pushed --------------------------------------------------------------------------------------------------------


def test_what_is_pushed_is_loaded_again(server, command):
    ran = command("push", NAME, "hf://me/tiny", "--message", "First")
    assert ran.code == 0, ran.err
    assert "mobilenets predict hf://me/tiny IMAGE" in ran.out
    assert at(server).keys() == {README, CARD, WEIGHTS}
    assert server.messages == ["First"]
    assert not server.repositories["me/tiny"]["private"]
    assert Bundle.load("hf://me/tiny").digest == Bundle.load(NAME).digest
    assert command("show", "hf://me/tiny").code == 0


def test_a_bundle_from_python_private_and_again(server, make_bundle):
    first = mobilenets.push_to_hub(make_bundle("v1"), "me/own", private=True)
    assert server.repositories["me/own"]["private"]
    assert first.address == "hf://me/own"
    assert first.commit == server.repositories["me/own"]["refs"]["main"]
    assert Bundle.load(first.address).card.arch.name == "v1"
    second = mobilenets.push_to_hub(make_bundle("v2"), "hf://me/own")
    assert second.commit != first.commit
    assert Bundle.load("hf://me/own").card.arch.name == "v2"
    assert Bundle.load(f"hf://me/own@{first.commit}").card.arch.name == "v1"


def test_a_branch(server, make_bundle):
    server.put("me/tiny", {}, "dev")
    mobilenets.push_to_hub(make_bundle("v1"), "hf://me/tiny@dev")
    assert CARD in at(server, revision="dev")
    with pytest.raises(UserError, match=r"^hf://me/tiny@nope: not pushed \("):
        mobilenets.push_to_hub(make_bundle("v1"), "hf://me/tiny@nope")


@pytest.fixture
def run(make_bundle, tmp_path):
    """A run of `fit`, as far as it ships."""
    out = tmp_path / "run"
    (out / "float").parent.mkdir(parents=True)
    make_bundle("v1").save(out / "float")
    (out / "model-int8.onnx").write_bytes(b"a file")
    (out / "model-int8.onnx.labels.txt").write_text("a\n")
    (out / "model.ncnn").mkdir()
    (out / "model.ncnn" / "net.param").write_bytes(b"params")
    listed = {n: {"sha256": sha256(out / n)} for n in ("model-int8.onnx", "model.ncnn")}
    (out / "manifest.json").write_text(json.dumps({"files": listed}))
    return out


def test_a_run_brings_what_it_ships(server, run):
    pushed = mobilenets.push_to_hub(run, "me/tiny")
    shipped = {"model-int8.onnx", "model-int8.onnx.labels.txt", "model.ncnn/net.param"}
    assert set(pushed.files) == at(server).keys() == {README, CARD, WEIGHTS} | shipped
    assert at(server)["model.ncnn/net.param"] == b"params"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("model-int8.onnx", "another", "gone or altered since it was proved"),
        ("manifest.json", '{"files": {"../x": {"sha256": "0"}}}', "../x is no file's name"),
        ("manifest.json", '{"files": {"x": 1}}', "it has no digests"),
        ("manifest.json", '{"files": [1]}', "it has no digests"),
        ("manifest.json", "{}", "it has no 'files'"),
        ("steps.json", "{}", "not a file of a run of fit"),
    ],
)
def test_a_damaged_run_pushes_nothing(server, run, command, name, text, said):
    (run / name).write_text(text)
    assert said in command("push", run, "hf://me/tiny").line
    assert server.asked == []


def test_a_real_run(server, tiny_train, tmp_path):
    assert tiny_train(tmp_path / "run", "--epochs", 1).ran.code == 0
    mobilenets.push_to_hub(tmp_path / "run", "me/tiny")
    text = at(server)[README].decode()
    assert "```sh\n(" not in text  # it was called from Python
    assert str(tmp_path) not in text
    assert "On colours, 72 train, 24 val images." in text


# ---- not pushed ----------------------------------------------------------------------------------------------------


def test_who_may_not(server, command, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another")
    line = command("push", NAME, "hf://me/tiny").line
    assert line.startswith("mobilenets: hf://me/tiny: not pushed (")
    assert "hf auth login" in line
    assert server.repositories == {}


def test_offline(server, command):
    server.close()
    line = command("push", NAME, "hf://me/tiny").line
    assert line.startswith("mobilenets: hf://me/tiny: not pushed (")
    assert "can't be reached" in line
    assert "login" not in line


def test_without_huggingface_hub(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    find = mobilenets.errors.importlib.util.find_spec
    monkeypatch.setattr(
        mobilenets.errors.importlib.util, "find_spec", lambda n: None if n == "huggingface_hub" else find(n)
    )
    line = command("push", NAME, "hf://me/tiny").line
    assert line == "mobilenets: push needs huggingface_hub: pip install 'mobilenets[hub]'"


@pytest.mark.parametrize("to", ["hf://tiny", "me/../x", "https://huggingface.co/me/x", "hf://me/x y"])
def test_where_it_cannot_go(server, command, to):
    assert "not an address of the Hub" in command("push", NAME, to).line
    assert server.asked == []


def test_what_is_no_bundle(server, command, tmp_path):
    assert "no bundle here" in command("push", tmp_path, "hf://me/tiny").line
    with pytest.raises(UserError, match=r"bundle must be a path \(str or Path\) or a Bundle, not 3"):
        mobilenets.push_to_hub(3, "me/tiny")
    assert server.asked == []


# ---- what is said of it --------------------------------------------------------------------------------------------


def test_the_metadata():
    bundle = Bundle.load(NAME)
    card = bundle.card
    found = front_matter(model_card(bundle, "me/tiny"))
    assert found["library_name"] == "mobilenets"
    assert found["pipeline_tag"] == "image-classification"
    assert found["datasets"] == ["uoft-cs/cifar10"]
    assert {"mobilenet", "v1-cifar", "float32"} <= {*found["tags"]}
    (entry,) = found["model-index"]
    assert entry["name"] == "tiny"
    assert len(entry["results"]) == len(card.metrics)
    result, metric = entry["results"][0], card.metrics[0]
    assert result["metrics"] == [{"type": "accuracy", "name": "top1", "value": pytest.approx(metric.value / 100)}]
    assert result["dataset"]["split"] == metric.split


def test_the_hub_takes_it():
    """As its client reads it: model-index is checked there."""
    library = pytest.importorskip("huggingface_hub")
    data = library.ModelCard(model_card(Bundle.load(NAME), "me/tiny")).data
    assert data.eval_results[0].metric_type == "accuracy"


@pytest.mark.parametrize(
    ("licence", "said", "name"),
    [("Apache-2.0", "apache-2.0", None), ("", None, None), ("Our own: v1\n---", "other", "our-own-v1")],
)
def test_licences(make_bundle, licence, said, name):
    b = make_bundle("v1")
    found = front_matter(model_card(Bundle(b.card.replace(licence=licence), b.tensors), "me/x"))
    assert (found.get("license"), found.get("license_name")) == (said, name)


def test_texts_of_others_stay_texts(make_bundle):
    b = make_bundle("v1")
    labels = ["a|b", "<script>", "c  d", '"---', "é😀", *map(str, range(5))]
    card = b.card.with_labels(labels).replace(
        data={"source": '/home/someone/a "b"\n---\nx: y'}, recipe={"command": "mobilenets train ```x"},
        metrics=(Metric("top1", 50.0, "/home/someone/set: '|", "val", 3),),
    )  # fmt: skip
    text = model_card(Bundle(card, b.tensors), "me/x")
    found = front_matter(text)
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == "set: '|"
    assert "someone" not in text
    assert "```sh\nmobilenets train x\n```" in text
    assert "<script>" not in text
    assert "a\\|b" in text
    assert all(line.count(" | ") == 1 for line in text.splitlines() if line.startswith("| "))


def test_many_labels_are_counted(monkeypatch):
    text = model_card(Bundle.load(NAME), "me/x")
    assert "it tells 10 classes of images apart (airplane, " in text
    monkeypatch.setattr(module, "LABELS_SHOWN", 1)
    assert "10 classes of images apart (airplane and 9 more)" in model_card(Bundle.load(NAME), "me/x")


def test_files_that_run_have_a_row(make_bundle):
    b = make_bundle("v1")
    b = Bundle(b.card.replace(metrics=(Metric("top1", 91.0, "flowers", "val", 9),)), b.tensors)
    step = Step("int8 ONNX", "runs/x/model-int8.onnx", "onnxruntime", "int8", 250_000, {"top1": 90.5}, 1.25)
    text = model_card(b, "me/x", [step])
    assert "| `model-int8.onnx` | onnxruntime | int8 | 0.25 | top1 90.50% | 1.250 |" in text


def test_features_say_what_they_give(make_bundle):
    from mobilenets.tasks import features

    found = model_card(features.of_bundle(make_bundle("v1"), ""), "me/x")
    assert front_matter(found)["pipeline_tag"] == "image-feature-extraction"
    assert "it gives features of an image" in found


@pytest.mark.usefixtures("server")
def test_how_to_use_it_runs(command, tmp_path, monkeypatch, colours):
    text = model_card(Bundle.load(NAME), "me/tiny")
    mobilenets.push_to_hub(NAME, "me/tiny")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(next(colours.rglob("*.png")).read_bytes())
    (line,) = re.findall(r"^mobilenets (predict .*)$", text, re.MULTILINE)
    assert command(*line.split()).code == 0
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], {})
