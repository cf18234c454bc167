// SPDX-License-Identifier: Apache-2.0
//
// What a server of models counts and measures. The names are those of vLLM, behind a prefix, as far
// as it has them, so that gateways and dashboards find what they know.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "nibble/core/callback.hpp"
#include "nibble/core/native_thread.hpp"
#include "nibble/core/result.hpp"
#include "nibble/generate/generator.hpp"
#include "nibble/serve/metrics.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

// Bounds of latencies, in seconds. They are those of vLLM (vllm/v1/metrics/loggers.py) and finer
// ones below them, since small models are faster.
NIBBLE_HIDDEN inline constexpr double kFirstTokenBounds[] = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,   0.25,  0.5,
    0.75,   1.0,   2.5,    5.0,   7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0};
NIBBLE_HIDDEN inline constexpr double kInterTokenBounds[] = {
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,  0.15, 0.2,
    0.3,    0.4,     0.5,    0.75,  1.0,    2.5,   5.0,  7.5,   10.0, 20.0,  40.0, 80.0};
NIBBLE_HIDDEN inline constexpr double kRequestBounds[] = {
    0.005, 0.01, 0.025, 0.05, 0.1,  0.2,  0.3,  0.5,   0.8,   1.0,   1.5,   2.0,    2.5,   5.0,
    10.0,  15.0, 20.0,  30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
NIBBLE_HIDDEN inline constexpr double kTokenCountBounds[] = {
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
// Of loading a model.
NIBBLE_HIDDEN inline constexpr double kLoadBounds[] = {0.01, 0.025, 0.05, 0.1,  0.25, 0.5,  1.0,
                                                       2.5,  5.0,   10.0, 25.0, 50.0, 100.0};

struct ServingMetricsOptions {
  // In front of each name, but for process_resident_memory_bytes. vLLM has "vllm:"; a checker of
  // Prometheus' conventions (promtool) wants no colon.
  std::string prefix = "nibble_";
  Labels labels = {};  // of each metric, for example {{"model_name", "home"}}
};

// Of the requests that name one adapter.
struct AdapterMetrics {
  Counter *requests = nullptr, *prompt_tokens = nullptr, *generation_tokens = nullptr;
};

// Metrics of a registry, which must outlive this. Changing them takes no lock and no memory.
struct ServingMetrics {
  // Makes them. Errors: those of Registry.
  static Result<ServingMetrics> create(Registry& registry,
                                       const ServingMetricsOptions& options = {});

  // Of vLLM.
  Gauge *num_requests_running = nullptr, *num_requests_waiting = nullptr;
  Gauge* kv_cache_usage_perc = nullptr;                                   // from 0 to 1
  Counter *prefix_cache_queries = nullptr, *prefix_cache_hits = nullptr;  // tokens
  Counter *prompt_tokens = nullptr, *generation_tokens = nullptr;
  Histogram *time_to_first_token = nullptr, *inter_token_latency = nullptr;  // seconds
  Histogram* e2e_request_latency = nullptr;
  Histogram *request_prompt_tokens = nullptr, *request_generation_tokens = nullptr;
  // request_success_total by finished_reason.
  Counter *finished_stop = nullptr, *finished_length = nullptr, *finished_abort = nullptr,
          *finished_error = nullptr;

  // Ours. Requests that were refused, by what the Error is.
  static constexpr std::size_t kErrors = static_cast<std::size_t>(Errc::cancelled) + 1;
  Counter* errors[kErrors] = {};  // request_errors_total by code
  // Requests that were answered here, and that went elsewhere: to a larger model, a remote one.
  Counter *local_requests = nullptr, *fallback_requests = nullptr;
  Counter *switches = nullptr, *failed_switches = nullptr;  // model_switches_total by result
  Histogram* model_load = nullptr;                          // seconds until it serves
  Gauge *models_loaded = nullptr, *model_bytes = nullptr;   // weights of those, working memory
  // Of the host (see host_readings.hpp), as far as it has such sensors.
  Gauge *resident_memory = nullptr, *temperature = nullptr, *battery = nullptr;
  Counter* energy = nullptr;  // in microjoules

  // adapter_requests_total, adapter_prompt_tokens_total, adapter_generation_tokens_total with the
  // label `adapter`, which are made when they are asked for first. Errors: those of Registry.
  Result<AdapterMetrics> of_adapter(std::string_view name) const;

  Counter* finished(Finish why) const noexcept;
  Counter* error(Errc code) const noexcept { return errors[static_cast<std::size_t>(code)]; }

  Registry* registry = nullptr;
  ServingMetricsOptions options = {};
};

// Records one request, as GenerateRequest::observer: when its tokens come, and how it ends.
class RequestRecorder {
 public:
  // `now` gives nanoseconds and must, as the metrics, outlive the request's last token.
  RequestRecorder(const ServingMetrics& metrics, const Callback<std::int64_t()>& now)
      : metrics_(&metrics), now_(&now), start_(now()), last_(start_) {}

  void operator()(const Token& token) noexcept;

 private:
  const ServingMetrics* metrics_;
  const Callback<std::int64_t()>* now_;
  std::int64_t start_, last_;  // when it was made; when the last token came
  std::uint64_t n_tokens_ = 0;
};

}}}  // namespace nibble::NIBBLE_ABI::serve

#if !NIBBLE_DECLARATIONS_ONLY
#include "nibble/serve/serving_metrics-inl.hpp"
#endif
