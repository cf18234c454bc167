// SPDX-License-Identifier: Apache-2.0
//
// The weights of a model in memory. They are announced one by one from row-major sources (a mapped
// file, a buffer), then packed together into one block, in parallel, without a second copy in
// between.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/tensor_bytes.hpp"
#include "nibble/model/channel_rows.hpp"
#include "nibble/model/pack_weights.hpp"
#include "nibble/model/progress.hpp"
#include "nibble/model/slot.hpp"
#include "nibble/model/weight_conversion.hpp"
#include "nibble/quant/read_only.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The two matrices of factors of low rank: graph::Factors::a (n, r) and b (r, k).
enum class FactorSide : std::uint8_t { a, b };

// Where weights belong in a store: to a slot (an enumerator or its number) of a layer (-1: outside
// of the layers), or to one side of the factors of such a slot.
struct WeightPlace {
  template <class SlotType>
  WeightPlace(SlotType s, Index l, std::optional<FactorSide> f = {}) noexcept
      : slot(static_cast<std::size_t>(s)), layer(l), side(f) {}

  std::size_t slot;
  Index layer;
  std::optional<FactorSide> side;
};

class WeightStore {
 public:
  // An empty store for the weights of a model of n_layers layers. Slots are numbers below n_slots;
  // weights are in the formats of `formats` (FormatList::kOps).
  WeightStore(Index n_layers, std::size_t n_slots, graph::FormatTable formats)
      : formats_(formats),
        n_slots_(n_slots),
        weights_((static_cast<std::size_t>(n_layers) + 1) * n_slots) {}
  // For nibble's own slots, and formats that a program names.
  template <class Formats>
  WeightStore(Index n_layers, Formats) : WeightStore(n_layers, kSlotCount, Formats::kOps) {}

  // Announces a matrix (n, k) in `format` whose rows are contiguous, or a vector of k floats (n =
  // 0; any float format, kept as f32), or n_experts contiguous matrices or vectors. `rows` must
  // stay alive until pack() succeeds. `swapped`: the order in which the rows are stored, if another
  // (io/tensor_bytes.hpp). A side of factors is a matrix of its own shape; both sides must come, of
  // the same rank, beside weights of their shape or without such (graph::Factors). Errors:
  // unsupported (a format that was not named), invalid_argument (sizes that do not agree, a layer
  // or slot that does not exist, a place that is already filled, a store that is already packed),
  // limit (the total is more than the address space).
  Result<void> add(const WeightPlace& place, quant::Format format, Index n, Index k,
                   std::span<const std::byte> rows, Index n_experts = 1,
                   const io::SwappedAxes& swapped = {}) {
    return add_rows(place, format, n, k, rows, n_experts, swapped, nullptr);
  }
  // The same for a matrix in a type that programs may only read (quant/read_only.hpp): pack()
  // converts it to the nearest format, unless one of `formats` holds the same weights.
  Result<void> add(const WeightPlace& place, const quant::ReadOnlyType& type, Index n, Index k,
                   std::span<const std::byte> rows, Index n_experts = 1,
                   const io::SwappedAxes& swapped = {}) {
    const auto [format, converted] = format_for(type, k);
    return add_rows(place, format, n, k, rows, n_experts, swapped, converted);
  }

  // The same for experts whose matrices are apart: the rows of each.
  template <class FormatOrType>
  Result<void> add_experts(const WeightPlace& place, const FormatOrType& from, Index n, Index k,
                           std::span<const std::span<const std::byte>> experts) {
    if constexpr (std::is_same_v<FormatOrType, quant::ReadOnlyType>) {
      const auto [format, converted] = format_for(from, k);
      return add_rows(place, format, n, k, experts, converted);
    } else {
      return add_rows(place, from, n, k, experts, nullptr);
    }
  }

