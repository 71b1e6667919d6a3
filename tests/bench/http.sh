#!/bin/bash
# http/ beside nginx: plain requests for 1 KB over kept connections, per second of server CPU.
#
# The server has one core, wrk the other. nginx serves the same bytes with its access log off: from memory (`return`), and
# from a file (open_file_cache, sendfile). Rounds are interleaved and medians taken, because machines are noisy; CPU time
# is that of the server's process tree in /proc, so that what the load costs does not count.
#
#   tests/bench/http.sh [BUILD]     BENCH_SECONDS (default 4), BENCH_ROUNDS (3), BENCH_CONNECTIONS (64), BENCH_BYTES (1024)
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build/release}
seconds=${BENCH_SECONDS:-4} rounds=${BENCH_ROUNDS:-3} connections=${BENCH_CONNECTIONS:-64} bytes=${BENCH_BYTES:-1024}
command -v wrk >/dev/null && command -v nginx >/dev/null || { echo "http.sh: wrk and nginx are needed (tools/deps bench)" >&2; exit 3; }
ninja -C "$build" --quiet tests/bench/http_hello
cpus=$(nproc)
[ "$cpus" -ge 2 ] || { echo "http.sh: two cores are needed" >&2; exit 3; }

dir=$(mktemp -d)
pids=()
cleanup() {
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap cleanup EXIT

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

# Clock ticks of a process and its children, user and system.
ticks() {
  local sum=0 p
  for p in "$1" $(pgrep -P "$1" || true); do
    sum=$((sum + $(awk '{print $14 + $15}' "/proc/$p/stat")))
  done
  echo "$sum"
}
hz=$(getconf CLK_TCK)
# "requests-per-CPU-second requests-per-second p50 p99"
measure() {
  local before after out requests
  before=$(ticks "$2")
  out=$(taskset -c $((cpus - 1)) wrk -t1 -c"$connections" -d"${seconds}s" --latency "http://127.0.0.1:$1/x")
  after=$(ticks "$2")
  requests=$(awk '/requests in/ {print $1}' <<<"$out")
  if grep -qE "Socket errors|Non-2xx" <<<"$out"; then echo "http.sh: errors on port $1: $out" >&2; exit 1; fi
  awk -v n="$requests" -v t=$((after - before)) -v hz="$hz" -v rate="$(awk '/Requests\/sec/ {print $2}' <<<"$out")" \
    -v p50="$(awk '$1 == "50%" {print $2}' <<<"$out")" -v p99="$(awk '$1 == "99%" {print $2}' <<<"$out")" \
    'BEGIN {printf "%.0f %.0f %s %s\n", n / (t / hz), rate, p50, p99}'
}
median() { sort -g "$1" | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }

for ((round = 1; round <= rounds; round++)); do
  measure 18090 "$hello_pid" >>"$dir/baton"
  measure 18091 "$nginx_pid" >>"$dir/nginx-memory"
  measure 18092 "$nginx_pid" >>"$dir/nginx-file"
done
printf '%s bytes, %s connections, %s rounds of %s s; %s\n' "$bytes" "$connections" "$rounds" "$seconds" \
  "$(nginx -v 2>&1 | sed 's/.*: //'), $(awk -F': ' '/model name/ {print $2; exit}' /proc/cpuinfo)"
printf '%-14s %16s %10s %10s %10s\n' server "requests/CPU-s" req/s p50 p99
for s in baton nginx-memory nginx-file; do
  m=$(median "$dir/$s")
  awk -v s=$s -v m="$m" '$1 == m {printf "%-14s %16s %10s %10s %10s\n", s, $1, $2, $3, $4; exit}' "$dir/$s"
done
awk -v b="$(median "$dir/baton")" -v m="$(median "$dir/nginx-memory")" -v f="$(median "$dir/nginx-file")" \
  'BEGIN {printf "ratio to nginx: %.2f (from memory), %.2f (from a file)\n", b / m, b / f}'
