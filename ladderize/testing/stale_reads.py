"""Run any module as an eager ladder: hooks replace the inputs of modules that read the stream.

    x1 = x0 + mlp0(norm0(x0));  x2 = x1 + mlp1(norm1(x1))     reads=[norm0, norm1]: two blocks
    keep x0, pass x0 to norm0;  keep x1, pass x0 to norm1     the sums still use x0 and x1

In: an ordinary model and the names of the modules whose inputs the blocks read. Out: the same
model, whose blocks read stale inside the context. It is independent of the compiler that it checks:
it uses no graphs and nothing else of the package.
"""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, is_grad_enabled, nn

Patterns = Sequence[str]
Reads = Patterns | Sequence[Patterns] | Mapping[str, Patterns]


@dataclass
class EagerLadder:
    """The state of a model under `eager_ladder`, with the blocks that were seen.

    >>> import torch
    >>> from torch import nn
    >>> layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True)
    >>> model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    >>> with eager_ladder(model, ["layers.*.norm1", "layers.*.norm2"]) as ladder:
    ...     y = model(torch.randn(5, 1, 8))
    >>> ladder.blocks  # doctest: +NORMALIZE_WHITESPACE
    [('layers.0.norm1',), ('layers.0.norm2',), ('layers.1.norm1',), ('layers.1.norm2',)]

    Attributes:
        chosen: indices of the blocks that read stale; None for all.
        staleness: number of blocks by which their reads are stale.
        blocks: blocks of the last forward, by stream in the order of first calls. Each block is
            the names of the modules that read its anchor, several in a parallel block.
    """

    chosen: frozenset[int] | None
    staleness: int
    blocks: list[tuple[str, ...]] = field(default_factory=list)
    _streams: dict[int, "_Stream"] = field(default_factory=dict)
    _is_running: bool = False

    def _begin(self, *_: Any) -> None:
        self._streams.clear()
        self.blocks.clear()
        self._is_running = True

    def _end(self, *_: Any) -> None:
        self.blocks = [names for stream in self._streams.values() for names in stream.blocks]
        self._streams.clear()
        self._is_running = False

    def _read(self, number: int, name: str, x: Tensor) -> Tensor:
        """The value to pass to `name`, a reader of stream `number`, instead of `x`."""
        if not self._is_running and is_grad_enabled():
            raise RuntimeError(
                f"{name} was called outside of the model's forward: call the model that was passed "
                "to eager_ladder, and turn activation checkpointing off, which calls modules again "
                "(it changes no value)"
            )
        stream = self._streams.get(number)
        if stream is None:
            first = sum(len(other.blocks) for other in self._streams.values())
            stream = self._streams[number] = _Stream(first)
        if stream.is_at(x):
            stream.blocks[-1] += (name,)
        else:
            stream.note(x, name)
            if self.chosen is not None and stream is not next(reversed(self._streams.values())):
                raise ValueError(
                    f"{name} starts a block of an earlier stream after a later stream has started: "
                    "`chosen` counts the blocks of one stream after those of another"
                )
        is_chosen = self.chosen is None or stream.first + len(stream.blocks) - 1 in self.chosen
        return stream.earlier(self.staleness, x) if is_chosen else x


@dataclass
class _Stream:
    """The values of one stream that this forward has read so far."""

    first: int  # index of its first block, counted over all streams
    blocks: list[tuple[str, ...]] = field(default_factory=list)
    noted: list[Tensor] = field(default_factory=list)
    last: tuple[Tensor, int] | None = None
    segment: int = 0

    def is_at(self, x: Tensor) -> bool:
        """Whether `x` is the same tensor that the last block read, not written since."""
        return self.last is not None and self.last[0] is x and self.last[1] == _version(x)

    def note(self, x: Tensor, name: str) -> None:
        if self.noted and not _has_shape_of(self.noted[-1], x):
            self.segment = len(self.noted)
        self.noted.append(x.clone())  # `x += h` overwrites x
        self.last = x, _version(x)
        self.blocks.append((name,))

    def earlier(self, staleness: int, x: Tensor) -> Tensor:
        own = len(self.noted) - 1
        source = max(own - staleness, self.segment)
        return x if source == own else self.noted[source].to(x.dtype).reshape(x.shape)


def _has_shape_of(a: Tensor, b: Tensor) -> bool:
    """Whether the shapes are equal, or differ only by merged leading dims."""
    is_merged = a.dim() != b.dim() and a.shape[-1:] == b.shape[-1:] and a.numel() == b.numel()
    return a.shape == b.shape or is_merged


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version  # inference tensors have no version


