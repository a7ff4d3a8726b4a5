"""Tiny models, and a backend that shards them and runs the sharded graph in eager mode."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch.fx import GraphModule

from helpers.lockstep import run_in_lockstep
from ladderize.compat.module_paths import parameter_names
from ladderize.graph.to_aten import to_aten
from ladderize.passes.functionalize import Functionalize
from ladderize.passes.runner import Log, run_pass
from ladderize.passes.shard import ShardBranches
from ladderize.sharding.findings import Findings
from ladderize.sharding.placement import Replicate, take_local
from ladderize.sharding.plan import ShardPlan, plan_sharding
from ladderize.streams.block import Block
from ladderize.streams.find import find_streams


@dataclass
class Sharder:
    """A torch.compile backend that keeps its results.

    Attributes:
        execute: whether a call runs the sharded graph, as all of its ranks in lockstep.
        earlier: plan of another graph of the model.
        leaves: local parameters of each rank by name, after a run.
        inputs: copies of the other floating inputs, by rank.
        outputs: outputs of each rank's graph.
        order: parameter name of each graph input, None for inputs of the caller.
    """

    num_ranks: int
    execute: bool = False
    earlier: Findings | None = None
    gm: GraphModule | None = None
    plan: ShardPlan | None = None
    blocks: list[Block] = field(default_factory=list)
    leaves: list[dict[str, torch.Tensor]] = field(default_factory=list)
    inputs: list[list[torch.Tensor]] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    order: list[str | None] = field(default_factory=list)

    def __call__(self, gm: GraphModule, _: Any) -> Callable[..., Any]:
        differentiable = {
            i
            for i, node in enumerate(gm.graph.find_nodes(op="placeholder"))
            if getattr(node.meta["example_value"], "requires_grad", False)
        }
        aten, names = to_aten(gm, parameter_names(gm))
        run_pass(aten, Functionalize(), Log())
        inputs = aten.graph.find_nodes(op="placeholder")
        self.blocks = [b for stream in find_streams(aten, names) for b in stream.blocks]
        self.plan = plan_sharding(
            aten,
            self.blocks,
            names,
            self.num_ranks,
            {inputs[i] for i in differentiable},
            earlier=self.earlier,
        )
        order = self.order = [names.get(node) for node in inputs]
        run_pass(aten, ShardBranches(self.plan, "group"), Log())
        self.gm = aten
        return self.runner(order) if self.execute else gm.forward

    def runner(self, order: list[str | None]) -> Callable[..., Any]:
        assert self.gm is not None
        gm = self.gm

        def call(*args: Any) -> Any:
            self.leaves = [{} for _ in range(self.num_ranks)]
            self.inputs = [[] for _ in range(self.num_ranks)]
            arguments = [self._arguments(r, order, args) for r in range(self.num_ranks)]
            self.outputs = run_in_lockstep(gm, arguments)
            return self.outputs[0]

        return call

    def _arguments(self, rank: int, order: list[str | None], args: tuple[Any, ...]) -> list[Any]:
        assert self.plan is not None
        local = []
        for name, arg in zip(order, args, strict=True):
            if name is not None:
                placement = self.plan.placements.get(name, Replicate())
                part = take_local(arg.detach(), placement, rank, self.num_ranks).clone()
                if isinstance(arg, torch.nn.Parameter):
                    self.leaves[rank][name] = part.requires_grad_()
                arg = part
            elif isinstance(arg, torch.Tensor) and arg.is_floating_point():
                arg = arg.detach().clone().requires_grad_()
                self.inputs[rank].append(arg)
            local.append(arg)
        return [*local, *(index.tensor(rank) for index in self.plan.index_inputs)]

    def targets(self) -> list[str]:
        assert self.gm is not None
        return [str(n.target) for n in self.gm.graph.nodes if n.op == "call_function"]


def llama(heads: int = 4, kv: int = 4, layers: int = 2, **options: Any) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaModel

    sizes: dict[str, Any] = {"hidden_size": 8 * heads, "intermediate_size": 48} | options
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        max_position_embeddings=64,
        use_cache=False,
        **sizes,
    )
    return LlamaModel(config).eval()


def gpt2(heads: int = 4, layers: int = 2, **options: Any) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64,
        n_layer=layers,
        n_head=heads,
        n_positions=64,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        **({"n_embd": 8 * heads} | options),
    )
    return _with_random_biases(GPT2Model(config).eval())


def bert(heads: int = 4, layers: int = 2, **options: Any) -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=64,
        **({"hidden_size": 8 * heads} | options),
    )
    return _with_random_biases(BertModel(config, add_pooling_layer=False).eval())


def neox(heads: int = 4, layers: int = 2, **options: Any) -> torch.nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXModel

    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=64,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=64,
        use_cache=False,
        **({"hidden_size": 8 * heads} | options),
    )
    return _with_random_biases(GPTNeoXModel(config).eval())


def bloom(heads: int = 4, layers: int = 2) -> torch.nn.Module:
    from transformers import BloomConfig, BloomModel

    torch.manual_seed(0)
    config = BloomConfig(
        vocab_size=64, hidden_size=8 * heads, n_layer=layers, n_head=heads, use_cache=False
    )
    model = BloomModel(config).eval()
    for block in model.h:  # its own is an autograd.Function, whose gradient the trace forgets
        block.mlp.gelu_impl = torch.nn.GELU(approximate="tanh")
    return _with_random_biases(model)


def mixtral(heads: int = 4, kv: int = 4, layers: int = 2) -> torch.nn.Module:
    from transformers import MixtralConfig, MixtralModel

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64,
        hidden_size=8 * heads,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        num_local_experts=4,
        max_position_embeddings=64,
        use_cache=False,
    )
    return MixtralModel(config).eval()


def t5(heads: int = 4, layers: int = 2) -> torch.nn.Module:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64, d_model=8 * heads, d_kv=8, d_ff=48, num_layers=layers, num_heads=heads
    )
    return T5EncoderModel(config).eval()


def _with_random_biases(model: torch.nn.Module) -> torch.nn.Module:
    """Randomize biases: transformers starts them at zero, which would hide a bias added twice."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "bert": bert,
    "neox": neox,
    "bloom": bloom,
    "mixtral": mixtral,
    "t5": t5,
}


