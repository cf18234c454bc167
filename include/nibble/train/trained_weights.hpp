// SPDX-License-Identifier: Apache-2.0
//
// The weights of a model in training: f32 values (masters) with their gradients, weights that only
// stand by (frozen ones, in any packed format), low-rank adapters beside either, and, for
// quantization-aware training, the packed blocks that the masters are rounded to. A graph reads all
// of them as one WeightTable.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/executor.hpp"
#include "nibble/core/result.hpp"
#include "nibble/graph/f32_rows.hpp"
#include "nibble/graph/training_run.hpp"
#include "nibble/graph/weights.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/ops/rows.hpp"
#include "nibble/quant/format.hpp"
#include "nibble/quant/static_scale.hpp"
#include "nibble/quant/weighted.hpp"
#include "nibble/train/parameters.hpp"
#include "nibble/train/training_graph.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// How masters are rounded to blocks, in training and in files alike.
struct Rounding {
  // Scales are searched (quant/weighted.hpp) instead of taken from the largest weight of a block:
  // worth its time for 2 and 3 bits.
  bool searches = false;
  // What an error in each column of the matrix counts in the search, (k); empty: the same.
  std::vector<float> importance = {};
};

// What becomes of the weights of a slot in a layer.
struct WeightChoice {
  enum class Kind : unsigned char {
    absent,   // the model has no such weights (optional ones only)
    trained,  // f32 values with gradients
    frozen,   // f32 values without
    base,     // `base`, which somebody else owns, in any format
  } kind = Kind::trained;
  graph::Weight base = {};
  Index n_rows = 0;  // of a table whose number of rows the architecture does not say
  // The format in which a trained matrix is deployed: it is rounded to it before each step, and the
  // forward pass runs the kernels of that format. Null: f32.
  const graph::FormatOps* deployed = nullptr;
  Rounding rounding = {};  // to that format
  Index rank = 0;          // of factors beside a matrix of products; 0: none
  float factor_scale = 1;  // alpha / rank
};

// A matrix (n, k) or vector (n = 0) in training.
struct TrainedTensor {
  std::string name;
  std::size_t slot = 0;
  Index layer = -1;
  Index n = 0;
  Index k = 0;
  std::span<float> values;    // empty if it is somebody else's
  std::span<float> gradient;  // empty if it is not trained
  const graph::FormatOps* deployed = nullptr;
  std::byte* packed = nullptr;  // deployed
  Rounding rounding = {};
  quant::StaticScale input = {};         // see TrainedWeights::set_input()
  std::vector<std::uint64_t> mask = {};  // see Parameter::mask; empty: all stay
  bool is_factor = false;                // of an adapter: no tensor of the model

  // Rounds row i to `format`: with `rounding` if that is the deployed one, otherwise by the plain
  // rule. `row`: row_bytes(format, k). Errors: limit, malformed (weights that do not fit).
  Result<void> round_row(quant::Format format, Index i, std::span<std::byte> row) const {
    const auto x = std::span<const float>(values).subspan(static_cast<std::size_t>(i * k),
                                                          static_cast<std::size_t>(k));
    const bool searches = rounding.searches && deployed != nullptr && deployed->format == format;
    return searches ? quant::search_row(format, x, rounding.importance, row)
                    : quant::row_from_f32(format, x, row);
  }
};

class TrainedWeights {
 public:
  using Choose =
      FunctionRef<Result<WeightChoice>(const std::string& name, const graph::WeightNeed& need)>;

  TrainedWeights(TrainedWeights&&) noexcept = default;
  TrainedWeights& operator=(TrainedWeights&&) noexcept = default;

  // Asks `choose` about each weight that the graph needs. All values and gradients are zero.
  // Errors: those of choose; invalid_argument (a needed weight that is absent, a base of another
  // shape, a format that does not fit, factors of what is no product), out_of_memory.
  static Result<TrainedWeights> create(const TrainingGraph& graph, Choose choose);

