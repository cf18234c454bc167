// SPDX-License-Identifier: Apache-2.0
//
// The headers of mistakes.cpp, which mistakes.cmake compiles once for all mistakes.
#pragma once

#include "nibble/graph/describe.hpp"
#include "nibble/graph/differentiate.hpp"
#include "nibble/graph/fuse.hpp"
#include "nibble/graph/run.hpp"
#include "nibble/quant/block.hpp"
