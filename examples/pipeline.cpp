// SPDX-License-Identifier: Apache-2.0
//
// pipeline: makes a small model of a large one, as articles on compression stack it: a student of
// less than half the parameters learns from the teacher, loses neurons, recovers, and is trained
// for INT4. After each step it says how large, fast and right the model is, and what a model of
// that size reaches that was trained directly.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <tuple>
#include <utility>

#include "common.hpp"
#include "format_rules.hpp"
#include "home_model.hpp"
#include "nibble/core/thread_pool.hpp"
#include "pipeline/pruning.hpp"
#include "pipeline/table.hpp"
#include "pipeline/training.hpp"
#include "train/shape_options.hpp"

namespace {

using example::Training;
using nibble::Errc;
using nibble::Error;
using nibble::Index;
using nibble::Result;
using nibble::quant::Format;

struct Options {
  std::string folder = "pipeline";
  std::string teacher = example::kHomeModel;
  bool from_scratch = false, quick = false, quiet = false, searches = false;
  // Head size and everything else are the teacher's.
  example::Shape student = {3, 192, 6, 2, 288};
  double kept = 0.78;
  std::string format = "q4_0";
  std::uint64_t n_teacher = 3500, n_student = 5000, n_recover = 1500, n_qat = 2000;
  double rate = 3e-3, recover_rate = 1.5e-3, qat_rate = 4e-4;
  double alpha = 0.3, temperature = 2;
  std::size_t n_asked = 2000;
  std::uint64_t seed = 1;
  Index n_threads = 0;

  void add_to(CLI::App& app);
  // What decides about the files in the folder, as text.
  std::string fingerprint() const;
};

void Options::add_to(CLI::App& app) {
  using example::add_number;
  app.footer(
      "Each step leaves a file in the folder; the same command skips what is there, and goes on\n"
      "where Ctrl-C stopped it.\n"
      "Exit codes: 0 done, 1 an error, 2 wrong usage, 130 interrupted.");
  app.add_option("--folder", folder, "where the models go")
      ->check(example::is_not_empty)
      ->capture_default_str();
  auto* const given = app.add_option("--teacher", teacher, "another model for home commands (GGUF)")
                          ->check(example::is_not_empty);
  app.add_flag("--from-scratch", from_scratch,
               "train the teacher first, with the dimensions of the bundled model")
      ->excludes(given);
  app.add_flag("--quick", quick,
               "fewer steps and questions: shows that it works, in three minutes");
  example::add_shape_options(app, student, "of the student");
  add_number(app, "--keep", kept, "part of the neurons that pruning keeps", 0.05, 1);
  app.add_option("--format", format, "of the last step: q8_0, q4_0, q4_1, q3_h or q2_h")
      ->check(CLI::IsMember({"q8_0", "q4_0", "q4_1", "q3_h", "q2_h"}))
      ->capture_default_str();
  app.add_flag("--search", searches, "search the scales of blocks in that step");
  auto* const steps = app.add_option_group("steps of 64 commands");
  for (const auto& [name, n, what] :
       {std::tuple{"--teacher-steps", &n_teacher, "of the teacher, with --from-scratch"},
        std::tuple{"--steps", &n_student, "of the student, and of models trained directly"},
        std::tuple{"--recover-steps", &n_recover, "after pruning"},
        std::tuple{"--qat-steps", &n_qat, "for the last format"}}) {
    steps->add_option(name, *n, what)->check(CLI::Range(1, 100000000))->capture_default_str();
  }
  add_number(app, "--rate", rate, "largest learning rate from scratch", 0, 1);
  add_number(app, "--recover-rate", recover_rate, "after pruning", 0, 1);
  add_number(app, "--qat-rate", qat_rate, "for the last format", 0, 1);
  add_number(app, "--alpha", alpha, "part of the right tokens in the loss, beside the teacher's", 0,
             1);
  add_number(app, "--temperature", temperature, "of both predictions", 0.1, 100);
  add_number(app, "--questions", n_asked, "of each test file", 1, 1000000);
  example::add_seed(app, seed, "of weights and data");
  example::add_threads(app, n_threads);
  app.add_flag("--quiet", quiet, "no progress");
  app.callback([this, &app] {
    for (const auto& [name, n] : {std::pair{"--dim", student.dim}, {"--ffn", student.ffn}}) {
      if (n % 32 == 0) continue;
      throw CLI::ValidationError(name, "must be a multiple of 32, the block length of formats");
    }
    if (!quick) return;
    // What was said on the command line stays.
    const auto unless_given = [&](const char* name, auto& value, auto quick_value) {
      if (app.get_option(name)->count() == 0) value = quick_value;
    };
    unless_given("--teacher-steps", n_teacher, std::uint64_t{300});
    unless_given("--steps", n_student, std::uint64_t{260});
    unless_given("--recover-steps", n_recover, std::uint64_t{80});
    unless_given("--qat-steps", n_qat, std::uint64_t{80});
    unless_given("--questions", n_asked, std::size_t{300});
  });
}

std::string Options::fingerprint() const {
  std::ostringstream out;
  out.precision(17);
  out << "teacher " << (from_scratch ? "from scratch " + std::to_string(n_teacher) : teacher)
      << "\nstudent " << student.n_layers << ' ' << student.dim << ' ' << student.n_heads << ' '
      << student.n_kv_heads << ' ' << student.ffn << "\nkeep " << kept << "\nformat " << format
      << (searches ? " searched" : "") << "\nsteps " << n_student << ' ' << n_recover << ' '
      << n_qat << "\nrates " << rate << ' ' << recover_rate << ' ' << qat_rate << "\nalpha "
      << alpha << " temperature " << temperature << "\nseed " << seed << '\n';
  return out.str();
}

// The steps, in order. Each leaves a file.
class Pipeline {
 public:
  Pipeline(const Options& o, nibble::Executor& executor) : o_(o), executor_(executor) {}

