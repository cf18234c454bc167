// SPDX-License-Identifier: Apache-2.0
//
// The weights of a model in memory. They are announced one by one from row-major sources (a mapped
// file, a buffer), then packed together into one block, in parallel, without a second copy in
// between.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/mapped_file.hpp"
#include "nibble/io/tensor_bytes.hpp"
#include "nibble/kernels/pack.hpp"
#include "nibble/kernels/pass.hpp"
#include "nibble/model/channels.hpp"
#include "nibble/model/progress.hpp"
#include "nibble/model/slot.hpp"
#include "nibble/model/weight_conversion.hpp"
#include "nibble/quant/read_only.hpp"

namespace nibble { inline namespace NIBBLE_ABI {

// The two matrices of factors of low rank: graph::Factors::a (n, r) and b (r, k).
enum class FactorSide : std::uint8_t { a, b };

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
  // 0; any float format, kept as f32), or n_experts contiguous matrices. `rows` must stay alive
  // until pack() succeeds. slot: an enumerator or its number. `swapped`: the order in which the
  // rows are stored, if another (io/tensor_bytes.hpp). Errors: unsupported (a format that was not
  // named), invalid_argument (sizes that do not agree, a layer or slot that does not exist, a slot
  // that is already filled, a store that is already packed), limit (the total is more than the
  // address space).
  template <class SlotType>
  Result<void> add(SlotType slot, Index layer, quant::Format format, Index n, Index k,
                   std::span<const std::byte> rows, Index n_experts = 1,
                   const io::SwappedAxes& swapped = {}) {
    return add_slot(static_cast<std::size_t>(slot), layer, format, n, k, rows, n_experts, swapped);
  }
  // The same for a matrix in a type that is only read: pack() converts it to the nearest format
  // (quant/read_only.hpp).
  template <class SlotType>
  Result<void> add(SlotType slot, Index layer, const quant::ReadOnlyType& type, Index n, Index k,
                   std::span<const std::byte> rows, Index n_experts = 1,
                   const io::SwappedAxes& swapped = {}) {
    const quant::Format format = type.nearest_for(static_cast<std::size_t>(k));
    return add_slot(static_cast<std::size_t>(slot), layer, format, n, k, rows, n_experts, swapped,
                    &type);
  }

  // The same for 8-bit weights with a scale for each row (I8Channel), in two arrays: `codes` (n,
  // k), contiguous, in [-127, 127], and the scales (n). `input`: the range of the product's input
  // if it is known before. The scales are copied. Without I8Channel among the formats of the store,
  // pack() converts them to f16, or to f32 if f16 is none of them or does not hold them;
  // conversions() says so, and the input is f32. Errors: as above; also invalid_argument (a scale
  // that is not a finite number of at least 0, or an `input` that is not usable), limit (rows that
  // are longer than products allow).
  template <class SlotType>
  Result<void> add_channels(SlotType slot, Index layer, Index n, Index k,
                            std::span<const std::byte> codes, std::span<const float> scales,
                            const quant::StaticScale& input = {}, Index n_experts = 1) {
    return add_channel_slot(static_cast<std::size_t>(slot), layer,
                            {nullptr, n, k, codes.data(), n_experts, input}, codes, scales);
  }

  // The same for matrices that are already packed, n_experts * Packed<Format>::bytes(n, k) bytes.
  // They are used in place, so `packed` must outlive the store; it must be aligned to 64 bytes.
  // Errors as above.
  template <class SlotType>
  Result<void> add_packed(SlotType slot, Index layer, quant::Format format, Index n, Index k,
                          std::span<const std::byte> packed, Index n_experts = 1) {
    return add_packed_slot(static_cast<std::size_t>(slot), layer, format, n, k, packed, n_experts,
                           true);
  }
  // The same for packed matrices that pack() copies: `packed` must stay alive until it succeeds,
  // aligned in any way.
  template <class SlotType>
  Result<void> copy_packed(SlotType slot, Index layer, quant::Format format, Index n, Index k,
                           std::span<const std::byte> packed, Index n_experts = 1) {
    return add_packed_slot(static_cast<std::size_t>(slot), layer, format, n, k, packed, n_experts,
                           false);
  }

