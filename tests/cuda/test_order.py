"""The code that Inductor emits for CUDA: launches and waits are in order, without races."""

import ast
import re
from collections.abc import Callable
from typing import Any

import nets
import pytest
import torch
from cubins import compile_new
from helpers import handwritten
from helpers.emitted_orders import collectives, moved
from helpers.parallel_nets import make_net, shard
from stand_in_gpu import Emitted, emitted, on_gpu

from ladderize.backends.emitted import find_disorder, find_races, read_events
from ladderize.backends.emitted.kernels import read_kernels

EMBEDDING, LOGITS = "AR_0 W_0", "AG_0 W_AG_0"


def ladder(first: int, blocks: int) -> str:
    """`AR_1 AR_2 W_1 AR_3 W_2 W_3`: each wait except the last follows the next block's launch."""
    words = [f"AR_{first}"]
    for i in range(first + 1, first + blocks):
        words += [f"AR_{i}", f"W_{i - 1}"]
    return " ".join([*words, f"W_{first + blocks - 1}"])


def check(code: Emitted, *orders: str) -> None:
    """The order of each wrapper, without races or early waits; kernels are readable and compile."""
    compile_new(code.kernels)
    assert [collectives(source) for source in code.sources] == [*orders]
    for source in code.sources:
        assert None not in read_kernels(ast.parse(source)).values()
        program = read_events(source)
        assert not find_races(program)
        assert not find_disorder(program)
        assert "cuda" in source


def call(model: Callable[..., Any], gradients: bool = False, **inputs: Any) -> Emitted:
    inputs = inputs or {"input_ids": nets.ids()}
    with torch.set_grad_enabled(gradients):
        return emitted(lambda: model(**inputs))


def attention(code: Emitted) -> set[str]:
    """The fused kernels of attention: "flash", "efficient"."""
    return set(re.findall(r"aten\._scaled_dot_product_(\w+)_attention", code.sources[0]))


@pytest.mark.parametrize(
    ("dtype", "ranks"), [(torch.float32, 2), (torch.bfloat16, 8)], ids=["f32-2", "bf16-8"]
)
def test_a_llama_on_a_mesh(dtype: torch.dtype, ranks: int) -> None:
    mesh = nets.mesh_of(ranks)
    code = call(nets.laddered(nets.llama(dtype), mesh=mesh))
    check(code, f"{EMBEDDING} {ladder(1, 4)} {LOGITS}")
    assert attention(code) == {"efficient"}  # transformers gives a mask while torch 2.13 compiles


@pytest.mark.parametrize(
    ("dtype", "ranks", "kernel"),
    [(torch.bfloat16, 2, "flash"), (torch.float32, 8, "efficient")],
    ids=["bf16-2", "f32-8"],
)
def test_a_bert_on_a_mesh(dtype: torch.dtype, ranks: int, kernel: str) -> None:
    mesh = nets.mesh_of(ranks)
    code = call(nets.laddered(nets.bert(dtype), mesh=mesh))
    check(code, f"{EMBEDDING} {ladder(1, 4)}")
    assert attention(code) == {kernel}


def test_a_shard_from_a_checkpoint() -> None:
    shard = nets.llama_from_checkpoint(nets.mesh_of(2))
    assert {str(parameter.device) for parameter in shard.parameters()} == {"cuda:0"}
    check(call(nets.laddered(shard)), f"{EMBEDDING} {ladder(1, 2)} {LOGITS}")


@pytest.mark.filterwarnings("ignore:Not all is divided")
def test_a_step_of_decoding() -> None:
    model = nets.llama(num_hidden_layers=1, use_cache=True)
    code = call(nets.laddered(model, mesh=nets.mesh_of(2)), **nets.cached(model))
    check(code, f"{EMBEDDING} {ladder(1, 2)} {LOGITS}")


def test_templates_that_autotuning_chose() -> None:
    model = nets.llama(torch.bfloat16, num_hidden_layers=1)
    mode = "max-autotune-no-cudagraphs"
    code = call(nets.laddered(model, mesh=nets.mesh_of(2), mode=mode))
    check(code, f"{EMBEDDING} {ladder(1, 2)} {LOGITS}")
    assert sum("triton_tem_fused" in name for name in code.kernels) >= 5
    assert "extern_kernels.mm" not in code.sources[0]


@pytest.mark.filterwarnings("ignore:With combo_kernels=True")
@pytest.mark.parametrize(
    ("option", "shows"),
    [("triton.multi_kernel", "multi_kernel_0.run("), ("combo_kernels", "num_xblocks_1")],
)
def test_kernels_of_several_kernels(option: str, shows: str) -> None:
    """A multi-kernel is one of two, chosen by timing; a combo kernel is several in one launch."""
    model = nets.llama(num_hidden_layers=1)
    code = call(nets.laddered(model, mesh=nets.mesh_of(2), lowering_options={option: True}))
    check(code, f"{EMBEDDING} {ladder(1, 2)} {LOGITS}")
    assert shows in code.sources[0]


def test_dynamic_sizes() -> None:
    model = nets.laddered(nets.llama(num_hidden_layers=1), True, mesh=nets.mesh_of(2))
    check(call(model), f"{EMBEDDING} {ladder(1, 2)} {LOGITS}")


