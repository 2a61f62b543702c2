// Products of some rows with the weights of S networks, which stay in memory as torch holds them.
//
// A panel of a weight's columns meets all rows: where it lies if its lines are whole and float32, else brought into order
// once, in the processor's cache. Each sum runs through the depth in order, whatever rows are beside it.

#pragma once

#include <ATen/core/Tensor.h>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include <initializer_list>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "sharing.h"
#include "vectors.h"

namespace cong {

#if defined(__AVX512F__)
constexpr int64_t kVectors = 4;  // 6 rows of 4 vectors of sums fill the 32 registers
#else
constexpr int64_t kVectors = 2;
#endif
constexpr int64_t kRows = 6, kPanel = kVectors * kLanes, kDepth = 512;

// How one step into the depth multiplies: what rows are made of, and how many of their numbers meet in 32 bits.
template <typename T>
struct Arithmetic {
  using Row = float;
  static constexpr int64_t kStep = 1;
  static Vector splat_row(const float* row) { return splat(*row); }
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
};

// Up to kPanel columns of one network's weights, from one matrix, or half of them from each of two.
template <typename T>
struct Panel {
  const Matrix<T>*left, *right;
  int64_t network, first, width;
};

template <typename T>
std::vector<Panel<T>> panels_of(std::initializer_list<const Matrix<T>*> matrices) {
  std::vector<Panel<T>> panels;
  for (int64_t network = 0; network < (*matrices.begin())->num_networks; ++network)
    for (const Matrix<T>* matrix : matrices)
      for (int64_t first = 0; first < matrix->width; first += kPanel)
        panels.push_back({matrix, nullptr, network, first, std::min(kPanel, matrix->width - first)});
  return panels;
}

template <typename T>
std::vector<Panel<T>> panels_of_two(const Matrix<T>& left, const Matrix<T>& right) {
  std::vector<Panel<T>> panels;
  for (int64_t network = 0; network < left.num_networks; ++network)
    for (int64_t first = 0; first < left.width; first += kPanel / 2)
      panels.push_back({&left, &right, network, first, std::min(kPanel / 2, left.width - first)});
  return panels;
}

inline void put(float* to, float x) { *to = x; }
inline void put(float* to, BFloat16 x) { *to = widen(x); }

// Columns [first, first + count) of some depth, one packed line per step into it; the rest of a line is left alone.
template <typename T>
void pack(const Matrix<T>& matrix, int64_t network, int64_t start, int64_t depth, int64_t first, int64_t count,
          float* to) {
  const T* from = matrix.data + network * matrix.network_stride + start * matrix.in_stride + first * matrix.out_stride;
  constexpr int64_t step = Arithmetic<T>::kStep;
  if constexpr (step == 2) {
    if (matrix.out_stride == 1) {
      for (int64_t i = 0; i < depth; i += 2, to += kPanel) {
        const T *even = from + i * matrix.in_stride, *odd = even + matrix.in_stride;
        uint32_t both[kPanel];
        for (int64_t o = 0; o < count; ++o) both[o] = even[o].x | static_cast<uint32_t>(odd[o].x) << 16;
        std::memcpy(to, both, count * sizeof(float));
      }
    } else {
      for (int64_t o = 0; o < count; ++o)
        for (int64_t i = 0; i < depth; i += 2)
          std::memcpy(to + i / 2 * kPanel + o, from + o * matrix.out_stride + i, sizeof(float));
    }
  } else if (matrix.out_stride == 1) {
    for (int64_t i = 0; i < depth; ++i, to += kPanel)
      for (int64_t o = 0; o < count; ++o) put(to + o, from[i * matrix.in_stride + o]);
  } else {
    for (int64_t i = 0; i < depth; i += kLanes)
      for (int64_t o = 0; o < count; ++o)
        for (int64_t d = i; d < std::min(i + kLanes, depth); ++d)
          put(to + d * kPanel + o, from[o * matrix.out_stride + d]);
  }
}

// Weights that a coming panel packs, asked of memory while the present one computes: the processor cannot guess them.
class Ahead {
 public:
  Ahead() = default;
  template <typename T>
  Ahead(const Matrix<T>& matrix, int64_t network, int64_t first, int64_t width) {
    const int64_t depth = std::min(matrix.depth, kDepth), size = sizeof(T);
    const bool is_in_order = matrix.out_stride == 1;
    at_ = reinterpret_cast<const char*>(matrix.data + network * matrix.network_stride + first * matrix.out_stride);
    stride_ = (is_in_order ? matrix.in_stride : matrix.out_stride) * size;
    num_bytes_ = (is_in_order ? width : depth) * size;
    num_left_ = is_in_order ? depth : width;
  }
  int64_t num_left() const { return num_left_; }
  void fetch(int64_t count) {
    for (; count > 0 && num_left_ > 0; --count, --num_left_, at_ += stride_)
      for (int64_t byte = 0; byte < num_bytes_; byte += 64) __builtin_prefetch(at_ + byte, 0, 2);
  }

