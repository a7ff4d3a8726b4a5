"""`ladderize.compile(model)`: make a model its own ladder, in place.

    model(x)               standard, eager    →   ladder, compiled
    model.generate(ids)    standard, eager    →   ladder, compiled: prefill and every decode step

In: a module and the options of `LadderConfig`. Out: the same module, with the same parameters under
the same names; `restore` takes it back.
"""

from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from ladderize import compat
from ladderize.config import LadderConfig
from ladderize.errors import LadderError
from ladderize.generation import find_encoder, refuse_relative_counts, set_compile_by_generate
from ladderize.jit import ladderize

Model = TypeVar("Model", bound=nn.Module)

_disabled_before: WeakKeyDictionary[nn.Module, bool | None] = WeakKeyDictionary()
"""Each model that is a ladder now, with the setting for `generate` that `compile` found."""


def compile(  # as torch.compile
    model: Model, *, dynamic: bool | None = None, fullgraph: bool = True, **options: Any
) -> Model:
    """Make `model` a ladder of itself: every call of it, and its `generate`, runs compiled.

    >>> model = ladderize.compile(AutoModelForCausalLM.from_pretrained(path), layers="16:32")
    >>> model.generate(**inputs)                    # prefill and decode are both the ladder

    The module itself is compiled (`nn.Module.compile`), so that whoever holds it gets the ladder:
    `model.generate`, a trainer, another module. `torch.compile(model)` returns a wrapper instead,
    whose `generate` runs the module below, standard and eager. Parameters, `state_dict` and hooks
    stay as they are; copies (`copy.deepcopy`, `torch.save`) are standard nets. Applied again, the
    latest options hold.

    Args:
        model: any module. Of a transformers encoder-decoder the encoder is compiled too, because
            `generate` calls it by itself.
        dynamic, fullgraph: as in `torch.compile`. With `dynamic=True` prefill and decode are
            compiled once for all lengths; with `None` again at the second length.
        options: those of `LadderConfig`.

    Raises:
        LadderError: for mistaken options, and for a wrapper that `torch.compile` returned. What
            keeps the graph from being converted is raised by the first call.
    """
    if not isinstance(model, nn.Module):
        raise LadderError(f"ladderize.compile takes a module, not a {type(model).__name__}.")
    if compat.is_compiled_wrapper(model):
        raise LadderError("This is a wrapper of torch.compile.", cure="pass the model in it")
    config = LadderConfig.from_options(options)
    encoder = find_encoder(model)
    if encoder is not None:
        refuse_relative_counts(config)
    restore(model)
    for module in (model, encoder):
        if module is not None:
            module.compile(backend=ladderize, dynamic=dynamic, fullgraph=fullgraph, options=options)
    _disabled_before[model] = set_compile_by_generate(model, disabled=True)
    return model


def restore(model: Model) -> Model:
    """Take `compile` back: `model` is eager and standard again. Does nothing to other models.

    >>> ladderize.restore(model)(x)                 # as model(x) was before ladderize.compile
    """
    if model not in _disabled_before:
        return model
    for module in (model, find_encoder(model)):
        if module is not None:
            compat.drop_compiled(module)
    set_compile_by_generate(model, disabled=_disabled_before.pop(model))
    return model
