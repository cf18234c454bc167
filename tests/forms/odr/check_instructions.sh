#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_instructions.sh OBJDUMP PROGRAM: names every function of PROGRAM that has an instruction above
# the baseline (a VEX or EVEX one: its mnemonic begins with v, or it names a ymm, zmm or mask
# register) although it belongs neither to a SIMD target's namespace nor to code that was compiled
# for more on purpose: nibble's namespaces avx2..., avx512... and the functions of those files.
# Functions that are local to a file are not shared. hwy::Abort saves vector registers only if it was
# called with any.
set -eu
{
  "$1" -t "$2"
  "$1" -d -C --no-show-raw-insn "$2"
} | awk '
  $2 == "l" { is_local[$1] = 1 }
  /^[0-9a-f]+ <.*>:$/ {
    name = $0
    sub(/^[0-9a-f]+ </, "", name)
    sub(/>:$/, "", name)
    allowed = is_local[$1] || name ~ /::N_[A-Z0-9_]+::/ || name ~ /v0_1_avx/ || name ~ /answer_avx/ ||
              name ~ /^hwy::(Abort|Warn)\(/
    reported = 0
    next
  }
  !allowed && !reported && $1 ~ /:$/ && ($2 ~ /^v[a-z]/ && $2 !~ /^ver[rw]$/ || /%[yz]mm|%k[0-7]/) {
    print name ": " $0
    reported = 1
    n++
  }
  { lines++ }
  END {
    if (lines < 1000) { print "nothing was disassembled"; exit 2 }
    exit n > 0
  }'
