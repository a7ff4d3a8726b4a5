"""The ladder entry of config.json: valid contents, and options given in addition to it."""

import pytest

from ladderize import LadderConfig, LadderError
from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.selection import Selection, ranges_of


def said(**fields):
    return LadderEntry.read({"model_type": "llama", "ladder": fields})


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"ladder": {"blocks": [4, 5], "staleness": 2, "version": 1}}, {"blocks": [4, 5]}),
        ({"ladder": {"layers": "last:50%", "staleness": 2}}, {"layers": "last:50%"}),
        ({"ladder": {"blocks": None, "staleness": 2}}, {"layers": "all"}),
        ({"ladder_layers": [2, 3]}, {"layers": [2, 3]}),
        ({"ladder_layers": 2}, {"layers": "last:2"}),
        ({"ladder_layers": [2, 3], "ladder": {"layers": "2:4", "staleness": 2}}, {"layers": "2:4"}),
    ],
)
def test_what_it_says(config, options):
    entry = LadderEntry.read(config)
    staleness = 2 if "ladder" in config else 1
    assert entry.fill({"mode": None}) == {**options, "staleness": staleness, "mode": None}
    assert LadderEntry.read({"ladder": entry.as_data()}).fill({}) == entry.fill({})


@pytest.mark.parametrize("config", [{}, {"ladder_layers": None}, {"ladder_layers": []}])
def test_a_standard_model_says_nothing(config):
    assert LadderEntry.read(config) is None


@pytest.mark.parametrize(
    ("config", "messages"),
    [
        ({"ladder": [4, 5]}, ["is not an object of fields"]),
        (
            {"ladder": {"block": [4], "staleness": 0, "layers": "upper"}},
            ["did you mean 'blocks'?", "staleness=0 is not", "layers='upper' is not"],
        ),
        ({"ladder": {"blocks": [1], "layers": [1]}}, ["contradict each other"]),
        ({"ladder": {"blocks": [1], "staleness": 9}}, ["from 1 to 8"]),
        ({"ladder": {"version": 2, "kind": "x"}}, ["version 2 is newer than 1"]),
        ({"ladder": {"version": "x"}}, ["version='x' is not a whole number"]),
        ({"ladder_layers": "all"}, ["ladder_layers='all' is neither"]),
        ({"ladder_layers": [-1]}, ["ladder_layers=[-1] is not"]),
        (
            {"ladder_layers": [0], "ladder": {"layers": [1]}},
            ["ladder has layers 1, staleness 1, ladder_layers has [0]"],
        ),
    ],
)
def test_what_cannot_be_used(config, messages):
    with pytest.raises(LadderError, match="cannot be used") as caught:
        LadderEntry.read(config)
    assert len(caught.value.blockers) == len(messages)
    assert all(message in str(caught.value) for message in messages)


@pytest.mark.parametrize(
    "given",
    [
        {"blocks": [3, 2]},
        {"blocks": "2:4", "staleness": 1},
        {"blocks": "last:2"},  # the number of blocks decides
        {"layers": "1:2"},
        {"layers": None, "expect_blocks": 4},
    ],
)
def test_options_that_may_mean_the_same(given):
    config = LadderConfig.from_options(given, checkpoint=said(blocks=[2, 3]))
    asked = given.get("layers") or given.get("blocks") or [2, 3]
    assert asked == (config.layers if config.blocks is None else config.blocks)


def test_options_that_ask_for_another_ladder():
    with pytest.raises(LadderError) as caught:
        LadderConfig.from_options(
            {"blocks": "2:5", "staleness": 1}, checkpoint=said(blocks=[2, 3], staleness=2)
        )
    assert [str(blocker) for blocker in caught.value.blockers] == [
        "blocks='2:5', and config.json has blocks 2-3, staleness 2",
        "staleness=1, and config.json has blocks 2-3, staleness 2",
    ]


def test_it_is_not_an_option():
    with pytest.raises(LadderError, match="not known"):
        LadderConfig.from_options({"checkpoint": said(blocks=[2])})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("all", "0:", True),
        ("0:2", [1, 0], True),
        ("0:2", [0], False),
        ("last:2", [0, 1], None),
        ("last:2", "last:3", False),
        ("last:2", "last:2%", None),
        ("last:50%", "last:50.0%", True),
    ],
)
def test_selections_that_mean_the_same(one, other, same):
    assert Selection.parse(one).is_same(Selection.parse(other)) is same


def test_runs_of_indices_are_shown_by_their_ends():
    assert ranges_of([0, 2, 4, 5, 6]) == "0, 2, 4-6"
