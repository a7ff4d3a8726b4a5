"""transformers' `tp_plan` on two ranks: forward, training and `generate`, against eager ladders."""

import os
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers
from helpers.eager_ladders import _enlarge, tokens
from helpers.reads import HEAD
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh
from torch.torch_version import TorchVersion
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.distributed import DistributedConfig

import ladderize
from ladderize import LadderError, LadderWarning
from ladderize.backends.emitted import find_disorder, find_races, order_string, read_events
from ladderize.testing import eager_ladder
from ladderize.testing.emitted_code import record_emitted_code

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ONE, TWO = {"num_hidden_layers": 1}, {"num_hidden_layers": 2}
GQA = {"num_key_value_heads": 2}
FAMILIES = {  # name -> class, configuration, what reads the stream, number of blocks
    "llama": ("Llama", TWO | GQA, HEAD["llama"], 4),
    "llama, one layer": ("Llama", ONE | GQA, HEAD["llama"], 2),
    "qwen2": ("Qwen2", TWO | GQA, HEAD["llama"], 4),
    "qwen3": ("Qwen3", ONE | GQA | {"head_dim": 8}, HEAD["llama"], 2),
    "mixtral": ("Mixtral", ONE | GQA | {"num_local_experts": 4}, HEAD["llama"], 2),
    "gpt-neox": ("GPTNeoX", TWO, HEAD["gpt-neox"], 2),  # one parallel block a layer
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A directory with a checkpoint of each family."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, (family, options, *_) in FAMILIES.items():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**SIZES, **options)
        model = _enlarge(getattr(transformers, f"{family}ForCausalLM")(config))
        model.save_pretrained(root / name)
    return str(root)


def load(path, experts=None, **options):
    """The whole model, and this rank's part of it."""
    rank, num_ranks = str(dist.get_rank()), str(dist.get_world_size())
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=num_ranks)  # as torchrun does
    config = DistributedConfig(tp_plan="auto", **(experts or {}))
    return (
        AutoModelForCausalLM.from_pretrained(path, **options),
        AutoModelForCausalLM.from_pretrained(path, distributed_config=config, **options),
    )


def forward(root, name, grad, options, experts=None):
    """Errors against the eager ladder of the whole model, and what Inductor emitted."""
    _, _, reads, blocks = FAMILIES[name]
    whole, model = load(str(Path(root) / name), experts)
    run = torch.compile(
        model, backend="ladderize", fullgraph=True, options={**options, "expect_blocks": blocks}
    )
    call = {"input_ids": tokens(), "use_cache": False}
    counters.clear()
    with torch.set_grad_enabled(grad), record_emitted_code() as sources:
        found, standard = run(**call).logits, whole(**call).logits
        with eager_ladder(whole, reads):
            expected = whole(**call).logits
        outcome = {
            "error": (found - expected).abs().max().item(),
            "to standard": (found - standard).abs().max().item(),
            "graphs": counters["stats"]["unique_graphs"],
        }
        if grad:
            found.square().mean().backward()
            expected.square().mean().backward()
            outcome["gradients"] = gradient_errors(model, whole)
    programs = [read_events(source) for source in sources]
    outcome["problems"] = [str(f) for p in programs for f in (*find_races(p), *find_disorder(p))]
    outcome["orders"] = [order_string(program) for program in programs]
    return outcome


def gradient_errors(model, whole):
    errors = {}
    for (name, parameter), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        grad = parameter.grad
        grad = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
        errors[name] = (grad - other.grad).abs().max().item()
    return errors


@pytest.mark.deep  # every run: Llama through Inductor, Qwen3's gradients
@pytest.mark.parametrize("name", FAMILIES)
def test_inference_equals_the_unsharded_eager_ladder(two_ranks, checkpoints, name):
    for outcome in two_ranks.run(forward, checkpoints, name, False, {"lowering": "aot_eager"}):
        assert outcome["error"] <= 1e-4
        assert outcome["to standard"] > 0.1
        assert outcome["graphs"] == 1


STRIDED = pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 13), reason="full_tensor() of strided shards fails there"
)


