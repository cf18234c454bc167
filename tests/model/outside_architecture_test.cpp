// SPDX-License-Identifier: Apache-2.0
//
// Architectures from outside of nibble (outside_architecture.hpp), loaded with load() and compared
// with an implementation in double; and recurrent state: snapshots, forks, rewinding.
#include "model/outside_architecture.hpp"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <list>
#include <map>
#include <random>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/generate/session.hpp"
#include "nibble/io/gguf_writer.hpp"
#include "nibble/model/load.hpp"
#include "nibble/quant/ggml.hpp"
#include "why.hpp"

namespace outside_architecture_test {

using namespace nibble;

namespace {

using Row = std::vector<double>;
using quant::Format;

constexpr Index kVocab = 41, kDim = 64, kLayers = 4, kHeads = 4, kKvHeads = 2, kHeadDim = 16,
                kFfn = 96, kContext = 200, kWindow = 9;
constexpr float kEps = 1e-5f, kTheta = 50000, kLocalTheta = 300, kEmbeddingScale = 8, kCap = 3;

// A file, and the values of its tensors in double.
class File {
 public:
  File(const char* architecture, Format format, std::uint32_t seed)
      : format_(format), random_(seed) {
    writer_.set("general.architecture", architecture);
    const std::string arch = std::string(architecture) + ".";
    const auto u32 = [&](const char* key, Index n) {
      writer_.set(arch + key, static_cast<std::uint32_t>(n));
    };
    u32("embedding_length", kDim);
    u32("block_count", kLayers);
    u32("feed_forward_length", kFfn);
    u32("attention.head_count", kHeads);
    u32("attention.head_count_kv", kKvHeads);
    u32("context_length", kContext);
    u32("window", kWindow);
    writer_.set(arch + "eps", kEps);
    writer_.set(arch + "theta", kTheta);
    writer_.set(arch + "local_theta", kLocalTheta);
    writer_.set(arch + "embedding_scale", kEmbeddingScale);
    writer_.set(arch + "soft_cap", kCap);
    matrix("token_embd", kVocab, kDim, 1);
    vector("output_norm", kDim, 1, 0.3);
  }

  void matrix(const std::string& name, Index n, Index k, double size = 0) {
    if (size == 0) size = 1 / std::sqrt(static_cast<double>(k));
    std::normal_distribution<float> normal(0, static_cast<float>(size));
    std::vector<float> values(static_cast<std::size_t>(n * k));
    for (float& v : values) v = normal(random_);
    add(name, format_, {static_cast<std::uint64_t>(k), static_cast<std::uint64_t>(n)}, values);
  }
  void vector(const std::string& name, Index k, double mean, double deviation) {
    std::normal_distribution<float> normal(static_cast<float>(mean), static_cast<float>(deviation));
    std::vector<float> values(static_cast<std::size_t>(k));
    for (float& v : values) v = normal(random_);
    add(name, Format::f32, {static_cast<std::uint64_t>(k)}, values);
  }

  std::vector<std::byte> bytes() const {
    auto bytes = writer_.to_bytes();
    REQUIRE(bytes);
    return *std::move(bytes);
  }
  const Row& operator[](const std::string& name) const { return tensors_.at(name); }
  // rows of `name` times x
  Row times(const std::string& name, const Row& x) const {
    const Row& w = tensors_.at(name);
    Row y(w.size() / x.size());
    for (std::size_t i = 0; i < y.size(); ++i) {
      for (std::size_t j = 0; j < x.size(); ++j) y[i] += w[i * x.size() + j] * x[j];
    }
    return y;
  }

 private:
  void add(const std::string& name, Format format, std::vector<std::uint64_t> dims,
           const std::vector<float>& values) {
    const std::size_t row = static_cast<std::size_t>(dims[0]);
    std::vector<std::byte>& bytes =
        data_.emplace_back(*quant::row_bytes(format, row) * (values.size() / row));
    Row kept(values.size());
    std::vector<float> back(row);
    const std::size_t row_bytes = bytes.size() / (values.size() / row);
    for (std::size_t r = 0; r < values.size() / row; ++r) {
      const auto to = std::span(bytes).subspan(r * row_bytes, row_bytes);
      REQUIRE(quant::row_from_f32(format, std::span(values).subspan(r * row, row), to));
      REQUIRE(quant::row_to_f32(format, to, back));
      std::copy(back.begin(), back.end(), kept.begin() + static_cast<std::ptrdiff_t>(r * row));
    }
    writer_.add_tensor(name + ".weight", *quant::ggml_type_of(format), dims, bytes);
    tensors_[name] = std::move(kept);
  }

