// SPDX-License-Identifier: Apache-2.0
//
// Must not compile: the model's working memory is a constant, and larger than the budget.
// tests/graph/plan_test.cpp has the same with a budget that is large enough.
#include "graph/tiny_dims.hpp"

static_assert(test::kTinyPlan.bytes <= 4 * 1024, "the model does not fit in its budget");
