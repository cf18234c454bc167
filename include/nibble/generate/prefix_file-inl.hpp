// SPDX-License-Identifier: Apache-2.0
//
// A cache of prefixes in a file: GGUF with keys of its own. For each node, parents first, its
// parent (-1: the root), tokens, pages and what it was computed with. Tensor lane.N has what all
// pages have of a kv head of a layer, kv head by kv head and layer by layer, in the order of the
// pages: as the engine's cache has them, so that the file can take its place. For that, tensors are
// aligned to pages of the system's memory. Tensor state.N has the state of node N. Included by
// prefix_cache-inl.hpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/generate/prefix_cache-inl.hpp"
#include "nibble/io/checksum.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/model/fingerprint.hpp"
#include "nibble/simd/dispatch.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

namespace detail {

NIBBLE_HIDDEN inline constexpr std::string_view kPrefixFileType = "prefix-cache";
inline constexpr std::uint32_t kPrefixFileVersion = 2;  // 1 had a tensor for each page

// The nodes of a file: numbers of all nodes, one after the other.
struct PrefixArrays {
  std::vector<Scalar<std::int32_t>> parents, tokens, pages;
  std::vector<Scalar<std::uint32_t>> n_tokens;
  std::vector<Scalar<std::uint64_t>> weights, last_used, lane_sums, state_sums;
  std::uint32_t n_pages = 0;

  std::uint64_t checksum() const noexcept {
    std::uint64_t sum = 0;
    const auto add = [&](const auto& numbers) {
      sum = io::checksum(std::as_bytes(std::span(numbers)), sum);
    };
    for (const auto* numbers : {&parents, &tokens, &pages}) add(*numbers);
    add(n_tokens);
    for (const auto* numbers : {&weights, &last_used, &lane_sums, &state_sums}) add(*numbers);
    return io::checksum(std::as_bytes(std::span(&n_pages, 1)), sum);
  }
};

template <class T>
void set_scalars(io::GgufWriter& writer, std::string_view key,
                 const std::vector<Scalar<T>>& scalars) {
  writer.set_array(key, std::span<const T>(values(scalars), scalars.size()));
}

inline std::string lane_name(std::size_t i) { return "lane." + to_text(i); }
inline std::string state_name(std::size_t i) { return "state." + to_text(i); }

}  // namespace detail

// ---- Saving ------------------------------------------------------------------------------------

