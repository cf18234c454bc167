// SPDX-License-Identifier: Apache-2.0
//
// static_model: a model whose dimensions are compile-time constants. So is the size of all memory
// that it works in, checked by a static_assert: for devices without a heap (static_model/device.cpp,
// to which --image gives the weights and a few utterances).
#include <cstdio>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "nibble/graph/check.hpp"
#include "nibble/io/gguf.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/load.hpp"
#include "nibble/model/weight_store.hpp"
#include "nibble/nibble.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/text/tokenizer.hpp"
#include "static_model/model.hpp"

namespace {

namespace fixed = example::fixed;
using nibble::Index;
using nibble::Result;
using nibble::Slot;

// On a device this is all the memory there is, apart from the stack.
alignas(nibble::kAlignment) std::byte memory[fixed::kBytes];

// The packed weights for the slots of the expression.
Result<nibble::WeightStore> read_weights(const nibble::io::Gguf& file) {
  // Only the kernels of Q4_0 are compiled.
  nibble::WeightStore weights(fixed::kDims.n_layers, nibble::graph::FormatList<fixed::Q4_0>{});
  Result<void> added = nibble::ok();
  const auto add = [&](Slot slot, Index layer, Index n, Index k) -> Result<void> {
    NIBBLE_TRY(tensor, file.tensor(nibble::gguf_name(slot, layer)));
    NIBBLE_TRY(format, nibble::quant::format_of(tensor.type));
    return weights.add(slot, layer, format, n, k, tensor.data);
  };
  fixed::for_each_weight([&](Slot slot, Index layer, Index n, Index k) {
    if (added) added = add(slot, layer, n, k);
  });
  NIBBLE_CHECK(std::move(added));
  weights.tie(Slot::output, Slot::token_embd);
  nibble::InlineExecutor executor;
  NIBBLE_CHECK(weights.pack(executor));
  return weights;
}

// The tokens of an utterance, which the model must have.
Result<std::vector<std::int32_t>> tokens_of(const std::string& utterance,
                                            const nibble::text::Tokenizer& tokenizer) {
  NIBBLE_TRY(ids, tokenizer.encode(utterance + "\n"));
  for (const std::int32_t id : ids) {
    if (id < 0 || id >= fixed::kDims.vocab_size) {
      return nibble::Error{nibble::Errc::malformed, "a token that the model does not have"};
    }
  }
  return ids;
}

Result<void> answer(const nibble::WeightStore& weights, const nibble::text::Tokenizer& tokenizer,
                    const std::string& utterance) {
  NIBBLE_TRY(ids, tokens_of(utterance, tokenizer));
  nibble::InlineExecutor executor;
  nibble::graph::RopeTable rope;
  NIBBLE_TRY(args, fixed::prepare(memory, weights.table(), executor, rope));
  const auto check = [](const nibble::graph::RunArgs& first) {
    return nibble::graph::check_run(fixed::kModel, fixed::kPlan, fixed::kLimits, first);
  };
  std::vector<std::int32_t> call;
  NIBBLE_CHECK(fixed::generate(args, ids, check, [&](std::int32_t id) {
    if (tokenizer.vocabulary().ends_generation(id)) return false;
    call.push_back(id);
    return true;
  }));
  std::printf("%s\n-> %s\n", utterance.c_str(),
              tokenizer.decode(call, {.at_start = false}).c_str());
  return nibble::ok();
}

// Writes what a device keeps in flash.
Result<void> write_image(const nibble::WeightStore& weights,
                         const nibble::text::Tokenizer& tokenizer, const std::string& path) {
  const auto image = std::make_unique<fixed::Image>();
  std::byte* at = image->weights;
  fixed::for_each_weight([&](Slot slot, Index layer, Index n, Index k) {
    const nibble::graph::Weight& weight = weights.table().at(slot, layer);
    std::memcpy(at, weight.data, static_cast<std::size_t>(weight.bytes()));
    at += fixed::weight_bytes(n, k);
  });
  for (std::int32_t id = 0; id < fixed::kDims.vocab_size; ++id) {
    fixed::Image::Token& token = image->tokens[id];
    const std::string text = tokenizer.decode({&id, 1}, {.at_start = false});
    if (text.size() > sizeof(token.text)) {
      return nibble::Error{nibble::Errc::limit, "a token of too many characters"};
    }
    token.length = tokenizer.vocabulary().ends_generation(id)
                       ? fixed::Image::kEnds
                       : static_cast<std::uint8_t>(text.size());
    std::memcpy(token.text, text.data(), text.size());
  }
  constexpr const char* kUtterances[] = {"could you please dim the office light to 10 percent",
                                         "wake me up at six thirty am tomorrow",
                                         "tell me why cats purr"};
  for (fixed::Image::Prompt& prompt : image->prompts) {
    const std::string utterance = kUtterances[&prompt - image->prompts];
    NIBBLE_TRY(ids, tokens_of(utterance, tokenizer));
    if (ids.size() > fixed::Image::kMaxPrompt || utterance.size() >= sizeof(prompt.text)) {
      return nibble::Error{nibble::Errc::limit, "an utterance that is too long"};
    }
    std::memcpy(prompt.text, utterance.data(), utterance.size());
    prompt.n_tokens = static_cast<std::int32_t>(ids.size());
    std::memcpy(prompt.tokens, ids.data(), ids.size() * sizeof(ids[0]));
  }
  std::FILE* const file = std::fopen(path.c_str(), "wb");
  const bool written = file != nullptr && std::fwrite(image.get(), sizeof(*image), 1, file) == 1;
  if ((file == nullptr || std::fclose(file) == 0) && written) return nibble::ok();
  return nibble::Error{nibble::Errc::io, nibble::printable(path) + ": cannot write"};
}

Result<void> run(const std::string& model_path, const std::string& utterance,
                 const std::string& image_path) {
  NIBBLE_CHECK(nibble::simd::ensure_target());
  NIBBLE_TRY(given, nibble::io::Gguf::open(model_path));
  NIBBLE_TRY(tokenizer, nibble::text::Tokenizer::from_gguf(given));
  nibble::ConvertOptions options;
  options.format = nibble::quant::Format::q4_0;
  NIBBLE_TRY(bytes, nibble::quantize_model(given, options));
  NIBBLE_TRY(file, nibble::io::Gguf::parse(bytes, model_path));
  NIBBLE_TRY(weights, read_weights(file));
  if (!image_path.empty()) return write_image(weights, tokenizer, image_path);
  NIBBLE_CHECK(answer(weights, tokenizer, utterance));
  std::printf(
      "%zu bytes of working memory, known when this was compiled:\n"
      "  %zu intermediate results, %zu key-value cache, %zu rotation tables\n",
      fixed::kBytes, fixed::kPlan.bytes, fixed::kCache.bytes(), fixed::kRopeBytes);
  return nibble::ok();
}

}  // namespace

int main(int argc, char** argv) {
  constexpr const char* kUsage =
      "usage: static_model [home-commands-f16.gguf [utterance]]\n"
      "       static_model --image FILE home-commands-f16.gguf\n";
  const bool writes = argc == 4 && std::string(argv[1]) == "--image";
  const char* const given = writes ? argv[3] : argc > 1 ? argv[1] : nullptr;
  const std::string model = given != nullptr ? given : "examples/models/home-commands-f16.gguf";
  if (model == "--help") return std::fputs(kUsage, stdout) >= 0 ? 0 : 1;
  if ((argc > 3 && !writes) || model.starts_with('-')) {
    std::fprintf(stderr, "static_model: %s; %s",
                 argc > 3 ? "too many arguments" : (model + " is not known").c_str(), kUsage);
    return 2;
  }
  const std::string utterance =
      argc > 2 ? argv[2] : "could you please dim the office light to 10 percent";
  const Result<void> done = run(model, utterance, writes ? argv[2] : "");
  if (!done) {
    std::fprintf(stderr, "static_model: %s\n", done.error().message.c_str());
    return 1;
  }
  return std::fflush(stdout) == 0 ? 0 : 1;
}
