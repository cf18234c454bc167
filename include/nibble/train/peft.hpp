// SPDX-License-Identifier: Apache-2.0
//
// Adapters in the folders of PEFT (huggingface/peft): adapter_config.json, and factors in
// adapter_model.safetensors under the names of the hub's modules,
// base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight (r, k) and .lora_B.weight (n, r);
// of embeddings .lora_embedding_A (r, n) and .lora_embedding_B (k, r). Rows of B are in the hub's
// order, which differs from GGUF's where an architecture rotates adjacent pairs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/hub/families.hpp"
#include "nibble/hub/folder.hpp"
#include "nibble/hub/names.hpp"
#include "nibble/io/byte_reader.hpp"
#include "nibble/io/json_text.hpp"
#include "nibble/io/json_value.hpp"
#include "nibble/io/output_file.hpp"
#include "nibble/io/safetensors.hpp"
#include "nibble/train/adapter_file.hpp"
#include "nibble/train/exact_text.hpp"
#include "nibble/train/peft_rows.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace train {

NIBBLE_HIDDEN inline constexpr std::string_view kPeftConfigFile = "adapter_config.json";
NIBBLE_HIDDEN inline constexpr std::string_view kPeftWeightsFile = "adapter_model.safetensors";

namespace detail {

NIBBLE_HIDDEN inline constexpr std::string_view kPeftPrefix = "base_model.model.";

// What a model is called on hubs, and how rows change between there and here.
class PeftBase {
 public:
  // Errors: unsupported (an architecture that is not known as a folder), those of metadata.
  static Result<PeftBase> of(const io::Gguf& base) {
    PeftBase made(base);
    NIBBLE_TRY(architecture, base.get_string("general.architecture"));
    for (const hub::Family& family : hub::kFamilies) {
      if (family.architecture == architecture && made.family_ == nullptr) made.family_ = &family;
    }
    if (made.family_ == nullptr) {
      return Error{Errc::unsupported, base.name() + ": the names that architecture " +
                                          io::quoted(architecture) + " has on hubs are not known"};
    }
    const std::string prefix = std::string(architecture) + ".attention.";
    NIBBLE_TRY(n_heads, base.get_u64(prefix + "head_count"));
    NIBBLE_TRY(n_kv_heads, base.get_u64_or(prefix + "head_count_kv", n_heads));
    made.n_heads_ = n_heads;
    made.n_kv_heads_ = n_kv_heads;
    return made;
  }

  const io::Gguf& file() const noexcept { return *base_; }
  std::string_view architecture() const noexcept { return family_->architecture; }
  bool is_encoder() const noexcept {
    return architecture() == "bert" || architecture() == "nomic-bert";
  }
  // Products of modules that keep (inputs, outputs).
  bool is_fan_in_fan_out() const noexcept { return architecture() == "gpt2"; }

  // "blk.0.attn_q.weight" of "model.layers.0.self_attn.q_proj", with what rows need.
  std::optional<hub::Renamed> gguf_name(std::string_view module) const {
    auto renamed = hub::rename(family_->names, std::string(module) + ".weight");
    if (renamed && renamed->name.empty()) renamed.reset();
    return renamed;
  }
  // The other way round; nothing if it is not known.
  std::optional<hub::Renamed> module_name(std::string_view tensor) const {
    constexpr std::string_view kWeight = ".weight";
    if (!tensor.ends_with(kWeight)) return std::nullopt;
    tensor.remove_suffix(kWeight.size());
    for (const hub::Rename& entry : family_->names) {
      const auto numbers = hub::detail::match(entry.to, tensor);
      if (!numbers || !numbers->expert.empty()) continue;
      const std::string_view layer = numbers->layer;
      // Phi-3 has the gate's rows in the same matrix.
      if (entry.from.ends_with("up_proj") &&
          is_gate_in_up(layer) != entry.from.ends_with("gate_up_proj")) {
        continue;
      }
      std::string from(entry.from);
      if (const std::size_t at = from.find('#'); at != from.npos) {
        from.replace(at, 1, layer);
      }
      return hub::Renamed{outer(entry.from) + from, entry.change};
    }
    return std::nullopt;
  }

