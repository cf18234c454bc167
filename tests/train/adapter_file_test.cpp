// SPDX-License-Identifier: Apache-2.0
//
// Adapters in files, beside the weights of a loaded model, and merged into them.
#include "nibble/train/adapter_file.hpp"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "io/file_builder.hpp"
#include "nibble/model/adapter.hpp"
#include "nibble/model/adapter_set.hpp"
#include "nibble/train/lora.hpp"
#include "nibble/train/merge_adapter.hpp"
#include "nibble/train/peft.hpp"
#include "test_data.hpp"
#include "train/lora_cases.hpp"
#include "why.hpp"

namespace adapter_file_test {
namespace {

using namespace nibble;
using namespace nibble::train;
using nibble_test::load_home, nibble_test::open_home, nibble_test::parse;

void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

AdapterMatrix matrix_of(const io::Gguf& base, const std::string& name, Index rank, float alpha,
                        double phase) {
  const auto tensor = base.tensor(name == "output.weight" ? "token_embd.weight" : name);
  REQUIRE(tensor);
  AdapterMatrix m;
  m.name = name;
  m.n = static_cast<Index>(tensor->dims[1]);
  m.k = static_cast<Index>(tensor->dims[0]);
  m.rank = rank;
  m.alpha = alpha;
  for (Index i = 0; i < rank * m.k; ++i) {
    m.a.push_back({static_cast<float>(0.3 * std::cos(0.61 * static_cast<double>(i) + phase))});
  }
  for (Index i = 0; i < m.n * rank; ++i) {
    m.b.push_back({static_cast<float>(0.2 * std::sin(0.37 * static_cast<double>(i) + phase))});
  }
  return m;
}

Adapter adapter_for(const io::Gguf& base, std::initializer_list<const char*> names, Index rank = 4,
                    float alpha = 6, double phase = 0) {
  Adapter adapter;
  adapter.architecture = "llama";
  for (const char* const name : names) {
    adapter.matrices.push_back(matrix_of(base, name, rank, alpha, phase += 0.7));
  }
  return adapter;
}

bool same(const std::vector<Scalar<float>>& x, const std::vector<Scalar<float>>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}
void check_same(const Adapter& a, const Adapter& b) {
  CHECK(a.architecture == b.architecture);
  REQUIRE(a.matrices.size() == b.matrices.size());
  for (const AdapterMatrix& m : a.matrices) {
    CAPTURE(m.name);
    const AdapterMatrix* const other = b.find(m.name);
    REQUIRE(other != nullptr);
    CHECK(m.n == other->n);
    CHECK(m.k == other->k);
    CHECK(m.rank == other->rank);
    CHECK(m.alpha == other->alpha);
    CHECK(same(m.a, other->a));
    CHECK(same(m.b, other->b));
  }
}

Adapter mixed_adapter(const io::Gguf& base) {
  Adapter adapter =
      adapter_for(base, {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.1.attn_v.weight",
                         "blk.0.attn_output.weight", "blk.0.ffn_gate.weight", "blk.1.ffn_up.weight",
                         "blk.0.ffn_down.weight"});
  adapter.matrices.push_back(matrix_of(base, "token_embd.weight", 4, 6, 9));
  return adapter;
}

TEST_CASE("adapters come back from GGUF, and from PEFT's folder, bit for bit") {
  const io::Gguf base = open_home();
  Adapter adapter = mixed_adapter(base);
  const test::TemporaryFolder folder;
  const auto through_gguf = [&](const Adapter& from) {
    REQUIRE(write_adapter(from, folder.path("a.gguf")));
    auto back = open_adapter(folder.path("a.gguf"), base);
    REQUIRE_MESSAGE(back, test::why(back));
    return *std::move(back);
  };
  const auto through_peft = [&](const Adapter& from) {
    REQUIRE(write_peft(from, base, folder.path("")));
    auto back = open_adapter(folder.path(""), base);
    REQUIRE_MESSAGE(back, test::why(back));
    return *std::move(back);
  };
  check_same(adapter, through_gguf(adapter));
  check_same(adapter, through_peft(adapter));
  std::filesystem::remove(folder.path("adapter_config.json"));
  const std::vector<std::byte> bytes = *AdapterFile::create(adapter)->to_bytes();
  CHECK(*AdapterFile::create(through_peft(through_gguf(adapter)))->to_bytes() == bytes);

  // Rank and alpha of some matrices are others.
  adapter.matrices[1] = matrix_of(base, "blk.0.attn_k.weight", 7, 0.3f, 2);
  adapter.matrices[2] = matrix_of(base, "blk.1.attn_v.weight", 2, 6, 3);
  check_same(adapter, through_peft(adapter));
  const Adapter one_alpha = through_gguf(adapter);
  const AdapterMatrix &was = adapter.matrices[1], *now = one_alpha.find(was.name);
  REQUIRE(now != nullptr);
  CHECK(now->alpha == 6);
  for (std::size_t i = 0; i < was.b.size(); ++i) {
    CHECK(now->scale() * now->b[i].value ==
          doctest::Approx(was.scale() * was.b[i].value).epsilon(1e-6));
  }
}

TEST_CASE("rows of q and k are the hub's in PEFT's folder") {
  const io::Gguf base = open_home();
  const auto n_heads = *base.get_u64("llama.attention.head_count");
  const Adapter adapter = adapter_for(base, {"blk.1.attn_q.weight", "blk.0.attn_v.weight"}, 1);
  const test::TemporaryFolder folder;
  REQUIRE(write_peft(adapter, base, folder.path("")));
  const auto file = io::Safetensors::open(folder.path("adapter_model.safetensors"));
  REQUIRE(file);
  const std::string stem = "base_model.model.model.layers.";
  const auto q = file->tensor(stem + "1.self_attn.q_proj.lora_B.weight");
  const auto v = file->tensor(stem + "0.self_attn.v_proj.lora_B.weight");
  REQUIRE(q);
  REQUIRE(v);
  const auto head = q->shape[0] / n_heads;
  for (std::uint64_t i = 0; i < q->shape[0]; ++i) {
    // Row 2j + p of a head is row p · head / 2 + j there.
    const std::uint64_t in_head = i % head;
    const std::uint64_t there = i - in_head + in_head % 2 * (head / 2) + in_head / 2;
    float x = 0;
    std::memcpy(&x, q->data.data() + there * sizeof(float), sizeof(float));
    CHECK(x == adapter.matrices[0].b[static_cast<std::size_t>(i)].value);
  }
  CHECK(std::memcmp(v->data.data(), adapter.matrices[1].b.data(), v->data.size()) == 0);
  const std::string config = test::read_text(folder.path("adapter_config.json"));
  // Not all layers are adapted, so whole names are given.
  CHECK(config.find("\"target_modules\": [\"model.layers.1.self_attn.q_proj\", "
                    "\"model.layers.0.self_attn.v_proj\"]") != config.npos);
}

TEST_CASE("files that are no adapter of the model are errors") {
  const io::Gguf base = open_home();
  const Adapter good = adapter_for(base, {"blk.0.attn_q.weight", "blk.1.ffn_down.weight"});
  const auto error_of = [&](const std::function<void(io::GgufWriter&)>& change,
                            const Adapter& adapter) {
    auto file = AdapterFile::create(adapter);
    REQUIRE(file);
    change(file->writer());
    const auto bytes = file->to_bytes();
    REQUIRE(bytes);
    auto read = read_adapter(parse(*bytes, "the adapter"), base);
    REQUIRE(!read);
    CHECK(!read.error().message.empty());
    return read.error().code;
  };
  const auto with_key = [&](const char* key, const char* value) {
    return error_of([&](io::GgufWriter& w) { w.set(key, std::string_view(value)); }, good);
  };
  CHECK(with_key("general.type", "model") == Errc::malformed);
  CHECK(with_key("adapter.type", "dora") == Errc::unsupported);
  CHECK(with_key("general.architecture", "gemma") == Errc::invalid_argument);
  CHECK(error_of([](io::GgufWriter& w) { w.set("adapter.lora.alpha", std::nanf("")); }, good) ==
        Errc::malformed);
  const std::vector<float> ones(4096, 1.0f);
  const auto with_tensor = [&](const char* name, std::vector<std::uint64_t> dims) {
    std::uint64_t n = 1;
    for (const auto dim : dims) n *= dim;
    return error_of(
        [&](io::GgufWriter& w) {
          w.add_tensor(name, io::GgmlType::f32, dims,
                       std::as_bytes(std::span(ones).first(static_cast<std::size_t>(n))));
        },
        good);
  };
  CHECK(with_tensor("blk.0.attn_q.bias", {4}) == Errc::unsupported);
  CHECK(with_tensor("blk.0.attn_k.weight.lora_a", {4, 4}) == Errc::not_found);
  CHECK(with_tensor("blk.0.attn_k.weight.lora_b", {4, 4}) == Errc::not_found);

  const auto changed = [&](const std::function<void(AdapterMatrix&)>& change) {
    Adapter bad = good;
    change(bad.matrices[1]);
    return error_of([](io::GgufWriter&) {}, bad);
  };
  CHECK(changed([](AdapterMatrix& m) { m.name = "blk.99.ffn_down.weight"; }) == Errc::not_found);
  CHECK(changed([](AdapterMatrix& m) { m.name = "blk.0.ffn_norm.weight"; }) ==
        Errc::invalid_argument);
  CHECK(changed([](AdapterMatrix& m) {
          m.name = "blk.0.attn_q.weight";
          m.name += "x";
        }) == Errc::not_found);
  CHECK(changed([&](AdapterMatrix& m) {
          m = matrix_of(base, "blk.1.ffn_up.weight", 4, 6, 0);
          m.name = "blk.1.ffn_down.weight";
        }) == Errc::malformed);
  CHECK(changed([](AdapterMatrix& m) { m.b[5].value = std::nanf(""); }) == Errc::malformed);
  CHECK(error_of(
            [&](io::GgufWriter& w) {  // rank 4 beside rank 2
              const std::uint64_t a[] = {16, 4}, b[] = {2, 16};
              const auto floats = std::as_bytes(std::span(ones));
              w.add_tensor("blk.0.attn_v.weight.lora_a", io::GgmlType::f32, a, floats.first(256));
              w.add_tensor("blk.0.attn_v.weight.lora_b", io::GgmlType::f32, b, floats.first(128));
            },
            good) == Errc::malformed);

  // Factors of norms are left out, as llama.cpp does.
  auto file = AdapterFile::create(good);
  REQUIRE(file);
  const std::uint64_t dims[] = {16};
  file->writer().add_tensor("blk.0.attn_norm.weight", io::GgmlType::f32, dims,
                            std::as_bytes(std::span(ones).first(16)));
  const auto read = read_adapter(parse(*file->to_bytes(), "with a norm"), base);
  REQUIRE(read);
  check_same(good, *read);
  CHECK(!read_adapter(base, base));
}

TEST_CASE("an adapter that a program has made wrong is not written, merged or used") {
  const io::Gguf base = open_home();
  const Model model = load_home(base);
  const Adapter good = adapter_for(base, {"blk.0.attn_q.weight", "blk.1.ffn_down.weight"});
  const test::TemporaryFolder folder;
  InlineExecutor executor;
  const auto refused = [&](const Adapter& adapter) {
    const AppliedAdapter applied[] = {{&adapter, 1}};
    const auto file = AdapterFile::create(adapter);
    const auto peft = write_peft(adapter, base, folder.path(""));
    const auto merged = MergedModel::create(base, applied, {}, executor);
    REQUIRE((!file && !peft && !merged));
    CHECK(file.error().code == Errc::invalid_argument);
    CHECK(peft.error().code == Errc::invalid_argument);
    CHECK(merged.error().code == Errc::invalid_argument);
    CHECK(folder.count() == 0);
  };
  const auto not_used = [&](const Adapter& adapter) {
    const auto used = AdapterSet::create(model, adapter);
    REQUIRE(!used);
    CHECK(used.error().code == Errc::invalid_argument);
  };
  const auto with = [&](const std::function<void(AdapterMatrix&)>& change) {
    Adapter bad = good;
    change(bad.matrices[1]);
    return bad;
  };
  // Too little, and a little more, of each side: less than a row, too.
  for (const int change : {-1, 1}) {
    for (auto AdapterMatrix::*const side : {&AdapterMatrix::a, &AdapterMatrix::b}) {
      const Adapter bad = with([&](AdapterMatrix& m) {
        (m.*side).resize((m.*side).size() + static_cast<std::size_t>(change));
      });
      refused(bad);
      not_used(bad);
    }
  }
  for (const Adapter& bad :
       {with([](AdapterMatrix& m) { m.rank = 0; }), with([](AdapterMatrix& m) { m.n = m.k = 0; }),
        with([](AdapterMatrix& m) { m.alpha = std::nanf(""); })}) {
    refused(bad);
    not_used(bad);
  }
  refused(with([](AdapterMatrix& m) { m.alpha = 0; }));  // files mean something else by it
  CHECK(!AdapterFile::create(Adapter{}));
  CHECK(!write_peft(Adapter{}, base, folder.path("")));
  const AppliedAdapter endless[] = {{&good, HUGE_VALF}};
  const auto infinite = AdapterSet::create(model, endless);
  REQUIRE(!infinite);
  CHECK(infinite.error().code == Errc::invalid_argument);
  const AppliedAdapter wrong[] = {{nullptr, 1}, {&good, std::nanf("")}};
  for (const AppliedAdapter& one : wrong) {
    const auto merged = MergedModel::create(base, std::span(&one, 1), {}, executor);
    REQUIRE(!merged);
    CHECK(merged.error().code == Errc::invalid_argument);
  }
}

TEST_CASE("PEFT's folders: what is read, and what is refused") {
  const io::Gguf base = open_home();
  const Adapter good = adapter_for(base, {"blk.0.attn_q.weight", "blk.1.ffn_down.weight"});
  const test::TemporaryFolder folder;
  REQUIRE(write_peft(good, base, folder.path("")));
  const std::string config = test::read_text(folder.path("adapter_config.json"));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = config;
    const std::size_t at = text.find(from);
    REQUIRE(at != text.npos);
    write_text(folder.path("adapter_config.json"), text.replace(at, from.size(), to));
    return open_adapter(folder.path(""), base);
  };
  const auto code = [&](const std::string& from, const std::string& to) {
    const auto read = with(from, to);
    REQUIRE(!read);
    return read.error().code;
  };
  CHECK(code("\"use_dora\": false", "\"use_dora\": true") == Errc::unsupported);
  CHECK(code("LORA", "IA3") == Errc::unsupported);
  CHECK(code("\"bias\"", "\"init_lora_weights\": \"pissa\", \"bias\"") == Errc::unsupported);
  CHECK(code("\"modules_to_save\": null", "\"modules_to_save\": [\"lm_head\"]") ==
        Errc::unsupported);
  CHECK(code("\"r\": 4", "\"r\": 5") == Errc::malformed);
  CHECK(code("\"r\": 4", "\"r\": \"4\"") == Errc::malformed);
  CHECK(code("\"lora_alpha\": 6", "\"lora_alpha\": 0") == Errc::malformed);
  CHECK(code("\"rank_pattern\": {}", "\"rank_pattern\": {\"layers.[0-9].*\": 3}") ==
        Errc::unsupported);
  CHECK(code("{", "[") == Errc::malformed);

