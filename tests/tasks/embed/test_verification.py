"""Verification, retrieval and identification, against counts by hand."""

import numpy as np
import pytest

from mobilenets.data.pairs import Seen, read_pairs
from mobilenets.errors import UserError
from mobilenets.tasks.embed.retrieval import identify, retrieve
from mobilenets.tasks.embed.scores import VECTOR, VectorTally, mean_cosine
from mobilenets.tasks.embed.verification import at_rate, best_threshold, drawn_pairs, verify


def unit(rows):
    v = np.asarray(rows, np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def test_the_best_threshold_is_right_most_often():
    scores, same = np.array([0.9, 0.7, 0.6, 0.2]), np.array([True, True, False, False])
    assert best_threshold(scores, same) == pytest.approx(0.65)
    assert best_threshold(scores, ~same) in (pytest.approx(1.4), pytest.approx(-0.3))  # none, or all
    assert best_threshold(np.array([0.5, 0.5]), np.array([True, True])) == pytest.approx(0)


def test_each_fold_is_judged_by_the_others_threshold():
    """A fold whose own best threshold is another reads lower than by its own."""
    scores = np.array([0.8, 0.4, 0.8, 0.4, 0.3, 0.1, 0.8, 0.4])
    same = np.array([True, False] * 4)
    fold = np.repeat(np.arange(4), 2)
    found = verify(scores, same, fold)
    assert found.folds == (100, 100, 50, 100)
    assert found.accuracy == pytest.approx(350 / 4)
    assert found.error == pytest.approx(np.std([100, 100, 50, 100], ddof=1) / 2)


def test_a_rate_of_false_accepts_is_counted_or_refused():
    scores = np.concatenate([np.linspace(0.5, 1, 100), np.linspace(0, 0.6, 100)])
    same = np.arange(200) < 100
    tenth = at_rate(scores, same, 0.1)
    assert tenth.accepts == 10
    assert tenth.tar == pytest.approx(100 * (scores[same] > np.sort(scores[~same])[::-1][10]).mean())
    thousandth = at_rate(scores, same, 1e-3)
    assert thousandth.tar is None
    assert "less than one" in str(thousandth)
    assert (
        at_rate(np.ones(20), np.arange(20) < 10, 0.1).accepts == 0
    )  # all equal: none can be accepted without the others


def test_the_area_of_a_perfect_order_is_one():
    found = verify(np.array([0.9, 0.8, 0.2, 0.1]), np.array([1, 1, 0, 0], bool), np.array([0, 1, 0, 1]))
    assert found.auc == pytest.approx(1)
    assert found.roc[0] == (0, 0)
    assert found.roc[-1] == (1, 1)


def test_pairs_are_drawn_alike_and_are_what_they_say():
    who = np.repeat(np.arange(7), 5)
    pairs, same, fold = drawn_pairs(who)
    assert (same.sum(), (~same).sum()) == (70, 70)
    assert ((who[pairs[:, 0]] == who[pairs[:, 1]]) == same).all()
    assert set(fold) == set(range(10))
    assert np.array_equal(pairs, drawn_pairs(who)[0])
    assert not len(drawn_pairs(np.arange(5))[0])


def test_retrieval_by_hand():
    v = unit([[1, 0], [0.9, 0.1], [0.8, 0.3], [0, 1]])  # the nearest to 0 is 1, which is another
    found = retrieve(v, np.array([0, 1, 0, 1]))
    assert found.queries == 4
    assert found.recall[1] == 0
    assert found.recall[5] == 100
    assert found.map == pytest.approx(100 * np.mean([1 / 2, 1 / 3, 1 / 2, 1 / 2]))
    assert retrieve(v, np.arange(4)) is None


def test_strangers_are_told_from_the_enrolled():
    people = np.repeat(np.arange(10), 2)
    alone = np.arange(10, 30)
    v = np.concatenate([np.eye(30)[people], np.eye(30)[alone]]).astype(np.float32)
    found = identify(v, np.concatenate([people, alone]))
    assert (found.enrolled, found.known, found.strangers) == (10, 10, 20)
    assert found.rate == {0.01: None, 0.1: 100.0}  # a hundredth of twenty is none
    assert identify(v[:20], people) is None


def test_the_mean_cosine_of_others():
    v, who = unit(np.random.default_rng(0).normal(size=(40, 6))), np.repeat(np.arange(8), 5)
    near = v @ v.T
    assert mean_cosine(v, who) == pytest.approx(near[who[:, None] != who].mean(), abs=1e-6)
    assert mean_cosine(v[:1], who[:1]) == 0


def test_collapsed_vectors_are_said_to_be():
    tally = VectorTally()
    tally.update({VECTOR: np.ones((12, 4), np.float32)}, np.repeat(np.arange(3), 4))
    scores = tally.compute("faces", "val")
    assert scores.collapsed
    assert scores.verified.accuracy == pytest.approx(50, abs=10)


def test_given_pairs_survive_a_missing_image():
    tally = VectorTally()
    v = unit([[1, 0], [0.9, 0.1], [0, 1]])
    seen = [Seen(0, ((0, True, 0), (2, True, 1))), Seen(0, ((0, True, 0), (1, False, 0))), Seen(1, ((1, False, 0),))]
    tally.update({VECTOR: v}, seen)
    scores = tally.compute("faces", "test", ("other.jpg: damaged",))
    assert (scores.verified.same, scores.verified.different, scores.incomplete, scores.given) == (1, 1, 1, True)
    with pytest.raises(UserError, match="nothing to verify"):
        VectorTally().compute("faces", "test")


# ---- lists of pairs

NAMES = ["lfw/Ann/Ann_0001.webp", "lfw/Ann/Ann_0002.webp", "lfw/Bo/Bo_0001.webp", "lfw/Cy/Cy_0001.webp"]


def test_lfws_list():
    text = b"2\t1\nAnn\t1\t2\nAnn\t1\tBo\t1\nAnn\t2\t1\nBo\t1\tCy\t1\n"
    found = read_pairs(text, "pairs.txt", NAMES)
    assert found == [(0, 1, True, 0), (0, 2, False, 0), (1, 0, True, 1), (2, 3, False, 1)]


def test_a_table_of_pairs():
    text = b"a,b,same,fold\nAnn_0001.jpg,Ann/Ann_0002.png,1,x\nAnn_0001.jpg,Bo_0001.jpg,0,y\n"
    assert read_pairs(text, "pairs.csv", NAMES) == [(0, 1, True, 0), (0, 2, False, 1)]


@pytest.mark.parametrize(
    ("text", "where", "line"),
    [
        (b"1\t1\nAnn\t1\t3\nAnn\t1\tBo\t1\n", "pairs.txt", "aren't there: Ann/Ann_0003"),
        (b"1\t2\nAnn\t1\t2\nAnn\t1\tBo\t1\n", "pairs.txt", "promises 4 pairs, and there are 2"),
        (b"1\t1\nAnn\tone\t2\nAnn\t1\tBo\t1\n", "pairs.txt", "line 2 is no pair"),
        (b"names\n", "pairs.txt", "not a list of pairs"),
        (b"", "pairs.txt", "not a list of pairs"),
        (b"a,b\nx,y\n", "p.csv", "'same' is missing"),
        (b"a,b,same\nAnn_0001,Bo_0001,maybe\n", "p.csv", "says 'maybe' in row 1"),
    ],
)
def test_a_list_that_is_none_is_one_line(text, where, line):
    with pytest.raises(UserError, match=line):
        read_pairs(text, where, NAMES)