  // B (n, r) between the order of rows on hubs and in GGUF. Error: malformed.
  Result<void> reorder(hub::Change change, bool to_hub, AdapterMatrix& m) const {
    const auto n = static_cast<std::uint64_t>(m.n);
    std::uint64_t a = 1, b = 1, unit = 1;  // stored (outer, a, b) units on hubs, (outer, b, a) here
    const auto split = [&](std::uint64_t parts) -> Result<std::uint64_t> {
      if (parts > 0 && n % parts == 0) return n / parts;
      return Error{Errc::malformed, "adapter of " + io::quoted(m.name) + ": " + to_text(n) +
                                        " rows are not for the heads of the model"};
    };
    if (change == hub::Change::q_rows || change == hub::Change::k_rows) {
      if (!family_->rotates_pairs) return ok();
      NIBBLE_TRY(half, split(2 * (change == hub::Change::q_rows ? n_heads_ : n_kv_heads_)));
      a = 2;
      b = half;
    } else if (change == hub::Change::qkv_rows) {
      NIBBLE_TRY(rows, split(3 * n_heads_));
      a = n_heads_;
      b = 3;
      unit = rows;
    } else {
      return ok();  // (a transposed matrix has factors of the usual shapes)
    }
    std::vector<Scalar<float>> out(m.b.size());
    const auto size = io::narrow<std::size_t>(unit * static_cast<std::uint64_t>(m.rank));
    for (std::uint64_t o = 0; o < n / (a * b * unit); ++o) {
      for (std::uint64_t i = 0; i < a; ++i) {
        for (std::uint64_t j = 0; j < b; ++j) {
          auto hub = io::narrow<std::size_t>((o * a + i) * b + j) * size;
          auto here = io::narrow<std::size_t>((o * b + j) * a + i) * size;
          if (to_hub) std::swap(hub, here);
          std::copy_n(m.b.begin() + static_cast<std::ptrdiff_t>(hub), size,
                      out.begin() + static_cast<std::ptrdiff_t>(here));
        }
      }
    }
    m.b = std::move(out);
    return ok();
  }

 private:
  explicit PeftBase(const io::Gguf& base) : base_(&base) {}

  bool is_gate_in_up(std::string_view layer) const {
    return base_->find_tensor("blk." + std::string(layer) + ".ffn_gate.weight") == nullptr &&
           architecture() == "phi3";
  }
  // The modules around, in the models that have the head of a language model.
  std::string outer(std::string_view from) const {
    if (from == "lm_head" || from == "embed_out" || is_encoder()) return "";
    if (architecture() == "gpt2") return "transformer.";
    if (architecture() == "gptneox") return "gpt_neox.";
    return "model.";
  }

  const io::Gguf* base_;
  const hub::Family* family_ = nullptr;
  std::uint64_t n_heads_ = 0, n_kv_heads_ = 0;
};

// ---- Reading -----------------------------------------------------------------------------------

// What adapter_config.json says.
class PeftConfig {
 public:
  static Result<PeftConfig> read(const hub::Folder& folder) {
    NIBBLE_TRY(root, folder.json(kPeftConfigFile));
    PeftConfig made;
    made.root_ = std::move(root);
    made.name_ = folder.name_of(kPeftConfigFile);
    Result<void> read = made.read_keys();
    if (!read) return std::move(read).error().in(made.name_);
    return made;
  }

  // peft_type, and whether it is a kind that is learned rows (peft_rows.hpp) instead of factors.
  std::string_view kind() const noexcept {
    const io::JsonValue* const type = root_.find("peft_type");
    return type == nullptr ? std::string_view() : std::string_view(type->string());
  }
  bool has_learned_rows() const noexcept {
    return kind() == "PROMPT_TUNING" || kind() == "ADAPTION_PROMPT";
  }

  // alpha, as AdapterMatrix has it, of a module with factors of `rank`. Errors: malformed (another
  // rank than the file says; an alpha that is 0 or no number), unsupported (a pattern that is no
  // name).
  Result<float> alpha_of(const std::string& module, Index rank) const {
    NIBBLE_TRY(r, number_of(module, "rank_pattern", r_));
    NIBBLE_TRY(alpha, number_of(module, "alpha_pattern", alpha_));
    if (r != static_cast<double>(rank)) {
      return Error{Errc::malformed, name_ + ": module " + io::quoted(module) +
                                        " has factors of rank " + to_text(rank) +
                                        ", another one is stated"};
    }
    if (is_rank_stabilized_) alpha *= std::sqrt(r);
    const auto as_float = static_cast<float>(alpha);
    if (is_finite(static_cast<double>(as_float)) && as_float != 0) return as_float;
    return Error{Errc::malformed, name_ + ": lora_alpha of module " + io::quoted(module) +
                                      " is not a number other than 0"};
  }

