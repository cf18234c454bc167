// SPDX-License-Identifier: Apache-2.0
//
// static_model on a Cortex-M55 without an operating system: no files, threads or heap. The model is
// in flash (image.S) and works in place from there. It prints through a debugger or emulator
// (semihosting), to which also the exit code goes.
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string_view>

#include "model.hpp"

extern "C" {
extern const example::fixed::Image image;  // image.S
extern std::uint32_t data_begin[], data_end[], bss_begin[], bss_end[], stack_bottom[], stack_top[];
extern const std::uint32_t data_in_flash[];
extern const char code_begin[], code_end[];
}

namespace {

namespace fixed = example::fixed;

alignas(nibble::kAlignment) std::byte memory[fixed::kBytes];

// ---- Semihosting: an operation, and a word or the address of its arguments ----
int ask_host(int operation, const void* argument) noexcept {
  register int r0 asm("r0") = operation;
  register const void* r1 asm("r1") = argument;
  asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

[[noreturn]] void exit_with(int code) noexcept {
  const std::uint32_t arguments[] = {0x20026 /* application exit */, static_cast<std::uint32_t>(code)};
  ask_host(0x20 /* SYS_EXIT_EXTENDED */, arguments);
  for (;;) {
  }
}

void print(std::string_view text) noexcept {
  while (!text.empty()) {
    char buffer[64];
    const std::size_t n = std::min(text.size(), sizeof(buffer) - 1);
    std::memcpy(buffer, text.data(), n);
    buffer[n] = 0;
    ask_host(0x04 /* SYS_WRITE0 */, buffer);
    text.remove_prefix(n);
  }
}
void print(std::size_t number) noexcept {
  char digits[20];
  const auto end = std::to_chars(digits, digits + sizeof(digits), number).ptr;
  print(std::string_view(digits, static_cast<std::size_t>(end - digits)));
}

// ---- The stack is filled with a pattern first, to see how much of it was used ----
constexpr std::uint32_t kUnused = 0xA5A5A5A5;
std::size_t used_stack() noexcept {
  const std::uint32_t* lowest = stack_bottom;
  while (lowest < stack_top && *lowest == kUnused) ++lowest;
  return static_cast<std::size_t>(stack_top - lowest) * sizeof(*lowest);
}

nibble::Result<void> answer(const fixed::Image::Prompt& prompt, const nibble::graph::RunArgs& args) {
  print(std::string_view(prompt.text));
  print("\n-> ");
  NIBBLE_CHECK(fixed::generate(
      args, std::span(prompt.tokens).first(static_cast<std::size_t>(prompt.n_tokens)),
      [](const nibble::graph::RunArgs&) { return nibble::ok(); },
      [](std::int32_t id) {
        const fixed::Image::Token& token = image.tokens[id];
        if (token.length == fixed::Image::kEnds) return false;
        print({token.text, token.length});
        return true;
      }));
  print("\n");
  return nibble::ok();
}

nibble::Result<void> run() {
  const fixed::WeightArray weights = fixed::weights_of(image);
  nibble::InlineExecutor executor;
  nibble::graph::RopeTable rope;
  NIBBLE_TRY(args, fixed::prepare(memory, {weights, nibble::kSlotCount}, executor, rope));
  for (const auto& prompt : image.prompts) NIBBLE_CHECK(answer(prompt, args));
  print("flash: ");
  print(static_cast<std::size_t>(code_end - code_begin));
  print(" bytes of code and constants, ");
  print(sizeof(image));
  print(" of the model\nRAM: ");
  print(sizeof(memory));
  print(" bytes of working memory, ");
  print(static_cast<std::size_t>(bss_end - data_begin) * sizeof(*bss_end) - sizeof(memory));
  print(" of other variables, ");
  print(used_stack());
  print(" of stack\n");
  return nibble::ok();
}

}  // namespace

// There is no heap: whoever asks for memory ends the program.
void* operator new(std::size_t) {
  print("the heap was used\n");
  exit_with(3);
}
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return operator new(n); }
void* operator new(std::size_t n, std::align_val_t) { return operator new(n); }
void* operator new(std::size_t n, std::align_val_t, const std::nothrow_t&) noexcept {
  return operator new(n);
}
void operator delete(void*) noexcept {}
void operator delete(void*, std::size_t) noexcept {}
void operator delete(void*, std::align_val_t) noexcept {}
void operator delete(void*, std::size_t, std::align_val_t) noexcept {}

extern "C" {

[[noreturn]] void abort() { exit_with(4); }
[[noreturn]] void fault() { exit_with(5); }

[[noreturn]] void reset() {
  // The coprocessors 10 and 11: numbers with a point.
  *reinterpret_cast<volatile std::uint32_t*>(0xE000ED88) |= 0xFu << 20;
  asm volatile("dsb\nisb" ::: "memory");
  std::memcpy(data_begin, data_in_flash,
              static_cast<std::size_t>(data_end - data_begin) * sizeof(*data_begin));
  for (volatile std::uint32_t* p = bss_begin; p < bss_end; ++p) *p = 0;
  const auto* const here = static_cast<std::uint32_t*>(__builtin_frame_address(0));
  for (volatile std::uint32_t* p = stack_bottom; p < here - 64; ++p) *p = kUnused;
  const auto done = run();
  if (!done) print(done.error().message);
  exit_with(done ? 0 : 1);
}

// Where the processor starts: the stack, then the code for reset and for faults.
[[gnu::section(".vectors"), gnu::used]] const void* const vectors[16] = {
    stack_top,
    reinterpret_cast<const void*>(&reset),
    reinterpret_cast<const void*>(&fault),
    reinterpret_cast<const void*>(&fault),
    reinterpret_cast<const void*>(&fault),
    reinterpret_cast<const void*>(&fault),
    reinterpret_cast<const void*>(&fault),
    reinterpret_cast<const void*>(&fault),
};

}  // extern "C"