  Result<void> run() {
    NIBBLE_CHECK(enter_folder());
    NIBBLE_TRY(splits, example::TestSplits::read());
    splits_ = std::move(splits);
    NIBBLE_CHECK(teach());
    NIBBLE_CHECK(distil());
    NIBBLE_CHECK(prune_and_recover());
    NIBBLE_CHECK(quantize());
    return sum_up();
  }

 private:
  std::string in_folder(const char* name) const {
    return (std::filesystem::path(o_.folder) / name).string();
  }

  // The folder must be of the same settings: its files are not made again.
  Result<void> enter_folder() {
    std::error_code error;
    std::filesystem::create_directories(o_.folder, error);
    const std::string path = in_folder("settings.txt"), wanted = o_.fingerprint();
    if (example::exists(path)) {
      NIBBLE_TRY(text, example::read_text(path));
      if (text == wanted) return nibble::ok();
      return Error{Errc::invalid_argument, nibble::printable(o_.folder) +
                                               ": has models of other settings (settings.txt); "
                                               "choose another --folder or remove it"};
    }
    std::ofstream out(path, std::ios::binary);
    out << wanted;
    out.close();
    if (out.good()) return nibble::ok();
    return Error{Errc::io, nibble::printable(path) + ": cannot be written"};
  }

  Training training(const char* name, const std::string& like, std::uint64_t n_steps) const {
    Training t;
    t.name = name;
    t.like = like;
    t.n_steps = n_steps;
    t.rate = o_.rate;
    t.distillation = {static_cast<float>(o_.alpha), static_cast<float>(o_.temperature)};
    t.seed = o_.seed;
    return t;
  }
  Result<void> make(const Training& t, const std::string& path) {
    return example::train_to_file(t, path, executor_, o_.quiet);
  }
  Result<example::Measured> measure(const std::string& path) {
    NIBBLE_TRY(file, nibble::io::Gguf::open(path));
    return example::measure_file(file, splits_, o_.n_asked, executor_);
  }
  Result<example::Measured> measure_rounded(const std::string& path, Format format) {
    NIBBLE_TRY(file, nibble::io::Gguf::open(path));
    return example::measure_rounded(file, format, splits_, o_.n_asked, executor_);
  }

  Result<void> teach() {
    if (o_.from_scratch) {
      Training t = training("teacher", o_.teacher, o_.n_teacher);
      t.from_scratch = true;
      teacher_ = in_folder("teacher.gguf");
      NIBBLE_CHECK(make(t, teacher_));
    } else {
      teacher_ = o_.teacher;
    }
    NIBBLE_TRY(plain, measure(teacher_));
    NIBBLE_TRY(int8, measure_rounded(teacher_, Format::q8_0));
    table_.add({"teacher", "f16", plain, std::nullopt});
    table_.add({"teacher in INT8", "q8_0", int8, std::nullopt});
    return nibble::ok();
  }

