#!/usr/bin/env bash
# Fetches what the tests beside it need besides the environment of all others: lm-eval and what it
# imports, 330 MB, most of it pyarrow and pandas.
#
#     tests/integrations/lm_eval/install.sh FOLDER &&
#       PYTHONPATH=FOLDER .venv/bin/pytest tests/integrations/lm_eval
#
# Into a folder of its own, as transformers imports datasets and pandas wherever they are installed.
set -euo pipefail
cd "$(dirname "$0")/../../.."

.venv/bin/pip install -q --no-compile --no-deps --target "${1:?where to put it}" lm_eval==0.4.13 \
  datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 pyarrow==26.0.1 pandas==3.1.1 pytz==2026.6 xxhash==4.1.0 \
  requests==2.34.2 urllib3==2.8.0 idna==3.20 certifi==2026.10.19.post1 charset-normalizer==3.5.3 \
  chardet==7.7.0 jsonlines==4.0.0 more_itertools==11.2.1 word2number==1.1 sqlitedict==2.1.0 \
  sacrebleu==2.6.0 portalocker==4.4.2 tabulate==0.10.0 colorama==0.4.6 lxml==6.1.3 zstandard==0.25.0
