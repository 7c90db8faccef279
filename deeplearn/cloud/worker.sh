#!/usr/bin/env bash
# One worker of a TPU: worker.sh install | start COMMAND... | status | log | stop, which `deeplearn cloud` calls over ssh,
# and worker.sh run COMMAND..., which jobset.yaml does.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
place=${HOME:-/tmp}/deeplearn-run # the command's lock, log and exit status

# The lock is the command's for as long as it lives, and the kernel frees it however it ends. Whoever asks shares it for
# an instant, for which a command that begins waits.
running() { ! flock --shared --nonblock "$place/lock" true; }

# uv brings a Python that is new enough; those of the images are not. The lock file first, then what it leaves out.
install() {
  cd "$project"
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --clear --python 3.12 .venv
  python3 -m uv pip install --quiet --require-hashes --requirement requirements.lock
  python3 -m uv pip install --quiet --editable '.[tpu]'
}

# In the foreground, and 143 if it was told to end: what was told to has saved, and is not done.
run() {
  trap 'stopped=143; kill -TERM "$!"' TERM
  "$@" &
  wait "$!" && code=0 || code=$?
  while kill -0 "$!" 2> /dev/null; do wait "$!" || true; done # a signal ends a wait, and may come again
  exit "${stopped:-$code}"
}

# Outlives the connection. A machine that is shut down sends SIGTERM, after which a run saves and ends as if it were
# done: the shell beside it notes that it was not.
start() {
  mkdir -p "$place"
  if running; then stop; fi
  rm -f "$place/exit" "$place/asked" "$place/group"
  cd "$project"
  # shellcheck disable=SC2016 # the inner shell expands
  setsid --fork flock --timeout 60 "$place/lock" bash -c '
    trap "stopped=143" TERM
    echo "$PPID" > "$1/group"
    "${@:2}"; code=$?
    echo "${stopped:-$code}" > "$1/exit.new" && mv "$1/exit.new" "$1/exit"
  ' bash "$place" env PATH="$project/.venv/bin:$PATH" PYTHONUNBUFFERED=1 "$@" >> "$place/log" 2>&1 < /dev/null
  for _ in $(seq 700); do # longer than flock waits; what has not begun by then is lost
    if [ -e "$place/exit" ] || { [ -s "$place/group" ] && running; }; then break; fi
    sleep 0.1
  done
  touch "$place/started"
}

# One line: worker HOST STATE LAST-LINE-OF-THE-LOG. The state is new, running, lost, stopped or an exit status. The log
# may hold any bytes: only its last 4096 are read, for a line can be of any length, and control characters are deleted,
# for the line must stay one line.
status() {
  code=$(cat "$place/exit" 2> /dev/null || true)
  case $code in *[!0-9]*) code= ;; esac # a damaged file
  if [ ! -e "$place/started" ]; then state=new
  elif running; then state=running
  elif [ -n "$code" ] && [ "$code" != 143 ]; then state=$code
  elif [ -e "$place/asked" ]; then state=stopped
  else state=${code:-lost}; fi
  last=$(tail -c 4096 "$place/log" 2> /dev/null | LC_ALL=C tr -s '\r' '\n' | tail -n 1 |
    LC_ALL=C tr -d '\000-\010\013-\037\177' || true)
  printf 'worker %s %s %s\n' "$(hostname | LC_ALL=C tr -cd 'A-Za-z0-9._-')" "$state" "${last:0:300}"
}

log() { tail -c 100000 "$place/log" | tail -n 30; }

# A run saves and ends; what does not within a minute is killed.
stop() {
  mkdir -p "$place"
  touch "$place/asked"
  for signal in TERM KILL; do
    if running; then kill "-$signal" -- "-$(cat "$place/group")" || true; fi
    for _ in $(seq 600); do
      if ! running; then return; fi
      sleep 0.1
    done
  done
}

"$@"
