"""Compile Triton kernels to machine code of an H100, each once per run."""

from torch._inductor.codecache import PyCodeCache

_compiled: set[str] = set()


def compile_new(kernels: dict[str, str]) -> None:
    """Those that were not there before, each in its first configuration.

    Args:
        kernels: sources by name; a kernel of another name is another kernel only if it differs.
    """
    for name, source in kernels.items():
        alike = source.replace(name, "kernel")
        if alike in _compiled:
            continue
        _compiled.add(alike)
        kernel = getattr(PyCodeCache.load(source), name)
        assembly = kernel._precompile_config(kernel.configs[0]).kernel.asm
        assert ".target sm_90" in assembly["ptx"]
        assert assembly["cubin"].startswith(b"\x7fELF")