  const auto stabilized = with("\"use_rslora\": false", "\"use_rslora\": true");
  REQUIRE(stabilized);
  CHECK(stabilized->matrices[0].alpha == 12);  // 6 √4
  for (const char* const key : {"q_proj", "self_attn.q_proj", "^model.layers.0.self_attn.q_proj"}) {
    const auto pattern =
        with("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"" + std::string(key) + "\": 2.5}");
    REQUIRE(pattern);
    CHECK(pattern->find("blk.0.attn_q.weight")->alpha == 2.5f);
    CHECK(pattern->find("blk.1.ffn_down.weight")->alpha == 6);
  }
  const auto other =
      with("\"alpha_pattern\": {}", "\"alpha_pattern\": {\"_proj\": 2.5, \"proj\": 1}");
  REQUIRE(other);  // parts of a name are not the name
  CHECK(other->matrices[0].alpha == 6);

  write_text(folder.path("adapter_config.json"), config);
  const std::string weights = test::read_text(folder.path("adapter_model.safetensors"));
  const auto with_weights = [&](const std::string& from, const std::string& to) {
    std::string text = weights;
    for (std::size_t at = 0; (at = text.find(from, at)) != text.npos; at += to.size()) {
      text.replace(at, from.size(), to);
    }
    write_text(folder.path("adapter_model.safetensors"), text);
    return open_adapter(folder.path(""), base);
  };
  CHECK(with_weights("q_proj", "k_proj").has_value() == false);  // another shape, or order of heads
  CHECK(with_weights("q_proj", "x_proj").error().code == Errc::unsupported);
  CHECK(with_weights("layers.1.", "layers.9.").error().code == Errc::not_found);
  CHECK(with_weights("down_proj.lora_B", "down_proj.lora_C").error().code == Errc::not_found);
  CHECK(with_weights("base_model", "best_model").error().code == Errc::unsupported);
  std::filesystem::remove(folder.path("adapter_model.safetensors"));
  CHECK(open_adapter(folder.path(""), base).error().code == Errc::io);
}

std::vector<float> logits_of(Session& session, const SequenceAdapter& adapter = {}) {
  REQUIRE(session.rewind(0));
  REQUIRE(session.set_adapter(adapter));
  std::vector<std::int32_t> ids;
  for (std::int32_t i = 0; i < 21; ++i) ids.push_back((37 * i + 11) % 300 + 3);
  const auto logits = session.append(ids, 5);
  REQUIRE(logits);
  std::vector<float> out;
  for (Index i = 0; i < logits->extent(0); ++i) {
    for (Index j = 0; j < logits->extent(1); ++j) out.push_back((*logits)(i, j));
  }
  return out;
}
double distance(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    most = std::max(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return most;
}
std::vector<float> merged_logits(const io::Gguf& base, std::span<const AppliedAdapter> adapters,
                                 std::optional<quant::Format> format = quant::Format::f32) {
  InlineExecutor executor;
  const auto merged = MergedModel::create(base, adapters, format, executor);
  REQUIRE(merged);
  const io::Gguf file = parse(*merged->to_bytes(), "merged");
  const Model model = load_home(file);
  auto session = Session::create(model, {.max_outputs = 5});
  REQUIRE(session);
  return logits_of(*session);
}

TEST_CASE("adapters beside a model are what they are in its weights, and change between steps") {
  const io::Gguf base = open_home();
  const Model model = load_home(base);
  const Adapter first =
      adapter_for(base, {"blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.1.attn_v.weight",
                         "blk.0.attn_output.weight", "blk.1.ffn_gate.weight", "blk.0.ffn_up.weight",
                         "blk.1.ffn_down.weight"});
  const Adapter second =
      adapter_for(base, {"blk.0.attn_q.weight", "blk.2.ffn_down.weight"}, 3, 5, 4);
  auto session = Session::create(model, {.max_outputs = 5, .max_factor_rank = 7});
  REQUIRE(session);
  const std::vector<float> plain = logits_of(*session);
  const AppliedAdapter half_of_both[] = {{&first, 1}, {&second, 0.5f}};
  for (const std::span<const AppliedAdapter> applied :
       {std::span(half_of_both).first(1), std::span(half_of_both).subspan(1),
        std::span<const AppliedAdapter>(half_of_both)}) {
    const auto set = AdapterSet::create(model, applied);
    REQUIRE(set);
    const std::vector<float> with = logits_of(*session, {*set});
    CHECK(distance(with, plain) > 0.05);
    CHECK(distance(with, merged_logits(base, applied)) < 2e-3);
    CHECK(logits_of(*session) == plain);
  }
  const auto both = AdapterSet::create(model, half_of_both);
  REQUIRE(both);
  CHECK(both->max_rank() == 7);
  // Not enough room, and none at all.
  auto small = Session::create(model, {.max_factor_rank = 6});
  REQUIRE(small);
  CHECK(!small->set_adapter({*both}));
  CHECK(!Session::create(model, {.max_factor_rank = -1}));

  // The output is the embedding; factors can stand beside the output alone.
  const Adapter output = adapter_for(base, {"output.weight"});
  const auto beside = AdapterSet::create(model, output);
  REQUIRE(beside);
  CHECK(distance(logits_of(*session, {*beside}), plain) > 0.05);
  InlineExecutor executor;
  const AppliedAdapter of_output[] = {{&output, 1}};
  CHECK(MergedModel::create(base, of_output, {}, executor).error().code == Errc::not_found);
}

TEST_CASE("an adapter beside quantized weights, and merged into what they are") {
  const io::Gguf base = nibble_test::requantized(open_home(), quant::Format::q4_0);
  const Model model = load_home(base);
  const Adapter adapter = adapter_for(base, {"blk.0.attn_q.weight", "blk.1.ffn_down.weight"});
  const auto set = AdapterSet::create(model, adapter);
  REQUIRE(set);
  auto session = Session::create(model, {.max_outputs = 5, .max_factor_rank = set->max_rank()});
  REQUIRE(session);
  const std::vector<float> plain = logits_of(*session);
  const std::vector<float> with = logits_of(*session, {*set});
  const AppliedAdapter applied[] = {{&adapter, 1}};
  // The products of the changed matrices read f32 instead of 8-bit inputs: not the same bits.
  const double moved = distance(with, plain);
  CHECK(distance(with, merged_logits(base, applied, quant::Format::f32)) < 0.2 * moved);
  CHECK(distance(with, merged_logits(base, applied, quant::Format::f16)) < 0.2 * moved);
  CHECK(distance(with, merged_logits(base, applied, std::nullopt)) < 0.9 * moved);
}

TEST_CASE("adapters that do not fit the model are errors") {
  const io::Gguf base = open_home();
  const Model model = load_home(base);
  const auto code = [&](const Adapter& adapter) {
    const auto made = AdapterSet::create(model, adapter);
    REQUIRE(!made);
    return made.error().code;
  };
  Adapter adapter = adapter_for(base, {"blk.0.attn_q.weight", "token_embd.weight"});
  CHECK(code(adapter) == Errc::unsupported);
  adapter.matrices[1].name = "blk.0.attn_z.weight";
  CHECK(code(adapter) == Errc::not_found);
  adapter.matrices[1].name = "blk.0.attn_norm.weight";
  CHECK(code(adapter) == Errc::invalid_argument);
  adapter.matrices.pop_back();
  adapter.matrices[0].b.pop_back();
  CHECK(code(adapter) == Errc::invalid_argument);
  const AppliedAdapter none[] = {{nullptr, 1}};
  CHECK(!AdapterSet::create(model, none));
}

}  // namespace

}  // namespace adapter_file_test