  // The same for 8-bit weights with a scale for each row (I8Channel), in two arrays: `codes` (n,
  // k), contiguous, in [-127, 127], and the scales (n). `input`: the range of the product's input
  // if it is known before. The scales are copied. Without I8Channel among the formats of the store,
  // pack() converts them to f16, or to f32 if f16 is none of them or does not hold them;
  // conversions() says so, and the input is f32. Errors: as above; also invalid_argument (a scale
  // that is not a finite number of at least 0, or an `input` that is not usable), limit (rows that
  // are longer than products allow).
  Result<void> add_channels(const WeightPlace& place, Index n, Index k,
                            std::span<const std::byte> codes, std::span<const float> scales,
                            const quant::StaticScale& input = {}, Index n_experts = 1) {
    return add_channel_rows(place, {nullptr, n, k, codes.data(), n_experts, input}, codes, scales);
  }

  // The same for matrices that are already packed, n_experts * Packed<Format>::bytes(n, k) bytes.
  // They are used in place, so `packed` must outlive the store; it must be aligned to 64 bytes.
  // Those of sparse formats are checked here, and no more later: every product takes the offsets of
  // panels, and in them the sizes of steps, from `packed`. So nobody may change it, for example by
  // rewriting a file that is mapped: with other offsets products read outside of it. (Of other
  // formats the sizes do not depend on the bytes: then only the results change.) copy_packed() has
  // no such need. Errors as above.
  Result<void> add_packed(const WeightPlace& place, quant::Format format, Index n, Index k,
                          std::span<const std::byte> packed, Index n_experts = 1) {
    return add_packed_matrices(place, format, n, k, packed, n_experts, true);
  }
  // The same for packed matrices that pack() copies: `packed` must stay alive and unchanged until
  // it succeeds, aligned in any way.
  Result<void> copy_packed(const WeightPlace& place, quant::Format format, Index n, Index k,
                           std::span<const std::byte> packed, Index n_experts = 1) {
    return add_packed_matrices(place, format, n, k, packed, n_experts, false);
  }

  // The same for the place of a slot: add(slot, layer, …) is add({slot, layer}, …).
  template <class SlotType, class FormatOrType>
  Result<void> add(SlotType slot, Index layer, const FormatOrType& format, Index n, Index k,
                   std::span<const std::byte> rows, Index n_experts = 1,
                   const io::SwappedAxes& swapped = {}) {
    return add(WeightPlace(slot, layer), format, n, k, rows, n_experts, swapped);
  }
  template <class SlotType>
  Result<void> add_channels(SlotType slot, Index layer, Index n, Index k,
                            std::span<const std::byte> codes, std::span<const float> scales,
                            const quant::StaticScale& input = {}, Index n_experts = 1) {
    return add_channels(WeightPlace(slot, layer), n, k, codes, scales, input, n_experts);
  }
  template <class SlotType>
  Result<void> add_packed(SlotType slot, Index layer, quant::Format format, Index n, Index k,
                          std::span<const std::byte> packed, Index n_experts = 1) {
    return add_packed(WeightPlace(slot, layer), format, n, k, packed, n_experts);
  }
  template <class SlotType>
  Result<void> copy_packed(SlotType slot, Index layer, quant::Format format, Index n, Index k,
                           std::span<const std::byte> packed, Index n_experts = 1) {
    return copy_packed(WeightPlace(slot, layer), format, n, k, packed, n_experts);
  }

  // Whether all factors that were added go together; pack() does the same. Errors:
  // invalid_argument, if those of a slot are not (n, r) and (r, k), or not of the shape of the
  // weights beside them.
  Result<void> check_factors() const {
    for (const Factored& f : factored_) {
      const graph::Weight &w = weights_[f.index], &a = f.factors.a, &b = f.factors.b;
      if (a && b && a.k == b.n && a.n == w.n && b.k == w.k && w.n_experts == 1) continue;
      return Error{Errc::invalid_argument, "factors " + graph::shape_text(a.n, a.k) + " and " +
                                               graph::shape_text(b.n, b.k) + " of weights " +
                                               graph::shape_text(w.n, w.k, w.n_experts) +
                                               ": one of them is missing, or "
                                               "their shapes do not go together"};
    }
    return ok();
  }

