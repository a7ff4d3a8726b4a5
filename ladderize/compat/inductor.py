"""Inductor: its options, its node order and the code that it emits."""

import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from torch.fx import Graph, GraphModule, Node


def inductor_options() -> frozenset[str]:
    """The names of Inductor's own configuration entries (`max_autotune`, …)."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def inductor_modes() -> list[str]:
    """The values of `torch.compile(mode=…)`."""
    from torch._inductor import list_mode_options

    return list(list_mode_options())


def inductor_settings(mode: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Inductor config entries: those of `torch.compile(mode=mode)`, overridden by `options`."""
    if mode is None or mode == "default":
        return dict(options)
    from torch._inductor import list_mode_options

    return {**list_mode_options(mode), **options}


def inductor_setting(settings: Mapping[str, Any], name: str) -> Any:
    """The value of entry `name`: from `settings`, else from Inductor's configuration."""
    from torch._inductor import config

    return settings[name] if name in settings else config.get_config_copy()[name]


def inductor_cache_dir() -> str:
    """Inductor's cache folder, which may not exist yet."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default_cache_dir()


def inductor_compile(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    settings: Mapping[str, Any],
    on_source: Callable[[str], None] | None = None,
) -> Callable[..., Any]:
    """Compile with Inductor under `settings`; `on_source` receives each emitted Python module.

    `on_source` is also called for a hit in Inductor's FX graph cache.
    """
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    def inner(*args: Any, **kwargs: Any) -> Any:
        with keep_waits_of_readers():
            output = compile_fx_inner(*args, **kwargs)
        source = getattr(output, "source_code", None)
        if on_source is not None and source:
            on_source(source)
        return output

    compiled: Any = compile_fx(
        gm, list(example_inputs), inner_compile=inner, config_patches=dict(settings)
    )
    return cast(Callable[..., Any], compiled)


@contextmanager
def keep_waits_of_readers() -> Iterator[None]:
    """Keep an op that reads a reduced tensor after its wait, even if the op is fused.

    Inductor's C++ code generation matches the loops of two ops before it fuses them, and recomputes
    their reads: the read of the waited buffer becomes a read of the buffer itself. The fused kernel
    may then run before the wait. Seen in torch 2.11 and 2.13 (`recompute_size_and_body` renames
    only reads of ops with control dependencies). Remove when it always renames.
    """
    from torch._inductor.scheduler import SchedulerNode

    original = SchedulerNode.recompute_size_and_body

    def recompute(node: Any, *args: Any, **kwargs: Any) -> None:
        original(node, *args, **kwargs)
        node.set_read_writes(node.read_writes.rename(node.mutation_renames))

    setattr(SchedulerNode, "recompute_size_and_body", recompute)  # noqa: B010 mypy
    try:
        yield
    finally:
        setattr(SchedulerNode, "recompute_size_and_body", original)  # noqa: B010 mypy


def has_control_deps() -> bool:
    """Whether this Inductor can order two nodes explicitly (2.11, 2.13 and 2.15 can)."""
    try:
        from torch._inductor.fx_passes import control_dependencies
    except ImportError:
        return False
    return hasattr(control_dependencies, "preserve_node_ordering")


def preserve_node_ordering(graph: Graph, after: Mapping[Node, Sequence[Node]]) -> None:
    """Make Inductor schedule each key after all nodes in its value."""
    from torch._inductor.fx_passes.control_dependencies import preserve_node_ordering as preserve
    from torch.utils._ordered_set import OrderedSet

    preserve(graph, {node: OrderedSet(nodes) for node, nodes in after.items()})


@contextmanager
def watch_loaded_code(see: Callable[[types.ModuleType, str], None]) -> Iterator[None]:
    """Call `see(module, path)` for each Python module that Inductor loads.

    All emitted code is loaded here: new code, hits in the FX graph and AOTAutograd caches, and the
    results of compile workers. `GraphLowering.save_output_code` sees only the first two, and
    `compile_fx_inner` is not called on a hit in the AOTAutograd cache.
    """
    from torch._inductor.codecache import PyCodeCache

    original = PyCodeCache.__dict__["load_by_key_path"]
    load = PyCodeCache.load_by_key_path

    def load_and_see(key: str, path: str, *args: Any, **kwargs: Any) -> types.ModuleType:
        module = load(key, path, *args, **kwargs)
        see(module, path)
        return module

    setattr(PyCodeCache, "load_by_key_path", staticmethod(load_and_see))  # noqa: B010 mypy
    try:
        yield
    finally:
        setattr(PyCodeCache, "load_by_key_path", original)  # noqa: B010 mypy
