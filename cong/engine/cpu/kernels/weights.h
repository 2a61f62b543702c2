// Weights of S networks, which stay in memory as torch holds them: how their numbers meet those of rows, and how a panel of
// their columns is brought into order in the processor's cache.

#pragma once

#include <ATen/core/Tensor.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include <optional>

#include "vectors.h"

namespace cong {

#if defined(__AVX512F__)
constexpr int64_t kVectors = 4;
#else
constexpr int64_t kVectors = 2;
#endif
constexpr int64_t kPanel = kVectors * kLanes, kDepth = 512;

// How one step into the depth multiplies: what rows are made of, and how many of their numbers meet in 32 bits.
template <typename T>
struct Arithmetic {
  using Row = float;
  static constexpr int64_t kStep = 1;
  static Vector splat_row(const float* row) { return splat(*row); }
  // Weights of two vectors of columns, for one step from this line on.
  static void load_step(const T* line, int64_t, Vector (&w)[2]) { w[0] = load(line), w[1] = load(line + kLanes); }
  static Vector multiply(Vector x, Vector w, Vector sums) { return sums + x * w; }
};

#if defined(__AVX512BF16__)
template <>
struct Arithmetic<BFloat16> {
  using Row = BFloat16;
  static constexpr int64_t kStep = 2;
  static Vector splat_row(const BFloat16* row) {
    int32_t both;
    std::memcpy(&both, row, sizeof both);
    return reinterpret_cast<Vector>(_mm512_set1_epi32(both));
  }
  static void load_step(const BFloat16* line, int64_t next_line, Vector (&w)[2]) {
    const __m512i even = _mm512_loadu_si512(line), odd = _mm512_loadu_si512(line + next_line);
    w[0] = pairs(_mm512_castsi512_si256(even), _mm512_castsi512_si256(odd));
    w[1] = pairs(_mm512_extracti64x4_epi64(even, 1), _mm512_extracti64x4_epi64(odd, 1));
  }
  static Vector pairs(__m256i even, __m256i odd) {
    const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
    return reinterpret_cast<Vector>(_mm512_or_si512(_mm512_cvtepu16_epi32(even), high));
  }
  static Vector multiply(Vector x, Vector w, Vector sums) {
    return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(x),
                                                     reinterpret_cast<__m512bh>(w)));
  }
};
#endif

template <typename T>
using RowOf = typename Arithmetic<T>::Row;

// Weights [S, depth, width] of S networks, in either order, and their biases [S, width].
template <typename T>
struct Matrix {
  const T* data = nullptr;
  const float* bias = nullptr;
  int64_t network_stride = 0, in_stride = 0, out_stride = 0, num_networks = 0, depth = 0, width = 0;

  Matrix() = default;
  Matrix(const at::Tensor& weight, const std::optional<at::Tensor>& bias_SO)
      : data(weight.const_data_ptr<T>()),
        bias(bias_SO ? bias_SO->const_data_ptr<float>() : nullptr),
        network_stride(weight.stride(0)),
        in_stride(weight.stride(1)),
        out_stride(weight.stride(2)),
        num_networks(weight.size(0)),
        depth(weight.size(1)),
        width(weight.size(2)) {
    TORCH_CHECK(in_stride == 1 || out_stride == 1, "weights are contiguous along one side");
    TORCH_CHECK(depth % Arithmetic<T>::kStep == 0, "the depth of a product in bfloat16 is even, not ", depth);
    TORCH_CHECK(!bias_SO || bias_SO->is_contiguous(), "biases are contiguous");
  }
  const T* at(int64_t network, int64_t line, int64_t column) const {
    return data + network * network_stride + line * in_stride + column * out_stride;
  }
};

// Some numbers as a packed line holds them: as they are, in float32, or two of the depth together.
inline Vector load_packed(const float* from) { return load(from); }
inline Vector load_packed(const BFloat16* from) {
  if constexpr (Arithmetic<BFloat16>::kStep == 1) return load(from);
  return load(reinterpret_cast<const float*>(from));
}
inline void put(float* to, const float* from) { *to = *from; }
inline void put(float* to, const BFloat16* from) {
  if constexpr (Arithmetic<BFloat16>::kStep == 1)
    *to = widen(*from);
  else
    std::memcpy(to, from, sizeof *to);
}

// Columns [first, first + count) of some depth, one packed line per step into it; the rest of a line is left alone.
template <typename T>
void pack(const Matrix<T>& matrix, int64_t network, int64_t start, int64_t depth, int64_t first, int64_t count,
          float* to) {
  const T* from = matrix.at(network, start, first);
  constexpr int64_t step = Arithmetic<T>::kStep;
  const int64_t num_lines = depth / step;
  if (matrix.out_stride == 1) {
    for (int64_t line = 0; line < num_lines; ++line, from += step * matrix.in_stride, to += kPanel) {
      int64_t o = 0;
      for (; o + 2 * kLanes <= count; o += 2 * kLanes) {
        Vector w[2];
        Arithmetic<T>::load_step(from + o, matrix.in_stride, w);
        store(to + o, w[0]), store(to + o + kLanes, w[1]);
      }
      for (; o < count; ++o) {
        T both[step];
        for (int64_t each = 0; each < step; ++each) both[each] = from[each * matrix.in_stride + o];
        put(to + o, both);
      }
    }
    return;
  }
  const int64_t whole_lines = num_lines / kLanes * kLanes, whole_columns = count / kLanes * kLanes;
  for (int64_t o = 0; o < whole_columns; o += kLanes)
    for (int64_t line = 0; line < whole_lines; line += kLanes) {
      Vector square[kLanes];
      for (int64_t i = 0; i < kLanes; ++i) square[i] = load_packed(from + (o + i) * matrix.out_stride + line * step);
      transpose(square);
      for (int64_t i = 0; i < kLanes; ++i) store(to + (line + i) * kPanel + o, square[i]);
    }
  for (int64_t o = 0; o < count; ++o)
    for (int64_t line = o < whole_columns ? whole_lines : 0; line < num_lines; ++line)
      put(to + line * kPanel + o, from + o * matrix.out_stride + line * step);
}

// Weights that a coming panel packs, asked of memory while the present one computes: the processor cannot guess them.
class Ahead {
 public:
  Ahead() = default;
  template <typename T>
  Ahead(const Matrix<T>& matrix, int64_t network, int64_t first, int64_t width) {
    const int64_t depth = std::min(matrix.depth, kDepth), size = sizeof(T);
    const bool is_in_order = matrix.out_stride == 1;
    at_ = reinterpret_cast<const char*>(matrix.at(network, 0, first));
    stride_ = (is_in_order ? matrix.in_stride : matrix.out_stride) * size;
    num_bytes_ = (is_in_order ? width : depth) * size;
    num_left_ = is_in_order ? depth : width;
  }
  int64_t num_left() const { return num_left_; }
  void fetch(int64_t count) {
    for (; count > 0 && num_left_ > 0; --count, --num_left_, at_ += stride_) cong::fetch(at_, num_bytes_);
  }

 private:
  const char* at_ = nullptr;
  int64_t stride_ = 0, num_bytes_ = 0, num_left_ = 0;
};

}  // namespace cong
