# SPDX-License-Identifier: Apache-2.0
#
#   awk -v root=PROJECT -v out=FOLDER -f extract.awk README.md docs/*.md
#
# Extracts the code of the pages, to be compiled, run or checked; for any POSIX awk. The words after
# the language define what a block is:
#
#   ```cpp              a program, if it has a main(); else declarations of the page's program
#   ```cpp body         statements of the page's program: one function, which returns a Result<void>
#   ```cpp NAME         the file NAME beside it: a header, or a program where it has a main()
#   ```cpp FOLDER/NAME  quoted from this file of the project, line by line
#   ```sh               commands whose files, targets and options must exist
#   ```sh run           commands that are run, with build/ for the folder of the build
#
# A line with "// prints TEXT" (or "# prints TEXT") gives expected output. Written to FOLDER: the
# programs, NAME.sh for scripts, and NAME.expected for each program or script. Written to stdout:
# "program NAME", "script NAME", and what must exist: "path PATH", "target NAME", "option NAME", each
# followed by the position that names it.

function fail(message) {
  print FILENAME ":" FNR ": " message > "/dev/stderr"
  failed = 1
  exit 1
}

# The name of a page: its file name in lower case, without .md.
function page_of(file) {
  sub(/.*\//, "", file)
  sub(/\.md$/, "", file)
  return tolower(file)
}

function line_of() { return "#line " (FNR + 1) " \"" FILENAME "\"\n" }

function write_program(name, text) {
  printf "%s", text > (out "/" name ".cpp")
  close(out "/" name ".cpp")
  printf "%s", expected[name] > (out "/" name ".expected")
  close(out "/" name ".expected")
  print "program " name
}

function write_page() {
  if (page == "" || declarations body == "") return
  name = page
  expected[name] = page_expected
  write_program(name, declarations \
    "namespace {\nnibble::Result<void> page() {\n" body \
    "  return nibble::ok();\n}\n}  // namespace\n" \
    "int main() {\n  const auto done = page();\n" \
    "  if (!done) std::puts(done.error().message.c_str());\n  return done ? 0 : 1;\n}\n")
}

function end_of_block(    name) {
  if (language == "cpp") {
    if (kind == "body") {
      body = body text
      page_expected = page_expected prints
    } else if (kind ~ /\//) {
      quote()
    } else if (text ~ /int main\(/) {
      name = kind
      sub(/\.[a-z]+$/, "", name)
      if (name == "") name = page "_" ++n_programs
      expected[name] = prints
      write_program(name, text)
    } else if (kind != "") {
      printf "%s", text > (out "/" kind)
      close(out "/" kind)
    } else {
      declarations = declarations text
      page_expected = page_expected prints
    }
  } else if (kind == "run") {
    name = page "_" ++n_scripts
    gsub(/build\//, "\"$BUILD\"/", text)
    printf "set -e\n%s", text > (out "/" name ".sh")
    close(out "/" name ".sh")
    printf "%s", prints > (out "/" name ".expected")
    close(out "/" name ".expected")
    print "script " name
  }
}

# The lines of a quoted block must be consecutive lines of the file.
function quote(    n, i, line, file) {
  file = root "/" kind
  n = split(text, wanted, "\n") - 1
  i = 1
  while ((getline line < file) > 0) {
    if (line == wanted[i]) {
      if (++i > n) break
    } else {
      i = line == wanted[1] ? 2 : 1
    }
  }
  close(file)
  if (i <= n) fail("the block is not in " kind ", from its line " i " on: " wanted[i])
}

# Whatever commands name must exist.
function check_commands(line,    n, i, word) {
  sub(/ #.*/, "", line)
  gsub(/["$();&|<>]/, " ", line)
  n = split(line, words, " ")
  for (i = 1; i <= n; ++i) {
    word = words[i]
    if (word == "--target") print "target " words[++i] " " here()
    if (word ~ /^-DNIBBLE_[A-Z_]+=/) {
      sub(/^-D/, "", word)
      sub(/=.*/, "", word)
      print "option " word " " here()
    } else if (word ~ /^build\/[a-z]+\/[a-z_]+$/) {
      print "target " word " " here()
    } else if (word ~ /^(bench|docs|examples|include|packaging|tests)\//) {
      print "path " word " " here()
    }
  }
}
function here() { return FILENAME ":" FNR }

# Links to files, which are relative to the page.
function check_links(line,    link, folder) {
  folder = FILENAME ~ /\// ? FILENAME : ""
  sub(/[^\/]*$/, "", folder)
  while (match(line, /\]\([^)#: ]+/)) {
    link = folder substr(line, RSTART + 2, RLENGTH - 2)
    line = substr(line, RSTART + RLENGTH)
    while (sub(/[^\/.]+\/\.\.\//, "", link)) {
    }
    print "path " link " " here()
  }
}

FNR == 1 {
  write_page()
  page = page_of(FILENAME)
  declarations = body = page_expected = ""
  n_programs = n_scripts = 0
}

/^```/ && !inside {
  inside = 1
  language = $0
  sub(/^```/, "", language)
  kind = language
  sub(/ .*/, "", language)
  if (!sub(/^[^ ]* /, "", kind)) kind = ""
  text = language == "cpp" && kind !~ /\// && kind !~ /-inl\.h$/ ? line_of() : ""
  prints = ""
  next
}

/^```/ {
  inside = 0
  if (language == "cpp" || language == "sh") end_of_block()
  next
}

inside {
  text = text $0 "\n"
  if (match($0, /(\/\/|#) prints /)) prints = prints substr($0, RSTART + RLENGTH) "\n"
  if (language == "sh") check_commands($0)
  next
}

{ check_links($0) }

END {
  if (failed) exit 1
  write_page()
}