 private:
  using Kind = io::JsonValue::Kind;

  static Error refuse(const char* key, const char* why) {
    return {Errc::unsupported, std::string("key '") + key + "': " + why};
  }
  bool is_true(const char* key) const {
    const io::JsonValue* const value = root_.find(key);
    return value != nullptr && value->boolean();
  }

  // Errors: malformed, unsupported (a kind of adapter that factors beside the weights are not).
  Result<void> read_keys() {
    if (kind() != "LORA") {
      if (has_learned_rows()) return ok();
      return refuse("peft_type", "not LORA, PROMPT_TUNING or ADAPTION_PROMPT");
    }
    if (is_true("use_dora")) {
      return refuse("use_dora", "DoRA scales the columns anew, which no factors can say");
    }
    for (const char* const key :
         {"use_qalora", "lora_bias", "use_bdlora", "velora_config", "alora_invocation_tokens",
          "layer_replication", "target_parameters", "trainable_token_indices", "modules_to_save",
          "arrow_config"}) {
      const io::JsonValue* const value = root_.find(key);
      const bool is_set = value != nullptr && (value->boolean() || !value->elements().empty());
      if (is_set) return refuse(key, "this kind of adapter is not read");
    }
    // These change the weights beside the factors.
    if (const io::JsonValue* const how = root_.find("init_lora_weights")) {
      for (const std::string_view name : {"pissa", "olora", "corda", "loftq"}) {
        if (how->string().starts_with(name)) {
          return refuse(
              "init_lora_weights",
              "the factors belong to weights that were changed; convert the adapter to "
              "plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)");
        }
      }
    }
    const io::JsonValue* const r = root_.find("r");
    const io::JsonValue* const alpha = root_.find("lora_alpha");
    if (r == nullptr || r->kind() != Kind::number || alpha == nullptr ||
        alpha->kind() != Kind::number) {
      return Error{Errc::malformed, "'r' or 'lora_alpha' is missing or no number"};
    }
    r_ = r->number();
    alpha_ = alpha->number();
    is_rank_stabilized_ = is_true("use_rslora");
    return ok();
  }

  // Keys of patterns are regular expressions that match the end of a module's name, behind a dot.
  // Those that are names are read.
  Result<double> number_of(const std::string& module, const char* key, double otherwise) const {
    const io::JsonValue* const pattern = root_.find(key);
    if (pattern == nullptr) return otherwise;
    for (std::size_t i = 0; i < pattern->keys().size(); ++i) {
      std::string_view name = pattern->keys()[i];
      const bool is_whole = name.starts_with('^');
      if (is_whole) name.remove_prefix(1);
      if (name.find_first_of("*+?[](){}|\\^$") != name.npos) {
        return Error{Errc::unsupported, name_ + ": " + key + " " + io::quoted(name) +
                                            " is a regular expression; names are read"};
      }
      const bool ends = !name.empty() && module.ends_with(name);
      const bool is_it =
          module == name || (ends && !is_whole && module[module.size() - name.size() - 1] == '.');
      if (!is_it) continue;
      if (pattern->elements()[i].kind() == Kind::number) return pattern->elements()[i].number();
      return Error{Errc::malformed, name_ + ": " + key + " has a value that is no number"};
    }
    return otherwise;
  }