  graph::WeightTable table() const noexcept { return {table_, n_slots_}; }
  std::span<const graph::WeightGradient> gradients() const noexcept { return gradients_; }
  // Trained and frozen ones, and factors as <name>.lora_a and <name>.lora_b.
  std::span<const TrainedTensor> tensors() const noexcept { return tensors_; }
  const TrainedTensor* find(std::string_view name) const noexcept {
    for (const TrainedTensor& t : tensors_) {
      if (t.name == name) return &t;
    }
    return nullptr;
  }

  // What limits say about these weights.
  void set_limits(graph::TrainingLimits& limits) const noexcept;
  // For an optimizer: the trained ones. Vectors do not decay.
  std::vector<Parameter> parameters() const;
  Index n_trained() const noexcept;  // values
  std::size_t bytes() const noexcept {
    return values_.size() + gradient_values_.size() + packed_.size();
  }

  // Whether some of the weights are somebody else's (WeightChoice::Kind::base).
  bool has_base() const noexcept { return has_base_; }

  void clear_gradients(Executor& executor) noexcept {
    constexpr Index kPiece = Index{1} << 14;
    auto* const values = reinterpret_cast<float*>(gradient_values_.data());
    const auto n = static_cast<Index>(gradient_values_.size() / sizeof(float));
    ops::for_rows(executor, (n + kPiece - 1) / kPiece, kPiece, [&](Index piece) {
      std::fill_n(values + piece * kPiece, (std::min)(kPiece, n - piece * kPiece), 0.0f);
    });
  }
  // Prunes a trained matrix: weights whose byte of `stays` (n · k of them, as compress::choose_mask
  // gives them) is 0 become zero, and stay so in the steps of an optimizer that is made afterwards.
  // Errors: not_found, invalid_argument (what is no trained matrix; another size).
  Result<void> set_mask(std::string_view name, std::span<const std::uint8_t> stays);
  // The range of the input of the products with tensors()[i], deployed in a format that can be
  // given one (graph::InputKind::rows); none: each row gets a scale when it is computed. It is that
  // of the next forward pass and of the next file (InputRanges tracks it). It must be one that
  // graph::check_row_input() takes.
  void set_input(std::size_t i, const quant::StaticScale& range) noexcept {
    TrainedTensor& t = tensors_[i];
    NIBBLE_ASSERT(t.deployed != nullptr && t.deployed->input == graph::InputKind::rows);
    NIBBLE_ASSERT(graph::check_row_input(t.k, range));
    t.input = range;
    for (graph::Weight& w : table_) {  // tied ones are there more than once
      if (w.data == t.packed) w.input = range;
    }
  }
  // How many matrices are deployed in which way and how many weights are pruned, as text, for
  // checkpoints; empty if it is f32 throughout.
  std::string fingerprint() const;
  // Rounds the masters of deployed weights to their packed blocks, by the quantizer of files, so
  // that what runs is what a file gets. Allocates memory the first time, and where scales are
  // searched. Errors: limit, malformed (a master that does not fit the format), with its name.
  Result<void> round_deployed(Executor& executor);

 private:
  TrainedWeights() = default;

  class Planner;

  std::size_t n_slots_ = 0;
  std::vector<graph::Weight> table_;
  std::vector<graph::WeightGradient> gradients_;
  std::vector<TrainedTensor> tensors_;
  std::vector<graph::Factors> factors_;  // never grows after create(): weights point to them
  AlignedBuffer values_, gradient_values_, packed_;
  std::vector<std::byte> rounded_rows_;  // of a panel, for each worker
  Index max_rank_ = 0;
  bool has_base_ = false;
};

// ---- Making ------------------------------------------------------------------------------------

// Collects what is needed, then hands out memory.
class TrainedWeights::Planner final : public graph::SurveySink {
 public:
  Planner(const TrainingGraph& graph, Choose choose) : graph_(graph), choose_(choose) {}

