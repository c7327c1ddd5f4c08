"""Answers to compare: one image at a time."""

import numpy as np

from mobilenets.deploy import engines


def expected(model, paths, top=5):
    """The answer taken apart: one image at a time, read, run, sorted."""
    engine = engines.load(model)
    out = []
    for p in paths:
        scores = engine(engine.card.preprocess.read(p)[None])["probabilities"][0]
        best = sorted(range(len(scores)), key=lambda c: -scores[c])[:top]
        out.append([(engine.card.labels[c], float(scores[c])) for c in best])
    return out


def same(predictions, answers):
    assert len(predictions) == len(answers)
    for p, answer in zip(predictions, answers, strict=True):
        assert p.error is None
        assert [label for label, _ in p.top] == [label for label, _ in answer]
        np.testing.assert_allclose([v for _, v in p.top], [v for _, v in answer], atol=1e-5)