  // Gives a slot the same weights, and factors, as another, which is added before pack(): layers
  // that share a matrix.
  template <class SlotType>
  void share(SlotType slot, Index layer, SlotType other, Index other_layer) {
    ties_.push_back({index(static_cast<std::size_t>(slot), layer),
                     index(static_cast<std::size_t>(other), other_layer)});
  }

  // Gives `slot` the same weights as `other`, added before: a tied output layer. Both are outside
  // of the layers.
  template <class SlotType>
  void tie(SlotType slot, SlotType other) {
    ties_.push_back(
        {index(static_cast<std::size_t>(slot), -1), index(static_cast<std::size_t>(other), -1)});
  }

  // Packs everything that was added; the sources are not needed afterwards. Rows in one of `files`
  // are read from it in pieces (MappedFile::read), and so are rows in memory that are not aligned
  // to 4 bytes or in another order: memory holds the packed weights and one piece per worker. It
  // succeeds once, and nothing can be added after that; after an error it may be called again.
  // Errors: out_of_memory, cancelled (by `progress`), io, malformed (codes of channels that are not
  // in [-127, 127], or weights to convert that are not finite), limit (weights to convert that
  // their format cannot hold), invalid_argument (already packed; those of check_factors()).
  Result<void> pack(Executor& executor, const Progress* progress = nullptr,
                    std::span<const io::MappedFile> files = {}) {
    if (is_packed_) return Error{Errc::invalid_argument, "the weights are packed already"};
    NIBBLE_CHECK(check_factors());
    NIBBLE_TRY(memory, AlignedBuffer::allocate(total_));
    NIBBLE_TRY(packer,
               detail::WeightPacker::create(executor, files, scales_, largest_piece(files)));
    std::size_t done = 0;
    for (const Entry& entry : entries_) {
      NIBBLE_CHECK(packer.pack(entry.source, memory.data() + entry.offset));
      done += align_up(entry.source.packed_bytes);
      if (progress != nullptr && *progress && !(*progress)(done, total_)) {
        return Error{Errc::cancelled, "loading weights"};
      }
    }
    // Only now, when nothing can fail any more: until here the weights are those of the sources.
    memory_ = std::move(memory);
    for (const Entry& entry : entries_) {
      if (entry.expert == 0) weight_at(entry.index).data = memory_.data() + entry.offset;
    }
    fill_ties();
    entries_.clear();
    ties_.clear();
    scales_ = {};
    is_packed_ = true;
    return ok();
  }

  // Gives the slots that are tied or shared the weights of the others, as pack() does: for a store
  // whose shapes and formats are read, and which is not packed before that.
  void fill_ties() noexcept {
    for (int round = 0; round < 2; ++round) {  // what is tied to a slot that shares another's
      for (const Tie& tie : ties_) weights_[tie.index] = weights_[tie.other];
    }
  }

  graph::WeightTable table() const noexcept { return {weights_, n_slots_}; }
  // Bytes of all weights, and of those that are used in place (add_packed).
  std::size_t bytes() const noexcept { return total_ + in_place_; }
  std::size_t bytes_in_place() const noexcept { return in_place_; }
  // What pack() converts, one entry for each two types.
  std::span<const WeightConversion> conversions() const noexcept { return conversions_; }
  // Before pack(): bytes that are free again after it, beside what the workers hold.
  std::size_t bytes_of_scales() const noexcept { return scales_.size() * sizeof(float); }
  // Before pack(): bytes of what each worker of the executor will hold, the piece of rows that it
  // reads and the rows that it converts.
  std::size_t largest_piece(std::span<const io::MappedFile> files) const noexcept {
    std::size_t largest = 0;
    for (const Entry& entry : entries_) {
      largest = (std::max)(largest, entry.source.worker_bytes(files));
    }
    return largest;
  }

 private:
  // A matrix, one of the experts of a place, or a vector, until it is packed.
  struct Entry {
    std::size_t index;
    Index expert;
    std::size_t offset;  // in the memory of the packed weights
    detail::WeightSource source;
  };
  struct Tie {
    std::size_t index;
    std::size_t other;
  };
  // Factors of the weights at `index`.
  struct Factored {
    std::size_t index;
    graph::Factors factors;
  };

