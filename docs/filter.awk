# SPDX-License-Identifier: Apache-2.0
#
# awk -f filter.awk FILE: FILE as Doxygen wants it.
#
# A header: plain comments that stand in front of a declaration, or behind it on its line, become
# Doxygen's, taken literally except for `code`; the first comment is the file's. Not those within
# functions, nor those with an empty line behind them. Lines that are indented by three or more, which
# formulas and tables are, stay as they are.
#
# A page: what extract.awk of the tests reads behind a block's language goes, links to headers become
# references, and links to other files of the project, which are not in the output, their text.

function escaped(text,    parts, n, i, result) {
  n = split(text, parts, "`")
  result = ""
  for (i = 1; i <= n; ++i) {
    if (i > 1) {
      result = result "`"
      in_code = !in_code
    }
    if (!in_code) {
      gsub(/[\\@<>#&%*"|]/, "\\\\&", parts[i])
      gsub(/>::/, ">\\::", parts[i])  # or it is a request for a link
      gsub(/ al\. /, " al.\\ ", parts[i])  # no end of the brief description
      gsub(/e\.g\. /, "e.g.\\ ", parts[i])
    }
    result = result parts[i]
  }
  return result
}

# Prints the comment lines kept so far, as documentation or not.
function flush(documented,    i, text, in_table) {
  in_code = in_table = 0
  for (i = 1; i <= n_kept; ++i) {
    text = kept[i]
    if (documented) {
      sub(/^ *\/\//, "", text)
      if (text ~ /^ SPDX-/) {
        text = " @file"
      } else if (text ~ /^ ----/) {
        text = ""
      } else if (text ~ /^   / && !in_code) {
        if (!in_table) text = " @verbatim\n" text
        in_table = 1
      } else {
        text = (in_table ? " @endverbatim\n" : "") escaped(text)
        in_table = 0
      }
      if (i == 1) text = "/**" text
      if (i == n_kept) text = text (in_table ? "\n@endverbatim" : "") " */"
    }
    print text
  }
  n_kept = 0
}

# Follows the braces of a line of code: scopes[depth] is "f" where statements are.
function follow(code,    i, c, head) {
  gsub(/'\\?.'/, "", code)
  gsub(/\\"/, "", code)
  gsub(/"[^"]*"/, "", code)
  if (code ~ /^ *#/) return
  for (i = 1; i <= length(code); ++i) {
    c = substr(code, i, 1)
    if (c == "{") {
      head = statement
      while (sub(/template *<[^<>]*(<[^<>]*>[^<>]*)*>/, "", head)) {
      }
      sub(/^[ :]*(requires [^{}]*[ >)])?/, "", head)
      sub(/^(public|private|protected) *: */, "", head)
      ++depth
      scopes[depth] = scopes[depth - 1] == "f" ||
        (head !~ /^ *(typedef +)?(inline +)?(namespace|class|struct|union|enum)[ :]?/ && head != "") \
        ? "f" : "d"
      statement = ""
    } else if (c == "}") {
      if (depth > 0) --depth
      statement = ""
    } else if (c == ";") {
      statement = ""
    } else {
      statement = statement c
    }
  }
  statement = statement " "
}

FILENAME ~ /\.md$/ {
  if (/^```[a-z]+ /) sub(/ .*/, "")
  while (match($0, /\[`[^`]*`\]\(\.\.\/include\/[^)]*\)/)) {
    link = substr($0, RSTART, RLENGTH)
    sub(/.*\(\.\.\/include\//, "", link)
    sub(/\)$/, "", link)
    $0 = substr($0, 1, RSTART - 1) "@ref " link " \"" link "\"" substr($0, RSTART + RLENGTH)
  }
  while (match($0, /\[[^]]*\]\(\.\.\/[^)]*\)/)) {
    link = substr($0, RSTART + 1, RLENGTH - 1)
    sub(/\]\(.*/, "", link)
    $0 = substr($0, 1, RSTART - 1) link substr($0, RSTART + RLENGTH)
  }
  print
  next
}

/^ *\/\// {
  if (n_kept == 0 && scopes[depth] == "f" || $0 ~ /NOLINT/) {
    print ""
  } else {
    kept[++n_kept] = $0
  }
  next
}

{
  # The inline namespace is not what a reader writes.
  if (/^namespace /) sub(/ inline namespace NIBBLE_ABI \{/, "")
  if (/^}+  \/\/ namespace nibble::NIBBLE_ABI/) sub(/^}/, "")
  if (n_kept > 0) flush(kept[1] ~ /SPDX-/ || $0 !~ /^ *($|}|#pragma)/)
  line = $0
  code = line
  comment = ""
  if (match(line, /[^ ] +\/\/ /) && line !~ /"[^"]*\/\/ [^"]*"/) {
    code = substr(line, 1, RSTART)
    comment = substr(line, RSTART + RLENGTH)
    sub(/^ */, "", comment)
  }
  is_declaration = scopes[depth] != "f" && code ~ /[;,]$|^ *[a-z_0-9]+$|\{\};$/ && code !~ /^ *[#}]/ \
    && statement ~ /^ *$|[,]? *$/
  follow(code)
  if (comment == "" || comment ~ /^NOLINT/) {
    print code == line || comment != "" ? code : line
  } else if (is_declaration && (code ~ /;$/ || scopes[depth] != "f")) {
    match(code, /^ */)
    in_code = 0
    print substr(code, 1, RLENGTH) "/** " escaped(comment) " */ " substr(code, RLENGTH + 1)
  } else {
    print code
  }
}

END { flush(0) }
