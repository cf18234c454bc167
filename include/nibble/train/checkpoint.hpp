// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints: everything that a run needs to continue bit for bit, in one GGUF file with keys of
// its own. It is written beside the last one and then renamed (io::OutputFile): whatever goes wrong
// while saving, the last good one stays. Loading checks everything before it changes anything.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/checksum.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/train/data.hpp"
#include "nibble/train/parameters.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

// What a checkpoint holds besides tensors.
struct RunState {
  std::uint64_t n_steps = 0;  // that are done
  DataPosition data;          // of the next batch
  std::uint64_t random = 0;   // Random::state() of what else draws numbers, as dropout
  // What the run that continues must share with this one: a line for each thing, as
  // "optimizer: " + AdamW::fingerprint(), "schedule: " + …. Loading compares it.
  std::string fingerprint;

  friend bool operator==(const RunState&, const RunState&) = default;
};

namespace detail {

NIBBLE_HIDDEN inline constexpr std::string_view kCheckpointType = "checkpoint";
inline constexpr std::uint32_t kCheckpointVersion = 1;

inline std::uint64_t checksum_of(const RunState& state) noexcept {
  const std::uint64_t numbers[] = {state.n_steps,    state.data.seed, state.data.n_examples,
                                   state.data.epoch, state.data.next, state.random};
  return io::checksum(std::as_bytes(std::span<const char>(state.fingerprint)),
                      io::checksum(std::as_bytes(std::span(numbers))));
}

inline io::GgmlType type_of(StateTensor::Kind kind) noexcept {
  return kind == StateTensor::Kind::f32 ? io::GgmlType::f32 : io::GgmlType::i8;
}
inline std::vector<std::uint64_t> dims_of(const StateTensor& tensor) {
  const std::uint64_t n = tensor.bytes.size() / (tensor.kind == StateTensor::Kind::f32 ? 4 : 1);
  if (tensor.columns <= 0) return {n};
  const auto columns = static_cast<std::uint64_t>(tensor.columns);
  return {columns, n / columns};
}
inline std::string shape_text(std::span<const std::uint64_t> dims) {
  std::string text = "(";
  for (std::size_t i = 0; i < dims.size(); ++i)
    text = text + (i > 0 ? ", " : "") + to_text(dims[i]);
  return text + ")";
}

// The first line in which they differ, of both.
inline std::string difference(std::string_view then, std::string_view now) {
  const auto take_line = [](std::string_view& text) {
    const std::size_t end = (std::min)(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix((std::min)(end + 1, text.size()));
    return line;
  };
  for (;;) {
    const std::string_view a = take_line(then), b = take_line(now);
    if (a != b || (then.empty() && now.empty())) {
      return "the run was '" + printable(a) + "', this one is '" + printable(b) + "'";
    }
  }
}

// Compares a checkpoint with the run that wants to continue.
class CheckpointReader {
 public:
  CheckpointReader(const io::Gguf& file, std::span<const StateTensor> tensors)
      : file_(file), tensors_(tensors) {}

  Result<RunState> state(std::string_view fingerprint) const {
    NIBBLE_TRY(type, file_.get_string_or("general.type", ""));
    if (type != kCheckpointType) return wrong("is no checkpoint of a training run");
    NIBBLE_TRY(version, file_.get_u32("train.version"));
    if (version != kCheckpointVersion) {
      return Error{Errc::unsupported, file_.name() + ": a checkpoint of version " +
                                          to_text(version) + "; this program reads version " +
                                          to_text(kCheckpointVersion)};
    }
    RunState out;
    const std::pair<const char*, std::uint64_t*> numbers[] = {
        {"train.steps", &out.n_steps},
        {"train.data.seed", &out.data.seed},
        {"train.data.epoch", &out.data.epoch},
        {"train.data.next", &out.data.next},
        {"train.data.examples", &out.data.n_examples},
        {"train.random", &out.random}};
    for (const auto& [key, value] : numbers) {
      NIBBLE_TRY(number, file_.get_u64(key));
      *value = number;
    }
    NIBBLE_TRY(text, file_.get_string("train.fingerprint"));
    out.fingerprint = text;
    NIBBLE_TRY(sum, file_.get_u64("train.checksum"));
    if (sum != checksum_of(out)) return damaged("its keys");
    if (out.fingerprint != fingerprint) {
      return Error{Errc::invalid_argument, file_.name() + ": cannot be continued: " +
                                               difference(out.fingerprint, fingerprint)};
    }
    return out;
  }

  // That the same tensors are there, and undamaged.
  Result<void> check_tensors() const {
    NIBBLE_TRY(sums, file_.get_array<Scalar<std::uint64_t>>("train.checksums"));
    if (sums.size() != file_.tensors().size()) return damaged("its list of checksums");
    for (std::size_t i = 0; i < sums.size(); ++i) {
      const io::GgufTensor& tensor = file_.tensors()[i];
      const auto is_this = [&](const StateTensor& t) { return t.name == tensor.name; };
      if (std::none_of(tensors_.begin(), tensors_.end(), is_this)) {
        return wrong("has a tensor " + io::quoted(tensor.name) + ", which this run does not have");
      }
    }
    for (const StateTensor& tensor : tensors_) {
      const io::GgufTensor* const found = file_.find_tensor(tensor.name);
      if (found == nullptr) return wrong("has no tensor " + io::quoted(tensor.name));
      NIBBLE_CHECK(check_shape(tensor, *found));
      const auto i = static_cast<std::size_t>(found - file_.tensors().data());
      if (io::checksum(found->data) != sums[i].value) {
        return damaged("tensor " + io::quoted(tensor.name));
      }
    }
    return ok();
  }

 private:
  Result<void> check_shape(const StateTensor& tensor, const io::GgufTensor& found) const {
    const std::vector<std::uint64_t> dims = dims_of(tensor);
    const std::span<const std::uint64_t> there = std::span(found.dims).first(found.n_dims);
    const std::string what = "tensor " + io::quoted(tensor.name);
    if (found.type != type_of(tensor.kind)) {
      return wrong(what + " is " + std::string(io::type_traits(found.type).name) + " there and " +
                   std::string(io::type_traits(type_of(tensor.kind)).name) + " in this run");
    }
    if (!std::equal(dims.begin(), dims.end(), there.begin(), there.end())) {
      return wrong(what + " has the shape " + shape_text(there) + " there and " + shape_text(dims) +
                   " in this run");
    }
    return ok();
  }
  Error wrong(const std::string& what) const {
    return {Errc::invalid_argument, file_.name() + ": " + what};
  }
  Error damaged(const std::string& what) const {
    return {Errc::malformed,
            file_.name() + ": is damaged: " + what + " changed since it was saved"};
  }

  const io::Gguf& file_;
  std::span<const StateTensor> tensors_;
};

}  // namespace detail

// Writes the file `path`, completely or not at all. Errors: io (a full disk, ...; the file of that
// name is as before), malformed (a name that GGUF does not allow: empty or longer than 64 bytes),
// invalid_argument (a name that appears twice), out_of_memory.
inline Result<void> save_checkpoint(const std::string& path, const RunState& state,
                                    std::span<const StateTensor> tensors) {
  return catch_out_of_memory([&]() -> Result<void> {
    io::GgufWriter writer;
    writer.set("general.type", detail::kCheckpointType);
    writer.set("train.version", detail::kCheckpointVersion);
    writer.set("train.steps", state.n_steps);
    writer.set("train.data.seed", state.data.seed);
    writer.set("train.data.examples", state.data.n_examples);
    writer.set("train.data.epoch", state.data.epoch);
    writer.set("train.data.next", state.data.next);
    writer.set("train.random", state.random);
    writer.set("train.fingerprint", std::string_view(state.fingerprint));
    writer.set("train.checksum", detail::checksum_of(state));
    std::vector<std::uint64_t> sums;
    for (const StateTensor& tensor : tensors) {
      sums.push_back(io::checksum(tensor.bytes));
      writer.add_tensor(tensor.name, detail::type_of(tensor.kind), detail::dims_of(tensor),
                        std::span<const std::byte>(tensor.bytes));
    }
    writer.set_array("train.checksums", sums);
    return writer.write(path);
  });
}

// Fills the tensors from the checkpoint `path` and returns its state, or changes nothing. Errors,
// which name the file and what differs: those of Gguf::open, not_found (a key), unsupported (a
// version to come), invalid_argument (no checkpoint; another fingerprint; a tensor that is missing,
// too many, or of another kind or shape), malformed (damaged).
inline Result<RunState> load_checkpoint(const std::string& path, std::string_view fingerprint,
                                        std::span<const StateTensor> tensors) {
  return catch_out_of_memory([&]() -> Result<RunState> {
    NIBBLE_TRY(file, io::Gguf::open(path));
    const detail::CheckpointReader reader(file, tensors);
    NIBBLE_TRY(state, reader.state(fingerprint));
    NIBBLE_CHECK(reader.check_tensors());
    for (const StateTensor& tensor : tensors) {
      const auto data = file.find_tensor(tensor.name)->data;
      if (!data.empty()) std::memcpy(tensor.bytes.data(), data.data(), data.size());
    }
    return state;
  });
}

// The tensors of a run: the values of an optimizer's parameters, under their names, and its
// moments.
template <class Optimizer>
std::vector<StateTensor> tensors_of(Optimizer& optimizer) {
  std::vector<StateTensor> out;
  for (const Parameter& p : optimizer.parameters().all()) {
    out.push_back({p.name, StateTensor::Kind::f32, std::as_writable_bytes(p.values), p.columns});
  }
  for (StateTensor& moment : optimizer.state()) out.push_back(std::move(moment));
  return out;
}

namespace detail {

template <class Optimizer>
std::vector<StateTensor> tensors_of_run(Optimizer& optimizer, std::span<const StateTensor> more) {
  std::vector<StateTensor> tensors = tensors_of(optimizer);
  tensors.insert(tensors.end(), more.begin(), more.end());
  return tensors;
}

}  // namespace detail

// save_checkpoint() and load_checkpoint() for a run with this optimizer, whose number of steps is
// that of the state, and `more` tensors that it keeps.
template <class Optimizer>
Result<void> save_run(const std::string& path, RunState state, Optimizer& optimizer,
                      std::span<const StateTensor> more = {}) {
  return catch_out_of_memory([&] {
    state.n_steps = optimizer.n_steps();
    return save_checkpoint(path, state, detail::tensors_of_run(optimizer, more));
  });
}
template <class Optimizer>
Result<RunState> resume_run(const std::string& path, std::string_view fingerprint,
                            Optimizer& optimizer, std::span<const StateTensor> more = {}) {
  return catch_out_of_memory([&]() -> Result<RunState> {
    NIBBLE_TRY(state, load_checkpoint(path, fingerprint, detail::tensors_of_run(optimizer, more)));
    optimizer.set_n_steps(state.n_steps);
    return state;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::train
