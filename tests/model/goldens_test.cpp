// SPDX-License-Identifier: Apache-2.0
//
// Architectures compared with PyTorch transformers: goldens/*.gguf, which make_goldens.py makes,
// have what each computes in double precision for a tiny model of random weights.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <limits>
#include <list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "io/largest_allocation.hpp"
#include "model/rare_architectures.hpp"
#include "nibble/generate/embedder.hpp"
#include "nibble/generate/rerank.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/architecture.hpp"
#include "nibble/model/convert.hpp"
#include "nibble/quant/ggml.hpp"
#include "nibble/text/tokenizer.hpp"
#include "why.hpp"

namespace {

using namespace nibble;

// As weights() of make_goldens.py.
std::vector<float> random_weights(const std::string& name, Index n_rows, Index k) {
  std::uint64_t seed = 0xCBF29CE484222325u;
  for (const char c : name) seed = (seed ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  double centre = 0, amplitude = std::sqrt(3.0 / static_cast<double>(k));
  if (name.starts_with("rope_f")) {
    centre = 2, amplitude = 1;
  } else if (name.ends_with("ssm_a")) {
    centre = -0.6, amplitude = 0.5;
  } else if (name.ends_with("norm.weight")) {
    centre = 1, amplitude = 0.3;
  } else if (name.ends_with(".bias")) {
    amplitude = 0.3;
  } else if (name == "token_embd.weight" || name == "position_embd.weight" ||
             name == "token_types.weight") {
    amplitude = 1;
  }
  std::vector<float> values(static_cast<std::size_t>(std::max<Index>(n_rows, 1) * k));
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint64_t z = seed + (i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    const double u = static_cast<double>(z >> 40) / 0x1p23 - 1;
    values[i] = static_cast<float>(centre + amplitude * u);
  }
  return values;
}

struct Golden {
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> dims;
    std::vector<float> values;
    bool is_f16 = false;  // as it is written
  };
  io::GgufWriter metadata;
  std::vector<std::string> keys;  // of the metadata
  std::vector<Tensor> tensors;
  std::vector<std::int32_t> tokens;
  std::vector<float> expected;

  // The whole GGUF file.
  std::vector<std::byte> write() const {
    io::GgufWriter writer = metadata;
    std::list<std::vector<std::byte>> halves;
    for (const Tensor& t : tensors) {
      if (t.is_f16) {
        std::vector<std::byte>& half = halves.emplace_back(2 * t.values.size());
        REQUIRE(quant::row_from_f32(quant::Format::f16, t.values, half));
        writer.add_tensor(t.name, io::GgmlType::f16, t.dims, half);
      } else {
        writer.add_tensor(t.name, io::GgmlType::f32, t.dims, std::as_bytes(std::span(t.values)));
      }
    }
    auto bytes = writer.to_bytes();
    REQUIRE_MESSAGE(bytes, test::why(bytes));
    return *std::move(bytes);
  }
};

Golden read_golden(const std::filesystem::path& path) {
  const auto file = io::Gguf::open(path.string());
  REQUIRE_MESSAGE(file, test::why(file));
  Golden golden;
  for (const io::GgufEntry& entry : file->metadata()) {
    if (entry.key.starts_with("golden.")) continue;
    golden.metadata.set(entry.key, entry.value);
    golden.keys.emplace_back(entry.key);
  }
  const auto tokens = file->get_array<std::int32_t>("golden.tokens");
  const auto names = file->get_strings("golden.names");
  const auto shapes = file->get_array<std::int32_t>("golden.shapes");
  REQUIRE((tokens && names && shapes && shapes->size() == 2 * names->size()));
  golden.tokens = *tokens;
  std::vector<std::int32_t> experts(names->size(), 1);
  if (const auto stated = file->get_array<std::int32_t>("golden.experts")) experts = *stated;
  for (std::size_t i = 0; i < names->size(); ++i) {
    const std::string name((*names)[i]);
    const Index n = (*shapes)[2 * i], k = (*shapes)[2 * i + 1];
    std::vector<std::uint64_t> dims = {static_cast<std::uint64_t>(k)};
    if (n > 0) dims.push_back(static_cast<std::uint64_t>(n / experts[i]));
    if (experts[i] > 1) dims.push_back(static_cast<std::uint64_t>(experts[i]));
    golden.tensors.push_back({name, dims, random_weights(name, n, k)});
  }
  for (const io::GgufTensor& tensor : file->tensors()) {
    std::vector<float> values(tensor.data.size() / sizeof(float));
    std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
    if (tensor.name == "golden.expected") {
      golden.expected = std::move(values);
    } else {
      golden.tensors.push_back({std::string(tensor.name), {values.size()}, values});
    }
  }
  return golden;
}

Result<Model> load_file(const io::Gguf& file) {
  const LoadOptions options{.tuning = Tuning{}};
  const auto name = file.get_string("general.architecture");
  constexpr std::string_view kRare[] = {"olmo2",    "gptneox",    "opt",          "bloom", "gptneo", "phi2",
                                        "qwen2moe", "granitemoe", "granitehybrid"};
  if (name && std::find(std::begin(kRare), std::end(kRare), *name) != std::end(kRare)) {
    return test::load_rare(file, options);
  }
  return Model::from_gguf(file, options);
}
Result<Model> load_bytes(std::span<const std::byte> bytes) {
  NIBBLE_TRY(file, io::Gguf::parse(bytes, "golden.gguf"));
  return load_file(file);
}

Model load_golden(const Golden& golden) {
  auto model = load_bytes(golden.write());
  REQUIRE_MESSAGE(model, test::why(model));
  return *std::move(model);
}

// The largest difference, relative to the largest logit, when `batch` tokens are computed at once.
double largest_error(const Model& model, const Golden& golden, Index batch) {
  const auto n_tokens = static_cast<Index>(golden.tokens.size());
  auto session = Session::create(model, {.n_ctx = n_tokens,
                                         .max_step_tokens = batch,
                                         .max_outputs = batch,
                                         .kv_type = ops::KvType::f32});
  REQUIRE_MESSAGE(session, test::why(session));
  const Index vocab_size = model.config().vocab_size;
  REQUIRE(golden.expected.size() == static_cast<std::size_t>(n_tokens * vocab_size));
  double off = 0, largest = 0;
  for (Index at = 0; at < n_tokens; at += batch) {
    const Index n = std::min(batch, n_tokens - at);
    const auto logits = session->append(
        std::span(golden.tokens).subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(n)),
        n);
    REQUIRE_MESSAGE(logits, test::why(logits));
    for (Index i = 0; i < n; ++i) {
      for (Index j = 0; j < vocab_size; ++j) {
        const double expected =
            golden.expected[static_cast<std::size_t>((at + i) * vocab_size + j)];
        const double difference = std::fabs(static_cast<double>((*logits)(i, j)) - expected);
        off = difference <= off ? off : std::isnan(difference) ? INFINITY : difference;
        largest = std::fmax(largest, std::fabs(expected));
      }
    }
  }
  return off / largest;
}

}  // namespace

