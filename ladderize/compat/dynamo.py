"""Dynamo: the code it is translating, where it gave up, and the errors it passes on."""

import copy
import functools
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


def is_module_source(source: Any) -> bool:
    """Whether Dynamo took an input from a module (parameter, buffer, tensor attribute)."""
    guard_source = source.guard_source
    if callable(guard_source):  # a method up to 2.11, a property since
        guard_source = guard_source()
    return bool(
        guard_source.is_unspecialized_nn_module() or guard_source.is_specialized_nn_module()
    )


def source_name(source: Any) -> str:
    """The source of a Dynamo input as a Python expression: `L['self']._modules[…]`."""
    name = source.name
    return str(name() if callable(name) else name)  # a method up to 2.11, a property since


def current_code() -> types.CodeType | None:
    """The code object that Dynamo is translating; None outside of a backend call."""
    found = _current_translation()
    return None if found is None else found.f_code


def compiled_module() -> nn.Module | None:
    """The module whose call Dynamo is translating; None for a plain function."""
    found = _current_translation()
    if found is None:
        return None
    held = {name: callee_of(value) for name, value in found.f_locals.items()}
    modules = {name: value for name, value in held.items() if isinstance(value, nn.Module)}
    if "self" in modules:
        return modules["self"]
    code = original_code(found.f_code)
    return next((each for each in modules.values() if _is_run_by(each, code)), None)


def callee_of(value: object) -> object:
    """The object that a `functools.partial` or bound method calls, with both unwrapped."""
    while isinstance(value, functools.partial):
        value = value.func
    return value.__self__ if isinstance(value, types.MethodType) else value


def _is_run_by(module: nn.Module, code: types.CodeType | None) -> bool:
    """Whether `code` is a method of `module`, or Dynamo's own wrapper around a callable."""
    from torch._dynamo import external_utils

    if code is None or code.co_filename == external_utils.__file__:
        return code is not None
    method = getattr(type(module), code.co_name, None)
    return getattr(method, "__code__", None) is code


def value_of(source: str) -> Any:
    """The value of a Dynamo source such as `L['self'].layers`; None if unknown."""
    found = _current_translation()
    if found is None:
        return None
    try:  # guards evaluate this expression in the same way
        return eval(source, {"L": found.f_locals, "G": found.f_globals})
    except Exception:
        return None


def _current_translation() -> Any:
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return getattr(InstructionTranslator, "current_tx", lambda: None)()
    except AttributeError:  # no translation in progress
        return None


def running_modules() -> Iterator[nn.Module]:
    """The modules whose methods are on the Python stack, the innermost first."""
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            yield module
        frame = frame.f_back  # type: ignore[assignment]  # None at the outermost frame


def frames_left_to_python(code: types.CodeType | None) -> list[traceback.FrameSummary]:
    """The user's frames that run in Python between `torch.compile`'s wrapper and this graph.

    `code` is the function of this graph; its own earlier pieces do not count.

    The list is empty if Dynamo traces the whole model. If a graph break makes Dynamo skip a frame
    (a break inside a loop), that frame runs in Python and its callees are compiled separately.
    """
    torch_folder = f"{Path(torch.__file__).parent}{os.sep}"
    stack = traceback.extract_stack()
    wrapper = max((i for i, f in enumerate(stack) if f.name == "compile_wrapper"), default=0)
    between: list[traceback.FrameSummary] = []
    for frame in stack[wrapper + 1 :]:
        if frame.filename.endswith("convert_frame.py"):
            return between
        is_own = code is not None and (frame.filename, frame.name) == (
            code.co_filename,
            code.co_name,
        )
        is_users = not frame.filename.startswith((torch_folder, "<"))
        if is_users and not is_own:
            between.append(frame)
    return []


def original_code(code: types.CodeType | None) -> types.CodeType | None:
    """The user's function from which a graph break made the resume function `code`."""
    from torch._dynamo.resume_execution import ContinueExecutionCache

    metadata = ContinueExecutionCache.generated_code_metadata
    while code is not None and code in metadata:
        code = metadata[code].code
    return code


def current_compile_id() -> str:
    """Dynamo's id of the current compilation, as a folder name ("0_0"); "" outside of one."""
    from torch._guards import CompileContext

    found = CompileContext.current_compile_id()
    return "" if found is None else str(found).replace("/", "_")


def as_backend_error(error: Exception) -> Exception:
    """`error` in a form that Dynamo passes on to the caller of the compiled function.

    Dynamo wraps the errors of a backend in `BackendCompilerFailed`, except its own
    `ShortenTraceback`. An exception of both classes keeps the caller's `except LadderError`
    working. Dynamo adds advice on reporting torch bugs to the arguments; it is not shown.
    """
    from torch._dynamo.exc import ShortenTraceback

    kind, text = type(error), str(error)
    members = {"__module__": kind.__module__, "__str__": lambda _: text}
    both = type(kind.__name__, (kind, ShortenTraceback), members)
    raised: Exception = Exception.__new__(both)
    raised.__dict__.update(error.__dict__, first_useful_frame=None, real_stack=None)
    raised.args = error.args
    return raised


