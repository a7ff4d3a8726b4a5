"""The teacher of a ladder: the standard model with the same weights, without needless copies.

model   q.weight (trained)   q.bias (frozen)
            │ copied              ║ shared
teacher q.weight (frozen)    q.bias
"""

import copy
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

import torch
from torch import nn

from ladderize.errors import Blocker

Model = TypeVar("Model", bound=nn.Module)


def standard_copy(model: Model) -> Model:
    """A frozen standard model with the current weights of `model`.

    Parameters that are not trained are shared with `model`; other parameters and buffers are
    copied. With LoRA, no weight of the base model is copied.

    Args:
        model: ladder from `ladderize.compile`, or standard model.

    Returns:
        An eager model in eval mode without trained parameters.
    """
    shared = {id(each): each for each in model.parameters() if not each.requires_grad}
    teacher = copy.deepcopy(model, dict(shared)).eval()
    for parameter in teacher.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    return teacher


@torch.no_grad()
def unshare(teacher: nn.Module, model: nn.Module, names: Collection[str]) -> None:
    """Give `teacher` its own copies of the parameters `names` that it shares with `model`."""
    for name in names:
        shared = teacher.get_parameter(name)
        if model.get_parameter(name) is shared:
            owner, _, last = name.rpartition(".")
            own = nn.Parameter(shared.clone(), requires_grad=False)
            setattr(teacher.get_submodule(owner), last, own)


def find_adapters(model: nn.Module) -> Iterator[tuple[str, nn.ModuleDict, nn.ModuleDict]]:
    """The modules with LoRA adapters: their names, and both factors by adapter name."""
    for name, module in model.named_modules():
        downs, ups = (getattr(module, each, None) for each in ("lora_A", "lora_B"))
        if isinstance(downs, nn.ModuleDict) and isinstance(ups, nn.ModuleDict):
            yield name, downs, ups


def find_changed_adapters(model: nn.Module) -> Iterator[Blocker]:
    """LoRA adapters of `model` that are not zero, so that it differs from its base model."""
    for name, downs, ups in find_adapters(model):
        yield from (
            Blocker(f"{name}: its LoRA adapter {adapter!r} is not zero")
            for adapter in downs
            if not (_is_zero(downs[adapter]) or _is_zero(ups[adapter]))
        )


@torch.no_grad()
def _is_zero(module: nn.Module) -> bool:
    return not any(parameter.any() for parameter in module.parameters())


@torch.no_grad()
def prepare_hidden_states(model: Any) -> None:
    """Call a model once: transformers then installs hooks under a lock, which Dynamo refuses."""
    is_training = model.training
    one = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    model.eval()(input_ids=one, output_hidden_states=True)
    model.train(is_training)
