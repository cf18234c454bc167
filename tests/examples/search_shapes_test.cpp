// SPDX-License-Identifier: Apache-2.0
//
// The shapes that the search goes through, against brute force.
#include "examples/search/shapes.hpp"

#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "nibble/io/gguf.hpp"
#include "project_files.hpp"

namespace search_shapes_test {

using namespace example;

TEST_CASE("the search goes through each shape once") {
  ShapeGrid grid;
  grid.most_layers = 2;
  grid.least_dim = 40;
  grid.most_dim = 128;
  grid.step = 32;
  grid.head_dims = {16, 12, 32};  // 12 is no multiple of 8
  grid.ffn_quarters = {4, 5, 11};
  std::vector<Shape> found;
  for_shapes(grid, [&](const Shape& s) { found.push_back(s); });
  std::vector<Shape> right;
  for (std::uint32_t layers = 1; layers <= 2; ++layers) {
    for (std::uint32_t dim = 40; dim <= 128; ++dim) {
      for (std::uint32_t heads = 1; heads <= dim; ++heads) {
        for (std::uint32_t kv = 1; kv <= heads; ++kv) {
          for (std::uint32_t ffn = 32; ffn <= 512; ffn += 32) {
            if (dim % 32 != 0 || dim % heads != 0) continue;
            if (dim / heads != 16 && dim / heads != 32) continue;
            if (kv != 1 && kv != heads && 2 * kv != heads) continue;
            // The smallest multiple of 32 that is not below a quarter, times 4, 5 or 11.
            bool is_there = false;
            for (const std::uint32_t quarters : {4u, 5u, 11u}) {
              const std::uint32_t wanted = dim * quarters / 4;
              is_there = is_there || (ffn >= wanted && ffn < wanted + 32);
            }
            if (is_there) right.push_back({layers, dim, heads, kv, ffn});
          }
        }
      }
    }
  }
  CHECK(found.size() == right.size());
  CHECK(found.size() > 50);
  for (const Shape& s : right) CHECK(std::count(found.begin(), found.end(), s) == 1);
}

TEST_CASE("a shape weighs what its file does") {
  const auto file =
      nibble::io::Gguf::open(test::project_file("examples/models/home-commands-f16.gguf"));
  REQUIRE(file.has_value());
  const auto number = [&](const char* key) {
    const auto value = file->get_u64(std::string("llama.") + key);
    REQUIRE(value.has_value());
    return static_cast<std::uint32_t>(*value);
  };
  const Shape shape{number("block_count"), number("embedding_length"),
                    number("attention.head_count"), number("attention.head_count_kv"),
                    number("feed_forward_length")};
  const std::uint64_t vocabulary = file->find_tensor("token_embd.weight")->dims[1];
  const bool is_tied = file->find_tensor("output.weight") == nullptr;
  std::uint64_t bytes = 0, n = 0;
  for (const auto& tensor : file->tensors()) {
    bytes += tensor.data.size();
    n += tensor.n_elements();
  }
  const auto computed = bytes_of(shape, vocabulary, is_tied, nibble::quant::Format::f16);
  REQUIRE(computed.has_value());
  CHECK(*computed == bytes);
  CHECK(parameters_of(shape, vocabulary, is_tied) == n);
  CHECK(parameters_of(shape, vocabulary, false) ==
        parameters_of(shape, vocabulary, true) + vocabulary * shape.dim);
  Shape odd = shape;
  odd.ffn = 100;
  CHECK(!bytes_of(odd, vocabulary, is_tied, nibble::quant::Format::q4_0));
}

TEST_CASE("nobody on the front is beaten") {
  struct Model {
    int bytes, time, loss;
  };
  std::vector<Model> models;
  for (int i = 1; i < 60; ++i) models.push_back({i * 37 % 11, i * 53 % 7, i * 29 % 13});
  const auto beats = [](const Model& a, const Model& b) {
    return a.bytes <= b.bytes && a.time <= b.time && a.loss <= b.loss &&
           (a.bytes < b.bytes || a.time < b.time || a.loss < b.loss);
  };
  const std::vector<std::size_t> front = pareto_front(models, beats);
  std::vector<std::size_t> right;
  for (std::size_t i = 0; i < models.size(); ++i) {
    bool is_beaten = false;
    for (const Model& other : models) is_beaten |= beats(other, models[i]);
    if (!is_beaten) right.push_back(i);
  }
  CHECK(front == right);
  CHECK(front.size() > 1);
  CHECK(front.size() < models.size());
}

TEST_CASE("half of the models stay after each turn, which double") {
  const auto text = [](const std::vector<Turn>& turns) {
    std::string all;
    for (const Turn& t : turns) {
      all += std::to_string(t.n_models) + " to " + std::to_string(t.end_step) + "; ";
    }
    return all;
  };
  CHECK(text(halving_turns(8, 2, 400)) == "8 to 100; 4 to 200; 2 to 400; ");
  CHECK(text(halving_turns(7, 2, 400)) == "7 to 100; 4 to 200; 2 to 400; ");
  CHECK(text(halving_turns(3, 5, 400)) == "3 to 400; ");
  CHECK(text(halving_turns(4, 0, 2)) == "4 to 1; 2 to 1; 1 to 2; ");
}

}  // namespace search_shapes_test
