"""How transformers makes each parameter from the tensors of a checkpoint.

checkpoint                             model
mlp.experts.0.w1.weight … 7.w3.weight  mlp.experts.gate_up_proj   stacked, concatenated
model.embed_tokens.weight              itself

Seen in transformers 5.23. Its own loader does this for all parameters at once.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class WeightRecipe:
    """The tensors that one or more parameters are made from.

    Attributes:
        target: name of the first parameter.
        keys: checkpoint keys in order, each with the pattern that it matched.
        converter: transformers' weight converter; None if the tensor is the parameter itself.
    """

    target: str
    keys: list[tuple[str, str]] = field(default_factory=list)
    converter: Any = None

    def make(self, model: Any, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Make the full parameters. The recipe must have a converter.

        Args:
            model: model that the parameters belong to.
            read: returns a tensor of the checkpoint by its key.
        """
        converter = copy.deepcopy(self.converter)
        for key, pattern in self.keys:
            converter.add_tensor(self.target, key, pattern, read(key))
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}


def find_recipes(model: Any, keys: Iterable[str]) -> tuple[dict[str, WeightRecipe], list[str]]:
    """Find how the parameters and buffers of a transformers model are made from a checkpoint.

    Args:
        model: transformers model; its parameters may be on the meta device.
        keys: keys of the checkpoint.

    Returns:
        Recipes by the name of their first parameter, and the keys that no recipe uses.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    recipes: dict[str, WeightRecipe] = {}
    surplus = []
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name not in state:
            surplus.append(key)
            continue
        converter = None if pattern is None else by_pattern[pattern]
        recipe = recipes.setdefault(name, WeightRecipe(name, converter=converter))
        recipe.keys.append((key, pattern or key))
    return recipes, surplus


def targets_of(recipe: WeightRecipe, state: Mapping[str, Any]) -> list[str]:
    """The names of the parameters in `state` that `recipe` makes."""
    if recipe.converter is None:
        return [recipe.target]
    first, *others = recipe.converter.target_patterns
    prefix, _, suffix = recipe.target.partition(first)
    names = [recipe.target, *(f"{prefix}{other}{suffix}" for other in others)]
    return [name for name in names if name in state]


def is_ignored(model: Any, key: str) -> bool:
    """Whether transformers ignores checkpoint key `key` although no parameter uses it."""
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    return any(re.search(pattern, key) for pattern in patterns)
