# Sourced by the scripts that need a slow link: two network namespaces, as two machines, joined by a
# veth pair limited to RATE on both ends. Sets `names` and `addresses`. When the script ends or fails,
# it removes them, and kills the processes whose ids are in `ranks`.
#
#   RATE=1gbit BURST=32kbit     as those of `tc qdisc … tbf`
#
# Needs root and iproute2.
rate=${RATE:-300mbit}
burst=${BURST:-32kbit} # size of the bucket: bytes sent between two timer interrupts
python=${PYTHON:-python3}
names=("ladderize-$$-0" "ladderize-$$-1")
addresses=(10.213.77.1 10.213.77.2)
ranks=()

fail() { echo "$0: $1" >&2; exit 1; }
[ "$(uname)" = Linux ] || fail "network namespaces need Linux"
command -v ip tc > /dev/null || fail "ip or tc is missing: apt-get install iproute2"
[ "$(id -u)" = 0 ] || fail "network namespaces need root: sudo $0"

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

# Runs the rest of its arguments on machine $1, in the background.
on_machine() {
  ip netns exec "${names[$1]}" env GLOO_SOCKET_IFNAME=veth0 OMP_NUM_THREADS=1 \
    TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "${@:2}" &
  ranks+=($!)
}

# Waits for both machines; fails if one of them does.
wait_for_both() {
  for rank in "${ranks[@]}"; do wait -n || fail "a rank failed."; done
  ranks=()
}
