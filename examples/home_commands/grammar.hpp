// SPDX-License-Identifier: Apache-2.0
//
// Home commands and the one call that each of them means, drawn from a grammar: the samples with
// which the bundled model is trained, and as many new ones as a measurement needs. The same seed
// gives the same commands on every machine.
//
//   Commands commands(Split::train, 1);
//   Sample sample = commands.next();  // "dim the office light to 10 percent",
//                                     // "light.set(room=office, level=10)"
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include "../samples.hpp"
#include "words.hpp"

namespace example::home {

// train: one slip of the keyboard in 15 % of the commands. held_out: the same with those
// combinations of opener, wording and closer that train never draws, a fifth of all. hard: these
// with four slips in each, as if heard through a bad microphone. (All know the same rooms, things
// and numbers.) test_2000.tsv and hard_2000.tsv hold 2 000 of held_out and of hard.
enum class Split : std::uint8_t { train, held_out, hard };

// Where the grammar gets its numbers from. Any type with these two functions will do.
class Random {
 public:
  explicit constexpr Random(std::uint64_t seed) noexcept : state_(seed) {}

  // In [0, 1).
  constexpr double unit() noexcept { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  // In [0, n), for 1 <= n < 2^32; no value is likelier than another by more than n / 2^32 of it.
  constexpr std::uint32_t below(std::uint32_t n) noexcept {
    return static_cast<std::uint32_t>(((bits() >> 32) * n) >> 32);
  }

  constexpr std::uint64_t bits() noexcept {  // splitmix64 (Steele, Lea and Flood 2014)
    state_ += 0x9e3779b97f4a7c15;
    std::uint64_t x = state_;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

  // All that the numbers to come depend on; Random(state()) goes on with them.
  constexpr std::uint64_t state() const noexcept { return state_; }

 private:
  std::uint64_t state_;
};

// ---- Numbers and names ------------------------------------------------------------------------

// n in words, for 0 <= n <= 100.
inline std::string in_words(int n) {
  static constexpr Text kOnes[] = {"zero",    "one",     "two",       "three",    "four",
                                   "five",    "six",     "seven",     "eight",    "nine",
                                   "ten",     "eleven",  "twelve",    "thirteen", "fourteen",
                                   "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"};
  static constexpr Text kTens[] = {"",      "",      "twenty",  "thirty", "forty",
                                   "fifty", "sixty", "seventy", "eighty", "ninety"};
  if (n < 20) return std::string(kOnes[n]);
  if (n == 100) return "one hundred";
  std::string text(kTens[n / 10]);
  if (n % 10 != 0) text.append(" ").append(kOnes[n % 10]);
  return text;
}

inline std::string two_digits(int n) { return (n < 10 ? "0" : "") + std::to_string(n); }

// A name as calls spell it: "living room" is living_room.
inline std::string key(Text name) {
  std::string text(name);
  for (char& c : text) {
    if (c == ' ') c = '_';
  }
  return text;
}

// ---- Drawing ----------------------------------------------------------------------------------

template <class Source, class List>
auto choice(Source& random, const List& list) {
  return list[random.below(static_cast<std::uint32_t>(std::size(list)))];
}

// A whole number in [first, last].
template <class Source>
int between(Source& random, int first, int last) {
  return first + static_cast<int>(random.below(static_cast<std::uint32_t>(last - first + 1)));
}

// One of 0, 5, 10 .. 100.
template <class Source>
int percentage(Source& random) {
  return 5 * between(random, 0, 20);
}

// n as it is said: half of the time in words, else in digits.
template <class Source>
std::string spoken(Source& random, int n) {
  return random.unit() < 0.5 ? in_words(n) : std::to_string(n);
}

// What fills a wording in, and the call that it then means.
struct Drawn {
  struct Slot {
    Text name;
    std::string text;
  };
  std::array<Slot, 3> slots = {};
  std::string call;
};

// The functions below draw in an order that is part of the data, so each draw is a statement.

template <class Source>
Drawn draw_light_level(Source& random) {
  const Text room = choice(random, kRooms);
  const int n = percentage(random);
  std::string said = spoken(random, n);
  return {{{{"room", std::string(room)}, {"n", std::move(said)}}},
          "light.set(room=" + key(room) + ", level=" + std::to_string(n) + ")"};
}

template <class Source>
Drawn draw_light_switch(Source& random) {
  const Text room = choice(random, kRooms);
  const std::string state = random.unit() < 0.5 ? "on" : "off";
  return {{{{"room", std::string(room)}, {"s", state}}},
          "light." + state + "(room=" + key(room) + ")"};
}

template <class Source>
Drawn draw_light_color(Source& random) {
  const Text room = choice(random, kRooms);
  const std::string color(choice(random, kColors));
  return {{{{"room", std::string(room)}, {"c", color}}},
          "light.color(room=" + key(room) + ", color=" + color + ")"};
}

template <class Source>
Drawn draw_climate(Source& random) {
  const Text room = choice(random, kRooms);
  const int n = between(random, 12, 30);
  std::string said = spoken(random, n);
  return {{{{"room", std::string(room)}, {"n", std::move(said)}}},
          "climate.set(room=" + key(room) + ", degrees=" + std::to_string(n) + ")"};
}

template <class Source>
Drawn draw_timer(Source& random) {
  const int n = between(random, 1, 59);
  const Text unit = choice(random, kUnits);
  std::string said = spoken(random, n);
  return {{{{"n", std::move(said)}, {"u", std::string(unit.substr(0, unit.size() - (n == 1)))}}},
          "timer.start(" + std::string(unit) + "=" + std::to_string(n) + ")"};
}

template <class Source>
Drawn draw_alarm(Source& random) {
  const int hour = between(random, 1, 12);
  const int minute = 15 * between(random, 0, 3);
  const bool is_pm = random.below(2) == 1;
  const std::string day(choice(random, kDays));
  const std::uint32_t style = random.below(3);
  std::string said = style == 1 ? in_words(hour) : std::to_string(hour);
  if (style == 0 && minute != 0) said += ":" + std::to_string(minute);
  if (style == 2 && minute == 0) said += ":00";
  if (style != 0 && minute != 0) {
    said += " " + (style == 1 ? in_words(minute) : std::to_string(minute));
  }
  said += is_pm ? " pm" : " am";
  const std::string time = two_digits(hour % 12 + (is_pm ? 12 : 0)) + ":" + two_digits(minute);
  return {{{{"t", std::move(said)}, {"d", day}}}, "alarm.set(time=" + time + ", day=" + day + ")"};
}

template <class Source>
Drawn draw_music(Source& random) {
  const std::string genre(choice(random, kGenres));
  const Text room = choice(random, kRooms);
  return {{{{"g", genre}, {"room", std::string(room)}}},
          "music.play(genre=" + genre + ", room=" + key(room) + ")"};
}

template <class Source>
Drawn draw_volume(Source& random) {
  const int n = percentage(random);
  return {{{{"n", spoken(random, n)}}}, "music.volume(level=" + std::to_string(n) + ")"};
}

// One item half of the time, else two or three; none of them twice.
template <class Source>
Drawn draw_shopping(Source& random) {
  static constexpr std::size_t kHowMany[] = {1, 1, 2, 3};
  const std::size_t n = choice(random, kHowMany);
  auto items = std::to_array(kItems);
  std::string said, listed;
  for (std::size_t i = 0; i < n; ++i) {
    const std::size_t n_left = items.size() - i;
    Text& drawn = items[random.below(static_cast<std::uint32_t>(n_left))];
    if (i > 0) said += i + 1 == n ? " and " : ", ";
    if (i > 0) listed += ", ";
    said += drawn;
    listed += drawn;
    drawn = items[n_left - 1];
  }
  return {{{{"i", std::move(said)}}}, "list.add(items=[" + listed + "])"};
}

template <class Source>
Drawn draw_remind(Source& random) {
  const Text task = choice(random, kTasks);
  const std::string day(choice(random, kDays));
  return {{{{"t", std::string(task)}, {"d", day}}},
          "remind(task=" + key(task) + ", day=" + day + ")"};
}

template <class Source>
Drawn draw_blinds(Source& random) {
  const Text room = choice(random, kRooms);
  const std::uint32_t quarters = random.below(5);
  const Text closed = random.below(2) == 0 ? "all the way down" : "closed";
  const Text open = random.below(2) == 0 ? "all the way up" : "fully open";
  const Text said[] = {closed, "a quarter open", "half open", "three quarters open", open};
  return {{{{"room", std::string(room)}, {"p", std::string(said[quarters])}}},
          "blinds.set(room=" + key(room) + ", open=" + std::to_string(25 * quarters) + ")"};
}

template <class Source>
Drawn draw_device(Source& random) {
  const Text device = choice(random, kDevices);
  const Text room = choice(random, kRooms);
  const std::string state = random.unit() < 0.5 ? "on" : "off";
  return {{{{"dev", std::string(device)}, {"room", std::string(room)}, {"s", state}}},
          "device." + state + "(name=" + key(device) + ", room=" + key(room) + ")"};
}

template <class Source>
Drawn draw(Source& random, Intent intent) {
  switch (intent) {
    case Intent::light_level: return draw_light_level(random);
    case Intent::light_switch: return draw_light_switch(random);
    case Intent::light_color: return draw_light_color(random);
    case Intent::climate: return draw_climate(random);
    case Intent::timer: return draw_timer(random);
    case Intent::alarm: return draw_alarm(random);
    case Intent::music: return draw_music(random);
    case Intent::volume: return draw_volume(random);
    case Intent::shopping: return draw_shopping(random);
    case Intent::remind: return draw_remind(random);
    case Intent::blinds: return draw_blinds(random);
    case Intent::device: return draw_device(random);
    case Intent::scene: {
      const Text scene = choice(random, kScenes);
      return {{{{"x", std::string(scene)}}}, "scene.start(name=" + key(scene) + ")"};
    }
    case Intent::none: break;
  }
  return {{{{"x", std::string(choice(random, kUnknown))}}}, "none()"};
}

// ---- Phrases: how it is said ------------------------------------------------------------------

struct Phrase {
  Intent intent = Intent::none;
  Text wording, opener, closer;
};

// The CRC-32 of zlib and PNG (ISO 3309, bits reflected).
class Crc32 {
 public:
  constexpr Crc32& add(Text text) noexcept {
    for (const char c : text) {
      value_ ^= static_cast<unsigned char>(c);
      for (int bit = 0; bit < 8; ++bit)
        value_ = (value_ >> 1) ^ (0xedb88320u & (0u - (value_ & 1)));
    }
    return *this;
  }
  constexpr std::uint32_t value() const noexcept { return ~value_; }

 private:
  std::uint32_t value_ = ~0u;
};

// Whether training never sees this combination of opener, wording and closer. Without slips a
// command shows which combination it is, so that training never sees a command of a test either.
constexpr bool is_held_out(const Phrase& phrase) noexcept {
  Crc32 crc;
  crc.add(phrase.opener).add("|").add(phrase.wording).add("|").add(phrase.closer);
  return crc.value() % 5 == 0;
}

template <class Source>
Phrase draw_phrase(Source& random, Split split) {
  for (;;) {
    int turn = static_cast<int>(random.unit() * kSumOfWeights);
    std::size_t at = 0;
    while (turn >= kIntents[at].weight) turn -= kIntents[at++].weight;
    Phrase phrase;
    phrase.intent = kIntents[at].intent;
    phrase.wording = choice(random, kIntents[at].wordings);
    phrase.opener = choice(random, kOpeners);
    phrase.closer = choice(random, kClosers);
    if (is_held_out(phrase) == (split != Split::train)) return phrase;
  }
}

// The phrase with its {names} filled in.
inline std::string filled(const Phrase& phrase, const Drawn& drawn) {
  std::string text(phrase.opener);
  for (Text rest = phrase.wording;;) {
    const std::size_t open = rest.find('{');
    text += rest.substr(0, open);
    if (open == rest.npos) break;
    const std::size_t close = rest.find('}', open);
    for (const Drawn::Slot& slot : drawn.slots) {
      if (slot.name == rest.substr(open + 1, close - open - 1)) text += slot.text;
    }
    rest.remove_prefix(close + 1);
  }
  return text += phrase.closer;
}

// One slip of the keyboard or the microphone, inside a word: a letter is dropped, doubled, or
// swapped with the next one. Words of less than three letters keep theirs.
template <class Source>
void slip(Source& random, std::string& text) {
  const auto is_letter = [&text](std::size_t i) { return text[i] >= 'a' && text[i] <= 'z'; };
  std::uint32_t n_spots = 0;
  const auto for_spots = [&](auto&& visit) {
    for (std::size_t i = 1; i + 1 < text.size(); ++i) {
      if (is_letter(i - 1) && is_letter(i) && is_letter(i + 1)) visit(i);
    }
  };
  for_spots([&](std::size_t) { ++n_spots; });
  if (n_spots == 0) return;
  std::uint32_t nth = random.below(n_spots);
  std::size_t at = 0;
  for_spots([&](std::size_t i) {
    if (nth-- == 0) at = i;
  });
  switch (random.below(3)) {
    case 0: text.erase(at, 1); break;
    case 1: text.insert(at, 1, text[at]); break;
    default: std::swap(text[at], text[at + 1]);
  }
}

// A command that says `phrase`: what fills it in, and slips.
template <class Source>
Sample draw_sample(Source& random, Split split, const Phrase& phrase) {
  Drawn drawn = draw(random, phrase.intent);
  std::string said = filled(phrase, drawn);
  const int n_slips = split == Split::hard ? 4 : random.unit() < 0.15 ? 1 : 0;
  for (int i = 0; i < n_slips; ++i) slip(random, said);
  return {std::move(said), std::move(drawn.call)};
}
template <class Source>
Sample draw_sample(Source& random, Split split) {
  const Phrase phrase = draw_phrase(random, split);
  return draw_sample(random, split, phrase);
}

// An endless row of commands. Neighbouring seeds give unrelated ones, and so do the splits.
class Commands {
 public:
  Commands(Split split, std::uint64_t seed) noexcept
      : split_(split),
        random_(Random(Random(seed).bits() + static_cast<std::uint64_t>(split)).bits()) {}

  Sample next() { return draw_sample(random_, split_); }

  // All that the commands to come depend on but the split; resume() goes on with them.
  std::uint64_t state() const noexcept { return random_.state(); }
  void resume(std::uint64_t state) noexcept { random_ = Random(state); }

 private:
  Split split_;
  Random random_;
};

}  // namespace example::home
