// SPDX-License-Identifier: Apache-2.0
//
// Errors as clients of the OpenAI API read them.
#pragma once

#include <string>
#include <utility>
#include <variant>

#include "json_out.hpp"
#include "nibble/core/result.hpp"

namespace example::server {

struct ApiError {
  int status = 500;
  const char* type = "server_error";
  const char* code = nullptr;
  std::string message;

  Json json() const {
    return Json::object(
        {{"error", Json::object({{"message", message},
                                 {"type", type},
                                 {"param", Json::null()},
                                 {"code", code == nullptr ? Json::null() : Json(code)}})}});
  }

  // What the client has sent cannot be done.
  static ApiError bad_request(const nibble::Error& error) {
    if (error.code == nibble::Errc::out_of_memory) return internal(error.message);
    const bool is_missing = error.code == nibble::Errc::not_found;
    return {is_missing ? 404 : 400, "invalid_request_error", is_missing ? "not_found" : nullptr,
            error.message};
  }
  // A request that could be answered at another time.
  static ApiError unavailable(const nibble::Error& error) {
    const bool is_loading = error.code == nibble::Errc::not_found;
    return {503, "unavailable_error", is_loading ? "loading" : "shutting_down",
            is_loading ? "the model is being loaded" : error.message};
  }
  // A request that the model did not take.
  static ApiError refused(const nibble::Error& error) {
    switch (error.code) {
      case nibble::Errc::limit: return {429, "rate_limit_error", "queue_full", error.message};
      case nibble::Errc::cancelled: return unavailable(error);
      default: return bad_request(error);
    }
  }
  static ApiError internal(std::string message) {
    return {500, "server_error", nullptr, std::move(message)};
  }
};

template <class T>
class ApiResult {
 public:
  ApiResult(T value) : value_(std::in_place_index<0>, std::move(value)) {}         // NOLINT
  ApiResult(ApiError error) : value_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  explicit operator bool() const { return value_.index() == 0; }
  T& operator*() { return std::get<0>(value_); }
  T* operator->() { return &std::get<0>(value_); }
  const ApiError& error() const { return std::get<1>(value_); }

 private:
  std::variant<T, ApiError> value_;
};

}  // namespace example::server
