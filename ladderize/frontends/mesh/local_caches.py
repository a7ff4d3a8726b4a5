"""KV caches of local size: with `mesh=`, each rank keeps the keys and values of its own heads.

    model.generate(ids) ── DynamicCache, StaticCache, … ── each layer is changed in place
    model(ids)          ── a DynamicCache, as the model itself would make it

The code of a cache layer is unchanged and runs on the rank's part, between `own_heads` and
`all_heads`. With fewer heads than ranks, each rank keeps the head that its queries read. Layers are
kept whole if neither number divides the other, and so are cross attention and quantized caches.
States of convolutions and state-space layers have their full size, and each rank uses its part
(`keep_part`, `kept_part`).

A new cache starts a generation: all ranks take over the random state of the first rank, so that
they sample the same tokens.

transformers is not imported: if its cache module is not loaded, there are no caches.
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache, wraps
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ladderize import compat
from ladderize.errors import Blocker, LadderError
from ladderize.graph.local_heads import all_heads, keep_part, kept_part, own_heads
from ladderize.sharding.placement import Shard

_MARK = "ladderize_group"
"""The attribute that marks a cache with local heads; its value is the group's name."""

_HEADS = 1
"""The heads dim of cached tensors: [batch, heads, tokens, head_dim]."""


def lead_caches(module: nn.Module, mesh: DeviceMesh) -> None:
    """Make every call of `module`, which is compiled in place, keep its caches by rank."""
    group = mesh.get_group()
    makes_caches = _makes_caches(module)

    def around(compiled: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(compiled)
        def call(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return compiled(*args, **kwargs)
            if makes_caches and _would_make_one(module, kwargs):
                kwargs["past_key_values"] = _new_cache(module)
            found = [keep_own_heads(value, group) for value in (*args, *kwargs.values())]
            if any(found) and not torch.is_grad_enabled():
                share_random_state(mesh)
            return compiled(*args, **kwargs)

        return call

    compat.wrap_compiled(module, around)


def keep_own_heads(value: Any, group: dist.ProcessGroup) -> bool:
    """If `value` is a cache, make its layers keep only this rank's heads, in place.

    Returns:
        Whether it is a cache that did not do so before.
    """
    caches = _caches()
    if caches is None or not isinstance(value, caches.Cache) or hasattr(value, _MARK):
        return False
    setattr(value, _MARK, group.group_name)
    if isinstance(value, caches.EncoderDecoderCache):
        value = value.self_attention_cache
    _refuse_filled_states(value)
    kind: Any = type(value)
    value.__class__ = _of_rank(kind)
    if value.layer_class_to_replicate is not None:
        value.layer_class_to_replicate = _own(value.layer_class_to_replicate, group)
    for layer in value.layers:
        if (own := _own(type(layer), group)) is not type(layer):
            _keep_part(layer, group)
            layer.__class__ = own
    return True


def share_random_state(mesh: DeviceMesh) -> None:
    """Copy the first rank's random state to all ranks."""
    is_cpu = mesh.device_type == "cpu"
    generator: Any = torch if is_cpu else torch.get_device_module(mesh.device_type)
    state = generator.get_rng_state().to(compat.current_device(mesh.device_type))
    dist.broadcast(state, group_src=0, group=mesh.get_group())
    generator.set_rng_state(state.cpu())


def _own(base: type, group: dist.ProcessGroup) -> type:
    """The class of layers like `base` with local heads; `base` itself if not supported."""
    caches = _caches()
    assert caches is not None
    is_quantized = issubclass(base, caches.BaseQuantizedLayer)
    if is_quantized or not issubclass(base, caches.CacheLayerMixin):
        return base
    return _derived(base, group.size(), group.group_name)


@cache
def _derived(base: Any, num_ranks: int, group_name: str) -> type:
    """A subclass of `base` with an `update` that keeps only the keys and values of this rank.

    It has a single base class, so that `__class__` of a layer can be set to it.
    """

    def update(self: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        copies = _copies(keys, values, num_ranks)
        if not copies:
            return base.update(self, keys, values, *args, **kwargs)
        how = _HEADS, num_ranks, copies, group_name
        own = own_heads(keys, *how), own_heads(values, *how)
        keys, values = base.update(self, *own, *args, **kwargs)
        return all_heads(keys, *how), all_heads(values, *how)

    return type(
        f"{base.__name__}OfRank",
        (base,),
        {
            "update": update,
            "_layer_type": None,  # otherwise transformers would create it in place of `base`
        },
    )


@cache
def _of_rank(base: Any) -> type:
    """A subclass of the cache class `base` in which each rank uses its part of states."""
    methods = _state_methods(base, "conv") | _state_methods(base, "recurrent")
    return type(f"{base.__name__}OfRank", (base,), methods)


def _state_methods(base: Any, kind: str) -> dict[str, Any]:
    """The methods of a cache that update and get states of one kind."""
    names = f"update_{kind}_state", f"get_{kind}_state"
    update_of, get_of = (getattr(base, name) for name in names)

    def update(self: Any, states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any) -> Any:
        site = f"{kind} {layer_idx}.{state_idx}"
        kept = keep_part(states, _HEADS, site)
        return _part_of(update_of(self, kept, layer_idx, state_idx, **kwargs), site)

    def get(self: Any, layer_idx: int, state_idx: int = 0) -> Any:
        return _part_of(get_of(self, layer_idx, state_idx), f"{kind} {layer_idx}.{state_idx}")

    return dict(zip(names, (update, get), strict=True))


def _part_of(states: Any, site: str) -> Any:
    return states if states is None else kept_part(states, _HEADS, site)


def _refuse_filled_states(value: Any) -> None:
    """Raise for a cache that already has states, whose layout may differ from the graphs'."""
    for layer in value.layers:
        if any(getattr(layer, "has_previous_state", {}).values()):
            raise LadderError(
                "This cache holds states of convolutions or of state-space layers that were made "
                "outside of the mesh.",
                cure="start with a new cache",
            )


_layouts: WeakKeyDictionary[nn.Module, dict[str, Shard | None]] = WeakKeyDictionary()
"""The layout of the states in each model's caches, by site."""


def hold_to_one_layout(module: nn.Module | None, states: Mapping[str, Shard | None]) -> None:
    """Raise `LadderError` if another graph of `module` shards a state in another way."""
    if module is None:
        return
    known = _layouts.setdefault(module, {})
    others = [site for site, part in states.items() if known.get(site, part) != part]
    if others:
        raise LadderError(
            "Two graphs of this model shard a state of its cache in different ways:",
            [Blocker(f"{site}: {known[site]}, and now {states[site]}") for site in others],
            "pass use_cache=False",
        )
    known.update(states)


def _keep_part(layer: Any, group: dist.ProcessGroup) -> None:
    """Reduce the contents of `layer` to the heads of this rank."""
    held = (layer.keys, layer.values)
    if not layer.is_initialized or held[0].numel() == 0:
        return
    if copies := _copies(*held, group.size()):
        how = _HEADS, group.size(), copies, group.group_name
        layer.keys, layer.values = (own_heads(part, *how).clone() for part in held)


def _copies(keys: Tensor, values: Tensor, num_ranks: int) -> int:
    """The number of ranks that keep each head; 0 if every rank keeps all heads."""
    heads = keys.shape[_HEADS]
    if heads != values.shape[_HEADS] or heads == 1:
        return 0
    return 0 if max(heads, num_ranks) % min(heads, num_ranks) else max(num_ranks // heads, 1)


def _caches() -> ModuleType | None:
    return sys.modules.get("transformers.cache_utils")


# ---- caches that a model creates itself, while it is traced


def _makes_caches(module: nn.Module) -> bool:
    """Whether the model creates a `DynamicCache` if it is called without a cache."""
    supports = getattr(module, "_supports_default_dynamic_cache", None)
    config = getattr(module, "config", None)
    if supports is None or not supports() or getattr(config, "is_encoder_decoder", True):
        return False
    return "past_key_values" in inspect.signature(type(module).forward).parameters


def _would_make_one(module: nn.Module, kwargs: Mapping[str, Any]) -> bool:
    if kwargs.get("past_key_values") is not None:
        return False
    if module.training and getattr(module, "is_gradient_checkpointing", False):
        return False
    uses_cache = kwargs.get("use_cache")
    if uses_cache is None:
        uses_cache = getattr(_text_config(module), "use_cache", False)
    return bool(uses_cache)


def _new_cache(module: nn.Module) -> Any:
    caches = _caches()
    assert caches is not None
    return caches.DynamicCache(config=_text_config(module))


def _text_config(module: nn.Module) -> Any:
    return module.config.get_text_config(decoder=True)  # type: ignore[union-attr,operator]