  io::JsonValue root_;
  std::string name_;
  double r_ = 0, alpha_ = 0;
  bool is_rank_stabilized_ = false;
};

inline Result<StoredSide> read_side(const io::Safetensor& tensor) {
  if (tensor.shape.size() != 2 || tensor.shape[0] < 1 || tensor.shape[1] < 1) {
    return Error{Errc::malformed, "factors are matrices"};
  }
  StoredSide side;
  side.rows = static_cast<Index>(tensor.shape[0]);
  side.columns = static_cast<Index>(tensor.shape[1]);
  NIBBLE_TRY(floats, read_floats(tensor));
  side.values = std::move(floats);
  return side;
}

// The two names of the factors of a module.
struct PeftNames {
  std::string_view a, b;
};
NIBBLE_HIDDEN inline constexpr PeftNames kPeftNames[] = {
    {".lora_A.weight", ".lora_B.weight"}, {".lora_embedding_A", ".lora_embedding_B"}};

// The module whose factors a tensor is a side of. `is_b`: the second one.
struct PeftSide {
  std::string module;
  const PeftNames* names = nullptr;
  bool is_b = false;
};
inline std::optional<PeftSide> side_of(std::string_view tensor) {
  if (!tensor.starts_with(kPeftPrefix)) return std::nullopt;
  for (const PeftNames& names : kPeftNames) {
    for (const bool is_b : {false, true}) {
      const std::string_view suffix = is_b ? names.b : names.a;
      if (!tensor.ends_with(suffix) || tensor.size() <= kPeftPrefix.size() + suffix.size()) {
        continue;
      }
      tensor.remove_prefix(kPeftPrefix.size());
      tensor.remove_suffix(suffix.size());
      return PeftSide{std::string(tensor), &names, is_b};
    }
  }
  return std::nullopt;
}

inline Result<AdapterMatrix> read_module(const io::Safetensors& file, const PeftSide& side,
                                         const PeftBase& base, const PeftConfig& config) {
  const auto renamed = base.gguf_name(side.module);
  if (!renamed) {
    return Error{Errc::unsupported, "module " + io::quoted(side.module) +
                                        " has no place in the architecture " +
                                        std::string(base.architecture()) + " as it is known here"};
  }
  const auto read = [&](std::string_view suffix) -> Result<StoredSide> {
    const std::string name = std::string(kPeftPrefix) + side.module + std::string(suffix);
    NIBBLE_TRY(tensor, file.tensor(name));
    auto stored = read_side(tensor);
    if (!stored) return std::move(stored).error().in("tensor " + io::quoted(name));
    return stored;
  };
  NIBBLE_TRY(a, read(side.names->a));
  NIBBLE_TRY(b, read(side.names->b));
  if (b.columns != a.rows) {
    return Error{Errc::malformed, "module " + io::quoted(side.module) + ": factors of rank " +
                                      to_text(a.rows) + " and " + to_text(b.columns)};
  }
  AdapterMatrix m;
  m.name = renamed->name;
  m.rank = a.rows;
  if (side.names == &kPeftNames[1]) {  // of an embedding: a (r, n), b (k, r)
    m.n = a.columns;
    m.k = b.rows;
    m.a = transposed({values(b.values), b.values.size()}, b.rows, b.columns);
    m.b = transposed({values(a.values), a.values.size()}, a.rows, a.columns);
  } else {
    m.n = b.rows;
    m.k = a.columns;
    m.a = std::move(a.values);
    m.b = std::move(b.values);
  }
  if ((m.name == kTokenEmbedding) != (side.names == &kPeftNames[1])) {
    return Error{Errc::malformed,
                 "module " + io::quoted(side.module) + ": factors of another kind of module"};
  }
  NIBBLE_TRY(alpha, config.alpha_of(side.module, m.rank));
  m.alpha = alpha;
  NIBBLE_CHECK(check_adapted(base.file(), m));
  NIBBLE_CHECK(base.reorder(renamed->change, false, m));
  return m;
}

}  // namespace detail

