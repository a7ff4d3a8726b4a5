"""The inputs of fused kernels' outputs, read from kernels as Inductor writes them."""

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


SCAN = """
add_0 = async_compile.triton('add_0', '''
@triton.jit
def helper_fn_add0(arg0_0, arg1_0):
    tmp0 = arg0_0 + arg1_0
    return tmp0

@triton.jit
def add_0(in_ptr0, in_ptr1, out_ptr0, out_ptr1, xnumel, XBLOCK : tl.constexpr):
    tmp0 = tl.load(in_ptr0 + (x0), xmask)
    tmp1, = tl.associative_scan((tmp0,), 1, helper_fn_add0)
    tl.store(out_ptr0 + (x0), tmp1, xmask)
    tmp2 = tl.load(in_ptr1 + (x0), xmask)
    tl.atomic_add(out_ptr1 + (x0), tmp2, xmask, sem='relaxed')
''', device_str='cuda')
"""


def test_a_kernel_behind_a_function_that_it_calls() -> None:
    """An atomic addition keeps the old content; its keyword argument is not an assignment."""
    assert flow(SCAN) == {"out_ptr0": {"in_ptr0"}, "out_ptr1": {"in_ptr1", "out_ptr1"}}


def test_one_launch_of_several_small_kernels() -> None:
    assert triton(
        "in_ptr0, in_ptr1, out_ptr0, out_ptr1, xnumel_0, XBLOCK_0 : tl.constexpr",
        "pid = tl.program_id(0)",
        "if pid < num_xblocks_0:",
        "    tmp0 = tl.load(in_ptr0 + (x0), xmask)",
        "    tl.store(out_ptr0 + (x0), tmp0, xmask)",
        "elif pid < num_xblocks_1:",
        "    tmp0 = tl.load(in_ptr1 + (x0), xmask)",
        "    tl.store(out_ptr1 + (x0), tmp0, xmask)",
    ) == {"out_ptr0": {"in_ptr0"}, "out_ptr1": {"in_ptr1"}}


def test_a_template_with_an_epilogue() -> None:
    assert triton(
        "arg_A, arg_B, in_ptr2, out_ptr1",
        "BLOCK_M : tl.constexpr = 32",
        "A = arg_A",
        "B = arg_B",
        "a = tl.load(A + (xindex))",
        "b = tl.load(B + (xindex))",
        "acc += tl.dot(a, b, allow_tf32=ALLOW_TF32, out_dtype=ACC_TYPE)",
        "tmp0 = tl.load(in_ptr2 + (xindex), mask)",
        "tmp1 = acc * tmp0",
        "tl.store(out_ptr1 + (tl.broadcast_to(xindex, [BLOCK_M])), tmp1, mask)",
    ) == {"out_ptr1": {"arg_A", "arg_B", "in_ptr2"}}


def test_scratch_memory_of_a_reduction_by_several_programs() -> None:
    assert triton(
        "in_ptr0, out_ptr0, ws_ptr, sem_ptr, xnumel, RSPLIT : tl.constexpr",
        "tmp0 = tl.load(in_ptr0 + (x0), xmask)",
        "tl.store(ws_ptr + (x0), tmp0, xmask)",
        "triton_helpers.x_grid_barrier(sem_ptr + tl.program_id(1))",
        "tmp1 = tl.load(ws_ptr + (x0), xmask)",
        "tl.store(out_ptr0 + (x0), tmp1, xmask)",
    ) == {"out_ptr0": {"in_ptr0"}, "ws_ptr": {"in_ptr0"}, "sem_ptr": {"sem_ptr"}}


@pytest.mark.parametrize(
    "maker", ["multi_kernel('m', [a, b]", "size_hint_multi_kernel('m', {1: a, 2: b}"]
)
def test_a_multi_kernel_is_any_of_its_kernels(maker: str) -> None:
    def named(name: str, operand: str) -> str:
        body = f"    tmp0 = tl.load({operand} + (x0))\n    tl.store(out_ptr0 + (x0), tmp0)"
        source = TRITON.format(signature="in_ptr0, in_ptr1, out_ptr0, xnumel", body=body)
        return source.replace("kernel_0", name)

    source = "\n".join(
        [named("a", "in_ptr0"), named("b", "in_ptr1"), f"m = async_compile.{maker}, arg_index=x)"]
    )
    found = read_kernels(ast.parse(source))["m"]
    assert found is not None and found.sources == {"out_ptr0": {"in_ptr0", "in_ptr1"}}
    assert (
        read_kernels(ast.parse(source.replace("in_ptr1, out_ptr0, x", "in_ptr2, out_ptr0, x", 1)))[
            "m"
        ]
        is None
    )


def test_a_kernel_whose_store_is_not_recognized_is_not_read() -> None:
    """A tensor descriptor: nothing in the statement is a pointer."""
    assert (
        triton(
            "arg_A, out_ptr0",
            "desc = tl.make_tensor_descriptor(base=out_ptr0, shape=[8], strides=[1])",
            "desc.store([8], tl.load(arg_A))",
        )
        is None
    )


def test_parameters_keep_their_places() -> None:
    source = CPP.format(signature=f"{IN}, float* out_ptr3", body="out_ptr3[0L] = in_ptr1[0L];")
    assert read_kernels(ast.parse(source)) == {
        "kernel_0": KernelFlow(("in_ptr0", "in_ptr1", "out_ptr3"), {"out_ptr3": {"in_ptr1"}})
    }


def test_kernels_of_other_spelling_are_not_read() -> None:
    assert cpp("const float* X, const float* W, float* Y", "Y[0L] = X[0L];") is None
    assert triton("x_ptr, out_ptr, n", "tl.store(out_ptr, tl.load(x_ptr))") is None
    assert flow("kernel_0 = async_compile.multi_kernel('kernel_0', [a, b])") is None
