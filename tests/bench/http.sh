#!/bin/bash
# http/ beside nginx: plain requests for 1 KB over kept connections, per second of server CPU.
#
# nginx serves the same bytes with its access log off: from memory (`return`), and from a file (open_file_cache, sendfile).
# Rounds are interleaved and medians taken, because machines are noisy.
#
#   tests/bench/http.sh [BUILD]     BENCH_SECONDS (default 4), BENCH_ROUNDS (3), BENCH_CONNECTIONS (64), BENCH_BYTES (1024)
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release}
seconds=${BENCH_SECONDS:-4} rounds=${BENCH_ROUNDS:-3} connections=${BENCH_CONNECTIONS:-64} bytes=${BENCH_BYTES:-1024}
cpus=$(nproc) dir=$(mktemp -d)
source tests/bench/common.sh
trap cleanup EXIT
need wrk nginx
ninja -C "$build" --quiet tests/bench/http_hello

head -c "$bytes" /dev/zero | tr '\0' x >"$dir/x"
cat >"$dir/nginx.conf" <<CONF
worker_processes 1; daemon off; pid $dir/nginx.pid; error_log $dir/error.log crit;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000; sendfile on; tcp_nodelay on; open_file_cache max=16; default_type application/octet-stream;
  client_body_temp_path $dir/t1; proxy_temp_path $dir/t2; fastcgi_temp_path $dir/t3; uwsgi_temp_path $dir/t4; scgi_temp_path $dir/t5;
  server { listen 127.0.0.1:18091 backlog=4096; location / { return 200 "$(cat "$dir/x")"; } }
  server { listen 127.0.0.1:18092 backlog=4096; root $dir; }
}
CONF
chmod 755 "$dir"
taskset -c 0 nginx -c "$dir/nginx.conf" -p "$dir" 2>"$dir/nginx.out" & pids+=($!)
nginx_pid=$!
taskset -c 0 "$build/tests/bench/http_hello" 18090 "$bytes" & pids+=($!)
hello_pid=$!
for port in 18090 18091 18092; do
  for _ in $(seq 100); do curl -s -o "$dir/got" "http://127.0.0.1:$port/x" && break; done
  cmp -s "$dir/x" "$dir/got" || { echo "http.sh: port $port does not serve the bytes" >&2; exit 1; }
done

for ((round = 1; round <= rounds; round++)); do
  measure 18090 "$hello_pid" /x >>"$dir/baton"
  measure 18091 "$nginx_pid" /x >>"$dir/nginx-memory"
  measure 18092 "$nginx_pid" /x >>"$dir/nginx-file"
done
printf '%s bytes, %s connections, %s rounds of %s s; %s\n' "$bytes" "$connections" "$rounds" "$seconds" \
  "$(nginx -v 2>&1 | sed 's/.*: //'), $(awk -F': ' '/model name/ {print $2; exit}' /proc/cpuinfo)"
table baton nginx-memory nginx-file
awk -v b="$(median "$dir/baton")" -v m="$(median "$dir/nginx-memory")" -v f="$(median "$dir/nginx-file")" \
  'BEGIN {printf "ratio to nginx: %.2f (from memory), %.2f (from a file)\n", b / m, b / f}'
