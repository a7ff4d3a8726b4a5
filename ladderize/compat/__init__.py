"""All private torch imports, each with the versions it was seen in and its fallback.

One file for each part of torch. Seen in 2.11, 2.13 and 2.15 unless a line says otherwise.
A file is imported when one of its names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ladderize.compat.autograd import (
        aot_compile,
        boxed,
        drop_compiled,
        drop_graphs,
        input_position,
        is_called_by_module,
        is_compiled_in_place,
        is_compiled_wrapper,
        saves_random_states_behind_meshes,
        without_wrapper,
        wrap_compiled,
    )
    from ladderize.compat.cuda import compile_kernel, most_shared_memory
    from ladderize.compat.distributed import (
        backend_name,
        current_device,
        data_parallel_group,
        default_store,
        device_types,
        drop_part_hooks,
        find_process_group,
        group_timeout,
        is_bucket,
        parts_with_hooks,
        pass_on,
        process_group,
        sharded_parts,
    )
    from ladderize.compat.dynamo import (
        as_backend_error,
        backend_under_way,
        break_of,
        callee_of,
        compiled_module,
        current_code,
        current_compile_id,
        dynamo_errors,
        frames_left_to_python,
        full_text_of,
        is_module_source,
        original_code,
        running_modules,
        source_name,
        trace_artifact,
        uncompiled,
        undo_caching,
        value_of,
        watch_failures,
    )
    from ladderize.compat.engines import (
        is_model_configuration,
        is_pretrained_model,
        vllm_group,
        warn_if_untried,
    )
    from ladderize.compat.exported import find_wrong_input, load_archive, reorder_kwargs
    from ladderize.compat.inductor import (
        has_control_deps,
        inductor_cache_dir,
        inductor_compile,
        inductor_modes,
        inductor_options,
        inductor_setting,
        inductor_settings,
        keep_waits_of_readers,
        preserve_node_ordering,
        watch_loaded_code,
    )
    from ladderize.compat.tensors import (
        SizeSymbol,
        fake_mode_of,
        fake_of,
        has_hint,
        hint,
        inner_tensors,
        is_wrapper_subclass,
        new_fake_mode,
        ops_reading,
        plain_like,
        propagate_fakes,
        python_dispatcher,
        symbols_of,
        without_functorch,
    )

__all__ = [
    "SizeSymbol",
    "aot_compile",
    "as_backend_error",
    "backend_name",
    "backend_under_way",
    "boxed",
    "break_of",
    "callee_of",
    "compile_kernel",
    "compiled_module",
    "current_code",
    "current_compile_id",
    "current_device",
    "data_parallel_group",
    "default_store",
    "device_types",
    "drop_compiled",
    "drop_graphs",
    "drop_part_hooks",
    "dynamo_errors",
    "fake_mode_of",
    "fake_of",
    "find_process_group",
    "find_wrong_input",
    "frames_left_to_python",
    "full_text_of",
    "group_timeout",
    "has_control_deps",
    "has_hint",
    "hint",
    "inductor_cache_dir",
    "inductor_compile",
    "inductor_modes",
    "inductor_options",
    "inductor_setting",
    "inductor_settings",
    "inner_tensors",
    "input_position",
    "is_bucket",
    "is_called_by_module",
    "is_compiled_in_place",
    "is_compiled_wrapper",
    "is_model_configuration",
    "is_module_source",
    "is_pretrained_model",
    "is_wrapper_subclass",
    "keep_waits_of_readers",
    "load_archive",
    "most_shared_memory",
    "new_fake_mode",
    "ops_reading",
    "original_code",
    "parts_with_hooks",
    "pass_on",
    "plain_like",
    "preserve_node_ordering",
    "process_group",
    "propagate_fakes",
    "python_dispatcher",
    "reorder_kwargs",
    "running_modules",
    "saves_random_states_behind_meshes",
    "sharded_parts",
    "source_name",
    "symbols_of",
    "trace_artifact",
    "uncompiled",
    "undo_caching",
    "value_of",
    "vllm_group",
    "warn_if_untried",
    "watch_failures",
    "watch_loaded_code",
    "without_functorch",
    "without_wrapper",
    "wrap_compiled",
]

_FILES = (
    "autograd",
    "cuda",
    "distributed",
    "dynamo",
    "engines",
    "exported",
    "tensors",
    "inductor",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for file in _FILES:
            found = import_module(f"ladderize.compat.{file}")
            if name in vars(found):
                return globals().setdefault(name, vars(found)[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