  Format format_;
  std::mt19937 random_;
  io::GgufWriter writer_;
  std::list<std::vector<std::byte>> data_;
  std::map<std::string, Row> tensors_;
};

// ---- Parts of both references ------------------------------------------------------------------

Row norm(const Row& x, const Row& weight) {
  double sum = 0;
  for (const double v : x) sum += v * v / static_cast<double>(x.size());
  Row y(x);
  for (std::size_t i = 0; i < x.size(); ++i) {
    y[i] = x[i] / std::sqrt(sum + static_cast<double>(kEps)) * weight[i];
  }
  return y;
}

// Pairs (i, i + half) of each head.
void rotate(Row& x, std::size_t position, double theta) {
  constexpr std::size_t kHalf = kHeadDim / 2;
  for (std::size_t head = 0; head < x.size(); head += kHeadDim) {
    for (std::size_t i = 0; i < kHalf; ++i) {
      const double angle =
          static_cast<double>(position) * std::pow(theta, -2.0 * static_cast<double>(i) / kHeadDim);
      const double a = x[head + i], b = x[head + i + kHalf];
      x[head + i] = a * std::cos(angle) - b * std::sin(angle);
      x[head + i + kHalf] = a * std::sin(angle) + b * std::cos(angle);
    }
  }
}

// Attention of the last position, which sees `window` positions (0: all).
Row attend(const Row& q, const std::vector<Row>& k, const std::vector<Row>& v, Index window,
           const std::function<double(double)>& cap) {
  Row out(q.size());
  const std::size_t n = k.size();
  const auto w = static_cast<std::size_t>(window);
  const std::size_t first = w > 0 && n > w ? n - w : 0;
  for (std::size_t head = 0; head < kHeads; ++head) {
    const std::size_t at = head * kHeadDim, kv = head / (kHeads / kKvHeads) * kHeadDim;
    Row weights(n);
    double total = 0;
    for (std::size_t p = first; p < n; ++p) {
      double score = 0;
      for (std::size_t d = 0; d < kHeadDim; ++d) score += q[at + d] * k[p][kv + d];
      weights[p] = std::exp(cap(score / std::sqrt(static_cast<double>(kHeadDim))));
      total += weights[p];
    }
    for (std::size_t p = first; p < n; ++p) {
      for (std::size_t d = 0; d < kHeadDim; ++d) out[at + d] += weights[p] / total * v[p][kv + d];
    }
  }
  return out;
}

Row embedded(const File& file, std::int32_t token, double scale) {
  const auto begin = file["token_embd"].begin() + static_cast<std::ptrdiff_t>(token) * kDim;
  Row x(begin, begin + kDim);
  for (double& v : x) v *= scale;
  return x;
}

void add(Row& x, const Row& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

// ---- The parallel architecture -----------------------------------------------------------------

File parallel_file(Format format) {
  File file("parallel", format, 5);
  for (Index layer = 0; layer < kLayers; ++layer) {
    const std::string at = "blk." + std::to_string(layer) + ".";
    file.vector(at + "norm", kDim, 1, 0.3);
    file.matrix(at + "q", kHeads * kHeadDim, kDim);
    file.matrix(at + "k", kKvHeads * kHeadDim, kDim);
    file.matrix(at + "v", kKvHeads * kHeadDim, kDim);
    file.vector(at + "q_norm", kHeadDim, 1.5, 0.3);
    file.vector(at + "k_norm", kHeadDim, 1.5, 0.3);
    file.matrix(at + "attn_out", kDim, kHeads * kHeadDim);
    const Index ffn = kFfn + 32 * layer;
    file.matrix(at + "gate", ffn, kDim);
    file.matrix(at + "up", ffn, kDim);
    file.matrix(at + "down", kDim, ffn);
    file.vector(at + "post_norm", kDim, 1, 0.3);
  }
  return file;
}

std::vector<Row> parallel_logits(const File& file, const std::vector<std::int32_t>& tokens) {
  struct Cache {
    std::vector<Row> k, v;
  };
  std::vector<Cache> caches(kLayers);
  std::vector<Row> logits;
  const auto head_norm = [](Row& x, const Row& weight) {
    for (std::size_t head = 0; head < x.size(); head += kHeadDim) {
      const auto begin = x.begin() + static_cast<std::ptrdiff_t>(head);
      const Row normed = norm(Row(begin, begin + kHeadDim), weight);
      std::copy(normed.begin(), normed.end(), begin);
    }
  };
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    Row x = embedded(file, tokens[t], static_cast<double>(kEmbeddingScale));
    for (Index layer = 0; layer < kLayers; ++layer) {
      const std::string at = "blk." + std::to_string(layer) + ".";
      const bool is_local = layer % 2 == 0;
      const Row h = norm(x, file[at + "norm"]);
      Row q = file.times(at + "q", h), k = file.times(at + "k", h);
      head_norm(q, file[at + "q_norm"]);
      head_norm(k, file[at + "k_norm"]);
      const double theta = static_cast<double>(is_local ? kLocalTheta : kTheta);
      rotate(q, t, theta);
      rotate(k, t, theta);
      Cache& cache = caches[static_cast<std::size_t>(layer)];
      cache.k.push_back(k);
      cache.v.push_back(file.times(at + "v", h));
      const auto cap = [](double s) {
        return static_cast<double>(kCap) * std::tanh(s / static_cast<double>(kCap));
      };
      Row y = file.times(at + "attn_out", attend(q, cache.k, cache.v, is_local ? kWindow : 0, cap));
      Row gate = file.times(at + "gate", h);
      const Row up = file.times(at + "up", h);
      for (std::size_t i = 0; i < gate.size(); ++i) {
        const double g = gate[i];
        const double inner = std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g);
        gate[i] = 0.5 * g * (1 + std::tanh(inner)) * up[i];
      }
      add(y, file.times(at + "down", gate));
      add(x, norm(y, file[at + "post_norm"]));
    }
    logits.push_back(file.times("token_embd", norm(x, file["output_norm"])));
  }
  return logits;
}

// ---- The architecture with convolutions --------------------------------------------------------

File conv_file() {
  File file("convnet", Format::f32, 6);
  for (Index layer = 0; layer < kLayers; ++layer) {
    const std::string at = "blk." + std::to_string(layer) + ".";
    file.vector(at + "norm", kDim, 1, 0.3);
    if (layer % 2 == 1) {
      file.matrix(at + "q", kHeads * kHeadDim, kDim);
      file.matrix(at + "k", kKvHeads * kHeadDim, kDim);
      file.matrix(at + "v", kKvHeads * kHeadDim, kDim);
    } else {
      file.vector(at + "conv", outside::ConvNet::kTaps * kDim, 0, 0.7);
    }
    file.matrix(at + "attn_out", kDim, kDim);
    file.vector(at + "post_norm", kDim, 1, 0.3);
    file.matrix(at + "up", kFfn, kDim);
    file.matrix(at + "down", kDim, kFfn);
  }
  return file;
}

double silu(double x) { return x / (1 + std::exp(-x)); }

std::vector<Row> conv_logits(const File& file, const std::vector<std::int32_t>& tokens) {
  struct Cache {
    std::vector<Row> k, v, x;
  };
  std::vector<Cache> caches(kLayers);
  std::vector<Row> logits;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    Row x = embedded(file, tokens[t], 1);
    for (Index layer = 0; layer < kLayers; ++layer) {
      const std::string at = "blk." + std::to_string(layer) + ".";
      const Row h = norm(x, file[at + "norm"]);
      Cache& cache = caches[static_cast<std::size_t>(layer)];
      Row y(kDim);
      if (layer % 2 == 1) {
        Row q = file.times(at + "q", h), k = file.times(at + "k", h);
        rotate(q, t, 10000);
        rotate(k, t, 10000);
        cache.k.push_back(k);
        cache.v.push_back(file.times(at + "v", h));
        y = attend(q, cache.k, cache.v, 0, [](double s) { return s; });
      } else {
        cache.x.push_back(h);
        const Row& taps = file[at + "conv"];
        constexpr std::size_t kTaps = outside::ConvNet::kTaps;
        for (std::size_t j = 0; j < kTaps; ++j) {
          if (t + j + 1 < kTaps) continue;  // before the first row
          for (std::size_t i = 0; i < kDim; ++i) {
            y[i] += taps[j * kDim + i] * cache.x[t + j + 1 - kTaps][i];
          }
        }
        for (double& v : y) v = silu(v);
      }
      add(x, file.times(at + "attn_out", y));
      Row up = file.times(at + "up", norm(x, file[at + "post_norm"]));
      for (double& v : up) v = silu(v);
      add(x, file.times(at + "down", up));
    }
    logits.push_back(file.times("token_embd", norm(x, file["output_norm"])));
  }
  return logits;
}

