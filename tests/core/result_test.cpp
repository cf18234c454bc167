// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/result.hpp"

#include <memory>
#include <type_traits>
#include <utility>

#include "doctest/doctest.h"

namespace result_test {
namespace {

nibble::Result<int> half(int x) {
  if (x % 2 != 0) return nibble::Error{nibble::Errc::invalid_argument, "odd"};
  return x / 2;
}

nibble::Result<int> quarter(int x) {
  NIBBLE_TRY(h, half(x));
  return half(h);
}

// One macro inside another, as in the callbacks of a reader: their names must not shadow each
// other.
nibble::Result<void> check_even(int x) {
  NIBBLE_CHECK([&]() -> nibble::Result<void> {
    NIBBLE_TRY(h, half(x));
    NIBBLE_CHECK(h * 2 == x ? nibble::ok() : nibble::Result<void>(nibble::Error{}));
    return nibble::ok();
  }());
  return nibble::ok();
}

}  // namespace

TEST_CASE("a result holds a value or an error, and passes errors on") {
  CHECK(*quarter(12) == 3);
  const auto bad = quarter(6);
  REQUIRE(!bad);
  CHECK(bad.error().code == nibble::Errc::invalid_argument);
  CHECK(bad.error().message == "odd");
  CHECK(check_even(4).has_value());
  CHECK(!check_even(5).has_value());
}

TEST_CASE("results move, also of move-only values, and can be assigned over each other") {
  nibble::Result<std::unique_ptr<int>> a = std::make_unique<int>(5);
  nibble::Result<std::unique_ptr<int>> b = nibble::Error{nibble::Errc::io, "gone"};
  b = std::move(a);
  REQUIRE(b);
  CHECK(**b == 5);
  a = nibble::Error{nibble::Errc::io, "gone"};
  CHECK(!a);
}

TEST_CASE("results are assigned over each other, from variables and from calls") {
  auto result = half(4);
  result = half(3);
  REQUIRE(!result);
  CHECK(result.error().message == "odd");
  auto other = half(8);
  result = std::move(other);
  REQUIRE(result);
  CHECK(*result == 4);
  auto& same = result;
  result = std::move(same);
  CHECK(*result == 4);
  auto checked = check_even(4);
  checked = check_even(5);
  CHECK(!checked);
  checked = nibble::ok();
  CHECK(checked.has_value());
}

TEST_CASE("a value that is taken out of a result outlives it") {
  static_assert(std::is_same_v<decltype(*half(4)), int>);
  static_assert(std::is_same_v<decltype(half(3).error()), nibble::Error>);
  const auto make = [] { return nibble::Result<std::unique_ptr<int>>(std::make_unique<int>(5)); };
  auto&& value = *make();
  CHECK(*value == 5);
#if NIBBLE_HAS_EXCEPTIONS
  auto&& other = make().value();
  CHECK(*other == 5);
#endif
}

TEST_CASE("two values are tried on one line") {
  const auto sum = [](int x, int y) -> nibble::Result<int> {
    // clang-format off
    NIBBLE_TRY(a, half(x)); NIBBLE_TRY(b, half(y));
    NIBBLE_CHECK(check_even(a * 2)); NIBBLE_CHECK(check_even(b * 2));
    // clang-format on
    return a + b;
  };
  CHECK(*sum(4, 6) == 5);
  CHECK(!sum(4, 5));
}

TEST_CASE("an error can say where it was seen from") {
  auto error = nibble::Error{nibble::Errc::malformed, "count 7"}.in("model.gguf");
  CHECK(error.message == "model.gguf: count 7");
  CHECK(error.code == nibble::Errc::malformed);
}

#if NIBBLE_HAS_EXCEPTIONS
TEST_CASE("value() throws what the error says") {
  CHECK(half(4).value() == 2);
  CHECK_THROWS_AS((void)half(3).value(), nibble::Exception);
}
#endif

}  // namespace result_test
