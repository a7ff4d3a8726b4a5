"""`lowering="tensorrt"` from end to end: two ranks, their collectives by gloo, and between these
the networks that TensorRT was given, computed layer by layer.
"""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

sys.path.append(str(Path(__file__).parents[1]))

from helpers.eager_ladders import bert_ladder, llama_ladder, tiny_bert, tiny_llama
from helpers.ranks import Ranks

IDS = torch.arange(14).reshape(2, 7) % 60
NETS = {"llama": (tiny_llama, llama_ladder, 3), "bert": (tiny_bert, bert_ladder, 4)}


@pytest.fixture(scope="module")
def ranks():
    with Ranks(2) as ranks:
        yield ranks


def run(name: str) -> tuple[float, int, int, str]:
    """Largest difference to the unsharded eager ladder; islands and plans; the report."""
    import cuda_stand_in

    cuda_stand_in.install()
    from stand_in_engine import Converted

    import ladderize
    from ladderize.backends.tensorrt import lower

    make, ladder, layers = NETS[name]
    model = make(layers)
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    converted, found = Converted(), []

    def build(*args):
        built = build_islands(*args)
        found.append(dataclasses.replace(built, make_engine=converted.make_engine))
        return found[-1]

    build_islands = lower.build_islands
    options = {"mesh": mesh, "lowering": "tensorrt", "lowering_options": {"target": "8.9"}}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(lower, "build_islands", build)
        with converted.watched(patch):
            compiled = torch.compile(model, backend="ladderize", options=options)
            logits = compiled(input_ids=IDS).logits
        off = float((logits - ladder(model, IDS, range(2 * layers))).abs().max())
    report = found[0].report
    return off, report.num_islands, len(report.plans), str(ladderize.last_report())


@pytest.mark.parametrize("name", NETS)
def test_two_ranks_compute_the_ladder(ranks, name):
    for off, num_islands, num_plans, report in ranks.run(run, name):
        assert off < 5e-5
        assert num_islands > num_plans > 3
        assert f"{num_islands} islands of " in report