  Result<void> distil() {
    Training t = training("student", teacher_, o_.n_student);
    t.shape = o_.student;
    t.from_scratch = true;
    Training direct = t;
    t.teacher = teacher_;
    NIBBLE_CHECK(make(t, in_folder("student.gguf")));
    direct.name = "student, directly";
    NIBBLE_CHECK(make(direct, in_folder("student-direct.gguf")));
    NIBBLE_TRY(student, measure(in_folder("student.gguf")));
    NIBBLE_TRY(beside, measure(in_folder("student-direct.gguf")));
    table_.add({"student, distilled", "f16", student, beside});
    return nibble::ok();
  }

  Result<void> prune_and_recover() {
    const std::string pruned = in_folder("pruned.gguf"), recovered = in_folder("recovered.gguf"),
                      direct = in_folder("pruned-direct.gguf");
    if (!example::exists(pruned)) {
      NIBBLE_CHECK(example::prune_neurons(in_folder("student.gguf"), pruned, o_.kept, o_.seed + 1,
                                          executor_));
    }
    Training t = training("pruned, directly", pruned, o_.n_student);
    t.from_scratch = true;
    NIBBLE_CHECK(make(t, direct));
    NIBBLE_TRY(beside, measure(direct));
    NIBBLE_TRY(before, measure(pruned));
    table_.add({"pruned", "f16", before, beside});

    t = training("recovering", pruned, o_.n_recover);
    t.teacher = teacher_;
    t.rate = o_.recover_rate;
    t.seed = o_.seed + 2;
    NIBBLE_CHECK(make(t, recovered));
    NIBBLE_TRY(after, measure(recovered));
    table_.add({"recovered", "f16", after, beside});
    return nibble::ok();
  }

  Result<void> quantize() {
    const Format format = example::parse_format(o_.format);
    const std::string recovered = in_folder("recovered.gguf"), last = in_folder("quantized.gguf");
    NIBBLE_TRY(direct, measure_rounded(in_folder("pruned-direct.gguf"), format));
    NIBBLE_TRY(rounded, measure_rounded(recovered, format));
    table_.add({"rounded", o_.format, rounded, direct});
    Training t = training("for the format", recovered, o_.n_qat);
    t.teacher = teacher_;
    t.rate = o_.qat_rate;
    t.seed = o_.seed + 3;
    t.deployed = format;
    t.searches = o_.searches;
    NIBBLE_CHECK(make(t, last));
    NIBBLE_TRY(trained, measure(last));
    table_.add({"quantization-aware", o_.format, trained, direct});
    return nibble::ok();
  }

  Result<void> sum_up() {
    const auto& rows = table_.rows();
    const example::Measured &int8 = rows[1].model, &student = rows[2].model,
                            &last = rows.back().model;
    std::printf("\n");
    table_.print_all();
    std::printf(
        "\nThe student has %.1f %% of the teacher's parameters and is %+.2f points on hard "
        "commands\n"
        "beside the same model trained directly. %s has %.1f %% of the bytes of the teacher in "
        "INT8\n"
        "and is right on %.2f %% of the hard commands, %.1f times as fast.\n",
        100.0 * static_cast<double>(student.n_parameters) /
            static_cast<double>(rows[0].model.n_parameters),
        student.hard - rows[2].direct->hard,
        nibble::printable(in_folder("quantized.gguf")).c_str(),
        100.0 * static_cast<double>(last.bytes) / static_cast<double>(int8.bytes), last.hard,
        int8.ms / last.ms);
    const std::string picture = in_folder("pipeline.svg");
    if (table_.plot(picture)) {
      std::printf("%s: bytes against hard commands\n", nibble::printable(picture).c_str());
    }
    return nibble::ok();
  }

  const Options& o_;
  nibble::Executor& executor_;
  example::TestSplits splits_;
  example::Table table_;
  std::string teacher_;
};

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Makes a small model of a large one: distillation, pruning, recovery, and training for INT4.",
      "pipeline");
  Options options;
  options.add_to(app);
  return example::run(app, argc, argv, [&]() -> Result<void> {
    example::catch_signals();
    NIBBLE_TRY(pool, nibble::ThreadPool::create({.n_threads = options.n_threads}));
    return Pipeline(options, *pool).run();
  });
}