  void weight(const graph::WeightNeed& need) override {
    if (error_ || find(need.slot, need.layer) != nullptr) return;
    const std::string name = graph_.tensor_name(need.slot, need.layer);
    auto choice = choose_(name, need);
    Result<void> added =
        choice ? add(name, need, *choice) : Result<void>(std::move(choice).error());
    if (!added) error_ = std::move(added).error();
  }

  Result<TrainedWeights> finish() {
    if (error_) return *error_;
    TrainedWeights made;
    made.n_slots_ = graph_.n_slots();
    const auto rows = static_cast<std::size_t>(graph_.config().n_layers) + 1;
    made.table_.resize(rows * made.n_slots_);
    made.gradients_.resize(rows * made.n_slots_);
    made.factors_.resize(n_factors_);
    NIBBLE_TRY(values, AlignedBuffer::allocate(value_bytes_));
    NIBBLE_TRY(gradients, AlignedBuffer::allocate(gradient_bytes_));
    NIBBLE_TRY(packed, AlignedBuffer::allocate(packed_bytes_));
    made.values_ = std::move(values);
    made.gradient_values_ = std::move(gradients);
    made.packed_ = std::move(packed);
    next_value_ = made.values_.data();
    next_gradient_ = made.gradient_values_.data();
    next_packed_ = made.packed_.data();
    for (const Entry& e : entries_) enter(e, made);
    for (const Entry& e : entries_) {  // when all others are there
      if (!e.is_tied) continue;
      const std::size_t to = place(e.need.slot, e.need.layer), from = place(e.need.tied_to, e.need.layer);
      made.table_[to] = made.table_[from];
      made.gradients_[to] = made.gradients_[from];
    }
    made.max_rank_ = max_rank_;
    return made;
  }

 private:
  struct Entry {
    std::string name;
    graph::WeightNeed need;
    WeightChoice choice;
    bool is_tied = false;
  };

  const Entry* find(std::size_t slot, Index layer) const noexcept {
    for (const Entry& e : entries_) {
      if (e.need.slot == slot && e.need.layer == layer) return &e;
    }
    return nullptr;
  }
  std::size_t place(std::size_t slot, Index layer) const noexcept {
    return static_cast<std::size_t>(layer + 1) * graph_.n_slots() + slot;
  }
  static Error wrong(const std::string& name, const std::string& what) {
    return {Errc::invalid_argument, "weights " + io::quoted(name) + ": " + what};
  }
  static bool has_values(const WeightChoice& c) noexcept {
    return c.kind == WeightChoice::Kind::trained || c.kind == WeightChoice::Kind::frozen;
  }