  // Weights by the index of an entry: behind those of the slots come the sides of factors.
  graph::Weight& weight_at(std::size_t at) noexcept {
    if (at < weights_.size()) return weights_[at];
    graph::Factors& factors = factored_[(at - weights_.size()) / 2].factors;
    return (at - weights_.size()) % 2 == 0 ? factors.a : factors.b;
  }

  std::size_t index(std::size_t slot, Index layer) const noexcept {
    NIBBLE_ASSERT(table().has(slot, layer));
    return static_cast<std::size_t>(layer + 1) * n_slots_ + slot;
  }
  // Where the factors of a slot are, or where new ones would be.
  std::size_t factored_at(std::size_t slot_index) const noexcept {
    std::size_t i = 0;
    while (i < factored_.size() && factored_[i].index != slot_index) ++i;
    return i;
  }

  // Whether the place exists and is free, for a matrix or a vector (n = 0).
  Result<void> check_place(const WeightPlace& place, Index n) const {
    bool is_free = table().has(place.slot, place.layer) && !is_packed_;
    if (is_free && place.side) {
      if (n < 1) return Error{Errc::invalid_argument, "a factor that is a vector"};
      const std::size_t i = factored_at(index(place.slot, place.layer));
      if (i < factored_.size()) {
        const graph::Factors& f = factored_[i].factors;
        is_free = !(place.side == FactorSide::a ? f.a : f.b);
      }
    } else if (is_free) {
      is_free = !weights_[index(place.slot, place.layer)].has_base();
    }
    if (is_free) return ok();
    return Error{Errc::invalid_argument, "weights for slot " + to_text(place.slot) + " of layer " +
                                             to_text(place.layer) +
                                             ": no such place, added twice, or packed already"};
  }

  // Puts a weight to its place and returns the index of that. Factors of a slot stay when its
  // weights come.
  std::size_t set(const WeightPlace& place, const graph::Weight& weight) {
    const std::size_t at = index(place.slot, place.layer);
    graph::Weight& w = weights_[at];
    if (!place.side) {
      const graph::Factors* const factors = w.factors;
      w = weight;
      w.factors = factors;
      return at;
    }
    const std::size_t i = factored_at(at);
    if (i == factored_.size()) {
      factored_.push_back({at, {}});
      // A vector that grows moves what weights refer to.
      for (const Factored& f : factored_) weights_[f.index].factors = &f.factors;
    }
    const bool is_a = place.side == FactorSide::a;
    if (!w.has_base()) (is_a ? w.n : w.k) = is_a ? weight.n : weight.k;
    (is_a ? factored_[i].factors.a : factored_[i].factors.b) = weight;
    return weights_.size() + 2 * i + (is_a ? 0 : 1);
  }

  // Makes the entries of weights that pack() packs: `source` is that of all experts, unless these
  // are apart. Error: limit.
  Result<void> enter(const WeightPlace& place, const graph::Weight& weight,
                     const detail::WeightSource& source,
                     std::span<const std::span<const std::byte>> apart = {}) {
    const auto n_experts = static_cast<std::size_t>(weight.n_experts);
    const Index one = n_experts > 1 ? weight.expert(0).bytes() : weight.bytes();
    if (one > kMaxBytes / weight.n_experts ||
        one * weight.n_experts > kMaxBytes - static_cast<Index>(total_ + kAlignment)) {
      return Error{Errc::limit, "the packed weights do not fit in the address space"};
    }
    detail::WeightSource of_one = source;
    of_one.weight = weight;
    of_one.weight.n_experts = 1;
    of_one.packed_bytes = static_cast<std::size_t>(one);
    const std::size_t source_bytes = source.bytes.size() / n_experts;
    const std::size_t at = set(place, weight);
    for (std::size_t i = 0; i < n_experts; ++i) {
      of_one.bytes =
          apart.empty() ? source.bytes.subspan(i * source_bytes, source_bytes) : apart[i];
      entries_.push_back({at, static_cast<Index>(i), total_ + i * of_one.packed_bytes, of_one});
      if (of_one.first_scale != detail::kNoScales) {
        of_one.first_scale += static_cast<std::size_t>(weight.n);
      }
    }
    total_ += align_up(n_experts * of_one.packed_bytes);
    return ok();
  }

