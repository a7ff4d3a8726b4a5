"""Damage against tokens/s: which sets are on the curve, and which one is advised."""

import pytest
from helpers.reports import machine
from test_planning import alike

from ladderize import LadderError
from ladderize.config.block_plan import BlockPlan
from ladderize.tools.predict.planning.damage_curve import DamagePoint, advised, damage_curve
from ladderize.tools.predict.planning.forecast import Request, tokens_per_s
from ladderize.tools.predict.planning.planned_nets import ladder, standard

REQUEST = Request(1, 1, 1)


def plan_of(*sets, layers=(0, 0, 1, 1)):
    """Sets of blocks, each with its damage."""
    return BlockPlan(
        model="Llama tiny",
        staleness=1,
        tokens=8,
        standard_loss=1.0,
        blocks=[{"module": "m", "kind": "MLP", "layer": n, "share": 0.25} for n in layers],
        sets=[{"blocks": b, "share": len(b) / 4, "kl": kl} for b, kl in sets],
        references={},
        versions={},
    )


def test_a_point_is_the_ladder_of_its_set():
    workload, hardware = alike(4), machine()
    (point,) = damage_curve(workload, REQUEST, hardware, plan_of(([1, 2], 0.3)))
    speed = tokens_per_s(ladder(workload, [1, 2]), REQUEST, hardware)
    assert (point.blocks, point.share, point.kl) == ((1, 2), 0.5, 0.3)
    assert point.tokens_per_s == speed
    assert point.speedup == speed / tokens_per_s(standard(workload), REQUEST, hardware) > 1


def test_sets_that_another_one_beats_are_left_out():
    """The set of three is faster than that of two and costs less; [1] is as fast as [2]."""
    sets = (([1], 0.2), ([2], 0.1), ([1, 2], 0.5), ([1, 2, 3], 0.4))
    found = damage_curve(alike(4), REQUEST, machine(), plan_of(*sets))
    assert [point.blocks for point in found] == [(2,), (1, 2, 3)]
    assert found[0].tokens_per_s < found[1].tokens_per_s


def test_sets_of_another_model_are_refused():
    with pytest.raises(LadderError, match=r"\(Llama tiny\): it has 5 blocks, this one has 4, or"):
        damage_curve(alike(4), REQUEST, machine(), plan_of(([1], 0.2), layers=(0, 0, 1, 1, 2)))
    with pytest.raises(LadderError, match="or their layers differ"):
        damage_curve(alike(4), REQUEST, machine(), plan_of(([1], 0.2), layers=(0, 1, 2, 3)))


def curve(*points):
    """Points of these speedups and damages."""
    return [DamagePoint((n,), n, kl, speedup, speedup) for n, (speedup, kl) in enumerate(points)]


def test_the_advised_set_is_where_the_curve_bends():
    """Gain is cheap up to the second point, and expensive after it."""
    points = curve((1.05, 0.04), (1.24, 0.1), (1.26, 0.6), (1.3, 1.0))
    assert advised(points) is points[1]
    steep = curve((1.01, 0.5), (1.3, 1.0))
    assert advised(steep) is steep[1]


def test_no_set_is_advised_where_none_is_faster():
    assert advised([]) is None
    assert advised(curve((1.0, 0.1), (0.99, 0.2))) is None
    assert advised(curve((1.1, 0.0))) is None
