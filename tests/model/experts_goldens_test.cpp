// SPDX-License-Identifier: Apache-2.0
//
// Models with experts, compared with PyTorch transformers (goldens.hpp): their files, and what is
// refused.
#include "model/goldens.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/model/convert.hpp"

namespace experts_goldens_test {

using namespace nibble;
using namespace test::goldens;

namespace {

// Calls f(name, golden, model) for the models with experts.
template <class F>
void for_each_moe(const F& f) {
  int n = 0;
  for_each_golden(false, [&](auto& name, auto& golden, auto& model) {
    const bool has_experts = std::any_of(
        golden.tensors.begin(), golden.tensors.end(),
        [](const auto& tensor) { return tensor.name.find("_exps.") != std::string::npos; });
    if (!has_experts) return;
    ++n;
    f(name, golden, model);
  });
  CHECK(n == 11);
}

std::vector<float> logits_of(const Model& model, const Golden& golden) {
  auto session = Session::create(model, {.max_outputs = 30});
  REQUIRE_MESSAGE(session, test::why(session));
  const auto logits = session->append(golden.tokens, 30);
  REQUIRE_MESSAGE(logits, test::why(logits));
  std::vector<float> all;
  for (Index row = 0; row < 30; ++row) {
    for (Index j = 0; j < logits->extent(1); ++j) all.push_back((*logits)(row, j));
  }
  return all;
}

// The golden with a tensor for each expert where there is one for all.
Golden with_experts_apart(const Golden& golden) {
  Golden apart = golden;
  apart.tensors.clear();
  for (const auto& tensor : golden.tensors) {
    if (tensor.dims.size() < 3) {
      apart.tensors.push_back(tensor);
      continue;
    }
    const std::size_t both = tensor.name.find("gate_up");
    const std::uint64_t n_rows = both == std::string::npos ? tensor.dims[1] : tensor.dims[1] / 2;
    const auto n = static_cast<std::ptrdiff_t>(tensor.dims[0] * n_rows);
    if (both != std::string::npos) {  // for each expert the rows of two
      for (std::size_t i = 0; i < 2 * tensor.dims[2]; ++i) {
        const auto begin = tensor.values.begin() + static_cast<std::ptrdiff_t>(i) * n;
        std::string name = tensor.name;
        name.replace(both, 7, i % 2 == 0 ? "gate" : "up");
        apart.tensors.push_back({name_of_expert(name, static_cast<Index>(i / 2)),
                                 {tensor.dims[0], n_rows},
                                 {begin, begin + n}});
      }
      continue;
    }
    for (std::size_t e = 0; e < tensor.dims[2]; ++e) {
      const auto begin = tensor.values.begin() + static_cast<std::ptrdiff_t>(e) * n;
      apart.tensors.push_back({name_of_expert(tensor.name, static_cast<Index>(e)),
                               {tensor.dims[0], tensor.dims[1]},
                               {begin, begin + n}});
    }
  }
  return apart;
}

}  // namespace

TEST_CASE("experts of one tensor, of a tensor each, and packed ones give the same numbers") {
  for_each_moe([](auto&, auto& golden, auto& model) {
    const auto expected = logits_of(model, golden);
    const Golden apart = with_experts_apart(golden);
    CHECK(logits_of(load_golden(apart), golden) == expected);

    const auto whole = golden.write();
    const auto file = io::Gguf::parse(whole, "golden.gguf");
    REQUIRE_MESSAGE(file, test::why(file));
    const auto bytes = quantize_model(*file, {.format = quant::Format::f32, .packed = true});
    REQUIRE_MESSAGE(bytes, test::why(bytes));
    auto memory = AlignedBuffer::allocate(bytes->size());
    REQUIRE(memory);
    std::memcpy(memory->data(), bytes->data(), bytes->size());
    const auto packed_file = io::Gguf::parse_static(memory->bytes(), "packed.gguf");
    REQUIRE_MESSAGE(packed_file, test::why(packed_file));
    const auto packed = load_file(*packed_file);
    REQUIRE_MESSAGE(packed, test::why(packed));
    const auto& up = packed->weights().at(Slot::ffn_up_exps, 1);
    CHECK(up.n_experts == 6);
    const bool is_parted = golden.keys[1].starts_with("gemma4");  // one tensor for two slots
    if (!is_parted) CHECK((up.data > memory->data() && up.data < memory->data() + memory->size()));
    CHECK(logits_of(*packed, golden) == expected);

    // One is missing, or of another shape.
    const auto at =
        std::find_if(apart.tensors.begin(), apart.tensors.end(),
                     [](const auto& tensor) { return tensor.name == "blk.1.ffn_up.4.weight"; });
    REQUIRE(at != apart.tensors.end());
    Golden broken = apart;
    broken.tensors.erase(broken.tensors.begin() + (at - apart.tensors.begin()));
    const auto missing = load_bytes(broken.write());
    REQUIRE_FALSE(missing);
    CHECK(missing.error().code == Errc::not_found);
    CHECK(missing.error().message.find("blk.1.ffn_up.4.weight") != std::string::npos);
    broken = apart;
    std::swap(broken.tensors[static_cast<std::size_t>(at - apart.tensors.begin())].dims[0],
              broken.tensors[static_cast<std::size_t>(at - apart.tensors.begin())].dims[1]);
    const auto turned = load_bytes(broken.write());
    REQUIRE_FALSE(turned);
    CHECK(turned.error().code == Errc::malformed);
  });
}

TEST_CASE("numbers of experts that a model cannot have, and a router of NaN") {
  for_each_moe([](auto&, auto& golden, auto&) {
    const std::string prefix = golden.keys[1].substr(0, golden.keys[1].find('.') + 1);
    const auto code_of = [&](const char* key, std::uint32_t value) {
      Golden changed = golden;
      changed.metadata.set(prefix + key, value);
      const auto model = load_bytes(changed.write());
      REQUIRE_FALSE(model);
      return model.error().code;
    };
    for (const std::uint32_t n : {1u, 5u, 7u, 4097u, 0xffffffffu}) {
      CHECK(code_of("expert_count", n) == Errc::malformed);
    }
    for (const std::uint32_t n : {0u, 7u, 0xffffffffu}) {
      CHECK(code_of("expert_used_count", n) == Errc::malformed);
    }
    CHECK(code_of("expert_feed_forward_length", 17) == Errc::malformed);
    CHECK(code_of("expert_group_count", 4) == Errc::malformed);
    CHECK(code_of("expert_gating_func", 4) == Errc::unsupported);
    Golden broken = golden;
    for (auto& tensor : broken.tensors) {
      if (tensor.name == "blk.1.ffn_gate_inp.weight") tensor.values[25] = NAN;
    }
    for (const float logit : logits_of(load_golden(broken), golden)) CHECK(std::isnan(logit));
  });
}

TEST_CASE("the experts of each token, in a table: numbers that are no experts, another shape") {
  int n = 0;
  for_each_moe([&](const std::string& name, const Golden& golden, const Model& model) {
    if (name != "qwen3moe-by-token.gguf") return;
    ++n;
    const auto with = [&](const auto& change) {
      Golden changed = golden;
      for (auto& tensor : changed.tensors) {
        if (tensor.name == "blk.1.ffn_gate_tid2eid.weight") change(tensor);
      }
      return changed;
    };
    Golden chosen = golden;
    std::erase_if(chosen.tensors, [](const auto& tensor) {
      return tensor.name == "blk.1.ffn_gate_tid2eid.weight";
    });
    CHECK(logits_of(load_golden(chosen), golden) != logits_of(model, golden));
    for (const float bad : {-1.0f, 6.0f, 1e9f, NAN}) {
      const Golden broken = with([&](auto& tensor) {
        for (float& expert : tensor.values) expert = bad;
      });
      for (const float logit : logits_of(load_golden(broken), golden)) CHECK(std::isnan(logit));
    }
    for (const std::uint64_t rows : {23u, 25u}) {
      const auto loaded = load_bytes(with([&](auto& tensor) {
                                       tensor.dims[1] = rows;
                                       tensor.values.resize(2 * rows);
                                     }).write());
      REQUIRE_FALSE(loaded);
      CHECK(loaded.error().code == Errc::malformed);
    }
  });
  CHECK(n == 1);
}
}  // namespace experts_goldens_test
