"""Each mutant of the table can be planted; `run.py` shows that the tests kill them."""

from pathlib import Path

from mutants import MUTANTS, find_misfits

ROOT = Path(__file__).parents[2]


def test_every_mutant_can_be_planted():
    assert list(find_misfits(ROOT, MUTANTS)) == []


def test_the_table_is_long_and_wide():
    assert len(MUTANTS) >= 40
    assert len({mutant.file for mutant in MUTANTS}) >= 30
