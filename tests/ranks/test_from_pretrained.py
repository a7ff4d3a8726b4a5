"""`ladderize.from_pretrained`: the tokens of one process, and no rank holds all weights."""

import pytest
import torch
import torch.distributed as dist
import transformers
from helpers.ranks import mesh
from safetensors.torch import load_file, save_file

import ladderize
from ladderize import LadderError
from ladderize.frontends.from_pretrained import _place_parameters
from ladderize.frontends.mesh.local_parts import PARTS

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "bos_token_id": 1,
    "eos_token_id": 63,
    "initializer_range": 0.3,
}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
PROMPT = torch.arange(2, 8)[None]
GREEDY = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": "static"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


def saved(folder, family, **changes):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SHAPE | changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / family)
    return str(folder / family)


def loaded(path, how):
    """Whether the tokens are one process's; bytes held, of all; whether the weights come back."""
    whole = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    ladderize.compile(whole, lowering="eager")
    expected = whole.generate(PROMPT, **GREEDY)
    torch._dynamo.reset()
    if how == "from_pretrained":
        model = ladderize.from_pretrained(path, mesh(), lowering="eager")
    else:
        kind, config = type(whole), whole.config
        made = {"checkpoint": path, "lowering": "eager"}
        model = ladderize.parallelize(lambda: kind(config), mesh(), **made)
    with pytest.raises(LadderError, match="released"):
        model.state_dict()
    found = model.generate(PROMPT, **GREEDY)
    held = sum(p.untyped_storage().nbytes() for p in model.parameters())
    held += sum(part.local.nbytes for p in model.parameters() for part in PARTS.of(p).values())
    ladderize.restore_full_parameters(model)
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    is_back = all(torch.equal(a, b) for a, b in pairs)
    total = sum(p.nbytes for p in whole.parameters())
    return torch.equal(found, expected), held / total, is_back


@pytest.mark.parametrize(
    ("family", "changes", "how"),
    [
        ("llama", {"tie_word_embeddings": True}, "from_pretrained"),
        ("mixtral", MIXTURE, "from_pretrained"),
        pytest.param("llama", {}, "parallelize", marks=pytest.mark.deep),
    ],
)
def test_each_rank_reads_its_parts(two_ranks, folder, family, changes, how):
    path = saved(folder, family, **changes)
    for are_equal, share, is_back in two_ranks.run(loaded, path, how):
        assert are_equal
        assert 0.5 < share < 0.52  # norms and routers are whole
        assert is_back


def refused(path):
    with pytest.raises(LadderError) as caught:
        ladderize.from_pretrained(path, mesh(), lowering="eager")
    return str(caught.value)


def refused_by_one(path):
    """What a rank reports when only the first one finds a fault."""
    with pytest.raises(LadderError) as caught:
        ladderize.from_pretrained(path if dist.get_rank() else path + "/none", mesh())
    return str(caught.value)


def test_all_misfits_are_listed_on_every_rank(two_ranks, folder):
    path = saved(folder, "llama")
    file = f"{path}/model.safetensors"
    weights = load_file(file)
    weights["model.layers.9.extra"] = weights.pop("model.layers.0.mlp.up_proj.weight")
    weights["lm_head.weight"] = weights["lm_head.weight"][:60].clone()
    save_file(weights, file, {"format": "pt"})
    for message in two_ranks.run(refused, path):
        assert "missing: model.layers.0.mlp.up_proj.weight" in message
        assert "surplus: model.layers.9.extra" in message
        assert "misshapen: lm_head.weight is [60, 32], the model has [64, 32]" in message


def test_the_fault_of_one_rank_is_everyones(two_ranks, folder):
    path = saved(folder, "llama")
    for message in two_ranks.run(refused_by_one, path):
        assert "no such file or folder" in message


def test_a_device_never_holds_the_model():
    """Parameters have a device and sizes, but no memory, before any of them is read."""
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 4))
    _place_parameters(model, torch.device("cpu"))
    assert [p.untyped_storage().nbytes() for p in model.parameters()] == [0] * 4
    assert {(p.device.type, p.is_contiguous()) for p in model.parameters()} == {("cpu", True)}
