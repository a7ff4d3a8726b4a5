"""The work of one rank: a small Llama or another causal LM as a sharded ladder."""

import os
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from ladderize.backends.emitted import order_string, read_events
from ladderize.errors import LadderError
from ladderize.report import Report
from ladderize.report.publish import collect_reports
from ladderize.testing.emitted_code import record_emitted_code
from ladderize.testing.stale_reads import eager_ladder
from ladderize.tools.launch.progress import Reporter

BATCH, SEQUENCE, HIDDEN, NUM_LAYERS = 2, 32, 128, 4
NUM_RUNS = 5  # a race does not show in every run
STAGES = {
    "model": "build the model with transformers",
    "reference": "run the eager ladder on one process",
    "survey": "find the residual stream",
    "ladderize": 'torch.compile(model, backend="ladderize")',
    "end": "stop the ranks",
}
# Weights of variance 1/fan_in give every branch the magnitude of the stream, as in a trained model.
# With the 0.02 of transformers, the ladder and the standard model would hardly differ.
SMALL_LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 256,
    "initializer_range": HIDDEN**-0.5,
}
# The modules that read the stream of a Llama.
READS = ["model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm"]


@dataclass(frozen=True)
class Shown:
    """Results of one rank.

    Attributes:
        report: report of the ladder on one process.
        scale: largest logit of the reference.
        drift: largest difference between the logits of the ladder and of the standard model.
        error: largest difference between the sharded ladder and the reference.
        order: launches, compute and waits in the emitted code, as `order_string` spells them.
        is_independent: whether the reference is `eager_ladder`, which shares no code with the
            compiler; otherwise it is ladderize's own rewrite on one process.
    """

    model: str
    num_weights: int
    report: Report
    scale: float
    drift: float
    error: float
    order: str
    is_independent: bool


def work(reporter: Reporter, hf: str | None, num_layers: int | None) -> Shown:
    """Run on every rank."""
    reporter.stage("model")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    try:
        with torch.no_grad():
            return _compare(hf, num_layers, reporter)
    finally:
        reporter.stage("end")
        dist.destroy_process_group()


def _compare(hf: str | None, num_layers: int | None, reporter: Reporter) -> Shown:
    model = _build(hf, num_layers)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (BATCH, SEQUENCE), generator=generator)

    def logits_of(module: Any) -> Tensor:
        logits: Tensor = module(input_ids=ids, use_cache=False).logits
        return logits

    reporter.stage("reference")
    standard = logits_of(model)
    with ExitStack() as hooks:
        if hf is None:
            hooks.enter_context(eager_ladder(model, READS))
        expected = logits_of(model)

    reporter.stage("survey")
    options: dict[str, Any] = {"lowering": "eager"}
    alone = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
    with collect_reports() as reports:
        rewritten = logits_of(alone)
    expected = rewritten if hf is not None else expected
    torch._dynamo.reset()

    reporter.stage("ladderize")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    # With a sharded embedding, the first all-reduce would not be that of block 0.
    options = {"mesh": mesh, "verify": "code", "shard_vocabulary": False}
    compiled = torch.compile(model, backend="ladderize", fullgraph=True, options=options)
    with record_emitted_code() as sources:
        outputs = [logits_of(compiled)]
    outputs += [logits_of(compiled) for _ in range(NUM_RUNS - 1)]
    return Shown(
        model=type(model).__name__,
        num_weights=sum(weight.numel() for weight in model.parameters()),
        report=reports[-1],
        scale=float(expected.abs().max()),
        drift=float((expected - standard).abs().max()),
        error=max(float((output - expected).abs().max()) for output in outputs),
        order=order_string(read_events(sources[0])),
        is_independent=hf is None,
    )


def _build(hf: str | None, num_layers: int | None) -> Any:
    """A causal LM in float32 and eval mode with random weights, the same on every rank.

    Args:
        hf: a configuration (JSON file, or a folder with `config.json`); None for the small Llama.
        num_layers: number of layers, None for the default.

    Raises:
        LadderError: `hf` is not a configuration of a causal LM that transformers knows.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig  # takes seconds

    from ladderize.frontends.checkpoints.configurations import read_config
    from ladderize.tools.sources.hugging_face import build

    config = LlamaConfig(**SMALL_LLAMA) if hf is None else read_config(Path(hf))
    classes: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in classes:
        raise LadderError(f"--hf {hf}: transformers has no causal LM of {config.model_type}.")
    config.architectures = [classes[type(config)].__name__]
    if num_layers is None and hf is None:
        num_layers = NUM_LAYERS
    if num_layers is not None:
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):  # must be as long as the model is deep
            config.layer_types = config.layer_types[:num_layers]
    return build(config).float().requires_grad_(False)
