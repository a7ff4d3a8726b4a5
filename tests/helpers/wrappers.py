"""Hand-written wrappers in Inductor's style, with a few fused kernels to call."""

import textwrap

from ladderize.backends.emitted import find_disorder, find_races, read_events

# From torch 2.15, shortened: `buf = x + a` for the next block, and at once `y = x + a + b`.
KERNELS = """
cpp_fused_add_0 = async_compile.cpp_pybinding(['const float*', 'const float*', 'float*'], r'''
extern "C"  void  kernel(const float* in_ptr0,
                       const float* in_ptr1,
                       float* out_ptr0)
{
    for(int64_t x0=static_cast<int64_t>(0L); x0<static_cast<int64_t>(4L); x0+=1)
    {
        auto tmp0 = in_ptr0[static_cast<int64_t>(x0)];
        auto tmp1 = in_ptr1[static_cast<int64_t>(x0)];
        auto tmp2 = decltype(tmp0)(tmp0 + tmp1);
        out_ptr0[static_cast<int64_t>(x0)] = tmp2;
    }
}
''')


cpp_fused_add_1 = async_compile.cpp_pybinding(['const float*', '...'], r'''
extern "C"  void  kernel(const float* in_ptr0,
                       const float* in_ptr1,
                       const float* in_ptr2,
                       float* out_ptr0,
                       float* out_ptr1)
{
    auto tmp0 = at::vec::Vectorized<float>::loadu(in_ptr0 + static_cast<int64_t>(0L));
    auto tmp1 = at::vec::Vectorized<float>::loadu(in_ptr1 + static_cast<int64_t>(0L));
    auto tmp3 = at::vec::Vectorized<float>::loadu(in_ptr2 + static_cast<int64_t>(0L));
    auto tmp2 = tmp0 + tmp1;
    auto tmp4 = tmp2 + tmp3;
    tmp2.store(out_ptr0 + static_cast<int64_t>(0L));
    tmp4.store(out_ptr1 + static_cast<int64_t>(0L));
}
''')


cpp_fused_silu_2 = async_compile.cpp_pybinding(['float*'], r'''
extern "C"  void  kernel(float* in_out_ptr0)
{
    auto tmp0 = in_out_ptr0[0L];
    in_out_ptr0[0L] = tmp0 * tmp0;
}
''')


cpp_fused_cat_3 = async_compile.cpp_pybinding(['const float*', 'const float*', '...'], r'''
extern "C"  void  kernel(const float* in_ptr0,
                       const float* in_ptr1,
                       float* out_ptr0,
                       float* out_ptr1)
{
    auto tmp0 = in_ptr0[0L];
    out_ptr0[0L] = tmp0;
    auto tmp1 = in_ptr1[0L];
    out_ptr1[0L] = tmp1;
}
''')
"""


def call(body: str, head: str = "arg0_1, arg1_1 = args") -> str:
    """A whole wrapper around the statements of `call`; `AR(b)`, `WAIT(b)` and `NEW` are short."""
    body = body.replace("NEW", "empty_strided_cpu((4, 8), (8, 1), torch.float32)")
    body = body.replace("WAIT(", "torch.ops._c10d_functional.wait_tensor.default(")
    for number in range(10):
        body = body.replace(
            f"AR(buf{number})",
            f"torch.ops._c10d_functional.all_reduce_.default(buf{number}, 'sum', '0')",
        )
    body = textwrap.indent(f"{head}\nargs.clear()\n{textwrap.dedent(body).strip()}", " " * 8)
    return (
        f"{KERNELS}\nclass Runner:\n    def __init__(self, partitions):\n"
        f"        self.partitions = partitions\n\n    def call(self, args):\n{body}\n\n"
        "runner = Runner(partitions=[])\ncall = runner.call\n"
    )


def races(body: str, **kwargs: str) -> list[str]:
    return [str(finding) for finding in find_races(read_events(call(body, **kwargs)))]


def disorder(body: str) -> list[str]:
    return [finding.event.text for finding in find_disorder(read_events(call(body)))]


FLIGHT = """
    buf0 = NEW
    extern_kernels.mm(arg0_1, arg1_1, out=buf0)
    AR(buf0)
    {}
    WAIT(buf0)
    return (buf0, )
"""

GATHER = """
    buf0 = NEW
    extern_kernels.mm(arg0_1, arg1_1, out=buf0)
    buf1 = torch.ops._c10d_functional.{}, '0')
    {}
    WAIT(buf1)
    return (buf1, )
"""
