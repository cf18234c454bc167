// SPDX-License-Identifier: Apache-2.0
//
// What the simulation of federated learning and the processes over MPI have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "../common.hpp"
#include "../home_model.hpp"
#include "../train/home_source.hpp"
#include "../train/shape_options.hpp"
#include "nibble/train/federated_client.hpp"

namespace example {

struct FederatedOptions {
  std::string like = kHomeModel;
  Shape shape = {2, 64, 2, 1, 192};
  nibble::Index n_examples = 400;  // commands that a home has
  std::uint64_t n_rounds = 30, seed = 1;
  std::size_t n_test = 300;
  nibble::train::LocalOptions local;  // batches.max_sequences: commands of a step

  // The options of the command line; the defaults are what is set before.
  void add_to(CLI::App& app) {
    app.add_option("--like", like, "model file whose tokenizer is used")->capture_default_str();
    add_number(app, "--rounds", n_rounds, "rounds", 1, 1000000);
    add_number(app, "--examples", n_examples, "commands that a home has", 1, 1000000);
    add_number(app, "--steps", local.n_steps, "of a home in a round", 1, 1000000);
    add_number(app, "--sequences", local.batches.max_sequences, "commands of a step", 1, 65536);
    add_number(app, "--rate", local.rounds.peak, "largest learning rate", 0, 1);
    add_shape_options(app, shape, "of the model");
    add_number(app, "--test", n_test, "held-out commands of a measurement", 1, 2000);
    add_seed(app, seed, "of homes, weights and absences");
  }

  // What a home trains with; `context` is the model's.
  nibble::train::LocalOptions local_of(std::size_t home, nibble::Index context) const {
    nibble::train::LocalOptions o = local;
    o.rounds.floor = o.rounds.peak / 10;
    o.rounds.n_steps = n_rounds;
    o.batches = command_batches(context, local.batches.max_sequences, seed + home);
    o.batches.shuffles = true;
    return o;
  }
};

}  // namespace example
