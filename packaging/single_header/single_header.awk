# SPDX-License-Identifier: Apache-2.0
#
#   awk -f single_header.awk include > somewhere/nibble/nibble.hpp
#
# Joins all headers of the folder include/nibble into one. Put it on the include path under the name
# nibble/nibble.hpp (for another name define NIBBLE_SINGLE_HEADER). For any POSIX awk.
#
# There are two kinds of headers. A .hpp appears once, before the first header that includes it. The
# per-target code (kernels-inl.h and what it includes) is a separate part at the top of the result:
# the pass over the targets includes the result again once per target, with
# NIBBLE_SINGLE_HEADER_PASS defined, and then sees only that part.
#
# Split form: the names of nibble/nibble.hpp are declared everywhere; the other headers are only
# where the kernels are (NIBBLE_IMPLEMENTATION).

BEGIN {
  root = ARGV[1]
  umbrella = "nibble/kernels/kernels-inl.h"
  guard = "NIBBLE_SINGLE_HEADER_GUARD_"

  # The conditions under which a part of the result is compiled. Each includes the parts above it.
  kAlways = 0
  kWithKernels = 1
  kImplementation = 2
  kSometimes = 3  # under any other condition, which may differ: includes only kAlways
  only_with_kernels = "#if !NIBBLE_DECLARATIONS_ONLY"
  where_of[only_with_kernels] = kWithKernels
  where_of["#if defined(NIBBLE_IMPLEMENTATION)"] = kImplementation

  expand("nibble/core/config.hpp", kAlways)  # defines NIBBLE_DECLARATIONS_ONLY
  expand("nibble/nibble.hpp", kAlways)
  emit(only_with_kernels)
  # Without the headers that need MPI and OpenSSL, which not all machines have.
  command = "cd '" root "' && find nibble -name '*.hpp' ! -name federated_mpi.hpp" \
            " ! -name openssl_crypto.hpp | LC_ALL=C sort"
  while ((command | getline header) > 0) expand(header, kWithKernels)
  emit("#endif")
  expand_per_target(umbrella)

  config = read("nibble/core/config.hpp")
  match(config, /#define NIBBLE_VERSION "[0-9.]+/)
  version = substr(config, RSTART + 24, RLENGTH - 24)
  print "// SPDX-License-Identifier: Apache-2.0"
  print "//"
  print "// nibble " version " in one header, made by packaging/single_header/single_header.awk: edit the"
  print "// headers that it is made of. It includes itself by name, as nibble/nibble.hpp or as what"
  print "// NIBBLE_SINGLE_HEADER says."
  print "#ifdef NIBBLE_SINGLE_HEADER_PASS\n" per_target
  print "#elif !defined(NIBBLE_SINGLE_HEADER_INCLUDED)\n#define NIBBLE_SINGLE_HEADER_INCLUDED"
  print "#ifndef NIBBLE_SINGLE_HEADER\n#define NIBBLE_SINGLE_HEADER \"nibble/nibble.hpp\"\n#endif"
  for (line = 1; line <= n_once; ++line) print once[line]
  print "#endif  // NIBBLE_SINGLE_HEADER_PASS"
}

# Adds to what is compiled once. (Not to one string: some awks would copy it for every line.)
function emit(text) { once[++n_once] = text }

# The name in an #include "..." of a nibble header, otherwise "".
function included(line) {
  if (line !~ /^#[ ]*include "nibble\//) return ""
  gsub(/^[^"]*"|".*$/, "", line)
  return line
}

function larger(a, b) { return a > b ? a : b }

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

# Appends a .hpp to `once`, after the headers that it needs. A header that the compiler skips here
# may be needed later, so it is appended again; a guard lets the compiler see it once.
function expand(name, where,    lines, n, i, next_name, guard_name, has_pass, depth, here) {
  if ((name, kAlways) in is_done || (name, where) in is_done) return
  if (where == kImplementation && (name, kWithKernels) in is_done) return
  is_done[name, where] = 1  # already now, since what it includes may include it again
  guard_name = guard toupper(name)
  gsub(/[^A-Z0-9_]/, "_", guard_name)
  n = split(read(name), lines, "\n")
  # Headers that the per-target code needs must be outside of it: inside, they would be in a
  # target's pass.
  for (i = 1; i <= n; ++i) {
    if (included(lines[i]) ~ /-inl\.h$/) {
      emit(only_with_kernels)
      expand_needs(included(lines[i]), larger(where, kWithKernels))
      emit("#endif")
    }
  }
  emit("#ifndef " guard_name "\n#define " guard_name "  // " name)
  here = where
  for (i = 1; i <= n; ++i) {
    depth += nesting(lines[i])
    if (depth == 0) here = where
    else if (depth == 1 && lines[i] in where_of) here = larger(where, where_of[lines[i]])
    else if (lines[i] ~ /^#[ ]*(if|el)/) here = kSometimes
    next_name = included(lines[i])
    if (next_name ~ /-inl\.h$/) {
      emit("#include NIBBLE_SINGLE_HEADER")
    } else if (next_name != "") {
      expand(next_name, here)
    } else if (lines[i] ~ /^#define HWY_TARGET_INCLUDE /) {
      emit("#define NIBBLE_SINGLE_HEADER_PASS\n#define HWY_TARGET_INCLUDE NIBBLE_SINGLE_HEADER")
      has_pass = 1
    } else {
      emit(lines[i])
    }
  }
  if (has_pass) emit("#undef NIBBLE_SINGLE_HEADER_PASS")
  emit("#endif  // " name)
  delete is_done[name, kSometimes]
}

# Expands the .hpp files that an -inl.h file includes, directly or through other -inl.h files.
function expand_needs(name, where,    lines, n, i, next_name) {
  if ((name, "needs", where) in is_done) return
  is_done[name, "needs", where] = 1
  n = split(read(name), lines, "\n")
  for (i = 1; i <= n; ++i) {
    next_name = included(lines[i])
    if (next_name ~ /-inl\.h$/) expand_needs(next_name, where)
    else if (next_name != "") expand(next_name, where)
  }
}

# Appends an -inl.h file to `per_target`, with the -inl.h files that it includes in their places.
function expand_per_target(name,    lines, n, i, next_name) {
  if ((name, "text") in is_done) return
  is_done[name, "text"] = 1
  n = split(read(name), lines, "\n")
  for (i = 1; i <= n; ++i) {
    next_name = included(lines[i])
    if (next_name == umbrella) per_target = per_target "#include NIBBLE_SINGLE_HEADER\n"  # a level
    else if (next_name ~ /-inl\.h$/) expand_per_target(next_name)
    else if (next_name == "") per_target = per_target lines[i] "\n"
  }
}
