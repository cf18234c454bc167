// SPDX-License-Identifier: Apache-2.0
//
// Homes with habits: each asks for few kinds of things in few rooms, so that no home has data like
// that of all together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../home_commands/grammar.hpp"
#include "../samples.hpp"
#include "nibble/train/random.hpp"
#include "nibble/train/sources.hpp"

namespace example {

// What a home asks for: indices of home::kIntents and home::kRooms.
struct Habits {
  std::vector<std::size_t> intents, rooms;

  bool has_intent(home::Intent intent) const {
    return std::any_of(intents.begin(), intents.end(),
                       [&](std::size_t i) { return home::kIntents[i].intent == intent; });
  }
  // Calls that name no room fit everywhere.
  bool has_room_of(const std::string& call) const {
    const std::size_t at = call.find("room=");
    if (at == call.npos) return true;
    const std::size_t begin = at + 5;
    const std::string room = call.substr(begin, call.find_first_of(",)", begin) - begin);
    return std::any_of(rooms.begin(), rooms.end(),
                       [&](std::size_t i) { return home::key(home::kRooms[i]) == room; });
  }
};

// The habits of `n` homes. Kinds and rooms are dealt like cards, so that with enough homes each is
// somebody's.
inline std::vector<Habits> deal_habits(nibble::Index n, std::size_t n_intents, std::size_t n_rooms,
                                       std::uint64_t seed) {
  nibble::train::Random random(seed);
  const auto deal = [&](std::size_t n_cards, std::size_t n_each) {
    std::vector<std::vector<std::size_t>> hands(static_cast<std::size_t>(n));
    std::vector<std::size_t> deck;
    for (auto& hand : hands) {
      while (hand.size() < std::min(n_each, n_cards)) {
        if (deck.empty()) {
          for (std::size_t i = 0; i < n_cards; ++i) deck.push_back(i);
          nibble::train::shuffle(std::span(deck), random);
        }
        // A card that is in the hand waits for another home.
        const auto next = std::find_if(deck.rbegin(), deck.rend(), [&](std::size_t card) {
          return std::find(hand.begin(), hand.end(), card) == hand.end();
        });
        if (next == deck.rend()) {
          deck.clear();
          continue;
        }
        hand.push_back(*next);
        deck.erase(std::next(next).base());
      }
    }
    return hands;
  };
  auto intents = deal(home::kIntents.size(), n_intents);
  auto rooms = deal(std::size(home::kRooms), n_rooms);
  std::vector<Habits> homes(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < homes.size(); ++i) {
    homes[i] = {std::move(intents[i]), std::move(rooms[i])};
  }
  return homes;
}

// `n` commands of a home, or of anybody (null), as examples. Errors: those of the tokenizer.
inline nibble::Result<std::vector<nibble::train::Example>> commands_of(
    const nibble::text::Tokenizer& tokenizer, const Habits* habits, nibble::Index n,
    std::uint64_t seed) {
  home::Random random(nibble::train::detail::mixed(seed));
  std::vector<nibble::train::Example> examples;
  while (static_cast<nibble::Index>(examples.size()) < n) {
    const home::Phrase phrase = home::draw_phrase(random, home::Split::train);
    if (habits != nullptr && !habits->has_intent(phrase.intent)) continue;
    const Sample sample = home::draw_sample(random, home::Split::train, phrase);
    if (habits != nullptr && !habits->has_room_of(sample.answer)) continue;
    NIBBLE_TRY(tokens, sample_tokens(tokenizer, sample));
    examples.emplace_back().tokens = std::move(tokens.ids);
  }
  return examples;
}

}  // namespace example