  Result<const graph::FormatOps*> ops_of(quant::Format format) const {
    const graph::FormatOps* const ops = graph::find(formats_, format);
    if (ops != nullptr) return ops;
    std::string compiled;
    for (const graph::FormatOps* const other : formats_) {
      compiled += (compiled.empty() ? "" : ", ") + std::string(to_string(other->format));
    }
    return Error{Errc::unsupported, std::string("weights in ") + to_string(format) +
                                        " are not compiled into this program, only " + compiled +
                                        " (load<graph::AllFormats> has all)"};
  }

  // The format of weights in a type, and that type if they have to be converted.
  std::pair<quant::Format, const quant::ReadOnlyType*> format_for(const quant::ReadOnlyType& type,
                                                                  Index k) const noexcept {
    if (!type.exact || graph::find(formats_, *type.exact) == nullptr) {
      return {type.nearest_for(static_cast<std::size_t>(k)), &type};
    }
    const auto own = quant::format_of(type.type);
    return {*type.exact, own && *own == *type.exact ? nullptr : &type};
  }

  Result<void> add_rows(const WeightPlace& place, quant::Format format, Index n, Index k,
                        std::span<const std::byte> rows, Index n_experts,
                        const io::SwappedAxes& swapped, const quant::ReadOnlyType* type) {
    NIBBLE_TRY(weight, checked_weight(place, format, n, k, rows, n_experts, type));
    NIBBLE_CHECK(enter(place, weight, {weight, format, rows, 0, false, swapped, type}));
    if (type != nullptr) count_conversion(type->type, format);
    return ok();
  }
  // The same for experts that are apart.
  Result<void> add_rows(const WeightPlace& place, quant::Format format, Index n, Index k,
                        std::span<const std::span<const std::byte>> experts,
                        const quant::ReadOnlyType* type) {
    if (experts.empty()) return Error{Errc::invalid_argument, "no experts"};
    graph::Weight weight;
    for (const std::span<const std::byte> rows : experts) {
      NIBBLE_TRY(one, checked_weight(place, format, n, k, rows, 1, type));
      weight = one;
    }
    weight.n_experts = static_cast<Index>(experts.size());
    NIBBLE_CHECK(enter(place, weight, {weight, format, experts[0], 0, false, {}, type}, experts));
    if (type != nullptr) count_conversion(type->type, format);
    return ok();
  }

  Result<graph::Weight> checked_weight(const WeightPlace& place, quant::Format format, Index n,
                                       Index k, std::span<const std::byte> rows, Index n_experts,
                                       const quant::ReadOnlyType* type) const {
    NIBBLE_CHECK(check_place(place, n));
    const bool is_vector = n == 0;
    const char* const name = type == nullptr ? to_string(format) : io::type_traits(type->type).name;
    if (is_vector && !is_float(format)) {
      return Error{Errc::unsupported, std::string("weights in ") + name + " for a vector"};
    }
    graph::Weight weight{nullptr, n, k, rows.data(), n_experts};
    if (!is_vector) {
      NIBBLE_TRY(ops, ops_of(format));
      weight.ops = ops;
    }
    const auto row_bytes = detail::WeightSource::bytes_of_row(weight, format, type);
    if (!row_bytes) return row_bytes.error();
    const bool has_shape = n >= 0 && k >= 1 && n_experts >= 1 && n <= kMaxBytes / n_experts;
    const std::size_t n_rows =
        has_shape ? static_cast<std::size_t>((is_vector ? 1 : n) * n_experts) : std::size_t{1};
    if (!has_shape || rows.size() / n_rows != *row_bytes || rows.size() % n_rows != 0) {
      return Error{Errc::invalid_argument, to_text(rows.size()) + " bytes are not " +
                                               graph::shape_text(n, k, n_experts) + " weights of " +
                                               name};
    }
    return weight;
  }

