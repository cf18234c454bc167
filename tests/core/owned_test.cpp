// SPDX-License-Identifier: Apache-2.0
#include "nibble/core/owned.hpp"

#include <utility>

#include "doctest/doctest.h"

namespace owned_test {

using nibble::Owned;

namespace {

// Counts the live objects. Not virtual: Owned itself knows which type to destroy.
struct Base {
  int value = 0;
};
struct Counted : Base {
  Counted(int v, int& alive) : alive_(alive) {
    value = v;
    ++alive_;
  }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  ~Counted() { --alive_; }

 private:
  int& alive_;
};

struct Incomplete;
struct Holder {
  Owned<Incomplete> held;  // a type that is never completed
};

}  // namespace

TEST_CASE("an object ends with its owner, and only then") {
  int alive = 0;
  {
    const Owned<Counted> owned(new Counted(7, alive));
    CHECK(alive == 1);
    CHECK(owned);
    CHECK(owned->value == 7);
    CHECK((*owned).value == 7);
    CHECK(owned.get() == &*owned);
  }
  CHECK(alive == 0);
  CHECK(Holder().held == nullptr);
  CHECK_FALSE(Owned<Counted>(static_cast<Counted*>(nullptr)));
}

TEST_CASE("moving leaves nothing behind") {
  int alive = 0;
  Owned<Counted> first(new Counted(1, alive));
  Owned<Counted> second(std::move(first));
  CHECK(first == nullptr);  // NOLINT: that is what is tested
  CHECK(second->value == 1);
  CHECK(alive == 1);
}

TEST_CASE("assignment destroys at once what was there") {
  int alive = 0;
  Owned<Counted> first(new Counted(1, alive));
  Owned<Counted> second(new Counted(2, alive));
  first = std::move(second);
  CHECK(alive == 1);
  CHECK(second == nullptr);  // NOLINT: that is what is tested
  CHECK(first->value == 2);

  Owned<Counted>& same = first;
  first = std::move(same);
  CHECK(alive == 1);
  REQUIRE(first);
  CHECK(first->value == 2);

  first = nullptr;
  CHECK(alive == 0);
  CHECK(first == nullptr);
}

TEST_CASE("an object of a derived class is destroyed as such") {
  int alive = 0;
  Owned<Base> base(new Counted(3, alive));
  CHECK(alive == 1);
  CHECK(base->value == 3);
  base = Owned<Base>(new Base());
  CHECK(alive == 0);
}

}  // namespace owned_test
