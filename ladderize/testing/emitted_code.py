"""Record the code that Inductor emits, or loads from a cache, during compilation."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from ladderize.compat import watch_loaded_code


@contextmanager
def record_emitted_code() -> Iterator[list[str]]:
    """Collect the source of every Inductor wrapper, forward and backward, emitted or loaded.

    Yields a list that grows as graphs are compiled, with each source once, in the order of loading.
    A backward graph is compiled with the forward graph or at the first `backward()`: keep both
    inside the context.

        with record_emitted_code() as sources:
            torch.compile(model)(x).sum().backward()
        for source in sources:
            check_emitted(source)
    """
    sources: list[str] = []

    def see(module: ModuleType, path: str) -> None:
        if hasattr(module, "call"):  # modules of single kernels do not
            source = Path(path).read_text()
            if source not in sources:
                sources.append(source)

    with watch_loaded_code(see):
        yield sources
