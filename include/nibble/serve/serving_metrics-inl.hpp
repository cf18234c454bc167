// SPDX-License-Identifier: Apache-2.0
//
// The names of what a server measures, and how a request is recorded. Included by
// serving_metrics.hpp.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "nibble/serve/serving_metrics.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

NIBBLE_INLINE Result<ServingMetrics> ServingMetrics::create(Registry& registry,
                                                            const ServingMetricsOptions& options) {
  return catch_out_of_memory([&]() -> Result<ServingMetrics> {
    ServingMetrics m;
    m.registry = &registry;
    m.options = options;
    // As the last argument of what makes one: an own label behind those of the options.
    const auto with = [&](const char* name, const char* value) {
      Labels labels = options.labels;
      labels.push_back({name, value});
      return labels;
    };
    struct Wanted {
      const char *name, *help;
      Gauge** gauge;
    };
    for (const auto& [name, help, gauge] :
         {Wanted{"num_requests_running", "Requests that are computed.", &m.num_requests_running},
          Wanted{"num_requests_waiting", "Requests that wait.", &m.num_requests_waiting},
          Wanted{"kv_cache_usage_perc", "Part of the key-value cache in use, 1 is all.",
                 &m.kv_cache_usage_perc},
          Wanted{"models_loaded", "Models in memory: that serves, and those that are drained.",
                 &m.models_loaded},
          Wanted{"model_bytes", "Bytes of these models and what they compute in.", &m.model_bytes},
          Wanted{"temperature_celsius", "The highest temperature of the machine.", &m.temperature},
          Wanted{"battery_ratio", "Charge of the battery, 1 is full.", &m.battery}}) {
      NIBBLE_TRY(made, registry.gauge(options.prefix + name, help, options.labels));
      *gauge = made;
    }
    NIBBLE_TRY(resident, registry.gauge("process_resident_memory_bytes",
                                        "Resident memory size in bytes.", options.labels));
    m.resident_memory = resident;

    struct WantedCounter {
      const char *name, *help;
      Counter** counter;
      const char *label = nullptr, *value = nullptr;
      double unit = 1;
    };
    const char* const success = "Requests that have ended.";
    const char* const switched = "Changes of the model that serves.";
    for (const auto& [name, help, counter, label, value, unit] :
         {WantedCounter{"prefix_cache_queries_total", "Prompt tokens looked up in prefixes.",
                        &m.prefix_cache_queries},
          WantedCounter{"prefix_cache_hits_total", "Prompt tokens found in prefixes.",
                        &m.prefix_cache_hits},
          WantedCounter{"prompt_tokens_total", "Tokens of prompts.", &m.prompt_tokens},
          WantedCounter{"generation_tokens_total", "Tokens generated.", &m.generation_tokens},
          WantedCounter{"request_success_total", success, &m.finished_stop, "finished_reason",
                        "stop"},
          WantedCounter{"request_success_total", success, &m.finished_length, "finished_reason",
                        "length"},
          WantedCounter{"request_success_total", success, &m.finished_abort, "finished_reason",
                        "abort"},
          WantedCounter{"request_success_total", success, &m.finished_error, "finished_reason",
                        "error"},
          WantedCounter{"local_requests_total", "Requests answered here.", &m.local_requests},
          WantedCounter{"fallback_requests_total", "Requests that went to another model.",
                        &m.fallback_requests},
          WantedCounter{"model_switches_total", switched, &m.switches, "result", "done"},
          WantedCounter{"model_switches_total", switched, &m.failed_switches, "result", "failed"},
          WantedCounter{"energy_joules_total", "Energy that the processors took.", &m.energy,
                        nullptr, nullptr, 1e-6}}) {
      NIBBLE_TRY(made,
                 registry.counter(options.prefix + name, help,
                                  label == nullptr ? options.labels : with(label, value), unit));
      *counter = made;
    }
    for (std::size_t i = 0; i < kErrors; ++i) {
      NIBBLE_TRY(made, registry.counter(options.prefix + "request_errors_total",
                                        "Requests that were refused.",
                                        with("code", to_string(static_cast<Errc>(i)))));
      m.errors[i] = made;
    }

    struct WantedHistogram {
      const char *name, *help;
      Histogram** histogram;
      std::span<const double> bounds;
    };
    for (const auto& [name, help, histogram, bounds] :
         {WantedHistogram{"time_to_first_token_seconds", "From the request to its first token.",
                          &m.time_to_first_token, kFirstTokenBounds},
          WantedHistogram{"inter_token_latency_seconds", "Between the tokens of a request.",
                          &m.inter_token_latency, kInterTokenBounds},
          WantedHistogram{"e2e_request_latency_seconds", "From the request to its end.",
                          &m.e2e_request_latency, kRequestBounds},
          WantedHistogram{"request_prompt_tokens", "Tokens of a request's prompt.",
                          &m.request_prompt_tokens, kTokenCountBounds},
          WantedHistogram{"request_generation_tokens", "Tokens generated for a request.",
                          &m.request_generation_tokens, kTokenCountBounds},
          WantedHistogram{"model_load_seconds", "From loading a model to its serving.",
                          &m.model_load, kLoadBounds}}) {
      NIBBLE_TRY(made, registry.histogram(options.prefix + name, help, bounds, options.labels));
      *histogram = made;
    }
    return m;
  });
}

NIBBLE_INLINE Result<AdapterMetrics> ServingMetrics::of_adapter(std::string_view name) const {
  return catch_out_of_memory([&]() -> Result<AdapterMetrics> {
    Labels labels = options.labels;
    labels.push_back({"adapter", std::string(name)});
    AdapterMetrics m;
    struct Wanted {
      const char *name, *help;
      Counter** counter;
    };
    for (const auto& [counted, help, counter] :
         {Wanted{"adapter_requests_total", "Requests of an adapter.", &m.requests},
          Wanted{"adapter_prompt_tokens_total", "Tokens of their prompts.", &m.prompt_tokens},
          Wanted{"adapter_generation_tokens_total", "Tokens generated for them.",
                 &m.generation_tokens}}) {
      NIBBLE_TRY(made, registry->counter(options.prefix + counted, help, labels));
      *counter = made;
    }
    return m;
  });
}

NIBBLE_INLINE Counter* ServingMetrics::finished(Finish why) const noexcept {
  switch (why) {
    case Finish::end_of_text:
    case Finish::stop_string:
    case Finish::stop_token:
    case Finish::grammar_end: return finished_stop;
    case Finish::max_tokens:
    case Finish::context_full: return finished_length;
    case Finish::failed: return finished_error;
    case Finish::none:
    case Finish::cancelled:
    case Finish::time_limit: break;
  }
  return finished_abort;
}

NIBBLE_INLINE void RequestRecorder::operator()(const Token& token) noexcept {
  const std::int64_t now = (*now_)();
  const auto seconds_since = [now](std::int64_t then) {
    return static_cast<double>(now - then) * 1e-9;
  };
  if (token.id >= 0) {
    (n_tokens_ == 0 ? metrics_->time_to_first_token : metrics_->inter_token_latency)
        ->observe(seconds_since(last_));
    metrics_->generation_tokens->add();
    ++n_tokens_;
    last_ = now;
  }
  if (token.finish == Finish::none) return;
  metrics_->e2e_request_latency->observe(seconds_since(start_));
  metrics_->request_generation_tokens->observe(static_cast<double>(n_tokens_));
  metrics_->finished(token.finish)->add();
}

}}}  // namespace nibble::NIBBLE_ABI::serve
