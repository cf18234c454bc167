// SPDX-License-Identifier: Apache-2.0
//
// Models and sessions for the tests of this folder, compiled once (session.cpp).
#pragma once

#include "nibble/generate/session.hpp"

extern template class nibble::BasicModel<nibble::graph::AllFormats>;
extern template class nibble::BasicSession<nibble::Model>;