def embeds(batch: int = 2, length: int = 6, hidden: int = 32) -> torch.Tensor:
    return torch.randn(batch, length, hidden, generator=torch.Generator().manual_seed(1))


def shard(name: str, num_ranks: int, dynamic: bool = False, **options: Any) -> Sharder:
    """The plan and the sharded graph of a tiny model, without a run; do not edit them."""
    return _shard(name, num_ranks, dynamic, tuple(sorted(options.items())))


@cache
def _shard(name: str, num_ranks: int, dynamic: bool, options: tuple[Any, ...]) -> Sharder:
    return shard_anew(name, num_ranks, dynamic, **dict(options))


def shard_anew(name: str, num_ranks: int, dynamic: bool = False, **options: Any) -> Sharder:
    torch._dynamo.reset()
    sharder = Sharder(num_ranks)
    model = MODELS[name](**options)
    hidden = model.config.hidden_size
    x = embeds(hidden=hidden)
    if dynamic:
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(x, 1)
    torch.compile(model, backend=sharder, fullgraph=True, dynamic=None if dynamic else False)(
        inputs_embeds=x
    )
    return sharder


def shard_module(
    sharder: Sharder, model: torch.nn.Module, x: torch.Tensor, dynamic: bool = False
) -> dict[str, Any]:
    """Compile `model` with `sharder`; if it executes, return the largest errors of any rank."""
    y = x.detach().clone().requires_grad_()
    for dim in (0, 1) if dynamic else ():
        torch._dynamo.mark_dynamic(y, dim)
    compiled = torch.compile(
        model, backend=sharder, fullgraph=True, dynamic=None if dynamic else False
    )
    compiled(y)
    if not sharder.execute:
        return {}
    errors = _errors(sharder, model, x)
    if dynamic:
        z = torch.randn(3, 5, x.shape[-1])
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(z.clone().requires_grad_())
        errors["other shape"] = _errors(sharder, model, z)["error"]
    return errors


def _errors(sharder: Sharder, model: torch.nn.Module, x: torch.Tensor) -> dict[str, Any]:
    """The errors of the ranks' results for `x`, compared with the unsharded model."""
    assert sharder.plan is not None
    placements, full = sharder.plan.placements, dict(model.named_parameters())
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    expected = model(x)
    expected.sin().sum().backward()
    outputs = [output for (output,) in sharder.outputs]
    sum(output.sin().sum() for output in outputs).backward()
    gradients = {}
    for rank, leaves in enumerate(sharder.leaves):
        for name, leaf in leaves.items():
            placement = placements.get(name, Replicate())
            want = take_local(full[name].grad, placement, rank, sharder.num_ranks)
            gradients[rank, name] = largest(leaf.grad - want)
    return {
        "error": max(largest(output - expected) for output in outputs),
        "input gradient": max(largest(x.grad - y.grad) for (y,) in sharder.inputs),
        "gradients": gradients,
    }


def largest(difference: torch.Tensor) -> float:
    return difference.abs().max().item()


class FromEmbeddings(torch.nn.Module):
    """A transformers model as a function of its embeddings."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(inputs_embeds=x).last_hidden_state
        return hidden


def run_sharded(
    name: str, num_ranks: int, dynamic: bool, options: dict[str, Any]
) -> tuple[Sharder, dict[str, Any]]:
    """The errors of a sharded tiny model, compared with the unsharded one."""
    sharder = Sharder(num_ranks, execute=True)
    model = MODELS[name](**options)
    x = embeds(hidden=model.config.hidden_size)
    return sharder, shard_module(sharder, FromEmbeddings(model), x, dynamic)
