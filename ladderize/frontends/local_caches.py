"""KV caches of local size: with `mesh=`, each rank keeps the keys and values of its own heads.

    model.generate(ids) ── DynamicCache, StaticCache, … ── each layer, in place, keeps its own heads
    model(ids)          ── a DynamicCache, as the model itself would make one

A layer's own code is left as it is, and runs on the rank's part: `own_heads` in front of it,
`all_heads` behind. Layers whose heads the ranks do not divide, cross attention, quantized caches
and the states of state-space layers stay whole.

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

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ladderize import compat
from ladderize.graph.local_heads import all_heads, own_heads

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
