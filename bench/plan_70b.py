"""Plan Llama 70B over 8 ranks from its configuration alone, and print what each rank would hold.

    python bench/plan_70b.py            # --layers 126 --hidden 16384 … for another shape

No weights are allocated. Also times the analysis at 32 and at `--deep` layers.
"""

import argparse
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ladderize
from ladderize.frontends.sharded.localize import localize
from ladderize.frontends.sharded.tracing import build, trace

GIB = 2**30
INPUTS = {"input_ids": torch.zeros(1, 128, dtype=torch.int64)}


def factory_of(options: argparse.Namespace, layers: int) -> torch.nn.Module:
    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=layers,
        num_attention_heads=options.heads,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--deep", type=int, default=126)
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--intermediate", type=int, default=28672)
    parser.add_argument("--heads", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)

    started = time.perf_counter()
    plan = ladderize.plan_parallel(
        lambda: factory_of(options, options.layers), options.ranks, (), INPUTS
    )
    seconds = time.perf_counter() - started
    print(f"{plan.lines[0]}; {plan.bytes_in_all / GIB:.1f} GiB in all")
    print(f"{plan.bytes_per_rank / GIB:.2f} GiB on each of {plan.num_ranks} ranks")
    print(f"built, traced, converted and planned in {seconds:.1f} s, torch {torch.__version__}\n")

    print("| layers | build and trace | ladder and plan | its plan_sharding | per layer |")
    print("|---|---|---|---|---|")
    for layers in (32, options.layers, options.deep):
        print(row(options, layers), flush=True)


def row(options: argparse.Namespace, layers: int) -> str:
    started = time.perf_counter()
    model, _ = build(lambda: factory_of(options, layers))
    program = trace(model, (), INPUTS)
    traced = time.perf_counter() - started
    report = localize(program, options.ranks).report
    assert report is not None
    whole = sum(step.seconds for step in report.steps)
    own = sum(step.seconds for step in report.steps if step.name == "plan_sharding")
    each = f"{1000 * whole / layers:.1f} ms"
    return f"| {layers} | {traced:.1f} s | {whole:.2f} s | {own:.2f} s | {each} |"


if __name__ == "__main__":
    main()
