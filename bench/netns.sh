#!/usr/bin/env bash
# A real slow link on one machine: two network namespaces, joined by a veth pair limited to RATE on
# both ends, with one gloo rank in each namespace. Both run bench/slow_link.py.
#
#   sudo bench/netns.sh [--hidden 768 --layers 8 …]       arguments: those of bench/slow_link.py
#   sudo RATE=1gbit PYTHON=.venv/bin/python bench/netns.sh
#
# RATE and BURST are those of `tc qdisc … tbf`. Needs root and iproute2. It cleans up, also when it
# fails.
set -euo pipefail
cd "$(dirname "$0")/.."
source bench/two_machines.sh

for i in 0 1; do
  on_machine $i env RANK=$i WORLD_SIZE=2 MASTER_ADDR="${addresses[0]}" MASTER_PORT=29512 \
    "$python" bench/slow_link.py --link "veth, tbf rate $rate burst $burst latency 400ms" "$@"
done
wait_for_both
