# SPDX-License-Identifier: Apache-2.0
#
# Reads an SVG picture of gnuplot and fails if two of its texts cover each other, if one covers a
# large point, or stands outside. Widths are estimates: 0.55 of the font's size for each character.
function number(line, name) {
  return match(line, name "=\"[0-9.]+") ? substr(line, RSTART + length(name) + 2, RLENGTH - length(name) - 2) : 0
}
/<svg/ || (width == 0 && /viewBox/) {
  if (match($0, /viewBox="0 0 [0-9]+ [0-9]+/)) {
    split(substr($0, RSTART + 9, RLENGTH - 9), box, " "); width = box[3]; height = box[4]
  }
}
/<use/ && match($0, /translate\([0-9.]+,[0-9.]+\) scale\([0-9.]+\)/) {
  split(substr($0, RSTART + 10, RLENGTH - 11), point, /[,()]|scale/)
  scale = point[5] + 0
  if (scale > 4) { x[++n_points] = point[1]; y[n_points] = point[2]; radius[n_points] = scale }
  next
}
match($0, /translate\([0-9.]+,[0-9.]+\)/) {
  split(substr($0, RSTART + 10, RLENGTH - 11), at, ",")
  rotated = /rotate/; size = number($0, "font-size")
  anchor = /text-anchor="end"/ ? 1 : /text-anchor="middle"/ ? 0.5 : 0
}
/<text>/ && !rotated {
  text = $0
  gsub(/<[^>]*>/, "", text); gsub(/&[a-z]+;/, "x", text); gsub(/^[ \t]+|[ \t]+$/, "", text)
  if (text == "") next
  w = 0.55 * size * length(text)
  name[++n] = text
  left[n] = at[1] - anchor * w; right[n] = left[n] + w
  top[n] = at[2] - 0.8 * size; bottom[n] = at[2]
}
END {
  if (n < 20 || width == 0) { print "no picture of gnuplot: " n " texts"; exit 1 }
  for (i = 1; i <= n; ++i) {
    if (left[i] < 0 || right[i] > width || top[i] < 0 || bottom[i] > height) {
      print "'" name[i] "' is outside"; failed = 1
    }
    for (j = 1; j <= n_points; ++j) {
      if (left[i] < x[j] + radius[j] && x[j] - radius[j] < right[i] &&
          top[i] < y[j] + radius[j] && y[j] - radius[j] < bottom[i]) {
        print "'" name[i] "' covers a point at " x[j] ", " y[j]; failed = 1
      }
    }
    for (j = 1; j < i; ++j) {
      if (left[i] < right[j] && left[j] < right[i] && top[i] < bottom[j] && top[j] < bottom[i]) {
        print "'" name[i] "' covers '" name[j] "' at " left[i] ", " top[i]; failed = 1
      }
    }
  }
  exit failed
}
