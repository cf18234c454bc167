// SPDX-License-Identifier: Apache-2.0
//
// Files in memory whose power can be cut: at a given operation, after which all fail until
// power_on(). What was not synced is then there, or not, or in part, by chance: each write and each
// change of a name by itself, as POSIX allows it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "nibble/serve/file_layer.hpp"

namespace test {

// Numbers by chance, the same for the same seed.
class Chance {
 public:
  explicit Chance(std::uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15u;
    std::uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t n) { return next() % n; }
  bool one_in(std::uint64_t n) { return below(n) == 0; }

 private:
  std::uint64_t state_;
};

class MemoryFiles final : public nibble::serve::FileLayer {
 public:
  using Bytes = std::vector<std::byte>;

  // The power fails during the n-th operation from now on that changes something.
  void cut_power_after(std::uint64_t n) { cut_at_ = n_operations_ + n; }
  void cut_power() { is_off_ = true; }
  bool is_off() const { return is_off_; }
  std::uint64_t n_operations() const { return n_operations_; }

  void power_on(Chance& chance) {
    is_off_ = false;
    cut_at_ = 0;
    for (auto& [path, values] : changes_) {
      const std::uint64_t which = chance.below(values.size() + 1);
      if (which == values.size()) continue;  // none of them is lasting
      set(lasting_, path, values[which]);
    }
    changes_.clear();
    std::map<std::string, std::shared_ptr<Node>> found;
    std::set<Node*> settled;
    for (auto& [path, node] : lasting_) {  // folders come before what is in them
      const std::string folder = folder_of(path);
      if (!folder.empty() && (!found.contains(folder) || !found[folder]->is_folder)) continue;
      found[path] = node;
      if (settled.insert(node.get()).second) settle(*node, chance);
    }
    lasting_ = found;
    names_ = found;
  }

  // Changes a byte of a file, as a failing disk does.
  bool flip(const std::string& path, std::uint64_t at) {
    const auto found = names_.find(path);
    if (found == names_.end() || at >= found->second->bytes.size()) return false;
    found->second->bytes[at] ^= std::byte{1};
    found->second->lasting = found->second->bytes;
    return true;
  }

  nibble::Result<std::uint64_t> size(const std::string& path) override {
    const Node* const node = file(path);
    if (node == nullptr) return missing(path);
    return std::uint64_t{node->bytes.size()};
  }
  nibble::Result<void> read(const std::string& path, std::uint64_t offset,
                            std::span<std::byte> out) override {
    const Node* const node = file(path);
    if (node == nullptr) return missing(path);
    if (offset > node->bytes.size() || out.size() > node->bytes.size() - offset) {
      return nibble::Error{nibble::Errc::io, path + ": shorter than expected"};
    }
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = node->bytes[offset + i];
    return nibble::ok();
  }
  nibble::Result<std::vector<std::string>> list(const std::string& folder) override {
    std::vector<std::string> names;
    if (is_off_) return off();
    for (const auto& [path, node] : names_) {
      if (!node->is_folder && path.starts_with(folder + "/")) {
        names.push_back(path.substr(folder.size() + 1));
      }
    }
    return names;
  }

