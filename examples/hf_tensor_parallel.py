"""Generate text with a Hugging Face model, sharded by its own plan, as a ladder network.

    torchrun --standalone --nproc-per-node 2 examples/hf_tensor_parallel.py [DIRECTORY]

Without a directory it creates a tiny random Llama. The last line of the output looks like

    logits to the unsharded eager ladder: 2.4e-06, tokens/s: 71 (2 ranks, cpu)
"""

import os
import sys
import tempfile
import time

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig

import ladderize
from ladderize.testing import eager_ladder

READS = ["model.layers.*.input_layernorm", "model.layers.*.post_attention_layernorm"]
PROMPT, NEW_TOKENS = 16, 32


def make_checkpoint(directory: str) -> str:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def main() -> None:
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    shared = [sys.argv[1] if sys.argv[1:] else tempfile.mkdtemp()]
    if dist.get_rank() == 0 and not sys.argv[1:]:
        make_checkpoint(shared[0])
    dist.broadcast_object_list(shared)  # the same, complete directory on all ranks
    path = shared[0]

    plan = DistributedConfig(tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(path, distributed_config=plan).eval()
    ladderize.compile(model, verify="code")
    torch.manual_seed(1)
    ids = torch.randint(model.config.vocab_size, (1, PROMPT)).to(device)
    how = {"do_sample": False, "cache_implementation": "static", "pad_token_id": 0}
    how |= {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    model.generate(ids, **how)  # compiles the graphs of the prompt and of a decode step
    started = time.perf_counter()
    out = model.generate(ids, **how, return_dict_in_generate=True, output_logits=True)
    seconds = time.perf_counter() - started

    if dist.get_rank() == 0:
        print(f"blocks found: {len(ladderize.last_report().blocks)}")
        whole = AutoModelForCausalLM.from_pretrained(path).to(device).eval()
        with torch.no_grad(), eager_ladder(whole, READS):
            logits = whole(out.sequences[:, :-1], use_cache=False).logits[:, PROMPT - 1 :]
        error = (logits - torch.stack(out.logits, 1)).abs().max().item()
        print(f"logits to the unsharded eager ladder: {error:.1e}, ", end="")
        print(f"tokens/s: {NEW_TOKENS / seconds:.0f} ({dist.get_world_size()} ranks, {device})")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
