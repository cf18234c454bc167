// SPDX-License-Identifier: Apache-2.0
//
// Bytes as text: hexadecimal, base64 (RFC 4648) and PEM (RFC 7468).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/core/result.hpp"
#include "nibble/serve/crypto.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace serve {

inline std::span<const std::byte> bytes_of(std::string_view text) noexcept {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}
inline std::string_view text_of(std::span<const std::byte> bytes) noexcept {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// In lower case.
inline std::string to_hex(std::span<const std::byte> bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const std::byte b : bytes) {
    const auto value = static_cast<unsigned>(b);
    out.push_back("0123456789abcdef"[value >> 4]);
    out.push_back("0123456789abcdef"[value & 15]);
  }
  return out;
}

// The reverse of to_hex: 64 digits in lower case. Error: malformed.
inline Result<Digest> digest_from_hex(std::string_view text) {
  Digest digest{};
  const auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  bool is_good = text.size() == 2 * digest.size();
  for (std::size_t i = 0; is_good && i < digest.size(); ++i) {
    const int high = digit(text[2 * i]);
    const int low = digit(text[2 * i + 1]);
    is_good = high >= 0 && low >= 0;
    digest[i] = static_cast<std::byte>(high * 16 + low);
  }
  if (!is_good) return Error{Errc::malformed, "not the 64 lower-case hexadecimal digits of SHA-256"};
  return digest;
}

inline std::string to_base64(std::span<const std::byte> bytes) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (; !bytes.empty(); bytes = bytes.subspan(bytes.size() < 3 ? bytes.size() : 3)) {
    std::uint32_t group = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      group = group << 8 | (i < bytes.size() ? static_cast<std::uint32_t>(bytes[i]) : 0u);
    }
    for (std::size_t i = 0; i < 4; ++i) {
      out.push_back(i <= bytes.size() ? digits[group >> (18 - 6 * i) & 63] : '=');
    }
  }
  return out;
}

// The reverse of to_base64. `skips_lines`: line ends between the digits mean nothing. Error:
// malformed (also bits behind the end, and a padding that is missing: bytes have one form).
inline Result<std::vector<std::byte>> from_base64(std::string_view text, bool skips_lines = false) {
  std::vector<std::byte> out;
  out.reserve(text.size() / 4 * 3);
  const auto value_of = [](char c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
  };
  const auto bad = [] { return Error{Errc::malformed, "text that is not base64"}; };
  std::uint32_t group = 0;
  int n_digits = 0;
  int n_padding = 0;
  for (const char c : text) {
    if (skips_lines && (c == '\n' || c == '\r')) continue;
    if (n_digits == 4 && n_padding != 0) return bad();  // more behind the last group
    if (n_digits == 4) n_digits = 0;
    const int value = value_of(c);
    if (c == '=' && n_digits >= 2) {
      ++n_padding;
    } else if (value < 0 || n_padding != 0) {
      return bad();
    }
    group = group << 6 | static_cast<std::uint32_t>(value < 0 ? 0 : value);
    if (++n_digits < 4) continue;
    if ((n_padding == 2 && (group & 0xFFFF) != 0) || (n_padding == 1 && (group & 0xFF) != 0)) {
      return bad();
    }
    for (int i = 0; i < 3 - n_padding; ++i) {
      out.push_back(static_cast<std::byte>(group >> (16 - 8 * i) & 255));
    }
    group = 0;
  }
  if (n_digits % 4 != 0) return bad();
  return out;
}

// The bytes between "-----BEGIN <label>-----" and its end. Error: malformed.
inline Result<std::vector<std::byte>> from_pem(std::string_view text, const std::string& label) {
  const std::string begin = "-----BEGIN " + label + "-----";
  const std::string end = "-----END " + label + "-----";
  const std::size_t first = text.find(begin);
  const std::size_t last = text.find(end);
  if (first == std::string_view::npos || last == std::string_view::npos ||
      last < first + begin.size()) {
    return Error{Errc::malformed, "no PEM text with \"" + begin + "\" and its end"};
  }
  return from_base64(text.substr(first + begin.size(), last - first - begin.size()), true);
}

// With lines of 64 digits.
inline std::string to_pem(std::span<const std::byte> bytes, const std::string& label) {
  std::string out = "-----BEGIN " + label + "-----\n";
  const std::string digits = to_base64(bytes);
  for (std::size_t at = 0; at < digits.size(); at += 64) {
    out.append(digits, at, 64);
    out.push_back('\n');
  }
  return out + "-----END " + label + "-----\n";
}

}}}  // namespace nibble::NIBBLE_ABI::serve
