#!/usr/bin/env bash
# Makes the environment of the tests beside it: torchtitan on torch's CPU build, from the registry.
#
#     tests/integrations/torchtitan/install.sh .venv-torchtitan
#     .venv-torchtitan/bin/pytest tests/integrations/torchtitan
#
# torchtitan comes without its dependencies, and of these only what training a text model imports.
set -euo pipefail
cd "$(dirname "$0")/../../.."

venv=${1:?where to put it}
torch=$(grep '^torch==' constraints.txt)
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install -q --no-compile -c <(echo "$torch") torch pytest pytest-timeout pytest-xdist \
  networkx typer rich pydantic jinja2 safetensors sympy numpy \
  torchdata torch_checkpointing 'datasets>=3.6.0,<4.8.0' tokenizers tyro spmd_types==0.2.3
"$venv/bin/pip" install -q --no-compile --no-deps torchtitan==0.3.0
"$venv/bin/pip" install -q --no-compile --no-deps -e .
