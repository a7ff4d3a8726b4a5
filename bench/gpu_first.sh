#!/usr/bin/env bash
# The first minutes on a GPU: what works, whether the values are correct, what is hidden.
#
#     bench/gpu_first.sh [--device cuda|cpu] [--out FOLDER]        python: $PYTHON, else python3
#
# Needs torch 2.11 to 2.15, transformers and what ladderize needs; downloads nothing and installs
# nothing. On one H100 or H200 it takes 8 minutes at most. A step that fails or takes too long does
# not stop the next one. FOLDER (gpu_first) then holds
#
#     steps.json      exit status, seconds and command of each step
#     doctor.json     what works here
#     values.json     ladders on two ranks, and in a CUDA graph, against eager mode; races
#     llama-8b.json   one rank's step of 8 GPUs, 16 layers, batch 1 and 16: standard, handwritten
#     llama-70b.json  ladder, ladderize's ladder, and without communication
#     traces.tar      a torch.profiler trace of each of these steps
#     logs.tar        the output of each step
#
# --device cpu rehearses this without a GPU, on small models and with four times the time limits; its
# numbers mean nothing.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
device=cuda out=gpu_first python=${PYTHON:-python3}
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=${2:?cuda or cpu} && shift 2 ;;
    --out) out=${2:?a folder} && shift 2 ;;
    *) sed -n '2,/^set/{/^#/p}' "$0" | sed 's/^# \{0,1\}//' >&2 && exit 2 ;;
  esac
done
case $device in
  cuda) small=() patience=1 ;;
  cpu) patience=4 small=(--hidden 64 --prompt 4 --new 3 --repeats 2 --dtype float32 --lowering aot_eager) ;;
  *) echo "--device is cuda or cpu, not $device" >&2 && exit 2 ;;
esac
[ -z "$(ls -A "$out" 2> /dev/null)" ] || { echo "$out is not empty: choose another with --out" >&2; exit 2; }
mkdir -p "$out/logs" "$out/traces"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

steps="" failed=0
step() {  # step NAME SECONDS COMMAND...
  local name=$1 limit=$2 began=$SECONDS code=0
  shift 2
  timeout -k 10 $((patience * limit)) "$@" > "$out/logs/$name.txt" 2>&1 || code=$?
  local took=$((SECONDS - began))
  [ $code -eq 0 ] || failed=1
  printf '%-12s %s, %d s\n' "$name" "$([ $code -eq 0 ] && echo done || echo "exit status $code")" $took
  steps+="${steps:+,}
 {\"step\": \"$name\", \"exit\": $code, \"seconds\": $took, \"command\": \"${*//\"/\\\"}\"}"
  printf '[%s\n]\n' "$steps" > "$out/steps.json"
  [ $code -eq 0 ] || tail -n 5 "$out/logs/$name.txt"
}
stand_in() {  # stand_in MODEL LAYERS
  step "$1" 155 "$python" "$root/bench/gpu_stand_in.py" --device "$device" \
    --model "$root/bench/models/$1.json" --layers "$2" --link nvlink-8 --sms 16 --batch 1 16 \
    --phases decode --variants standard written ladder bound "${small[@]}" \
    --json "$out/$1.json" --traces "$out/traces"
  tail -n +1 "$out/logs/$1.txt" | grep -E '^[│┃┏┡└]' || true
}

doctor='import sys; from ladderize.tools.cli import main; sys.argv = ["ladderize", "doctor", "--json"]; main()'
step doctor 50 bash -c "'$python' -c '$doctor' > '$out/doctor.json'"
step values 110 "$python" "$root/bench/gpu_values.py" --device "$device" --json "$out/values.json"
grep -E '^[│┃┏┡└]' "$out/logs/values.txt" || true
layers=16
[ "$device" = cuda ] || layers=2
stand_in llama-8b $layers
stand_in llama-70b $layers

tar -C "$out" -cf "$out/traces.tar" traces && tar -C "$out" -cf "$out/logs.tar" logs
rm -r "$out/traces" "$out/logs"
echo "$out: $(ls "$out" | tr '\n' ' ')"
exit $failed
