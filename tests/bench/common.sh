# What the HTTP benches share; read with `source` by a script that has set dir, cpus, seconds and connections.
#
# Servers under test have core 0, load and what stands behind them the last one. CPU time is that of the server's process
# tree in /proc, so that what the load costs does not count.

pids=()
cleanup() {
  for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
need() {
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { echo "$0: $tool is needed (tools/deps bench)" >&2; exit 3; }
  done
  [ "$cpus" -ge 2 ] || { echo "$0: two cores are needed" >&2; exit 3; }
}
# Clock ticks of a process and its children, user and system.
ticks() {
  local sum=0 p
  for p in "$1" $(pgrep -P "$1" || true); do
    sum=$((sum + $(awk '{print $14 + $15}' "/proc/$p/stat")))
  done
  echo "$sum"
}
hz=$(getconf CLK_TCK)
# measure PORT PID PATH [wrk arguments]: "requests-per-CPU-second requests-per-second p50 p99"
measure() {
  local port=$1 pid=$2 path=$3 before after out requests
  shift 3
  before=$(ticks "$pid")
  out=$(taskset -c $((cpus - 1)) wrk -t1 -c"$connections" -d"${seconds}s" --latency "$@" "http://127.0.0.1:$port$path")
  after=$(ticks "$pid")
  requests=$(awk '/requests in/ {print $1}' <<<"$out")
  if grep -qE "Socket errors|Non-2xx" <<<"$out"; then echo "$0: errors on port $port: $out" >&2; exit 1; fi
  awk -v n="$requests" -v t=$((after - before)) -v hz="$hz" -v rate="$(awk '/Requests\/sec/ {print $2}' <<<"$out")" \
    -v p50="$(awk '$1 == "50%" {print $2}' <<<"$out")" -v p99="$(awk '$1 == "99%" {print $2}' <<<"$out")" \
    'BEGIN {printf "%.0f %.0f %s %s\n", n / (t / hz), rate, p50, p99}'
}
median() { sort -g "$1" | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}'; }
# table NAME ...: the round of each that has the median.
table() {
  local s m
  printf '%-24s %16s %10s %10s %10s\n' server "requests/CPU-s" req/s p50 p99
  for s in "$@"; do
    m=$(median "$dir/$s")
    awk -v s="$s" -v m="$m" '$1 == m {printf "%-24s %16s %10s %10s %10s\n", s, $1, $2, $3, $4; exit}' "$dir/$s"
  done
}
