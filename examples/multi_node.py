"""Tensor parallelism on several machines: within each, across them, over all ranks.

    torchrun --nnodes 2 --node-rank 0 --nproc-per-node 2 --master-addr HOST examples/multi_node.py
    torchrun --nnodes 2 --node-rank 1 --nproc-per-node 2 --master-addr HOST examples/multi_node.py

Run one line on each machine; HOST is the first machine. `bench/multi_node.sh` emulates two machines
on one. Every rank compares its logits with those of the same ladder in one process, with `mesh=`
and with parts read from a checkpoint. Then the last machine passes a different option, which all
ranks refuse.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM

import ladderize
from ladderize.testing import eager_ladder

READS = ["model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm"]
CONFIG = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    vocab_size=256,
    initializer_range=0.2,
    use_cache=False,
)


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)  # the same weights on all ranks
    return LlamaForCausalLM(CONFIG).eval()


def on_all_ranks(value: Any) -> list[Any]:
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def largest_error(call: Callable[[Tensor], Any], ids: Tensor, wanted: Tensor) -> float:
    """The largest error of the logits, which must be bitwise equal on all ranks."""
    logits = call(ids).logits.cpu()
    every = on_all_ranks(logits)
    assert all(torch.equal(logits, other) for other in every), "the ranks disagree"
    return (logits - wanted).abs().max().item()


def refusals(mesh: DeviceMesh, is_last: bool, ids: Tensor) -> list[str]:
    """The error of each rank if the last machine passes a different option."""
    try:
        ladderize.compile(make_model().to(ids.device), mesh=mesh, staleness=1 + is_last)(ids)
    except ladderize.LadderError as error:
        return on_all_ranks(str(error))
    return on_all_ranks("")


def run(axes: dict[str, DeviceMesh], folder: str, machine: int, ids: Tensor, **how: str) -> None:
    whole = make_model()
    with eager_ladder(whole, READS):
        wanted = whole(ids.cpu()).logits
    is_first = dist.get_rank() == 0
    for name, mesh in axes.items():
        model = ladderize.compile(make_model().to(ids.device), mesh=mesh, **how)
        error = largest_error(model, ids, wanted)
        shard = ladderize.parallelize(
            lambda: LlamaForCausalLM(CONFIG).eval(), mesh, (ids,), checkpoint=folder
        )
        read, local = largest_error(shard, ids, wanted), shard.local_program
        share = local.bytes_per_rank / local.bytes_in_all
        assert max(error, read) <= 1e-4
        if is_first:
            ranks = " ".join(map(str, dist.get_process_group_ranks(mesh.get_group())))
            print(f"{name}: ranks {ranks}, ", end="")
            print(f"errors {error:.1e} and {read:.1e}, {share:.0%} of the bytes on a rank")
    mesh = axes["across machines"]
    texts = refusals(mesh, machine == mesh.size() - 1, ids)
    assert all("do not agree" in text for text in texts), texts
    if is_first:
        print(f"another option on the last machine: refused on all {len(texts)} ranks")
        print(texts[0])


def main() -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    machines = world // int(os.environ["LOCAL_WORLD_SIZE"])
    parser.add_argument("--machines", type=int, default=machines)
    parser.add_argument("--lowering", default="inductor")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.set_num_threads(1)

    shape = (given.machines, world // given.machines)
    mesh = init_device_mesh(device, shape, mesh_dim_names=("machine", "local"))
    axes = {
        "within each machine": mesh["local"],
        "across machines": mesh["machine"],
        "over all ranks": init_device_mesh(device, (world,)),
    }
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        # A folder per rank: machines may share no files, and `save_pretrained` writes on one rank.
        save_file(make_model().state_dict(), Path(folder) / "model.safetensors")
        ids = torch.arange(1, 17, device=device)[None]
        run(axes, folder, rank // shape[1], ids, lowering=given.lowering)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
