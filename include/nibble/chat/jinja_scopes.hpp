// SPDX-License-Identifier: Apache-2.0
//
// The variables of a running template: scopes in each other, and the attributes of namespaces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/chat/value.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// Names with their values. The texts of the names must stay where they are.
class JinjaNames {
 public:
  JinjaNames() = default;
  explicit JinjaNames(std::vector<std::pair<std::string_view, Value>> names)
      : names_(std::move(names)) {}

  // Null if there is no such name.
  const Value* find(std::string_view name) const noexcept {
    for (const auto& [known, value] : names_) {
      if (known == name) return &value;
    }
    return nullptr;
  }
  Result<void> set(Budget& budget, std::string_view name, Value value) {
    NIBBLE_CHECK(budget.step(cost()));
    for (auto& [known, old] : names_) {
      if (known != name) continue;
      old = std::move(value);
      return ok();
    }
    names_.emplace_back(name, std::move(value));
    return ok();
  }
  // Steps that looking for a name takes.
  std::size_t cost() const noexcept { return 1 + names_.size() / 8; }

 private:
  std::vector<std::pair<std::string_view, Value>> names_;
};

// Each scope sees the names of those around it. One that a macro was defined in is kept, with those
// around it; others are gone once they are left.
class JinjaScopes {
 public:
  using Id = std::uint32_t;
  static constexpr Id kNone = 0xFFFFFFFF;
  static constexpr std::size_t kBytes = 64;  // of one, besides its names

  Id current() const noexcept { return current_; }
  JinjaNames& names() noexcept { return scopes_[current_].names; }
  void keep_current() noexcept { scopes_[current_].is_kept = true; }

  // Enters a new scope inside `parent`.
  void enter(Id parent) {
    scopes_.push_back({parent, false, {}});
    current_ = static_cast<Id>(scopes_.size() - 1);
  }
  // Leaves the current one for the one that was the current one before it.
  void leave_for(Id before) {
    if (current_ + 1 == scopes_.size() && !scopes_[current_].is_kept) scopes_.pop_back();
    current_ = before;
  }

  // The value of a name, in the innermost scope that has it; null if none has.
  Result<const Value*> find(Budget& budget, std::string_view name) const {
    for (Id scope = current_; scope != kNone; scope = scopes_[scope].parent) {
      NIBBLE_CHECK(budget.step(scopes_[scope].names.cost()));
      if (const Value* const known = scopes_[scope].names.find(name)) return known;
    }
    return nullptr;
  }

 private:
  struct Scope {
    Id parent = kNone;
    bool is_kept = false;
    JinjaNames names;
  };

  std::vector<Scope> scopes_;
  Id current_ = kNone;
};

}}}  // namespace nibble::NIBBLE_ABI::chat
