#!/usr/bin/env bash
# Serve a model as a ladder with vLLM. What follows the model goes to `vllm serve`.
#
#   examples/vllm_serve.sh meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 8
#   LADDER='{"blocks": "last:25%"}' examples/vllm_serve.sh DIR --port 8001
#
# LADDER holds ladderize's options. A checkpoint that was healed as a ladder says them itself:
# `vllm serve DIR` is enough for it.
set -euo pipefail
model=${1:?a folder, or a name on the Hugging Face hub}
shift
options=${LADDER:-'{"layers": "last:50%"}'}
exec vllm serve "$model" --additional-config "{\"ladderize\": $options}" "$@"
