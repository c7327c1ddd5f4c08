"""Embeddings: heads, losses, batches, training, distilling, files, and the verbs that use vectors."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save
from small import TINY, quantized

from mobilenets import tasks
from mobilenets.arch import zoo
from mobilenets.data.alignment import TEMPLATES, Faces
from mobilenets.data.dataset import Split
from mobilenets.deploy import engines, gallery
from mobilenets.deploy.export import export_bundle
from mobilenets.deploy.predict import load
from mobilenets.errors import UserError
from mobilenets.model import module
from mobilenets.model.bundle import Bundle
from mobilenets.model.card import Card
from mobilenets.tasks.embed.options import EmbedOptions
from mobilenets.tasks.embed.scores import VECTOR
from mobilenets.tasks.embed.task import TASK, Embed
from mobilenets.training.loader import IdentitySampler, TrainImages
from mobilenets.training.recipes import Recipe

NET = [word for pair in {**TINY, "--batch": "12"}.items() for word in pair]
CONFIG = {"dim": 16, "head": "pool", "template": None}


def with_vectors(source, config):
    """A classifier's bundle as one of vectors, with random weights of its own part."""
    net = source.card.arch.replace(num_classes=0)
    card = Card(net, source.card.preprocess, TASK.head(net, config), task="embed", config=dict(config))
    torch.manual_seed(0)
    own = module.build(net, card.head).state_dict()
    torch.nn.init.normal_(own["projection.weight"])
    tensors = {k: v.numpy() for k, v in own.items()} | {k: v for k, v in source.tensors.items() if k in own}
    return Bundle(card, tensors)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Five identities with six images each, and one with a single one."""
    root = tmp_path_factory.mktemp("people") / "people"
    rng = np.random.default_rng(0)
    for who in range(6):
        (root / f"p{who}").mkdir(parents=True)
        colour = rng.uniform(30, 220, 3)
        for i in range(6 if who < 5 else 1):
            pixels = (colour + rng.normal(0, 8, (32, 32, 3))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"p{who}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(people, command, tmp_path_factory):
    """A run of two epochs, aligned to the template that its images are said to have."""
    out = tmp_path_factory.mktemp("run") / "run"
    ran = command(
        "train", people, "--task", "embed", *NET, "--epochs", 2, "--dim", 16, "--metric-loss", "triplet",
        "--photos-of-each", 3, "--aligned", "arcface", "--out", out,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    return out


# ---- heads, losses, batches


@pytest.mark.parametrize("head", ["pool", "global"])
@pytest.mark.parametrize("arch", ["v1", "v2", "v3-small"])
def test_vectors_have_length_one(head, arch):
    net = zoo.arch(arch, 0.5, 64, num_classes=0)
    made = module.build(net, TASK.head(net, {**CONFIG, "head": head}))
    (vector,) = made.answers(torch.randn(3, 3, 64, 64)).values()
    assert vector.shape == (3, 16)
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(3))


def test_a_global_depthwise_convolution_weighs_positions():
    """Each channel's own kernel over the whole map: an average where its weights are all the same."""
    net = zoo.arch("v1", 0.25, 96, num_classes=0)
    head = TASK.head(net, {**CONFIG, "head": "global"})
    op = head.ops[0]
    assert (op.kernels, op.groups, op.weight_shape) == ((3, 3), 256, (256, 1, 3, 3))
    layer = module.module_for(op, net).eval()
    torch.nn.init.constant_(layer.conv.weight, 1 / 9)
    x = torch.randn(2, 256, 3, 3)
    torch.testing.assert_close(layer(x), x.mean((2, 3), keepdim=True), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", ["arcface", "cosface", "triplet", "multi-similarity"])
def test_a_loss_falls_where_the_same_are_near(loss):
    torch.manual_seed(0)
    split = Split("train", [str(i) for i in range(8)], np.repeat(np.arange(4), 2), lambda i: i)
    objective = Embed(EmbedOptions(dim=4, metric_loss=loss)).objective(CONFIG | {"dim": 4}, Recipe(), split)
    who = torch.from_numpy(split.targets)
    anchors = torch.eye(4)
    weights = getattr(objective.loss, "W", None)
    if weights is not None:
        with torch.no_grad():
            weights.copy_(anchors)
    near = torch.nn.functional.normalize(anchors[who] + 0.3 * torch.randn(8, 4), dim=1)
    far = torch.nn.functional.normalize(anchors[who] + 1.2 * torch.randn(8, 4), dim=1)
    assert objective({VECTOR: near}, who) < objective({VECTOR: far}, who)


def test_a_batch_has_k_images_of_each_of_p():
    who = np.repeat(np.arange(9), [5, 6, 7, 4, 3, 8, 5, 6, 1])
    split = Split("train", [str(i) for i in range(len(who))], who, lambda i: i)
    images = TrainImages(split, lambda *x: x, 0, together=3)
    sampler = IdentitySampler(images, 1, 0, 12)
    order = sampler.order()
    assert len(order) == len(sampler) > 0
    for batch in who[order].reshape(-1, 4, 3):
        assert (batch == batch[:, :1]).all()
        assert len({*batch[:, 0]}) == 4
    assert 44 + 5 - 1 not in order or who[order].max() < 8  # the one with a single image is left out
    sampler.set_epoch(1)
    assert not np.array_equal(order, sampler.order())
    halves = [IdentitySampler(images, 2, rank, 6) for rank in (0, 1)]
    assert len({len(h.order()) for h in halves}) == 1
    assert not {*map(tuple, halves[0].order().reshape(-1, 3))} & {*map(tuple, halves[1].order().reshape(-1, 3))}


# ---- data


def test_whole_identities_are_held_out(people):
    data = TASK.open(str(people), None, 0, None)
    train, val = ({*data.split(s).targets.tolist()} for s in ("train", "val"))
    assert train
    assert val
    assert not train & val
    assert data.labels == ()


def test_one_identity_is_not_enough(tmp_path, write_colours):
    with pytest.raises(UserError, match="one identity alone"):
        TASK.open(str(write_colours(tmp_path / "one", {"red": 4})), None, 0, None)


def test_a_list_of_pairs_among_the_images_is_what_is_tested(people, run, command, tmp_path):
    folder = shutil.copytree(people, tmp_path / "lfw")
    for who in range(5):
        for i in range(6):
            (folder / f"p{who}" / f"{i}.png").rename(folder / f"p{who}" / f"p{who}_{i + 1:04d}.png")
    lines = ["2\t2"]
    for fold in range(2):
        lines += [f"p{2 * fold + i}\t1\t2" for i in range(2)] + [f"p{2 * fold + i}\t3\tp4\t{i + 1}" for i in range(2)]
    (folder / "pairs.txt").write_text("\n".join(lines))
    said = command("eval", run, folder, "--aligned", "arcface", "--json").json
    assert said["verification"]["given"]
    assert (said["verification"]["same"], said["verification"]["different"]) == (4, 4)
    assert said["count"] == 31
    (folder / "pairs.txt").write_text("\n".join([*lines[:-1], "p1\t3\tnobody\t1"]))
    assert (
        "pairs of images that aren't there: nobody/nobody_0001"
        in command("eval", run, folder, "--aligned", "arcface").line
    )


# ---- training and files


def test_a_run_says_how_well_it_tells_pairs(run, people, command, tmp_path):
    card = Bundle.load(run / "float").card
    assert card.metrics[0].name == "accuracy"
    assert card.config["dim"] == 16
    assert card.config["template"]["name"] == "arcface"
    assert -1 <= card.config["threshold"] <= 1
    assert card.preprocess.framing == "stretch"
    said = command("eval", run, "--json").json
    assert said["accuracy"] == pytest.approx(card.metrics[0].value, abs=0.01)
    other = shutil.copytree(people, tmp_path / "others")
    refused = command("eval", run, other)
    assert refused.code == 2
    assert "nothing says where these images' landmarks are" in refused.err


def test_int8_points_the_same_way(run, people, command, tmp_path):
    ran = command("quantize", run, "--out", tmp_path / "int8")
    assert ran.code == 0, ran.err
    pixels = np.stack([np.asarray(Image.open(p).convert("RGB")) for p in sorted(people.rglob("*.png"))])
    a, b = (
        engines.module("torch").TorchEngine(Bundle.load(p), 1)(pixels)[VECTOR]
        for p in (run / "float", tmp_path / "int8")
    )
    assert (a * b).sum(1).mean() > 0.8


@pytest.mark.sampled(5)
@pytest.mark.parametrize("head", ["pool", "global"])
@pytest.mark.parametrize(
    "engine", [e for e in ("onnxruntime", "litert", "openvino", "ncnn", "native", "c") if engines.available(e)]
)
def test_every_runtime_gives_vectors(head, engine, make_bundle, pixels, tmp_path):
    bundle = with_vectors(make_bundle("v1"), {**CONFIG, "head": head})
    made = export_bundle(bundle, pixels, tmp_path / f"m{engines.RUNTIMES[engine].suffix}", "noise", engine)
    assert (made.task, made.agreement) == ("embed", 100)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("head", ["pool", "global"])
def test_vectors_for_a_microcontroller(make_bundle, pixels, tmp_path, head):
    pytest.importorskip("tflite_micro")
    bundle = quantized(with_vectors(make_bundle("v1"), {**CONFIG, "head": head}), pixels)
    made = export_bundle(bundle, pixels, tmp_path / f"m{engines.runtime('tflm').suffix}", "noise", "tflm")
    assert (made.task, made.agreement) == ("embed", 100)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["coreml", "executorch"])