// ---- Both --------------------------------------------------------------------------------------

std::vector<std::int32_t> some_tokens(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> tokens(n);
  for (auto& t : tokens) t = static_cast<std::int32_t>(random() % kVocab);
  return tokens;
}

// The largest difference between rows of logits, relative to the largest logit.
double distance(MatrixView<const float> logits, const std::vector<Row>& expected,
                std::size_t first) {
  double most = 0, size = 0;
  REQUIRE(logits.extent(1) == kVocab);
  for (Index i = 0; i < logits.extent(0); ++i) {
    const Row& row = expected.at(first + static_cast<std::size_t>(i));
    for (Index j = 0; j < kVocab; ++j) {
      const double exact = row[static_cast<std::size_t>(j)];
      const double off = std::abs(static_cast<double>(logits(i, j)) - exact);
      most = std::isnan(off) ? 1e9 : std::max(most, off);
      size = std::max(size, std::abs(exact));
    }
  }
  return most / size;
}

using Architectures = ArchitectureList<Llama, outside::Parallel, outside::ConvNet>;

Model load_bytes(const std::vector<std::byte>& bytes) {
  // From a file with load(), as a program does it.
  const auto path = std::filesystem::temp_directory_path() /
                    ("nibble_outside_" + std::to_string(std::random_device{}()) + ".gguf");
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  auto model = load<graph::AllFormats, Architectures>(path.string());
  std::filesystem::remove(path);
  REQUIRE_MESSAGE(model, test::why(model));
  return *std::move(model);
}