// The adapter in a folder, for the model in `base` (whose tensors are not read): LoRA, prompt
// tuning or LLaMA-Adapter. Errors: as read_adapter(); unsupported also DoRA and other kinds of
// adapters, patterns that are no names, and models whose architecture is not known as a folder.
inline Result<Adapter> read_peft(const std::string& path, const io::Gguf& base) {
  return catch_out_of_memory([&]() -> Result<Adapter> {
    const hub::Folder folder(path);
    NIBBLE_TRY(config, detail::PeftConfig::read(folder));
    NIBBLE_TRY(file, io::Safetensors::open(folder.path_of(kPeftWeightsFile)));
    if (config.has_learned_rows()) return detail::read_learned_rows(config.kind(), file, base);
    NIBBLE_TRY(names, detail::PeftBase::of(base));
    Adapter adapter;
    adapter.architecture = names.architecture();
    for (const io::Safetensor& tensor : file.tensors()) {
      const auto side = detail::side_of(tensor.name);
      if (!side) {
        return Error{Errc::unsupported, file.name() + ": tensor " + io::quoted(tensor.name) +
                                            " is no factor of a module"};
      }
      if (side->is_b) {
        NIBBLE_CHECK(file.tensor(std::string(detail::kPeftPrefix) + side->module +
                                 std::string(side->names->a)));
        continue;
      }
      auto matrix = detail::read_module(file, *side, names, config);
      if (!matrix) return std::move(matrix).error().in(file.name());
      if (adapter.find(matrix->name) != nullptr) {
        return Error{Errc::malformed,
                     file.name() + ": factors of " + io::quoted(matrix->name) + " are there twice"};
      }
      adapter.matrices.push_back(*std::move(matrix));
    }
    if (!adapter.matrices.empty()) return adapter;
    return Error{Errc::malformed, file.name() + ": an adapter without factors"};
  });
}

// ---- Writing -----------------------------------------------------------------------------------

namespace detail {

// The pattern of modules whose number is not that of the first: {"module": number, ...}.
template <class Number>
std::string pattern_text(const Adapter& adapter, std::span<const std::string> modules,
                         const Number& number) {
  std::string text = "{";
  for (std::size_t i = 0; i < modules.size(); ++i) {
    const std::string own = number(adapter.matrices[i]);
    if (own == number(adapter.matrices[0])) continue;
    text += (text.size() > 1 ? ", " : "") + io::json_text(modules[i]) + ": " + own;
  }
  return text + "}";
}

// The modules as target_modules has them: the last part of the name, where all modules of the model
// that end with it are adapted, else the whole name.
inline std::string targets_text(const PeftBase& base, std::span<const std::string> modules) {
  std::vector<std::string> targets;
  for (const std::string& module : modules) {
    const std::string last = module.substr(module.rfind('.') + 1);
    std::size_t n = 0, n_adapted = 0;
    for (const io::GgufTensor& tensor : base.file().tensors()) {
      const auto name = base.module_name(tensor.name);
      n += name && (name->name == last || name->name.ends_with("." + last)) ? 1u : 0u;
    }
    for (const std::string& other : modules) {
      n_adapted += other == last || other.ends_with("." + last) ? 1u : 0u;
    }
    std::string target = n == n_adapted ? last : module;
    if (std::find(targets.begin(), targets.end(), target) == targets.end()) {
      targets.push_back(std::move(target));
    }
  }
  std::string text;
  for (const std::string& target : targets) {
    text += (text.empty() ? "" : ", ") + io::json_text(target);
  }
  return "[" + text + "]";
}

inline std::string peft_config_text(const Adapter& adapter, const PeftBase& base,
                                    std::span<const std::string> modules) {
  const auto rank = [](const AdapterMatrix& m) { return to_text(m.rank); };
  const auto alpha = [](const AdapterMatrix& m) {
    return exact_text(static_cast<double>(m.alpha), 9);
  };
  std::string text = "{\n  \"peft_type\": \"LORA\",\n  \"task_type\": ";
  text += base.is_encoder() ? "\"FEATURE_EXTRACTION\"" : "\"CAUSAL_LM\"";
  text += ",\n  \"base_model_name_or_path\": null,\n  \"inference_mode\": true,\n  \"r\": " +
          rank(adapter.matrices[0]) + ",\n  \"lora_alpha\": " + alpha(adapter.matrices[0]);
  text += ",\n  \"lora_dropout\": 0.0,\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": ";
  text += base.is_fan_in_fan_out() ? "true" : "false";
  text += ",\n  \"target_modules\": " + targets_text(base, modules);
  text += ",\n  \"rank_pattern\": " + pattern_text(adapter, modules, rank);
  text += ",\n  \"alpha_pattern\": " + pattern_text(adapter, modules, alpha);
  text += ",\n  \"use_rslora\": false,\n  \"use_dora\": false,\n  \"modules_to_save\": null\n}\n";
  return text;
}

// Writes a file of f32 matrices.
class SafetensorsWriter {
 public:
  void add(const std::string& name, std::uint64_t rows, std::uint64_t columns,
           std::vector<Scalar<float>> x) {
    const std::uint64_t end = at_ + x.size() * sizeof(float);
    header_ += "," + io::json_text(name) + ":{\"dtype\":\"F32\",\"shape\":[" + to_text(rows) + "," +
               to_text(columns) + "],\"data_offsets\":[" + to_text(at_) + "," + to_text(end) + "]}";
    at_ = end;
    data_.push_back(std::move(x));
  }
  Result<void> write(const std::string& path) const {
    std::string header = header_ + "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    std::byte size[8];
    for (std::size_t i = 0; i < 8; ++i) {
      size[i] = static_cast<std::byte>(std::uint64_t{header.size()} >> 8 * i & 255);
    }
    NIBBLE_TRY(file, io::OutputFile::create(path));
    NIBBLE_CHECK(file.write(size));
    NIBBLE_CHECK(file.write(std::as_bytes(std::span(header))));
    for (const std::vector<Scalar<float>>& x : data_) {
      NIBBLE_CHECK(file.write(std::as_bytes(std::span(values(x), x.size()))));
    }
    return file.commit();
  }

