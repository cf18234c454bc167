// SPDX-License-Identifier: Apache-2.0
//
// Calls the code that was compiled for the baseline and, with the argument `all`, also the code for
// a higher level, ODR_BETTER, if this machine supports it. Prints the answer, which must always be
// the same.
#include <cstdio>
#include <cstring>
#include <string>

std::string answer_baseline(const char* path, const char* prompt);
std::string ODR_BETTER(const char* path, const char* prompt);

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

namespace {

bool is_supported() {
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (std::strcmp(TEXT(ODR_BETTER), "answer_avx2") == 0) return has_avx2;
  return has_avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 1;
  const bool all = std::strcmp(argv[1], "all") == 0;
  const std::string answer = answer_baseline(argv[2], argv[3]);
  if (all && is_supported() && ODR_BETTER(argv[2], argv[3]) != answer) return 2;
  return std::puts(answer.c_str()) < 0;
}
