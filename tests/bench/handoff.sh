#!/bin/bash
# KV from one engine's cache to another's beside memcpy, and beside UCX's own perftest on this machine: one-sided reads of a
# megabyte through shared memory and over TCP.
#
#   tests/bench/handoff.sh BUILD-DIR [SECONDS]
set -euo pipefail
build=$1 seconds=${2:-1}
ninja -C "$build" --quiet tests/bench/bench_handoff
"$build/tests/bench/bench_handoff" "$seconds"
command -v ucx_perftest >/dev/null || { echo "handoff.sh: ucx_perftest is needed (tools/deps bench)" >&2; exit 3; }
server=""
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true' EXIT
perftest() { # NAME TLS TEST PORT
  UCX_TLS=$2 ucx_perftest -p "$4" >/dev/null 2>&1 &
  server=$!
  for _ in $(seq 100); do
    ss -Hltn "sport = :$4" | grep -q . && break
    sleep 0.05
  done
  UCX_TLS=$2 ucx_perftest 127.0.0.1 -p "$4" -t "$3" -s 1048576 -n "$5" -w 100 -f 2>/dev/null | tail -n 1 |
    awk -v name="$1" '{printf "%-34s %27s %8.2f GiB/s\n", name, "1 MiB a read", $5 / 1024}'
  wait "$server" || true
  server=""
}
perftest "ucx_perftest, memory of a host" posix,cma,self ucp_get 21337 20000
perftest "ucx_perftest, TCP" tcp,self ucp_get 21338 500
perftest "ucx_perftest, TCP, messages" tcp,self ucp_am_bw 21339 2000

# Time to the first token, of 40 prompts of about 1,500 tokens, each its own: one engine, the same behind the gateway, and a
# prefiller and a decoder behind the gateway, in both orders. All on this machine, so that the way of the request is what differs.
make -s build
baton=build/baton
dir=$(mktemp -d /tmp/baton-handoff-XXXXXX)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; wait || true; rm -rf "$dir"' EXIT
serve() { # PORT [OPTIONS]
  "$baton" serve models/baton-tiny --host 127.0.0.1 --port "$1" --kv-cache-blocks 512 --no-enable-prefix-caching "${@:2}" \
    2>"$dir/$1.log" &
  pids+=($!)
}
gateway() { # PORT OPTIONS
  "$baton" gateway --port "$1" "${@:2}" 2>"$dir/$1.log" &
  pids+=($!)
}
first_token() { # NAME PORT
  local i prompt
  for _ in $(seq 200); do curl -sf "http://127.0.0.1:$2/health" >/dev/null && break; sleep 0.05; done
  for i in $(seq 45); do # the first five warm up
    prompt=$(seq -s' ' "$((1000 + i))" "$((1370 + i))")
    "$baton" complete "http://127.0.0.1:$2" "$prompt" --max-tokens 2 --stats 2>&1 >/dev/null
  done | tail -n 40 | sed 's/.*TTFT \([0-9.]*\) ms.*/\1/' | sort -g |
    awk -v name="$1" '{v[NR] = $1} END {printf "%-34s %27s %8.1f ms\n", name, "TTFT, median of 40", v[int((NR + 1) / 2)]}'
}
serve 21400
gateway 21401 --worker-urls http://127.0.0.1:21400
serve 21402 --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_producer","kv_port":21405}'
serve 21403 --kv-transfer-config '{"kv_connector":"NixlConnector","kv_role":"kv_consumer"}'
gateway 21404 --prefill http://127.0.0.1:21402 --decode http://127.0.0.1:21403
serve 21406 --kv-transfer-config '{"kv_connector":"MooncakeLayerwiseConnector","kv_role":"kv_producer"}'
serve 21407 --kv-transfer-config '{"kv_connector":"MooncakeLayerwiseConnector","kv_role":"kv_consumer","kv_port":21408}'
gateway 21409 --connector push --prefill http://127.0.0.1:21406 --decode http://127.0.0.1:21407
first_token "one engine" 21400
first_token "one engine, gateway" 21401
first_token "prefiller, decoder, gateway" 21404
first_token "the same, pushed" 21409
