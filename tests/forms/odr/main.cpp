// SPDX-License-Identifier: Apache-2.0
//
// Calls the code that was compiled for the baseline and, with the argument `all`, also the code for
// AVX-512, if this machine supports it. Prints the answer, which must always be the same.
#include <cstdio>
#include <cstring>
#include <string>

std::string answer_baseline(const char* path, const char* prompt);
std::string answer_avx512(const char* path, const char* prompt);

namespace {

bool is_supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 1;
  const bool all = std::strcmp(argv[1], "all") == 0;
  const std::string answer = answer_baseline(argv[2], argv[3]);
  if (all && is_supported() && answer_avx512(argv[2], argv[3]) != answer) return 2;
  return std::puts(answer.c_str()) < 0;
}
