// SPDX-License-Identifier: Apache-2.0
//
// Adapters of each kind against PEFT (make_adapter_goldens.py), all in one step; and the folders of
// learned rows, as PEFT writes them.
#include <cmath>
#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/train/merge_adapter.hpp"
#include "nibble/train/peft.hpp"
#include "train/lora_cases.hpp"
#include "why.hpp"

namespace adapter_goldens_test {
namespace {

using namespace nibble;
using namespace nibble::train;
using nibble_test::load_home, nibble_test::open_home;
using Floats = std::vector<Scalar<float>>;

template <class T>
T must(Result<T> result) {
  REQUIRE_MESSAGE(result, test::why(result));
  return *std::move(result);
}

// The numbers of the script.
Floats cosines(Index n, double size, double phase) {
  Floats x;
  for (Index i = 0; i < n; ++i) {
    x.push_back({static_cast<float>(size * std::cos(0.61 * static_cast<double>(i) + phase))});
  }
  return x;
}

Adapter lora(const io::Gguf& base, Index rank, float alpha, double size,
             std::initializer_list<const char*> slots) {
  Adapter adapter;
  adapter.architecture = "llama";
  for (Index layer = 0; layer < 3; ++layer) {
    for (const char* const slot : slots) {
      AdapterMatrix m;
      m.name = "blk." + to_text(layer) + "." + slot + ".weight";
      const io::GgufTensor tensor = must(base.tensor(m.name));
      m.n = static_cast<Index>(tensor.dims[1]);
      m.k = static_cast<Index>(tensor.dims[0]);
      m.rank = rank;
      m.alpha = alpha;
      const auto j = static_cast<double>(2 * adapter.matrices.size());
      m.a = cosines(rank * m.k, size, 0.3 * j);
      m.b = cosines(m.n * rank, size, 0.3 * (j + 1));
      adapter.matrices.push_back(std::move(m));
    }
  }
  return adapter;
}

constexpr Index kWidth = 256;  // of the bundled model

// The folders that PEFT writes of the other two kinds.
void write_folder(const test::TemporaryFolder& folder, const std::string& config,
                  const std::vector<std::pair<std::string, Floats>>& tensors) {
  std::ofstream(folder.path("adapter_config.json")) << config;
  std::string header, data;
  for (const auto& [name, x] : tensors) {
    const bool is_prompt = name.ends_with("adaption_prompt"), is_gate = x.size() == 1;
    const std::string rows = to_text(x.size() / static_cast<std::size_t>(kWidth));
    const std::string shape = is_gate     ? "1"
                              : is_prompt ? "1," + rows + "," + to_text(kWidth)
                                          : rows + "," + to_text(kWidth);
    header += (header.empty() ? "{\"" : ",\"") + name + "\":{\"dtype\":\"F32\",\"shape\":[" +
              shape + "],\"data_offsets\":[" + to_text(data.size()) + "," +
              to_text(data.size() + 4 * x.size()) + "]}";
    data.append(reinterpret_cast<const char*>(x.data()), 4 * x.size());
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');
  std::string size(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) size[i] = static_cast<char>(header.size() >> 8 * i & 255);
  std::ofstream(folder.path("adapter_model.safetensors"), std::ios::binary)
      << size << header << data;
}

const char* const kPromptTuning =
    "{\"peft_type\": \"PROMPT_TUNING\", \"num_virtual_tokens\": 5, \"token_dim\": 256, "
    "\"num_transformer_submodules\": 1, \"task_type\": \"CAUSAL_LM\"}";
const char* const kAdaptionPrompt =
    "{\"peft_type\": \"ADAPTION_PROMPT\", \"adapter_layers\": 2, \"adapter_len\": 6, "
    "\"target_modules\": \"self_attn\", \"task_type\": \"CAUSAL_LM\"}";

std::vector<std::pair<std::string, Floats>> prompt_tensors() {
  std::vector<std::pair<std::string, Floats>> tensors;
  for (const int layer : {1, 2}) {
    const std::string stem = "base_model.model.model.layers." + to_text(layer) + ".self_attn.";
    tensors.emplace_back(stem + "adaption_gate", Floats{{layer % 2 == 1 ? 0.75f : -1.5f}});
    tensors.emplace_back(stem + "adaption_prompt", cosines(6 * kWidth, 0.8, 0.1 * layer));
  }
  return tensors;
}

Adapter read_folder(const io::Gguf& base, const std::string& config,
                    const std::vector<std::pair<std::string, Floats>>& tensors) {
  const test::TemporaryFolder folder;
  write_folder(folder, config, tensors);
  return must(open_adapter(folder.path(""), base));
}
Adapter prefix_adapter(const io::Gguf& base) {
  return read_folder(base, kPromptTuning, {{"prompt_embeddings", cosines(5 * kWidth, 0.4, 0.2)}});
}
Adapter gated_adapter(const io::Gguf& base) {
  return read_folder(base, kAdaptionPrompt, prompt_tensors());
}

std::vector<std::int32_t> golden_ids() {
  std::vector<std::int32_t> ids;
  for (std::int32_t i = 0; i < 21; ++i) ids.push_back((37 * i + 11) % 300 + 3);
  return ids;
}

std::map<std::string, std::vector<double>> goldens() {
  std::ifstream file(nibble_test::in_project("tests/train/adapter_goldens.txt"));
  std::map<std::string, std::vector<double>> all;
  for (std::string line; std::getline(file, line);) {
    std::istringstream in(line);
    std::string name;
    in >> name;
    for (double x = 0; in >> x;) all[name].push_back(x);
  }
  REQUIRE(all.size() == 5);
  return all;
}

TEST_CASE("adapters of three kinds, mixed in one step, are what PEFT computes") {
  const io::Gguf base = open_home();
  const Model model = load_home(base);
  const auto wanted = goldens();
  std::vector<std::pair<std::string, SequenceAdapter>> adapters = {{"none", {}}};
  const auto add = [&](const std::string& name, const Adapter& adapter) {
    adapters.emplace_back(name, SequenceAdapter{must(AdapterSet::create(model, adapter))});
  };
  add("lora",
      lora(base, 4, 6, 0.05,
           {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"}));
  add("lora16", lora(base, 16, 8, 0.08, {"attn_q", "ffn_gate", "ffn_down"}));
  add("prefix", prefix_adapter(base));
  add("gated", gated_adapter(base));
  auto engine = must(Engine::create(model, {.n_ctx = 64,
                                            .max_sequences = 5,
                                            .max_step_tokens = 128,
                                            .kv_type = ops::KvType::f32,
                                            .max_factor_rank = 16}));
  const auto ids = golden_ids();
  std::vector<Sequence> sequences;
  std::vector<SequenceInput> inputs;
  for (const auto& [name, adapter] : adapters) {
    sequences.push_back(must(engine.new_sequence()));
    REQUIRE(sequences.back().set_adapter(adapter));
  }
  for (Sequence& sequence : sequences) inputs.push_back({.sequence = &sequence, .tokens = ids});
  const auto logits = must(engine.run(inputs));
  for (std::size_t i = 0; i < adapters.size(); ++i) {
    CAPTURE(adapters[i].first);
    const std::vector<double>& golden = wanted.at(adapters[i].first);
    for (std::size_t j = 0; j < golden.size(); ++j) {
      const auto row = static_cast<Index>(i), column = static_cast<Index>(40 * j);
      REQUIRE(column < logits.extent(1));
      CHECK(std::abs(static_cast<double>(logits(row, column)) - golden[j]) < 2e-4);
    }
  }
}

TEST_CASE("the prefix of an adapter stays at the start of a session") {
  const io::Gguf base = open_home();
  const Model model = load_home(base);
  const AdapterSet set = must(AdapterSet::create(model, prefix_adapter(base)));
  CHECK(set.n_prefix() == 5);
  auto session = must(Session::create(model, {.n_ctx = 40, .max_step_tokens = 3}));
  REQUIRE(session.set_adapter({set}));
  CHECK(session.position() == 5);
  const auto ids = golden_ids();
  const auto copy = [](MatrixView<const float> row) {
    return std::vector<float>(row.data(), row.data() + row.extent(1));
  };
  const auto logits = copy(must(session.append(ids)));
  CHECK(session.position() == 26);
  for (const Index back : {0, 3, 5, 9}) {  // from within it, too
    REQUIRE(session.rewind(back));
    CHECK(session.position() == std::max<Index>(back, 5));
    const auto rest =
        std::span(ids).subspan(static_cast<std::size_t>(std::max<Index>(back, 5) - 5));
    CHECK(copy(must(session.append(rest))) == logits);
  }
  CHECK(!session.roll(0, 26));  // more than there is besides the prefix
  REQUIRE(session.roll(4, 6));
  CHECK(session.position() == 11);
  REQUIRE(session.append(std::span(ids).first(2)));
  REQUIRE(session.rewind(0));
  REQUIRE(session.set_adapter({}));
  CHECK(session.position() == 0);
  auto full = must(Session::create(model, {.n_ctx = 4}));
  CHECK(!full.set_adapter({set}));
}

TEST_CASE("learned rows that do not fit are errors") {
  const io::Gguf base = open_home();
  const Model model = load_home(base);
  const auto code = [&](const std::string& config,
                        const std::vector<std::pair<std::string, Floats>>& tensors) {
    const test::TemporaryFolder folder;
    write_folder(folder, config, tensors);
    const auto read = open_adapter(folder.path(""), base);
    REQUIRE(!read);
    return read.error().code;
  };
  CHECK(code(kPromptTuning, {{"prompts", cosines(kWidth, 1, 0)}}) == Errc::not_found);
  CHECK(code(kPromptTuning, prompt_tensors()) == Errc::unsupported);
  CHECK(code(kPromptTuning, {{"prompt_embeddings", Floats(static_cast<std::size_t>(kWidth),
                                                          Scalar<float>{std::nanf("")})}}) ==
        Errc::malformed);
  auto tensors = prompt_tensors();
  tensors[0].second[0].value = HUGE_VALF;
  CHECK(code(kAdaptionPrompt, tensors) == Errc::malformed);
  tensors = prompt_tensors();
  tensors[1].first = "base_model.model.model.layers.7.self_attn.adaption_prompt";
  CHECK(code(kAdaptionPrompt, tensors) == Errc::malformed);
  tensors.erase(tensors.begin());
  CHECK(code(kAdaptionPrompt, tensors) == Errc::malformed);
  tensors = prompt_tensors();
  tensors.erase(tensors.begin());  // a prompt without a gate
  CHECK(code(kAdaptionPrompt, tensors) == Errc::not_found);
  CHECK(code("{\"peft_type\": \"IA3\"}", prompt_tensors()) == Errc::unsupported);

  Adapter adapter = gated_adapter(base);
  const auto refused = [&] {
    const auto made = AdapterSet::create(model, adapter);
    REQUIRE(!made);
    return made.error().code;
  };
  const AppliedAdapter twice[] = {{&adapter, 1}, {&adapter, 1}};
  CHECK(AdapterSet::create(model, twice).error().code == Errc::unsupported);
  adapter.prompts[0].layer = 3;
  CHECK(refused() == Errc::not_found);
  adapter.prompts[0].layer = 0;
  adapter.prompts[0].rows.pop_back();
  CHECK(refused() == Errc::invalid_argument);
  adapter.prompts[0].rows = cosines(257 * kWidth, 1, 0);
  CHECK(refused() == Errc::limit);

  InlineExecutor executor;
  const AppliedAdapter of_rows[] = {{&adapter, 1}};
  CHECK(MergedModel::create(base, of_rows, {}, executor).error().code == Errc::unsupported);
  adapter.matrices = lora(base, 4, 6, 0.05, {"attn_q"}).matrices;
  CHECK(!AdapterFile::create(adapter));
}

}  // namespace

}  // namespace adapter_goldens_test
