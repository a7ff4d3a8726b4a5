"""Every private torch import, each with the versions it was seen in and its fallback.

Seen in 2.11, 2.13 and 2.15 unless a line says otherwise.
"""

import copy
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

# ---- Dynamo ----------------------------------------------------------------------------------


def is_module_source(source: Any) -> bool:
    """Whether Dynamo took an input from a module (parameter, buffer, tensor attribute)."""
    guard_source = source.guard_source
    if callable(guard_source):  # a method up to 2.11, a property since
        guard_source = guard_source()
    return bool(
        guard_source.is_unspecialized_nn_module() or guard_source.is_specialized_nn_module()
    )


def source_name(source: Any) -> str:
    """Where Dynamo took an input from, as the Python expression `L['self']._modules[…]`."""
    name = source.name
    return str(name() if callable(name) else name)  # a method up to 2.11, a property since


def current_code() -> types.CodeType | None:
    """The code object that Dynamo is translating; None outside of a backend call."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    translator = getattr(InstructionTranslator, "current_tx", lambda: None)
    try:
        found = translator()
    except AttributeError:  # no translation under way
        return None
    return None if found is None else found.f_code


def compiled_module() -> nn.Module | None:
    """The module whose call Dynamo is translating; None for a plain function."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    translator = getattr(InstructionTranslator, "current_tx", lambda: None)
    try:
        found = translator()
    except AttributeError:  # no translation under way
        return None
    module = None if found is None else found.f_locals.get("self")
    return module if isinstance(module, nn.Module) else None


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

    `code` is the function that this graph is (a piece of); its own earlier pieces do not count.

    There are none where Dynamo takes up a model as a whole. Where a graph break makes it give up a
    frame (a break inside a loop), that frame runs in Python and its callees are compiled alone.
    """
    torch_folder = str(Path(torch.__file__).parent)
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
    """The user's function behind a resume function that a graph break made."""
    from torch._dynamo.resume_execution import ContinueExecutionCache

    metadata = ContinueExecutionCache.generated_code_metadata
    while code is not None and code in metadata:
        code = metadata[code].code
    return code


def current_compile_id() -> str:
    """Dynamo's name for the compilation under way, as a folder name ("0_0"); "" outside of one."""
    from torch._guards import CompileContext

    found = CompileContext.current_compile_id()
    return "" if found is None else str(found).replace("/", "_")


def as_backend_error(error: Exception) -> Exception:
    """`error` in a form that Dynamo lets through to the caller of the compiled function.

    Dynamo wraps whatever a backend raises in `BackendCompilerFailed`, except for its own
    `ShortenTraceback`; an exception that is both keeps the caller's `except LadderError` working.
    Dynamo appends advice for reporting bugs to torch to the arguments; it is not shown.
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
    """Let Dynamo forget what is compiled inside: its code, and the sizes it met.

    Sizes are kept by Dynamo to make those dynamic that change from one compilation to the next.
    Code that had compiled forms before keeps its new ones too: they cannot be taken out singly.
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
    """`model` without what `model.compile()`, or a compiled `model.forward`, put on it.

    Compiled code that is found for a call would run instead of being traced again.
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
    """What Dynamo raises where it cannot take a call up as one graph."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


def break_of(error: Exception) -> tuple[str, str]:
    """What one of `dynamo_errors` says, and the user's line behind it as `file:line`."""
    stack = list(getattr(error, "real_stack", None) or [])
    place = f"{stack[-1].filename}:{stack[-1].lineno}" if stack else ""
    return str(error).partition("\n")[0], place


def full_text_of(error: BaseException) -> str:
    """What an error of Dynamo's says, with the user's and the library's lines that led to it."""
    lines = [str(error)]
    for frame in getattr(error, "real_stack", None) or []:
        lines.append(f"{frame.filename}:{frame.lineno}")
    return "\n".join(lines)


