"""Every Triton kernel of a ladder becomes machine code of an H100."""

import nets
import torch
from stand_in_gpu import Emitted, emitted
from torch._inductor.codecache import PyCodeCache


def compile_kernels(code: Emitted) -> dict[str, bytes]:
    """The cubin of each kernel in its first configuration."""
    cubins = {}
    for name, source in code.kernels.items():
        kernel = getattr(PyCodeCache.load(source), name)
        compiled = kernel._precompile_config(kernel.configs[0]).kernel
        assert ".target sm_90" in compiled.asm["ptx"]
        cubins[name] = compiled.asm["cubin"]
    return cubins


def test_forward_and_backward_kernels_compile() -> None:
    model = nets.llama(torch.bfloat16, num_hidden_layers=1).requires_grad_()
    run, ids = nets.laddered(model, mesh=nets.mesh_of(2)), nets.ids()
    code = emitted(lambda: run(input_ids=ids))
    cubins = compile_kernels(code)
    assert len(cubins) == len(code.kernels) > 20
    assert all(cubin.startswith(b"\x7fELF") for cubin in cubins.values())
