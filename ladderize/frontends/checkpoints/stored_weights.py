"""The weights of a folder, read a parameter at a time, and of one only the part that is wanted.

model-00001-of-00030.safetensors ── WeightRecipe ── rows 0 to 511 of q_proj.weight

A tensor that is stored as the model has it is sliced in the file. One that transformers makes of
others (experts in a stack) is made whole for a moment.
"""

import dataclasses
import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ladderize.compat.weight_names import WeightRecipe, find_recipes, is_ignored, targets_of
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.sharded.checkpoint import TensorSource
from ladderize.frontends.sharded.state import StateEntry
from ladderize.sharding.placement import Placement, Replicate


@dataclass(frozen=True)
class StoredWeights:
    """What `open_weights` found. It does not keep the model alive.

    Attributes:
        model: of transformers.
        files: what holds its weights.
        recipes: how each of its parameters and buffers is made of what is there, by name.
        entries: what each of them is like.
    """

    model: weakref.ref[nn.Module]
    files: TensorSource
    recipes: Mapping[str, WeightRecipe]
    entries: Mapping[str, StateEntry]

    def read(
        self,
        name: str,
        device: torch.device,
        placement: Placement | None = None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> Tensor:
        """`rank`'s part of a parameter.

        Args:
            name: fully qualified.
            device: where the part goes.
            placement: how the parameter lies over the ranks; None: whole on each.
            rank, num_ranks: which part is wanted.
        """
        entry = dataclasses.replace(self.entries[name], placement=placement or Replicate())
        recipe = self.recipes[name]
        if recipe.converter is not None:
            whole = recipe.make(self.model(), self._whole)[name]
            return entry.read(whole, rank, num_ranks, device)
        ((key, _),) = recipe.keys
        for _, stored in self.files.tensors([key]):
            part = entry.read(stored, rank, num_ranks, device)
        return part

    def _whole(self, key: str) -> Tensor:
        for _, stored in self.files.tensors([key]):
            tensor: Tensor = stored[...]
        return tensor


def open_weights(model: nn.Module, files: TensorSource) -> StoredWeights:
    """Find all weights of a model of transformers in `files`. Reads no values.

    Args:
        model: may have its parameters on the meta device.
        files: under the names of any release of transformers.

    Raises:
        LadderError: listing every parameter that is missing or of another shape, and every tensor
            that belongs to none.
    """
    forms, state = files.forms(), model.state_dict()
    found, surplus = find_recipes(model, forms)
    recipes = {name: r for r in found.values() for name in targets_of(r, state)}
    for names in _tied_names(model):
        known = next((recipes[name] for name in names if name in recipes), None)
        if known is not None:
            recipes |= {name: known for name in names if name not in recipes}
    blockers = [Blocker(f"missing: {name}") for name in state if name not in recipes]
    blockers += [Blocker(f"surplus: {key}") for key in surplus if not is_ignored(model, key)]
    for name, recipe in recipes.items():
        if recipe.converter is None and name in state:
            stored, wanted = forms[recipe.keys[0][0]].shape, tuple(state[name].shape)
            if stored != wanted:
                blockers.append(
                    Blocker(f"misshapen: {name} is {list(stored)}, the model has {list(wanted)}")
                )
    if blockers:
        raise LadderError(
            f"The checkpoint does not fit the model, in {len(blockers)} tensors:",
            blockers,
            "pass the model class and configuration that the checkpoint was saved with",
        )
    entries = {n: StateEntry(n, "parameter", tuple(t.shape), t.dtype) for n, t in state.items()}
    return StoredWeights(weakref.ref(model), files, recipes, entries)


def _tied_names(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [known for known in names.values() if len(known) > 1]
