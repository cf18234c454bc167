// SPDX-License-Identifier: Apache-2.0
#include "nibble/kernels/pass.hpp"

#include <cstdlib>

#include "doctest/doctest.h"
#include "kernels/each_target.hpp"

namespace dispatch_test {

using namespace nibble;

TEST_CASE("every compiled and available target can be forced and is the one that runs") {
  int n = 0;
  nibble_test::for_each_target([&](simd::Target) { ++n; });
  int n_available = 0;
  simd::available_targets().for_each([&](simd::Target) { ++n_available; });
  CHECK(n == n_available);
}

TEST_CASE("the default choice is the best available target") {
  REQUIRE(simd::choose_target());
  const simd::TargetSet amx = simd::TargetSet().add(simd::Target::AMX);  // has to be asked for
  const simd::TargetSet wanted = simd::available_targets().without(amx);
  CHECK(simd::active_target() == wanted.best());
  CHECK((simd::available_targets() & simd::compiled_targets()) == simd::available_targets());
}

TEST_CASE(
    "a target that is unknown, not compiled or not available is an error and changes nothing") {
  const simd::Target before = simd::active_target();
  CHECK(!simd::target_from_name("avx1024"));
  CHECK(!simd::target_from_name(""));
  REQUIRE(simd::target_from_name("avx3_dl"));
  CHECK(*simd::target_from_name("avx3_dl") == simd::Target::AVX3_DL);
  for (int i = 0; i < simd::kTargetCount; ++i) {
    const auto target = static_cast<simd::Target>(i);
    if (simd::available_targets().contains(target)) continue;
    const auto status = simd::force_target(target);
    REQUIRE(!status);
    CHECK(status.error().code == Errc::unsupported);
    CHECK(status.error().message.find(simd::to_string(target)) != std::string::npos);
  }
  CHECK(simd::active_target() == before);
}

#if !defined(_WIN32)
TEST_CASE("NIBBLE_TARGET chooses the target; a name that cannot be had is an error") {
  simd::Target worst = simd::available_targets().best();
  simd::available_targets().for_each([&](simd::Target t) { worst = t; });
  setenv("NIBBLE_TARGET", simd::to_string(worst), 1);
  REQUIRE(simd::choose_target());
  CHECK(simd::active_target() == worst);
  setenv("NIBBLE_TARGET", "pentium", 1);
  const auto status = simd::choose_target();
  REQUIRE(!status);
  CHECK(status.error().message.find("NIBBLE_TARGET") != std::string::npos);
  CHECK(status.error().message.find("pentium") != std::string::npos);
  for (const char* const known : {"AVX2", "NEON", "SCALAR"}) {
    CHECK(status.error().message.find(known) != std::string::npos);
  }
  CHECK(simd::active_target() == worst);
  CHECK(!simd::ensure_target());  // even though a target was chosen before
  unsetenv("NIBBLE_TARGET");
  REQUIRE(simd::ensure_target());  // no error, and a target is chosen
  CHECK(simd::active_target() == worst);
  REQUIRE(simd::choose_target());
}
#endif

}  // namespace dispatch_test
