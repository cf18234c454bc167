// SPDX-License-Identifier: Apache-2.0
//
// quantize: converts a model to other weight formats and reports the error for each tensor.
#include <cinttypes>
#include <utility>
#include <vector>

#include "common.hpp"
#include "format_rules.hpp"
#include "nibble/compress/imatrix.hpp"
#include "nibble/compress/quantize.hpp"
#include "nibble/core/thread_pool.hpp"
#include "nibble/hub/open.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/model/format_mix.hpp"

namespace {

using nibble::ConvertedTensor;
using nibble::Result;
using nibble::quant::ErrorStats;
using nibble::quant::Format;

std::string shape_of(const ConvertedTensor& tensor) {
  std::string shape;
  for (std::uint32_t d = tensor.n_dims; d-- > 0;) {  // rows first, as everywhere except in GGUF
    shape += (shape.empty() ? "" : " x ") + std::to_string(tensor.dims[d]);
  }
  return shape;
}

void print_errors(const ErrorStats& errors) {
  if (errors.sum_squared_error == 0) {
    std::printf("%10s %10s %7s", "0", "0", "exact");
  } else {
    std::printf("%10.3g %10.3g %7.2f", errors.rmse(), errors.max_abs, errors.snr_db());
  }
  std::printf(" %8" PRIu64 " %9" PRIu64 "\n", errors.sign_flips, errors.rounded_to_zero);
}

void print_report(const std::vector<ConvertedTensor>& tensors, int name_width) {
  std::printf("%-*s %-15s %-7s %-6s %14s %10s %10s %7s %8s %9s\n", name_width, "tensor", "shape",
              "from", "to", "bytes", "RMSE", "max error", "SNR dB", "sign", "rounded");
  std::printf("%-*s %-15s %-7s %-6s %14s %10s %10s %7s %8s %9s\n", name_width, "", "", "", "", "",
              "", "", "", "flips", "to zero");
  ErrorStats all;
  std::uint64_t bytes_from = 0, bytes_to = 0;
  bool has_short_rows = false;
  for (const ConvertedTensor& tensor : tensors) {
    const bool is_short = tensor.reason == nibble::FormatReason::row_length;
    std::printf("%-*s %-15s %-7s %-6s %14s ", name_width, nibble::printable(tensor.name).c_str(),
                shape_of(tensor).c_str(), nibble::io::type_traits(tensor.from).name,
                (std::string(to_string(tensor.to)) + (is_short ? " *" : "")).c_str(),
                example::grouped(tensor.bytes_to).c_str());
    print_errors(tensor.errors);
    all.merge(tensor.errors);
    bytes_from += tensor.bytes_from;
    bytes_to += tensor.bytes_to;
    has_short_rows = has_short_rows || is_short;
  }
  std::printf("%-*s %-15s %-7s %-6s %14s ", name_width, "all", "", "", "",
              example::grouped(bytes_to).c_str());
  print_errors(all);
  std::printf("\n%s -> %s bytes of weights (%.1f %%), %.2f bits per weight\n",
              example::grouped(bytes_from).c_str(), example::grouped(bytes_to).c_str(),
              100.0 * static_cast<double>(bytes_to) / static_cast<double>(bytes_from),
              8.0 * static_cast<double>(bytes_to) / static_cast<double>(all.count));
  if (has_short_rows) std::printf("* rows are no whole number of blocks of the format asked for\n");
}

struct Options {
  std::string in, out, format, mix, imatrix;
  example::FormatRules rules;
  std::optional<nibble::FormatMix> named_mix;
  nibble::ConvertOptions convert;
  nibble::Index n_threads = 0;

  void add_to(CLI::App& app);
};

void Options::add_to(CLI::App& app) {
  app.add_option("IN.gguf", in,
                 "the model to read: a GGUF file (of a split one, any part) or a folder")
      ->required();
  app.add_option("OUT.gguf", out, "the model to write")->required();
  auto* const what = app.add_option_group("what");
  what->add_option("--format", format,
                   example::format_names() + ": for all matrices; vectors stay f32");
  what->add_option(
      "--mix", mix,
      "q4_k_m, q5_k_m, q6_k, q4_0, q8_0, q4_1, q5_0, q5_1, q4_k_s, q5_k_s, q3_k_s, q3_k_m, "
      "q3_k_l, q2_k: what the field means by these names, with a better format for some "
      "matrices");
  what->require_option(1);
  rules.add_option_to(app);
  app.add_option("--imatrix", imatrix,
                 "an importance matrix (of compress observe, or llama.cpp's): scales are searched "
                 "so that the columns that matter lose least")
      ->check(example::is_not_empty);
  app.add_flag(
      "--packed", convert.packed,
      "matrices in the packed layout that nibble's kernels read: the file is then mapped and "
      "used in place; other programs cannot read it");
  example::add_threads(app, n_threads);
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted: OUT.gguf is then as it was.");
  app.callback([this] {  // here, so that an invalid format is a usage error
    if (!mix.empty()) {
      const auto named = nibble::format_mix_from_name(mix);
      if (!named) throw CLI::ValidationError("'" + mix + "': " + named.error().message);
      named_mix = *named;
      convert.format = named->most;
      convert.file_type = named->file_type;
    } else {
      convert.format = example::parse_format(format);
    }
    rules.parse();
  });
}

Result<void> quantize(const Options& o) {
  example::catch_signals();
  NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = o.n_threads}));
  NIBBLE_TRY(file, nibble::open_model(o.in));
  std::optional<nibble::MixedFormats> mixed;
  if (o.named_mix) mixed.emplace(file, *o.named_mix);
  nibble::ConvertOptions options = o.convert;
  options.executor = pool.get();
  options.choose = [&](std::string_view name) {
    std::optional<Format> format;
    if (mixed) format = (*mixed)(name);
    if (const auto ruled = o.rules(name)) format = ruled;
    return format;
  };
  const std::size_t n_tensors = file.tensors().size();
  int name_width = 6;
  for (const auto& tensor : file.tensors()) {
    name_width = std::max(name_width, static_cast<int>(tensor.name.size()));
  }
  NIBBLE_CHECK(o.rules.check(file));  // before anything is written
  std::optional<nibble::compress::Imatrix> imatrix;
  if (!o.imatrix.empty()) {
    NIBBLE_TRY(read, nibble::compress::read_imatrix(o.imatrix));
    auto checked = nibble::compress::check_imatrix(read, file);
    if (!checked) return std::move(checked).error().in(nibble::printable(o.imatrix));
    imatrix = std::move(read);
    options = nibble::compress::weighted(
        {.convert = options, .importance = [&](std::string_view name) {
           const auto* const entry = imatrix->find(name);
           return entry == nullptr ? std::span<const float>() : entry->importance();
         }});
  }
  std::vector<ConvertedTensor> report;
  {
    example::StatusLine status;
    const auto on_tensor = [&](const ConvertedTensor& tensor) {
      report.push_back(tensor);
      status.show("converted " + std::to_string(report.size()) + " of " +
                  std::to_string(n_tensors) + ": " + nibble::printable(tensor.name));
      return !example::interrupted;
    };
    NIBBLE_CHECK(nibble::quantize_model(file, o.out, options, on_tensor));
  }
  print_report(report, name_width);
  return nibble::ok();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Writes a GGUF model in another weight format and reports what it cost each tensor.",
               "quantize");
  Options o;
  o.add_to(app);
  return example::run(app, argc, argv, [&] { return quantize(o); });
}
