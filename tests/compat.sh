#!/usr/bin/env bash
# Run the core of the suite on the other supported versions of torch, each in an environment of its
# own under $LADDERIZE_COMPAT (default .compat). Downloads about 5 GB a version: not part of CI.
#
#   tests/compat.sh [2.11.0 2.15.0]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${LADDERIZE_COMPAT:-.compat}
versions=${*:-2.11.0 2.15.0}
core="tests/frontends/test_backend.py tests/ranks/test_parallel_ops.py tests/streams/test_config.py
  tests/passes/test_defer_waits.py tests/backends/test_emitted.py tests/frontends/test_hf_models.py tests/passes/test_properties.py
  tests/report/test_report.py tests/passes/test_reroute.py tests/sharding/test_structure.py tests/streams/test_find.py
  tests/ranks/test_tensor_parallel.py tests/passes/test_schedule.py tests/ranks/test_sharded_models.py
  tests/ranks/test_sharded_refusals.py tests/ranks/test_hf_tensor_parallel.py tests/ranks/test_parallel_training.py
  tests/ranks/test_parallelize.py tests/frontends/test_checkpoint.py tests/frontends/test_program_files.py tests/sharding/test_caches.py
  tests/sharding/test_vocabulary.py tests/frontends/test_release.py"
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