def watch_failures(backend: Callable[..., Any], see: Callable[[BaseException], None]) -> None:
    """Call `see(error)` when Dynamo gives up a frame that it was to compile with `backend`.

    Safe to repeat. `torch._dynamo.reset()` ends it; there is no hook that survives it.
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
    """Whether the compilation under way, further up on the stack, is for `backend`."""
    for frame, _ in traceback.walk_stack(None):
        found: Any = frame.f_locals.get("self")
        while hasattr(found, "_torchdynamo_orig_backend"):
            found = found._torchdynamo_orig_backend
            if getattr(found, "compiler_fn", found) is backend:
                return True
    return False


def trace_artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    """Add an artifact for tlparse to the trace that TORCH_TRACE asks for; nothing without it."""
    from torch._logging import trace_structured  # type: ignore[attr-defined]  # not in __all__

    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": encoding},
        payload_fn=payload,
    )


# ---- torch.compile -----------------------------------------------------------------------------


def drop_compiled(module: nn.Module) -> None:
    """Undo `module.compile(...)`."""
    module._compiled_call_impl = None


def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile(...)` was called."""
    return module._compiled_call_impl is not None


def is_compiled_wrapper(module: nn.Module) -> bool:
    """Whether `module` is what `torch.compile(model)` returns."""
    from torch._dynamo import OptimizedModule

    return isinstance(module, OptimizedModule)


# ---- AOTAutograd -----------------------------------------------------------------------------

Compiler = Callable[[GraphModule, Sequence[Any]], Callable[..., Any]]


def aot_compile(
    gm: GraphModule, example_inputs: Sequence[Any], compiler: Compiler
) -> Callable[..., Any]:
    """Trace `gm` to ATen, forward and backward, and give each graph to `compiler`."""
    from torch._dynamo.backends.common import aot_autograd

    compiled: Callable[..., Any] = aot_autograd(fw_compiler=compiler)(gm, example_inputs)
    return compiled


