"""The numbers that the planner ships with are those that fit the paper's table."""

import dataclasses
import json
import math
import statistics

import pytest
from calibrate import fit, spread, squares
from paper_table import llama_70b, predicted, ratio_errors, table

from ladderize.config.ahead_of_time import aot_config
from ladderize.config.hardware import Errors, calibration, calibration_errors
from ladderize.tools.predict.planning.confidence import BATCHES, DEVICE, LINKS, RANKS
from ladderize.tools.predict.planning.planned_nets import standard
from ladderize.tools.predict.planning.workload import workload_of
from ladderize.tools.sources.hugging_face import InputSizes
from ladderize.tools.sources.opened_models import open_model


def ratios():
    each = [ratio_errors(row, calibration()) for row in table()]
    return [abs(errors[name]) for errors in each for name in ("ladder", "parallel")]


def test_the_table():
    assert len(table()) == 14
    assert {(row.link, row.ranks) for row in table()} >= {("nvlink", 8), ("nop2p", 8)}
    first = table()[0]
    assert first.speeds == {"standard": 35.42, "ladder": 36.69, "parallel": 36.67, "bound": 38.24}
    assert "bound" not in table()[-1].speeds
    assert {row.link for row in table()} == {*LINKS} and DEVICE == "h100"
    for measured, told in (("ranks", RANKS), ("batch", BATCHES)):
        found = [getattr(row, measured) for row in table()]
        assert (min(found), max(found)) == told


def test_ratios_are_within_three_percent_with_six_numbers():
    assert len(dataclasses.fields(calibration())) == 6
    assert statistics.mean(ratios()) <= 0.03


def test_the_errors_that_are_told():
    speeds = [
        abs(found / row.speeds[name] - 1)
        for row in table()
        for name, found in predicted(row, calibration()).items()
    ]
    told = calibration_errors()
    left_out = told.left_out_ratio  # bench/calibrate.py --leave-out takes a minute to find it
    assert told == Errors(
        pytest.approx(statistics.mean(ratios()), abs=5e-4),
        pytest.approx(max(ratios()), abs=5e-4),
        left_out,
        pytest.approx(statistics.mean(speeds), abs=5e-4),
    )
    assert statistics.mean(ratios()) < left_out < max(ratios())


def test_the_numbers_are_physical():
    found = calibration()
    assert 0.5 < found.memory <= 1
    assert 0.1 < found.flops <= 1
    assert 0 < found.contention < 0.5
    assert 1e-6 < found.nvlink < found.nop2p < 50e-6
    assert 1e-6 < found.launch < 50e-6


def test_fitting_again_moves_nothing():
    found = fit(table(), calibration())
    for name, value in dataclasses.asdict(found).items():
        assert math.isclose(value, getattr(calibration(), name), rel_tol=0.01), name


def test_how_well_the_table_tells_each_number():
    found = dataclasses.asdict(spread(table(), calibration()))
    assert all(0.02 < error < 0.3 for error in found.values())
    assert found["launch"] > found["memory"]  # a launch is the smallest part of a step


@pytest.mark.deep
def test_a_fit_finds_its_way():
    """From wrong latencies; the rest is near a flat valley, where one start is as good as none."""
    wrong = dataclasses.replace(calibration(), nvlink=20e-6, nop2p=10e-6)
    found = fit(table(), wrong)
    assert squares(table(), found) < squares(table(), wrong) / 2
    assert found.nvlink == pytest.approx(calibration().nvlink, rel=0.05)
    assert found.nop2p == pytest.approx(calibration().nop2p, rel=0.05)


def test_the_model_of_the_table_is_what_a_trace_finds(tmp_path):
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 1,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = open_model(f"hf:{tmp_path / 'config.json'}", InputSizes(2, 32), has_weights=False)
    found = standard(workload_of(source.explain(aot_config())))
    by_hand = next(net for net in llama_70b() if net.name == "standard")
    for traced, written in zip(found.blocks, by_hand.blocks, strict=False):
        # Beside its weights an attention reads the 64 frequencies of its rotary embedding.
        assert dataclasses.astuple(traced.costs) == pytest.approx(
            dataclasses.astuple(written.costs), rel=1e-5
        )
        assert dataclasses.replace(traced, costs=written.costs) == written
    assert dataclasses.astuple(found.outside) == pytest.approx(
        dataclasses.astuple(by_hand.outside), rel=1e-5
    )
