// SPDX-License-Identifier: Apache-2.0
//
// Of 40 blocks of random bytes: what the Python package gguf dequantizes. Made
// by make_read_only.py.
#pragma once

#include <array>
#include <cstdint>

#include "nibble/io/ggml_type.hpp"

namespace test {

struct ReadOnlyGolden {
  nibble::io::GgmlType type;
  std::array<int, 2> scales;  // their offsets in a block
  std::uint64_t hash;         // FNV-1a of all weights' bytes
  float first[4];
};

inline constexpr int kGoldenBlocks = 40;
inline constexpr ReadOnlyGolden kReadOnlyGoldens[] = {
    {nibble::io::GgmlType::q2_k,
     {80, 82},
     0x6f4327dcf28b05b3u,
     {0x1.05a4400000000p+2f, 0x1.05a4400000000p+2f, 0x1.065d800000000p+2f, 0x1.05a4400000000p+2f}},
    {nibble::io::GgmlType::q3_k,
     {108, -1},
     0xdc819cd27f4d43d2u,
     {0x0.0p+0f, -0x1.d600000000000p-6f, 0x1.6080000000000p-6f, -0x1.d600000000000p-7f}},
    {nibble::io::GgmlType::iq1_s,
     {0, -1},
     0x30a2fe2e578c1909u,
     {-0x1.9a36000000000p-5f, 0x1.d4d0000000000p-8f, 0x1.d4d0000000000p-8f,
      -0x1.9a36000000000p-5f}},
    {nibble::io::GgmlType::iq1_m,
     {54, -1},
     0xf0464b3dd18493a6u,
     {0x1.7140000000000p-11f, 0x1.9f68000000000p-8f, 0x1.7140000000000p-11f,
      0x1.7140000000000p-11f}},
    {nibble::io::GgmlType::iq2_xxs,
     {0, -1},
     0xd7b451d060ca7ff5u,
     {0x1.4c73c00000000p-8f, -0x1.8292800000000p-9f, -0x1.eed0000000000p-11f,
      0x1.8292800000000p-9f}},
    {nibble::io::GgmlType::iq2_xs,
     {0, -1},
     0x3b545efaf7cbe343u,
     {-0x1.98c0000000000p-12f, -0x1.12a1000000000p-9f, -0x1.98c0000000000p-12f,
      -0x1.3f56000000000p-10f}},
    {nibble::io::GgmlType::iq2_s,
     {0, -1},
     0xb0e32f080ab3ad9fu,
     {0x1.8f34000000000p-5f, -0x1.8f34000000000p-5f, 0x1.37e0a00000000p-3f,
      -0x1.8f34000000000p-5f}},
    {nibble::io::GgmlType::iq3_xxs,
     {0, -1},
     0x50847d71d9b3234eu,
     {-0x1.15a7000000000p-5f, 0x1.7234000000000p-7f, -0x1.7234000000000p-7f,
      0x1.15a7000000000p-5f}},
    {nibble::io::GgmlType::iq3_s,
     {0, -1},
     0x69c395668de38235u,
     {-0x1.2bbe000000000p-5f, 0x1.5db3000000000p-4f, -0x1.2bbe000000000p-5f,
      -0x1.8fa8000000000p-7f}},
    {nibble::io::GgmlType::iq4_nl,
     {0, -1},
     0x46284747367716a4u,
     {-0x1.af22000000000p-3f, -0x1.1343000000000p-2f, -0x1.23d8000000000p-4f,
      -0x1.4502000000000p-3f}},
    {nibble::io::GgmlType::iq4_xs,
     {0, -1},
     0xc829215428d06124u,
     {0x1.4e5a080000000p+9f, 0x1.563ff00000000p+8f, -0x1.1710b00000000p+8f,
      -0x1.902b400000000p+7f}},
    {nibble::io::GgmlType::tq1_0,
     {52, -1},
     0x76896f453ba25d1eu,
     {0x0.0p+0f, -0x1.bf80000000000p-12f, 0x0.0p+0f, 0x0.0p+0f}},
    {nibble::io::GgmlType::tq2_0,
     {64, -1},
     0x4ee5a1a69838b253u,
     {0x1.2600000000000p-2f, 0x1.2600000000000p-2f, 0x1.2600000000000p-2f, 0x1.2600000000000p-2f}},
    {nibble::io::GgmlType::mxfp4,
     {-1, -1},
     0x96d3f1cc281fe5a3u,
     {0x0.0p+0f, 0x1.8000000000000p-120f, -0x1.0000000000000p-122f, 0x1.8000000000000p-122f}},
    {nibble::io::GgmlType::nvfp4,
     {-1, -1},
     0x783b2aa5858e2ab3u,
     {0x1.a000000000000p-2f, 0x1.a000000000000p-4f, 0x1.a000000000000p-4f, -0x1.3800000000000p+0f}},
};

// Of rows that levels_test.cpp makes in the same way.
inline constexpr std::uint64_t kQuantizedMxfp4 = 0x53625f524671bc7du;

}  // namespace test
