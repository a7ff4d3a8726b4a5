"""What fused kernels compute their outputs from, read from kernels as Inductor writes them."""

import ast

import pytest

from ladderize.backends.emitted.kernels import KernelFlow, read_kernels

CPP = """
kernel_0 = async_compile.cpp_pybinding(['float*', '...'], r'''
#include <torch/csrc/inductor/cpp_prefix.h>
extern "C"  void  kernel({signature})
{{
    {body}
}}
''')
"""
TRITON = """
kernel_0 = async_compile.triton('kernel_0', '''
import triton
@triton.jit
def kernel_0({signature}):
{body}
''', device_str='cuda')
"""

# From torch 2.15: a mean over rows into in_out_ptr0, then what is made from it.
TWO_ADDS = """
    std::atomic<int> inductor_cpu_integer_div_error{0};
    inductor_cpu_integer_div_error_flag = &inductor_cpu_integer_div_error;
    auto out_ptr0 = in_out_ptr0;
    {
        #pragma GCC ivdep
        for(int64_t x0=static_cast<int64_t>(0L); x0<static_cast<int64_t>(4L); x0+=static_cast<int64_t>(1L))
        {
            {
                float tmp_acc0 = 0;
                at::vec::Vectorized<float> tmp_acc0_vec = at::vec::Vectorized<float>(0);
                for(int64_t x1=static_cast<int64_t>(0L); x1<static_cast<int64_t>(32L); x1+=static_cast<int64_t>(8L))
                {
                    if(C10_LIKELY(x1 >= static_cast<int64_t>(0) && x1 < static_cast<int64_t>(32L)))
                    {
                        auto tmp0 = at::vec::Vectorized<float>::loadu(in_ptr0 + static_cast<int64_t>(x1 + 32L*x0), static_cast<int64_t>(8));
                        auto tmp1 = at::vec::Vectorized<float>::loadu(in_ptr1 + static_cast<int64_t>(x1 + 32L*x0), static_cast<int64_t>(8));
                        auto tmp2 = tmp0 + tmp1;
                        tmp_acc0_vec = tmp_acc0_vec + tmp2;
                    }
                }
                tmp_acc0 = tmp_acc0 + at::vec::vec_reduce_all<float, 1>([](at::vec::Vectorized<float>& x, at::vec::Vectorized<float>& y) { return x + y; }, tmp_acc0_vec);
                in_out_ptr0[static_cast<int64_t>(x0)] = static_cast<float>(tmp_acc0);
            }
        }
    }
    {
        auto tmp0 = at::vec::Vectorized<float>::loadu(out_ptr0 + static_cast<int64_t>(x0), static_cast<int64_t>(4L));
        auto tmp1 = in_ptr2[static_cast<int64_t>(x0)];
        auto tmp2 = tmp0.rsqrt();
        auto tmp3 = tmp2 * tmp1;
        tmp2.store(in_out_ptr0 + static_cast<int64_t>(x0), static_cast<int64_t>(4L));
        tmp3.store(out_ptr1 + static_cast<int64_t>(x0));
    }
"""  # noqa: E501

IN = "const float* in_ptr0, const float* in_ptr1"


def flow(source: str) -> dict[str, set[str]] | None:
    (kernel,) = read_kernels(ast.parse(source)).values()
    return None if kernel is None else {name: set(found) for name, found in kernel.sources.items()}


def cpp(signature: str, body: str) -> dict[str, set[str]] | None:
    return flow(CPP.format(signature=signature, body=body))


def triton(signature: str, *lines: str) -> dict[str, set[str]] | None:
    return flow(TRITON.format(signature=signature, body="\n".join(f"    {x}" for x in lines)))


