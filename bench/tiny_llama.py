"""A Llama of tiny width, for timings that matrix products should not dominate."""

from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 64


def tiny_llama(num_layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
    )
    return LlamaForCausalLM(config).eval()