NIBBLE_INLINE Result<void> PrefixCache::save(const std::string& path) const {
  const State& s = *state_;
  return catch_out_of_memory([&]() -> Result<void> {
    NIBBLE_TRY(model, fingerprint(s.model));
    const std::vector<ops::KvCache::Lane> lanes = s.lanes();
    detail::PrefixArrays all;
    std::vector<Scalar<int>> numbers;        // of the nodes, by index
    std::vector<Scalar<ops::PageId>> pages;  // that are saved
    std::vector<Scalar<std::int32_t>> number_of_page(
        static_cast<std::size_t>(s.pool->pages.n_pages()), {-1});
    io::GgufWriter writer;
    s.tree.for_each([&](int index, const detail::PrefixTree::Node& node) {
      const auto i = static_cast<std::size_t>(index), n = all.parents.size();
      numbers.resize((std::max)(numbers.size(), i + 1));
      numbers[i].value = static_cast<int>(n);
      const bool is_first = node.parent == detail::PrefixTree::kRoot;
      all.parents.push_back({is_first ? -1 : numbers[static_cast<std::size_t>(node.parent)].value});
      all.n_tokens.push_back({static_cast<std::uint32_t>(node.tokens.size())});
      all.weights.push_back({node.weights});
      all.last_used.push_back({node.last_used});
      all.tokens.insert(all.tokens.end(), node.tokens.begin(), node.tokens.end());
      for (const auto& [page] : node.pages) {
        if (page < 0) {
          all.pages.push_back({-1});
          continue;
        }
        std::int32_t& number = number_of_page[static_cast<std::size_t>(page)].value;
        if (number < 0) {
          number = static_cast<std::int32_t>(pages.size());
          pages.push_back({page});
        }
        all.pages.push_back({number});
      }
      const auto state = std::as_bytes(std::span(node.state));
      all.state_sums.push_back({state.empty() ? 0 : io::checksum(state)});
      const std::uint64_t n_floats[] = {node.state.size()};
      if (!state.empty()) {
        writer.add_tensor(detail::state_name(n), io::GgmlType::f32, n_floats, state);
      }
    });
    all.n_pages = static_cast<std::uint32_t>(pages.size());
    std::vector<std::byte> bytes;  // of one lane
    const auto read = [&pages, &bytes](const ops::KvCache::Lane& lane) {
      bytes.resize(pages.size() * lane.tile_bytes);
      std::byte* to = bytes.data();
      for (const auto& [page] : pages) {
        std::memcpy(to, lane.tile(page), lane.tile_bytes);
        to += lane.tile_bytes;
      }
      return std::span<const std::byte>(bytes);
    };
    for (const ops::KvCache::Lane& lane : lanes) {
      if (pages.empty()) break;
      const std::uint64_t n_bytes[] = {pages.size() * lane.tile_bytes};
      const std::string name = detail::lane_name(all.lane_sums.size());
      all.lane_sums.push_back({io::checksum(read(lane))});
      writer.add_tensor(
          name, io::GgmlType::i8, n_bytes,
          [read, lane]() -> Result<std::span<const std::byte>> { return read(lane); });
    }
    writer.set("general.type", detail::kPrefixFileType);
    const std::size_t system_page = io::MappedFile::system_page_bytes();
    if (system_page > 0) {
      writer.set("general.alignment", static_cast<std::uint32_t>(system_page));
    }
    writer.set("prefix.version", detail::kPrefixFileVersion);
    writer.set("prefix.model", model);
    writer.set("prefix.kv_type", std::string_view(to_string(s.pool->cache.layout().type)));
    writer.set("prefix.target", std::string_view(to_string(simd::active_target())));
    writer.set("prefix.n_tables", static_cast<std::int32_t>(s.pool->layout.n_tables));
    writer.set("prefix.n_pages", all.n_pages);
    writer.set("prefix.checksum", all.checksum());
    detail::set_scalars(writer, "prefix.parents", all.parents);
    detail::set_scalars(writer, "prefix.tokens", all.tokens);
    detail::set_scalars(writer, "prefix.n_tokens", all.n_tokens);
    detail::set_scalars(writer, "prefix.pages", all.pages);
    detail::set_scalars(writer, "prefix.weights", all.weights);
    detail::set_scalars(writer, "prefix.last_used", all.last_used);
    detail::set_scalars(writer, "prefix.lane_checksums", all.lane_sums);
    detail::set_scalars(writer, "prefix.state_checksums", all.state_sums);
    return writer.write(path);
  });
}

// ---- Restoring ---------------------------------------------------------------------------------

// Reads a file into a cache that is empty.
class PrefixCache::FileReader {
 public:
  FileReader(const io::Gguf& file, State& state) : file_(file), s_(state) {}

  // That the file is one of these, and for this model.
  Result<void> check_kind() const;
  Result<void> read_arrays();
  // Makes the nodes, with the numbers of their pages in the file in place of pages.
  Result<void> make_nodes();
  // Takes pages of the engine and fills them.
  Result<void> fill_pages(PageUse use);
  void drop_pages() noexcept {
    for (const auto& [page] : pages_) s_.pool->pages.drop(page);
  }
  // Gives the nodes to the tree.
  Result<void> enter_nodes();

 private:
  using Node = detail::PrefixTree::Node;

