"""The `ladder` entry of a Hugging Face config.json: the ladder that the weights were trained as.

{"ladder": {"blocks": [4, 5, 6, 7], "staleness": 1, "version": 1}}
{"ladder_layers": [2, 3]}   {"ladder_layers": 2}      the same for a four-layer Llama, in the form
                                                      of the paper's class; 2 means the last two
    │
LadderEntry ── fill(options)   the options of `LadderConfig`, completed from config.json
            └─ as_data()       the value to write
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ladderize.config.connectivity import LADDER, connectivity_problems, patterns_of
from ladderize.config.residual_form import PLAIN, desync_period, variant_problems
from ladderize.config.selection import Selection, ranges_of
from ladderize.errors import Blocker, LadderError, nearest

KEY = "ladder"
PAPERS_KEY = "ladder_layers"
"""The key of `LlamaLadderConfig`, published by the authors of arXiv 2501.06589."""
VERSION = 1
"""The latest version of the entry."""
MAX_STALENESS = 8
"""Largest staleness for which waits are deferred and existing ladders are recognized."""
SELECTIONS = ("layers", "blocks")
FOR_ANOTHER_LADDER = (
    "leave them out: config.json says which ladder it is. For another ladder of the same weights, "
    f"delete `{KEY}` (or `{PAPERS_KEY}`) from config.json, or from model.config"
)


class ContradictionError(LadderError):
    """The options contradict the checkpoint's ladder. `strict=False` does not suppress it."""


