// SPDX-License-Identifier: Apache-2.0
//
// Mistakes in an expression. Each must not compile, and must give one sentence that says what is
// wrong (mistakes.cmake). MISTAKE 0 has no mistake.
#include "graph/compile_fail/mistakes.hpp"

namespace {

enum class Part { e, w, n };

using namespace nibble::graph;
using nibble::Dim;

constexpr Limits kLimits{};
[[maybe_unused]] constexpr Heads kHeads{Dim<2>(), Dim<2>(), Dim<32>(), 1.0f};
struct Mine : Node {};

constexpr auto model() {
  const auto start = embedding<Part::e>(Dim<64>());
  const auto product = linear<Part::w>(Dim<64>());
#if MISTAKE == 0
  return start >> repeat(Dim<2>(), residual(product)) >> product;
#elif MISTAKE == 1   // a residual of another width
  return start >> residual(linear<Part::w>(Dim<32>()));
#elif MISTAKE == 2   // attention after one product instead of a fork of three
  return start >> linear<Part::w>(Dim<192>()) >> cache_kv(kHeads) >> scores(kHeads);
#elif MISTAKE == 3   // no embedding
  return rms_norm<Part::n>(1e-5f) >> product;
#elif MISTAKE == 4   // a node without apply()
  return start >> Mine{} >> product;
#elif MISTAKE == 5   // layers of layers
  return start >> repeat(Dim<2>(), repeat(Dim<2>(), residual(product)));
#elif MISTAKE == 6   // widths that differ
  return start >> fork(product, linear<Part::n>(Dim<32>())) >> multiply();
#elif MISTAKE == 7   // layers that do not work in place
  return start >> repeat(Dim<2>(), silu());
#elif MISTAKE == 8   // a residual that changes the rows it is added to
  return start >> residual(scale(2.0f) >> product);
#elif MISTAKE == 9   // a branch that changes the rows of the other
  return start >> fork(dropout(0.5f) >> product, product) >> sum();
#elif MISTAKE == 10  // an optional part that makes new rows
  return start >> repeat(Dim<2>(), when(true, product));
#elif MISTAKE == 12  // a residual of another width, which fuse() makes one node
  return start >> residual(silu() >> linear<Part::w>(Dim<32>()));
#elif MISTAKE == 13  // a residual of two results
  return start >> residual(fork(product, product));
#elif MISTAKE == 14  // a product without weights
  return start >> linear<kNone>(Dim<64>());
#elif MISTAKE == 15  // a product whose weights may be missing
  return start >> linear<optional_slot(Part::w)>(Dim<64>());
#elif MISTAKE == 16  // embeddings that may be missing
  return embedding<optional_slot(Part::e)>(Dim<64>()) >> product;
#elif MISTAKE == 17  // fewer columns than there are
  return start >> split(Dim<32>(), Dim<16>()) >> sum();
#elif MISTAKE == 18  // 3 query heads for 2 kv heads
  constexpr Heads heads{Dim<3>(), Dim<2>(), Dim<32>(), 1.0f};
  return start >> fork(linear<Part::w>(Dim<96>()), product, product) >> cache_kv(heads);
#elif MISTAKE == 19  // queries of another width than the heads
  return start >> fork(linear<Part::w>(Dim<32>()), product, product) >> cache_kv(kHeads);
#elif MISTAKE == 20  // keys and values of another width than the heads
  return start >> fork(product, linear<Part::w>(Dim<32>()), linear<Part::w>(Dim<32>())) >>
         cache_kv(kHeads);
#elif MISTAKE == 21  // attention of other heads
  return start >> fork(product, product, product) >> cache_kv(kHeads) >>
         scores(Heads{Dim<4>(), Dim<4>(), Dim<32>(), 1.0f});
#elif MISTAKE == 22  // two names for three results
  return start >> fork(product, product, silu()) >> tap<"q", "k">();
#elif MISTAKE == 23  // rows of another width in place of those that are given
  return start >> in_place(linear<Part::w>(Dim<32>()));
#elif MISTAKE == 24  // two results at the end
  return start >> fork(product, product);
#elif MISTAKE == 26  // conditions without their number
  constexpr bool conditions[] = {true, false};
  return start >> repeat(Dim<2>(), when(conditions, residual(product)));
#elif MISTAKE == 27  // layers of layers, hidden in a node
  return start >> repeat(Dim<2>(), in_place(repeat(Dim<2>(), residual(product))));
#elif MISTAKE == 25  // a node without describe()
  return start >> Mine{};
#elif MISTAKE == 28  // a node without differentiate()
  return start >> Mine{};
#elif MISTAKE == 29  // a fused expression is not one to train
  return fuse(start >> product >> silu());
#endif
}

#if MISTAKE == 11  // blocks of a length that activations do not have
using Blocks64 = nibble::quant::Blocks<8, 64, nibble::f16, nibble::quant::ZeroPoint::symmetric>;
}  // namespace
template <>
inline constexpr nibble::quant::Format nibble::quant::kFormatOf<Blocks64> = Format{130};
namespace {
const FormatOps* const kOps = &kFormatOps<Blocks64>;
#elif MISTAKE < 22 || MISTAKE == 26 || MISTAKE == 27
constexpr Plan kPlan = make_plan(fuse(model()), kLimits);
static_assert(kPlan.is_valid());
#endif

}  // namespace

int main() {
#if MISTAKE == 11
  return kOps == nullptr;
#elif MISTAKE == 22 || MISTAKE == 23
  return make_plan(model(), kLimits).bytes == 0;
#elif MISTAKE == 24
  return run(model(), Plan{}, kLimits, RunArgs{}).extent(0) == 0;
#elif MISTAKE == 25
  return describe(model()).empty();
#elif MISTAKE > 27
  return make_training_plan(model(), TrainingLimits{}).bytes == 0;
#else
  return kPlan.bytes == 0;
#endif
}
