// SPDX-License-Identifier: Apache-2.0
//
// A parsed template: its nodes in one array, which refer to each other by their places in it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "nibble/chat/value.hpp"

namespace nibble { inline namespace NIBBLE_ABI { namespace chat {

// The place of a node, or of a list: its length, then its elements, in Program::lists.
using NodeId = std::uint32_t;
inline constexpr NodeId kNoNode = 0xFFFFFFFF;

// What a, b and c of a Node are is said in this order. [...]: the place of a list; "name": an index
// into Program::names.
enum class NodeKind : std::uint8_t {
  // Expressions.
  literal,      // index into Program::literals
  name,         // "name"
  list,         // [elements]
  tuple,        // [elements]
  dict,         // [key, value, ...]
  attribute,    // object, "name"
  item,         // object, key
  slice,        // object, [begin, end, step], each possibly kNoNode
  call,         // function, [arguments]: number of those without a name; these; "name", value, ...
  filter,       // input (kNoNode: the text of a block), "name", [arguments]
  test,         // input, "name", [arguments]
  negate,       // operand
  plus,         // operand
  logical_not,  // operand
  logical_or,   // [operands]
  logical_and,  // [operands]
  compare,      // [operand, Operator, operand, Operator, operand, ...]
  arithmetic,   // the same
  concat,       // [operands]
  condition,    // condition, then, otherwise (or kNoNode)
  // Statements.
  data,           // index into Program::literals
  print,          // expression
  block,          // [statements]
  branch,         // [condition, block, condition, block, ...], otherwise (or kNoNode)
  loop,           // target, iterated, [filter (or kNoNode), block, block if empty (or kNoNode)]
  set,            // target, value
  set_block,      // target, filter (or kNoNode), block
  macro,          // "name", [parameters]: "name", default (or kNoNode), ...; block
  call_block,     // call, [parameters], block
  filter_block,   // filter, block
  scope,          // block
  break_loop,     // (nothing)
  continue_loop,  // (nothing)
};

enum class Operator : std::uint32_t {
  equal,
  not_equal,
  less,
  less_equal,
  greater,
  greater_equal,
  in,
  not_in,
  add,
  subtract,
  multiply,
  divide,
  floor_divide,
  modulo,
  power,
};

struct Node {
  NodeKind kind = NodeKind::literal;
  std::uint32_t line = 0;
  std::uint32_t a = kNoNode, b = kNoNode, c = kNoNode;
};

struct Program {
  std::string source;  // normalized; names are parts of it
  std::vector<Node> nodes;
  std::vector<std::uint32_t> lists;
  std::vector<Value> literals;
  std::vector<std::string_view> names;
  NodeId root = kNoNode;

  // The elements of a list.
  std::size_t size(NodeId list) const noexcept { return lists[list]; }
  std::uint32_t element(NodeId list, std::size_t i) const noexcept { return lists[list + 1 + i]; }
};

}}}  // namespace nibble::NIBBLE_ABI::chat
