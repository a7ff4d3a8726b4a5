"""Divergence, loss and agreement against plain formulas, and their intervals."""

import math
from dataclasses import astuple

import pytest
import torch

from ladderize import LadderError
from ladderize.quality.evaluation import evaluate, evaluation_of
from ladderize.quality.measures import Measures, logits_of, measure, positions_of


def _batch():
    generator = torch.Generator().manual_seed(0)
    standard, ladder = torch.randn(2, 3, 4, 5, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 0]])
    ids = torch.randint(0, 5, (3, 4), generator=generator)
    return standard, ladder, {"input_ids": ids, "attention_mask": mask}


def test_against_formulas():
    standard, ladder, batch = _batch()
    found = measure(standard, ladder, *positions_of(batch, standard, predicts_next=True))
    p, q = standard.softmax(-1), ladder.softmax(-1)
    mask, ids = batch["attention_mask"], batch["input_ids"]
    for row in range(3):
        at = [i for i in range(4) if mask[row, i]]
        following = [i for i in at if i + 1 < 4 and mask[row, i + 1]]
        kl = sum(float((p[row, i] * (p[row, i] / q[row, i]).log()).sum()) for i in at)
        loss = -sum(math.log(q[row, i, ids[row, i + 1]]) for i in following)
        standard_loss = -sum(math.log(p[row, i, ids[row, i + 1]]) for i in following)
        agreeing = sum(int(p[row, i].argmax() == q[row, i].argmax()) for i in at)
        wanted = (len(at), kl, agreeing, len(following), loss, standard_loss)
        assert [float(sums[row]) for sums in astuple(found)] == pytest.approx(wanted, rel=1e-5)
    assert found.mean_kl == pytest.approx(float(found.kl.sum()) / 10)
    assert found.agreement == float(found.agreeing.sum()) / 10


def test_labels_take_the_place_of_the_tokens():
    standard, ladder, batch = _batch()
    labels = batch["input_ids"].masked_fill(torch.arange(4) < 3, -100)
    positions = positions_of({**batch, "labels": labels}, standard, predicts_next=True)
    assert measure(standard, ladder, *positions).targets.tolist() == [1, 1, 0]
    unknown = measure(standard, ladder, *positions_of(batch, standard, predicts_next=False))
    assert unknown.mean_loss is None
    with pytest.raises(LadderError, match="no next tokens"):
        evaluation_of(unknown)


def test_logits_of_every_kind_of_output():
    logits = torch.randn(2, 3, 5)
    for output in (logits, (logits, None), type("Output", (), {"logits": logits})()):
        assert logits_of(output) is logits or torch.equal(logits_of(output), logits)
    assert logits_of(logits[:, 0]).shape == (2, 1, 5)
    with pytest.raises(LadderError, match="returns dict, not logits"):
        logits_of({})


def test_intervals_hold_the_true_value_as_often_as_they_say():
    """Of sequences whose divergence is known on average, 95 % of the intervals hold it."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(100):
        kl = torch.empty(40, dtype=torch.float64).exponential_(0.5, generator=generator)
        ones = torch.ones_like(kl)
        estimate = evaluation_of(Measures(ones, kl, ones, ones, kl, ones)).kl
        assert estimate.low < estimate.value < estimate.high
        held += estimate.low < 2.0 < estimate.high
    assert 85 <= held <= 99


def test_one_sequence_has_no_interval():
    ids = torch.tensor([[1, 2, 3]])
    logits = torch.randn(1, 3, 5)
    found = evaluate(lambda input_ids: logits, lambda input_ids: logits, [{"input_ids": ids}])  # noqa: ARG005
    assert (found.kl.value, found.kl.low, found.agreement.value) == (0.0, None, 1.0)
    assert found.added_loss.value == 0.0
    assert found.perplexity.value == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).exp()), rel=1e-5
    )


def test_other_logits_are_refused():
    batch = {"input_ids": torch.tensor([[1, 2, 3]])}
    with pytest.raises(LadderError, match="differ in shape"):
        evaluate(lambda **_: torch.randn(1, 3, 5), lambda **_: torch.randn(1, 3, 6), [batch])
