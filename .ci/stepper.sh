#!/usr/bin/env bash
# Runs the steps of a script one by one or side by side, and says at the end what each took.
# It is sourced.
#
#   start_steps FOLDER MINUTES          at the beginning; after MINUTES the run is ended
#   step NAME MINUTES FUNCTION [STEP…]  runs FUNCTION, if each STEP named after it went well
#   track NAME FUNCTION                 runs FUNCTION, which calls `step`, in the background
#   join NAME                           waits for a track and prints what it said
#   print_steps                         the table; fails if a step failed
#
# A step that fails ends neither the run nor the steps after it, except those that need it.
# Don't call `step` as a condition (`if`, `&&`, `||`): bash would ignore `set -e` in it.

set -euo pipefail

start_steps() {
  steps_folder=$1
  steps_limit=$(($2 * 60))
  steps_began=$SECONDS
  mkdir -p "$steps_folder/done" "$steps_folder/running" "$steps_folder/tracks"
  trap 'end_late_steps' TERM
  set -m
  (
    sleep "$steps_limit"
    : >"$steps_folder/late"
    kill -TERM $$
  ) </dev/null >/dev/null 2>&1 &
  steps_watch=$!
  set +m
}

# To be called on exit: nothing that a step started is left.
end_steps() {
  kill -- "-$steps_watch" 2>/dev/null || true
  end_running_steps
}

end_running_steps() {
  local running
  for running in "$steps_folder"/running/*; do
    if [ -e "$running" ]; then kill -- "-${running##*/}" 2>/dev/null || true; fi
  done
}

end_late_steps() {
  if [ ! -e "$steps_folder/late" ]; then exit 143; fi
  end_running_steps
}

# A step's file is named by when it began, so that the table is in that order.
record_step() {
  printf '%s\t%s\t%s\t%s\n' "$2" "$3" "$4" "$5" >"$steps_folder/done/$1"
}

step_went_well() {
  awk -F '\t' -v name="$1" '$1 == name { found = ($4 == "ok") } END { exit !found }' /dev/null "$steps_folder"/done/*
}

step() {
  local name=$1 allowed=$2 function=$3 code=0 began=$EPOCHREALTIME began_second=$SECONDS needed pid result
  shift 3
  printf '\n== %s\n' "$name"
  for needed in "$@"; do
    if ! step_went_well "$needed"; then
      result="left out: it needs \"$needed\""
      printf '%s\n' "$result"
      record_step "$began" "$name" 0 "$allowed" "$result"
      return 0
    fi
  done
  if [ -e "$steps_folder/late" ]; then
    record_step "$began" "$name" 0 "$allowed" "left out: no time was left"
    return 0
  fi
  # A group of its own, which can be ended with all that it started.
  set -m
  (
    set -euo pipefail
    trap - TERM
    "$function"
  ) </dev/null &
  pid=$!
  set +m
  : >"$steps_folder/running/$pid"
  wait "$pid" || code=$?
  # The end of the run's time interrupts the wait.
  if [ -e "$steps_folder/late" ]; then wait "$pid" || code=$?; fi
  rm -f "$steps_folder/running/$pid"
  if [ "$code" = 0 ]; then
    result=ok
  elif [ -e "$steps_folder/late" ]; then
    result="ended after the $((steps_limit / 60)) minutes that all may take"
  else
    result="FAILED with $code"
    printf '== %s: %s\n' "$name" "$result"
  fi
  record_step "$began" "$name" $((SECONDS - began_second)) "$allowed" "$result"
}

track() {
  set -m
  (
    # The steps of a track are ended, and it says so itself.
    trap '' TERM
    "$2"
  ) </dev/null >"$steps_folder/tracks/$1" 2>&1 &
  printf '%s\n' "$!" >"$steps_folder/tracks/$1.pid"
  set +m
}

join() {
  local pid code=0
  pid=$(<"$steps_folder/tracks/$1.pid")
  wait "$pid" || code=$?
  if [ -e "$steps_folder/late" ]; then wait "$pid" || code=$?; fi
  printf '\n== in parallel: %s\n' "$1"
  cat "$steps_folder/tracks/$1"
  if [ "$code" != 0 ]; then record_step "$EPOCHREALTIME" "$1" 0 0 "FAILED with $code"; fi
}

minutes_and_seconds() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# How many steps did not go well.
failed_steps() {
  awk -F '\t' '$4 != "ok" { failed++ } END { print failed + 0 }' /dev/null "$steps_folder"/done/*
}

print_steps() {
  local file name took allowed result
  printf '\n%-44s %8s %9s  %s\n' step took "may take" result
  for file in "$steps_folder"/done/*; do
    IFS=$'\t' read -r name took allowed result <"$file"
    if [ "$result" = ok ] && [ "$took" -gt $((allowed * 60)) ]; then result="ok, but slower than it may be"; fi
    printf '%-44s %8s %9s  %s\n' "$name" "$(minutes_and_seconds "$took")" "$allowed:00" "$result"
  done
  printf '%-44s %8s %9s\n' "all, some side by side" "$(minutes_and_seconds $((SECONDS - steps_began)))" \
    "$((steps_limit / 60)):00"
  [ "$(failed_steps)" = 0 ]
}