  // Announces one of the two factors of a slot, (n, k) of its own; both must come, of the same
  // rank, beside weights of their shape or without such (graph::Factors). rows, format, errors: as
  // add(); check_factors() says whether they agree.
  template <class SlotType>
  Result<void> add_factor(SlotType slot, Index layer, FactorSide side, quant::Format format,
                          Index n, Index k, std::span<const std::byte> rows) {
    return add_factor_slot(static_cast<std::size_t>(slot), layer, side, format, n, k, rows);
  }
  // Errors: invalid_argument, if the factors of a slot are not (n, r) and (r, k), or not of the
  // shape of the weights beside them.
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
  // their format cannot hold), invalid_argument (already packed).
  Result<void> pack(Executor& executor, const Progress* progress = nullptr,
                    std::span<const io::MappedFile> files = {}) {
    if (is_packed_) return Error{Errc::invalid_argument, "the weights are packed already"};
    NIBBLE_TRY(memory, AlignedBuffer::allocate(total_));
    Workers workers;
    workers.piece = largest_piece(files);
    const auto n_workers = static_cast<std::size_t>(executor.n_workers());
    if (workers.piece > SIZE_MAX / n_workers) {
      return Error{Errc::out_of_memory,
                   to_text(n_workers) + " pieces of " + to_text(workers.piece) + " bytes"};
    }
    NIBBLE_TRY(pieces, AlignedBuffer::allocate(n_workers * workers.piece));
    workers.pieces = pieces.data();
    workers.errors.resize(n_workers);
    std::size_t done = 0;
    for (const Entry& entry : entries_) {
      pack_one(executor, entry, files, workers, memory.data() + entry.offset);
      for (std::optional<Error>& error : workers.errors) {
        if (error) return *std::move(error);
      }
      done += align_up(packed_bytes(entry));
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
      const std::size_t piece =
          is_read(entry, file_of(entry, files)) ? align_up(piece_bytes(entry)) : 0;
      largest = (std::max)(largest, piece + conversion_bytes(entry));
    }
    return largest;
  }

 private:
  // A matrix, one of a slot's experts, or a vector, until it is packed.
  struct Entry {
    std::size_t index;
    const std::byte* source;
    std::size_t offset;  // in the memory of the packed weights
    quant::Format format;
    Index expert = 0;
    bool is_packed = false;  // the source is: it is only copied
    io::SwappedAxes swapped = {};
    const quant::ReadOnlyType* type = nullptr;  // of the source, if it is not in `format`
    std::size_t first_scale = kNoScales;        // in scales_, if the source is codes of channels
  };
  static constexpr std::size_t kNoScales = SIZE_MAX;
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
  const graph::Weight& weight_at(std::size_t at) const noexcept {
    return const_cast<WeightStore*>(this)->weight_at(at);
  }

  // Its factors stay.
  void set(std::size_t at, const graph::Weight& weight) noexcept {
    graph::Weight& w = weight_at(at);
    const graph::Factors* const factors = w.factors;
    w = weight;
    w.factors = factors;
  }

  Result<void> add_factor_slot(std::size_t slot, Index layer, FactorSide side, quant::Format format,
                               Index n, Index k, std::span<const std::byte> rows) {
    if (n < 1) return Error{Errc::invalid_argument, "a factor that is a vector"};
    NIBBLE_CHECK(check_place(slot, layer));
    const std::size_t at = index(slot, layer);
    std::size_t i = 0;
    while (i < factored_.size() && factored_[i].index != at) ++i;
    if (i == factored_.size()) factored_.push_back({at, {}});
    // A vector that grows moves what weights refer to.
    for (const Factored& f : factored_) weights_[f.index].factors = &f.factors;
    graph::Weight& w = weights_[at];
    if (!w.has_base()) (side == FactorSide::a ? w.n : w.k) = side == FactorSide::a ? n : k;
    const std::size_t part = weights_.size() + 2 * i + (side == FactorSide::a ? 0 : 1);
    if (weight_at(part)) return Error{Errc::invalid_argument, "a factor that is added twice"};
    return add_at(part, format, n, k, rows, 1, {}, nullptr);
  }

