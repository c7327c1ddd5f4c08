"""What training minimises, against its definitions."""

import pytest
import torch
from torch.nn import functional as F

from mobilenets.arch.heads import LOGITS
from mobilenets.tasks.losses import CrossEntropy, class_weights
from mobilenets.training.objectives import Distilled
from mobilenets.training.recipes import Distillation, Recipe

N, C, WIDTH, K = 6, 4, 5, 3


@pytest.fixture
def batch():
    """Images, classes, and a teacher's logits and embedding; the student's logits and embedding."""
    torch.manual_seed(0)
    images = torch.zeros(N, 3, 8, 8, dtype=torch.uint8)
    said = torch.cat([2 * torch.randn(N, C), torch.randn(N, K)], dim=1)
    return (images, torch.tensor([0, 1, 2, 3, 0, 1]), said), torch.randn(N, C), torch.randn(N, WIDTH)


def distilled(temperature=4.0, labels=0.0, embedding=0.0, ask=None, mixup=0.0):
    how = Distillation(temperature, labels, embedding, None)
    objective = CrossEntropy(Recipe(label_smoothing=0.0, mixup=mixup), C)
    return Distilled(objective, how, WIDTH, C, K if embedding else 0, ask, "pool")


def outputs(logits, embedding):
    """A student's values, as its network gives them."""
    return {LOGITS: logits, "pool": embedding[:, :, None, None]}


def taught(batch, columns):
    return batch[0], batch[1], batch[2][:, :columns]


def test_labels_alone_are_cross_entropy(batch):
    data, logits, embedding = batch
    objective = CrossEntropy(Recipe(label_smoothing=0.1), C)
    got = objective(outputs(logits, embedding), objective.targets(data))
    assert torch.allclose(got, F.cross_entropy(logits, data[1], label_smoothing=0.1))


def test_soft_targets_are_the_divergence_at_the_temperature(batch):
    data, logits, embedding = batch
    for t in (1.0, 4.0):
        objective = distilled(t)
        got = objective(outputs(logits, embedding), objective.targets(taught(data, C)))
        p, log_q = (data[2][:, :C] / t).softmax(1), (logits / t).log_softmax(1)
        assert torch.allclose(got, t * t * (p * (p.log() - log_q)).sum(1).mean())


def test_a_student_that_says_what_the_teacher_says_has_nothing_to_learn(batch):
    data, _, embedding = batch
    objective = distilled()
    targets = objective.targets(taught(data, C))
    same = (data[2][:, :C] + 3.0).requires_grad_()  # a constant of each image doesn't count
    loss = objective(outputs(same, embedding), targets)
    loss.backward()
    assert loss.abs() < 1e-5
    assert same.grad.abs().max() < 1e-5


def test_the_scale_of_the_gradient_hardly_depends_on_the_temperature(batch):
    data, logits, embedding = batch
    norms = []
    for t in (2.0, 20.0):
        x = logits.clone().requires_grad_()
        objective = distilled(t)
        objective(outputs(x, embedding), objective.targets(taught(data, C))).backward()
        norms.append(float(x.grad.norm()))
    assert 0.3 < norms[0] / norms[1] < 3  # without the factor T^2, it would be 100


def test_labels_have_their_share(batch):
    data, logits, embedding = batch

    def loss(labels):
        objective = distilled(labels=labels)
        return objective(outputs(logits, embedding), objective.targets(taught(data, C)))

    assert torch.allclose(loss(1.0), F.cross_entropy(logits, data[1]))
    assert torch.allclose(loss(0.3), 0.3 * loss(1.0) + 0.7 * loss(0.0))


def test_the_embedding_is_matched_by_a_learnt_map(batch):
    data, logits, embedding = batch
    objective = distilled(labels=1.0, embedding=2.0)
    targets = objective.targets(data)
    plain = F.cross_entropy(logits, data[1])
    wanted = data[2][:, C:]
    off = objective.to_teacher(embedding) - wanted
    expected = plain + 2 * off.square().sum() / wanted.square().sum()
    assert torch.allclose(objective(outputs(logits, embedding), targets), expected)
    with torch.no_grad():  # N = 6 rows of 5 numbers and a bias: a map that fits exactly
        x = torch.cat([embedding, torch.ones(N, 1)], dim=1)
        fit = torch.linalg.solve(x, wanted)
        objective.to_teacher.weight.copy_(fit[:WIDTH].T)
        objective.to_teacher.bias.copy_(fit[WIDTH])
    assert torch.allclose(objective(outputs(logits, embedding), targets), plain, atol=1e-4)


def test_a_live_teacher_is_asked_about_the_images_of_the_step(batch):
    data, logits, embedding = batch
    seen = []

    def ask(images):
        seen.append(images)
        return data[2][:, :C]

    objective = distilled(ask=ask)
    got = objective(outputs(logits, embedding), objective.targets(data[:2]))
    assert seen == [data[0]]
    beforehand = distilled()
    assert torch.equal(got, beforehand(outputs(logits, embedding), beforehand.targets(taught(data, C))))


def test_mixed_targets_mix_the_soft_ones_too(batch):
    from torchvision.transforms import v2

    data, _, _ = batch
    objective = distilled(mixup=1.0)
    targets = objective.targets(taught(data, C))
    (way,) = objective.mixes()
    assert isinstance(way, v2.MixUp)
    _, mixed = way(data[0].float(), targets)
    assert torch.allclose(mixed[:, :C].sum(1), torch.ones(N))
    assert torch.allclose(mixed[:, C:].sum(1), torch.ones(N))
    assert not torch.allclose(mixed, targets)


class Lengths(torch.nn.Module):
    """The objective of a task that isn't classification: numbers, whose targets can't be mixed."""

    def targets(self, batch):
        return batch[1]["length"]

    def forward(self, outputs, targets):
        return (outputs["length"] - targets).square().mean()

    def mixes(self):
        return ()


def test_any_task_learns_its_teachers_embedding(batch):
    (images, _, said), _, embedding = batch
    true = {"length": torch.arange(6.0)}
    student = {"length": torch.ones(N), "pool": embedding}
    objective = Distilled(Lengths(), Distillation(1.0, 1.0, 2.0, None), WIDTH, 0, K, None, "pool")
    assert (objective.taps, objective.mixes()) == (("pool",), ())
    got = objective(student, objective.targets((images, true, said[:, C:])))
    off = objective.to_teacher(embedding) - said[:, C:]
    expected = (1 - true["length"]).square().mean() + 2 * off.square().sum() / said[:, C:].square().sum()
    assert torch.allclose(got, expected)


def test_class_weights_make_classes_equal():
    counts = [90, 9, 0, 1]
    w = class_weights(counts)
    assert torch.allclose(w * torch.tensor(counts), torch.tensor([100 / 3, 100 / 3, 0, 100 / 3]))
    assert float((w * torch.tensor(counts)).sum()) == pytest.approx(100)  # the mean over the images is 1


def test_weights_count_however_the_batch_is_made(batch):
    data, logits, embedding = batch
    w = torch.tensor([1.0, 2.0, 3.0, 4.0])
    objective = CrossEntropy(Recipe(label_smoothing=0.0), C, w)
    each = F.cross_entropy(logits, data[1], reduction="none")
    assert torch.allclose(objective(outputs(logits, embedding), data[1]), (w[data[1]] * each).mean())
    mixed = F.one_hot(data[1], C).float()
    assert torch.allclose(objective(outputs(logits, embedding), mixed), (w[data[1]] * each).mean())