  Result<void> add(const std::string& name, graph::WeightNeed need, const WeightChoice& choice) {
    using Kind = WeightChoice::Kind;
    if (need.n_experts != 1) {
      return Error{Errc::unsupported, "weights " + io::quoted(name) + ": experts are not trained"};
    }
    if (choice.kind == Kind::absent) {
      const bool is_tied = need.tied_to != graph::kNoSlot;
      if (need.is_required && !is_tied) return wrong(name, "they are needed, but absent");
      if (is_tied) entries_.push_back({name, need, choice, true});
      return ok();
    }
    if (need.is_table && need.n == 0)
      need.n = choice.kind == Kind::base ? choice.base.n : choice.n_rows;
    const bool is_matrix = need.n > 0;
    if (choice.kind == Kind::base && (choice.base.n != need.n || choice.base.k != need.k)) {
      return wrong(name, "a base of shape " + graph::shape_text(choice.base.n, choice.base.k) +
                             ", needed " + graph::shape_text(need.n, need.k));
    }
    const auto n_values = static_cast<std::uint64_t>((std::max)(need.n, Index{1})) *
                          static_cast<std::uint64_t>(need.k);
    if (choice.kind == Kind::base && choice.base.factors != nullptr) {
      return wrong(name, "a base with factors of its own; merge them first");
    }
    if (has_values(choice)) {
      NIBBLE_CHECK(count(name, n_values, value_bytes_));
      if (choice.kind == Kind::trained) NIBBLE_CHECK(count(name, n_values, gradient_bytes_));
    }
    if (choice.deployed != nullptr) NIBBLE_CHECK(add_deployed(name, need, choice));
    if (choice.rank > 0) {
      if (!is_matrix || need.is_table) return wrong(name, "factors are for matrices of products");
      ++n_factors_;
      max_rank_ = (std::max)(max_rank_, choice.rank);
      for (const Index side : {need.n, need.k}) {
        const auto n = static_cast<std::uint64_t>(side) * static_cast<std::uint64_t>(choice.rank);
        NIBBLE_CHECK(count(name, n, value_bytes_));
        NIBBLE_CHECK(count(name, n, gradient_bytes_));
      }
    }
    entries_.push_back({name, need, choice});
    return ok();
  }
  Result<void> add_deployed(const std::string& name, const graph::WeightNeed& need,
                            const WeightChoice& choice) {
    if (need.n == 0 || choice.kind != WeightChoice::Kind::trained) {
      return wrong(name, "a deployed format is for trained matrices");
    }
    auto row = choice.deployed->row_bytes(static_cast<std::size_t>(need.k));
    if (!row) return std::move(row).error().in("weights " + io::quoted(name));
    if (choice.deployed->pack_panel == nullptr) return wrong(name, "this format cannot be packed");
    if (const auto& importance = choice.rounding.importance; !importance.empty()) {
      auto checked = quant::check_importance(importance, static_cast<std::size_t>(need.k));
      if (!checked) return std::move(checked).error().in("weights " + io::quoted(name));
    }
    packed_bytes_ +=
        align_up(static_cast<std::size_t>(choice.deployed->packed_bytes(need.n, need.k)));
    return ok();
  }
  static Result<void> count(const std::string& name, std::uint64_t n_values, std::size_t& bytes) {
    if (n_values > static_cast<std::uint64_t>(kMaxBytes) / 16 - bytes / 4) {
      return Error{Errc::limit,
                   "weights " + io::quoted(name) + ": too large for the address space"};
    }
    bytes += align_up(io::narrow<std::size_t>(n_values) * sizeof(float));
    return ok();
  }

  static std::span<float> take(std::byte*& next, Index n_values) noexcept {
    auto* const at = reinterpret_cast<float*>(next);
    next += align_up(static_cast<std::size_t>(n_values) * sizeof(float));
    return {at, static_cast<std::size_t>(n_values)};
  }

