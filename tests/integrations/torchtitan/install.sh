#!/usr/bin/env bash
# Makes the environment of the tests beside it: torchtitan on torch's CPU build, from the registry.
#
#     tests/integrations/torchtitan/install.sh .venv-torchtitan
#     .venv-torchtitan/bin/pytest tests/integrations/torchtitan
#
# Of torchtitan's dependencies only what the training of a text model imports; Triton, which it imports
# without naming it; and torchao, for the models that are refused.
set -euo pipefail
cd "$(dirname "$0")/../../.."

venv=${1:?where to put it}
pins=$(grep -E '^(torch|torchao)==' constraints.txt)
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install -q --no-compile -c <(echo "$pins") torch torchao pytest pytest-timeout pytest-xdist \
  networkx typer rich pydantic jinja2 safetensors sympy numpy \
  torchdata torch_checkpointing 'datasets>=3.6.0,<4.8.0' tokenizers tyro spmd_types==0.2.3 tensorboard
"$venv/bin/pip" install -q --no-compile --no-deps torchtitan==0.3.0 triton==3.7.1
"$venv/bin/pip" install -q --no-compile --no-deps -e .