@contextmanager
def eager_ladder(
    model: nn.Module, reads: Reads, *, chosen: Collection[int] | None = None, staleness: int = 1
) -> Iterator[EagerLadder]:
    """Make `model` an eager ladder inside the context.

    >>> import torch
    >>> from torch import nn
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2))
    ...     def forward(self, x):
    ...         for layer in self.layers:
    ...             x = x + layer(x)
    ...         return x
    >>> net, x = Net(), torch.ones(1, 1)
    >>> for i, layer in enumerate(net.layers):
    ...     _ = nn.init.constant_(layer.weight, 10 ** (i + 1))  # h_0(x) = 10 x, h_1(x) = 100 x
    >>> net(x).item()  # (1 + 10) + 100 * (1 + 10)
    1111.0
    >>> with eager_ladder(net, ["layers.*"]) as ladder:
    ...     net(x).item()  # (1 + 10) + 100 * 1
    111.0
    >>> ladder.blocks
    [('layers.0',), ('layers.1',)]

    A chosen block i reads the value of block `max(i - staleness, first of its segment)`; other
    blocks read their own. Blocks are counted in the call order of each forward, so layers may share
    modules. Consecutive readers of the same tensor belong to one block (the two norms of a parallel
    block; q, k and v). A segment starts where the shape of the reads changes, except between
    `[batch, length, width]` and `[batch * length, width]`. If a segment starts for another reason,
    make it a separate stream. The skip path is unchanged, because the forward adds to its own
    variable. Dtype, device, gradients and training mode are those of the model; KV caches are
    filled by the ladder.

    Args:
        model: model to call as a whole inside the context; each forward counts blocks from 0.
        reads: names of the modules whose input is exactly what a block reads (its norm, or a
            projection or an attention if the norm is on the stream), as patterns over
            `model.named_modules()` in which `*` matches (part of) one component. The read is the
            first floating tensor passed to the module, in all arguments that hold it (q, k and v),
            or only the argument after a colon, `"layers.*.mlp:hidden_states"`. For several
            streams, pass a list or mapping of such lists; blocks of each are counted separately.
        chosen: indices of the blocks that read stale, counted over all streams in the order of
            their first calls; None for all.
        staleness: number of blocks by which their reads are stale; 0 is the standard model.

    Yields:
        An `EagerLadder`, whose `blocks` are those counted.

    Raises:
        ValueError: a pattern matches nothing, a module would read two streams, or `chosen` is
            given and the calls of streams interleave.
        RuntimeError: a reader is called outside of the model's forward while gradients are
            recorded, as by activation checkpointing.
    """
    ladder = EagerLadder(None if chosen is None else frozenset(chosen), staleness)
    readers = _find_readers(model, reads)
    handles = [
        model.register_forward_pre_hook(ladder._begin, prepend=True),
        model.register_forward_hook(ladder._end, always_call=True),
    ]
    for module, reader in readers.items():
        hook = _make_hook(ladder, *reader)
        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield ladder
    finally:
        for handle in handles:
            handle.remove()


def _find_readers(model: nn.Module, reads: Reads) -> dict[nn.Module, tuple[int, str, str]]:
    """The stream number, name, and argument name (or "") of each reader."""
    modules = list(model.named_modules(remove_duplicate=False))
    readers: dict[nn.Module, tuple[int, str, str]] = {}
    unmatched = []
    for number, patterns in enumerate(_by_stream(reads)):
        for pattern in patterns:
            path, _, argument = pattern.partition(":")
            found = [(name, module) for name, module in modules if _matches(name, path)]
            if not found:
                unmatched.append(pattern)
            for name, module in found:
                if readers.setdefault(module, (number, name, argument))[0] != number:
                    raise ValueError(f"{name} is listed as a reader of two streams")
    if unmatched:
        raise ValueError(f"no module of {type(model).__name__} is named {', '.join(unmatched)}")
    return readers


def _by_stream(reads: Reads) -> list[Patterns]:
    if isinstance(reads, Mapping):
        return list(reads.values())
    of_one_stream = [entry for entry in reads if isinstance(entry, str)]
    others = [entry for entry in reads if not isinstance(entry, str)]
    return [of_one_stream, *others] if of_one_stream else others


def _matches(name: str, path: str) -> bool:
    parts, patterns = name.split("."), path.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _make_hook(ladder: EagerLadder, number: int, name: str, argument: str) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if argument:
            bound = inspect.signature(module.forward).bind(*args, **kwargs)
            fresh = _first_floating([bound.arguments.get(argument)], f"{name}:{argument}")
            bound.arguments[argument] = ladder._read(number, name, fresh)
            return bound.args, bound.kwargs
        fresh = _first_floating([*args, *kwargs.values()], name)
        stale = ladder._read(number, name, fresh)
        replaced = {key: stale if value is fresh else value for key, value in kwargs.items()}
        return tuple(stale if value is fresh else value for value in args), replaced

    return hook


def _first_floating(values: Sequence[Any], name: str) -> Tensor:
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    raise ValueError(f"{name} was called without a floating tensor")
