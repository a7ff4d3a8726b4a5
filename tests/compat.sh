#!/usr/bin/env bash
# Run the core of the suite on the other supported versions of torch, each in an environment of its
# own under $LADDERIZE_COMPAT (default .compat). Downloads about 5 GB a version: not part of CI.
#
#   tests/compat.sh [2.11.0 2.15.0]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${LADDERIZE_COMPAT:-.compat}
versions=${*:-2.11.0 2.15.0}
core="tests/test_backend.py tests/test_collectives.py tests/test_config.py
  tests/test_defer_waits.py tests/test_emitted.py tests/test_hf_models.py tests/test_properties.py
  tests/test_report.py tests/test_reroute.py tests/test_sharding.py tests/test_stream.py
  tests/test_tensor_parallel.py tests/test_schedule.py tests/test_sharded_models.py
  tests/test_sharded_refusals.py tests/test_hf_tensor_parallel.py tests/test_parallel_training.py
  tests/test_parallelize.py tests/test_checkpoint.py tests/test_shard_files.py tests/test_caches.py
  tests/test_vocabulary.py tests/test_release.py"
for version in $versions; do
  python="$folder/$version/bin/python"
  [ -x "$python" ] || python3 -m venv "$folder/$version"
  constraints=$(mktemp)
  grep -v '^torch==' constraints.txt > "$constraints"
  "$python" -m pip install -q "torch==$version" -c "$constraints" -e '.[test]'
  echo "== torch $version"
  # shellcheck disable=SC2086
  "$python" -m pytest -q $core
done
