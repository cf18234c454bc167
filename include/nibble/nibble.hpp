// SPDX-License-Identifier: Apache-2.0
//
// nibble: small language models on CPUs, header-only. This is the front door:
//
//   auto model = nibble::load("model.gguf");
//   auto session = nibble::Session::create(*model);
//   nibble::generate(*session, "Once upon a time", {}, [](const nibble::Token& t) { ... });
//
// Every function that can fail returns a Result; nothing aborts, throws or prints.
#pragma once

#include "nibble/core/thread_pool.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/model.hpp"
