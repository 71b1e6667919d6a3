#!/bin/bash
# A whole model of DeepSeek-V2-Lite's layer shapes, five layers, in bf16, fp8 and W8A8 beside what the machine can do. Needs 7 GB
# of disk under TMPDIR and 14 GB of memory.
#
#   tests/bench/model.sh BUILD-DIR [LAYERS]
#
# LLAMA_BUILD=DIR, a build folder of llama.cpp with bin/llama-bench and bin/llama-batched-bench: W8A8 and bf16 beside its Q8_0 on
# the same shapes instead, in turns, medians of BENCH_ROUNDS (3) rounds.
set -euo pipefail
build=$1 layers=${2:-5} threads=$(nproc)
ninja -C "$build" --quiet tests/bench/bench_model
dir=$(mktemp -d "${TMPDIR:-/tmp}/baton-model-XXXXXX")
trap 'rm -rf "$dir"' EXIT

beside_llama() {
  local llama=$LLAMA_BUILD gguf="$dir/v2-lite-q8_0/model.gguf" what
  for format in bf16 int8 q8_0; do tools/synthetic "$dir/v2-lite-$format" --format "$format" --layers "$layers"; done
  for ((i = 0; i < ${BENCH_ROUNDS:-3}; i++)); do
    "$build/tests/bench/bench_model" --threads "$threads" "$dir/v2-lite-int8" >> "$dir/int8"
    "$build/tests/bench/bench_model" --threads "$threads" --dot "$dir/v2-lite-bf16" >> "$dir/bf16"
    "$llama/bin/llama-bench" -m "$gguf" -t "$threads" -p 512 -n 32 -r 3 -o jsonl 2>/dev/null >> "$dir/llama"
    "$llama/bin/llama-batched-bench" -m "$gguf" -t "$threads" -c 4096 -b 512 -npp 8 -ntg 32 -npl 32 --output-format jsonl \
      2>/dev/null | grep speed_tg >> "$dir/llama"
  done
  # The medians of a column that grep or sed has cut out.
  median() { sort -g | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
  printf '\n| tokens/s, medians | llama.cpp Q8_0 | W8A8 | ratio | bf16, dot | ratio |\n|---|---|---|---|---|---|\n'
  for what in "decode, 1 sequence|\"n_gen\": 32.*\"avg_ts\"" "prefill of 512|\"n_prompt\": 512.*\"avg_ts\"" \
    "decode, 32 sequences|\"speed_tg\""; do
    awk -v what="${what%%|*}" -v l="$(grep -oE "${what#*|}: [0-9.]+" "$dir/llama" | grep -oE '[0-9.]+$' | median)" \
      -v a="$(grep "${what%%|*}" "$dir/int8" | awk -F'|' '{print $4}' | median)" \
      -v b="$(grep "${what%%|*}" "$dir/bf16" | awk -F'|' '{print $4}' | median)" \
      'BEGIN {printf "| %s | %.1f | %.1f | %.2f | %.1f | %.2f |\n", what, l, a, a / l, b, b / l}'
  done
}

if [ -n "${LLAMA_BUILD:-}" ]; then
  beside_llama
  exit
fi
for format in bf16 fp8 int8; do
  tools/synthetic "$dir/v2-lite-$format" --format "$format" --layers "$layers"
  "$build/tests/bench/bench_model" --threads "$threads" "$dir/v2-lite-$format"
  [ "$format" = int8 ] || "$build/tests/bench/bench_model" --threads "$threads" --dot "$dir/v2-lite-$format"
  rm -rf "$dir/v2-lite-$format"
done
