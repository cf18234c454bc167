// SPDX-License-Identifier: Apache-2.0
//
// nibble: small language models on CPUs, header-only. This is the main header:
//
//   auto model = nibble::load("model.gguf");
//   auto session = nibble::Session::create(*model);
//   nibble::generate(*session, "Once upon a time", {}, [](const nibble::Token& t) { ... });
//
// Every function that can fail returns a Result; nothing aborts, throws or prints.
//
// It declares models, sessions, generators, engines, the cache of prefixes, the thread pool and the
// choice of the SIMD target. For anything else include its header (text/tokenizer.hpp, io/gguf.hpp,
// model/convert.hpp, ...): in the header form many of these names are there by accident, in the
// split form they are not.
//
// Split form, for programs of many files: define NIBBLE_SPLIT for all of them, and
// NIBBLE_IMPLEMENTATION in one of them, before it includes the first of nibble's headers. Only that
// file compiles the library's code.
#pragma once

#include "nibble/core/thread_pool.hpp"
#include "nibble/generate/embedder.hpp"
#include "nibble/generate/engine.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/generate/memory_stream.hpp"
#include "nibble/generate/prefix_cache.hpp"
#include "nibble/generate/scheduler.hpp"
#include "nibble/generate/session.hpp"
#include "nibble/model/model.hpp"
#include "nibble/simd/dispatch.hpp"

#if defined(NIBBLE_IMPLEMENTATION) && NIBBLE_DECLARATIONS_ONLY
#error "nibble: define NIBBLE_IMPLEMENTATION before the first of nibble's headers is included"
#endif
#if defined(NIBBLE_IMPLEMENTATION)
#include "nibble/io/gguf_writer.hpp"
#include "nibble/kernels/instances.hpp"
#include "nibble/model/load.hpp"
#include "nibble/serve/canary.hpp"
#include "nibble/serve/drift.hpp"
#include "nibble/serve/governor.hpp"
#include "nibble/serve/host_readings.hpp"
#include "nibble/serve/metrics.hpp"
#include "nibble/serve/model_pool.hpp"
#include "nibble/serve/router.hpp"
#include "nibble/serve/serving_metrics.hpp"
#endif