std::vector<float> copy(MatrixView<const float> logits) {
  std::vector<float> all;
  for (Index i = 0; i < logits.extent(0); ++i) {
    for (Index j = 0; j < logits.extent(1); ++j) all.push_back(logits(i, j));
  }
  return all;
}

}  // namespace

TEST_CASE("an architecture from outside: loaded by load(), right in every position") {
  const auto tokens = some_tokens(100, 1);
  struct Case {
    Format format;
    double tolerance;  // f32: rounding; 8 bits: activations are rounded in some thirty products
  };
  for (const Case& c : {Case{Format::f32, 3e-6}, {Format::f16, 3e-6}, {Format::q8_0, 0.02}}) {
    CAPTURE(std::string(to_string(c.format)));
    const File file = parallel_file(c.format);
    const Model model = load_bytes(file.bytes());
    CHECK(model.config().architecture == "parallel");
    const auto expected = parallel_logits(file, tokens);
    for (const Index batch : {Index{100}, Index{7}}) {
      auto session = Session::create(model, {.n_ctx = 128,
                                             .max_step_tokens = batch,
                                             .max_outputs = batch,
                                             .kv_type = ops::KvType::f32});
      REQUIRE_MESSAGE(session, test::why(session));
      double most = 0;
      for (std::size_t at = 0; at < tokens.size(); at += static_cast<std::size_t>(batch)) {
        const auto n = std::min(tokens.size() - at, static_cast<std::size_t>(batch));
        const auto logits =
            session->append(std::span(tokens).subspan(at, n), static_cast<Index>(n));
        REQUIRE_MESSAGE(logits, test::why(logits));
        most = std::max(most, distance(*logits, expected, at));
      }
      CHECK(most < c.tolerance);
      MESSAGE(std::string(to_string(c.format)), ": off by ", most);
    }
  }
  // With the tolerance, a missing specialty of the architecture must be noticed.
  for (const char* tensor : {"blk.2.q_norm", "blk.1.post_norm"}) {
    File file = parallel_file(Format::f32);
    const Model model = load_bytes(file.bytes());
    auto session = Session::create(model, {.n_ctx = 128, .kv_type = ops::KvType::f32});
    REQUIRE(session);
    const auto logits = session->append(tokens);
    REQUIRE(logits);
    const_cast<Row&>(file[tensor])[3] *= 1.01;
    const auto changed = parallel_logits(file, tokens);
    CHECK(distance(*logits, changed, tokens.size() - 1) > 3e-6);
  }
}

