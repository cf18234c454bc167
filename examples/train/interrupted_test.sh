#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# interrupted_test.sh PROGRAM OUT: a training that is interrupted ends with 130 and leaves a
# checkpoint, from which the next start goes on; another training refuses it.
set -eu
program=$1
out=$2
rm -f "$out" "$out.checkpoint"
options="--layers 1 --dim 64 --heads 2 --kv-heads 1 --ffn 64 --sequences 4 --steps 1000000 --every 0 --threads 1"

# Starts it, interrupts it after a second, and sets `code` and `said`.
interrupted() {
  # shellcheck disable=SC2086
  "$program" "$out" $options "$@" >"$out.log" 2>&1 &
  job=$!
  sleep 1
  kill -INT $job 2>/dev/null || true
  code=0
  wait $job || code=$?
  said=$(cat "$out.log")
}

interrupted
[ $code = 130 ] || { echo "exit code $code: $said"; exit 1; }
[ -s "$out.checkpoint" ] || { echo "no checkpoint: $said"; exit 1; }
interrupted
case $said in *"goes on at step"*) ;; *) echo "does not go on: $said"; exit 1 ;; esac
[ $code = 130 ] || { echo "exit code $code: $said"; exit 1; }
interrupted --rate 1e-4
case $said in *schedule*) ;; *) echo "goes on with another rate: $said"; exit 1 ;; esac
[ $code = 1 ] || { echo "exit code $code: $said"; exit 1; }
[ -s "$out.checkpoint" ] || { echo "the checkpoint is gone"; exit 1; }
rm -f "$out.checkpoint"
