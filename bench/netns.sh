#!/usr/bin/env bash
# A real slow link on one machine: two network namespaces, a veth pair between them whose ends let
# through RATE each, one gloo rank in each namespace, both running bench/slow_link.py.
#
#   sudo bench/netns.sh [--hidden 768 --layers 8 …]       arguments: those of bench/slow_link.py
#   sudo RATE=1gbit PYTHON=.venv/bin/python bench/netns.sh
#
# RATE and BURST are those of `tc qdisc … tbf`. Needs root and iproute2. What it makes is removed
# again, also when it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
rate=${RATE:-300mbit}
burst=${BURST:-32kbit} # what the bucket holds: how much is sent between two timer interrupts
python=${PYTHON:-python3}
names=("ladderize-$$-0" "ladderize-$$-1")
addresses=(10.213.77.1 10.213.77.2)
ranks=()

fail() { echo "bench/netns.sh: $1" >&2; exit 1; }
[ "$(uname)" = Linux ] || fail "network namespaces are Linux's."
command -v ip tc > /dev/null || fail "ip or tc is missing: apt-get install iproute2"
[ "$(id -u)" = 0 ] || fail "network namespaces need root: sudo bench/netns.sh"

clean_up() {
  for rank in "${ranks[@]}"; do kill "$rank" 2> /dev/null || true; done
  for name in "${names[@]}"; do ip netns del "$name" 2> /dev/null || true; done
}
trap clean_up EXIT
trap 'exit 130' INT TERM

for name in "${names[@]}"; do ip netns add "$name"; done
ip link add veth0 netns "${names[0]}" type veth peer name veth0 netns "${names[1]}"
for i in 0 1; do
  inside=(ip -n "${names[i]}")
  "${inside[@]}" addr add "${addresses[i]}/24" dev veth0
  "${inside[@]}" link set veth0 up
  "${inside[@]}" link set lo up
  tc -n "${names[i]}" qdisc add dev veth0 root tbf rate "$rate" burst $burst latency 400ms
done

for i in 0 1; do
  ip netns exec "${names[i]}" env RANK=$i WORLD_SIZE=2 MASTER_ADDR="${addresses[0]}" \
    MASTER_PORT=29512 GLOO_SOCKET_IFNAME=veth0 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
    PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" \
    "$python" bench/slow_link.py --link "veth, tbf rate $rate burst $burst latency 400ms" "$@" &
  ranks+=($!)
done
for rank in "${ranks[@]}"; do wait -n || fail "a rank failed."; done
ranks=()