@dataclass(frozen=True)
class LadderEntry:
    """The ladder that a checkpoint was trained as.

    Attributes:
        layers, blocks: at most one of them, as in `LadderConfig`. Both None: all layers.
        staleness: number of blocks by which a converted block reads earlier, 1 to 8.
        connectivity, routed, variant: as in `LadderConfig`. A checkpoint cannot be a desync
            residual, which depends on the number of ranks.
    """

    layers: Any = None
    blocks: Any = None
    staleness: int = 1
    connectivity: str = LADDER
    routed: Any = None
    variant: str = PLAIN

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "LadderEntry | None":
        """Read the entry from the data of a config.json; None if there is none.

        Raises:
            LadderError: unknown fields, invalid values, a newer version, or a contradicting
                `ladder_layers`.
        """
        said, papers = config.get(KEY), config.get(PAPERS_KEY)
        problems = [*_problems(said), *_papers_problems(papers)]
        entry = by_paper = None
        if not problems:
            entry, by_paper = _entry_of(said), _entry_of_paper(papers)
            if entry and by_paper and not entry.agrees_with("layers", by_paper.layers):
                problems = [f"{KEY} has {entry}, {PAPERS_KEY} has {papers!r}"]
        if problems:
            raise LadderError(
                "What config.json says of the ladder cannot be used:",
                map(Blocker, problems),
                f'write "{KEY}": {{"blocks": [4, 5], "staleness": 1, "version": {VERSION}}}',
            )
        return entry or by_paper

    @property
    def selection(self) -> dict[str, Any]:
        """`layers` or `blocks` as an option; all layers if neither is set."""
        found = {name: getattr(self, name) for name in SELECTIONS}
        return {n: value for n, value in found.items() if value is not None} or {"layers": "all"}

    def as_data(self) -> dict[str, Any]:
        """The value of `ladder` in config.json."""
        plain = {name: _as_data(value) for name, value in self.selection.items()}
        return {**plain, "staleness": self.staleness, **self.left_out, "version": VERSION}

    @property
    def left_out(self) -> dict[str, Any]:
        """The options `variant`, or `connectivity` and `routed`; empty for a plain ladder."""
        if self.variant != PLAIN:
            return {"variant": self.variant}
        given = {"connectivity": self.connectivity, "routed": list(patterns_of(self.routed))}
        return {} if self.connectivity == LADDER else {n: v for n, v in given.items() if v}

    def fill(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options `given`, completed from the entry.

        A selection that depends on the number of blocks ("last:50%") is kept as given.

        Raises:
            ContradictionError: `given` describes another ladder.
        """
        left = {n: v for n, v in given.items() if n not in SELECTIONS or v is not None}
        asked = [name for name in SELECTIONS if name in left]
        differing = [name for name in asked if self.agrees_with(name, left[name]) is False]
        reads = ("staleness", "connectivity", "variant")
        differing += [n for n in reads if n in left and left[n] != getattr(self, n)]
        if left.get("routed") and patterns_of(left["routed"]) != patterns_of(self.routed):
            differing.append("routed")
        if differing:
            raise ContradictionError(
                "The options ask for another ladder than the checkpoint is:",
                [Blocker(f"{n}={left[n]!r}, and config.json has {self}") for n in differing],
                FOR_ANOTHER_LADDER,
            )
        said = {"staleness": self.staleness, **self.left_out}
        return {**left, **({} if asked else self.selection), **said}

    def agrees_with(self, name: str, value: Any) -> bool | None:
        """Whether option `name` chooses the same blocks; None if it depends on their number."""
        try:
            given = Selection.parse(value)
        except ValueError:
            return None  # LadderConfig says what is wrong
        if name not in self.selection or (name == "layers" and given.plan is not None):
            return None
        return given.is_same(Selection.parse(self.selection[name]))

    def __str__(self) -> str:
        ((name, value),) = self.selection.items()
        chosen = Selection.parse(value)
        shown = ranges_of(chosen.indices) if chosen.indices else chosen.text
        known = {"staleness": self.staleness, **self.left_out}
        return ", ".join([f"{name} {shown}", *(f"{n} {value}" for n, value in known.items())])


def _entry_of(said: Mapping[str, Any] | None) -> LadderEntry | None:
    if said is None:
        return None
    return LadderEntry(**{name: value for name, value in said.items() if name != "version"})


def _entry_of_paper(layers: Any) -> LadderEntry | None:
    """A number counts the last layers. None, 0 and an empty list mean the standard model."""
    if not layers:
        return None
    return LadderEntry(layers=f"last:{layers}" if isinstance(layers, int) else layers)


def _problems(said: Any) -> Iterator[str]:
    if said is None:
        return
    if not isinstance(said, Mapping):
        yield f"{KEY}={said!r} is not an object of fields"
        return
    version = said.get("version", VERSION)
    if not _is_count(version):
        yield f"version={version!r} is not a whole number"
    elif version > VERSION:
        yield f"version {version} is newer than {VERSION}, the latest known: update ladderize"
        return
    known = (*(field.name for field in fields(LadderEntry)), "version")
    yield from (
        f"{name!r} is not known{nearest(name, known)}" for name in said if name not in known
    )
    given = [name for name in SELECTIONS if said.get(name) is not None]
    if len(given) > 1:
        yield "layers and blocks contradict each other"
    for name in given:
        yield from _selection_problems(name, said[name])
    staleness = said.get("staleness", 1)
    if not _is_count(staleness) or staleness > MAX_STALENESS:
        yield f"staleness={staleness!r} is not a whole number from 1 to {MAX_STALENESS}"
    connectivity, variant = said.get("connectivity", LADDER), said.get("variant", PLAIN)
    yield from connectivity_problems(connectivity, staleness, said.get("routed"))
    yield from variant_problems(variant, staleness, connectivity)
    if desync_period(variant):
        yield f"variant={variant!r} depends on the number of ranks; no checkpoint can be one"


def _papers_problems(layers: Any) -> Iterator[str]:
    if not layers and layers is not False:
        return
    if isinstance(layers, list | tuple):
        yield from _selection_problems(PAPERS_KEY, layers)
    elif not _is_count(layers):
        yield f"{PAPERS_KEY}={layers!r} is neither a list of layers nor the number of the last ones"


def _selection_problems(name: str, value: Any) -> Iterator[str]:
    try:
        Selection.parse(value)
    except ValueError as error:
        yield f"{name}={error}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _as_data(value: Any) -> Any:
    chosen = Selection.parse(value)
    return chosen.text if chosen.indices is None else list(chosen.indices)