namespace {

// Calls f(name, golden) for each golden.
template <class F>
void for_each_file(const F& f) {
  const char* const project = std::getenv("NIBBLE_PROJECT_DIR");
  REQUIRE(project != nullptr);
  for (const auto& entry : std::filesystem::directory_iterator(std::filesystem::path(project) /
                                                               "tests" / "model" / "goldens")) {
    const std::string name = entry.path().filename().string();
    CAPTURE(name);
    f(name, read_golden(entry.path()));
  }
}

// Calls f(name, golden, model) for each golden of models that embed texts, or of the others.
// Returns how many there are.
template <class F>
std::size_t for_each_golden(bool embeds, const F& f) {
  std::size_t n = 0;
  for_each_file([&](const std::string& name, const Golden& golden) {
    const Model model = load_golden(golden);
    const graph::Plan plan = model.architecture().plan({});
    if ((plan.rows == graph::Rows::segments) != embeds) return;
    f(name, golden, model);
    ++n;
  });
  return n;
}

double distance(VectorView<const float> row, std::span<const float> expected) {
  REQUIRE(row.extent(0) == static_cast<Index>(expected.size()));
  double most = 0;
  for (Index i = 0; i < row.extent(0); ++i) {
    const double difference = std::fabs(static_cast<double>(row(i)) -
                                        static_cast<double>(expected[static_cast<std::size_t>(i)]));
    most = difference <= most ? most : std::isnan(difference) ? INFINITY : difference;
  }
  return most;
}

}  // namespace