// An expression refers to the values of a configuration; those of a temporary would be gone.
template <class Values>
concept MayBeTemporary = requires {
  per_layer(Values{});
};
static_assert(!MayBeTemporary<LayerValues<Index>> && !MayBeTemporary<LayerValues<float>>);

TEST_CASE("an architecture from outside: what is missing or unknown is named") {
  const auto bytes = parallel_file(Format::f32).bytes();
  const auto file = io::Gguf::parse(bytes, "p.gguf");
  REQUIRE(file);
  const auto unknown = Model::from_gguf(*file);
  REQUIRE(!unknown);
  CHECK(unknown.error().code == Errc::unsupported);
  CHECK(unknown.error().message ==
        "p.gguf: architecture 'parallel' is not supported; this program knows llama, qwen2, "
        "qwen3, qwen3moe, mistral3, smollm3, granite, gemma2, gemma3, gemma4, gemma-embedding, phi3, "
        "gpt2, bert, nomic-bert, gpt-oss, lfm2, qwen35, qwen35moe");
}

TEST_CASE("recurrent state: right in every position, however the tokens are cut") {
  const auto tokens = some_tokens(90, 2);
  const File file = conv_file();
  const Model model = load_bytes(file.bytes());
  const auto expected = conv_logits(file, tokens);
  for (const Index batch : {Index{90}, Index{1}, Index{2}, Index{7}}) {
    CAPTURE(batch);
    auto session = Session::create(model, {.n_ctx = 128,
                                           .max_step_tokens = batch,
                                           .max_outputs = batch,
                                           .kv_type = ops::KvType::f32});
    REQUIRE_MESSAGE(session, test::why(session));
    for (std::size_t at = 0; at < tokens.size(); at += static_cast<std::size_t>(batch)) {
      const auto n = std::min(tokens.size() - at, static_cast<std::size_t>(batch));
      const auto logits = session->append(std::span(tokens).subspan(at, n), static_cast<Index>(n));
      REQUIRE(logits);
      REQUIRE(distance(*logits, expected, at) < 3e-6);
    }
  }
}

