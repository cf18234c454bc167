// SPDX-License-Identifier: Apache-2.0
//
// What the parties of federated learning send: GGUF files in memory, since these are checked when
// they are read, whoever wrote them. Values of a model are one f32 or f16 tensor for each
// parameter, predictions are those of TopLogits. The keys beside them:
//   federated.kind     what it is (FederatedKind)
//   federated.round    of the coordinator, from 1
//   federated.weight   examples that a client has trained on
//   federated.of_round predictions to learn from: the round whose rows they are
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/core/arena.hpp"
#include "nibble/core/float16.hpp"
#include "nibble/core/result.hpp"
#include "nibble/core/scalar.hpp"
#include "nibble/core/text.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/train/parameters.hpp"
#include "nibble/train/top_logits.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

enum class FederatedKind : unsigned char {
  train,        // to clients: a model; train it and send it back
  update,       // to the coordinator: the values after training
  predict,      // to clients: learn from these predictions, train, and send yours of the next rows
  first,        // predict, without predictions to learn from
  predictions,  // to the coordinator
  stop,         // to clients: it is over
};

// How values travel. f16 halves the bytes and rounds each value to 11 bits.
enum class SentAs : unsigned char { f32, f16 };

struct FederatedMessage {
  FederatedKind kind = FederatedKind::stop;
  std::uint64_t round = 0;
  std::uint64_t weight = 0;
  std::uint64_t of_round = 0;
  io::Gguf file;
};

namespace detail {

inline void set_federated_keys(io::GgufWriter& writer, FederatedKind kind, std::uint64_t round,
                               std::uint64_t weight, std::uint64_t of_round) {
  writer.set("federated.kind", static_cast<std::uint32_t>(kind));
  writer.set("federated.round", round);
  writer.set("federated.weight", weight);
  writer.set("federated.of_round", of_round);
}

}  // namespace detail

// A message of no tensors.
inline Result<std::vector<std::byte>> federated_note(FederatedKind kind, std::uint64_t round) {
  return catch_out_of_memory([&] {
    io::GgufWriter writer;
    writer.set("general.type", "federated");
    detail::set_federated_keys(writer, kind, round, 0, 0);
    return writer.to_bytes();
  });
}

// The values of all parameters. Errors: limit (a value beyond f16, if it is sent so), malformed
// (one that is not finite: a model that has failed is not sent).
inline Result<std::vector<std::byte>> federated_values(FederatedKind kind, std::uint64_t round,
                                                       std::uint64_t weight,
                                                       std::span<const Parameter> parameters,
                                                       SentAs sent_as) {
  return catch_out_of_memory([&]() -> Result<std::vector<std::byte>> {
    io::GgufWriter writer;
    writer.set("general.type", "federated");
    detail::set_federated_keys(writer, kind, round, weight, 0);
    std::vector<std::vector<f16>> halves;
    for (const Parameter& p : parameters) {
      const std::uint64_t dims[] = {p.values.size()};
      for (const float x : p.values) {
        if (is_finite(static_cast<double>(x))) continue;
        return Error{Errc::malformed, "parameter " + io::quoted(p.name) +
                                          ": a value that is not finite; it is not sent"};
      }
      if (sent_as == SentAs::f32) {
        writer.add_tensor(p.name, io::GgmlType::f32, dims, std::as_bytes(p.values));
        continue;
      }
      std::vector<f16>& half = halves.emplace_back();
      half.reserve(p.values.size());
      for (const float x : p.values) {
        half.push_back(to_f16(x));
        if (is_finite(static_cast<double>(to_f32(half.back())))) continue;
        return Error{Errc::limit, "parameter " + io::quoted(p.name) + ": a value beyond f16"};
      }
      writer.add_tensor(p.name, io::GgmlType::f16, dims, std::as_bytes(std::span(half)));
    }
    return writer.to_bytes();
  });
}

inline Result<std::vector<std::byte>> federated_predictions(FederatedKind kind, std::uint64_t round,
                                                            std::uint64_t weight,
                                                            std::uint64_t of_round,
                                                            const TopLogits& predictions) {
  return predictions.to_bytes([&](io::GgufWriter& writer) {
    detail::set_federated_keys(writer, kind, round, weight, of_round);
  });
}

// Copies the bytes. Errors name `from`: those of Gguf::parse, not_found (a key), malformed.
inline Result<FederatedMessage> read_federated(std::span<const std::byte> bytes,
                                               const std::string& from) {
  return catch_out_of_memory([&]() -> Result<FederatedMessage> {
    NIBBLE_TRY(buffer, AlignedBuffer::allocate(bytes.size()));
    if (!bytes.empty()) std::memcpy(buffer.data(), bytes.data(), bytes.size());
    NIBBLE_TRY(file, io::Gguf::parse(std::move(buffer), from));
    NIBBLE_TRY(kind, file.get<std::uint32_t>("federated.kind"));
    NIBBLE_TRY(round, file.get<std::uint64_t>("federated.round"));
    NIBBLE_TRY(weight, file.get<std::uint64_t>("federated.weight"));
    NIBBLE_TRY(of_round, file.get<std::uint64_t>("federated.of_round"));
    if (kind > static_cast<std::uint32_t>(FederatedKind::stop)) {
      return Error{Errc::malformed, from + ": a message of unknown kind " + to_text(kind)};
    }
    return FederatedMessage{static_cast<FederatedKind>(kind), round, weight, of_round,
                            std::move(file)};
  });
}

// The values of a message, all parameters one after another. Errors name its sender: malformed
// (another model: its parameters have other names, sizes or types; a value that is not finite).
inline Result<std::vector<float>> federated_values_of(const FederatedMessage& message,
                                                      std::span<const Parameter> parameters) {
  return catch_out_of_memory([&]() -> Result<std::vector<float>> {
    const std::string& from = message.file.name();
    if (message.file.tensors().size() != parameters.size()) {
      return Error{Errc::malformed,
                   from + ": another model: " + to_text(message.file.tensors().size()) +
                       " parameters instead of " + to_text(parameters.size())};
    }
    std::size_t n_values = 0;
    for (const Parameter& p : parameters) n_values += p.values.size();
    std::vector<float> values;
    values.reserve(n_values);
    for (const Parameter& p : parameters) {
      const io::GgufTensor* const t = message.file.find_tensor(p.name);
      const std::size_t n = p.values.size();
      if (t == nullptr || t->n_elements() != n ||
          (t->type != io::GgmlType::f32 && t->type != io::GgmlType::f16)) {
        return Error{Errc::malformed, from + ": another model: no parameter " + io::quoted(p.name) +
                                          " of " + to_text(n) + " values"};
      }
      for (std::size_t i = 0; i < n; ++i) {
        float x = 0;
        if (t->type == io::GgmlType::f32) {
          std::memcpy(&x, t->data.data() + 4 * i, 4);
        } else {
          f16 half;
          std::memcpy(&half, t->data.data() + 2 * i, 2);
          x = to_f32(half);
        }
        if (!is_finite(static_cast<double>(x))) {
          return Error{Errc::malformed, from + ": parameter " + io::quoted(p.name) +
                                            " has a value that is not finite"};
        }
        values.push_back(x);
      }
    }
    return values;
  });
}

}}}  // namespace nibble::NIBBLE_ABI::train