TEST_CASE("architectures compute what PyTorch transformers does") {
  const std::size_t n = for_each_golden(false, [](auto& name, auto& golden, auto& model) {
    for (const Index batch : {30, 7, 1}) {
      const double error = largest_error(model, golden, batch);
      CHECK(error < 5e-6);
      if (batch == 30) MESSAGE(name, ": off by ", error);
    }
  });
  CHECK(n == 33);
}

namespace {

// Chooses all pages, and notes of which layers.
struct NotedLayers final : ops::PagePolicy {
  mutable std::vector<Index> seen;
  Index choose(Index layer, const ops::Segment&,
               std::span<std::int32_t> pages) const noexcept override {
    seen.push_back(layer);
    for (std::size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<std::int32_t>(i);
    return static_cast<Index>(pages.size());
  }
};

}  // namespace

TEST_CASE("a policy is asked about each layer, also where layers share a cache") {
  for_each_golden(true, [](auto&, auto& golden, auto& model) {
    auto engine = Engine::create(model);
    REQUIRE_MESSAGE(engine, test::why(engine));
    auto sequence = engine->new_sequence();
    REQUIRE_MESSAGE(sequence, test::why(sequence));
    NotedLayers policy;
    engine->set_policy(&policy);
    const SequenceInput input{
        .sequence = &*sequence, .tokens = std::span(golden.tokens).first(3), .n_outputs = 0};
    const auto rows = engine->run({&input, 1});
    REQUIRE_MESSAGE(rows, test::why(rows));
    std::vector<Index> all;
    for (Index layer = 0; layer < model.config().n_layers; ++layer) all.push_back(layer);
    CHECK(policy.seen == all);
  });
}

TEST_CASE("embeddings are those of PyTorch transformers, alone or with other texts") {
  const std::size_t n = for_each_golden(true, [](auto& name, auto& golden, auto& model) {
    auto embedder = Embedder::create(model, {.max_texts = 3});
    REQUIRE_MESSAGE(embedder, test::why(embedder));
    const auto row = embedder->embed(golden.tokens);
    REQUIRE_MESSAGE(row, test::why(row));
    const double error = distance(*row, golden.expected);
    CHECK(error < 2e-6);
    MESSAGE(name, ": off by ", error);
    const std::vector<float> alone(row->data(), row->data() + row->extent(0));

    // Seven texts: two or three fit in a step.
    const std::span<const std::int32_t> all(golden.tokens);
    std::vector<Embedder::Tokens> texts;
    for (const std::size_t length : {3u, 30u, 8u, 1u, 11u, 30u, 2u}) {
      texts.push_back(all.first(length));
    }
    std::vector<float> out(texts.size() * alone.size());
    const MatrixView<float> rows(out.data(), 7, embedder->width());
    const auto done = embedder->embed(texts, rows);
    REQUIRE_MESSAGE(done, test::why(done));
    CHECK(std::memcmp(&rows(1, 0), alone.data(), alone.size() * sizeof(float)) == 0);
    CHECK(std::memcmp(&rows(5, 0), alone.data(), alone.size() * sizeof(float)) == 0);
    const auto third = embedder->embed(texts[2]);
    REQUIRE(third);
    CHECK(distance(*third, {&rows(2, 0), alone.size()}) == 0);

    const auto needed = Embedder::bytes_needed(model, {.max_texts = 3});
    REQUIRE_MESSAGE(needed, test::why(needed));
    CHECK(*needed == embedder->bytes());

    // A longer text than the model was trained for, no text, and a generator's session.
    std::vector<std::int32_t> long_text(static_cast<std::size_t>(embedder->n_ctx()) + 1, 3);
    CHECK(embedder->embed(long_text).error().code == Errc::limit);
    CHECK(embedder->embed(all.first(0)).error().code == Errc::invalid_argument);
    CHECK(Session::create(model).error().code == Errc::unsupported);
    CHECK(Session::bytes_needed(model).error().code == Errc::unsupported);

    // Of a file that is broken.
    Golden broken = golden;
    for (auto& tensor : broken.tensors) {
      if (tensor.name.find("ffn_down.weight") == tensor.name.npos) continue;
      tensor.values[0] = std::numeric_limits<float>::quiet_NaN();
    }
    for (const bool normalize : {false, true}) {
      auto of_broken = Embedder::create(load_golden(broken), {.normalize = normalize});
      REQUIRE_MESSAGE(of_broken, test::why(of_broken));
      CHECK(of_broken->embed(golden.tokens).error().code == Errc::malformed);
    }
  });
  CHECK(n == 5);
}

namespace {

std::vector<float> copy_of(VectorView<const float> row) {
  return {row.data(), row.data() + row.extent(0)};
}

// Of the pieces of 30 tokens of at most 8, as embedder.hpp says.
std::vector<double> mean_of_pieces(Embedder& embedder, const std::vector<std::int32_t>& tokens,
                                   const std::vector<std::size_t>& ends) {
  std::vector<double> sum(static_cast<std::size_t>(embedder.width()));
  std::size_t begin = 0;
  for (const std::size_t end : ends) {
    const auto row = embedder.embed(std::span(tokens).subspan(begin, end - begin));
    REQUIRE_MESSAGE(row, test::why(row));
    for (std::size_t j = 0; j < sum.size(); ++j) {
      sum[j] += static_cast<double>(end - begin) * double{(*row)(static_cast<Index>(j))};
    }
    begin = end;
  }
  for (double& x : sum) x /= static_cast<double>(tokens.size());
  return sum;
}

// The golden with a tokenizer whose begin and end tokens are 2 and 3.
Golden with_tokenizer(Golden golden) {
  std::vector<std::string> pieces = {"[PAD]", "[UNK]", "[CLS]", "[SEP]"};
  for (char c = 'a'; pieces.size() < 24; ++c) pieces.push_back("\xE2\x96\x81" + std::string(1, c));
  golden.metadata.set("tokenizer.ggml.model", std::string_view("bert"));
  golden.metadata.set_array("tokenizer.ggml.tokens", pieces);
  golden.metadata.set_array("tokenizer.ggml.token_type",
                            std::vector<std::int32_t>{3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1,
                                                      1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  golden.metadata.set("tokenizer.ggml.unknown_token_id", std::uint32_t{1});
  golden.metadata.set("tokenizer.ggml.cls_token_id", std::uint32_t{2});
  golden.metadata.set("tokenizer.ggml.bos_token_id", std::uint32_t{2});
  golden.metadata.set("tokenizer.ggml.seperator_token_id", std::uint32_t{3});
  golden.metadata.set("tokenizer.ggml.eos_token_id", std::uint32_t{3});
  return golden;
}

}  // namespace

TEST_CASE("a text longer than the context is the weighted mean of its pieces") {
  for_each_golden(true, [](auto& name, auto& golden, auto& model) {
    CAPTURE(name);
    const EmbedderOptions plain{.n_ctx = 8, .max_texts = 3, .normalize = false};
    EmbedderOptions splitting = plain;
    splitting.splits_long_texts = true;
    auto pieces = Embedder::create(model, plain), whole = Embedder::create(model, splitting);
    REQUIRE_MESSAGE(pieces, test::why(pieces));
    REQUIRE_MESSAGE(whole, test::why(whole));
    const auto& tokens = golden.tokens;  // 30
    CHECK(pieces->embed(tokens).error().code == Errc::limit);
    const auto expected = mean_of_pieces(*pieces, tokens, {7, 15, 22, 30});
    const auto row = whole->embed(tokens);
    REQUIRE_MESSAGE(row, test::why(row));
    const std::vector<float> alone = copy_of(*row);
    for (std::size_t j = 0; j < alone.size(); ++j) {
      CHECK(std::fabs(double{alone[j]} - expected[j]) < 1e-6);
    }
    // Among others, in steps that its pieces do not end with: bit for bit the same.
    const std::span<const std::int32_t> all(tokens);
    const Embedder::Tokens texts[] = {all.first(3), all, all.first(8), all, all.first(1)};
    std::vector<float> out(5 * alone.size());
    for (const Index max_step_tokens : {Index{8}, Index{19}}) {
      splitting.max_step_tokens = max_step_tokens;
      auto together = Embedder::create(model, splitting);
      REQUIRE_MESSAGE(together, test::why(together));
      const auto needed = Embedder::bytes_needed(model, splitting);
      REQUIRE(needed);
      CHECK(*needed == together->bytes());
      REQUIRE(together->embed(texts, MatrixView<float>(out.data(), 5, together->width())));
      for (const std::size_t i : {1u, 3u}) {
        CHECK(std::memcmp(&out[i * alone.size()], alone.data(), alone.size() * sizeof(float)) == 0);
      }
      const auto short_one = pieces->embed(texts[2]);
      REQUIRE(short_one);
      CHECK(std::memcmp(&out[2 * alone.size()], short_one->data(), alone.size() * sizeof(float)) ==
            0);
    }
    splitting.normalize = true;
    auto normalized = Embedder::create(model, splitting);
    REQUIRE(normalized);
    const auto unit = normalized->embed(tokens);
    REQUIRE(unit);
    double length = 0, product = 0, of_expected = 0;
    for (std::size_t j = 0; j < alone.size(); ++j) {
      const double x = double{(*unit)(static_cast<Index>(j))};
      length += x * x;
      product += x * expected[j];
      of_expected += expected[j] * expected[j];
    }
    CHECK(std::fabs(length - 1) < 1e-5);
    CHECK(std::fabs(product / std::sqrt(of_expected) - 1) < 1e-5);
  });
}

TEST_CASE("each piece of a long text has its begin and its end token") {
  std::size_t n = 0;
  for_each_golden(true, [&](auto& name, auto& golden, auto&) {
    if (name.find("bert") == std::string::npos) return;
    ++n;
    const Model model = load_golden(with_tokenizer(golden));
    REQUIRE(model.tokenizer() != nullptr);
    REQUIRE(model.tokenizer()->vocabulary().settings().bos == 2);
    REQUIRE(model.tokenizer()->vocabulary().settings().eos == 3);
    auto embedder =
        Embedder::create(model, {.n_ctx = 8, .normalize = false, .splits_long_texts = true});
    REQUIRE_MESSAGE(embedder, test::why(embedder));
    const auto row = embedder->embed(std::string_view("a b c d e f g h i"));
    REQUIRE_MESSAGE(row, test::why(row));
    const std::vector<float> whole = copy_of(*row);
    const auto a = embedder->embed(std::vector<std::int32_t>{2, 4, 5, 6, 7, 3});
    REQUIRE(a);
    const std::vector<float> first = copy_of(*a);
    const auto b = embedder->embed(std::vector<std::int32_t>{2, 8, 9, 10, 11, 12, 3});
    REQUIRE(b);
    for (std::size_t j = 0; j < whole.size(); ++j) {
      const double mean = (6 * double{first[j]} + 7 * double{(*b)(static_cast<Index>(j))}) / 13;
      CHECK(std::fabs(double{whole[j]} - mean) < 1e-6);
    }
    // No room for anything else.
    auto tiny = Embedder::create(model, {.n_ctx = 2, .splits_long_texts = true});
    REQUIRE(tiny);
    CHECK(tiny->embed(std::string_view("a b")).error().code == Errc::limit);
  });
  CHECK(n > 0);
}

TEST_CASE("documents are ranked by the cosine of embeddings") {
  for_each_golden(true, [](auto&, auto& golden, auto& model) {
    for (const bool normalize : {false, true}) {
      auto embedder =
          Embedder::create(model, {.n_ctx = 16, .normalize = normalize, .splits_long_texts = true});
      REQUIRE_MESSAGE(embedder, test::why(embedder));
      const std::span<const std::int32_t> all(golden.tokens);
      const Embedder::Tokens documents[] = {all.subspan(4, 9), all.first(7), all,
                                            all.subspan(20, 3)};
      const Embedder::Tokens query = all.first(7);
      const auto ranked = rerank(*embedder, query, documents);
      REQUIRE_MESSAGE(ranked, test::why(ranked));
      REQUIRE(ranked->size() == 4);
      CHECK((*ranked)[0].index == 1);
      CHECK(std::fabs((*ranked)[0].score - 1) < 1e-6);
      const std::vector<float> of_query = copy_of(*embedder->embed(query));
      for (std::size_t i = 0; i < 4; ++i) {
        if (i > 0) CHECK((*ranked)[i].score <= (*ranked)[i - 1].score);
        const std::vector<float> row = copy_of(*embedder->embed(documents[(*ranked)[i].index]));
        double product = 0, a = 0, b = 0;
        for (std::size_t j = 0; j < row.size(); ++j) {
          product += double{row[j]} * double{of_query[j]};
          a += double{row[j]} * double{row[j]};
          b += double{of_query[j]} * double{of_query[j]};
        }
        CHECK(std::fabs((*ranked)[i].score - product / std::sqrt(a * b)) < 1e-6);
      }
      const Embedder::Tokens empty[] = {all.first(0)};
      CHECK(rerank(*embedder, query, empty).error().code == Errc::invalid_argument);
    }
  });
}

TEST_CASE("factors of rotations for short and for long contexts may be one vector") {
  int n = 0;
  for_each_file([&](const std::string& name, const Golden& golden) {
    if (name != "phi3-long.gguf") return;
    for (const auto& [one, other] :
         {std::pair("rope_factors_long.weight", "rope_factors_short.weight"),
          std::pair("rope_factors_short.weight", "rope_factors_long.weight")}) {
      CAPTURE(std::string(one));
      Golden shared = golden;
      std::erase_if(shared.tensors, [&](const auto& tensor) { return tensor.name == one; });
      const auto missing = load_bytes(shared.write());
      REQUIRE(!missing);
      CHECK(missing.error().code == Errc::not_found);
      CHECK(missing.error().message.find(one) != std::string::npos);

      shared.metadata.set_array("nibble.shared_tensors",
                                std::vector<std::string>{std::string(one) + "=" + other});
      const Model model = load_golden(shared);
      CHECK(model.weights().at(Slot::rope_factors_long, -1).data ==
            model.weights().at(Slot::rope_factors_short, -1).data);
      ++n;
    }
  });
  CHECK(n == 2);
}

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
  CHECK(n == 7);
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
    const auto n = static_cast<std::ptrdiff_t>(tensor.dims[0] * tensor.dims[1]);
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
    const auto& up = packed->weights().at(Slot::ffn_up_exps, 0);
    CHECK(up.n_experts == 6);
    CHECK(up.data > memory->data());  // in place
    CHECK(up.data < memory->data() + memory->size());
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
    if (name != "qwen35.gguf" && name != "granitehybrid.gguf" && name != "lfm2.gguf") return;
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
    if (name == "lfm2.gguf") {
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
  CHECK(n == 3);
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

TEST_CASE("a decoder gives no embeddings") {
  for_each_golden(false, [](auto&, auto&, auto& model) {
    CHECK(Embedder::create(model).error().code == Errc::unsupported);
    CHECK(Embedder::bytes_needed(model).error().code == Errc::unsupported);
  });
}

namespace {

// Loads a file and, if that works, runs a few tokens: an error or a result, but no crash, no large
// allocation. Returns whether there was a result.
bool survives(std::span<const std::byte> bytes, std::span<const std::int32_t> tokens) {
  test::largest_allocation = 0;
  const auto run = [&]() -> Result<void> {
    NIBBLE_TRY(model, load_bytes(bytes));
    if (model.architecture().plan({}).rows == graph::Rows::segments) {
      NIBBLE_TRY(embedder, Embedder::create(model, {.n_ctx = 12, .max_texts = 1}));
      NIBBLE_CHECK(embedder.embed(tokens));
    } else {
      NIBBLE_TRY(session, Session::create(model, {.n_ctx = 12}));
      NIBBLE_CHECK(session.append(tokens));
    }
    return ok();
  };
  const Result<void> status = run();
  CHECK(test::largest_allocation < std::size_t{4} << 20);
  if (status) return true;
  CHECK_FALSE(status.error().message.empty());
  CHECK(status.error().code != Errc::out_of_memory);
  return false;
}

}  // namespace

TEST_CASE("absurd numbers in the metadata of each architecture, tensors that are missing") {
  std::size_t n_errors = 0, n_results = 0;
  for_each_file([&](const std::string&, const Golden& golden) {
    const auto some = std::span(golden.tokens).first(5);
    const auto with = [&](const std::string& key, auto value) {
      CAPTURE(key);
      Golden changed = golden;
      changed.metadata.set(key, value);
      ++(survives(changed.write(), some) ? n_results : n_errors);
    };
    std::vector<std::string> keys = golden.keys;
    const auto architecture = keys[0];
    REQUIRE(architecture == "general.architecture");
    const std::string prefix = keys[1].substr(0, keys[1].find('.'));
    for (const char* const key : {"attention.scale",
                                  "attention.sliding_window",
                                  "attention.sliding_window_pattern",
                                  "attention.causal",
                                  "attention.temperature_scale",
                                  "rope.freq_base_swa",
                                  "rope.scaling.factor",
                                  "rope.scaling.attn_factor",
                                  "rope.scaling.original_context_length",
                                  "rope.scaling.yarn_beta_fast",
                                  "rope.scaling.yarn_log_multiplier",
                                  "rope.scaling.finetuned",
                                  "embedding_scale",
                                  "residual_scale",
                                  "logit_scale",
                                  "attn_logit_softcapping",
                                  "final_logit_softcapping",
                                  "pooling_type",
                                  "use_parallel_residual",
                                  "expert_group_count",
                                  "expert_group_used_count",
                                  "expert_weights_norm",
                                  "expert_weights_scale",
                                  "expert_gating_func"}) {
      keys.push_back(prefix + "." + key);
    }
    for (std::size_t i = 1; i < keys.size(); ++i) {
      for (const std::uint32_t v : {0u, 1u, 7u, 0xffffffffu}) with(keys[i], v);
      for (const float v : {0.0f, -1.0f, 1e-42f, 1e38f, INFINITY, NAN}) with(keys[i], v);
      with(keys[i], false);
      with(keys[i], std::string_view("yarn"));
    }
    Golden changed = golden;
    changed.metadata.set(prefix + ".rope.scaling.type", std::string_view("yarn"));
    for (const float v : {1.0f, 1e-42f, 1e38f}) {
      for (const char* const key : {"rope.freq_base", "rope.scaling.factor",
                                    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}) {
        Golden yarn = changed;
        yarn.metadata.set(prefix + "." + key, v);
        ++(survives(yarn.write(), some) ? n_results : n_errors);
      }
    }
    for (std::size_t i = 0; i < golden.tensors.size(); ++i) {
      changed = golden;
      changed.tensors.erase(changed.tensors.begin() + static_cast<std::ptrdiff_t>(i));
      ++(survives(changed.write(), some) ? n_results : n_errors);
    }
  });
  CHECK(n_errors > 3000);
  CHECK(n_results > 1000);
}