TEST_CASE("recurrent state: snapshots, forks and rewinding") {
  const auto tokens = some_tokens(90, 3);
  const File file = conv_file();
  const Model model = load_bytes(file.bytes());
  const std::span<const std::int32_t> all(tokens);
  auto engine = Engine::create(
      model, {.n_ctx = 128, .max_sequences = 3, .cache_positions = 1024, .max_step_tokens = 128});
  REQUIRE_MESSAGE(engine, test::why(engine));
  const auto append = [&](Sequence& sequence, std::span<const std::int32_t> ids) {
    const SequenceInput input{.sequence = &sequence, .tokens = ids};
    const auto logits = engine->run({&input, 1});
    REQUIRE_MESSAGE(logits, test::why(logits));
    return copy(*logits);
  };
  auto a = engine->new_sequence();
  REQUIRE(a);
  append(*a, all.first(40));
  auto snapshot = a->fork();
  REQUIRE(snapshot);
  const auto straight = append(*a, all.subspan(40, 30));

  SUBCASE("a snapshot goes on as the sequence did, and stays as it is while that goes on") {
    auto again = snapshot->fork();
    REQUIRE(again);
    CHECK(append(*again, all.subspan(40, 30)) == straight);
    append(*snapshot, all.subspan(3, 5));
    CHECK(snapshot->position() == 45);
    CHECK(a->position() == 70);
    auto fresh = engine->new_sequence();
    REQUIRE(fresh);
    append(*fresh, all.first(40));
    append(*fresh, all.subspan(40, 30));
    CHECK(append(*a, all.subspan(70, 20)) == append(*fresh, all.subspan(70, 20)));
  }
  SUBCASE("back to before the last step, and to the beginning") {
    CHECK(a->last_reachable(55) == 40);
    CHECK(a->last_reachable(39) == 0);
    const Result<void> lost = a->rewind(55);
    REQUIRE(!lost);
    CHECK(lost.error().code == Errc::unsupported);
    CHECK(a->position() == 70);
    REQUIRE(a->rewind(40));
    CHECK(append(*a, all.subspan(40, 30)) == straight);
    REQUIRE(a->rewind(0));
    append(*a, all.first(40));
    CHECK(append(*a, all.subspan(40, 30)) == straight);
  }
  SUBCASE("sequences with state in one step") {
    auto b = engine->new_sequence();
    REQUIRE(b);
    append(*b, all.subspan(10, 25));
    auto b_alone = b->fork();
    REQUIRE(b_alone);
    const auto expected_b = append(*b_alone, all.subspan(5, 6));
    const SequenceInput inputs[] = {{.sequence = &*b, .tokens = all.subspan(5, 6)},
                                    {.sequence = &*snapshot, .tokens = all.subspan(40, 30)}};
    const auto logits = engine->run(inputs);
    REQUIRE(logits);
    const auto both = copy(*logits);
    CHECK(std::vector<float>(both.begin(), both.begin() + kVocab) == expected_b);
    CHECK(std::vector<float>(both.begin() + kVocab, both.end()) == straight);
  }
  SUBCASE("a session computes anew what it cannot go back to") {
    auto session = Session::create(model, {.n_ctx = 128});
    REQUIRE(session);
    REQUIRE(session->append(all.first(40)));
    REQUIRE(session->append(all.subspan(40, 30)));
    REQUIRE(session->rewind(55));
    CHECK(session->position() == 55);
    const auto logits = session->append(all.subspan(55, 15));
    REQUIRE(logits);
    const auto expected = conv_logits(file, {tokens.begin(), tokens.begin() + 70});
    CHECK(distance(*logits, expected, 69) < 2e-3);  // the cache is f16

    // Rows of numbers are not kept: going back behind the last step would need them.
    const std::vector<float> rows(static_cast<std::size_t>(2 * model.config().dim), 0.5f);
    const SequenceInput input{.sequence = &session->sequence(),
                              .rows = MatrixView<const float>(rows.data(), 2, model.config().dim)};
    REQUIRE(session->engine().run({&input, 1}));
    REQUIRE(session->append(all.first(5)));
    const Result<void> lost = session->rewind(71);
    REQUIRE(!lost);
    CHECK(lost.error().code == Errc::unsupported);
    CHECK(session->position() == 77);
  }
}

namespace {

// Architectures that give no logits of the rows that are wanted.
struct AllRows : outside::ConvNet {
  static auto expression(const Config& c) {
    using namespace nibble::graph;
    return embedding<outside::Part::token_embd>(c.dim) >>
           linear<outside::Part::output>(c.vocab_size);
  }
};
struct NoLogits : outside::ConvNet {
  static auto expression(const Config& c) {
    using namespace nibble::graph;
    return embedding<outside::Part::token_embd>(c.dim) >> output_rows() >>
           linear<outside::Part::output>(c.dim);
  }
};

}  // namespace

TEST_CASE("an architecture ends in logits of the rows that are wanted") {
  outside::ConvConfig config;
  config.vocab_size = 10;
  config.dim = 8;
  for (const auto& graph : {make_graph<AllRows>(config), make_graph<NoLogits>(config)}) {
    REQUIRE(graph != nullptr);
    const auto plan = graph->plan({});
    REQUIRE_FALSE(plan.is_valid());
    CHECK(std::string(plan.error).find("does not end in logits") != std::string::npos);
  }
}

}  // namespace outside_architecture_test
