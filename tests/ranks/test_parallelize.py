"""`ladderize.parallelize`: values, gradients, ownership, order, refusals.

Values and ownership are tested on real gloo ranks, the rest on one rank.
"""

import warnings
from functools import partial

import pytest
import torch
import torch.distributed as dist
from helpers.language_models import mixture
from helpers.ranks import mesh
from helpers.reads import BODY, HEAD
from helpers.sharded import MODELS
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim

import ladderize
from ladderize import LadderError, LadderWarning
from ladderize.backends.emitted import EventKind, read_events
from ladderize.frontends.sharded.module import ShardedModule
from ladderize.frontends.sharded.tracing import build, trace
from ladderize.testing import eager_ladder
from ladderize.testing.emitted_code import record_emitted_code

TOLERANCE = 1e-4


def inputs(batch=2, length=6):
    return {"input_ids": torch.arange(batch * length).reshape(batch, length) % 60}


def make(name, layers=1):
    """Two blocks, of one layer."""
    return MODELS[name](layers=layers)


def sharded(name, checkpoint=None, layers=1, **options) -> ShardedModule:
    """Traced with inputs that are nowhere: every device in the graph and its regions is set."""
    factory, like = partial(make, name, layers), inputs()["input_ids"].to("meta")
    how = {"kwargs": {"input_ids": like}, "checkpoint": checkpoint, **options}
    return ladderize.parallelize(factory, mesh(), **how)


def expect(name, model, batch=2, length=6):
    with eager_ladder(model, BODY[name]):
        return model(**inputs(batch, length))[0]


# ---- values


