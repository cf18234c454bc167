// SPDX-License-Identifier: Apache-2.0
//
// Pictures by gnuplot, where it is installed.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "nibble/core/result.hpp"

namespace example {

// One picture. Commands and data go to gnuplot's input.
class Gnuplot {
 public:
  // path: of an .svg file. is_open() is false if there is no gnuplot.
  explicit Gnuplot(const std::string& path) {
#if !defined(_WIN32)
    if (std::system("command -v gnuplot >/dev/null 2>&1") != 0) return;
    pipe_ = popen("gnuplot", "w");
    if (pipe_ == nullptr) return;
    std::string quoted;  // a quote is two of them
    for (const char c : path) quoted += c == '\'' ? "''" : std::string(1, c);
    print(
        "set terminal svg size 900,500 dynamic background 'white' font 'sans,12'\n"
        "set output '%s'\nset key outside noenhanced\nset grid\n",
        quoted.c_str());
#else
    (void)path;
#endif
  }
  Gnuplot(const Gnuplot&) = delete;
  Gnuplot& operator=(const Gnuplot&) = delete;
  ~Gnuplot() { finish(); }

  bool is_open() const { return pipe_ != nullptr; }

#if defined(__GNUC__)
  __attribute__((format(printf, 2, 3)))
#endif
  void
  print(const char* format, ...) {
    if (pipe_ == nullptr) return;
    va_list arguments;
    va_start(arguments, format);
    std::vfprintf(pipe_, format, arguments);
    va_end(arguments);
  }

  // True if the picture is complete.
  bool finish() {
    if (pipe_ == nullptr) return false;
#if !defined(_WIN32)
    const bool is_done = pclose(pipe_) == 0;
#else
    const bool is_done = false;
#endif
    pipe_ = nullptr;
    return is_done;
  }

 private:
  std::FILE* pipe_ = nullptr;
};

inline nibble::Error no_picture(const std::string& path) {
  return {nibble::Errc::io, nibble::printable(path) + ": no picture; is gnuplot installed?"};
}

// For a title: names come from files.
inline std::string plot_title(const std::string& name) {
  std::string title;
  for (const char c : name) title += c == '\'' || c == '\\' || c == '\n' ? '?' : c;
  return title;
}

}  // namespace example
