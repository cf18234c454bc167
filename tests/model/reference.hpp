// SPDX-License-Identifier: Apache-2.0
//
// The oracle: both transformers as plain loops in double, the whole sequence at once, nothing
// stored from token to token. Uses nothing from the library.
#pragma once

#include <cmath>
#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace test {

class Reference {
 public:
  using Row = std::vector<double>;
  using Rows = std::vector<Row>;

  bool is_gpt2 = false;
  int dim = 0, n_layers = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, window = 0;
  int rope_dim = 0;
  double eps = 0, rope_theta = 0, rope_scale = 1;
  std::map<std::string, Row> tensors;  // by their GGUF names, row-major
  // Called with the name of each matrix and what it is multiplied by.
  std::function<void(const std::string& name, const Row& x)> on_product;

  // The logits at every position.
  Rows logits(const std::vector<int>& tokens) const {
    Rows x;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
      x.push_back(row("token_embd.weight", static_cast<std::size_t>(tokens[t])));
      if (is_gpt2) add(x[t], row("position_embd.weight", t));
    }
    for (int layer = 0; layer < n_layers; ++layer) {
      const std::string at = "blk." + std::to_string(layer) + ".";
      const Rows attended = attention(at, x);
      for (std::size_t t = 0; t < x.size(); ++t) {
        add(x[t], product(at + "attn_output", attended[t]));
        add(x[t], feed_forward(at, norm(at + "ffn_norm", x[t])));
      }
    }
    for (Row& r : x) {
      r = norm("output_norm", r);
      r = product(tensors.count("output.weight") != 0 ? "output" : "token_embd", r);
    }
    return x;
  }

 private:
  static void add(Row& x, const Row& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  Row row(const std::string& name, std::size_t index) const {
    const Row& table = tensors.at(name);
    const auto n = static_cast<std::size_t>(dim);
    Row r(n);
    for (std::size_t i = 0; i < n; ++i) r[i] = table.at(index * n + i);
    return r;
  }

  Row product(const std::string& name, const Row& x) const {
    const Row& w = tensors.at(name + ".weight");
    if (on_product) on_product(name + ".weight", x);
    Row y(w.size() / x.size());
    for (std::size_t i = 0; i < y.size(); ++i) {
      for (std::size_t j = 0; j < x.size(); ++j) y[i] += w[i * x.size() + j] * x[j];
    }
    if (const auto bias = tensors.find(name + ".bias"); bias != tensors.end()) {
      add(y, bias->second);
    }
    return y;
  }

  Row norm(const std::string& name, Row x) const {
    const auto n = static_cast<double>(x.size());
    double mean = 0, variance = 0;
    for (const double v : x) mean += v / n;
    if (!is_gpt2) mean = 0;
    for (const double v : x) variance += (v - mean) * (v - mean) / n;
    const Row& weight = tensors.at(name + ".weight");
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] = (x[i] - mean) / std::sqrt(variance + eps) * weight[i];
      if (is_gpt2) x[i] += tensors.at(name + ".bias")[i];
    }
    return x;
  }

  Row feed_forward(const std::string& at, const Row& x) const {
    Row up = product(at + "ffn_up", x);
    if (is_gpt2) {
      for (double& v : up) {
        const double inner = std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v);
        v = 0.5 * v * (1 + std::tanh(inner));
      }
    } else {
      const Row gate = product(at + "ffn_gate", x);
      for (std::size_t i = 0; i < up.size(); ++i) up[i] *= gate[i] / (1 + std::exp(-gate[i]));
    }
    return product(at + "ffn_down", up);
  }

  // Rotates neighbours 2i and 2i + 1 of each head by position * frequency i.
  void rotate(Row& x, std::size_t position) const {
    const auto factors = tensors.find("rope_freqs.weight");
    for (std::size_t head = 0; head < x.size(); head += static_cast<std::size_t>(head_dim)) {
      for (int i = 0; i < rope_dim / 2; ++i) {
        const auto pair = static_cast<std::size_t>(i);
        double angle =
            static_cast<double>(position) / rope_scale * std::pow(rope_theta, -2.0 * i / rope_dim);
        if (factors != tensors.end()) angle /= factors->second.at(pair);
        double& a = x[head + 2 * pair];
        double& b = x[head + 2 * pair + 1];
        const double turned = a * std::cos(angle) - b * std::sin(angle);
        b = a * std::sin(angle) + b * std::cos(angle);
        a = turned;
      }
    }
  }

  Rows attention(const std::string& at, const Rows& x) const {
    Rows q, k, v, out;
    for (std::size_t t = 0; t < x.size(); ++t) {
      const Row h = norm(at + "attn_norm", x[t]);
      if (is_gpt2) {
        const Row qkv = product(at + "attn_qkv", h);
        const auto part = [&](int first, int n) {
          return Row(qkv.begin() + first * head_dim, qkv.begin() + (first + n) * head_dim);
        };
        q.push_back(part(0, n_heads));
        k.push_back(part(n_heads, n_kv_heads));
        v.push_back(part(n_heads + n_kv_heads, n_kv_heads));
      } else {
        q.push_back(product(at + "attn_q", h));
        k.push_back(product(at + "attn_k", h));
        v.push_back(product(at + "attn_v", h));
        rotate(q[t], t);
        rotate(k[t], t);
      }
      out.emplace_back();
      for (int head = 0; head < n_heads; ++head) {
        const Row y = attend(q[t], k, v, head, t);
        out[t].insert(out[t].end(), y.begin(), y.end());
      }
    }
    return out;
  }

  // One head of one token, at the last position of k and v.
  Row attend(const Row& q, const Rows& k, const Rows& v, int head, std::size_t t) const {
    const auto size = static_cast<std::size_t>(head_dim);
    const auto query = static_cast<std::size_t>(head) * size;
    const auto kv = static_cast<std::size_t>(head / (n_heads / n_kv_heads)) * size;
    const auto seen = static_cast<std::size_t>(window);
    const std::size_t first = window > 0 && t + 1 > seen ? t + 1 - seen : 0;
    Row y(size);
    double total = 0, max = -1e300;
    Row scores;
    for (std::size_t p = first; p <= t; ++p) {
      double score = 0;
      for (std::size_t d = 0; d < size; ++d) score += q[query + d] * k[p][kv + d];
      scores.push_back(score / std::sqrt(static_cast<double>(head_dim)));
      max = std::fmax(max, scores.back());
    }
    for (std::size_t p = first; p <= t; ++p) {
      const double weight = std::exp(scores[p - first] - max);
      total += weight;
      for (std::size_t d = 0; d < size; ++d) y[d] += weight * v[p][kv + d];
    }
    for (double& d : y) d /= total;
    return y;
  }
};

}  // namespace test