@contextmanager
def undo_caching() -> Iterator[None]:
    """Make Dynamo forget the compilations inside: their code and the recorded sizes.

    Dynamo records sizes to make those dynamic that change between compilations. Code that was
    compiled before keeps its new entries too, because single entries cannot be removed.
    """
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list, reset_code
    from torch._dynamo import convert_frame, pgo

    new: dict[types.CodeType, None] = {}

    def note(code: types.CodeType, new_code: types.CodeType) -> None:  # noqa: ARG001
        if not _debug_get_cache_entry_list(code):
            new[code] = None

    sizes = copy.deepcopy(dict(pgo.get_code_state()))
    hook = convert_frame.register_bytecode_hook(note)
    try:
        yield
    finally:
        hook.remove()
        pgo.get_code_state().clear()
        pgo.get_code_state().update(sizes)
        for code in new:
            reset_code(code)


@contextmanager
def uncompiled(model: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`model` without the effect of `model.compile()` or of a compiled `model.forward`.

    Otherwise existing compiled code would run instead of being traced again.
    """
    from torch._dynamo.eval_frame import innermost_fn

    model = getattr(model, "_orig_mod", model)
    own: dict[str, Any] = vars(model) if isinstance(model, nn.Module) else {}
    kept: dict[str, Any] = {
        name: own[name] for name in ("_compiled_call_impl", "forward") if name in own
    }
    if "_compiled_call_impl" in kept:
        own["_compiled_call_impl"] = None
    if "forward" in kept:
        own["forward"] = innermost_fn(kept["forward"])
    try:
        yield model
    finally:
        own.update(kept)


def dynamo_errors() -> type[Exception]:
    """The base class of the errors that Dynamo raises if it cannot trace a call as one graph."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


def break_of(error: Exception) -> tuple[str, str]:
    """The first line of one of `dynamo_errors`, and the user's source line as `file:line`."""
    stack = list(getattr(error, "real_stack", None) or [])
    place = f"{stack[-1].filename}:{stack[-1].lineno}" if stack else ""
    return str(error).partition("\n")[0], place


def full_text_of(error: BaseException) -> str:
    """The text of a Dynamo error, with the source lines (user and library) that led to it."""
    lines = [str(error)]
    for frame in getattr(error, "real_stack", None) or []:
        lines.append(f"{frame.filename}:{frame.lineno}")
    return "\n".join(lines)


def watch_failures(backend: Callable[..., Any], see: Callable[[BaseException], None]) -> None:
    """Call `see(error)` if Dynamo gives up on a frame that it was compiling with `backend`.

    Repeated calls have no effect. `torch._dynamo.reset()` ends it; no hook survives that.
    """
    from torch._dynamo.callback import callback_handler

    def look(_: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, dynamo_errors()) and _compiles_with(backend):
            see(error)

    look.__qualname__ = f"{watch_failures.__qualname__}.{backend.__qualname__}"
    known = {callback.__qualname__ for callback in callback_handler.end_callbacks}
    if look.__qualname__ not in known:
        callback_handler.register_end_callback(look)


def _compiles_with(backend: Callable[..., Any]) -> bool:
    """Whether a compilation on the Python stack is for `backend`."""
    return backend in _backends_under_way()


def backend_under_way() -> Any:
    """The backend of the innermost compilation on the Python stack; None outside of one."""
    return next(_backends_under_way(), None)


def _backends_under_way() -> Iterator[Any]:
    """Backends of the compilations on the stack, innermost first, as given to `torch.compile`."""
    for frame, _ in traceback.walk_stack(None):
        found: Any = frame.f_locals.get("self")
        if hasattr(found, "_torchdynamo_orig_backend"):
            yield _given_backend(found)


def _given_backend(found: Any) -> Any:
    """`found` without Dynamo's wrappers: frame converters, options, DDP buckets."""
    found = getattr(found, "_torchdynamo_orig_backend", found)
    found = getattr(found, "compiler_fn", found)
    buckets: Any = getattr(found, "__self__", None)
    if hasattr(buckets, "backend_compile_fn"):
        return _given_backend(buckets.backend_compile_fn)
    return _given_backend(found) if hasattr(found, "_torchdynamo_orig_backend") else found


def trace_artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    """Add an artifact for tlparse to the TORCH_TRACE log; no effect without TORCH_TRACE."""
    from torch._logging import trace_structured  # type: ignore[attr-defined]  # not in __all__

    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": encoding},
        payload_fn=payload,
    )