  void enter(const Entry& e, TrainedWeights& made) {
    if (e.is_tied) return;
    const graph::WeightNeed& need = e.need;
    const WeightChoice& c = e.choice;
    graph::Weight& weight = made.table_[place(need.slot, need.layer)];
    graph::WeightGradient& gradient = made.gradients_[place(need.slot, need.layer)];
    const auto tensor_of = [&](const char* suffix, Index n, Index k) {
      TrainedTensor tensor;
      tensor.name = e.name + suffix;
      tensor.slot = need.slot;
      tensor.layer = need.layer;
      tensor.n = n;
      tensor.k = k;
      return tensor;
    };
    if (c.kind == WeightChoice::Kind::base) {
      weight = c.base;
      made.has_base_ = true;
    } else {
      TrainedTensor tensor = tensor_of("", need.n, need.k);
      tensor.deployed = c.deployed;
      tensor.rounding = c.rounding;
      const Index n = (std::max)(need.n, Index{1}) * need.k;
      tensor.values = take(next_value_, n);
      if (c.kind == WeightChoice::Kind::trained) tensor.gradient = take(next_gradient_, n);
      gradient.values = tensor.gradient.data();
      const auto* const data = reinterpret_cast<const std::byte*>(tensor.values.data());
      weight = {need.n > 0 ? &graph::kF32Rows : nullptr, need.n, need.k, data, 1, {}};
      if (c.deployed != nullptr) {
        tensor.packed = next_packed_;
        next_packed_ +=
            align_up(static_cast<std::size_t>(c.deployed->packed_bytes(need.n, need.k)));
        weight.ops = c.deployed;
        weight.data = tensor.packed;
      }
      made.tensors_.push_back(std::move(tensor));
    }
    if (c.rank == 0) return;
    graph::Factors& f = made.factors_[used_factors_++];
    f.scale = c.factor_scale;
    const auto side = [&](const char* suffix, Index n, Index k, graph::Weight& to, float*& back) {
      TrainedTensor tensor = tensor_of(suffix, n, k);
      tensor.is_factor = true;
      tensor.values = take(next_value_, n * k);
      tensor.gradient = take(next_gradient_, n * k);
      back = tensor.gradient.data();
      to = graph::f32_rows_weight(MatrixView<const float>(tensor.values.data(), n, k));
      made.tensors_.push_back(std::move(tensor));
    };
    side(".lora_a", c.rank, need.k, f.b, gradient.factor_b);
    side(".lora_b", need.n, c.rank, f.a, gradient.factor_a);
    weight.factors = &f;
  }

  const TrainingGraph& graph_;
  Choose choose_;
  std::vector<Entry> entries_;
  std::optional<Error> error_;
  std::size_t value_bytes_ = 0, gradient_bytes_ = 0, packed_bytes_ = 0;
  std::size_t n_factors_ = 0, used_factors_ = 0;
  Index max_rank_ = 0;
  std::byte *next_value_ = nullptr, *next_gradient_ = nullptr, *next_packed_ = nullptr;
};

inline Result<TrainedWeights> TrainedWeights::create(const TrainingGraph& graph, Choose choose) {
  return catch_out_of_memory([&]() -> Result<TrainedWeights> {
    Planner planner(graph, choose);
    graph.survey(planner);
    return planner.finish();
  });
}

inline void TrainedWeights::set_limits(graph::TrainingLimits& limits) const noexcept {
  limits.trained = graph::SlotSet::none();
  limits.factored = graph::SlotSet::none();
  limits.packed_weights = false;
  limits.limits.max_rank = max_rank_;
  for (std::size_t i = 0; i < table_.size(); ++i) {
    const std::size_t slot = i % n_slots_;
    const graph::Weight& w = table_[i];
    if (gradients_[i].values != nullptr) limits.trained.add(slot);
    if (gradients_[i].factor_a != nullptr) limits.factored.add(slot);
    if (w.has_base() && !w.is_vector() && !graph::is_f32_rows(w)) limits.packed_weights = true;
  }
}

inline std::vector<Parameter> TrainedWeights::parameters() const {
  std::vector<Parameter> out;
  for (const TrainedTensor& t : tensors_) {
    if (t.gradient.empty()) continue;
    Parameter p;
    p.name = t.name;
    p.values = t.values;
    p.gradient = t.gradient;
    p.decays = t.n > 0;
    if (!t.mask.empty()) {
      p.columns = t.k;
      p.mask = t.mask;
    }
    out.push_back(std::move(p));
  }
  return out;
}

inline Index TrainedWeights::n_trained() const noexcept {
  Index n = 0;
  for (const TrainedTensor& t : tensors_) n += static_cast<Index>(t.gradient.size());
  return n;
}

