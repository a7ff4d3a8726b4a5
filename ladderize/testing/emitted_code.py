"""See the code that Inductor emits, or loads from a cache, while something is compiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


@contextmanager
def record_emitted_code() -> Iterator[list[str]]:
    """Collect the source of every Inductor wrapper, forward and backward, emitted or loaded.

    Yields a list that fills while graphs are compiled; each source is there once, in the order of
    loading. A backward graph is compiled with the forward one or at the first `backward()`: keep
    both inside.

        with record_emitted_code() as sources:
            torch.compile(model)(x).sum().backward()
        for source in sources:
            check_emitted(source)
    """
    sources: list[str] = []

    def see(module: ModuleType, path: str) -> None:
        if hasattr(module, "call"):  # the modules of single kernels have none
            source = Path(path).read_text()
            if source not in sources:
                sources.append(source)

    with _watch_loads(see):
        yield sources


# For compat.py; seen in torch 2.11, 2.13 and 2.15.


@contextmanager
def _watch_loads(see: Callable[[ModuleType, str], None]) -> Iterator[None]:
    """Call `see(module, path)` for each Python module that Inductor loads.

    All emitted code passes here, be it new, from the FX-graph cache, from the AOTAutograd cache or
    from a compile worker. `GraphLowering.save_output_code` sees the first two, and the output of
    `compile_fx_inner` is not asked for at all when the AOTAutograd cache hits.
    """
    from torch._inductor.codecache import PyCodeCache

    original = PyCodeCache.__dict__["load_by_key_path"]
    load = PyCodeCache.load_by_key_path

    def load_and_see(key: str, path: str, *args: Any, **kwargs: Any) -> ModuleType:
        module = load(key, path, *args, **kwargs)
        see(module, path)
        return module

    setattr(PyCodeCache, "load_by_key_path", staticmethod(load_and_see))  # noqa: B010 mypy
    try:
        yield
    finally:
        setattr(PyCodeCache, "load_by_key_path", original)  # noqa: B010 mypy
