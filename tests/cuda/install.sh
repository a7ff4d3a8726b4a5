#!/usr/bin/env bash
# Fetches what the tests beside it need besides the environment of all others: Triton, 198 MB.
#
#     tests/cuda/install.sh FOLDER && PYTHONPATH=FOLDER .venv/bin/pytest tests/cuda
#
# Into a folder of its own: where Triton is installed, Inductor and transformers import it in every
# process.
set -euo pipefail
cd "$(dirname "$0")/../.."

.venv/bin/pip install -q --no-compile --no-deps --target "${1:?where to put it}" triton==3.7.1
