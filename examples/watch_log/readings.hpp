// SPDX-License-Identifier: Apache-2.0
//
// Lines of sensors, and what is usual for them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdio>
#include <sstream>
#include <string>
#include <string_view>

#include "../common.hpp"
#include "../home_commands/grammar.hpp"
#include "nibble/core/result.hpp"

namespace example::watch {

// A line: time, room, quantity and value, with spaces between: "06:00 living_room humidity 28".
struct Reading {
  std::string time, room, quantity;
  double value = 0;

  std::string sensor() const { return room + " " + quantity; }
};

// What is usual of a quantity, and what one would say at home where it is not: a command that the
// model which ships with nibble knows, for a {room}.
struct Usual {
  std::string_view quantity, unit;
  double low, high;
  std::string_view said_low, said_high;
};
inline constexpr std::array kUsual = {
    Usual{"temperature", "C", 16, 26, "heat the {room} to 20 degrees",
          "cool the {room} down to 24 degrees"},
    Usual{"humidity", "%", 30, 65, "turn on the humidifier in the {room}",
          "turn on the fan in the {room}"}};

// Null for a quantity of which nothing is known.
inline const Usual* usual_of(const Reading& reading) {
  for (const Usual& usual : kUsual)
    if (usual.quantity == reading.quantity) return &usual;
  return nullptr;
}

// Errors: malformed.
inline nibble::Result<Reading> reading_of(const std::string& line) {
  std::istringstream words(line);
  Reading reading;
  std::string value, more;
  words >> reading.time >> reading.room >> reading.quantity >> value;
  const bool has_more = static_cast<bool>(words >> more);
  if (value.empty() || has_more || !is_number(value).empty() ||
      !CLI::detail::lexical_cast(value, reading.value)) {
    return nibble::Error{nibble::Errc::malformed,
                         "it is not of the form TIME ROOM QUANTITY NUMBER"};
  }
  for (const std::string* name : {&reading.time, &reading.room, &reading.quantity}) {
    if (nibble::printable(*name) == *name && name->size() <= 64) continue;
    return nibble::Error{nibble::Errc::malformed,
                         "a name of more than 64 characters, or with others "
                         "than letters"};
  }
  return reading;
}

// A number as people write it: 31.5, 24.
inline std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

// The room as it is said, if the home has it; else empty.
inline std::string said_room(const std::string& room) {
  for (const home::Text name : home::kRooms)
    if (home::key(name) == room) return std::string(name);
  return "";
}

}  // namespace example::watch
