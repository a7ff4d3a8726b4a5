#!/usr/bin/env bash
# Fetches what the tests beside it need besides the environment of all others: the packages of
# `transformers serve`, 12 MB.
#
#     tests/integrations/transformers/install.sh FOLDER &&
#       PYTHONPATH=FOLDER .venv/bin/pytest tests/integrations/transformers
#
# Into a folder of its own, as transformers imports openai wherever it is installed.
set -euo pipefail
cd "$(dirname "$0")/../../.."

.venv/bin/pip install -q --no-compile --no-deps --target "${1:?where to put it}" fastapi==0.165.0 \
  starlette==1.10.0 uvicorn==0.54.0 openai==3.57.0 sniffio jiter opentelemetry-api
