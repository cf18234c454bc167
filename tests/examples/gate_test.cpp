// SPDX-License-Identifier: Apache-2.0
//
// The baseline and the reports of a gate.
#include "examples/gate/report.hpp"

#include <limits>
#include <string>
#include <vector>

#include "doctest/doctest.h"

namespace gate_test {

using namespace example::gate;

namespace {

std::vector<Limit> limits_of(const char* text) {
  auto limits = parse_baseline(text);
  REQUIRE_MESSAGE(limits, (limits ? std::string() : limits.error().message));
  return *std::move(limits);
}
Measured found(const char* name, double value) { return {find_metric(name), value}; }

}  // namespace

TEST_CASE("gate: a figure may be worse by its tolerances, and no more") {
  const auto limits = limits_of(R"({"model": "m", "metrics": {
      "exact_match": {"value": 0.5, "absolute": 0.25},
      "answer_ms_p95": {"value": 40, "relative": 0.25, "absolute": 2},
      "file_bytes": {"value": 1000}}})");
  REQUIRE(limits.size() == 3);
  CHECK(limits[0].bound() == 0.25);
  CHECK(limits[1].bound() == 52);
  CHECK(limits[2].bound() == 1000);
  const auto passes = [&](double exact, double ms, double bytes) {
    const auto checks = compare(limits, {found("exact_match", exact), found("answer_ms_p95", ms),
                                         found("file_bytes", bytes), found("bleu", 0)});
    std::string text;
    for (const Check& check : checks) text += check.has_passed ? '+' : '-';
    return text;
  };
  CHECK(passes(0.25, 52, 1000) == "+++");
  CHECK(passes(1, 1, 1) == "+++");
  CHECK(passes(0.2499, 52, 1000) == "-++");
  CHECK(passes(0.25, 52.01, 1000) == "+-+");
  CHECK(passes(0.25, 52, 1001) == "++-");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(passes(nan, nan, nan) == "---");
  CHECK(passes(infinity, -infinity, 1) == "--+");
  // What was not measured does not pass.
  CHECK(n_failed(compare(limits, {found("exact_match", 1)})) == 2);
  CHECK(n_failed(compare(limits, {})) == 3);
  CHECK(n_failed({}) == 0);
}

TEST_CASE("gate: baselines that are wrong are refused") {
  for (const char* const text :
       {"", "7", "{}", R"({"metrics": []})", R"({"metrics": {}})",
        R"({"metrics": {"exakt_match": {"value": 1}}})", R"({"metrics": {"bleu": 1}})",
        R"({"metrics": {"bleu": {}}})", R"({"metrics": {"bleu": {"value": "1"}}})",
        R"({"metrics": {"bleu": {"value": 1, "tolerance": 1}}})",
        R"({"metrics": {"bleu": {"value": 1, "absolute": -1}}})",
        R"({"metrics": {"bleu": {"value": 1, "relative": -0.1}}})",
        R"({"metrics": {"bleu": {"value": 1}, "bleu": {"value": 0}}})"}) {
    CAPTURE(text);
    const auto limits = parse_baseline(text);
    REQUIRE(!limits);
    CHECK(limits.error().code == nibble::Errc::malformed);
  }
}

TEST_CASE("gate: a baseline of what was measured passes itself") {
  std::vector<Measured> measured;
  double value = 0.123456789012345;
  for (const Metric& metric : kMetrics) measured.push_back({&metric, value *= 3});
  const auto limits = limits_of(baseline_text(measured).c_str());
  REQUIRE(limits.size() == measured.size());
  for (std::size_t i = 0; i < limits.size(); ++i) {
    CHECK(limits[i].metric == measured[i].metric);
    CHECK(limits[i].value == doctest::Approx(measured[i].value).epsilon(1e-15));
    CHECK(limits[i].relative == measured[i].metric->relative);
    CHECK(limits[i].absolute == measured[i].metric->absolute);
  }
  CHECK(n_failed(compare(limits, measured)) == 0);
  // Without tolerances, too: numbers with more digits than a file of text keeps.
  std::vector<Limit> strict = limits;
  for (Limit& limit : strict) limit.relative = limit.absolute = 0;
  CHECK(n_failed(compare(strict, measured)) == 0);
}

TEST_CASE("gate: reports, by the letter") {
  const auto limits = limits_of(R"({"metrics": {"exact_match": {"value": 0.9, "absolute": 0.005},
      "bleu": {"value": 0.5}, "file_bytes": {"value": 1000}}})");
  const std::vector<Measured> measured = {found("file_bytes", 999), found("exact_match", 0.89),
                                          found("f1", 0.25)};
  const auto checks = compare(limits, measured);
  CHECK(report_text(checks, measured) ==
        "FAILED exact_match          0.89, must be at least 0.895 (baseline 0.9)\n"
        "FAILED bleu                 not measured, must be at least 0.5 (baseline 0.5)\n"
        "ok     file_bytes           999, must be at most 1000 (baseline 1000)\n"
        "       f1                   0.25\n"
        "failed: 2 of 3 metrics\n");
  CHECK(report_text({}, {found("f1", 0.25)}) == "       f1                   0.25\n");
  CHECK(report_text({checks[2]}, {}).ends_with("\npassed: 1 metrics\n"));
  CHECK(report_json("a\"b", checks, measured) ==
        "{\"model\": \"a\\\"b\", \"passed\": false, \"measured\": {\"file_bytes\": 999.0, "
        "\"exact_match\": 0.89, \"f1\": 0.25}, \"checks\": ["
        "{\"metric\": \"exact_match\", \"value\": 0.89, \"baseline\": 0.9, \"bound\": 0.895, "
        "\"passed\": false}, "
        "{\"metric\": \"bleu\", \"value\": null, \"baseline\": 0.5, \"bound\": 0.5, "
        "\"passed\": false}, "
        "{\"metric\": \"file_bytes\", \"value\": 999.0, \"baseline\": 1000.0, \"bound\": 1000.0, "
        "\"passed\": true}]}\n");
  CHECK(
      report_junit("<a&\"b\">\x01", checks) ==
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n"
      "<testsuite name=\"&lt;a&amp;&quot;b&quot;&gt;?\" tests=\"3\" failures=\"2\" errors=\"0\">\n"
      "  <testcase classname=\"&lt;a&amp;&quot;b&quot;&gt;?\" name=\"exact_match\"><failure "
      "message=\"0.89, must be at least 0.895 (baseline 0.9)\"/></testcase>\n"
      "  <testcase classname=\"&lt;a&amp;&quot;b&quot;&gt;?\" name=\"bleu\"><failure "
      "message=\"not measured, must be at least 0.5 (baseline 0.5)\"/></testcase>\n"
      "  <testcase classname=\"&lt;a&amp;&quot;b&quot;&gt;?\" name=\"file_bytes\"/>\n"
      "</testsuite>\n");
}

TEST_CASE("percentiles: the nearest rank") {
  CHECK(percentile({}, 0.5) == 0);
  CHECK(percentile({7}, 0) == 7);
  CHECK(percentile({7}, 1) == 7);
  CHECK(percentile({15, 20, 35, 40, 50}, 0.05) == 15);
  CHECK(percentile({50, 15, 20, 40, 35}, 0.3) == 20);
  CHECK(percentile({15, 20, 35, 40, 50}, 0.4) == 20);
  CHECK(percentile({15, 20, 35, 40, 50}, 0.5) == 35);
  CHECK(percentile({15, 20, 35, 40, 50}, 1) == 50);
}

}  // namespace gate_test
