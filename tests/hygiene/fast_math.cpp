// SPDX-License-Identifier: Apache-2.0
//
// Compiled with -ffast-math (fast_math.cmake), which makes `x != x` false: a model that is not
// sound is still an error, and a sound one answers as ever. Exits with the number of the step that
// failed.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "nibble/model/convert.hpp"
#include "nibble/nibble.hpp"

using namespace nibble;

static_assert(NIBBLE_HAVE_FAST_MATH);

// One architecture and few formats: there is enough to compile.
using Formats = graph::FormatList<quant::F32, quant::F16, quant::Q8_0>;

static Result<Model> load_llama(const std::string& path) {
  return load<Formats, ArchitectureList<Llama>>(path);
}

static Result<std::string> answer(const std::string& path) {
  NIBBLE_TRY(model, load_llama(path));
  NIBBLE_TRY(session, Session::create(model));
  std::string text;
  const auto on_token = [&](const Token& token) {
    text += token.text;
    return true;
  };
  GenerateOptions greedy;
  greedy.sampling.temperature = 0;
  NIBBLE_CHECK(
      generate(session, "could you please dim the office light to 10 percent\n", greedy, on_token));
  return text;
}

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  const auto text = answer(argv[1]);
  if (!text || *text != "light.set(room=office, level=10)") return 2;

  // One weight after the other is a NaN or an infinity. (Those of the last norm reach all logits.)
  for (const char* const name :
       {"output_norm.weight", "blk.1.attn_norm.weight", "blk.0.ffn_up.weight",
        "blk.1.ffn_down.weight", "blk.0.attn_v.weight"}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      const auto file = io::Gguf::open(argv[1]);
      if (!file) return 3;
      const auto whole = file->files()[0].bytes();
      std::vector<std::byte> bytes(whole.begin(), whole.end());
      const auto* const tensor = file->find_tensor(name);
      if (tensor == nullptr) return 4;
      const auto at = static_cast<std::size_t>(tensor->data.data() - whole.data());
      const bool is_f32 = tensor->type == io::GgmlType::f32;
      const std::uint32_t bits = is_f32 ? __builtin_bit_cast(std::uint32_t, bad) : to_f16(bad).bits;
      for (std::size_t i = 0; i < (is_f32 ? 4 : 2); ++i) {
        bytes[at + i] = static_cast<std::byte>(bits >> (8 * i));
      }
      std::FILE* const out = std::fopen(argv[2], "wb");
      if (out == nullptr || std::fwrite(bytes.data(), 1, bytes.size(), out) != bytes.size() ||
          std::fclose(out) != 0) {
        return 5;
      }
      const auto nothing = answer(argv[2]);
      if (nothing || nothing.error().code != Errc::malformed) {
        std::printf("%s: %s\n", name, nothing ? nothing->c_str() : nothing.error().message.c_str());
        return 6;
      }
      const auto broken = io::Gguf::open(argv[2]);
      if (!broken) return 7;
      const auto converted = quantize_model(*broken, {.format = quant::Format::q8_0});
      if (converted || converted.error().message.find("not a finite number") == std::string::npos) {
        std::printf("%s: converted\n", name);
        return 8;
      }
    }
  }

  const auto model = load_llama(argv[1]);
  if (!model) return 9;
  auto session = Session::create(*model);
  if (!session) return 10;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const SamplingOptions& bad :
       {SamplingOptions{.temperature = nan}, SamplingOptions{.temperature = 1, .top_p = nan},
        SamplingOptions{.temperature = 1, .min_p = nan},
        SamplingOptions{.temperature = 1, .repetition_penalty = nan},
        SamplingOptions{.temperature = 1, .frequency_penalty = nan},
        SamplingOptions{.temperature = 1, .xtc_threshold = nan}}) {
    GenerateOptions options;
    options.sampling = bad;
    if (Generator::create(*session, options)) return 11;
  }
  return 0;
}