 private:
  const char* at_ = nullptr;
  int64_t stride_ = 0, num_bytes_ = 0, num_left_ = 0;
};

// Adds to the sums of R rows [R, kPanel] what a stretch of the depth contributes.
template <typename T, int R>
void tile(const RowOf<T>* rows, int64_t row_stride, const float* left, const float* right, int64_t weight_stride,
          int64_t num_lines, float* sums, bool is_first) {
  Vector all[R][kVectors];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVectors; ++v) all[r][v] = is_first ? Vector{} : load(sums + r * kPanel + v * kLanes);
  for (int64_t line = 0; line < num_lines; ++line, rows += Arithmetic<T>::kStep) {
    Vector w[kVectors];
    for (int v = 0; v < kVectors / 2; ++v) {
      w[v] = load(left + v * kLanes);
      w[kVectors / 2 + v] = load(right + v * kLanes);
    }
    left += weight_stride, right += weight_stride;
    for (int r = 0; r < R; ++r) {
      const Vector x = Arithmetic<T>::splat_row(rows + r * row_stride);
      for (int v = 0; v < kVectors; ++v) all[r][v] = Arithmetic<T>::multiply(x, w[v], all[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < kVectors; ++v) store(sums + r * kPanel + v * kLanes, all[r][v]);
}

template <typename T>
void tiles(const RowOf<T>* rows, int64_t row_stride, int64_t num_rows, const float* left, const float* right,
           int64_t weight_stride, int64_t num_lines, float* sums, bool is_first, Ahead (&ahead)[2]) {
  const int64_t num_tiles = (num_rows + kRows - 1) / kRows;
  const int64_t share = (ahead[0].num_left() + num_tiles - 1) / std::max<int64_t>(1, num_tiles);
  const auto run = [&](auto count) {
    tile<T, count()>(rows, row_stride, left, right, weight_stride, num_lines, sums, is_first);
    rows += count() * row_stride, sums += count() * kPanel, num_rows -= count();
    for (Ahead& each : ahead) each.fetch(share);
  };
  while (num_rows >= kRows) run(std::integral_constant<int, kRows>{});
  if (num_rows >= 4) run(std::integral_constant<int, 4>{});
  if (num_rows >= 2) run(std::integral_constant<int, 2>{});
  if (num_rows >= 1) run(std::integral_constant<int, 1>{});
}

struct alignas(64) Line {
  char bytes[64];
};

// A thread's room for numbers, which begin with a line of the cache; it grows to the largest that was asked for.
template <typename T>
T* room(std::vector<Line>& lines, int64_t count) {
  const size_t num_lines = (count * sizeof(T) + sizeof(Line) - 1) / sizeof(Line);
  if (lines.size() < num_lines) lines.resize(num_lines);
  return reinterpret_cast<T*>(lines.data());
}

// Products of all rows with some panels, cut into tasks: a panel and all rows, or some of them where panels are few.
template <typename T>
struct Product {
  std::vector<Panel<T>> panels;
  int64_t num_rows, num_parts, part_rows;
  Shares shares;

  Product(std::vector<Panel<T>> all, int64_t rows, int64_t num_threads)
      : panels(std::move(all)),
        num_rows(rows),
        num_parts(std::clamp<int64_t>(4 * num_threads / panels.size(), 1, std::max<int64_t>(1, rows / 48))),
        part_rows((rows + num_parts - 1) / num_parts),
        shares(panels.size() * num_parts, num_threads) {}
};

// Every panel times every row [S, N, depth]; `finish(panel, row, sums)` takes each row's kPanel sums. All threads of a
// parallel region call this together, and leave it together.
template <typename T, typename Finish>
void multiply(Product<T>& product, const RowOf<T>* rows, const Finish& finish) {
  static thread_local std::vector<Line> packed_lines, sum_lines;
  constexpr int64_t step = Arithmetic<T>::kStep;
  const std::vector<Panel<T>>& panels = product.panels;
  const int64_t num_panels = panels.size(), num_rows = product.num_rows, part_rows = product.part_rows;
  product.shares.each([&](int64_t task) {
    const Panel<T>& panel = panels[task % num_panels];
    const Matrix<T>& left = *panel.left;
    const int64_t depth = left.depth, first_row = task / num_panels * part_rows;
    const int64_t count = std::min(part_rows, num_rows - first_row);
    if (count <= 0) return;
    Ahead ahead[2];
    if (task + 1 < num_panels * product.num_parts && count > 2 * kRows) {
      const Panel<T>& coming = panels[(task + 1) % num_panels];
      ahead[0] = Ahead(*coming.left, coming.network, coming.first, coming.width);
      if (coming.right) ahead[1] = Ahead(*coming.right, coming.network, coming.first, coming.width);
    }
    const RowOf<T>* own = rows + (panel.network * num_rows + first_row) * depth;
    float* sums = room<float>(sum_lines, count * kPanel);
    // Whole panels of float32 weights meet rows where they lie.
    const Matrix<T>& other = panel.right ? *panel.right : left;
    const bool is_full = panel.width == (panel.right ? kPanel / 2 : kPanel);
    const bool is_direct = step == 1 && sizeof(T) == sizeof(float) && is_full && left.out_stride == 1 &&
                           other.out_stride == 1 && left.in_stride == other.in_stride;
    for (int64_t start = 0; start < depth; start += kDepth) {
      const int64_t part = std::min(kDepth, depth - start), num_lines = part / step;
      if (is_direct) {
        const auto line = [&](const Matrix<T>& matrix) {
          const T* from = matrix.data + panel.network * matrix.network_stride + start * matrix.in_stride + panel.first;
          return reinterpret_cast<const float*>(from);
        };
        const float* more = panel.right ? line(other) : line(left) + kPanel / 2;
        tiles<T>(own + start, depth, count, line(left), more, left.in_stride, num_lines, sums, start == 0, ahead);
        continue;
      }
      float* packed = room<float>(packed_lines, num_lines * kPanel);
      pack(left, panel.network, start, part, panel.first, panel.width, packed);
      if (panel.right) pack(*panel.right, panel.network, start, part, panel.first, panel.width, packed + kPanel / 2);
      tiles<T>(own + start, depth, count, packed, packed + kPanel / 2, kPanel, num_lines, sums, start == 0, ahead);
    }
    const auto add_bias = [&](const Matrix<T>& matrix, float* to) {
      const float* bias = matrix.bias + panel.network * matrix.width + panel.first;
      for (int64_t row = 0; matrix.bias && row < count; ++row)
        for (int64_t o = 0; o < panel.width; ++o) to[row * kPanel + o] += bias[o];
    };
    add_bias(left, sums);
    if (panel.right) add_bias(*panel.right, sums + kPanel / 2);
    for (int64_t row = 0; row < count; ++row) finish(panel, first_row + row, sums + row * kPanel);
  });
}

}  // namespace cong
