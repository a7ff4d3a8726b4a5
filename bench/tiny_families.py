"""Build a tiny model of every causal language model of transformers, by the names of its sizes.

    tiny("llama")   LlamaForCausalLM of width 64, 8 heads, 4 key heads, two layers
    tiny("lfm2")    … with one layer of each kind in its default configuration

A size name means the same in nearly all configurations; `OWN` has the exceptions by family.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from zoo.family import enlarge

VOCABULARY = 64
WIDTH, HEADS, KEYS, HEAD = 64, 8, 4, 8
INNER, EXPERT = 128, 32
LAYERS = 2
LARGEST = 6_000_000  # parameters

_LAST = {name: kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}
# One model type of each class: the text model's, if there are several.
FAMILIES: dict[str, str] = {kind: name for name, kind in sorted(_LAST.items())}

_NAMES: Sequence[tuple[int, str]] = (
    (VOCABULARY, "vocab_size shape_vocab_size pronunciation_vocab_size"),
    (WIDTH, "hidden_size d_model n_embd emb_dim embedding_size word_embed_proj_dim embedding_dim"),
    (WIDTH, "lru_width attention_hidden_size dim_model input_embedding_size output_embedding_size"),
    (WIDTH, "mamba_d_ssm attention_hidden_size"),
    (HEADS, "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads"),
    (HEADS, "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads"),
    (HEADS, "num_linear_attention_heads linear_num_value_heads swa_num_attention_heads"),
    (KEYS, "num_key_value_heads num_kv_heads linear_num_key_heads swa_num_key_value_heads"),
    (KEYS, "num_query_groups num_global_key_value_heads"),
    (HEAD, "head_dim dim_head kv_channels linear_key_head_dim linear_value_head_dim d_head"),
    (HEAD, "v_head_dim qk_nope_head_dim global_head_dim attention_head_size swa_head_dim"),
    (HEAD, "swa_v_head_dim attention_head_dim hidden_size_per_layer_input"),
    (4, "qk_rope_head_dim rotary_dim"),
    (12, "qk_head_dim"),
    (8, "kv_lora_rank q_lora_rank o_lora_rank laurel_rank"),
    (INNER, "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner ffn_hidden_size"),
    (INNER, "dim_ff dff d_inner feed_forward_size intermediate_size_mlp dense_intermediate_size"),
    (EXPERT, "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"),
    (EXPERT, "shared_intermediate_size moe_shared_expert_intermediate_size expert_dim"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts num_moe_experts"),
    (1, "n_shared_experts num_shared_experts n_group topk_group moe_num_shared_experts"),
    (2, "num_experts_per_tok moe_k moe_topk moe_top_k num_experts_per_token top_k_experts"),
    (1, "first_k_dense_replace num_dense_layers"),
    (64, "max_position_embeddings n_positions max_seq_len max_target_positions n_ctx max_length"),
    (64, "context_length"),
    (4, "sliding_window window_size attention_window_size attention_chunk_size"),
    (4, "chunk_size mamba_chunk_size block_size"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers"),
    (LAYERS, "encoder_layers num_encoder_layers num_blocks"),
    (8, "mamba_n_heads mamba_num_heads n_mamba_heads"),
    (16, "mamba_d_head mamba_head_dim mamba_headdim"),
    (8, "mamba_d_state ssm_state_size state_size"),
    (4, "mamba_n_groups n_groups mamba_ngroups"),
    (2, "index_n_heads indexer_n_heads num_nextn_predict_layers index_topk"),
    (8, "index_head_dim indexer_head_dim"),
)
SIZES = {name: size for size, names in _NAMES for name in names.split()}
NO_DROPOUT = (
    "attention_dropout attention_probs_dropout_prob hidden_dropout_prob dropout activation_dropout"
    " resid_pdrop embd_pdrop attn_pdrop hidden_dropout embed_dropout resid_dropout"
).split()
FLAGS: dict[str, Any] = {
    "use_cache": False,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
# Lists with one entry per layer; each keeps the kinds of the default configuration.
PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")

MAMBA_2 = {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 4}
OWN: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8, "use_associative_scan": False},
    "falcon_mamba": {"use_associative_scan": False},
    "mamba2": MAMBA_2,
    "bamba": {"mamba_n_groups": 1, "attn_layer_indices": [1], "mamba_expand": 2},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "num_hidden_layers": 2},
    "lfm2": {"block_auto_adjust_ff_dim": False},
    "dbrx": {
        "attn_config": {"kv_n_heads": 4, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "rwkv": {"rescale_every": 0, "attention_hidden_size": 64},
    "xlstm": {"chunk_size": 4},
    "xmod": {"languages": ["en"], "default_language": "en"},
    "whisper": {"max_source_positions": 16},
    "stablelm": {"use_parallel_residual": False},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "xlm": {"n_langs": 1, "use_lang_emb": False},
    "falcon_h1": {"mamba_n_groups": 1, "mamba_d_ssm": 128},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"num_kv_shared_layers": 0},
    "mellum": {"num_nextn_predict_layers": 1, "num_mtp_layers": 1},
    "zaya": {"num_experts_per_tok": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "zamba2": {
        "mamba_ngroups": 1,
        "mamba_expand": 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 16,
    },
}


def tiny(family: str) -> nn.Module:
    """The model in evaluation mode, with random weights of the size of trained ones."""
    kind = getattr(transformers, FAMILIES[family])
    config = small_config(CONFIG_MAPPING[family], OWN.get(family, {}))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters left: sizes by other names")
    torch.manual_seed(0)
    return enlarge(kind(config)).eval()


def feed() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"input_ids": torch.randint(4, VOCABULARY, (2, 8), generator=generator)}


def small_config(kind: Any, own: Mapping[str, Any]) -> Any:
    """A configuration of that class with every size that is named in `SIZES`."""
    known = kind().to_dict()
    made = {name: value for name, value in {**SIZES, **FLAGS}.items() if name in known}
    made |= {name: type(known[name])(0) for name in NO_DROPOUT if known.get(name) is not None}
    if "qk_rope_head_dim" in known:  # the configuration uses it as `head_dim`
        made.pop("head_dim", None)
        made["num_key_value_heads"] = HEADS
    lists = {
        n: kinds(known[n]) for n in PER_LAYER if isinstance(known.get(n), list) and n not in own
    }
    depth = max([LAYERS, *map(len, lists.values())])
    made |= {name: depth for name in made if SIZES.get(name) == LAYERS and name.endswith(_DEPTHS)}
    made |= {name: (listed * depth)[:depth] for name, listed in lists.items()}
    for name, part in _parts(kind, known):
        if name not in own:
            made[name] = small_config(part, {}).to_dict()
    return kind(**{**made, **own})


_DEPTHS = ("layers", "layer", "blocks")


def kinds(listed: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys(listed))


def _parts(kind: Any, known: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Configurations nested in this one."""
    classes = getattr(kind, "sub_configs", {})
    held = [(n, c) for n, c in classes.items() if isinstance(known.get(n), dict)]
    return [(n, c) for n, c in held if hasattr(c, "to_dict") and "AutoConfig" not in str(c)]
