// SPDX-License-Identifier: Apache-2.0
#include "nibble/generate/session.hpp"

template class nibble::BasicModel<nibble::graph::AllFormats>;
template class nibble::BasicSession<nibble::Model>;
