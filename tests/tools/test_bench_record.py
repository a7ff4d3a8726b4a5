"""Results of benchmarks: written, read again, compared with planted differences."""

import json
from dataclasses import replace

import pytest
from moves import compare, read

from ladderize import LadderError
from ladderize.tools.bench.record import ResultRow, Results, describe_machine, describe_versions

SECONDS = {"standard": 2.0, "ladder": 1.2, "bound": 1.0}


def row(variant="ladder", batch=1, **values):
    return ResultRow({"variant": variant, "batch": batch}, {"median_s": SECONDS[variant]} | values)


def results(*rows):
    return Results("ladderize bench x", rows)


def test_what_is_written_is_read(tmp_path):
    values = {"error": float("inf"), "hidden_fraction": None, "exposed_s": 0.0}
    before = results(row(**values), row("bound", batch=4))
    before.write(tmp_path / "a.json")
    assert read(tmp_path / "a.json") == before
    json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)  # plain JSON


def test_a_file_is_not_replaced_by_accident(tmp_path):
    results(row()).write(tmp_path / "a.json")
    with pytest.raises(LadderError, match="exists already"):
        results().write(tmp_path / "a.json")
    results().write(tmp_path / "a.json", force=True)
    assert not read(tmp_path / "a.json").rows


def test_results_say_where_they_are_from():
    made = results(row())
    assert made.machine == describe_machine() and made.versions == describe_versions()
    assert made.machine["cores"] > 0 and made.machine["cpu"]
    assert made.versions["torch"] and made.versions["ladderize"].startswith("0.")
    assert made.when.endswith("+00:00")


def test_two_rows_of_one_key():
    with pytest.raises(LadderError, match=r"same key:\n  - variant=ladder batch=1$"):
        results(row(), row(batch=4), row(median_s=3.0))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "holds no results: Expecting"),
        ("[]", "holds no results: it has no format"),
        ('{"rows": []}', "holds no results: it has no format"),
        ('{"format": 99}', "has results of format 99, read is 1"),
        ('{"format": 1}', "holds malformed results: KeyError: 'command'"),
    ],
)
def test_other_files(tmp_path, text, complaint):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(LadderError, match=complaint):
        read(tmp_path / "a.json")


@pytest.mark.parametrize("rows", [3, ["x"], [{"key": {}}], [{"key": {}, "values": {"a": "b"}}]])
def test_malformed_rows(tmp_path, rows):
    data = json.loads(results().to_json()) | {"rows": rows}
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(LadderError, match="malformed"):
        read(tmp_path / "a.json")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(LadderError, match="cannot be read: No such file"):
        read(tmp_path / "a.json")


MOVES = [  # name, old, new, verdict; None: it has not moved
    ("median_s", 1.00, 1.04, None),
    ("median_s", 1.00, 1.06, "worse"),
    ("median_s", 1.00, 0.90, "better"),
    ("tokens_per_s", 100.0, 90.0, "worse"),
    ("speedup_ratio", 1.3, 1.5, "better"),
    ("bound_ratio", 1.02, 1.10, "worse"),
    ("hidden_fraction", 0.99, 0.90, "worse"),
    ("hidden_fraction", 0.01, 0.02, None),
    ("exposed_s", 1e-5, 3e-5, None),
    ("exposed_s", 1e-5, 1e-3, "worse"),
    ("communicating_s", 1.0, 2.0, "moved"),
    ("compile_s", 20.0, 25.0, None),
    ("compile_s", 20.0, 30.0, "worse"),
    ("passes_s", 0.01, 0.02, None),
    ("races", 0.0, 1.0, "worse"),
    ("peak_bytes", 100.0, 80.0, "better"),
    ("error", 1e-7, 4e-7, None),
    ("error", 1e-3, 3e-3, None),
    ("error", 1e-7, 0.5, "worse"),
    ("error", 1e-7, float("nan"), "worse"),
    ("error", float("nan"), float("nan"), None),
    ("median_s", 1.0, None, "worse"),
    ("median_s", None, 1.0, "better"),
    ("quartiles_s", 0.1, 0.9, None),
    ("passes_defer_waits_s", 0.1, 0.9, None),
    ("launches", 3.0, 4.0, "moved"),
]


@pytest.mark.parametrize(("name", "old", "new", "verdict"), MOVES)
def test_what_moved(name, old, new, verdict):
    found = compare(results(row(**{name: old})), results(row(**{name: new})), tolerance=0.05)
    assert [move.verdict for move in found.moves] == [verdict] * (verdict is not None)
    assert bool(found.worse) == (verdict == "worse")


def test_a_move_says_what_it_is():
    (move,) = compare(results(row()), results(row(median_s=1.8))).moves
    assert (move.key, move.name) == ({"variant": "ladder", "batch": 1}, "median_s")
    assert move.ratio == pytest.approx(1.5)
    (gone,) = compare(results(row()), results(row(median_s=None))).moves
    assert gone.ratio is None


def test_tolerance():
    old, new = results(row()), results(row(median_s=1.8))
    assert not compare(old, new, tolerance=0.51).moves


def test_rows_of_one_file_alone():
    found = compare(results(row(), row(batch=4)), results(row(), row("bound")))
    assert [r.name for r in found.only_old] == ["variant=ladder batch=4"]
    assert [r.name for r in found.only_new] == ["variant=bound batch=1"]
    assert found.compared == 1


def test_of_another_machine_only_what_has_no_unit_is_compared():
    old = results(row(bound_ratio=1.0, peak_bytes=1.0))
    moved = results(row(median_s=9.0, bound_ratio=2.0, peak_bytes=9.0))
    other = replace(moved, machine={**moved.machine, "cores": 999})
    assert [m.name for m in compare(old, moved).moves] == ["median_s", "bound_ratio", "peak_bytes"]
    found = compare(old, other)
    assert [move.name for move in found.moves] == ["bound_ratio"]
    assert found.machine == {"cores": (old.machine["cores"], 999)}


def test_versions_are_told_and_do_not_hinder():
    new = results(row(median_s=9.0))
    found = compare(results(row()), replace(new, versions={**new.versions, "torch": "9"}))
    assert found.versions == {"torch": (new.versions["torch"], "9")}
    assert [move.name for move in found.moves] == ["median_s"]
