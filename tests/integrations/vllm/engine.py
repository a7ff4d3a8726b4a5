"""Run several vLLM engines, one after the other, in a separate process.

python engine.py REQUESTS.json ANSWERS.json

requests   [{"engine": {arguments of vllm.LLM},
             "batches": [{"prompts": [[ids]], "new": 4, "scored": true}]}]
answers    [[[{"scores": [log-probabilities of the prompt's tokens], "tokens": [new ones]}]]]
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any


def answer(request: dict[str, Any]) -> list[Any]:
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    engine = LLM(**request["engine"])
    answers = [of_batch(engine, **batch) for batch in request["batches"]]
    del engine
    gc.collect()
    cleanup_dist_env_and_memory()
    return answers


def of_batch(engine: Any, prompts: list[list[int]], new: int, scored: bool) -> list[Any]:
    from vllm import SamplingParams

    asked = SamplingParams(
        temperature=0,
        max_tokens=new,
        prompt_logprobs=0 if scored else None,
        detokenize=False,
        ignore_eos=True,
    )
    given = [{"prompt_token_ids": ids} for ids in prompts]
    done = engine.generate(given, asked, use_tqdm=False)
    return [
        {
            "scores": [
                known[token].logprob
                for known, token in zip(one.prompt_logprobs[1:], ids[1:], strict=True)
            ]
            if scored
            else [],
            "tokens": list(one.outputs[0].token_ids),
        }
        for one, ids in zip(done, prompts, strict=True)
    ]


if __name__ == "__main__":
    requests, answers = map(Path, sys.argv[1:])
    answers.write_text(json.dumps([answer(one) for one in json.loads(requests.read_text())]))