  Result<Node> make_node(std::size_t i, std::size_t token, std::size_t page) const;
  Result<void> read_state(std::size_t i, Node& node) const;
  // Whether a lane begins at a page of the system's memory.
  Result<void> check_place(std::span<const std::byte> bytes) const;
  Result<void> take_pages(PageUse use);
  // Fills the pages' part of a lane.
  Result<void> fill(const ops::KvCache::Lane& lane, std::span<const std::byte> bytes,
                    PageUse use) const;
  Result<std::span<const std::byte>> bytes_of(const std::string& name, io::GgmlType type,
                                              std::size_t n, std::uint64_t sum) const;
  Error malformed(const std::string& what) const {
    return {Errc::malformed, file_.name() + ": is damaged: " + what};
  }
  Error differs(const char* what, std::string_view there, std::string_view here) const {
    return {Errc::invalid_argument, file_.name() + ": was computed with " + what + " " +
                                        io::quoted(there) + "; here it is " + io::quoted(here)};
  }

  const io::Gguf& file_;
  State& s_;
  detail::PrefixArrays all_;
  std::vector<Node> nodes_;
  std::vector<Scalar<ops::PageId>> pages_;  // that are filled
};

NIBBLE_INLINE Result<void> PrefixCache::FileReader::check_kind() const {
  NIBBLE_TRY(type, file_.get_string_or("general.type", ""));
  if (type != detail::kPrefixFileType) {
    return Error{Errc::invalid_argument, file_.name() + ": is no cache of prefixes"};
  }
  NIBBLE_TRY(version, file_.get_u32("prefix.version"));
  if (version != detail::kPrefixFileVersion) {
    return Error{Errc::unsupported, file_.name() + ": a cache of prefixes of version " +
                                        to_text(version) + "; this program reads version " +
                                        to_text(detail::kPrefixFileVersion)};
  }
  NIBBLE_TRY(model, file_.get_u64("prefix.model"));
  NIBBLE_TRY(own, fingerprint(s_.model));
  if (model != own) {
    return Error{Errc::invalid_argument,
                 file_.name() +
                     ": was computed with another model than this one, of architecture " +
                     io::quoted(s_.model.config().architecture)};
  }
  NIBBLE_TRY(kv_type, file_.get_string("prefix.kv_type"));
  const char* const own_type = to_string(s_.pool->cache.layout().type);
  if (kv_type != own_type) return differs("a cache of type", kv_type, own_type);
  NIBBLE_TRY(target, file_.get_string("prefix.target"));
  const char* const own_target = to_string(simd::active_target());
  if (target != own_target) return differs("the SIMD target", target, own_target);
  NIBBLE_TRY(n_tables, file_.get_i32("prefix.n_tables"));
  if (n_tables != s_.pool->layout.n_tables) {
    return Error{Errc::invalid_argument,
                 file_.name() +
                     ": was computed by an engine with another window_margin or n_ctx, "
                     "whose layers share pages in another way"};
  }
  return ok();
}

NIBBLE_INLINE Result<void> PrefixCache::FileReader::read_arrays() {
  const auto read = [&]<class T>(const char* key, std::vector<Scalar<T>>& out) -> Result<void> {
    NIBBLE_TRY(numbers, file_.get_array<Scalar<T>>(key));
    out = std::move(numbers);
    return ok();
  };
  NIBBLE_CHECK(read("prefix.parents", all_.parents));
  NIBBLE_CHECK(read("prefix.tokens", all_.tokens));
  NIBBLE_CHECK(read("prefix.n_tokens", all_.n_tokens));
  NIBBLE_CHECK(read("prefix.pages", all_.pages));
  NIBBLE_CHECK(read("prefix.weights", all_.weights));
  NIBBLE_CHECK(read("prefix.last_used", all_.last_used));
  NIBBLE_CHECK(read("prefix.lane_checksums", all_.lane_sums));
  NIBBLE_CHECK(read("prefix.state_checksums", all_.state_sums));
  NIBBLE_TRY(n_pages, file_.get_u32("prefix.n_pages"));
  all_.n_pages = n_pages;
  NIBBLE_TRY(sum, file_.get_u64("prefix.checksum"));
  if (sum != all_.checksum()) return malformed("its tokens or tables changed since it was saved");
  const std::size_t n = all_.parents.size();
  if (all_.n_tokens.size() != n || all_.weights.size() != n || all_.last_used.size() != n ||
      all_.state_sums.size() != n) {
    return malformed("tables of different lengths");
  }
  return ok();
}