def test_vectors_in_slow_runtimes(make_bundle, pixels, tmp_path, engine):
    """Core ML's files can't be run but on macOS: that they are written is all that is seen here."""
    pytest.importorskip("coremltools" if engine == "coreml" else "executorch")
    bundle = with_vectors(make_bundle("v1"), {**CONFIG, "head": "global"})
    made = export_bundle(bundle, pixels, tmp_path / f"m{engines.runtime(engine).suffix}", "noise", engine)
    assert made.task == "embed"
    assert made.agreement in (None, 100)


def test_a_vector_in_json(run, people, command):
    said = json.loads(command("predict", run, people / "p0" / "0.png", "--aligned", "arcface", "--json").out)
    assert np.linalg.norm(said["vector"]) == pytest.approx(1, abs=1e-5)
    assert "takes faces aligned as arcface" in command("predict", run, people / "p0" / "0.png").err


def test_landmarks_that_a_function_finds(run, people, tmp_path):
    """They are as good as a table's; none is an error of the image, nonsense one of the function."""
    photo, at = people / "p0" / "0.png", TEMPLATES["arcface"].on(32, 32)
    table = tmp_path / "points.csv"  # of pixels, which lie half of one from their corners
    table.write_text(
        f"image,{','.join(f'x{i},y{i}' for i in range(1, 6))}\n0.png,{','.join(map(str, at.ravel() - 0.5))}\n"
    )
    read = load(run, faces=Faces(landmarks=str(table))).predict(photo)

    def said(points):
        return load(run, faces=lambda _image: points).predict(photo)

    np.testing.assert_allclose(said(at).answer.values, read.answer.values, atol=1e-6)
    assert "no face is found" in said(None).error
    assert "isn't on its 32x32 pixels" in said(at + 30).error
    with pytest.raises(UserError, match="gives 5 points"):
        said(at[:3])


