"""Train a ladder network on 2 x 2 processes: DTensor within pairs, FSDP2 across them.

    torchrun --standalone --nproc-per-node 4 examples/train_fsdp_tp.py

The two pairs train on different batches. The last line of the output looks like

    to the unsharded eager ladder: 2.4e-06, to the standard model: 2.3e+00 (another function)
"""

import os

import torch
import torch.distributed as dist
from decoder import PLAN, Decoder, eager_ladder, loss_of, make_batch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module

import ladderize


def main() -> None:
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    shape = int(os.environ["WORLD_SIZE"]) // 2, 2
    mesh = init_device_mesh(device, shape, mesh_dim_names=("dp", "tp"))

    torch.manual_seed(0)  # every rank must start from the same weights
    net = parallelize_module(Decoder().to(device), mesh["tp"], PLAN)
    fully_shard(net, mesh=mesh["dp"])  # once: a call for each layer would break the graph
    ladder = torch.compile(net, backend="ladderize", fullgraph=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    is_first = dist.get_rank() == 0
    pairs, pair = mesh["dp"].size(), mesh["dp"].get_local_rank()
    for step in range(81):
        ids = make_batch(step * pairs + pair, size=16).to(device)
        loss = loss_of(ladder(ids), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if is_first and step == 0:
            print(f"blocks found: {len(ladderize.last_report().blocks)}")
        if is_first and step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    whole = Decoder().to(device)
    full = StateDictOptions(full_state_dict=True)
    whole.load_state_dict(get_model_state_dict(net, options=full))
    ids = make_batch(seed=1000, size=16).to(device)
    found, wanted, standard = ladder(ids), eager_ladder(whole, ids), whole(ids)
    if is_first:
        error, other = ((found - logits).abs().max().item() for logits in (wanted, standard))
        print(f"to the unsharded eager ladder: {error:.1e}, ", end="")
        print(f"to the standard model: {other:.1e} (another function)")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