@pytest.mark.parametrize(
    "name", ["qwen3", pytest.param("mixtral", marks=[STRIDED, pytest.mark.deep])]
)
def test_gradients_equal_those_of_the_unsharded_eager_ladder(two_ranks, checkpoints, name):
    for outcome in two_ranks.run(forward, checkpoints, name, True, {"lowering": "aot_eager"}):
        assert outcome["error"] <= 1e-4
        assert max(outcome["gradients"].values()) <= 1e-4


def test_whole_experts_on_each_rank(two_ranks, checkpoints):
    """transformers' own expert parallelism, forward and backward."""
    how = {"ep_size": 2, "ep_implementation": "all_reduce"}
    for outcome in two_ranks.run(
        forward, checkpoints, "mixtral", True, {"lowering": "aot_eager"}, how
    ):
        assert outcome["error"] <= 1e-4
        assert outcome["to standard"] > 0.1
        assert max(outcome["gradients"].values()) <= 1e-4


def sensitivities(root):
    """Of the whole model, and of this rank's part."""
    call = {"input_ids": tokens(), "use_cache": False}
    plans = (ladderize.sensitivity(m, [call], width=1) for m in load(str(Path(root) / "llama")))
    return [[(each.blocks, each.kl) for each in plan.sets] for plan in plans]


def test_sensitivity_is_that_of_the_unsharded_model(two_ranks, checkpoints):
    first, second = two_ranks.run(sensitivities, checkpoints)
    assert first == second
    whole, sharded = first
    assert [blocks for blocks, _ in sharded] == [blocks for blocks, _ in whole]
    assert [kl for _, kl in sharded] == pytest.approx([kl for _, kl in whole], rel=1e-4)


@pytest.mark.usefixtures("first_of_two")
def test_waits_are_deferred_in_the_generated_code(checkpoints):
    """AR_0 is the embedding's, the gather is that of the logits."""
    check_order(forward(checkpoints, "llama", False, {"verify": "code"}))


def check_order(outcome):
    assert not outcome["problems"]
    (order,) = outcome["orders"]
    launches_and_waits = re.findall(r"\b(?:W_)?A[RG]_\d+|\bW_\d+", order)
    assert " ".join(launches_and_waits) == (
        "AR_0 W_0 AR_1 AR_2 W_1 AR_3 W_2 AR_4 W_3 W_4 AG_0 W_AG_0"
    )


@pytest.mark.deep
def test_the_generated_code_computes_the_same(two_ranks, checkpoints):
    for outcome in two_ranks.run(forward, checkpoints, "llama", False, {"verify": "code"}):
        assert outcome["error"] <= 1e-4
        check_order(outcome)


@pytest.mark.deep
def test_waits_are_deferred_in_the_backward_too(two_ranks, checkpoints):
    for outcome in two_ranks.run(forward, checkpoints, "llama", True, {"verify": "code"}):
        assert max(outcome["gradients"].values()) <= 1e-4
        assert not outcome["problems"]
        _, backward = outcome["orders"]
        # The MLP's of layer 1, with those of its gate and up, wait for those of the attention.
        assert "W_1 W_2" in backward.split("AR_5")[1]
        assert "W_3 W_4 W_5" in backward.split("AR_7")[1]
        assert backward.index("AR_7") < backward.index("W_3")


def checkpointed(root):
    """Errors of loss and gradients with `gradient_checkpointing_enable`."""
    # torch 2.13 takes the fused attention for random and fails on it, on a CPU.
    whole, model = load(str(Path(root) / "llama, one layer"), attn_implementation="eager")
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    options = {"lowering": "aot_eager"}
    run = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
    call = {"input_ids": tokens(), "labels": tokens(), "use_cache": False}
    with eager_ladder(whole, HEAD["llama"]):
        expected = whole.train()(**call).loss
    found = run(**call).loss
    found.backward()
    expected.backward()
    return abs(found - expected).item(), gradient_errors(model, whole)


@pytest.mark.deep
def test_gradient_checkpointing(two_ranks, checkpoints):
    for error, gradients in two_ranks.run(checkpointed, checkpoints):
        assert error <= 1e-5
        assert max(gradients.values()) <= 1e-4


