#!/usr/bin/env bash
# Explains the day's rows, verifies the results, compares them with last night's, alerts, and keeps the newest runs.
#
#   nightly.sh [CONFIG]          from cron or nightly.timer; CONFIG is jobs/nightly.toml, beside this file
#
#   RUNS=/data/explained         a folder on this machine: one run a day, RUNS/2024-05-31
#   KEEP=14                      finished runs that are kept
#   MAX_DRIFT=0.1                how far the importances may be from last night's (1 - nDCG of their ranking)
#   TRIES=3                      how often a run that stopped half-way (exit code 5) is gone on with
#   ALERT='mail-somebody'        a command that is called with the exit code, the day's folder and a text
#   DAY=2024-05-31               another day than today (UTC): a night that failed is gone on with
#
# Exit codes are batch-explain's own: 0 done, 1 a bug, 2 nothing started, 3 bad rows, 4 drift (the results are complete),
# 5 stopped half-way (start it again), 6 verify found something wrong.
set -uo pipefail

config=${1:-$(dirname "$0")/nightly.toml}
runs=${RUNS:-/data/explained}
keep=${KEEP:-14}
drift=${MAX_DRIFT:-0.1}
tries=${TRIES:-3}
day=${DAY:-$(date -u +%F)}
output=$runs/$day
mkdir -p "$runs" || exit 2

tell() {
  echo "nightly: $2" >&2
  if [[ -n ${ALERT:-} ]]; then command $ALERT "$1" "$output" "$2"; fi
}

finished_runs() { # the newest first
  find "$runs" -mindepth 2 -maxdepth 2 -path "$runs/????-??-??/_SUCCESS" -printf '%h\n' | sort -r
}

last=$(finished_runs | awk -v day="$output" '$0 < day' | head -n 1)
options=(--config "$config" --output "$output" --resume)
if [[ -n $last ]]; then options+=(--baseline "$last" --max-drift "$drift"); fi

for ((try = 1; ; try++)); do
  batch-explain run "${options[@]}"
  code=$?
  if ((code != 5 || try >= tries)); then break; fi
  echo "nightly: stopped half-way, going on (try $((try + 1)) of $tries)" >&2
done

case $code in
  0) ;;
  4) tell 4 "the importances have drifted from those of $last; the results are complete" ;;
  5) tell 5 "stopped half-way $tries times; what is done is kept: mend what the log says and start it again" ;;
  *) tell "$code" "no results today; the log says what to do" ;;
esac
if ((code != 0 && code != 4)); then exit "$code"; fi

batch-explain verify "$output"
wrong=$?
if ((wrong)); then
  tell "$wrong" "verify finds the results damaged; nothing older was removed"
  exit "$wrong"
fi

finished_runs | tail -n +$((keep + 1)) | while read -r old; do
  echo "nightly: removing $old" >&2
  rm -rf -- "$old"
done
exit "$code"
