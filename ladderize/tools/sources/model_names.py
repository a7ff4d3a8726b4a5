"""Names of models on the command line. Torch is not imported, so wrong names fail immediately.

model.pt2                   a file written by `torch.export.save`
hf:DIR_OR_CONFIG            a transformers configuration in a local file or folder
hf:llama-8b                 a shipped configuration of the published sizes; nothing is downloaded
hf:llama-70b,layers=4       the same with fewer layers (or `width=`: a narrower stream)
package.module:factory      a function that returns (model, args, kwargs)
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from ladderize.errors import Blocker, LadderError, nearest

HUGGING_FACE = "hf:"
"""Prefix of the name of a transformers configuration."""
SHIPPED = Path(__file__).parent / "configurations"
"""Folder of the shipped configurations, one `NAME.json` each."""


def shipped_names() -> list[str]:
    """The names of the shipped configurations."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


@dataclass(frozen=True)
class ConfigurationName:
    """The parsed name of a configuration.

    Attributes:
        path: file of the configuration, or folder with its `config.json`.
        layers: number of layers to build, None for all.
        width: size of the residual stream, None for the published one.
    """

    path: Path
    layers: int | None = None
    width: int | None = None


def is_configuration(text: str) -> bool:
    return text.startswith(HUGGING_FACE)


def find_configuration(text: str) -> ConfigurationName:
    """Find the configuration called `text`, which starts with `hf:`.

    A file or folder of that name takes precedence over a shipped configuration.

    Raises:
        LadderError: there is no such configuration.
    """
    name = text.removeprefix(HUGGING_FACE)
    if name and Path(name).exists():
        return ConfigurationName(Path(name))
    name, *sizes = name.split(",")
    path = SHIPPED / f"{name}.json"
    if name not in shipped_names():
        known = ", ".join(shipped_names()) + nearest(name, shipped_names())
        raise LadderError(
            f"{name}: no such file, folder or shipped configuration.",
            cure=f"ladderize does not download; shipped configurations are {known}",
        )
    return ConfigurationName(path, **dict(_read_size(text, size) for size in sizes))


def _read_size(text: str, size: str) -> tuple[str, int]:
    name, _, number = size.partition("=")
    if name not in ("layers", "width") or not number.isdecimal() or not int(number):
        raise LadderError(
            f"{text}: {size!r} is not a size.", cure="write hf:NAME,layers=4,width=512"
        )
    return name, int(number)


def is_factory(text: str) -> bool:
    """Whether `text` has the form `package.module:function`."""
    module, colon, function = text.partition(":")
    names = [*module.split("."), function]
    return bool(colon) and all(name.isidentifier() for name in names) and not Path(text).exists()


def look_here_first() -> None:
    """Put the current folder first on `sys.path`, for the modules of factories."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def refuse_unknown(text: str) -> None:
    """Refuse a model that does not exist, before anything is loaded.

    Args:
        text: a path, `hf:DIR_OR_CONFIG` or `module:factory`.

    Raises:
        LadderError: the model does not exist; the message names what is missing.
    """
    if is_configuration(text):
        find_configuration(text)
        return
    cure = "pass a .pt2 file, hf:DIR_OR_CONFIG, or module:factory"
    if not is_factory(text):
        if Path(text).exists():
            return
        shipped = f"write hf:{text}, or " if text in shipped_names() else ""
        raise LadderError(f"There is no model called {text}.", cure=f"{shipped}{cure}")
    look_here_first()
    package = text.partition(":")[0].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        why = Blocker(f"Python finds no module {package!r} here")
        raise LadderError(f"There is no model called {text}.", [why], cure)
