"""KV caches of local size: with `mesh=`, each rank keeps the keys and values of its own heads.

    model.generate(ids) ── DynamicCache, StaticCache, … ── each layer, in place, keeps its own heads
    model(ids)          ── a DynamicCache, as the model itself would make one

A layer's own code is left as it is, and runs on the rank's part: `own_heads` in front of it,
`all_heads` behind. Layers whose heads the ranks do not divide, cross attention and quantized caches
stay whole. The states of convolutions and of state-space layers have their whole size, and each
rank uses its part (`keep_part`, `kept_part`).

A new cache is the start of a generation: all ranks go on with the random numbers of the first one,
so that they sample the same tokens.

transformers is not imported: without its module of caches there is no cache.
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
"""The attribute of a cache whose layers keep the heads of one rank: the group's name."""

_HEADS = 1
"""The dim of the heads in what a cache holds: [batch, heads, tokens, head_dim]."""


def lead_caches(module: nn.Module, mesh: DeviceMesh) -> None:
    """Let every call of `module`, which is compiled in place, keep its caches by rank."""
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
    """If `value` is a cache, let its layers keep the heads of this rank, in place.

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
    """Let all ranks draw the random numbers that the first one is about to draw."""
    is_cpu = mesh.device_type == "cpu"
    generator: Any = torch if is_cpu else torch.get_device_module(mesh.device_type)
    state = generator.get_rng_state().to(compat.current_device(mesh.device_type))
    dist.broadcast(state, group_src=0, group=mesh.get_group())
    generator.set_rng_state(state.cpu())


def _own(base: type, group: dist.ProcessGroup) -> type:
    """The class of layers that keep their own heads; `base` itself where there is none."""
    caches = _caches()
    assert caches is not None
    is_quantized = issubclass(base, caches.BaseQuantizedLayer)
    if is_quantized or not issubclass(base, caches.CacheLayerMixin):
        return base
    return _derived(base, group.size(), group.group_name)


@cache
def _derived(base: Any, num_ranks: int, group_name: str) -> type:
    """`base`, whose `update` takes the keys and values of all heads and keeps those of this rank.

    One base alone: else no layer could be made one of this class.
    """
    how = _HEADS, num_ranks, group_name

    def update(self: Any, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not _is_divided(keys, values, num_ranks):
            return base.update(self, keys, values, *args, **kwargs)
        own = own_heads(keys, *how), own_heads(values, *how)
        keys, values = base.update(self, *own, *args, **kwargs)
        return all_heads(keys, *how), all_heads(values, *how)

    return type(
        f"{base.__name__}OfRank",
        (base,),
        {
            "update": update,
            "_layer_type": None,  # else transformers would make one wherever it makes a `base`
        },
    )


@cache
def _of_rank(base: Any) -> type:
    """`base`, a class of caches, of whose states each rank uses its part."""
    methods = _state_methods(base, "conv") | _state_methods(base, "recurrent")
    return type(f"{base.__name__}OfRank", (base,), methods)


def _state_methods(base: Any, kind: str) -> dict[str, Any]:
    """How a cache takes and gives its states of one kind."""
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
    """What a cache got elsewhere is not in the layout that the graphs agree on."""
    for layer in value.layers:
        if any(getattr(layer, "has_previous_state", {}).values()):
            raise LadderError(
                "This cache holds states of convolutions or of state-space layers that were made "
                "outside of the mesh.",
                cure="start with a new cache",
            )


_layouts: WeakKeyDictionary[nn.Module, dict[str, Shard | None]] = WeakKeyDictionary()
"""How the states of each model's caches lie, by site."""


def hold_to_one_layout(module: nn.Module | None, states: Mapping[str, Shard | None]) -> None:
    """Raise `LadderError` where another graph of `module` divides a state in another way."""
    if module is None:
        return
    known = _layouts.setdefault(module, {})
    others = [site for site, part in states.items() if known.get(site, part) != part]
    if others:
        raise LadderError(
            "Two graphs of this model divide a state of its cache in different ways:",
            [Blocker(f"{site}: {known[site]}, and now {states[site]}") for site in others],
            "pass use_cache=False",
        )
    known.update(states)


def _keep_part(layer: Any, group: dist.ProcessGroup) -> None:
    """Of what `layer` holds already, keep the heads of this rank."""
    held = (layer.keys, layer.values)
    if not layer.is_initialized or held[0].numel() == 0:
        return
    if _is_divided(*held, group.size()):
        how = _HEADS, group.size(), group.group_name
        layer.keys, layer.values = (own_heads(part, *how).clone() for part in held)


def _is_divided(keys: Tensor, values: Tensor, num_ranks: int) -> bool:
    return not keys.shape[_HEADS] % num_ranks and not values.shape[_HEADS] % num_ranks


def _caches() -> ModuleType | None:
    return sys.modules.get("transformers.cache_utils")


# ---- a model that makes its cache itself does so while it is traced


def _makes_caches(module: nn.Module) -> bool:
    """Whether the model makes a `DynamicCache` where it is given none."""
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
