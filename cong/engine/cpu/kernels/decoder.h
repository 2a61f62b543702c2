// One layer of a decoder: norm, attention with rotated queries and keys, norm, gated feed-forward, each added to what
// came in. And the end of one: norm and product with the words.
//
// hidden [S, N, width] stays in float32; rows are rounded to the weights' type only where they meet weights.

#pragma once

#include <ATen/ops/empty.h>
#include <ATen/Parallel.h>

#include "attention.h"
#include "products.h"

namespace cong {

inline void narrow(float* to, const float* from, int64_t count) { std::copy_n(from, count, to); }
inline void narrow(BFloat16* to, const float* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<BFloat16>(from[i]);
}

template <typename Out>
void rms_norm(const float* row, const float* weight, int64_t width, float eps, Out* to) {
  const float factor = 1.0f / std::sqrt(dot(row, row, width) / static_cast<float>(width) + eps);
  for (int64_t d = 0; d < width; ++d) to[d] = static_cast<Out>(weight[d] * (row[d] * factor));
}

// Turns each pair (d, d + half) of the numbers that have an angle, the first of a head, by that of its position.
inline void rotate(float* head, const float* cosine, const float* sine, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t d = 0; d < half; ++d) {
    const float left = head[d], right = head[d + half];
    head[d] = left * cosine[d] - right * sine[d];
    head[d + half] = right * cosine[d + half] + left * sine[d + half];
  }
}

// Rows between the parts of a layer.
enum Scratch { kNormed, kInner, kMixed, kMiddle };
template <typename T>
T* scratch(Scratch which, int64_t count) {
  static thread_local std::vector<Line> all[4];
  return room<T>(all[which], count);
}

using MaybeTensors = c10::List<std::optional<at::Tensor>>;

// The order of a layer's weights: matrices in the weights' type, all else in float32.
enum Weight { kNorm, kQuery, kKey, kValue, kOut, kMiddleNorm, kGate, kUp, kDown, kBiases, kQueryNorm = kBiases + 7, kKeyNorm };