NIBBLE_INLINE Result<void> PrefixCache::FileReader::make_nodes() {
  std::size_t token = 0, page = 0, n_leaves = 0;
  std::vector<Scalar<bool>> has_children(all_.parents.size());
  nodes_.reserve(all_.parents.size());
  // More pages than an engine can have, or none that there are, end here: no product overflows.
  if (all_.n_pages > static_cast<std::size_t>(s_.pool->pages.n_free())) {
    return Error{Errc::limit, file_.name() + ": has " + to_text(all_.n_pages) +
                                  " pages; the engine has " + to_text(s_.pool->pages.n_free()) +
                                  " free ones"};
  }
  std::size_t bytes = all_.n_pages * s_.page_bytes;
  for (std::size_t i = 0; i < all_.parents.size(); ++i) {
    NIBBLE_TRY(node, make_node(i, token, page));
    token += node.tokens.size();
    page += node.pages.size();
    bytes += node.bytes();
    if (node.parent >= 0) has_children[static_cast<std::size_t>(node.parent)].value = true;
    nodes_.push_back(std::move(node));
  }
  if (token != all_.tokens.size() || page != all_.pages.size()) {
    return malformed("tokens or pages that belong to no node");
  }
  for (const auto& [has] : has_children) n_leaves += !has;
  // Each leaf has a page of its own. So no node has many children, whoever made the file.
  if (s_.page_bytes > 0 && n_leaves > all_.n_pages) {
    return malformed("more ends than pages");
  }
  if (bytes > s_.max_bytes) {
    return Error{Errc::limit, file_.name() + ": takes " + to_text(bytes) +
                                  " bytes; the cache of prefixes may have " +
                                  to_text(s_.max_bytes)};
  }
  return ok();
}

NIBBLE_INLINE Result<detail::PrefixTree::Node> PrefixCache::FileReader::make_node(
    std::size_t i, std::size_t token, std::size_t page) const {
  Node node;
  node.parent = all_.parents[i].value;
  if (node.parent < -1 || node.parent >= static_cast<int>(i)) return malformed("a node's parent");
  const Node* const parent =
      node.parent < 0 ? nullptr : &nodes_[static_cast<std::size_t>(node.parent)];
  node.begin = parent == nullptr ? 0 : parent->end();
  node.weights = all_.weights[i].value;
  node.last_used = all_.last_used[i].value;
  constexpr std::uint64_t kLatest = std::uint64_t{1} << 62;  // more matches than a program makes
  if (node.last_used > kLatest) return malformed("a node's time");
  if (parent != nullptr && parent->weights != node.weights) return malformed("a node's weights");
  const std::size_t n = all_.n_tokens[i].value;
  if (n < 1 || n > all_.tokens.size() - token) return malformed("a node's number of tokens");
  if (static_cast<Index>(n) > s_.n_ctx - node.begin) {
    return Error{Errc::limit,
                 file_.name() + ": has a prefix of more than n_ctx tokens, " + to_text(s_.n_ctx)};
  }
  const auto at = all_.tokens.begin() + static_cast<std::ptrdiff_t>(token);
  node.tokens.assign(at, at + static_cast<std::ptrdiff_t>(n));
  // Learned rows of an adapter are at the beginning only.
  std::int32_t before = parent == nullptr ? graph::kNoToken : parent->tokens.back().value;
  for (const auto& [id] : node.tokens) {
    const bool is_row = id == graph::kNoToken && before == graph::kNoToken;
    if (!is_row && (id < 0 || id >= s_.pool->vocab_size)) return malformed("a token");
    before = id;
  }
  const PageLayout& layout = s_.pool->layout;
  const auto n_pages =
      static_cast<std::size_t>((node.n_columns() - node.first_column()) * layout.n_tables);
  if (n_pages > all_.pages.size() - page) return malformed("a node's pages");
  const auto end = static_cast<std::int64_t>(all_.n_pages);
  for (std::size_t j = 0; j < n_pages; ++j) {
    const ops::PageId number = all_.pages[page + j].value;
    const bool may_miss = static_cast<Index>(j) % layout.n_tables >= layout.n_full;
    if (number >= end || number < (may_miss ? -1 : 0)) return malformed("a node's pages");
    node.pages.push_back({number});
  }
  NIBBLE_CHECK(read_state(i, node));
  return node;
}

