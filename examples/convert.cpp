// SPDX-License-Identifier: Apache-2.0
//
// convert: makes a GGUF file of a model's folder as hubs have it, in any weight format.
#include <cinttypes>
#include <utility>
#include <vector>

#include "common.hpp"
#include "format_rules.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/model/convert.hpp"

namespace {

using nibble::ConvertedTensor;
using nibble::quant::Format;

// The format of a model's largest matrix.
Format format_of(const nibble::io::Gguf& file) {
  std::size_t most = 0;
  Format format = Format::f32;
  for (const auto& tensor : file.tensors()) {
    const auto own = nibble::quant::format_of(tensor.type);
    if (!own || tensor.n_dims < 2 || tensor.data.size() <= most) continue;
    most = tensor.data.size();
    format = *own;
  }
  return format;
}

struct Options {
  std::string in, out;
  std::optional<Format> format;
  bool packed = false;
  nibble::Index n_threads = 0;
};

// What the file says where the command line does not: each matrix keeps its format.
void keep_formats(const nibble::io::Gguf& file, nibble::ConvertOptions& options) {
  options.format = format_of(file);
  options.choose = [&file](std::string_view name) -> std::optional<Format> {
    const auto* const tensor = file.find_tensor(name);
    const auto own = nibble::quant::format_of(tensor->type);
    return own ? std::optional<Format>(*own) : std::nullopt;
  };
  const auto file_type = file.get_u32("general.file_type");
  if (file_type) options.file_type = *file_type;
}

nibble::Result<void> convert(const Options& o) {
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(file, nibble::open_model(o.in));
  nibble::ConvertOptions options;
  options.packed = o.packed;
  options.executor = pool.get();
  if (o.format) {
    options.format = *o.format;
  } else {
    keep_formats(file, options);
  }
  example::catch_signals();

  const std::size_t n_tensors = file.tensors().size();
  std::uint64_t bytes_from = 0, bytes_to = 0;
  std::size_t n_done = 0;
  {
    example::StatusLine status(true, example::StatusLine::kInLogs);
    const auto on_tensor = [&](const ConvertedTensor& tensor) {
      bytes_from += tensor.bytes_from;
      bytes_to += tensor.bytes_to;
      status.show("converted " + std::to_string(++n_done) + " of " + std::to_string(n_tensors) +
                  ": " + nibble::printable(tensor.name));
      return !example::interrupted;
    };
    NIBBLE_CHECK(nibble::quantize_model(file, o.out, options, on_tensor));
  }
  if (file.find("tokenizer.ggml.model") == nullptr) {
    const auto why = file.get_string_or(nibble::hub::kTokenizerErrorKey, "there is no tokenizer");
    std::fprintf(stderr, "convert: the model takes token ids alone: %s\n",
                 why ? std::string(*why).c_str() : why.error().message.c_str());
  }
  std::printf("%zu tensors, %s -> %s bytes in %s (%.1f %%): %s\n", n_tensors,
              example::grouped(bytes_from).c_str(), example::grouped(bytes_to).c_str(),
              o.format ? to_string(*o.format) : "the formats that they had",
              100.0 * static_cast<double>(bytes_to) / static_cast<double>(bytes_from),
              nibble::printable(o.out).c_str());
  return nibble::ok();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Makes a GGUF file of a model's folder: config.json, tokenizer.json, *.safetensors.",
               "convert");
  Options o;
  std::string format_name;
  app.add_option("FOLDER", o.in, "the folder, or a GGUF file")->required();
  app.add_option("OUT.gguf", o.out, "the file to write")->required();
  app.add_option("--format", format_name,
                 "f16, q8_0, q4_0 or another format of GGUF, for all matrices; vectors become f32; "
                 "without it, each matrix keeps the format that it has; quantize, which takes "
                 "folders too, knows mixes such as q4_k_m");
  app.add_flag("--packed", o.packed,
               "matrices in the packed layout that nibble's kernels read; other programs cannot "
               "read the file");
  example::add_threads(app, o.n_threads);
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted: OUT.gguf is then as it was.");
  app.callback([&] {  // here, so that an invalid format is a usage error
    if (!format_name.empty()) o.format = example::parse_format(format_name);
  });
  return example::run(app, argc, argv, [&] { return convert(o); });
}