def written(model, folder, num_files=2):
    """The weights of `model` in files with an index, as save_pretrained would leave them."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    names = sorted(state)
    weight_map = {}
    for i in range(num_files):
        file = f"model-{i + 1:05d}-of-{num_files:05d}.safetensors"
        weight_map |= dict.fromkeys(names[i::num_files], file)
        save_file({name: state[name] for name in names[i::num_files]}, folder / file)
    import json

    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


SOURCES = ["a directory", "a state dict", "the model"]
# In every run: the parts of a state dict are compared, and the model trains.
DIRECTORY = SOURCES[:1]


def values(name, folder, dynamic, sources=SOURCES):
    """The largest error of modules whose weights are from these sources."""
    model = make(name)
    dims = {"input_ids": {0: Dim("batch", max=8), 1: Dim("length", max=32)}} if dynamic else None
    shard_from = {
        "a directory": lambda: sharded(name, folder, dynamic_shapes=dims),
        "a state dict": lambda: sharded(name, model.state_dict(), dynamic_shapes=dims),
        "the model": lambda: ladderize.parallelize(
            model, mesh(), (), inputs(), dynamic_shapes=dims
        ),
    }
    shards = [shard_from[source]() for source in sources]
    worst = 0.0
    with torch.no_grad():
        for shape in [(2, 6), (3, 9)] if dynamic else [(2, 6)]:
            expected = expect(name, model, *shape)
            for shard in shards:
                found = shard(**inputs(*shape))[0]
                worst = max(worst, (found - expected).abs().max().item())
        standard = (model(**inputs(*shape))[0] - expected).abs().max().item()
    return worst, standard


@pytest.mark.parametrize(
    ("name", "dynamic", "sources"),
    [
        ("llama", False, DIRECTORY),
        ("bert", False, DIRECTORY),
        pytest.param("llama", False, SOURCES, marks=pytest.mark.deep),
        pytest.param("gpt2", True, ["a state dict"], marks=pytest.mark.deep),
        pytest.param("llama", True, SOURCES, marks=pytest.mark.deep),
        pytest.param("gpt2", False, SOURCES, marks=pytest.mark.deep),
        pytest.param("bert", True, SOURCES, marks=pytest.mark.deep),
    ],
)
def test_two_ranks_equal_one(two_ranks, tmp_path, name, dynamic, sources):
    folder = written(make(name), tmp_path)
    for worst, standard in two_ranks.run(values, name, folder, dynamic, sources):
        assert worst <= TOLERANCE
        assert standard > 1e-3  # it is a ladder, not the standard model


@pytest.fixture(scope="module")
def shard(first_of_two):  # noqa: ARG001
    """A Llama of one layer, which nobody edits."""
    return sharded("llama", make("llama").state_dict(), shard_vocabulary=False)


@pytest.mark.usefixtures("first_of_two")
def test_a_shard_of_any_length_is_compiled_once():
    """The rotary tables are made without gradients, in a region that Dynamo cannot trace again."""
    dims = {"input_ids": {1: Dim("length", max=32)}}  # a trace with two symbols takes much longer
    shard = sharded("llama", make("llama").state_dict(), dynamic_shapes=dims)
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(
        shard,
        backend="ladderize",
        fullgraph=True,
        dynamic=True,
        options={"lowering": "aot_eager"},
    )
    with torch.no_grad():
        for shape in [(2, 6), (2, 9), (2, 12)]:
            found, expected = compiled(**inputs(*shape))[0], shard(**inputs(*shape))[0]
            assert (found - expected).abs().max() < TOLERANCE
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.deep
def test_four_ranks_equal_one(four_ranks, tmp_path):
    folder = written(make("llama"), tmp_path)
    for worst, _ in four_ranks.run(values, "llama", folder, True):
        assert worst <= TOLERANCE


# ---- what a rank owns


def experts_of_each(folder):
    """Which experts this rank has of a mixture, and the error of the ladder."""
    model, call = mixture("mixtral"), inputs()
    shard = ladderize.parallelize(
        partial(mixture, "mixtral"), mesh(), (), call, checkpoint=folder, experts="expert"
    )
    with torch.no_grad(), eager_ladder(model, HEAD["llama"]):
        error = (shard(**call).logits - model(**call).logits).abs().max().item()
    name = "model.layers.0.mlp.experts.down_proj"
    own, full = shard.get_parameter(name), model.get_parameter(name)
    return error, [[torch.equal(part, expert) for expert in full].index(True) for part in own]


def test_each_rank_reads_its_own_experts(two_ranks, tmp_path):
    folder = written(mixture("mixtral"), tmp_path)
    (error, first), (_, second) = two_ranks.run(experts_of_each, folder)
    assert error <= TOLERANCE
    assert [first, second] == [[0, 1], [2, 3]]


def ownership():
    model = make("llama", layers=2)
    shard = sharded("llama", model.state_dict(), layers=2)
    full = dict(model.named_parameters())
    own = dict(shard.named_parameters())
    wrong = [
        entry.name
        for entry in shard.local_program.entries
        if entry.kind == "parameter"
        and not torch.equal(
            own[entry.name], entry.read(full[entry.name], dist.get_rank(), 2, torch.device("cpu"))
        )
    ]
    sizes = [sum(p.numel() for p in m.parameters()) for m in (shard, model)]
    states = [set(m.state_dict()) for m in (shard, model)]
    return list(own) == list(full), states[0] == states[1], wrong, sizes, repr(shard)


def test_a_rank_owns_its_slices_under_the_models_names(two_ranks):
    for rank, (same, same_state, wrong, sizes, text) in enumerate(two_ranks.run(ownership)):
        assert same
        assert same_state
        assert wrong == []
        assert sizes[0] < 0.62 * sizes[1]
        assert f"rank {rank} of 2" in text


def test_parameters_of_a_factory_are_never_materialized():
    model, has_weights = build(partial(make, "llama"))
    assert not has_weights
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {b.device.type for b in model.buffers()} == {"cpu"}
    program = trace(model, (), inputs())
    kinds = {type(program.state_dict[name]).__name__ for name, _ in model.named_parameters()}
    assert kinds == {"FakeTensor"}
    assert all(p.device.type == "meta" for p in model.parameters())  # put back after tracing


def test_the_traced_model_is_left_as_it_was():
    model = make("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    plan = ladderize.plan_parallel(model, 2, (), inputs())
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert plan.num_ranks == 2
    assert plan.bytes_per_rank < 0.62 * plan.bytes_in_all


class Tied(nn.Module):
    """Two residual blocks that share their weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.ModuleDict({"up": nn.Linear(16, 32), "down": nn.Linear(32, 16)})
        self.second = nn.ModuleDict({"up": nn.Linear(16, 32), "down": nn.Linear(32, 16)})
        for name in ("up", "down"):
            self.second[name].weight = self.first[name].weight

    def forward(self, x):
        for block in (self.first, self.second):
            x = x + block["down"](torch.relu(block["up"](torch.tanh(x))))
        return x


def tied():
    model = Tied()
    x = torch.randn(2, 16)
    state = model.state_dict()
    del state["second.up.weight"]  # a tied tensor may be there under one of its names
    shard = ladderize.parallelize(Tied, mesh(), (x,), checkpoint=state)
    with torch.no_grad():
        h0 = model.first["down"](torch.relu(model.first["up"](torch.tanh(x))))
        h1 = model.second["down"](torch.relu(model.second["up"](torch.tanh(x))))
        error = (shard(x) - (x + h0 + h1)).abs().max().item()
    is_tied = shard.get_parameter("first.up.weight") is shard.get_parameter("second.up.weight")
    return error, is_tied


def test_tied_weights_stay_tied(two_ranks):
    for error, is_tied in two_ranks.run(tied):
        assert error <= TOLERANCE
        assert is_tied


# ---- training