NIBBLE_INLINE Result<void> PrefixCache::FileReader::read_state(std::size_t i, Node& node) const {
  const std::string name = detail::state_name(i);
  if (file_.find_tensor(name) == nullptr) {
    if (all_.state_sums[i].value == 0) return ok();
    return malformed("tensor " + io::quoted(name) + " is missing");
  }
  const auto n_floats = static_cast<std::size_t>(s_.pool->n_state_floats);
  if (n_floats == 0) return malformed("a state, of a model without");
  NIBBLE_TRY(bytes, bytes_of(name, io::GgmlType::f32, n_floats, all_.state_sums[i].value));
  node.state.resize(n_floats);
  std::memcpy(node.state.data(), bytes.data(), bytes.size());
  return ok();
}

NIBBLE_INLINE Result<std::span<const std::byte>> PrefixCache::FileReader::bytes_of(
    const std::string& name, io::GgmlType type, std::size_t n, std::uint64_t sum) const {
  const io::GgufTensor* const tensor = file_.find_tensor(name);
  if (tensor == nullptr) return malformed("tensor " + io::quoted(name) + " is missing");
  if (tensor->type != type || tensor->n_dims != 1 || tensor->dims[0] != n) {
    return malformed("tensor " + io::quoted(name) + " has another shape");
  }
  if (io::checksum(tensor->data) != sum) {
    return malformed("tensor " + io::quoted(name) + " changed since it was saved");
  }
  return tensor->data;
}

NIBBLE_INLINE Result<void> PrefixCache::FileReader::check_place(
    std::span<const std::byte> bytes) const {
  const io::MappedFile* const file = io::file_with(file_.files(), bytes);
  const std::size_t system_page = io::MappedFile::system_page_bytes();
  if (file != nullptr &&
      static_cast<std::size_t>(bytes.data() - file->bytes().data()) % system_page == 0) {
    return ok();
  }
  return Error{Errc::unsupported,
               file_.name() + ": its pages do not begin at pages of this system's memory, of " +
                   to_text(system_page) + " bytes; restore it with PageUse::copy"};
}

NIBBLE_INLINE Result<void> PrefixCache::FileReader::take_pages(PageUse use) {
  PagePool& pages = s_.pool->pages;
  pages_.reserve(all_.n_pages);
  if (use == PageUse::copy) {
    for (std::size_t i = 0; i < all_.n_pages; ++i) {
      pages_.push_back({pages.take(pages_.empty() ? -1 : pages_.back().value)});
    }
    return ok();
  }
  const auto n = static_cast<Index>(all_.n_pages);
  const ops::PageId first = pages.take_run(n, s_.pool->page_multiple);
  if (first < 0) {
    return Error{Errc::limit, file_.name() + ": has " + to_text(n) +
                                  " pages; the engine has fewer free ones that follow each other"};
  }
  for (Index i = 0; i < n; ++i) pages_.push_back({first + static_cast<ops::PageId>(i)});
  return ok();
}

