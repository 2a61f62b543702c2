// One token of each of B sequences: write its key and value into its block, then attend to all its blocks.
//
// Keys and values are read where they lie, each sequence by itself, so that its numbers do not depend on its
// neighbours. Sums are taken in float32, whatever the pools hold. Knows nothing of models and of scheduling.
//
// query [S, Q, B, D], key and value [S, H, B, D], pools [places, S * H, size, D], out [S, B, Q, D].

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

inline float widen(float x) { return x; }
inline float widen(c10::BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

// exp for x <= 0 to about 1e-7 relative: 2^n times a polynomial on [-ln2/2, ln2/2]; the compiler makes it vectors.
inline float exp_of_negative(float x) {
  x = std::max(x, -87.0f);
  const float n = std::nearbyint(x * 1.44269504088896341f);
  float r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

template <typename T>
inline float dot(const float* __restrict a, const T* __restrict b, int64_t width) {
  float sum = 0.0f;
  for (int64_t d = 0; d < width; ++d) sum += a[d] * widen(b[d]);
  return sum;
}

template <typename T>
struct Attention {
  const at::Tensor &query, &key, &value, &key_pool, &value_pool, &table, &lengths, &out;
  float scaling, softcap;
  int64_t window;

  // All rows' keys and values are written before any row attends: one may look at what another has just completed.
  void write(int64_t first, int64_t last) const {
    const int64_t num_heads = key_pool.size(1), size = key_pool.size(2), own_heads = key.size(1);
    const int64_t width = key_pool.size(3), value_width = value_pool.size(3);
    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task / num_heads, head = task % num_heads;
      const int64_t last_position = lengths.const_data_ptr<int32_t>()[row] - 1;
      const int64_t block = table.const_data_ptr<int32_t>()[row * table.size(1) + last_position / size];
      const int64_t slot = (block * num_heads + head) * size + last_position % size;
      std::copy_n(at_row(key, head / own_heads, head % own_heads, row), width, key_pool.data_ptr<T>() + slot * width);
      std::copy_n(at_row(value, head / own_heads, head % own_heads, row), value_width,
                  value_pool.data_ptr<T>() + slot * value_width);
    }
  }

  void attend(int64_t first, int64_t last) const {
    const int64_t num_heads = key_pool.size(1), size = key_pool.size(2), width = key_pool.size(3);
    const int64_t value_width = value_pool.size(3), own_heads = key.size(1), group = query.size(1) / own_heads;
    const int32_t* tables = table.const_data_ptr<int32_t>();
    const int32_t* length_of = lengths.const_data_ptr<int32_t>();
    const T* keys = key_pool.const_data_ptr<T>();
    const T* values = value_pool.const_data_ptr<T>();
    const int64_t key_block = size * width, value_block = size * value_width;
    std::vector<float> wide_query(group * width), mixed(group * value_width), scores;

    for (int64_t task = first; task < last; ++task) {
      const int64_t row = task / num_heads, head = task % num_heads;
      const int64_t network = head / own_heads, own_head = head % own_heads;
      const int32_t* blocks = tables + row * table.size(1);
      const int64_t length = length_of[row], start = window > 0 ? std::max<int64_t>(0, length - window) : 0;

      for (int64_t g = 0; g < group; ++g) {
        const T* from = at_row(query, network, own_head * group + g, row);
        for (int64_t d = 0; d < width; ++d) wide_query[g * width + d] = widen(from[d]) * scaling;
      }
      const int64_t count = length - start;
      scores.resize(group * count);
      for (int64_t position = start; position < length;) {
        const int64_t stop = std::min(length, (position / size + 1) * size);
        const T* block = keys + (blocks[position / size] * num_heads + head) * key_block;
        for (; position < stop; ++position)
          for (int64_t g = 0; g < group; ++g)
            scores[g * count + position - start] =
                dot(wide_query.data() + g * width, block + (position % size) * width, width);
      }
      for (int64_t g = 0; g < group; ++g) normalise(scores.data() + g * count, count);
      std::fill(mixed.begin(), mixed.end(), 0.0f);
      for (int64_t position = start; position < length;) {
        const int64_t stop = std::min(length, (position / size + 1) * size);
        const T* block = values + (blocks[position / size] * num_heads + head) * value_block;
        for (; position < stop; ++position)
          for (int64_t g = 0; g < group; ++g)
            add(mixed.data() + g * value_width, scores[g * count + position - start],
                block + (position % size) * value_width, value_width);
      }
      T* to = out.data_ptr<T>() + ((network * out.size(1) + row) * out.size(2) + own_head * group) * value_width;
      for (int64_t d = 0; d < group * value_width; ++d) to[d] = static_cast<T>(mixed[d]);
    }
  }

  static const T* at_row(const at::Tensor& tensor, int64_t network, int64_t head, int64_t row) {
    return tensor.const_data_ptr<T>() + network * tensor.stride(0) + head * tensor.stride(1) + row * tensor.stride(2);
  }

  static void add(float* __restrict to, float share, const T* __restrict from, int64_t width) {
    for (int64_t d = 0; d < width; ++d) to[d] += share * widen(from[d]);
  }

  void normalise(float* scores, int64_t count) const {
    if (softcap > 0.0f)
      for (int64_t i = 0; i < count; ++i) scores[i] = std::tanh(scores[i] / softcap) * softcap;
    float best = scores[0];
    for (int64_t i = 1; i < count; ++i) best = std::max(best, scores[i]);
    float sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) {
      scores[i] = exp_of_negative(scores[i] - best);
      sum += scores[i];
    }
    const float share = 1.0f / sum;
    for (int64_t i = 0; i < count; ++i) scores[i] *= share;
  }
};

void paged_decode(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, at::Tensor& key_pool,
                  at::Tensor& value_pool, const at::Tensor& table, const at::Tensor& lengths, double scaling,
                  int64_t window, double softcap, at::Tensor& out) {
  for (const at::Tensor& tensor : {query, key, value})
    TORCH_CHECK(tensor.dim() == 4 && tensor.stride(3) == 1, "query, key and value are [S, heads, B, D], rows contiguous");
  for (const at::Tensor& tensor : {key_pool, value_pool, out, table, lengths})
    TORCH_CHECK(tensor.is_contiguous(), "pools, tables and output are contiguous");
  TORCH_CHECK(table.scalar_type() == at::kInt && lengths.scalar_type() == at::kInt, "tables are int32");
  const int64_t num_tasks = lengths.size(0) * key_pool.size(1);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const Attention<T> attention{query, key, value, key_pool, value_pool, table, lengths, out,
                                 static_cast<float>(scaling), static_cast<float>(softcap), window};
    at::parallel_for(0, num_tasks, 256, [&](int64_t first, int64_t last) { attention.write(first, last); });
    at::parallel_for(0, num_tasks, 8, [&](int64_t first, int64_t last) { attention.attend(first, last); });
  };
  if (query.scalar_type() == at::kFloat) {
    run(0.0f);
  } else {
    TORCH_CHECK(query.scalar_type() == at::kBFloat16, "float32 or bfloat16, not ", query.scalar_type());
    run(c10::BFloat16(0.0f));
  }
}

}  // namespace

TORCH_LIBRARY(cong, library) {
  library.def(
      "paged_decode(Tensor query, Tensor key, Tensor value, Tensor(a!) key_pool, Tensor(b!) value_pool, Tensor table, "
      "Tensor lengths, float scaling, int window, float softcap, Tensor(c!) out) -> ()");
}

TORCH_LIBRARY_IMPL(cong, CPU, library) { library.impl("paged_decode", &paged_decode); }
