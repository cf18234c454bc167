// SPDX-License-Identifier: Apache-2.0
//
// A program in the split form: this file and answer.cpp see declarations, implementation.cpp has
// the library's code. Prints the model's answer, or an error; the exit code is not checked.
#include <cstdio>

#include "forms/split/answer.hpp"
#include "nibble/nibble.hpp"

#if defined(HIGHWAY_HWY_DETECT_TARGETS_H_) || defined(HWY_HIGHWAY_INCLUDED)
#error "declarations need nothing of Highway"
#endif

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  if (!split::check_operations()) return std::puts("error: operations"), 5;
  auto pool = nibble::ThreadPool::create({.n_threads = 2});
  if (!pool) return 2;
  const auto model = nibble::load(argv[1], {.executor = pool->get()});
  if (!model) return std::puts(model.error().message.c_str()), 3;
  const auto text = split::answer(*model, **pool, argv[2]);
  if (!text) return std::puts(text.error().message.c_str()), 4;
  std::puts(text->c_str());
  return 0;
}
