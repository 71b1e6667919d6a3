#!/bin/bash
# A whole model of DeepSeek-V2-Lite's layer shapes, five layers, in bf16, fp8 and W8A8 beside what the machine can do. Needs 7 GB
# of disk under TMPDIR and 14 GB of memory.
#
#   tests/bench/model.sh BUILD-DIR [LAYERS]
set -euo pipefail
build=$1 layers=${2:-5}
ninja -C "$build" --quiet tests/bench/bench_model
dir=$(mktemp -d "${TMPDIR:-/tmp}/baton-model-XXXXXX")
trap 'rm -rf "$dir"' EXIT
for format in bf16 fp8 int8; do
  tools/synthetic "$dir/v2-lite-$format" --format "$format" --layers "$layers"
  "$build/tests/bench/bench_model" --threads "$(nproc)" "$dir/v2-lite-$format"
  [ "$format" = int8 ] || "$build/tests/bench/bench_model" --threads "$(nproc)" --dot "$dir/v2-lite-$format"
  rm -rf "$dir/v2-lite-$format"
done