 private:
  std::string header_ = "{\"__metadata__\":{\"format\":\"pt\"}";
  std::uint64_t at_ = 0;
  std::vector<std::vector<Scalar<float>>> data_;
};

}  // namespace detail

// Writes an adapter of the model in `base` to a folder that exists, as f32; each of the two files
// completely or not at all. Errors: unsupported (an architecture that is not known as a folder, a
// matrix without a name there), malformed (rows that are not for the heads of the model),
// invalid_argument (an adapter without matrices, with learned rows, or for another architecture;
// factors that do not have their shapes; an alpha that is 0 or not finite), io.
inline Result<void> write_peft(const Adapter& adapter, const io::Gguf& base,
                               const std::string& path) {
  return catch_out_of_memory([&]() -> Result<void> {
    NIBBLE_TRY(names, detail::PeftBase::of(base));
    if (adapter.matrices.empty() || !adapter.is_low_rank() ||
        adapter.architecture != names.architecture()) {
      return Error{Errc::invalid_argument,
                   "an adapter without matrices, with learned rows, or for another architecture "
                   "than the model's"};
    }
    detail::SafetensorsWriter file;
    std::vector<std::string> modules;
    for (AdapterMatrix m : adapter.matrices) {
      const auto module = names.module_name(m.name);
      if (!module) {
        return Error{Errc::unsupported,
                     "adapter of " + io::quoted(m.name) + ": its name on hubs is not known"};
      }
      NIBBLE_CHECK(detail::check_whole(m));
      NIBBLE_CHECK(names.reorder(module->change, true, m));
      modules.push_back(module->name);
      const std::string stem = std::string(detail::kPeftPrefix) + module->name;
      const auto n = static_cast<std::uint64_t>(m.n), k = static_cast<std::uint64_t>(m.k),
                 r = static_cast<std::uint64_t>(m.rank);
      if (m.name == detail::kTokenEmbedding) {
        file.add(stem + ".lora_embedding_A", r, n, detail::transposed(m.b_values(), m.n, m.rank));
        file.add(stem + ".lora_embedding_B", k, r, detail::transposed(m.a_values(), m.rank, m.k));
      } else {
        file.add(stem + ".lora_A.weight", r, k, std::move(m.a));
        file.add(stem + ".lora_B.weight", n, r, std::move(m.b));
      }
    }
    const hub::Folder folder(path);
    NIBBLE_CHECK(file.write(folder.path_of(kPeftWeightsFile)));
    NIBBLE_TRY(config, io::OutputFile::create(folder.path_of(kPeftConfigFile)));
    const std::string text = detail::peft_config_text(adapter, names, modules);
    NIBBLE_CHECK(config.write(std::as_bytes(std::span(text))));
    return config.commit();
  });
}

// The adapter in a GGUF file or in a folder of PEFT, whichever `path` is. Errors: those of
// read_peft(), or of Gguf::open() and read_adapter().
inline Result<Adapter> open_adapter(const std::string& path, const io::Gguf& base) {
  if (hub::Folder(path).has(kPeftConfigFile)) return read_peft(path, base);
  NIBBLE_TRY(file, io::Gguf::open(path));
  return read_adapter(file, base);
}

}}}  // namespace nibble::NIBBLE_ABI::train
