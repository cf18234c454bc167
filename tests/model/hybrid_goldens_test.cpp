// SPDX-License-Identifier: Apache-2.0
//
// Models with recurrent layers, compared with PyTorch transformers (goldens.hpp): their files, and
// what is refused.
#include "model/goldens.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "doctest/doctest.h"

namespace hybrid_goldens_test {

using namespace nibble;
using namespace test::goldens;

TEST_CASE("layers that guess tokens after the next one are left out") {
  int n = 0;
  for_each_file([&](const std::string& name, const Golden& golden) {
    if (name != "qwen35.gguf") return;
    ++n;
    Golden more = golden;
    more.metadata.set("qwen35.block_count", std::uint32_t{5});
    more.metadata.set("qwen35.nextn_predict_layers", std::uint32_t{1});
    more.tensors.push_back({"blk.4.nextn.eh_proj.weight", {4, 2}, std::vector<float>(8, 1)});
    const Model model = load_golden(more);
    CHECK(model.config().n_layers == 4);
    CHECK(largest_error(model, golden, 30) < 5e-6);
    more.metadata.set("qwen35.nextn_predict_layers", std::uint32_t{5});
    CHECK(load_bytes(more.write()).error().code == Errc::malformed);
    more.metadata.set("qwen35.nextn_predict_layers", std::uint32_t{0});
    CHECK_FALSE(load_bytes(more.write()));
  });
  CHECK(n == 1);
}

TEST_CASE("hybrids: states of absurd sizes and layers that are not there are errors") {
  int n = 0;
  for_each_file([&](const std::string& name, const Golden& golden) {
    if (!name.starts_with("qwen35") && name != "granitehybrid.gguf" && !name.starts_with("lfm2")) {
      return;
    }
    ++n;
    const std::string prefix = name.substr(0, name.find('.')) + ".";
    const auto refused = [&](const std::string& key, std::uint32_t value) {
      CAPTURE(key);
      CAPTURE(value);
      Golden changed = golden;
      changed.metadata.set(prefix + key, value);
      const auto model = load_bytes(changed.write());
      REQUIRE(!model);
      CHECK(model.error().code != Errc::out_of_memory);
    };
    if (name.starts_with("lfm2")) {
      for (const std::uint32_t n_taps : {0u, 1u, 5u, 1u << 20, 0xffffffffu}) {
        refused("shortconv.l_cache", n_taps);
      }
      for (const int kv_heads : {0, 7}) {  // no attention at all; heads that do not go together
        Golden changed = golden;
        changed.metadata.set_array(prefix + "attention.head_count_kv",
                                   std::vector<std::int32_t>(4, kv_heads));
        CHECK(load_bytes(changed.write()).error().code == Errc::malformed);
      }
      return;
    }
    for (const char* const key : {"ssm.state_size", "ssm.group_count", "ssm.time_step_rank",
                                  "ssm.inner_size", "ssm.conv_kernel"}) {
      for (const std::uint32_t value : {0u, 1u, 7u, 4096u, 1u << 20, 0xffffffffu}) {
        if (key == std::string_view("ssm.group_count") && value == 1) continue;
        refused(key, value);
      }
    }
  });
  CHECK(n == 5);
}

TEST_CASE("hybrids: taps of convolutions may be stored in another format") {
  int n = 0;
  for_each_file([&](const std::string& name, const Golden& golden) {
    if (name != "qwen35.gguf" && name != "lfm2.gguf") return;
    ++n;
    Golden rounded = golden, half = golden;
    for (std::size_t i = 0; i < golden.tensors.size(); ++i) {
      if (golden.tensors[i].name.find("conv") == std::string::npos ||
          golden.tensors[i].dims[0] > 4) {
        continue;
      }
      half.tensors[i].is_f16 = true;
      std::vector<float>& values = rounded.tensors[i].values;
      std::vector<std::byte> bytes(2 * values.size());
      REQUIRE(quant::row_from_f32(quant::Format::f16, values, bytes));
      REQUIRE(quant::row_to_f32(quant::Format::f16, bytes, values));
    }
    const auto logits_of = [&](const Golden& file) {
      auto session = Session::create(load_golden(file), {.n_ctx = 30});
      REQUIRE_MESSAGE(session, test::why(session));
      const auto logits = session->append(golden.tokens);
      REQUIRE_MESSAGE(logits, test::why(logits));
      return std::vector<float>(logits->data(), logits->data() + logits->extent(1));
    };
    CHECK(logits_of(half) == logits_of(rounded));
    CHECK(logits_of(half) != logits_of(golden));
  });
  CHECK(n == 2);
}

TEST_CASE("layers that read keys and values of others: which ones, and what they need not have") {
  int n = 0;
  for_each_file([&](const std::string& name, const Golden& golden) {
    if (name != "gemma4.gguf") return;
    ++n;
    // Of seven layers, the fourth and the last have no window.
    for (const std::uint32_t n_shared : {4u, 6u, 7u, 8u, 0xffffffffu}) {
      Golden changed = golden;
      changed.metadata.set("gemma4.attention.shared_kv_layers", n_shared);
      CHECK(load_bytes(changed.write()).error().code == Errc::malformed);
    }
    Golden changed = golden;
    changed.metadata.set("gemma4.attention.shared_kv_layers", std::uint32_t{2});
    CHECK(load_bytes(changed.write()).error().code == Errc::not_found);
    // What makes keys and values there may be left over from training.
    Golden more = golden;
    more.tensors.push_back({"blk.6.attn_k.weight", {4, 2}, std::vector<float>(8, 1)});
    more.tensors.push_back({"blk.4.attn_k_norm.weight", {3}, std::vector<float>(3, 1)});
    CHECK(largest_error(load_golden(more), golden, 30) < 5e-6);
    more.tensors.push_back({"blk.3.attn_k.extra", {3}, std::vector<float>(3, 1)});
    CHECK(load_bytes(more.write()).error().code == Errc::unsupported);
    for (const std::uint32_t width : {0u, 1u, 4u, 6u, 1u << 20, 0xffffffffu}) {
      Golden other = golden;
      other.metadata.set("gemma4.embedding_length_per_layer_input", width);
      const auto loaded = load_bytes(other.write());
      REQUIRE_FALSE(loaded);
      CHECK(loaded.error().code != Errc::out_of_memory);
    }
  });
  CHECK(n == 1);
}
}  // namespace hybrid_goldens_test
