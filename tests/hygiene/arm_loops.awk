# SPDX-License-Identifier: Apache-2.0
#
# Counts the instructions of inner loops: reads what `objdump -d -C --no-show-raw-insn` prints for 64-bit
# ARM. For each function that arm_loops.txt names it looks for the loop (a branch backwards) with the
# most products of 8-bit integers. Prints the number of its instructions per 32 weights and row of
# inputs, and how many of them keep vector registers in memory; ends with 1 if a number is above its
# limit, or a register in memory. What is out of line, as prefetches are, is not counted.

BEGIN {
  products["sdot"] = products["usdot"] = 16
  products["smmla"] = products["usmmla"] = 32
  products["smlal"] = products["smlal2"] = products["smull"] = products["smull2"] = 8
}

FNR == NR {
  if ($1 != "" && $1 !~ /^#/) limit[$2] = $1
  next
}

/^[0-9a-f]+ <.*>:$/ {
  end_of_function()
  key = ""
  n = 0
  name = $0
  gsub(/nibble::v[0-9a-z_]+::|quant::| /, "", name)
  for (k in limit) {
    if (name ~ k) key = k
  }
  next
}

key != "" && /^ *[0-9a-f]+:\t/ {
  address = $1
  sub(/:/, "", address)
  ++n
  at[address] = n
  operation[n] = $2
  uses_memory[n] = $0 ~ /\t(ldr|str|ldp|stp|ldur|stur)\t[qds][0-9].*\[sp/
  if ($2 ~ /^(b|b\..*|cbn?z|tbn?z)$/ && match($0, /[0-9a-f]+ </)) {
    to = substr($0, RSTART, RLENGTH - 2)
    if (to in at) consider(at[to], n)
  }
}

function consider(first, last,   i, sum, in_memory) {
  for (i = first; i <= last; ++i) {
    sum += products[operation[i]]
    in_memory += uses_memory[i]
  }
  if (sum > best || (sum == best && last - first + 1 < best_length)) {
    best = sum
    best_length = last - first + 1
    best_in_memory = in_memory
  }
}

function end_of_function(   each) {
  if (key != "" && best > 0) {
    each = best_length / (best / 32)
    printf "%s: %.2f instructions (at most %s), %d use of the stack\n", key, each, limit[key],
           best_in_memory
    seen[key] = 1
    if (each > limit[key] + 0 || best_in_memory > 0) failed = 1
  }
  best = best_length = 0
  split("", at)
}

END {
  end_of_function()
  for (k in limit) {
    if (!(k in seen)) {
      printf "%s: not found\n", k
      failed = 1
    }
  }
  exit failed
}
