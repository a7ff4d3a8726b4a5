"""A tokenizer of 62 words, `w2` to `w63`, for models of 64 tokens, and text with simple rules.

A model learns the text in a second.
"""

import json

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY = {"<eos>": 0, "<unk>": 1} | {f"w{index}": index for index in range(2, 64)}


def word_tokenizer(extra=0):
    """The tokenizer, with `extra` words that the embedding of 64 tokens lacks."""
    vocabulary = VOCABULARY | {f"w{index}": index for index in range(64, 64 + extra)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", unk_token="<unk>"
    )


def chain_text(num_words, seed=0):
    """Text of words `w2` to `w11`; each two words decide which two may follow: attention helps."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 2, (num_words,), generator=generator).tolist()
    law = torch.randint(2, 12, (12, 12, 2), generator=torch.Generator().manual_seed(7)).tolist()
    words = [2, 3]
    for step in steps:
        words.append(law[words[-2]][words[-1]][step])
    return " ".join(f"w{word}" for word in words[2:])


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
