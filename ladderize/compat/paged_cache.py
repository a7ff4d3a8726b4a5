"""The paged cache of transformers' continuous batching, for a model compiled as one graph.

    before   attention ── PagedAttentionCache.update    under `torch.compiler.disable`: graph breaks
    after    attention ── ladderize::paged_update       one op of the graph

transformers keeps the update out of compiled graphs: the keys and values of all layers are views
of one tensor, which functionalization would copy for every layer. An opaque op writes to the cache
directly. This is safe because each layer reads and writes only its own part.

Seen in transformers 5.23. Remove when the update there is an op.
"""

import itertools
import types
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from transformers.integrations.eager_paged import eager_paged_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_caches: WeakValueDictionary[int, PagedAttentionCache] = WeakValueDictionary()
_numbers = itertools.count()


@torch.library.custom_op("ladderize::paged_update", mutates_args=())
def paged_update(
    key: Tensor, value: Tensor, number: Tensor, layer: int, read: Tensor, write: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the new keys and values of one layer to a cache, and read those for attention.

    Args:
        key, value: keys and values of the new tokens, [1, heads, tokens, head_dim].
        number: number of the cache, on the CPU. As a tensor it does not specialize the graph.
        read, write: row indices in the cache; if `read` is empty, nothing is read.

    Returns:
        Keys and values, [1, heads, read rows, head_dim]; the new ones if nothing is read.
    """
    allocator = _caches[int(number)].layer_to_allocator[layer]
    key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in (key, value))
    keys, values = allocator.update(key, value, layer, read, write)
    return _by_heads(keys).clone(), _by_heads(values).clone()


@paged_update.register_fake
def _(
    key: Tensor,
    value: Tensor,
    number: Tensor,  # noqa: ARG001
    layer: int,  # noqa: ARG001
    read: Tensor,
    write: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    rows = read.shape[0] if read.shape[0] else key.shape[2]
    keys, values = (t.new_empty(rows, t.shape[1], t.shape[3]) for t in (key, value))
    return _by_heads(keys), _by_heads(values)


def _by_heads(rows: Tensor) -> Tensor:
    """[1, heads, rows, head_dim] from the allocator's [rows, heads, head_dim]."""
    return rows.transpose(0, 1).unsqueeze(0)


def _update(
    self: Any, key_states: Tensor, value_states: Tensor, layer_idx: int, kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """A replacement for `PagedAttentionCache.update` that Dynamo traces to the op."""
    allocator = self.layer_to_allocator[layer_idx]
    kwargs["cu_seq_lens_k"] = kwargs["cu_seq_lens_k"][allocator.layer_type].to(torch.int32)
    kwargs["max_length_k"] = kwargs["max_length_k"][allocator.layer_type]
    read, write = kwargs["read_index"][allocator.index], kwargs["write_index"][allocator.index]
    found: tuple[Tensor, Tensor] = paged_update(
        key_states, value_states, self.number, layer_idx, read, write
    )
    return found


class LadderManager(ContinuousBatchingManager):
    """A manager with batches that compile as one graph. It raises the errors of its thread."""

    @classmethod
    def take(cls, manager: ContinuousBatchingManager) -> "LadderManager":
        """Change the class of `manager` to this one, before its first batch or between two."""
        manager.__class__ = cls
        # Its other path for decoding steps calls flash attention under `torch.compiler.disable`.
        manager.continuous_batching_config.max_blocks_per_request = 0
        ALL_ATTENTION_FUNCTIONS["paged|eager"] = eager_paged_attention_forward.__wrapped__
        assert isinstance(manager, cls)
        return manager

    def _create_batch_processor(self) -> Any:
        processor = super()._create_batch_processor()
        cache: Any = processor.cache
        if not hasattr(cache, "number"):
            number = next(_numbers)
            cache.number = torch.tensor(number)
            cache.update = types.MethodType(_update, cache)
            _caches[number] = cache
            _mark_sizes(processor.inputs_and_outputs)
        return processor

    def _generation_step(self) -> None:
        # Duck shapes would require sizes that are equal in the compiled batch to stay equal.
        with torch.fx.experimental._config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            super()._generation_step()

    def stop(
        self,
        block: bool = True,
        timeout: float | None = None,
        keep_for_next_session: bool = False,
        hard_stop: bool = False,
    ) -> None:
        """Stop, and raise the error that ended the thread, which the base class only logs."""
        status = self.background_thread_status
        keep = keep_for_next_session and status.fatal_error is None
        super().stop(block, timeout, keep, hard_stop)
        if status.fatal_error is not None:
            self.distributed_helper.destroy_cpu_comm_group()
            raise status.fatal_error


def _mark_sizes(batches: Any) -> None:
    """Mark the sizes of every batch as dynamic, so that one graph fits all batches."""
    get = batches.get_model_kwargs

    def marked(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensor = _without_gaps_in_ones(leaf)
        torch._dynamo.maybe_mark_dynamic(tensor, list(range(tensor.ndim)))
        return tensor

    batches.get_model_kwargs = lambda use_padding=False: tree_map(marked, get(use_padding))


def _without_gaps_in_ones(tensor: Tensor) -> Tensor:
    """The same view with contiguous strides for dims of size 1.

    The masks of a batch are views [1, 1, tokens, keys] of a larger buffer. Otherwise a graph
    compiled for a batch that fills the buffer would be guarded to such batches.
    """
    strides = list(tensor.stride())
    for dim in reversed(range(tensor.ndim - 1)):
        if tensor.shape[dim] == 1:
            strides[dim] = tensor.shape[dim + 1] * strides[dim + 1]
    return tensor.as_strided(tensor.shape, strides)
