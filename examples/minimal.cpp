// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "nibble/nibble.hpp"

int main() {
  const auto model = nibble::load("examples/models/home-commands-f16.gguf");
  if (!model) return std::puts(model.error().message.c_str()), 1;
  auto session = nibble::Session::create(*model);
  if (!session) return std::puts(session.error().message.c_str()), 1;
  const auto done = nibble::generate(  // prints light.set(room=office, level=10)
      *session, "could you please dim the office light to 10 percent\n", {},
      [](const nibble::Token& token) {
        return std::fwrite(token.text.data(), 1, token.text.size(), stdout), true;
      });
  return done ? 0 : 1;
}