template <typename T>
void run_layer(at::Tensor& hidden, const at::Tensor& cosine, const at::Tensor& sine, const MaybeTensors& weights,
               at::Tensor& key_pool, at::Tensor& value_pool, const Rows& rows, float scaling, int64_t window, float eps) {
  using Row = RowOf<T>;
  const auto matrix = [&](Weight which) {
    const int bias = kBiases + (which < kMiddleNorm ? which - kQuery : which - kGate + 4);
    return Matrix<T>(*weights.get(which), weights.get(bias));
  };
  const auto numbers = [&](Weight which) -> const float* {
    const std::optional<at::Tensor> tensor = weights.get(which);
    return tensor ? tensor->const_data_ptr<float>() : nullptr;
  };
  const Matrix<T> query = matrix(kQuery), key = matrix(kKey), value = matrix(kValue), out = matrix(kOut);
  const Matrix<T> gate = matrix(kGate), up = matrix(kUp), down = matrix(kDown);
  const float *norm = numbers(kNorm), *middle_norm = numbers(kMiddleNorm);
  const float *query_norm = numbers(kQueryNorm), *key_norm = numbers(kKeyNorm);
  const int64_t num_networks = hidden.size(0), num_rows = hidden.size(1), width = hidden.size(2);
  const Pool<T> keys(key_pool), values(value_pool);
  const int64_t head_width = keys.width, num_heads = keys.num_heads, own_heads = num_heads / num_networks;
  const int64_t num_queries = query.width / head_width, all_rows = num_networks * num_rows;
  const int64_t num_threads = at::get_num_threads();
  Product<T> inner_product({&query, &key, &value}, num_rows, num_threads);
  Product<T> out_product({&out}, num_rows, num_threads);
  Product<T> gate_product({&gate, &up}, num_rows, num_threads, true);
  Product<T> down_product({&down}, num_rows, num_threads);
  const int64_t turned_width = cosine.size(1);
  TORCH_CHECK(cosine.size(0) == num_rows && turned_width <= head_width && turned_width % 2 == 0,
              "one angle per row and turned number of a head, pairs of numbers");
  float* const stream = hidden.data_ptr<float>();
  const float *cosines = cosine.const_data_ptr<float>(), *sines = sine.const_data_ptr<float>();

  // Here, because each thread of the region below has scratch of its own.
  const int64_t inner_width = query.width + key.width + value.width;
  Row* const normed_rows = scratch<Row>(kNormed, all_rows * width);
  float* const inner_rows = scratch<float>(kInner, all_rows * inner_width);
  Row* const mixed_rows = scratch<Row>(kMixed, all_rows * query.width);
  Row* const middle_rows = scratch<Row>(kMiddle, all_rows * gate.width);

  const View<const float> queries{inner_rows, num_rows * inner_width, head_width, inner_width};
  const View<Row> mixtures{mixed_rows, num_rows * query.width, head_width, query.width};
  const Attention<T, float, Row> attention{rows,        keys,      values,  queries, mixtures,
                                           num_queries, own_heads, scaling, 0.0f,    window};
  const std::vector<Tile> tiles = tiles_of(rows, attention.group(), num_heads, num_threads);
  Shares tile_shares(tiles.size(), num_threads);

  const auto add_to_stream = [&](const Panel<T>& panel, int64_t row, const float* sums, const float*) {
    float* to = stream + (panel.network * num_rows + row) * width + panel.first;
    for (int64_t o = 0; o < panel.width; ++o) to[o] += sums[o];
  };
  const auto keep_inner = [&](const Panel<T>& panel, int64_t row, const float* sums, const float*) {
    const int64_t part = panel.left == &query ? 0 : panel.left == &key ? query.width : query.width + key.width;
    float* to = inner_rows + (panel.network * num_rows + row) * inner_width + part + panel.first;
    std::copy_n(sums, panel.width, to);
  };
  const auto keep_gated = [&](const Panel<T>& panel, int64_t row, const float* gates, const float* ups) {
    Row* to = middle_rows + (panel.network * num_rows + row) * gate.width + panel.first;
    for (int64_t first = 0; first < panel.width; first += kLanes) {
      float gated[kLanes];
      for (int64_t o = 0; o < kLanes; ++o) {
        const float x = gates[first + o];
        gated[o] = x / (1.0f + exponential(-x)) * ups[first + o];
      }
      narrow(to + first, gated, std::min(kLanes, panel.width - first));
    }
  };
  // Norms and turns the heads of one row, and puts its keys and values into their block.
  const auto place_row = [&](int64_t network, int64_t row) {
    float* own = inner_rows + (network * num_rows + row) * inner_width;
    const float *cosine_row = cosines + row * turned_width, *sine_row = sines + row * turned_width;
    for (int64_t head = 0; head < num_queries + own_heads; ++head, own += head_width) {
      const float* weight = head < num_queries ? query_norm : key_norm;
      if (weight) rms_norm(own, weight + network * head_width, head_width, eps, own);
      rotate(own, cosine_row, sine_row, turned_width);
      if (head >= num_queries) narrow(keys.slot(rows, row, network * own_heads + head - num_queries), own, head_width);
    }
    for (int64_t head = 0; head < own_heads; ++head, own += head_width)
      narrow(values.slot(rows, row, network * own_heads + head), own, head_width);
  };

#pragma omp parallel num_threads(num_threads)
  {
#pragma omp for
    for (int64_t row = 0; row < all_rows; ++row)
      rms_norm(stream + row * width, norm + row / num_rows * width, width, eps, normed_rows + row * width);
    multiply(inner_product, normed_rows, keep_inner);
#pragma omp for
    for (int64_t row = 0; row < all_rows; ++row) place_row(row / num_rows, row % num_rows);
    tile_shares.each([&](int64_t tile) { attention.attend(tiles[tile]); });
    multiply(out_product, mixed_rows, add_to_stream);
#pragma omp for
    for (int64_t row = 0; row < all_rows; ++row)
      rms_norm(stream + row * width, middle_norm + row / num_rows * width, width, eps, normed_rows + row * width);
    multiply(gate_product, normed_rows, keep_gated);
    multiply(down_product, middle_rows, add_to_stream);
  }
}

// The logits [S, R, words] of some rows, in float32.
template <typename T>
at::Tensor run_head(const at::Tensor& hidden, const at::Tensor& chosen, const at::Tensor& norm,
                    const at::Tensor& weight, const std::optional<at::Tensor>& bias, float eps) {
  const Matrix<T> words(weight, bias);
  const int64_t num_networks = hidden.size(0), num_rows = hidden.size(1), width = hidden.size(2);
  const int64_t num_chosen = chosen.size(0);
  at::Tensor logits = at::empty({num_networks, num_chosen, words.width}, hidden.options());
  RowOf<T>* const normed_rows = scratch<RowOf<T>>(kNormed, num_networks * num_chosen * width);
  const float *stream = hidden.const_data_ptr<float>(), *norms = norm.const_data_ptr<float>();
  const int64_t* rows = chosen.const_data_ptr<int64_t>();
  float* const to = logits.data_ptr<float>();
  const int64_t num_threads = at::get_num_threads();
  Product<T> product({&words}, num_chosen, num_threads);
#pragma omp parallel num_threads(num_threads)
  {
#pragma omp for
    for (int64_t row = 0; row < num_networks * num_chosen; ++row) {
      const int64_t network = row / num_chosen;
      rms_norm(stream + (network * num_rows + rows[row % num_chosen]) * width, norms + network * width, width, eps,
               normed_rows + row * width);
    }
    multiply(product, normed_rows, [&](const Panel<T>& panel, int64_t row, const float* sums, const float*) {
      std::copy_n(sums, panel.width, to + (panel.network * num_chosen + row) * words.width + panel.first);
    });
  }
  return logits;
}

}  // namespace cong
