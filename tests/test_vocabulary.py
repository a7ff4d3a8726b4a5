"""Vocabulary-parallel embeddings, heads and losses on real gloo ranks, against one device."""

from functools import cache

import pytest
import torch
import torch.distributed as dist
import transformers
from sharded import Sharder, gpt2
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import ladderize
from ladderize import LadderConfig
from ladderize.emitted import Kind, find_disorder, find_races, read_events
from ladderize.placement import Shard
from ladderize.testing.emitted_code import record_emitted_code

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "use_cache": False,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48}
FAMILIES = {  # class, configuration, the vocabulary's parameters
    "llama": ("LlamaForCausalLM", {}, {"model.embed_tokens.weight", "lm_head.weight"}),
    "llama, tied": (
        "LlamaForCausalLM",
        {"tie_word_embeddings": True},
        {"model.embed_tokens.weight"},
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2, {"transformer.wte.weight"}),
    "gemma2": ("Gemma2ForCausalLM", {"head_dim": 8}, {"model.embed_tokens.weight"}),
    "bert": (
        "BertForMaskedLM",
        {},
        {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias"},
    ),
}


@cache
def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def language_model(name, **options):
    family, sizes, _ = FAMILIES[name]
    torch.manual_seed(0)
    cls = getattr(transformers, family)
    model = cls(cls.config_class(**SIZES | sizes | options)).eval()
    model.loss_type = model.loss_type or "ForCausalLM"  # GPT-2 has none, and warns of it
    for parameter in model.parameters():  # transformers' weights are small: no loss would tell
        nn.init.normal_(parameter, std=0.3)
    return model


def compiled(model, dynamic=False, **options):
    return torch.compile(
        model, backend="ladderize", fullgraph=True, dynamic=dynamic, options=options
    )


def inputs(batch=2, length=6, labels=True):
    ids = torch.randint(64, (batch, length), generator=torch.Generator().manual_seed(batch))
    if not labels:
        return {"input_ids": ids}
    wanted = ids.roll(1, 0)
    wanted[0, :3] = -100  # ignored
    return {"input_ids": ids, "labels": wanted}


def sharded_and_whole(name, lowering="aot_eager", dynamic=False, labels=True, **options):
    """Largest errors of loss, logits and every gradient; placements; the programs of Inductor."""
    model = language_model(name, **options)
    extra = {"verify": "code"} if lowering == "inductor" else {}
    run = compiled(model, dynamic, mesh=mesh(), lowering=lowering, **extra)
    whole = compiled(model, dynamic, lowering="eager")
    errors = {}
    for shape in [(2, 6), (3, 9)] if dynamic else [(2, 6)]:
        call = inputs(*shape, labels=labels)
        with record_emitted_code() as sources:
            found = run(**call)
            if shape == (2, 6):
                placements = sharding().placements
            expected = whole(**call)
            for key in ("loss", "logits") if labels else ("logits",):
                errors[key] = max(errors.get(key, 0), distance(found[key], expected[key]))
            errors["gradients"] = gradient_errors(
                model, total(found), total(expected), dict(placements)
            )
    return errors, placements, list(sources)


def sharding():
    """What the latest report says of it."""
    return ladderize.last_report().graphs[-1].sharding


def total(output):
    """A scalar through all outputs."""
    weight = torch.linspace(-1, 1, output.logits.shape[-1])
    loss = output.get("loss")
    return (output.logits * weight).square().mean() + (0 if loss is None else loss)


def distance(a, b):
    return (a - b).abs().max().item()


def gradient_errors(model, found, expected, placements):
    """The largest error of any gradient; of a divided parameter each rank has its part's."""
    named = model.named_parameters(remove_duplicate=False)  # tied ones under all of their names
    divided = {id(parameter) for name, parameter in named if name in placements}
    parameters = list(model.parameters())
    ours = torch.autograd.grad(found, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    worst = 0.0
    for parameter, mine, full in zip(parameters, ours, theirs, strict=True):
        if id(parameter) in divided:
            worst = max(worst, distance(mine, torch.where(mine != 0, full, 0)))
            dist.all_reduce(mine)
        worst = max(worst, distance(mine, full))
    return worst


@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_equal_one(two_ranks, name):
    for errors, placements, _ in two_ranks.run(sharded_and_whole, name):
        assert max(errors.values()) <= 1e-4, errors
        divided = dict(placements)
        for parameter in FAMILIES[name][2]:
            assert divided.pop(parameter).startswith("sharded on dim 0 as 64")
        assert all(".layer" in other or ".h." in other for other in divided)


@pytest.mark.parametrize("name", ["llama, tied", "gemma2"])
def test_four_ranks_equal_one(four_ranks, name):
    for errors, _, _ in four_ranks.run(sharded_and_whole, name, "eager"):
        assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize(("name", "labels"), [("llama, tied", True), ("gpt2", False)])
def test_dynamic_shapes(two_ranks, name, labels):
    for errors, _, _ in two_ranks.run(sharded_and_whole, name, "aot_eager", True, labels):
        assert max(errors.values()) <= 1e-4, errors


def letters(source):
    """Launches and waits in the order of the emitted code: `r` all-reduce, `g` all-gather."""
    short = {Kind.LAUNCH: "l", Kind.WAIT: "w"}
    return "".join(short.get(event.kind, "") for event in read_events(source).events)


def test_inductor_hides_what_it_hid_before(two_ranks):
    """The embedding's reduction at once, the branches' each behind the next, then the head's."""
    for errors, _, sources in two_ranks.run(sharded_and_whole, "llama, tied", "inductor"):
        assert max(errors.values()) <= 1e-4, errors
        forward, backward = sources
        # of the loss, highest logits and sums; of the logits, a gather
        assert letters(forward) == "lw" + "l" + "lw" * 3 + "w" + "lw" * 3
        assert letters(backward).startswith("lw")  # into the head, then as without
        assert letters(backward).count("l") == 1 + 4
        for source in sources:
            assert not find_races(read_events(source))
            assert not find_disorder(read_events(source))
