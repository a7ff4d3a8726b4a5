"""The variants that `bench/gpu_first.sh` times on the first GPU compile for CUDA."""

import nets
import pytest
import rank_shard
import stand_in_gpu
import torch
import torch.distributed as dist
import transformers
from cubins import compile_new
from helpers.emitted_orders import collectives
from rank_shard import Phase, Weights, make_step
from stand_in import LaneWithoutKernel, stand_in

from ladderize.backends.emitted import find_races, read_events
from ladderize.config.hardware.link import link_of

ORDERS = {
    "standard": "AR_0 W_0 AR_1 W_1 AR_2 W_2 AG_0 W_AG_0",
    "written": "AR_0 W_0 AR_1 AR_2 W_1 W_2 AR_3 AR_4 W_3 W_4 AG_0 W_AG_0",
    "ladder": "AR_0 W_0 AR_1 AR_2 W_1 AR_3 W_2 AR_4 W_3 W_4 AG_0 W_AG_0",
}


@pytest.fixture(autouse=True)
def tensors_on_the_gpu_are_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    made = rank_shard.step_inputs

    def step_inputs(phase: Phase, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        if device.type == "meta":  # to be traced with
            return made(phase, device)
        with stand_in_gpu.FAKES:
            return made(phase, device)

    monkeypatch.setattr(rank_shard, "step_inputs", step_inputs)
    monkeypatch.setattr(Weights, "of", Weights.of)  # put back afterwards
    stand_in_gpu.make_fakes(Weights, "of")
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("variant", ORDERS)
def test_a_step_of_decoding(variant: str) -> None:
    layers = 1 if variant == "standard" else 2
    sizes = nets.LLAMA | {"num_hidden_layers": layers, "use_cache": True}
    config = transformers.LlamaConfig(**sizes, dtype=torch.bfloat16)
    net = {"is_parallel": False, "staleness": int(variant != "standard")}
    how = {"is_ours": variant == "ladder", "lowering": "inductor", "shard_vocabulary": True}
    decode = Phase("decode", batch=2, new=1, cached=16, room=32)
    with stand_in(link_of("nvlink-8"), LaneWithoutKernel(), "cuda") as (mesh, _), torch.no_grad():
        step, _ = make_step(config, decode, Weights(mesh), **net, **how)
        code = stand_in_gpu.emitted(step)
    (source,) = code.sources
    compile_new(code.kernels)
    assert collectives(source) == ORDERS[variant]
    assert not find_races(read_events(source))
