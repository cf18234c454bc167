#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# ended_test.sh QUANTIZE FOLDER INT|TERM|XFSZ: ends quantize with a signal, or by a limit on the size of
# files, while it writes. Its exit code must say so; the old file must be there, and nothing else.
set -eu
program=$1 folder=$2 how=$3
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"

# 64 tensors of 2^24 zeros each, which take no space on the disk: some seconds of work.
{
  printf 'GGUF\003\000\000\000\100\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000'
  i=0
  while [ $i -lt 64 ]; do
    # Name (two digits), two dimensions of 4096, type f32, offset i * 2^26.
    printf '\002\000\000\000\000\000\000\000%02d\002\000\000\000' $i
    printf '\000\020\000\000\000\000\000\000\000\020\000\000\000\000\000\000\000\000\000\000'
    printf "\\000\\000\\000\\$(printf %03o $((i * 4)))\\000\\000\\000\\000"
    i=$((i + 1))
  done
} > in.gguf
truncate -s 4100M in.gguf
echo old > out.gguf

if [ "$how" = XFSZ ]; then
  want=1
  (ulimit -f 100; exec "$program" in.gguf out.gguf --format q8_0 --threads 1) && code=0 || code=$?
else
  want=130
  "$program" in.gguf out.gguf --format q8_0 --threads 1 &
  sleep 1
  kill -"$how" $!
  wait $! && code=0 || code=$?
fi
found=$(ls -A | tr '\n' ' ')
content=$(cat out.gguf | head -c 100)
rm -rf "$folder"
[ "$code" = $want ] || { echo "exit code $code, not $want"; exit 1; }
[ "$found" = 'in.gguf out.gguf ' ] || { echo "there are $found"; exit 1; }
[ "$content" = old ] || { echo "out.gguf has changed"; exit 1; }
