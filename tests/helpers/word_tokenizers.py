"""A tokenizer of 62 words, `w2` to `w63`, for language models of 64 tokens; and text that has laws.

A word is followed by one of three others, so that a model learns something in seconds.
"""

import json

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

VOCABULARY = {"<eos>": 0, "<unk>": 1} | {f"w{index}": index for index in range(2, 64)}


def word_tokenizer(extra=0):
    """With `extra` words that a model of 64 tokens has no rows for."""
    vocabulary = VOCABULARY | {f"w{index}": index for index in range(64, 64 + extra)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>", unk_token="<unk>"
    )


def chain_text(num_words, seed=0):
    """A Markov chain, the same law for every seed."""
    generator = torch.Generator().manual_seed(seed)
    law = torch.randint(2, 64, (64, 3), generator=torch.Generator().manual_seed(7)).tolist()
    steps = torch.randint(0, 3, (num_words,), generator=generator).tolist()
    word, words = 2, []
    for step in steps:
        word = law[word][step]
        words.append(f"w{word}")
    return " ".join(words)


def write_lines(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
