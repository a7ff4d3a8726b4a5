#!/usr/bin/env bash
# Two machines emulated on one: torchrun starts examples/multi_node.py with two ranks in each of two
# network namespaces, which are joined by a slow link.
#
#   sudo bench/multi_node.sh [--lowering aot_eager …]     arguments: those of examples/multi_node.py
#   sudo RATE=1gbit PYTHON=.venv/bin/python bench/multi_node.sh
#
# RATE and BURST are those of `tc qdisc … tbf`. Needs root and iproute2.
set -euo pipefail
cd "$(dirname "$0")/.."
source bench/two_machines.sh

for i in 0 1; do
  on_machine $i "$python" -m torch.distributed.run --nnodes 2 --node-rank $i --nproc-per-node 2 \
    --master-addr "${addresses[0]}" --master-port 29513 examples/multi_node.py "$@"
done
wait_for_both
