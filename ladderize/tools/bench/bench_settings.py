"""The settings of `ladderize bench`, and the cases that they make.

Settings ── cases    prefill and decode, each batch with each length
         └─ links    named ones, or ones whose latency is a share of a block's compute
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

from ladderize.config.hardware import Link, link_of
from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.residual_form import desync_period
from ladderize.errors import Blocker, LadderError
from ladderize.tools.sources.model_names import is_configuration

UNLIMITED = 1e18  # bytes per second
FREE = Link("free", ranks=1, latency=0.0, bandwidth=UNLIMITED)
PHASES = ("prefill", "decode", "training")
VARIANTS = {
    "standard": "tensor parallelism as it is, plain Inductor",
    "written": "the ladder in eager form, as written by hand, under plain torch.compile",
    "ladder": "the ladder, compiled by ladderize",
    "free": "the ladder on an emulated link that takes no time",
    "parallel": "attention and MLP in parallel, one all-reduce a layer, plain Inductor",
    "bound": "the standard model without its collectives, plain Inductor",
}
"""The variants measured by default. "desync:n" is measured only if named."""


@dataclass(frozen=True)
class Share:
    """A link on which each collective takes the fraction `value` of a block's compute time."""

    value: float

    def __str__(self) -> str:
        return f"{self.value:.0%} of a block"


@dataclass(frozen=True)
class Case:
    """One shape of input.

    Attributes:
        phase: "prefill", a call on whole sequences; "decode", one token after `length` cached
            ones; "forward", the model's own inputs; "training", forward and backward on them.
        batch, length: number of sequences, and tokens per sequence; 0 for the model's own inputs.
    """

    phase: str
    batch: int = 0
    length: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of tokens that one step computes."""
        return self.batch * (self.length if self.phase == "prefill" else 1)

    @property
    def is_training(self) -> bool:
        return self.phase == "training"

    def __str__(self) -> str:
        return f"{self.phase} {self.batch} x {self.length}" if self.batch else self.phase


@dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
        model: MODEL, as on the command line.
        ranks: number of tensor-parallel ranks.
        links: links to measure on; the latency of a `Share` is computed from the bound.
        new: free positions in the KV cache after `length`, in tokens.
        written: MODEL of a hand-written ladder; "" to have ladderize write one.
        ladder: options of `ladderize.LadderConfig`.
        checkpoint: ladder entry of the model's config.json.
        shard_vocabulary: also shard embedding and head, which adds a collective for each.
        lowering: lowering of the ladder; the other variants use torch's backend of that name.
        graphs: use CUDA graphs (`mode="reduce-overhead"`), on CUDA.
        threads: CPU threads per rank.
        device: "cpu", with emulated links, or "cuda", with NCCL and the real links.

    Raises:
        LadderError: listing everything that cannot be measured.
    """

    model: str
    ranks: int = 2
    links: tuple[Link | Share, ...] = ()
    phases: tuple[str, ...] = ("prefill",)
    batches: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = (128,)
    new: int = 16
    written: str = ""
    variants: tuple[str, ...] = tuple(VARIANTS)
    repeats: int = 15
    warmup: int = 3
    ladder: Mapping[str, Any] = field(default_factory=lambda: {"layers": "all"})
    checkpoint: LadderEntry | None = None
    shard_vocabulary: bool = True
    lowering: str = "inductor"
    graphs: bool = True
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if problems := [Blocker(text) for text in self._problems()]:
            raise LadderError("These settings cannot be measured:", problems)

    def _problems(self) -> list[str]:
        apart = [name for name in self.variants if desync_period(name) > 1]
        unknown = [
            f"there is no variant {name!r}"
            for name in self.variants
            if name not in (*VARIANTS, *apart)
        ]
        if apart and self.ranks == 1:
            unknown.append(f"one rank has one stream: give --ranks, or leave out {apart[0]!r}")
        unknown += [f"there is no phase {name!r}" for name in self.phases if name not in PHASES]
        if "bound" not in self.variants and any(isinstance(link, Share) for link in self.links):
            unknown.append("--share is a fraction of the step of 'bound': add that variant")
        if "free" in self.variants and "ladder" not in self.variants:
            unknown.append("the variant 'free' is a run of 'ladder': add that variant")
        if self.ranks == 1 and self.links:
            unknown.append("one rank has no link: give --ranks, or no link")
        if "decode" in self.phases and not is_configuration(self.model):
            unknown.append("the phase 'decode' needs an hf: model")
        if "training" in self.phases and is_configuration(self.model):
            unknown.append("the phase 'training' needs a model with its inputs: module:factory")
        if self.device not in ("cpu", "cuda"):
            unknown.append(f"there is no device {self.device!r}: cpu or cuda")
        if self.device == "cuda" and self.links:
            unknown.append("links are emulated on the CPU only: give --device cpu, or no link")
        for name in ("ranks", "repeats", "new", "threads"):
            if getattr(self, name) < 1:
                unknown.append(f"{name}={getattr(self, name)}: at least 1")
        return unknown

    @property
    def is_emulated(self) -> bool:
        """Whether the links between the ranks are emulated."""
        return self.ranks > 1 and self.device == "cpu"

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases to measure; a model with its own inputs has one."""
        if not is_configuration(self.model):
            return (Case("training" if "training" in self.phases else "forward"),)
        return tuple(Case(*sizes) for sizes in product(self.phases, self.batches, self.lengths))


def choose_links(
    names: Sequence[str],
    shares: Sequence[float],
    latencies: Sequence[float],
    bandwidth: float | None,
    ranks: int,
) -> tuple[Link | Share, ...]:
    """The links to measure on, from the command line: named, by share, by latency.

    Args:
        names: names in `links.toml`.
        shares: duration of a collective as fractions of a block's compute time.
        latencies: latencies in seconds of links with `bandwidth`.
        bandwidth: bandwidth in bytes per second; None for no limit.
        ranks: number of ranks on each link given by a latency.

    Raises:
        LadderError: a link is unknown, or a bandwidth comes without a latency.
    """
    if bandwidth is not None and not latencies:
        raise LadderError(
            "A link needs a latency as well as a bandwidth.", cure="give --alpha-us too"
        )
    named = [link_of(name) for name in names]  # two processes stand in for eight GPUs
    made = [
        Link(f"{latency * 1e6:g} µs", ranks, latency, bandwidth or UNLIMITED)
        for latency in latencies
    ]
    return (*named, *map(Share, shares), *made)


def default_device(ranks: int) -> str:
    """CUDA if there is a device per rank, otherwise the CPU."""
    return "cuda" if torch.cuda.device_count() >= ranks else "cpu"
