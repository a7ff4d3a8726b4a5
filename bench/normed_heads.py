"""Sharded q and k of OLMo 2 against whole ones: computed times, for numbers of ranks and tokens.

    python bench/normed_heads.py [--layers 6] [--link nvlink]

OLMo 2 normalizes q and k over all heads. Sharded, the norms of a layer need a small all-reduce;
whole, every rank computes all heads. The graph of a rank of OLMo 2 7B (without weights) is ordered
as for a compilation. Products take the longer of their FLOPs and the bytes of their weights on one
H100, and all-reduces the planner's latency and bandwidth; other ops take no time.
"""

import argparse
import itertools
import warnings
from unittest import mock

import torch
import torch.distributed as dist
import transformers
from rich.console import Console
from torch.export import ExportedProgram, export
from torch.fx import Graph, Node
from torch.testing._internal.distributed.fake_pg import FakeStore

from ladderize.config.hardware import Hardware, hardware_of
from ladderize.config.options import LadderConfig
from ladderize.frontends.rewrite import graph_after
from ladderize.graph.flops import flops_of
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.lane_times import Durations, exposed
from ladderize.passes.rewriting_state import RankGroup
from ladderize.passes.runner import apply_pass
from ladderize.report.present.tables import plain_table

RANKS, TOKENS = (2, 4, 8), (1, 256, 2048)
WHOLE = mock.patch("ladderize.sharding.rules.norms._splits_last_dim", return_value=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--link", choices=["nvlink", "pcie"], default="nvlink")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=max(RANKS))
    programs = {tokens: olmo(options.layers, tokens) for tokens in TOKENS}
    ratios = {
        (ranks, tokens): ratio(programs[tokens], hardware_of(f"h100x{ranks}-{options.link}"))
        for ranks, tokens in itertools.product(RANKS, TOKENS)
    }
    table = plain_table("ranks", *(f"tokens: {tokens}" for tokens in TOKENS))
    for ranks in RANKS:
        table.add_row(str(ranks), *(f"{ratios[ranks, tokens]:.2f}" for tokens in TOKENS))
    Console().print("time with sharded q and k over time with whole ones", table)
    dist.destroy_process_group()


def olmo(layers: int, tokens: int) -> ExportedProgram:
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    config = transformers.Olmo2Config(num_hidden_layers=layers, vocab_size=1024, **shape)
    with torch.device("meta"), torch.no_grad():
        model = transformers.Olmo2ForCausalLM(config).to(torch.bfloat16).eval()
        ids = torch.zeros(1, tokens, dtype=torch.int64)
        return export(model, (), {"input_ids": ids, "use_cache": False})


def ratio(program: ExportedProgram, hardware: Hardware) -> float:
    sharded = seconds(program, hardware)
    with WHOLE:
        return sharded / seconds(program, hardware)


def seconds(program: ExportedProgram, hardware: Hardware) -> float:
    """Seconds of one rank's graph."""
    group = RankGroup(hardware.ranks, "0")
    gm = graph_after(program, LadderConfig(), group, "ShardBranches")
    known = Durations.of(gm.graph, hardware)
    durations = Durations(products(gm.graph, hardware, known), known.transfer)
    with mock.patch.object(Durations, "of", return_value=durations):
        apply_pass(gm, DeferWaits(hardware))
    return sum(durations.work.values()) + exposed(list(gm.graph.nodes), durations)


def products(graph: Graph, hardware: Hardware, known: Durations) -> dict[Node, float]:
    """Seconds of each op that computes: its FLOPs or the bytes of its weight."""
    return {
        node: max(
            flops_of(node) / hardware.flops,
            sum(
                source.meta["val"].nbytes
                for source in node.all_input_nodes
                if source.op == "placeholder" and source.meta["val"].dim() == 2
            )
            / hardware.memory,
        )
        for node in graph.nodes
        if node in known.work
    }


if __name__ == "__main__":
    main()
