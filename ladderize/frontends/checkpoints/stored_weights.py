"""Read parameters, or one rank's parts of them, from the weight files of a folder.

model-00001-of-00030.safetensors ── WeightRecipe ── rows 0 to 511 of q_proj.weight

A tensor that is stored in the model's form is sliced in the file. A parameter that transformers
makes from several tensors (stacked experts) is temporarily in memory as a whole.
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
    """The weights that `open_weights` found. This does not keep the model alive.

    Attributes:
        model: transformers model.
        files: source of the weights.
        recipes: recipe of each parameter and buffer, by name.
        entries: shape and dtype of each parameter and buffer, by name.
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
        """Read `rank`'s part of a parameter.

        Args:
            name: fully qualified name.
            device: device of the part.
            placement: placement of the parameter; None: replicated.
            rank, num_ranks: rank of the part, and number of ranks.
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
    """Find all weights of a transformers model in `files`, without reading values.

    Args:
        model: transformers model; its parameters may be on the meta device.
        files: source of tensors, with the names of any release of transformers.

    Raises:
        LadderError: lists parameters that are missing or have another shape, and surplus tensors.
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
            f"The checkpoint does not match the model in {len(blockers)} tensors:",
            blockers,
            "pass the model class and configuration that the checkpoint was saved with",
        )
    entries = {n: StateEntry(n, "parameter", tuple(t.shape), t.dtype) for n, t in state.items()}
    return StoredWeights(weakref.ref(model), files, recipes, entries)


def _tied_names(model: nn.Module) -> list[list[str]]:
    """The names of each parameter with more than one name."""
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [known for known in names.values() if len(known) > 1]