inline Result<void> TrainedWeights::set_mask(std::string_view name,
                                             std::span<const std::uint8_t> stays) {
  const auto fail = [&](Errc code, const char* what) {
    return Error{code, "weights " + io::quoted(name) + what};
  };
  const auto t = std::find_if(tensors_.begin(), tensors_.end(),
                              [&](const TrainedTensor& tensor) { return tensor.name == name; });
  if (t == tensors_.end()) return fail(Errc::not_found, ": there are none to prune");
  if (t->n == 0 || t->gradient.empty()) {
    return fail(Errc::invalid_argument, ": a mask is for trained matrices");
  }
  if (stays.size() != t->values.size()) {
    return fail(Errc::invalid_argument, ": a mask of another size");
  }
  return catch_out_of_memory([&]() -> Result<void> {
    const auto k = static_cast<std::size_t>(t->k), stride = (k + 63) / 64;
    t->mask.assign(static_cast<std::size_t>(t->n) * stride, 0);
    for (std::size_t i = 0; i < stays.size(); ++i) {
      if (stays[i] == 0) {
        t->values[i] = 0;
      } else {
        t->mask[i / k * stride + i % k / 64] |= std::uint64_t{1} << (i % k % 64);
      }
    }
    return ok();
  });
}

inline std::string TrainedWeights::fingerprint() const {
  std::vector<std::pair<std::string, Index>> ways;
  Index n_pruned = 0;
  for (const TrainedTensor& t : tensors_) {
    for (const std::uint64_t word : t.mask) n_pruned -= std::popcount(word);
    if (!t.mask.empty()) n_pruned += t.n * t.k;
    if (t.deployed == nullptr) continue;
    std::string way = to_string(t.deployed->format);
    if (t.rounding.searches) way += t.rounding.importance.empty() ? " searched" : " weighted";
    const auto same =
        std::find_if(ways.begin(), ways.end(), [&](const auto& w) { return w.first == way; });
    if (same == ways.end()) {
      ways.emplace_back(std::move(way), 1);
    } else {
      ++same->second;
    }
  }
  std::string text;
  for (const auto& [way, n] : ways) text += (text.empty() ? "" : ", ") + to_text(n) + " in " + way;
  if (n_pruned > 0) text += (text.empty() ? "" : ", ") + to_text(n_pruned) + " weights pruned";
  return text;
}

inline Result<void> TrainedWeights::round_deployed(Executor& executor) {
  return catch_out_of_memory([&]() -> Result<void> {
    for (const TrainedTensor& t : tensors_) {
      if (t.deployed == nullptr) continue;
      NIBBLE_TRY(row_bytes, t.deployed->row_bytes(static_cast<std::size_t>(t.k)));
      const std::size_t panel_bytes = row_bytes * quant::kPanelRows;
      const std::size_t needed = static_cast<std::size_t>(executor.n_workers()) * panel_bytes;
      if (rounded_rows_.size() < needed) rounded_rows_.resize(needed);
      const graph::Weight to{t.deployed, t.n, t.k, t.packed, 1, {}};
      std::atomic<bool> fits{true};
      executor.parallel_for(quant::n_panels(t.n), [&](Index panel, Index worker) {
        const Index begin = panel * quant::kPanelRows;
        const Index n = (std::min)(quant::kPanelRows, t.n - begin);
        const std::span<std::byte> rows =
            std::span(rounded_rows_)
                .subspan(static_cast<std::size_t>(worker) * panel_bytes,
                         static_cast<std::size_t>(n) * row_bytes);
        for (Index i = 0; i < n; ++i) {
          const auto row = rows.subspan(static_cast<std::size_t>(i) * row_bytes, row_bytes);
          if (!t.round_row(t.deployed->format, begin + i, row)) fits = false;
        }
        graph::pack_panels(to, rows, static_cast<Index>(row_bytes), begin, t.packed);
      });
      // The error is that of the first row, whichever worker was the first to find one.
      for (Index i = 0; i < t.n && !fits; ++i) {
        Result<void> rounded =
            t.round_row(t.deployed->format, i, std::span(rounded_rows_).first(row_bytes));
        if (!rounded) return std::move(rounded).error().in("weights " + io::quoted(t.name));
      }
    }
    return ok();
  });
}

}}}  // namespace nibble::NIBBLE_ABI::train
