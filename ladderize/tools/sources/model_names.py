"""How models are named on the command line. No torch is needed: a mistaken name is refused at once.

model.pt2                   what `torch.export.save` wrote
hf:DIR_OR_CONFIG            a configuration of transformers in a local file or folder
hf:llama-8b                 one that ladderize ships, of the published sizes; nothing is fetched
hf:llama-70b,layers=4       the same with fewer layers, or narrower
package.module:factory      a function that returns (model, args, kwargs)
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from ladderize.errors import Blocker, LadderError, nearest

HUGGING_FACE = "hf:"
"""How the name of a transformers configuration begins."""
SHIPPED = Path(__file__).parent / "configurations"
"""The configurations that ladderize ships, a `NAME.json` each."""


def shipped_names() -> list[str]:
    """The names of the configurations that ladderize ships."""
    return sorted(path.stem for path in SHIPPED.glob("*.json"))


@dataclass(frozen=True)
class ConfigurationName:
    """What is behind `hf:`.

    Attributes:
        path: the configuration's file, or the folder with its `config.json`.
        layers: number of layers to build, None: all.
        width: size of the residual stream, None: the published one.
    """

    path: Path
    layers: int | None = None
    width: int | None = None


def is_configuration(text: str) -> bool:
    return text.startswith(HUGGING_FACE)


def find_configuration(text: str) -> ConfigurationName:
    """The configuration called `text`, which begins with `hf:`.

    A file or folder of that name comes before a shipped configuration.

    Raises:
        LadderError: there is none.
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
            cure=f"nothing is fetched from a hub; shipped are {known}",
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
    """Whether `text` is spelled as `package.module:function`."""
    module, colon, function = text.partition(":")
    names = [*module.split("."), function]
    return bool(colon) and all(name.isidentifier() for name in names) and not Path(text).exists()


def look_here_first() -> None:
    """Modules of factories are looked for in the current folder first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def refuse_unknown(text: str) -> None:
    """Refuse a model that is not there, before anything is loaded.

    Args:
        text: a path, `hf:DIR_OR_CONFIG` or `module:factory`.

    Raises:
        LadderError: naming what is missing.
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
