"""Links: the profiles that come with ladderize, and the seconds of a collective."""

from dataclasses import asdict, replace

import pytest

from ladderize import LadderError
from ladderize.config.hardware import Link, known_links, link_of

ANY = Link("any", ranks=4, latency=1e-3, bandwidth=1e9)


def test_the_profiles():
    assert list(known_links()) == [
        *(f"{kind}-{ranks}" for kind in ("nvlink", "pcie") for ranks in (2, 4, 8)),
        *("ethernet-100g", "ethernet-10g", "wifi", "infiniband-16"),
    ]
    for name, link in known_links().items():
        assert link_of(name) == link
        assert link.name == name
        _, _, ranks = name.partition("-")
        assert link.ranks == (int(ranks) if ranks.isdigit() else 2)


@pytest.mark.parametrize("link", known_links().values(), ids=known_links())
def test_every_number_says_where_it_is_from(link):
    for number in ("specification", "bandwidth", "latency"):
        assert number in link.source.lower()
    assert any(word in link.source for word in ("measured", "assumption", "model"))


def test_slower_kinds_are_slower():
    """In the order of the file, apart from how many ranks share them."""
    kinds = ["nvlink-2", "pcie-2", "ethernet-100g", "ethernet-10g", "wifi"]
    links = [link_of(name) for name in kinds]
    assert [link.latency for link in links] == sorted(link.latency for link in links)
    assert [link.bandwidth for link in links] == sorted((x.bandwidth for x in links), reverse=True)


@pytest.mark.parametrize(
    ("op", "crossings"),
    [("all_reduce", 1.5), ("reduce_scatter", 0.75), ("all_gather", 0.75), ("all_to_all", 0.75)],
)
def test_seconds(op, crossings):
    assert ANY.seconds(0, op) == 1e-3
    assert ANY.seconds(1e6, op) == pytest.approx(1e-3 + crossings * 1e-3)
    assert replace(ANY, bandwidth=2e9).seconds(1e6, op) < ANY.seconds(1e6, op)


def test_one_rank_sends_nothing():
    assert replace(ANY, ranks=1).seconds(1e9) == ANY.latency


@pytest.mark.parametrize(
    "wrong", [{"ranks": 0}, {"bandwidth": 0}, {"latency": -1}, {"bandwidth": float("nan")}]
)
def test_what_is_no_link(wrong):
    with pytest.raises(LadderError, match="is not a possible link"):
        Link(**(asdict(ANY) | wrong))


def test_unknown_names():
    with pytest.raises(LadderError, match=r"no link called 'nvlink'(.|\n)*nvlink-8"):
        link_of("nvlink")
