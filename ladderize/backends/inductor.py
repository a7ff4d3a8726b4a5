"""Compile with Inductor, with the deferred order pinned in its forward and backward graphs."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, GraphModule

from ladderize import compat
from ladderize.backends.emitted import check_emitted
from ladderize.backends.flights import FlightReport, find_flights
from ladderize.backends.lowered import Lowered
from ladderize.backends.source_digest import digest_of_sources
from ladderize.compat.graph_pass import CustomGraphPass
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError, LadderWarning
from ladderize.graph.collectives import find_groups
from ladderize.passes import pin_order
from ladderize.passes.after_autograd import AFTER_AUTOGRAD, DEFERRED, defer
from ladderize.passes.defer_waits import DeferWaits

_HOOK = "post_grad_custom_post_pass"


def lower_to_inductor(
    gm: GraphModule, example_inputs: Sequence[Any], config: LadderConfig
) -> Lowered:
    """Compile `gm`; with `verify="code"`, every emitted module is checked before it is used.

    A post-grad pass of the user (from `lowering_options` or Inductor's configuration) runs first.

    Raises:
        LadderError: the emitted code accesses a buffer in flight or waits too early, or is not
            Python and cannot be checked.
    """
    settings = compat.inductor_settings(config.mode, config.lowering_options)
    if config.verify == "code" and compat.inductor_setting(settings, "cpp_wrapper"):
        raise LadderError(
            'verify="code" reads Python wrappers, but cpp_wrapper=True makes Inductor write C++.',
            cure='leave one of them out; verify="graph" checks the graph that Inductor gets',
        )
    if find_groups(gm):
        keep_windows(settings)
    users_own = compat.inductor_setting(settings, _HOOK)
    flights: list[FlightReport] = []

    def see(gm: GraphModule) -> None:
        flights.extend(find_flights(gm))

    settings[_HOOK] = DeferInInductor(
        config.verify, _as_tuple(users_own), DeferWaits.of(config), see
    )
    check = check_emitted if config.verify == "code" else None
    run = compat.inductor_compile(gm, example_inputs, settings, on_source=check)
    return Lowered(run, flights=tuple(flights))


def keep_windows(settings: dict[str, Any]) -> None:
    """Keep products where they hide a collective, which Inductor would move to save memory.

    Args:
        settings: entries of Inductor's configuration, changed in place.
    """
    if not compat.inductor_setting(settings, "combo_kernels"):
        settings.setdefault("reorder_for_peak_memory", False)
    elif "reorder_for_peak_memory" not in settings:  # combo kernels raise a KeyError without it
        warnings.warn(
            LadderWarning(
                "With combo_kernels=True, Inductor reorders ops to save memory, so products may "
                "leave the window that hides a collective. Waits are not moved."
            ),
            stacklevel=2,
        )


@dataclass(frozen=True)
class DeferInInductor(CustomGraphPass):
    """The passes after autograd, with an identity that lets Inductor cache their result.

    `verify` does not change the graph but is part of the identity, so that code that the
    AOTAutograd cache returns for `verify="code"` was checked when it was stored.
    """

    verify: str
    first: tuple[Any, ...] = ()
    waits: DeferWaits = field(default_factory=DeferWaits)
    see: Callable[[GraphModule], object] = find_flights
    """Called with each graph after its waits are deferred, unless it comes from a cache."""

    def __call__(self, graph: Graph) -> None:
        for users_pass in self.first:
            users_pass(graph)
        gm = graph.owning_module
        assert gm is not None
        defer(gm, self.waits, DEFERRED)
        self.see(gm)  # pins hide waits in the bodies of `control_deps`
        defer(gm, self.waits, AFTER_AUTOGRAD[len(DEFERRED) :])

    def uuid(self) -> Any:
        """Hash of the options and of all sources that can edit the graph.

        None ("do not cache") if a pass of the user has no identity.
        """
        theirs = [p.uuid() if hasattr(p, "uuid") else None for p in self.first]
        if any(identity is None for identity in theirs):
            return None
        passes = (self.waits, pin_order.PinOrder())
        options = (self.verify, theirs, *passes, digest_of_sources(__name__))
        return hashlib.sha256(repr(options).encode()).hexdigest()


def _as_tuple(passes: Any) -> tuple[Any, ...]:
    if passes is None:
        return ()
    return tuple(passes) if isinstance(passes, (list, tuple)) else (passes,)