  Result<void> check_slot(std::size_t slot, Index layer) const {
    NIBBLE_CHECK(check_place(slot, layer));
    if (!weights_[index(slot, layer)].has_base()) return ok();
    return no_place(slot, layer);
  }
  Result<void> check_place(std::size_t slot, Index layer) const {
    const auto n_layers = static_cast<Index>(weights_.size() / n_slots_) - 1;
    const bool exists = slot < n_slots_ && layer >= -1 && layer < n_layers;
    if (exists && !is_packed_) return ok();
    return no_place(slot, layer);
  }
  static Error no_place(std::size_t slot, Index layer) {
    return Error{Errc::invalid_argument, "weights for slot " + to_text(slot) + " of layer " +
                                             to_text(layer) +
                                             ": no such place, added twice, or packed already"};
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

  Result<void> add_slot(std::size_t slot, Index layer, quant::Format format, Index n, Index k,
                        std::span<const std::byte> rows, Index n_experts,
                        const io::SwappedAxes& swapped, const quant::ReadOnlyType* type = nullptr) {
    NIBBLE_CHECK(check_slot(slot, layer));
    return add_at(index(slot, layer), format, n, k, rows, n_experts, swapped, type);
  }

  Result<void> add_at(std::size_t at, quant::Format format, Index n, Index k,
                      std::span<const std::byte> rows, Index n_experts,
                      const io::SwappedAxes& swapped, const quant::ReadOnlyType* type) {
    const bool is_vector = n == 0;
    if (is_vector && !is_float(format)) {
      return Error{Errc::unsupported,
                   std::string("weights in ") +
                       (type == nullptr ? to_string(format) : io::type_traits(type->type).name) +
                       " for a vector"};
    }
    graph::Weight weight{nullptr, n, k, rows.data(), n_experts};
    if (!is_vector) {
      NIBBLE_TRY(ops, ops_of(format));
      weight.ops = ops;
    }
    const auto row_bytes = bytes_of_row(weight, format, type);
    if (!row_bytes) return row_bytes.error();
    const bool has_shape = n >= 0 && k >= 1 && n_experts >= 1 && n <= kMaxBytes / n_experts &&
                           !(is_vector && n_experts > 1);
    const std::size_t n_rows =
        has_shape && !is_vector ? static_cast<std::size_t>(n * n_experts) : std::size_t{1};
    if (!has_shape || rows.size() / n_rows != *row_bytes || rows.size() % n_rows != 0) {
      return Error{Errc::invalid_argument,
                   to_text(rows.size()) + " bytes are not " + graph::shape_text(n, k, n_experts) +
                       " weights of " +
                       (type == nullptr ? to_string(format) : io::type_traits(type->type).name)};
    }
    if (n_experts > 1 && weight.expert(0).bytes() > kMaxBytes / n_experts) {
      return Error{Errc::limit, "the packed weights do not fit in the address space"};
    }
    if (weight.bytes() > kMaxBytes - static_cast<Index>(total_ + kAlignment)) {
      return Error{Errc::limit, "the packed weights do not fit in the address space"};
    }
    enter(at, weight, format, rows, false, swapped, type);
    if (type != nullptr) count_conversion(type->type, format);
    return ok();
  }

  void count_conversion(io::GgmlType from, quant::Format format) {
    for (WeightConversion& conversion : conversions_) {
      if (conversion.from != from || conversion.to != format) continue;
      ++conversion.n_tensors;
      return;
    }
    conversions_.push_back({from, format, 1});
  }

  Result<void> add_channel_slot(std::size_t slot, Index layer, graph::Weight weight,
                                std::span<const std::byte> codes, std::span<const float> scales) {
    NIBBLE_CHECK(check_slot(slot, layer));
    NIBBLE_TRY(format, detail::channel_format(formats_, scales));
    NIBBLE_CHECK(detail::check_channels(weight, codes.size(), scales));
    NIBBLE_TRY(ops, ops_of(format));
    weight.ops = ops;
    if (format != quant::Format::i8_channel) weight.input = {};
    if (weight.expert(0).bytes() > kMaxBytes / weight.n_experts ||
        weight.bytes() > kMaxBytes - static_cast<Index>(total_ + kAlignment)) {
      return Error{Errc::limit, "the packed weights do not fit in the address space"};
    }
    const std::size_t first_entry = entries_.size(), first_scale = scales_.size();
    scales_.reserve(scales_.size() + scales.size());
    for (const float scale : scales) scales_.push_back({scale});
    enter(index(slot, layer), weight, format, codes, false);
    for (std::size_t i = first_entry; i < entries_.size(); ++i) {
      entries_[i].first_scale =
          first_scale + static_cast<std::size_t>(entries_[i].expert * weight.n);
    }
    if (format != quant::Format::i8_channel) count_conversion(io::GgmlType::i8, format);
    return ok();
  }

  // Makes the entries of a weight whose source pack() reads.
  void enter(std::size_t at, const graph::Weight& weight, quant::Format format,
             std::span<const std::byte> source, bool is_packed, const io::SwappedAxes& swapped = {},
             const quant::ReadOnlyType* type = nullptr) {
    const std::size_t source_bytes = source.size() / static_cast<std::size_t>(weight.n_experts);
    const auto packed_bytes = static_cast<std::size_t>(weight.bytes() / weight.n_experts);
    for (Index e = 0; e < weight.n_experts; ++e) {
      const auto i = static_cast<std::size_t>(e);
      entries_.push_back({at, source.data() + i * source_bytes, total_ + i * packed_bytes, format,
                          e, is_packed, swapped, type});
    }
    set(at, weight);
    total_ += align_up(static_cast<std::size_t>(weight.bytes()));
  }

  Result<void> add_packed_slot(std::size_t slot, Index layer, quant::Format format, Index n,
                               Index k, std::span<const std::byte> packed, Index n_experts,
                               bool in_place) {
    NIBBLE_CHECK(check_slot(slot, layer));
    NIBBLE_TRY(ops, ops_of(format));
    std::size_t row_bytes = 1;
    if (ops->check_data != nullptr) {
      if (n_experts != 1) {
        return Error{Errc::unsupported,
                     std::string("experts packed as ") + to_string(format) + ": one matrix only"};
      }
      NIBBLE_CHECK(ops->check_data(packed, n, k));
    } else {
      NIBBLE_TRY(of_row, ops->row_bytes(static_cast<std::size_t>(k)));  // whole blocks
      row_bytes = of_row;
    }
    const graph::Weight weight{ops, n, k, packed.data(), n_experts};
    if (n < 1 || k < 1 || n_experts < 1 || row_bytes == 0 ||
        packed.size() % static_cast<std::size_t>(n_experts) != 0 ||
        static_cast<Index>(packed.size()) / n_experts != weight.expert(0).bytes()) {
      return Error{Errc::invalid_argument, to_text(packed.size()) + " bytes are not a packed " +
                                               to_string(format) + " matrix of " + to_text(n) +
                                               " rows of " + to_text(k)};
    }
    if (!in_place) {
      if (weight.bytes() > kMaxBytes - static_cast<Index>(total_ + kAlignment)) {
        return Error{Errc::limit, "the packed weights do not fit in the address space"};
      }
      enter(index(slot, layer), weight, format, packed, true);
      return ok();
    }
    if (reinterpret_cast<std::uintptr_t>(packed.data()) % kAlignment != 0) {
      return Error{Errc::invalid_argument, "packed weights that are not aligned to 64 bytes"};
    }
    set(index(slot, layer), weight);
    in_place_ += packed.size();
    return ok();
  }

  std::size_t index(std::size_t slot, Index layer) const noexcept {
    return static_cast<std::size_t>(layer + 1) * n_slots_ + slot;
  }
  static bool is_float(quant::Format format) noexcept {
    return format == quant::Format::f32 || format == quant::Format::f16 ||
           format == quant::Format::bf16;
  }
  std::size_t packed_bytes(const Entry& entry) const noexcept {
    const graph::Weight& w = weight_at(entry.index);
    return static_cast<std::size_t>(w.bytes() / w.n_experts);
  }

  // Bytes of a piece, which a worker reads and then packs: some panels, which stay in its cache in
  // between. Smaller pieces cost more system calls (32 KiB: an eighth more time). What takes the
  // time, for 620 MB on one thread: the system zeroes the new pages (27 ms), reads (22 to 52 ms,
  // depending on the size of the units in which the page cache holds the file), the transposition
  // (12 ms). Tried and slower: the mapping with MADV_POPULATE_READ and MADV_DONTNEED piece by piece
  // (1.6 times the time of reading); streaming stores (what the system has just zeroed is in the
  // cache).
  static constexpr std::size_t kPieceBytes = std::size_t{128} << 10;

  // What each worker has for itself while weights are packed.
  struct Workers {
    std::byte* pieces = nullptr;  // (n_workers, piece)
    std::size_t piece = 0;        // bytes
    std::vector<std::optional<Error>> errors;
  };

  // A program's own format is known only to its operations.
  static Result<std::size_t> bytes_of_row(const graph::Weight& w, quant::Format format,
                                          const quant::ReadOnlyType* type) {
    const auto k = static_cast<std::size_t>(w.k);
    if (type != nullptr) {
      NIBBLE_TRY(bytes, io::row_bytes(type->type, k));
      if (bytes > SIZE_MAX) return Error{Errc::limit, "a row is larger than the address space"};
      return io::narrow<std::size_t>(bytes);
    }
    return w.is_vector() ? quant::row_bytes(format, k) : w.ops->row_bytes(k);
  }
  std::size_t row_bytes(const Entry& entry) const noexcept {
    if (entry.first_scale != kNoScales) {  // one byte for each code
      return static_cast<std::size_t>(weight_at(entry.index).k);
    }
    return *bytes_of_row(weight_at(entry.index), entry.format, entry.type);  // checked by add()
  }
  // What a conversion needs beside its source: a row of floats, and the rows of a panel.
  std::size_t conversion_bytes(const Entry& entry) const noexcept {
    if (entry.type == nullptr && entry.first_scale == kNoScales) return 0;
    const graph::Weight& w = weight_at(entry.index);
    const auto k = static_cast<std::size_t>(w.k);
    return align_up(k * sizeof(float)) +
           align_up(std::size_t{quant::kPanelRows} * *w.ops->row_bytes(k));
  }
  std::size_t source_bytes(const Entry& entry) const noexcept {
    if (entry.is_packed) return packed_bytes(entry);
    const graph::Weight& w = weight_at(entry.index);
    return (w.is_vector() ? 1 : static_cast<std::size_t>(w.n)) * row_bytes(entry);
  }
  // Bytes of a piece of an entry: at least one panel of a matrix, or the whole vector.
  std::size_t piece_bytes(const Entry& entry) const noexcept {
    if (entry.is_packed) return (std::min)(source_bytes(entry), kPieceBytes);
    if (weight_at(entry.index).is_vector()) return source_bytes(entry);
    const std::size_t panel = row_bytes(entry) * std::size_t{quant::kPanelRows};
    return (std::min)(source_bytes(entry), (std::max)(panel, kPieceBytes / panel * panel));
  }
  std::span<const std::byte> source_of(const Entry& entry) const noexcept {
    return {entry.source, source_bytes(entry)};
  }
  // The file from which an entry's source is read; null if it is used where it is.
  const io::MappedFile* file_of(const Entry& entry,
                                std::span<const io::MappedFile> files) const noexcept {
    for (const io::MappedFile& file : files) {
      if (file.contains(source_of(entry))) return &file;
    }
    return nullptr;
  }

  // Whether the rows of a source are copied to a worker's piece before they are packed.
  static bool is_read(const Entry& entry, const io::MappedFile* file) noexcept {
    return file != nullptr || entry.swapped.any() ||
           reinterpret_cast<std::uintptr_t>(entry.source) % alignof(float) != 0;
  }

  void pack_one(Executor& executor, const Entry& entry, std::span<const io::MappedFile> files,
                Workers& workers, std::byte* out) noexcept {
    const graph::Weight& w = weight_at(entry.index);
    const std::span<const std::byte> source = source_of(entry);
    const io::MappedFile* const file = file_of(entry, files);
    const io::TensorBytes stored(source, entry.swapped, file);
    const std::size_t piece = piece_bytes(entry);
    const std::size_t bytes_of_row = entry.is_packed ? 0 : row_bytes(entry);
    const auto n_pieces = static_cast<Index>((source.size() + piece - 1) / piece);
    executor.parallel_for(n_pieces, [&](Index task, Index worker) {
      const auto i = static_cast<std::size_t>(worker);
      const auto at = static_cast<std::size_t>(task) * piece;
      std::span<const std::byte> rows = source.subspan(at, (std::min)(piece, source.size() - at));
      if (is_read(entry, file)) {
        std::byte* const copy = workers.pieces + i * workers.piece;
        Result<void> read = stored.read(at, {copy, rows.size()});
        if (!read) {
          workers.errors[i] = std::move(read).error();
          return;
        }
        rows = {copy, rows.size()};
      }
      if (entry.is_packed) {
        std::memcpy(out + at, rows.data(), rows.size());
        return;
      }
      if (w.is_vector()) {
        const std::span<float> values(reinterpret_cast<float*>(out), static_cast<std::size_t>(w.k));
        [[maybe_unused]] const auto status = quant::row_to_f32(entry.format, rows, values);
        NIBBLE_ASSERT(status.has_value());  // sizes were checked by add()
        return;
      }
      const auto first_row = static_cast<Index>(at / bytes_of_row);
      std::byte* const scratch = workers.pieces + (i + 1) * workers.piece - conversion_bytes(entry);
      if (entry.first_scale != kNoScales) {
        const std::span<const Scalar<float>> all = scales_;
        const auto scales = all.subspan(entry.first_scale + static_cast<std::size_t>(first_row));
        pack_channels(w, entry.format, rows, scales, first_row, scratch, out, workers.errors[i]);
      } else if (entry.type != nullptr) {
        convert_panels(w, *entry.type, entry.format, rows, bytes_of_row, first_row, scratch, out,
                       workers.errors[i]);
      } else {
        graph::pack_panels(w, rows, static_cast<Index>(bytes_of_row), first_row, out);
      }
    });
  }

  static Error conversion_error(const quant::ReadOnlyType& type, quant::Format format, float weight,
                                std::size_t at, Index row) {
    const auto value = static_cast<double>(weight);
    const std::string where = "weight " + to_text(at) + " of row " + to_text(row) +
                              " of a matrix in " + io::type_traits(type.type).name;
    if (!is_finite(value)) return {Errc::malformed, where + " is not a finite number"};
    return {Errc::limit, where + ", " + to_text(value) + ", is too large for " + to_string(format)};
  }

  // The same as pack_panels() for a type that is only read.
  static void convert_panels(const graph::Weight& w, const quant::ReadOnlyType& type,
                             quant::Format format, std::span<const std::byte> rows,
                             std::size_t bytes_of_row, Index first_row, std::byte* scratch,
                             std::byte* out, std::optional<Error>& error) noexcept {
    const auto k = static_cast<std::size_t>(w.k);
    const std::size_t new_bytes = *w.ops->row_bytes(k);
    const std::span<float> weights(reinterpret_cast<float*>(scratch), k);
    std::byte* const converted = scratch + align_up(k * sizeof(float));
    const std::size_t n = rows.size() / bytes_of_row;
    constexpr auto kRows = static_cast<std::size_t>(quant::kPanelRows);
    for (std::size_t row = 0; row < n; row += kRows) {
      const std::size_t n_rows = (std::min)(kRows, n - row);
      for (std::size_t r = 0; r < n_rows; ++r) {
        const std::size_t bad =
            quant::read_row_as(type, format, rows.data() + (row + r) * bytes_of_row, weights,
                               converted + r * new_bytes);
        if (bad == k) continue;
        error = conversion_error(type, format, weights[bad], bad,
                                 first_row + static_cast<Index>(row + r));
        return;
      }
      graph::pack_panels(w, {converted, n_rows * new_bytes}, static_cast<Index>(new_bytes),
                         first_row + static_cast<Index>(row), out);
    }
  }

  // The same for codes of channels, whose scales begin with that of the first row.
  static void pack_channels(const graph::Weight& w, quant::Format format,
                            std::span<const std::byte> codes, std::span<const Scalar<float>> scales,
                            Index first_row, std::byte* scratch, std::byte* out,
                            std::optional<Error>& error) noexcept {
    const auto k = static_cast<std::size_t>(w.k);
    const std::size_t new_bytes = *w.ops->row_bytes(k);
    const std::span<float> weights(reinterpret_cast<float*>(scratch), k);
    std::byte* const stored = scratch + align_up(k * sizeof(float));
    const std::size_t n = codes.size() / k;
    constexpr auto kRows = static_cast<std::size_t>(quant::kPanelRows);
    for (std::size_t row = 0; row < n; row += kRows) {
      const std::size_t n_rows = (std::min)(kRows, n - row);
      for (std::size_t r = 0; r < n_rows; ++r) {
        if (!detail::store_channel(format, codes.subspan((row + r) * k, k), scales[row + r].value,
                                   weights, stored + r * new_bytes)) {
          error = detail::code_error(first_row + static_cast<Index>(row + r));
          return;
        }
      }
      graph::pack_panels(w, {stored, n_rows * new_bytes}, static_cast<Index>(new_bytes),
                         first_row + static_cast<Index>(row), out);
    }
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