def test_reductions_aliases_and_variables_used_twice() -> None:
    signature = f"float* in_out_ptr0, {IN}, const float* in_ptr2, float* out_ptr1"
    assert cpp(signature, TWO_ADDS) == {
        "in_out_ptr0": {"in_ptr0", "in_ptr1"},  # stored before it is read
        "out_ptr1": {"in_ptr0", "in_ptr1", "in_ptr2"},
    }


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("auto tmp0 = in_ptr0[0L]; out_ptr0[0L] = tmp0;", {"in_ptr0"}),
        ("auto tmp0 = in_ptr0[0L]; tmp0 = tmp0 + in_ptr1[0L]; out_ptr0[0L] = tmp0;", "both"),
        ("float tmp0 = in_ptr0[0L]; tmp0 += in_ptr1[0L]; out_ptr0[0L] = tmp0;", "both"),
        ("auto tmp0 = in_ptr0[0L]; auto tmp1 = in_ptr1[tmp0]; out_ptr0[0L] = tmp1;", "both"),
        ("auto tmp0 = in_ptr0[0L]; out_ptr0[tmp0] = in_ptr1[0L];", "both"),
        (
            "auto tmp0 = [&] { auto tmp1 = in_ptr1[0L]; return tmp1; } ;"
            "auto tmp2 = x0 < 3L ? tmp0() : static_cast<float>(0.0); out_ptr0[0L] = tmp2;",
            {"in_ptr1"},
        ),
        (  # what the outer lambda returns is not the inner one's
            "auto tmp0 = [&] { auto tmp1 = [&] { return in_ptr0[0L]; } ; return in_ptr1[0L]; } ;"
            "out_ptr0[0L] = tmp0();",
            {"in_ptr1"},
        ),
        (
            "auto tmp0 = each([&](int64_t i) { return in_ptr1[i]; } , in_ptr0[0L]);"
            "out_ptr0[0L] = tmp0;",
            "both",
        ),
        ("out_ptr0[0L] = each([&](int64_t i) { return in_ptr1[i]; } , in_ptr0[0L]);", "both"),
        (
            "auto tmp0 = [&] { auto i = 1L; { return in_ptr1[i]; } } ; out_ptr0[0L] = tmp0();",
            {"in_ptr1"},
        ),
        (
            "float tmp0 = in_ptr0[0L]; if(ks0) { tmp0 = in_ptr1[0L]; } out_ptr0[0L] = tmp0;",
            "both",
        ),
        (
            "auto tmp0 = in_ptr0[0L]; atomic_add(&out_ptr0[0L], tmp0);",
            {"in_ptr0", "out_ptr0"},
        ),
        ("auto tmp0 = in_ptr0[0L]; out_ptr0[0L] += tmp0;", {"in_ptr0", "out_ptr0"}),
        (
            "alignas(16) float tmp1[16*16]; transpose_mxn<float>(in_ptr1 + 0L, 8, tmp1, 8);"
            "auto tmp2 = at::vec::Vectorized<float>::loadu(tmp1 + 0L); tmp2.store(out_ptr0 + 0L);",
            {"in_ptr1"},
        ),
        (
            "at::vec::VectorizedN<double,2> tmp0 = load(in_ptr0);"
            "double tmp1 = in_ptr1[0L]; out_ptr0[0L] = static_cast<double>(tmp1);",
            {"in_ptr1"},
        ),
        ("auto tmp0 = in_ptr0[0L]; if(tmp0 >= 3L) { } out_ptr0[0L] = in_ptr1[0L];", {"in_ptr1"}),
        ("out_ptr0[0L] = in_ptr0[0L]; // out_ptr0[0L] = in_ptr1[0L];", {"in_ptr0"}),
    ],
)
def test_cpp_statements(body: str, expected: set[str] | str) -> None:
    expected = {"in_ptr0", "in_ptr1"} if expected == "both" else set(expected)
    assert cpp(f"{IN}, float* out_ptr0, const int64_t ks0", body) == {"out_ptr0": expected}


def test_triton_statements() -> None:
    assert triton(
        "in_out_ptr0, in_ptr0, in_ptr1, out_ptr0, xnumel, r0_numel, XBLOCK : tl.constexpr",
        "xoffset = tl.program_id(0) * XBLOCK",
        "xindex = xoffset + tl.arange(0, XBLOCK)[:, None]",
        "tmp0 = tl.load(in_out_ptr0 + (x0), xmask)  # in_ptr1",
        "tmp1 = tl.load(in_ptr0 + (x0), xmask, eviction_policy='evict_last')",
        "tmp2 = tmp0 + tmp1",
        "tl.store(in_out_ptr0 + (x0), tmp2, xmask)",
        "tmp3 = tl.load(in_ptr1 + (x0), r0_mask & xmask, other=0.0)",
        "tmp4, tmp5 = triton_helpers.welford(tmp3, tmp3, 1)",
        "tl.debug_barrier()",
        "tl.store(out_ptr0 + (x0), tmp5, xmask)",
    ) == {"in_out_ptr0": {"in_out_ptr0", "in_ptr0"}, "out_ptr0": {"in_ptr1"}}


def test_parameters_keep_their_places() -> None:
    source = CPP.format(signature=f"{IN}, float* out_ptr3", body="out_ptr3[0L] = in_ptr1[0L];")
    assert read_kernels(ast.parse(source)) == {
        "kernel_0": KernelFlow(("in_ptr0", "in_ptr1", "out_ptr3"), {"out_ptr3": {"in_ptr1"}})
    }


def test_kernels_of_other_spelling_are_not_read() -> None:
    assert cpp("const float* X, const float* W, float* Y", "Y[0L] = X[0L];") is None
    assert triton("x_ptr, out_ptr, n", "tl.store(out_ptr, tl.load(x_ptr))") is None
    assert flow("kernel_0 = async_compile.multi_kernel('kernel_0', [a, b])") is None
