# SPDX-License-Identifier: Apache-2.0
#
#   awk -f single_header.awk include > somewhere/nibble/nibble.hpp
#
# Joins all headers of the folder include/nibble to one. It belongs on the include path under the name
# of the front door, nibble/nibble.hpp (another name: define NIBBLE_SINGLE_HEADER). For any POSIX awk.
#
# Two kinds of headers: a .hpp is there once, in front of what includes it first. The per-target code,
# kernels-inl.h and what it includes, is a part of its own at the top of the result: the pass over the
# targets includes the result again once per target, with NIBBLE_SINGLE_HEADER_PASS defined, and sees
# nothing but that part.

BEGIN {
  root = ARGV[1]
  umbrella = "nibble/kernels/kernels-inl.h"
  guard = "NIBBLE_SINGLE_HEADER_GUARD_"

  expand("nibble/nibble.hpp", 0)
  command = "cd '" root "' && find nibble -name '*.hpp' | LC_ALL=C sort"
  while ((command | getline header) > 0) expand(header, 0)
  expand_per_target(umbrella)

  match(once, /#define NIBBLE_VERSION "[0-9.]+/)
  version = substr(once, RSTART + 24, RLENGTH - 24)
  print "// SPDX-License-Identifier: Apache-2.0"
  print "//"
  print "// nibble " version " in one header, made by packaging/single_header/single_header.awk: edit the"
  print "// headers that it is made of. It includes itself by name, as nibble/nibble.hpp or as what"
  print "// NIBBLE_SINGLE_HEADER says."
  print "#ifdef NIBBLE_SINGLE_HEADER_PASS\n" per_target
  print "#elif !defined(NIBBLE_SINGLE_HEADER_INCLUDED)\n#define NIBBLE_SINGLE_HEADER_INCLUDED"
  print "#ifndef NIBBLE_SINGLE_HEADER\n#define NIBBLE_SINGLE_HEADER \"nibble/nibble.hpp\"\n#endif\n" once
  print "#endif  // NIBBLE_SINGLE_HEADER_PASS"
}

# The name in an #include "..." of ours, else "".
function included(line) {
  if (line !~ /^#[ ]*include "nibble\//) return ""
  gsub(/^[^"]*"|".*$/, "", line)
  return line
}

# +1 where a conditional starts, -1 where it ends.
function nesting(line) {
  if (line ~ /^#[ ]*if/) return 1
  return line ~ /^#[ ]*endif/ ? -1 : 0
}

# All lines of a file as one string.
function read(name,    path, line, text, status) {
  path = root "/" name
  while ((status = (getline line < path)) > 0) {
    if (line !~ /^#pragma once/ && line !~ /SPDX-License-Identifier/) text = text line "\n"
  }
  if (status < 0) {
    print "single_header.awk: cannot read " path > "/dev/stderr"
    exit 1
  }
  close(path)
  return text
}

# Appends a .hpp to `once`, what it needs first. Inside a conditional (depth > 0) it may be skipped
# there and needed later, so it comes again; a guard lets the compiler see it once.
function expand(name, depth,    lines, n, i, next_name, guard_name, has_pass) {
  if (name in is_done) return
  if (depth == 0) is_done[name] = 1
  guard_name = guard toupper(name)
  gsub(/[^A-Z0-9_]/, "_", guard_name)
  n = split(read(name), lines, "\n")
  # What the per-target code needs cannot be in it: that would be inside of a target's pass.
  for (i = 1; i <= n; ++i) {
    if (included(lines[i]) ~ /-inl\.h$/) expand_needs(included(lines[i]), depth)
  }
  once = once "#ifndef " guard_name "\n#define " guard_name "  // " name "\n"
  for (i = 1; i <= n; ++i) {
    depth += nesting(lines[i])
    next_name = included(lines[i])
    if (next_name ~ /-inl\.h$/) {
      once = once "#include NIBBLE_SINGLE_HEADER\n"
    } else if (next_name != "") {
      expand(next_name, depth)
    } else if (lines[i] ~ /^#define HWY_TARGET_INCLUDE /) {
      once = once "#define NIBBLE_SINGLE_HEADER_PASS\n#define HWY_TARGET_INCLUDE NIBBLE_SINGLE_HEADER\n"
      has_pass = 1
    } else {
      once = once lines[i] "\n"
    }
  }
  if (has_pass) once = once "#undef NIBBLE_SINGLE_HEADER_PASS\n"
  once = once "#endif  // " name "\n"
}

# Expands the .hpp files that an -inl.h file and those below it include.
function expand_needs(name, depth,    lines, n, i, next_name) {
  if ((name, "needs") in is_done) return
  is_done[name, "needs"] = 1
  n = split(read(name), lines, "\n")
  for (i = 1; i <= n; ++i) {
    next_name = included(lines[i])
    if (next_name ~ /-inl\.h$/) expand_needs(next_name, depth)
    else if (next_name != "") expand(next_name, depth)
  }
}

# Appends an -inl.h file to `per_target`, those that it includes in its place.
function expand_per_target(name,    lines, n, i, next_name) {
  if ((name, "text") in is_done) return
  is_done[name, "text"] = 1
  n = split(read(name), lines, "\n")
  for (i = 1; i <= n; ++i) {
    next_name = included(lines[i])
    if (next_name ~ /-inl\.h$/) expand_per_target(next_name)
    else if (next_name == "") per_target = per_target lines[i] "\n"
  }
}
