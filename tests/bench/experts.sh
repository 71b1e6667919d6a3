#!/bin/bash
# A batch of 32 that decodes on ranks that share experts, through memory and over TCP, beside one process with as many threads.
# Needs 1.2 GB of disk under TMPDIR and 6 GB of memory.
#
#   tests/bench/experts.sh BUILD-DIR [LAYERS]
set -euo pipefail
build=$1 layers=${2:-3}
ninja -C "$build" --quiet tests/bench/bench_experts
dir=$(mktemp -d "${TMPDIR:-/tmp}/baton-experts-XXXXXX")
trap 'rm -rf "$dir"' EXIT
tools/synthetic "$dir/v2-lite-int8" --format int8 --layers "$layers" --vocab 1024
"$build/tests/bench/bench_experts" --threads "$(nproc)" "$dir/v2-lite-int8" 1 2:tcp 2 4:tcp 4
"$build/tests/bench/bench_experts" --threads "$(nproc)" models/baton-tiny 1 2:tcp 2 4:tcp 4
