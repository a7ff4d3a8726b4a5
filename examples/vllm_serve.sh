#!/usr/bin/env bash
# Serve a model as a ladder with vLLM. Arguments after the model go to `vllm serve`.
#
#   examples/vllm_serve.sh meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 8
#   LADDER='{"blocks": "last:25%"}' examples/vllm_serve.sh DIR --port 8001
#
# LADDER holds ladderize's options. A healed checkpoint records them itself: `vllm serve DIR` is enough.
set -euo pipefail
model=${1:?a folder, or a name on the Hugging Face hub}
shift
options=${LADDER:-'{"layers": "last:50%"}'}
exec vllm serve "$model" --additional-config "{\"ladderize\": $options}" "$@"
