// SPDX-License-Identifier: Apache-2.0
//
// What can be asked of a home, as intents with typed slots: the calls of grammar.hpp.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "grammar.hpp"
#include "nibble/grammar/intents.hpp"
#include "words.hpp"

namespace example::home {

using nibble::grammar::Slot;
using nibble::grammar::SlotKind;

inline Slot choice_slot(std::string name, std::span<const Text> texts) {
  Slot slot{.name = std::move(name)};
  for (const Text text : texts) slot.choices.push_back(key(text));
  return slot;
}
inline Slot number_slot(std::string name, std::int64_t min, std::int64_t max) {
  return {.name = std::move(name), .kind = SlotKind::integer, .min = min, .max = max};
}
inline Slot room_slot() { return choice_slot("room", kRooms); }

inline std::vector<nibble::grammar::Intent> intents() {
  const Slot room = room_slot(), day = choice_slot("day", kDays);
  const Slot device = choice_slot("name", kDevices);
  Slot items = choice_slot("items", kItems);
  items.max_items = 8;
  Slot time{.name = "time"};
  for (int minutes = 0; minutes < 24 * 60; minutes += 15) {
    time.choices.push_back(two_digits(minutes / 60) + ":" + two_digits(minutes % 60));
  }
  std::vector<Slot> units;
  for (const Text unit : kUnits) {
    units.push_back(number_slot(std::string(unit), 1, 59));
    units.back().is_optional = true;
  }
  const Slot task{.name = "task", .kind = SlotKind::word, .max_length = 40};
  return {{"light.set", {room, number_slot("level", 0, 100)}},
          {"light.on", {room}},
          {"light.off", {room}},
          {"light.color", {room, choice_slot("color", kColors)}},
          {"climate.set", {room, number_slot("degrees", 12, 30)}},
          {"timer.start", std::move(units)},
          {"alarm.set", {std::move(time), day}},
          {"music.play", {choice_slot("genre", kGenres), room}},
          {"music.volume", {number_slot("level", 0, 100)}},
          {"list.add", {std::move(items)}},
          {"remind", {task, day}},
          {"blinds.set", {room, number_slot("open", 0, 100)}},
          {"device.on", {device, room}},
          {"device.off", {device, room}},
          {"scene.start", {choice_slot("name", kScenes)}},
          {"none"}};
}

}  // namespace example::home
