"""Every way to a compiled model gives the ladder: PEFT's wrappers, `forward`, copies."""

import copy
import inspect
import io

import peft
import pytest
import torch
from helpers.graphs import Residual
from helpers.language_models import language_model
from helpers.reads import HEAD
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, Unsupported
from torch._dynamo.utils import counters

import ladderize
from ladderize import LadderError
from ladderize.frontends.delegates import find_delegates
from ladderize.testing import eager_ladder

IDS = torch.arange(12).reshape(2, 6)
HOW = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "do_sample": False}
HOW |= {"max_new_tokens": 4, "use_cache": False, "pad_token_id": 0}


def with_adapters():
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return peft.get_peft_model(language_model("llama"), config).eval()


def answers(model):
    """The result of each way to call the model."""
    inner = model.get_base_model()
    with torch.no_grad():
        return {
            "call": model(input_ids=IDS).logits,
            "forward": model.forward(input_ids=IDS).logits,
            "base model": inner(input_ids=IDS).logits,
            "forward of the base model": inner.forward(input_ids=IDS).logits,
            "generate": model.generate(**HOW),
            "generate of the base model": inner.generate(**HOW),
        }


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_every_way_to_reach_a_wrapped_model_is_the_ladder():
    model = with_adapters()
    whole = copy.deepcopy(model)
    standard = answers(whole)
    with eager_ladder(whole.get_base_model(), HEAD["llama"]):
        expected = answers(whole)
    ladderize.compile(model, lowering="eager")
    found = answers(model)
    ladderize.restore(model)
    for way, value in answers(model).items():
        torch.testing.assert_close(found[way], expected[way], rtol=0, atol=1e-5)
        assert not torch.equal(expected[way], standard[way]), way
        assert torch.equal(value, standard[way]), way


def test_modules_that_wrap_a_single_one():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    inner = nn.Sequential(net)
    assert list(find_delegates(nn.Sequential(inner))) == [inner, net]
    assert list(find_delegates(nn.ModuleList([nn.ModuleList([net])]))) == []
    scaled = nn.Sequential(net)
    scaled.scale = nn.Parameter(torch.ones(2))
    assert list(find_delegates(scaled)) == []


def test_a_wrapper_of_torch_compile_inside_of_another_is_refused():
    with pytest.raises(LadderError, match=r"wrapper of torch\.compile"):
        ladderize.compile(nn.Sequential(torch.compile(language_model("llama"))))


def test_a_function_that_another_backend_compiles_calls_the_ladder():
    """Dynamo would trace through the model's standard forward."""
    model = language_model("llama")
    standard, kept = model(input_ids=IDS).logits, copy.deepcopy(model)
    ladderize.compile(model, lowering="eager")
    ladder, copied = model(input_ids=IDS).logits, copy.deepcopy(model)
    assert not torch.equal(ladder, standard)

    def run(net, backend="eager", **how):
        torch._dynamo.reset()
        return torch.compile(lambda ids: net(input_ids=ids).logits, backend=backend, **how)(IDS)

    assert torch.equal(run(model), ladder)
    whole = {"fullgraph": True, "options": {"lowering": "eager"}}
    assert torch.equal(run(model, "ladderize", **whole), ladder)
    with pytest.raises(Unsupported, match="this model is a ladder, which is compiled by itself"):
        run(model, fullgraph=True)
    for other in (kept, copied, ladderize.restore(model)):
        assert torch.equal(run(other, fullgraph=True), standard)


def test_models_do_not_share_the_number_of_graphs_that_a_model_may_have():
    """Eight, by torch's default."""
    counters.clear()
    for staleness in range(9):
        ladderize.compile(Residual(), lowering="eager", staleness=staleness)(torch.randn(3, 8))
    assert counters["stats"]["unique_graphs"] == 9 > torch._dynamo.config.recompile_limit


def test_more_graphs_than_that_are_an_error():
    model = ladderize.compile(Residual(), lowering="eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        model(torch.randn(3, 8))
        with pytest.raises(FailOnRecompileLimitHit, match="Hard failure due to fullgraph=True"):
            model(torch.randn(8))


def test_forward_stays_what_it_was_for_whoever_inspects_or_copies_it():
    model = language_model("llama")
    signature, standard = inspect.signature(model.forward), model(input_ids=IDS).logits
    ladderize.compile(model, lowering="eager")
    assert inspect.signature(model.forward) == signature
    copied = copy.deepcopy(model)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for other in (copied, torch.load(saved, weights_only=False)):
        assert torch.equal(other.forward(input_ids=IDS).logits, standard)
    assert not torch.equal(model.forward(input_ids=IDS).logits, standard)


def test_hooks_run_once_whichever_way_a_model_is_called():
    model, calls = language_model("llama"), []
    model.register_forward_hook(lambda *_: calls.append(1))
    ladderize.compile(model, lowering="eager", fullgraph=False)
    for run in (model, model.forward):
        run(input_ids=IDS)
        assert calls.pop() and not calls


def test_a_forward_that_somebody_put_on_the_model_is_left_alone():
    model = language_model("llama")
    model.forward = model.forward  # accelerate's hooks do
    mine = vars(model)["forward"]
    ladderize.compile(model, lowering="eager")
    assert vars(model)["forward"] is mine
    ladderize.restore(model)
    assert vars(model)["forward"] is mine