  void count_conversion(io::GgmlType from, quant::Format format) {
    for (WeightConversion& conversion : conversions_) {
      if (conversion.from != from || conversion.to != format) continue;
      ++conversion.n_tensors;
      return;
    }
    conversions_.push_back({from, format, 1});
  }

  Result<void> add_channel_rows(const WeightPlace& place, graph::Weight weight,
                                std::span<const std::byte> codes, std::span<const float> scales) {
    NIBBLE_CHECK(check_place(place, weight.n));
    NIBBLE_TRY(format, detail::channel_format(formats_, scales));
    NIBBLE_CHECK(detail::check_channels(weight, codes.size(), scales));
    NIBBLE_TRY(ops, ops_of(format));
    weight.ops = ops;
    const bool is_converted = format != quant::Format::i8_channel;
    if (is_converted) weight.input = {};
    NIBBLE_CHECK(
        enter(place, weight, {weight, format, codes, 0, false, {}, nullptr, scales_.size()}));
    scales_.reserve(scales_.size() + scales.size());
    for (const float scale : scales) scales_.push_back({scale});
    if (is_converted) count_conversion(io::GgmlType::i8, format);
    return ok();
  }

  Result<void> add_packed_matrices(const WeightPlace& place, quant::Format format, Index n, Index k,
                                   std::span<const std::byte> packed, Index n_experts,
                                   bool in_place) {
    NIBBLE_CHECK(check_place(place, n));
    NIBBLE_TRY(ops, ops_of(format));
    bool is_small = true;
    if (ops->check_data != nullptr) {
      if (n_experts != 1) {
        return Error{Errc::unsupported,
                     std::string("experts packed as ") + to_string(format) + ": one matrix only"};
      }
      NIBBLE_CHECK(ops->check_data(packed, n, k));
    } else {
      NIBBLE_CHECK(ops->check_shape(n, k));  // whole blocks
      // A weight takes at least a bit. Of shapes that are much larger, the sizes could overflow.
      const auto rows = static_cast<std::size_t>(n), columns = static_cast<std::size_t>(k);
      is_small = columns / 8 <= packed.size() && rows / 8 <= packed.size() / columns;
    }
    const graph::Weight weight{ops, n, k, packed.data(), n_experts};
    if (!is_small || n_experts < 1 || packed.size() % static_cast<std::size_t>(n_experts) != 0 ||
        static_cast<Index>(packed.size()) / n_experts != weight.expert(0).bytes()) {
      return Error{Errc::invalid_argument, to_text(packed.size()) + " bytes are not a packed " +
                                               to_string(format) + " matrix of " + to_text(n) +
                                               " rows of " + to_text(k)};
    }
    if (!in_place) return enter(place, weight, {weight, format, packed, 0, true});
    if (reinterpret_cast<std::uintptr_t>(packed.data()) % kAlignment != 0) {
      return Error{Errc::invalid_argument, "packed weights that are not aligned to 64 bytes"};
    }
    set(place, weight);
    in_place_ += packed.size();
    return ok();
  }

  static bool is_float(quant::Format format) noexcept {
    return format == quant::Format::f32 || format == quant::Format::f16 ||
           format == quant::Format::bf16;
  }

  graph::FormatTable formats_;
  std::size_t n_slots_;
  std::vector<graph::Weight> weights_;
  std::vector<Factored> factored_;
  std::vector<Entry> entries_;
  std::vector<Tie> ties_;
  std::vector<WeightConversion> conversions_;
  std::vector<Scalar<float>> scales_;  // of channels, until they are packed
  std::size_t total_ = 0;              // bytes that pack() fills
  std::size_t in_place_ = 0;           // bytes in the caller's memory
  bool is_packed_ = false;
  AlignedBuffer memory_;
};

}}  // namespace nibble::NIBBLE_ABI
