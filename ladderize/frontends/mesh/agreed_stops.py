"""Over a mesh, all ranks stop generating at the same token: where the first rank stops.

    model.generate(ids, max_time=2.0)     each rank has a clock of its own

A rank that stops alone leaves the others waiting for it in a collective. Criteria that only read
the tokens give the same answer on all ranks. If there are others, each step sends the first rank's
answer to all: one byte per sequence.

transformers is not imported: its models are recognized by their attributes.
"""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ladderize import compat
from ladderize.frontends.led_methods import Method, lead_method, restore_method

_CRITERIA = "_get_stopping_criteria"

_BY_TOKENS = {"MaxLengthCriteria", "StopStringCriteria", "EosTokenCriteria", "ConfidenceCriteria"}
"""Criteria of transformers that only read tokens and logits."""


def lead_stopping(module: nn.Module, mesh: DeviceMesh) -> None:
    """Make `module`, if it can generate, stop on all ranks of `mesh` at once; copies do not."""
    group_name = mesh.get_group().group_name

    def around(prepare: Method) -> Method:
        def stopping_criteria(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            criteria = prepare(self, *args, **kwargs)
            if compat.is_compiled_in_place(self) and not all(map(_reads_tokens, criteria)):
                kind: Any = type(criteria)
                criteria.__class__ = _agreed(kind, group_name)
            return criteria

        return stopping_criteria

    lead_method(module, _CRITERIA, around)


def restore_stopping(module: nn.Module) -> None:
    """Undo `lead_stopping`."""
    restore_method(module, _CRITERIA)


def _reads_tokens(criterion: Any) -> bool:
    kind = type(criterion)
    return kind.__module__.partition(".")[0] == "transformers" and kind.__name__ in _BY_TOKENS


@functools.cache
def _agreed(base: Any, group_name: str) -> type:
    """A subclass of the list of criteria `base` whose answer is the first rank's."""

    def call(self: Any, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        sent: torch.Tensor = base.__call__(self, input_ids, *args, **kwargs).to(torch.uint8)
        dist.broadcast(sent, group_src=0, group=compat.process_group(group_name))
        return sent.bool()

    return type(f"Agreed{base.__name__}", (base,), {"__call__": call})
