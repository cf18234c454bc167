// SPDX-License-Identifier: Apache-2.0
//
// CLI11's code, compiled once for all programs (CLI11_COMPILE), where CLI11 is 2.3 or newer.
#include <CLI/CLI.hpp>
// The rest is not included by the header above.
#include <CLI/impl/App_inl.hpp>
#include <CLI/impl/Argv_inl.hpp>
#include <CLI/impl/Config_inl.hpp>
#include <CLI/impl/Encoding_inl.hpp>
#include <CLI/impl/Formatter_inl.hpp>
#include <CLI/impl/Option_inl.hpp>
#include <CLI/impl/Split_inl.hpp>
#include <CLI/impl/StringTools_inl.hpp>
#include <CLI/impl/Validators_inl.hpp>
#if __has_include(<CLI/impl/ExtraValidators_inl.hpp>)  // of newer ones
#include <CLI/impl/ExtraValidators_inl.hpp>
#endif