NIBBLE_INLINE Result<void> PrefixCache::FileReader::fill(const ops::KvCache::Lane& lane,
                                                         std::span<const std::byte> bytes,
                                                         PageUse use) const {
  if (use == PageUse::copy) {
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      std::memcpy(lane.tile(pages_[i].value), bytes.data() + i * lane.tile_bytes, lane.tile_bytes);
    }
    return ok();
  }
  const std::size_t system_page = io::MappedFile::system_page_bytes();
  std::byte* const to = lane.tile(pages_.front().value);
  const std::size_t n_placed = bytes.size() - bytes.size() % system_page;
  NIBBLE_CHECK(io::file_with(file_.files(), bytes)->place(bytes.first(n_placed), to));
  std::memcpy(to + n_placed, bytes.data() + n_placed, bytes.size() - n_placed);
  return ok();
}

NIBBLE_INLINE Result<void> PrefixCache::FileReader::fill_pages(PageUse use) {
  std::vector<ops::KvCache::Lane> lanes = s_.lanes();
  if (all_.n_pages == 0) lanes.clear();
  if (lanes.size() != all_.lane_sums.size()) return malformed("a number of checksums");
  if (lanes.empty()) return ok();
  // All are checked before the first is used: no page of a file that is refused stays in the
  // memory of the cache.
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    NIBBLE_TRY(bytes, bytes_of(detail::lane_name(i), io::GgmlType::i8,
                               all_.n_pages * lanes[i].tile_bytes, all_.lane_sums[i].value));
    if (use == PageUse::map) NIBBLE_CHECK(check_place(bytes));
  }
  NIBBLE_CHECK(take_pages(use));
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    NIBBLE_CHECK(fill(lanes[i], file_.find_tensor(detail::lane_name(i))->data, use));
  }
  return ok();
}

NIBBLE_INLINE Result<void> PrefixCache::FileReader::enter_nodes() {
  std::vector<Scalar<int>> indices;  // of the nodes that are entered
  indices.reserve(nodes_.size());
  for (Node& node : nodes_) {
    for (auto& [page] : node.pages) {
      if (page >= 0) page = pages_[static_cast<std::size_t>(page)].value;
    }
    const int parent = node.parent < 0 ? detail::PrefixTree::kRoot
                                       : indices[static_cast<std::size_t>(node.parent)].value;
    if (s_.tree.has_child(parent, node.tokens[0].value, node.weights)) {
      return malformed("two nodes that begin alike");
    }
    s_.time = (std::max)(s_.time, node.last_used);
    indices.push_back({s_.tree.add(parent, std::move(node))});
  }
  return ok();
}

NIBBLE_INLINE Result<void> PrefixCache::restore(const std::string& path, PageUse use) {
  if (!state_->tree.empty()) {
    return Error{Errc::invalid_argument,
                 "prefix cache: it is not empty; clear() it before restore()"};
  }
  if (use == PageUse::map && state_->pool->page_multiple == 0) {
    return Error{Errc::invalid_argument,
                 "prefix cache: PageUse::map, but the engine was made without maps_pages"};
  }
  return catch_out_of_memory([&]() -> Result<void> {
    NIBBLE_TRY(file, io::Gguf::open(path));
    FileReader reader(file, *state_);
    NIBBLE_CHECK(reader.check_kind());
    NIBBLE_CHECK(reader.read_arrays());
    NIBBLE_CHECK(reader.make_nodes());
    Result<void> done = catch_out_of_memory([&]() -> Result<void> {
      NIBBLE_CHECK(reader.fill_pages(use));
      return reader.enter_nodes();
    });
    reader.drop_pages();
    if (!done) state_->tree.clear();
    return done;
  });
}

}}  // namespace nibble::NIBBLE_ABI