def boxed(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` in the calling convention of AOTAutograd's compilers."""
    from functorch.compile import make_boxed_func  # type: ignore[import-untyped]  # no stubs

    made: Callable[..., Any] = make_boxed_func(fn)
    return made


def saves_random_states_behind_meshes() -> bool:
    """Whether AOTAutograd saves states of the CPU's generator where it expects none. Only 2.13."""
    return str(torch.__version__).startswith("2.13")


# ---- Inductor --------------------------------------------------------------------------------


def inductor_options() -> frozenset[str]:
    """The names of Inductor's own configuration entries (`max_autotune`, …)."""
    from torch._inductor import config

    return frozenset(config.get_config_copy())


def inductor_modes() -> list[str]:
    """What `torch.compile(mode=…)` may say."""
    from torch._inductor import list_mode_options

    return list(list_mode_options())


def inductor_mode_options(mode: str | None) -> dict[str, Any]:
    """Inductor's configuration entries behind `torch.compile(mode=mode)`."""
    if mode is None or mode == "default":
        return {}
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode))


def inductor_setting(name: str) -> Any:
    from torch._inductor import config

    return config.get_config_copy()[name]


def inductor_compile(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    settings: Mapping[str, Any],
    on_source: Callable[[str], None] | None = None,
) -> Callable[..., Any]:
    """Compile with Inductor under `settings`; `on_source` sees each emitted Python module.

    `on_source` is also called for a graph that comes out of Inductor's FX-graph cache.
    """
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    def inner(*args: Any, **kwargs: Any) -> Any:
        output = compile_fx_inner(*args, **kwargs)
        source = getattr(output, "source_code", None)
        if on_source is not None and source:
            on_source(source)
        return output

    compiled: Any = compile_fx(
        gm, list(example_inputs), inner_compile=inner, config_patches=dict(settings)
    )
    return cast(Callable[..., Any], compiled)


def has_control_deps() -> bool:
    """Whether this Inductor can order two nodes explicitly (2.11, 2.13 and 2.15 can)."""
    try:
        from torch._inductor.fx_passes import control_dependencies
    except ImportError:
        return False
    return hasattr(control_dependencies, "preserve_node_ordering")


def preserve_node_ordering(graph: Graph, after: Mapping[Node, Sequence[Node]]) -> None:
    """Make Inductor schedule each key after the nodes it maps to."""
    from torch._inductor.fx_passes.control_dependencies import preserve_node_ordering as preserve
    from torch.utils._ordered_set import OrderedSet

    preserve(graph, {node: OrderedSet(nodes) for node, nodes in after.items()})


# ---- fake tensors ----------------------------------------------------------------------------


def fake_mode_of(values: Sequence[Any]) -> Any:
    """The `FakeTensorMode` of the first fake tensor among `values`, None if there is none."""
    from torch._subclasses.fake_tensor import FakeTensor

    return next((v.fake_mode for v in values if isinstance(v, FakeTensor)), None)


def is_wrapper_subclass(value: Any) -> bool:
    """Whether `value` is a tensor made of others: a DTensor, a quantised weight."""
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    return is_traceable_wrapper_subclass(value)


def without_functorch(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor inside of what `vmap` or `grad` wrap; a wrapped one has no storage."""
    from torch._C import _functorch

    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def hint(size: int | torch.SymInt) -> int:
    """A size as it is in the call that is compiled for, without a guard; 1 where nothing is known.

    Unbacked sizes have none.
    """
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else 1


def new_fake_mode() -> Any:
    """A `FakeTensorMode` with symbolic shapes, under which real tensors (buffers) may be read."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    return FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)


def propagate_fakes(gm: GraphModule, inputs: Sequence[Any]) -> None:
    """Run `gm` on fake copies of `inputs`; each node's value is left in `meta["val"]`."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    # The modules' own parameters are real tensors.
    FakeTensorProp(gm, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)


# ---- exported programs (seen in 2.11, 2.13, 2.15) ---------------------------------------------


def reorder_kwargs(kwargs: dict[str, Any], spec: Any) -> dict[str, Any]:
    """`kwargs` in the order in which a program was traced; ValueError if they are others."""
    from torch.export._tree_utils import reorder_kwargs

    return reorder_kwargs(kwargs, spec)


def load_archive(path: Path) -> Any:
    """The exported program in a `.pt2` file that holds one.

    `torch.export.load` would hide the reason of a failure in its log.
    """
    from torch.export.pt2_archive._package import load_pt2

    (program,) = load_pt2(path).exported_programs.values()
    return program


def find_wrong_input(inputs: Sequence[Node], values: Sequence[Any], ranges: Any) -> str:
    """Why `values` (key path and value each) are not what `inputs` were traced with; "" if so."""
    from torch._export.utils import _check_input_constraints_for_graph

    try:
        _check_input_constraints_for_graph(list(inputs), values, ranges)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def python_dispatcher() -> AbstractContextManager[None]:
    """The dispatcher whose Python kernels take symbolic sizes (up to 2.11 aten.linear needs it)."""
    from torch._dispatch.python import enable_python_dispatcher

    manager: AbstractContextManager[None] = enable_python_dispatcher()
    return manager


# ---- distributed -----------------------------------------------------------------------------


def default_store() -> Any:
    """The key-value store that `init_process_group` made."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def process_group(name: str) -> Any:
    """The process group of that name."""
    from torch.distributed import distributed_c10d

    resolve: Any = distributed_c10d.__dict__["_resolve_process_group"]  # not in the stubs
    return resolve(name)


def is_bucket() -> bool:
    """Whether the graph being compiled is one of several that Dynamo split a DDP model into."""
    from torch._dynamo.backends.distributed import SubmodCompiler

    frames = (frame for frame, _ in traceback.walk_stack(None))
    return any(isinstance(frame.f_locals.get("self"), SubmodCompiler) for frame in frames)


def sharded_parts() -> list[str]:
    """The names of the modules below the one on the Python stack that FSDP2 has hooks on."""
    from torch.distributed.fsdp import FSDPModule

    running = list(running_modules())
    if not running:
        return []
    root = getattr(running[-1], "_orig_mod", running[-1])
    return [name for name, part in root.named_modules() if name and isinstance(part, FSDPModule)]


# ---- what Inductor emits ---------------------------------------------------------------------


@contextmanager
def watch_loaded_code(see: Callable[[types.ModuleType, str], None]) -> Iterator[None]:
    """Call `see(module, path)` for each Python module that Inductor loads.

    All emitted code passes here, be it new, from the FX-graph cache, from the AOTAutograd cache or
    from a compile worker. `GraphLowering.save_output_code` sees the first two, and the output of
    `compile_fx_inner` is not asked for at all when the AOTAutograd cache hits.
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
