#!/bin/bash
# `baton gateway` beside HAProxy: chat requests with 1 KB of body, relayed to an engine that answers at once, per second of
# the proxy's CPU. Answers are 1 KB of JSON, or streams of 100 events.
#
# HAProxy relays each request once. The gateway does so too with whole engines (one leg); with prefillers and decoders it
# makes two requests of one and hands parameters over (two legs), which HAProxy cannot do.
#
#   tests/bench/gateway.sh [BUILD]     BENCH_SECONDS (default 4), BENCH_ROUNDS (3), BENCH_CONNECTIONS (64)
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release}
seconds=${BENCH_SECONDS:-4} rounds=${BENCH_ROUNDS:-3} connections=${BENCH_CONNECTIONS:-64}
cpus=$(nproc) dir=$(mktemp -d)
source tests/bench/common.sh
trap cleanup EXIT
need wrk haproxy
ninja -C "$build" --quiet tests/bench/gateway_engine src/cli/baton

cat >"$dir/haproxy.cfg" <<CONF
global
  maxconn 4096
  nbthread 1
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 3s
  http-reuse always
frontend in
  bind 127.0.0.1:18103
  default_backend engines
backend engines
  server e0 127.0.0.1:18101
  server e1 127.0.0.1:18102
CONF
start() { # core, log, command ...
  local core=$1 log=$2
  shift 2
  taskset -c "$core" "$@" >"$log" 2>&1 & pids+=($!)
}
start $((cpus - 1)) "$dir/e0" "$build/tests/bench/gateway_engine" 18101
start $((cpus - 1)) "$dir/e1" "$build/tests/bench/gateway_engine" 18102
start 0 "$dir/haproxy.out" haproxy -db -f "$dir/haproxy.cfg"
haproxy_pid=$!
start 0 "$dir/one.out" "$build/src/cli/baton" gateway --port 18104 --worker-urls 127.0.0.1:18101 127.0.0.1:18102
one_pid=$!
start 0 "$dir/two.out" "$build/src/cli/baton" gateway --port 18105 --prefill 127.0.0.1:18101 --decode 127.0.0.1:18102
two_pid=$!

body() { # "", or members that go before the last one
  printf '{"model":"m","messages":[{"role":"user","content":"%s"}],"max_tokens":200%s}' "$(head -c 900 /dev/zero | tr '\0' x)" "$1"
}
for kind in json stream; do
  members=""
  [ $kind = json ] || members=',"stream":true'
  printf 'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\nwrk.body = [[%s]]\n' "$(body "$members")" >"$dir/$kind.lua"
done
path=/v1/chat/completions
for port in 18103 18104 18105; do
  for _ in $(seq 100); do
    curl -s -o "$dir/got" -H 'Content-Type: application/json' -d "$(body '')" "http://127.0.0.1:$port$path" &&
      grep -q finish_reason "$dir/got" && break
    sleep 0.05
  done
  grep -q finish_reason "$dir/got" || { echo "gateway.sh: port $port does not relay" >&2; cat "$dir"/*.out >&2; exit 1; }
done

for ((round = 1; round <= rounds; round++)); do
  for kind in json stream; do
    measure 18103 "$haproxy_pid" $path -s "$dir/$kind.lua" >>"$dir/haproxy-$kind"
    measure 18104 "$one_pid" $path -s "$dir/$kind.lua" >>"$dir/baton-one-leg-$kind"
    measure 18105 "$two_pid" $path -s "$dir/$kind.lua" >>"$dir/baton-two-legs-$kind"
  done
done
printf '%s connections, %s rounds of %s s; %s\n' "$connections" "$rounds" "$seconds" \
  "$(haproxy -v | head -n1 | cut -d' ' -f1-3), $(awk -F': ' '/model name/ {print $2; exit}' /proc/cpuinfo)"
for kind in json stream; do
  echo "-- $kind"
  table haproxy-$kind baton-one-leg-$kind baton-two-legs-$kind
  awk -v h="$(median "$dir/haproxy-$kind")" -v o="$(median "$dir/baton-one-leg-$kind")" -v t="$(median "$dir/baton-two-legs-$kind")" \
    'BEGIN {printf "ratio to haproxy: %.2f with one leg, %.2f with two\n", o / h, t / h}'
done
