// SPDX-License-Identifier: Apache-2.0
//
// The words of the home commands: what can be asked for, and in which wordings. grammar.hpp draws
// from them. The order of the entries is part of the data: a seed means the commands that it means
// because of it.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace example::home {

using Text = std::string_view;

inline constexpr Text kRooms[] = {"kitchen",     "bedroom",  "bathroom",    "hallway",
                                  "living room", "office",   "garage",      "nursery",
                                  "attic",       "basement", "dining room", "garden"};
inline constexpr Text kColors[] = {"red",    "blue",   "green",  "white",
                                   "yellow", "purple", "orange", "pink"};
inline constexpr Text kScenes[] = {"movie night", "good morning", "dinner",  "reading",
                                   "party",       "away",         "bedtime", "focus"};
inline constexpr Text kGenres[] = {"jazz",  "rock",    "classical", "pop",
                                   "blues", "ambient", "folk",      "techno"};
inline constexpr Text kItems[] = {"milk",      "eggs",  "bread",  "apples",  "coffee", "rice",
                                  "batteries", "soap",  "butter", "cheese",  "onions", "tea",
                                  "pasta",     "sugar", "salt",   "tomatoes"};
inline constexpr Text kTasks[] = {
    "water the plants", "take out the trash", "feed the cat", "call mom",      "walk the dog",
    "check the oven",   "do the laundry",     "pay the rent", "lock the door", "take my pills"};
inline constexpr Text kDays[] = {"today",    "tomorrow", "monday",   "tuesday", "wednesday",
                                 "thursday", "friday",   "saturday", "sunday"};
inline constexpr Text kDevices[] = {"fan", "heater",     "kettle",     "coffee maker",
                                    "tv",  "humidifier", "dishwasher", "printer"};
inline constexpr Text kUnits[] = {"minutes", "seconds", "hours"};
inline constexpr Text kUnknown[] = {"the meaning of life",
                                    "who won the game",
                                    "a good joke",
                                    "how tall is the moon",
                                    "what my neighbor is cooking",
                                    "the price of gold",
                                    "how to fly",
                                    "your favorite color",
                                    "why cats purr",
                                    "the capital of the sea"};

// What may come before and after a wording. One that is there several times is that much likelier.
inline constexpr Text kOpeners[] = {
    "",    "",           "",    "please ", "hey ",  "can you ", "could you please ",
    "ok ", "would you ", "um ", "now ",    "hello "};
inline constexpr Text kClosers[] = {
    "", "", "", "", " please", " now", " thanks", " right away", " for me", " if you can"};

// Wordings of each intent. {names} are filled in with what is drawn.
inline constexpr Text kLightLevel[] = {"set the {room} lights to {n} percent",
                                       "dim the {room} light to {n} percent",
                                       "{room} lights at {n} percent",
                                       "make the {room} {n} percent bright",
                                       "bring the lights in the {room} to {n} percent",
                                       "i want {n} percent light in the {room}",
                                       "change the {room} brightness to {n}",
                                       "lights in the {room} to {n}"};
inline constexpr Text kLightSwitch[] = {"turn {s} the {room} lights",
                                        "turn the {room} light {s}",
                                        "switch {s} the lights in the {room}",
                                        "{room} lights {s}",
                                        "lights {s} in the {room}",
                                        "switch the {room} lamp {s}",
                                        "i need the {room} lights {s}"};
inline constexpr Text kLightColor[] = {
    "make the {room} lights {c}",          "turn the {room} {c}",
    "change the {room} light to {c}",      "{c} light in the {room}",
    "set the lights in the {room} to {c}", "i want the {room} in {c}"};
inline constexpr Text kClimate[] = {"set the {room} to {n} degrees",
                                    "make it {n} degrees in the {room}",
                                    "heat the {room} to {n} degrees",
                                    "cool the {room} down to {n} degrees",
                                    "{room} thermostat to {n}",
                                    "i want {n} degrees in the {room}",
                                    "change the {room} temperature to {n}"};
inline constexpr Text kTimer[] = {"set a timer for {n} {u}", "start a {n} {u} timer",
                                  "timer for {n} {u}",       "count down {n} {u}",
                                  "wake me in {n} {u}",      "tell me when {n} {u} are over"};
inline constexpr Text kAlarm[] = {
    "set an alarm for {t} {d}", "wake me up at {t} {d}",       "alarm at {t} {d}",
    "{d} at {t} wake me up",    "i need to get up at {t} {d}", "get me up {d} at {t}"};
inline constexpr Text kMusic[] = {
    "play {g} in the {room}",           "put on some {g} in the {room}",
    "i want to hear {g} in the {room}", "start {g} music in the {room}",
    "{room} speaker play {g}",          "let us have {g} in the {room}"};
inline constexpr Text kVolume[] = {"set the volume to {n}", "volume {n} percent",
                                   "turn the music to {n} percent", "make it {n} percent loud",
                                   "change the volume to {n}"};
inline constexpr Text kShopping[] = {
    "add {i} to the shopping list", "put {i} on my list", "we need {i}",
    "remember to buy {i}",          "i am out of {i}",    "shopping list {i}"};
inline constexpr Text kRemind[] = {"remind me to {t} {d}", "do not let me forget to {t} {d}",
                                   "{d} i have to {t}", "i must {t} {d}",
                                   "add a reminder to {t} for {d}"};
inline constexpr Text kBlinds[] = {
    "put the {room} blinds {p}", "i want the {room} blinds {p}", "{room} blinds {p}",
    "move the blinds in the {room} until they are {p}", "blinds {p} in the {room}"};
inline constexpr Text kDevice[] = {
    "turn {s} the {dev} in the {room}", "switch the {room} {dev} {s}", "{room} {dev} {s}",
    "please have the {dev} in the {room} {s}", "i want the {room} {dev} {s}"};
inline constexpr Text kScene[] = {"start {x} mode", "it is time for {x}", "activate the {x} scene",
                                  "set the house to {x}", "{x} mode please"};
inline constexpr Text kNone[] = {"tell me {x}", "do you know {x}", "explain {x}",
                                 "i wonder about {x}", "look up {x}"};

enum class Intent : std::uint8_t {
  light_level,
  light_switch,
  light_color,
  climate,
  timer,
  alarm,
  music,
  volume,
  shopping,
  remind,
  blinds,
  device,
  scene,
  none,
};

struct IntentWords {
  Intent intent;
  int weight;  // its share is weight / kSumOfWeights
  std::span<const Text> wordings;
};
inline constexpr std::array kIntents = {IntentWords{Intent::light_level, 3, kLightLevel},
                                        IntentWords{Intent::light_switch, 3, kLightSwitch},
                                        IntentWords{Intent::light_color, 2, kLightColor},
                                        IntentWords{Intent::climate, 3, kClimate},
                                        IntentWords{Intent::timer, 2, kTimer},
                                        IntentWords{Intent::alarm, 3, kAlarm},
                                        IntentWords{Intent::music, 2, kMusic},
                                        IntentWords{Intent::volume, 1, kVolume},
                                        IntentWords{Intent::shopping, 2, kShopping},
                                        IntentWords{Intent::remind, 2, kRemind},
                                        IntentWords{Intent::blinds, 2, kBlinds},
                                        IntentWords{Intent::device, 2, kDevice},
                                        IntentWords{Intent::scene, 1, kScene},
                                        IntentWords{Intent::none, 1, kNone}};

inline constexpr int kSumOfWeights = [] {
  int sum = 0;
  for (const IntentWords& one : kIntents) sum += one.weight;
  return sum;
}();

}  // namespace example::home
