# SPDX-License-Identifier: Apache-2.0
#
# awk -f parameters.awk docs/parameters.md HEADERS...: checks that every class template of the
# headers, outside detail namespaces, is in the first column of the table.
FILENAME ~ /\.md$/ {
  if (!/^\|/) next
  split($0, cells, "|")
  $0 = cells[2]
  gsub(/[^A-Za-z_0-9]+/, " ")
  for (i = 1; i <= NF; ++i) is_named[$i] = 1
  next
}
/^namespace .*detail \{$/ { in_detail = 1 }
/^\}+  \/\/ namespace .*detail$/ { in_detail = 0 }
!in_detail && /^template <[^>]/ { is_template = 1 }
is_template && /^(struct|class) / {
  name = $2 ~ /^\[\[/ ? $3 : $2
  sub(/[^A-Za-z_0-9].*/, "", name)
  ++n
  if (!(name in is_named)) {
    print FILENAME ": " name " is not in the table"
    failed = 1
  }
}
is_template && !/^template|^requires|^ / { is_template = 0 }
END {
  if (n < 40) print "only " n " templates found"
  exit failed || n < 40
}