def test_landmarks_said_in_vain(make_bundle, people, command, tmp_path):
    a, b, plain = people / "p0" / "0.png", people / "p0" / "1.png", tmp_path / "plain"
    make_bundle("v1").save(plain)
    ran = command("verify", a, b, "--with", plain, "--aligned", "arcface")
    assert (ran.code, " ".join(ran.err.split()).count("takes images as they are, not aligned")) == (0, 1)


@pytest.mark.slow
def test_a_student_becomes_its_teacher(run, people, command, tmp_path):
    """A bundle and its exported file teach alike, their vectors are computed once; another width is refused."""
    ran = command("export", run / "float", "--out", tmp_path / "m.onnx")
    assert ran.code == 0, ran.err
    line = ("distill", tmp_path / "m.onnx", people, "--task", "embed", *NET, "--epochs", 2, "--aligned", "arcface")
    ran = command(*line, "--dim", 16, "--cache", tmp_path / "kept", "--out", tmp_path / "student")
    assert ran.code == 0, ran.err
    card = Bundle.load(tmp_path / "student" / "float").card
    assert card.recipe["teacher"]["embedding"] == 1
    assert len([*(tmp_path / "kept").rglob("*.npy")]) == 1
    assert "--dim 16" in command(*line, "--out", tmp_path / "other").line
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_a_grid_of_embeddings(people, command, tmp_path):
    line = ("sweep", people, "--task", "embed", "--alphas", ".25", "--resolutions", 32, "--epochs", 1, "--batch", 12)
    (made,) = command(*line, "--workers", 0, "--out", tmp_path / "grid", "--json").json["runs"]
    assert (made["split"], made["error"], made["accuracy"] >= 50) == ("val", "", True)


@pytest.mark.slow
def test_a_rate_for_embeddings(people, command):
    found = command("tune", people, "--task", "embed", *NET, "--steps", 20, "--json").json
    assert "--task embed" in found["command"]
    assert found["lr"] > 0