def trained(steps):
    """Largest difference of the parameters after some steps, to those of the eager ladder."""
    model = make("llama").double()
    shard = ladderize.parallelize(model, mesh(), (), inputs())
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (model, shard)]
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        expect("llama", model).sin().sum().backward()
        shard(**inputs())[0].sin().sum().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert norm > 2  # else nothing is scaled
        torch.testing.assert_close(shard.clip_grad_norm_(1.0), norm)
        for optimizer in optimizers:
            optimizer.step()
    full = dict(model.named_parameters())
    worst = 0.0
    for entry in shard.local_program.entries:
        if entry.kind == "parameter":
            part = entry.read(full[entry.name].detach(), dist.get_rank(), 2, torch.device("cpu"))
            own = shard.get_parameter(entry.name)
            worst = max(worst, (own - part).abs().max().item())
    return worst


def test_it_trains(two_ranks):
    for worst in two_ranks.run(trained, 4):
        assert worst <= 1e-9


class Fused(nn.Module):
    """Queries that are divided and one key head that is not, in one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.qkv, self.out = nn.Linear(16, 16 + 8), nn.Linear(16, 16)

    def forward(self, x):
        x = x + torch.tanh(self.first(x))
        q, k, v = self.qkv(x).split([16, 4, 4], -1)
        q = q.unflatten(-1, (4, 4)).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(q, k[:, None], v[:, None], enable_gqa=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


def norms_of(orders):
    """For each order: the norm of all gradients in one process and over the ranks."""
    torch.manual_seed(0)
    model, x = Fused(), torch.randn(2, 3, 16)
    shard = ladderize.parallelize(model, mesh(), (x,))
    placements = {entry.name: entry.placement for entry in shard.local_program.entries}
    assert placements["qkv.weight"].whole
    eager = ladderize.rewrite(torch.export.export(model, (x,))).module()
    found = []
    for order in orders:
        for module in (eager, shard):
            module.zero_grad()
            module(x).sin().sum().backward()
        whole = nn.utils.clip_grad_norm_(eager.parameters(), 0.5, order)
        found.append((whole.item(), shard.clip_grad_norm_(0.5, order).item()))
    shard.get_parameter("out.bias").grad.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="is nan"):
        shard.clip_grad_norm_(0.5, error_if_nonfinite=True)
    return found


def test_what_ranks_hold_whole_is_counted_once(two_ranks):
    for norms in two_ranks.run(norms_of, [2.0, 1.0, float("inf")]):
        for expected, found in norms:
            assert found == pytest.approx(expected, rel=1e-5)


# ---- order, and compilation


def letters(source):
    short = {EventKind.LAUNCH: "l", EventKind.WAIT: "w"}
    return "".join(short.get(event.kind, "") for event in read_events(source).events)


def graph_letters(graph):
    short = {"ladderize.reduce.default": "l", "ladderize.wait.default": "w"}
    return "".join(short.get(str(node.target), "") for node in graph.nodes)


def compiled(shard, lowering):
    """The compiled result and its error, warnings, and the orders."""
    extra = {"verify": "code"} if lowering == "inductor" else {}
    run = torch.compile(
        shard, backend="ladderize", fullgraph=True, options={"lowering": lowering, **extra}
    )
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        with record_emitted_code() as sources:
            found = run(**inputs())[0]
        error = (found - shard(**inputs())[0]).abs().max().item()
    ours = [str(w.message) for w in caught if issubclass(w.category, LadderWarning)]
    order = graph_letters(shard.graph_module.graph)
    return found, error, ours, order, [letters(s) for s in sources]


ORDER = "llww"


def test_it_compiles_in_the_same_order(shard):
    _, error, ours, eager, emitted = compiled(shard, "aot_eager")
    assert error <= TOLERANCE
    assert (ours, eager, emitted) == ([], ORDER, [])


def test_inductor_emits_the_same_order(shard):
    _, error, ours, eager, emitted = compiled(shard, "inductor")
    assert error <= TOLERANCE
    assert (ours, eager, emitted) == ([], ORDER, [ORDER])


def compiled_and_whole(lowering):
    model = make("llama", layers=2)
    shard = sharded("llama", model.state_dict(), layers=2, shard_vocabulary=False)
    found, error, *_ = compiled(shard, lowering)
    with torch.no_grad():
        return error, (found - expect("llama", model)).abs().max().item()


@pytest.mark.deep
@pytest.mark.parametrize("lowering", ["aot_eager", "inductor"])
def test_compiled_shards_compute_the_same(two_ranks, lowering):
    for errors in two_ranks.run(compiled_and_whole, lowering):
        assert max(errors) <= TOLERANCE


def test_compiling_does_not_convert_what_parallelize_was_told_to_leave(shard):
    ladder, standard = shard, sharded("llama", make("llama").state_dict(), staleness=0)
    run = torch.compile(standard, backend="ladderize", options={"lowering": "eager"})
    with torch.no_grad():
        found = run(**inputs())[0]
        assert (found - standard(**inputs())[0]).abs().max() <= TOLERANCE
        assert (found - ladder(**inputs())[0]).abs().max() > 1e-3


def test_options_of_the_conversion_belong_to_parallelize(shard):
    run = torch.compile(shard, backend="ladderize", options={"layers": "last:1", "mesh": mesh()})
    with pytest.raises(LadderError, match=r"ladderize\.parallelize") as caught:
        run(**inputs())
    assert "layers=" in str(caught.value)
    assert "mesh=" in str(caught.value)


# ---- refusals


def refusal(checkpoint, **options):
    try:
        sharded("llama", checkpoint, **options)
    except LadderError as error:
        return str(error)
    return "no error"


@pytest.mark.usefixtures("first_of_two")
def test_a_factory_without_weights_is_refused():
    text = refusal(None)
    assert "no weights" in text
    assert "checkpoint=" in text


@pytest.mark.usefixtures("first_of_two")
def test_every_tensor_that_does_not_fit_is_listed():
    state = make("llama").state_dict()
    del state["norm.weight"]
    state["layers.0.mlp.up_proj.weight"] = torch.zeros(3, 4)
    state["layers.0.mlp.up_proj.bias"] = torch.zeros(48)
    state["layers.0.input_layernorm.weight"] = torch.zeros(32, dtype=torch.int64)
    text = refusal(state)
    assert "in 4 tensors" in text
    assert "missing: norm.weight [32]" in text
    assert "misshapen: layers.0.mlp.up_proj.weight is [3, 4], the model has [48, 32]" in text
    assert "surplus: layers.0.mlp.up_proj.bias [48]" in text
    assert "mistyped: layers.0.input_layernorm.weight is torch.int64" in text


def one_without_files(folder):
    return refusal(folder if dist.get_rank() == 0 else folder / "nowhere")


def test_a_checkpoint_that_one_rank_lacks_stops_all(two_ranks, tmp_path):
    folder = written(make("llama"), tmp_path)
    for text in two_ranks.run(one_without_files, folder, timeout=60):
        assert "nowhere" in text
        assert "rank 1: refused" in text


@pytest.mark.usefixtures("first_of_two")
@pytest.mark.parametrize("option", [{"lowering": "eager"}, {"mode": "default"}])
def test_lowering_comes_later(option):
    text = refusal(None, **option)
    assert "ahead of time" in text
    assert "torch.compile" in text


def test_inputs_that_were_not_traced_are_refused(shard):
    texts = []
    for args, kwargs in [
        ((), {"input_ids": torch.zeros(2, 7, dtype=torch.int64)}),
        ((), {"input_ids": torch.zeros(2, 6)}),
        ((), {"ids": torch.zeros(2, 6, dtype=torch.int64)}),
        ((torch.zeros(2, 6, dtype=torch.int64),), {}),
    ]:
        with pytest.raises(LadderError) as caught:
            shard(*args, **kwargs)
        texts.append(str(caught.value))
    shape, dtype, name, position = texts
    assert "shape[1]" in shape
    assert "dynamic_shapes=" in shape
    assert "torch.float32" in dtype and "torch.int64" in dtype
    assert "'ids'" in name
    assert "input_ids" in position


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        for up, down in ((0, 1), (2, 3)):
            h = self.layers[down](torch.relu(self.layers[up](torch.tanh(x))))
            x = x + self.dropout(h)
        return x


@pytest.mark.usefixtures("first_of_two")
def test_a_program_keeps_the_mode_it_was_traced_in():
    model = Dropping().eval()
    shard = ladderize.parallelize(model, mesh(), (torch.randn(2, 16),))
    with pytest.raises(LadderError) as caught:
        shard.train()
    trains = ladderize.parallelize(Dropping(), mesh(), (torch.randn(2, 16),))
    assert "eval() mode" in str(caught.value)
    assert "dropout" in str(caught.value)
    assert not shard.eval().training
    assert trains.training and trains.train().training


class Untraceable(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_cache_among_the_outputs_is_named_with_its_cure():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 8}
    config = LlamaConfig(num_hidden_layers=2, **sizes)  # use_cache=True is the default
    with pytest.raises(LadderError, match="use_cache=False"):
        ladderize.plan_parallel(lambda: LlamaForCausalLM(config), 2, (), inputs())


def test_what_cannot_be_traced_says_why():
    with pytest.raises(LadderError, match="cannot trace this model") as caught:
        ladderize.plan_parallel(Untraceable(), 2, (torch.randn(2),))
    assert caught.value.__cause__ is not None