def test_cuda_graphs() -> None:
    model = nets.llama(num_hidden_layers=1)
    laddered = nets.laddered(model, mesh=nets.mesh_of(2), mode="reduce-overhead")
    check(call(laddered), f"{EMBEDDING} {ladder(1, 2)} {LOGITS}")


def test_training() -> None:
    """The backward hides the all-reduce of an entry behind the branch before it."""
    model = nets.llama(torch.bfloat16, num_hidden_layers=1).requires_grad_()
    code = call(nets.laddered(model, mesh=nets.mesh_of(2)), gradients=True)
    check(code, f"{EMBEDDING} {ladder(1, 2)} {LOGITS}", "AR_0 W_0 AR_1 AR_2 W_1 W_2")


@pytest.mark.parametrize("way", ["in_place", "functional"])
def test_a_model_that_is_sharded_already(way: str) -> None:
    mesh = nets.mesh_of(2)
    with on_gpu():
        net = shard(way, make_net(layers=2), mesh)
        ids = torch.zeros(2, 8, dtype=torch.int64)
    with torch.no_grad():
        check(emitted(lambda: nets.laddered(net)(ids)), ladder(0, 4))


# ---- a ladder written by hand


def by_hand(compile_it: Callable[..., Any]) -> Emitted:
    nets.mesh_of(2)
    width, inner = handwritten.HIDDEN, handwritten.INNER // 2
    with on_gpu():
        x = torch.empty(handwritten.BATCH, width)
        weights = [(torch.empty(inner, width), torch.empty(width, inner)) for _ in range(4)]
    run = compile_it(handwritten.sharded_ladder)
    with torch.no_grad():
        return emitted(lambda: run(x, weights, handwritten.group_name()))


def test_plain_inductor_waits_for_two_at_once() -> None:
    code = by_hand(lambda f: torch.compile(f, fullgraph=True))
    (source,) = code.sources
    assert collectives(source) == "AR_0 AR_1 W_0 W_1 AR_2 AR_3 W_2 W_3"
    assert find_disorder(read_events(source))


def test_ladderize_defers_the_waits_of_the_same_program() -> None:
    check(by_hand(nets.laddered), ladder(0, 4))


# ---- planted faults


@pytest.fixture(scope="module")
def lines() -> list[str]:
    (source,) = by_hand(nets.laddered).sources
    return source.splitlines()


def find(lines: list[str], call: str) -> list[int]:
    return [i for i, line in enumerate(lines) if f"{call}.default(" in line]


def test_a_removed_wait_is_found(lines: list[str]) -> None:
    for wait in find(lines, "wait_tensor"):
        program = read_events("\n".join([*lines[:wait], *lines[wait + 1 :]]))
        assert any("launch without a wait" in found.what for found in find_races(program))


def test_a_late_wait_is_found(lines: list[str]) -> None:
    waits, launches = find(lines, "wait_tensor"), find(lines, "all_reduce_")
    for wait, launch in zip(waits, launches[2:], strict=False):
        program = read_events(moved(lines, wait, launch + 1))
        assert find_races(program) and not find_disorder(program)


def test_an_early_wait_is_found(lines: list[str]) -> None:
    waits, launches = find(lines, "wait_tensor"), find(lines, "all_reduce_")
    for wait, launch in zip(waits[:-1], launches, strict=False):
        program = read_events(moved(lines, wait, launch + 1))
        assert find_disorder(program) and not find_races(program)


def test_a_flight_from_one_cuda_graph_to_another_is_found() -> None:
    model = nets.llama(num_hidden_layers=1)
    laddered = nets.laddered(model, mesh=nets.mesh_of(2), mode="reduce-overhead")
    lines = call(laddered).sources[0].splitlines()
    first, *_, last = find(lines, "wait_tensor")
    program = read_events(cut_in_two(lines, last))
    assert any("across CUDA graphs" in found.what for found in find_races(program))
    program = read_events(cut_in_two(lines, first + 1))  # nothing is in flight
    assert not find_races(program) and not find_disorder(program)


def cut_in_two(lines: list[str], at: int) -> str:
    """End its only partition before a line, and start another one there."""
    begin, call = (
        next(i for i, line in enumerate(lines) if text in line)
        for text in ("def partition_0(", "self.partitions[0](")
    )
    before, after = lines[begin:at], lines[at:]
    made = set(re.findall(r"\b(?:buf|arg)\d+\w*", "\n".join(before)))
    dropped = set(re.findall(r"del (\w+)", "\n".join(before)))
    handed = ", ".join(sorted(made - dropped))
    indent = re.match(r" *", lines[at])[0]
    guard = f"    with torch.cuda._DeviceGuard(0):\n{indent}{handed}, = args"
    second = [f"{indent}return ({handed},)", "def partition_1(args):", guard]
    run = lines[call].replace("partitions[0]", "partitions[1]").replace("partition0_args", "handed")
    lines = [*lines[:begin], *before, *second, *after[: call - at]]
    handing = re.sub(r"\S.* = ", "handed = ", after[call - at])
    return "\n".join([*lines, handing, run, *after[call - at + 1 :]])