def test_options_of_another_task(people, command, tmp_path):
    line = command("train", people, *NET, "--dim", 16, "--out", tmp_path / "x").line
    assert "--dim is for --task embed" in line
    assert "dim must be from 2" in command("train", people, "--task", "embed", "--dim", 1, "--out", tmp_path / "x").line


# ---- verbs


def test_two_images_are_compared(run, people, command):
    a, b = people / "p0" / "0.png", people / "p0" / "1.png"
    said = command("verify", a, b, "--with", run, "--aligned", "arcface", "--threshold", "-1", "--json").json
    assert said["same"] is True
    itself = command("verify", a, a, "--with", run, "--aligned", "arcface", "--json").json
    assert itself["cosine"] == pytest.approx(1, abs=1e-5)
    assert "a threshold is a cosine" in command("verify", a, b, "--with", run, "--threshold", 2).line
    assert "one image is needed" in command("verify", a, people / "p0", "--with", run, "--aligned", "arcface").line


def test_an_index_is_made_changed_and_searched(run, people, command, tmp_path):
    idx, with_ = tmp_path / "people.idx", ("--with", run, "--aligned", "arcface")
    assert command("index", people, *with_, "--out", idx, "--json").json["names"] == {
        **{f"p{i}": 6 for i in range(5)}, "p5": 1,
    }  # fmt: skip
    assert "is there already" in command("index", people, *with_, "--out", idx).line
    photo = people / "p3" / "2.png"
    found = command("search", idx, photo, "--aligned", "arcface", "--count", 3, "--json").json["searched"][0]
    assert found["found"][0]["image"] == str(photo)
    assert found["found"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    name = "<b>Ada & Co"
    assert command("index", idx, "--rename", f"p3={name}", "--json").json["names"][name] == 6
    assert [*command("index", idx, "--find", name, "--json").json["names"]] == [
        str(p) for p in sorted(photo.parent.iterdir())
    ]
    page = tmp_path / "page.html"
    assert command("search", idx, photo, "--aligned", "arcface", "--html", page).code == 0
    assert "&lt;b&gt;Ada &amp; Co" in page.read_text()
    assert "<b>Ada" not in page.read_text()
    assert name not in command("index", idx, "--delete", name, "--json").json["names"]
    assert command("index", photo, *with_, "--into", idx, "--name", "Bo", "--json").json["names"]["Bo"] == 1
    assert "did you mean 'p1'" in command("index", idx, "--delete", "p11").line
    assert "OLD=NEW" in command("index", idx, "--rename", "p1").line


def test_an_index_of_another_network_or_a_damaged_one(run, people, command, tmp_path):
    idx = tmp_path / "a.idx"
    gallery.empty("elsewhere", "other").enrolled(np.eye(16, dtype=np.float32)[:2], ["a", "b"], ["1", "2"]).save(idx)
    assert (
        "was made with another network"
        in command("search", idx, people / "p0" / "0.png", "--with", run, "--aligned", "arcface").line
    )
    whole = idx.read_bytes()
    idx.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "its content isn't what was written" in command("index", idx).line
    about = {"format": 1, "names": ["a"], "images": ["1"], "network": "n", "digest": "d"}  # as it was without a digest
    idx.write_bytes(save({"vectors": np.eye(4, dtype=np.float32)[:1]}, {gallery.KEY: json.dumps(about)}))
    assert gallery.Index.load(idx).names == ("a",)
    idx.write_bytes(whole[:100])
    assert "not an index of vectors" in command("search", idx, people / "p0" / "0.png", "--with", run).line
    assert command("index", tmp_path / "no.idx").line.endswith("no.idx: no such index")


def test_a_large_index_has_a_graph(monkeypatch, tmp_path):
    pytest.importorskip("usearch")
    monkeypatch.setattr(gallery, "EXACT", 100)
    v = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    made = gallery.empty("net", "d").enrolled(v, [str(i) for i in range(300)], [f"{i}.png" for i in range(300)])
    kept = gallery.Index.load(made.save(tmp_path / "a.idx") and tmp_path / "a.idx")
    assert kept.graph
    assert [f.name for f in kept.search(v[7], 5)] == [f.name for f in made.search(v[7], 5)]
    assert not kept.without("7").graph
    for damaged in (kept.graph[:10], kept.graph[:-50]):
        with pytest.raises(UserError, match="graph is damaged"):
            dataclasses.replace(kept, graph=damaged).search(v[7], 5)


def test_the_card_has_the_task_whole(run):
    task = tasks.of(Bundle.load(run / "float").card)
    assert isinstance(task, Embed)
    assert task.template == TEMPLATES["arcface"]