  nibble::Result<void> write(const std::string& path, std::uint64_t offset,
                             std::span<const std::byte> bytes) override {
    if (is_off_) return off();
    if (!is_folder(folder_of(path)) || is_folder(path)) return missing(path);
    if (!names_.contains(path)) change(path, std::make_shared<Node>());
    Node& node = *names_[path];
    node.pending.push_back({offset, Bytes(bytes.begin(), bytes.end())});
    apply(node.bytes, node.pending.back(), bytes.size());
    return done();
  }
  nibble::Result<void> sync(const std::string& path) override {
    Node* const node = file(path);
    if (node == nullptr) return missing(path);
    if (auto finished = done(); !finished) return finished;
    node->lasting = node->bytes;
    node->pending.clear();
    return nibble::ok();
  }
  nibble::Result<void> sync_folder(const std::string& path) override {
    if (is_off_) return off();
    if (!is_folder(path)) return missing(path);
    if (auto finished = done(); !finished) return finished;
    for (auto change = changes_.begin(); change != changes_.end();) {
      if (folder_of(change->first) == path) {
        set(lasting_, change->first, change->second.back());
        change = changes_.erase(change);
      } else {
        ++change;
      }
    }
    return nibble::ok();
  }
  nibble::Result<void> rename(const std::string& from, const std::string& to) override {
    if (file(from) == nullptr) return missing(from);
    change(to, names_[from]);
    change(from, nullptr);
    return done();
  }
  nibble::Result<void> remove(const std::string& path) override {
    if (is_off_) return off();
    if (!names_.contains(path)) return nibble::ok();
    const auto after = names_.upper_bound(path + "/");
    if (after != names_.end() && after->first.starts_with(path + "/")) {
      return nibble::Error{nibble::Errc::io, path + ": not empty"};
    }
    change(path, nullptr);
    return done();
  }
  nibble::Result<void> make_folder(const std::string& path) override {
    if (is_off_) return off();
    const std::string folder = folder_of(path);
    if (!is_folder(folder)) return missing(path);
    if (is_folder(path)) return nibble::ok();
    auto node = std::make_shared<Node>();
    node->is_folder = true;
    change(path, node);
    return done();
  }

 private:
  struct Write {
    std::uint64_t offset;
    Bytes bytes;
  };
  struct Node {
    bool is_folder = false;
    Bytes bytes;                 // as programs see them
    Bytes lasting;               // those that were synced
    std::vector<Write> pending;  // those that were not
  };

  static std::string folder_of(const std::string& path) {
    const std::size_t end = path.rfind('/');
    return end == std::string::npos ? std::string() : path.substr(0, end);
  }
  static void set(std::map<std::string, std::shared_ptr<Node>>& names, const std::string& path,
                  const std::shared_ptr<Node>& node) {
    if (node) {
      names[path] = node;
    } else {
      names.erase(path);
    }
  }
  static void apply(Bytes& to, const Write& write, std::size_t n) {
    if (to.size() < write.offset + n) to.resize(write.offset + n);
    for (std::size_t i = 0; i < n; ++i) to[write.offset + i] = write.bytes[i];
  }
  static void settle(Node& node, Chance& chance) {
    for (const Write& write : node.pending) {
      const std::uint64_t outcome = chance.below(3);  // lost, in part, whole
      if (outcome == 0) continue;
      apply(node.lasting, write,
            outcome == 2 ? write.bytes.size() : chance.below(write.bytes.size() + 1));
    }
    node.pending.clear();
    node.bytes = node.lasting;
  }

  void change(const std::string& path, const std::shared_ptr<Node>& node) {
    set(names_, path, node);
    changes_[path].push_back(node);
  }
  bool is_folder(const std::string& path) const {
    if (path.empty()) return true;  // the one above all others
    const auto found = names_.find(path);
    return found != names_.end() && found->second->is_folder;
  }
  Node* file(const std::string& path) {
    const auto found = names_.find(path);
    return is_off_ || found == names_.end() || found->second->is_folder ? nullptr
                                                                        : found->second.get();
  }
  static nibble::Error off() { return {nibble::Errc::io, "the power is off"}; }
  nibble::Error missing(const std::string& path) const {
    if (is_off_) return off();
    return {nibble::Errc::not_found, path + ": no such file"};
  }
  nibble::Result<void> done() {
    if (++n_operations_ == cut_at_) is_off_ = true;
    if (is_off_) return off();
    return nibble::ok();
  }

  std::map<std::string, std::shared_ptr<Node>> names_;    // as programs see them
  std::map<std::string, std::shared_ptr<Node>> lasting_;  // as they were synced
  std::map<std::string, std::vector<std::shared_ptr<Node>>> changes_;  // since then, in order
  std::uint64_t n_operations_ = 0;
  std::uint64_t cut_at_ = 0;  // 0: never
  bool is_off_ = false;
};

}  // namespace test