NEW_TOKENS = 3
PROMPTS = [[5, 9, 33, 17, 4], [7, 3]]
WHOLE_CACHES = [("llama", "static"), ("mixtral", None)]


def generated(root, name, cache, options):
    """Worst difference of any step's logits, tokens of ladder and standard model, graphs."""
    _, _, reads, _ = FAMILIES[name]
    whole, model = load(str(Path(root) / name))
    ids = tokens(length=5)
    how = {
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        "pad_token_id": 0,
        "use_cache": True,
    }
    standard = whole.generate(ids, **how).sequences
    ladderize.compile(model, **options)
    out = model.generate(ids, **how, **({"cache_implementation": cache} if cache else {}))
    errors = []
    with torch.no_grad(), eager_ladder(whole, reads):
        for step, logits in enumerate(out.logits):
            seen = out.sequences[:, : ids.shape[1] + step]
            expected = whole(input_ids=seen, use_cache=False).logits[:, -1]
            errors.append((logits - expected).abs().max().item())
    return max(errors), out.sequences.tolist(), standard.tolist()


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        ("llama, one layer", "static"),
        *(pytest.param(*case, marks=pytest.mark.deep) for case in WHOLE_CACHES),
    ],
)
def test_generate_prefill_and_decode(two_ranks, checkpoints, name, cache):
    results = two_ranks.run(generated, checkpoints, name, cache, {"lowering": "eager"})
    for error, sequences, standard in results:
        assert error <= 1e-4
        assert sequences != standard
    assert results[0] == results[1]


@pytest.mark.deep
def test_generate_with_a_static_cache_through_inductor(two_ranks, checkpoints):
    (error, sequences, standard), _ = two_ranks.run(
        generated, checkpoints, "llama", "static", {"verify": "code"}
    )
    assert error <= 1e-4
    assert sequences != standard


def served(root, name):
    """Tokens of the ladder, of an eager one, and of the standard model; the report; an error."""
    _, _, reads, blocks = FAMILIES[name]
    whole, model = load(str(Path(root) / name))
    standard = greedy(whole)
    with eager_ladder(whole, reads):
        expected = greedy(whole)
    ladderize.compile(model, lowering="eager", expect_blocks=blocks)
    found = serve(model)
    report = str(ladderize.last_report())
    with pytest.raises(LadderError) as caught:
        serve(ladderize.compile(model, lowering="eager", expect_blocks=blocks + 1))
    return found, expected, standard, report, str(caught.value)


def served_by_mesh(root, name):
    """Tokens of a model that ladderize shards, and of an eager ladder."""
    whole, _ = load(str(Path(root) / name))
    with eager_ladder(whole, FAMILIES[name][2]):
        expected = greedy(whole)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with pytest.warns(LadderWarning, match=r"k_proj.*no sharding rule for ladderize\.paged_update"):
        return serve(ladderize.compile(whole, lowering="eager", mesh=mesh)), expected


def serve(model):
    answers = model.generate_batch(
        PROMPTS,
        GenerationConfig(
            max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=16, page_size=4),
    )
    return [answer.generated_tokens for answer in answers.values()]


@torch.no_grad()
def greedy(model):
    answers = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        for _ in range(NEW_TOKENS):
            last = model(input_ids=ids, use_cache=False).logits[:, -1:]
            ids = torch.cat([ids, last.argmax(-1)], 1)
        answers.append(ids[0, len(prompt) :].tolist())
    return answers


def test_continuous_batching(two_ranks, checkpoints):
    """The first rank takes requests; the other one follows, and has the same answers."""
    results = two_ranks.run(served, checkpoints, "llama, one layer")
    for found, expected, standard, report, error in results:
        assert found == expected != standard
        assert "1 stale read hides 1 all_reduce" in report
        assert "3 blocks were expected, 2 were found" in error


@pytest.mark.deep
def test_continuous_batching_over_a_mesh_of_our_own(two_ranks, checkpoints):
    """Its cache is not divided: each rank keeps all keys and values."""
    for found, expected in two_ranks.run(served_by_mesh, checkpoints, "llama, one layer"):
        assert found == expected
