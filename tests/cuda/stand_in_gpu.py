"""Stands in for eight H100s, so that Inductor emits the code for them.

    library.load(folder)                         # before torch is imported
    stand_in_gpu.install(folder)
    with stand_in_gpu.on_gpu(): model = Net()    # fake tensors on "cuda:0"
    code = stand_in_gpu.emitted(lambda: torch.compile(model)(x))

Seen with torch 2.13.0 (its CPU build) and triton 3.7.1. Nothing runs: tensors are fake, and a
kernel is its source. Triton compiles these to cubins without a GPU (`cubins.py`).
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch._functorch.config
from torch._dynamo import device_interface
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.select_algorithm import AlgorithmSelectorCache, TritonTemplateCaller
from torch._subclasses import FakeTensorMode, fake_tensor

from ladderize import parallelize
from ladderize.compat import watch_loaded_code
from ladderize.sharding.placement import IndexInput

COUNT = 8
CAPABILITY = (9, 0)
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=80 << 30,
    gcnArchName="",
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    is_integrated=False,
)
FAKES = FakeTensorMode(allow_non_fake_inputs=True)  # parts of real buffers go to the device
_kernels: dict[str, str] = {}


class _Device(contextlib.nullcontext[None]):
    def __init__(self, *_: Any) -> None:
        super().__init__()


def install(folder: str) -> None:
    """Before anything is compiled.

    Args:
        folder: of the caches.
    """
    os.environ.update(
        TORCHINDUCTOR_CACHE_DIR=f"{folder}/inductor", TRITON_CACHE_DIR=f"{folder}/triton"
    )
    _describe_devices()
    _describe_to_dynamo()
    _describe_to_triton()
    _keep_kernels_as_sources()
    _choose_templates()
    config.compile_threads = 1
    config.use_static_cuda_launcher = False  # what it launches keeps no PTX
    config.force_disable_caches = True
    config.joint_graph_constant_folding = False  # it makes constants on the device
    config.shape_padding = False  # decided by timing products on it
    torch._functorch.config.force_non_lazy_backward_lowering = True  # no forward is run
    make_fakes(IndexInput, "tensor")
    make_fakes(sys.modules[parallelize.__module__], "read_slices")


def _describe_devices() -> None:
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": COUNT,
        "current_device": 0,
        "get_device_properties": H100,
        "get_device_capability": CAPABILITY,
        "get_device_name": H100.name,
        "is_bf16_supported": True,
        "is_initialized": False,
        "_lazy_init": None,
        "init": None,
        "set_device": None,
        "synchronize": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "_is_compiled": True,
        "memory_allocated": 0,
        "mem_get_info": (80 << 30, 80 << 30),
        "is_current_stream_capturing": False,
        "_is_in_bad_fork": False,
        "empty_cache": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, _answer=answer, **__: _answer)
    torch.cuda.device = torch.cuda._DeviceGuard = _Device
    torch._C._cuda_getCurrentRawStream = lambda _: 0
    torch._C._cuda_cudaCachingAllocator_is_enabled = lambda: True
    torch.version.cuda = "13.0"
    torch._C._ensureCUDADeviceGuardSet()


def _describe_to_dynamo() -> None:
    interface = device_interface.CudaInterface
    shared = ("current_device", "set_device", "device_count", "synchronize", "memory_allocated")
    for name in (*shared, "get_device_properties", "is_bf16_supported"):
        setattr(interface, name, staticmethod(getattr(torch.cuda, name)))
    interface.exchange_device = interface.maybe_exchange_device = staticmethod(lambda _: 0)
    interface.get_raw_stream = staticmethod(lambda _: 0)
    interface.device = _Device
    interface.Worker.get_device_properties = staticmethod(torch.cuda.get_device_properties)
    interface.Worker.current_device = staticmethod(torch.cuda.current_device)
    interface.raise_if_triton_unavailable = staticmethod(lambda _=None: None)
    device_interface._device_initialized = False
    device_interface.device_interfaces.clear()
    fake_tensor.init_gpu_context = lambda _: None
    FakeTensorMode.avoid_device_init = property(lambda _: True)


def _describe_to_triton() -> None:
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    target = GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], H100.warp_size)

    class Driver(CudaDriver):
        """A Triton driver that has a target but no device."""

        def __init__(self) -> None:
            pass

        @classmethod
        def is_active(cls) -> bool:
            return True

        def get_current_target(self) -> GPUTarget:
            return target

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, _device: Any = None) -> int:
            return 0

        def get_device_capability(self, _device: Any = None) -> tuple[int, int]:
            return CAPABILITY

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

        def get_device_interface(self) -> Any:
            return torch.cuda

    driver.set_active(Driver())


class _Kernel:
    # Of these a multi-kernel makes the name of its cache.
    fn = SimpleNamespace(cache_key="")
    size_hints = triton_meta = inductor_meta = None

    def run(self, *_: Any, **__: Any) -> None:
        pass

    __call__ = run


def _keep_kernels_as_sources() -> None:
    def triton(_self: Any, name: str, source: str, *_: Any, **__: Any) -> _Kernel:
        _kernels[name] = source
        return _Kernel()

    AsyncCompile.triton = triton


def _choose_templates() -> None:
    """Autotuning finds each Triton template faster than any library's kernel."""

    def time(choices: list[Any]) -> dict[Any, float]:
        return {one: 1.0 if isinstance(one, TritonTemplateCaller) else 2.0 for one in choices}

    AlgorithmSelectorCache.make_benchmark_fn = classmethod(lambda *_, **__: time)
    AlgorithmSelectorCache.make_precompile_fn = classmethod(lambda *_, **__: lambda: None)
    config.benchmark_epilogue_fusion = False


@contextlib.contextmanager
def on_gpu() -> Iterator[None]:
    """Tensors that are made here are fake and on the first device."""
    with FAKES, torch.device("cuda:0"):
        yield


def make_fakes(owner: Any, name: str) -> None:
    """Make the tensors that the function of that name creates on the device fake."""
    make = getattr(owner, name)

    def made(*args: Any) -> Any:
        with FAKES:
            return make(*args)

    setattr(owner, name, made)


class _CompiledError(Exception):
    """Raised instead of a call of the emitted code."""


@dataclass(frozen=True)
class Emitted:
    """Wrappers, the forward's before its backward's, and the sources of Triton kernels by name."""

    sources: list[str]
    kernels: dict[str, str]


def emitted(work: Callable[[], Any]) -> Emitted:
    """The code emitted while `work` calls a compiled function; the call ends before it runs."""
    torch._dynamo.reset()
    _kernels.clear()
    sources: list[str] = []

    def see(module: ModuleType, path: str) -> None:
        if hasattr(module, "call"):
            sources.append(Path(path).read_text())
            module.call = _stop

    with watch_loaded_code(see), contextlib.suppress(_CompiledError):
        work()
    return Emitted(sources, dict(_kernels))


def _stop(*_: Any, **__: Any) -> None:
    raise _CompiledError
