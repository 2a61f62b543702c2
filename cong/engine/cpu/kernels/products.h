// Products of some rows with the weights of S networks.
//
// A panel of a weight's columns meets all rows: where it lies if its lines are whole and float32, else brought into order
// once. Few rows meet wide strips of the weights in the order these lie in, at the rate of memory. Each sum runs through
// the depth in order, whatever rows are beside it, and so is the same in either way.

#pragma once

#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "sharing.h"
#include "weights.h"

namespace cong {

constexpr int64_t kRows = 6;  // of 4 vectors of sums each, which fill the 32 registers
constexpr int64_t kFewRows = 16, kColumns = 2 * kLanes, kStrip = 1024, kAheadBytes = 512;

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

// Calls with the number as a constant, which is at most Most.
template <int Most, typename Call>
void as_constant(int64_t number, const Call& call) {
  if constexpr (Most > 1)
    if (number < Most) return as_constant<Most - 1>(number, call);
  call(std::integral_constant<int, Most>{});
}

// Adds to the sums of R rows what some lines of kColumns weights contribute.
template <typename T, int R>
void add_lines(const RowOf<T>* rows, int64_t row_stride, const T* line, int64_t line_stride, int64_t num_lines,
               float* sums, int64_t sum_stride, bool is_first) {
  Vector all[R][2];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) all[r][v] = is_first ? Vector{} : load(sums + r * sum_stride + v * kLanes);
  constexpr int64_t step = Arithmetic<T>::kStep;
  for (int64_t i = 0; i < num_lines; i += step, line += step * line_stride) {
    Vector w[2];
    Arithmetic<T>::load_step(line, line_stride, w);
    for (int r = 0; r < R; ++r) {
      const Vector x = Arithmetic<T>::splat_row(rows + r * row_stride + i);
      for (int v = 0; v < 2; ++v) all[r][v] = Arithmetic<T>::multiply(x, w[v], all[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) store(sums + r * sum_stride + v * kLanes, all[r][v]);
}

// Few rows times columns that lie side by side, into their sums: some lines at a time, each read through to its end, as
// memory likes it.
template <typename T>
void strip(const RowOf<T>* rows, int64_t row_stride, int64_t num_rows, const T* lines, int64_t line_stride, int64_t depth,
           int64_t width, float* sums, int64_t sum_stride) {
  constexpr int64_t at_once = 8 * Arithmetic<T>::kStep, ahead = kAheadBytes / sizeof(T), most = 8;
  const int64_t num_groups = (num_rows + most - 1) / most, group = (num_rows + num_groups - 1) / num_groups;
  for (int64_t start = 0; start < depth; start += at_once) {
    const int64_t count = std::min(depth - start, at_once);
    for (int64_t first = 0; first < width; first += kColumns) {
      const T* from = lines + start * line_stride + first;
      // Memory is asked for what comes next in each line: so many at a time are more than it guesses.
      const T* soon = first + ahead < width ? from + ahead : from + at_once * line_stride + ahead - width;
      for (int64_t i = 0; i < count; ++i) fetch<kNear>(soon + i * line_stride, kColumns);
      T whole[at_once * kColumns];
      const bool is_whole = width - first >= kColumns;
      for (int64_t i = 0; !is_whole && i < count; ++i)
        std::copy_n(from + i * line_stride, width - first, whole + i * kColumns);
      for (int64_t r = 0; r < num_rows; r += group)
        as_constant<most>(std::min(group, num_rows - r), [&](auto num) {
          add_lines<T, num()>(rows + r * row_stride + start, row_stride, is_whole ? from : whole,
                              is_whole ? line_stride : kColumns, count, sums + r * sum_stride + first, sum_stride,
                              start == 0);
        });
    }
  }
}

// Columns of one network's weights, from one matrix or as many from each of two.
template <typename T>
struct Panel {
  const Matrix<T>*left, *right;
  int64_t network, first, width;
};

// Products of all rows with the columns of some matrices side by side, or of two of which a pair of columns is one.
// Cut into tasks: a panel and all rows, or some of them where panels are few.
template <typename T>
struct Product {
  std::vector<Panel<T>> panels;
  int64_t num_rows, num_parts, part_rows;
  int64_t panel_width;  // sums of a row and panel, those of the right matrix in the second half
  bool is_wide = true;  // whether few rows meet strips
  Shares shares;

  Product(std::initializer_list<const Matrix<T>*> matrices, int64_t rows, int64_t num_threads, bool are_pairs = false)
      : num_rows(rows), panel_width(kPanel), shares(0, num_threads) {
    const Matrix<T>* first_matrix = *matrices.begin();
    int64_t all_columns = 0;
    for (const Matrix<T>* matrix : matrices) {
      all_columns += matrix->width * matrix->num_networks;
      is_wide = is_wide && rows <= kFewRows && matrix->out_stride == 1;
    }
    const int64_t wanted = 4 * num_threads;
    if (is_wide) panel_width = std::clamp(all_columns / wanted / (2 * kColumns) * (2 * kColumns), 2 * kColumns, kStrip);
    const int64_t step = are_pairs ? panel_width / 2 : panel_width;
    const Matrix<T>* right = are_pairs ? *(matrices.begin() + 1) : nullptr;
    for (int64_t network = 0; network < first_matrix->num_networks; ++network)
      for (const Matrix<T>* matrix : matrices)
        for (int64_t first = 0; matrix != right && first < matrix->width; first += step)
          panels.push_back({matrix, right, network, first, std::min(step, matrix->width - first)});
    const int64_t num_panels = panels.size();
    num_parts = std::clamp<int64_t>(wanted / num_panels, 1, std::max<int64_t>(1, rows / 48));
    part_rows = (rows + num_parts - 1) / num_parts;
    shares = Shares(num_panels * num_parts, num_threads);
  }
};

// One panel times some rows [rows, depth] of its network, into sums [rows, kPanel].
template <typename T>
void multiply_panel(const Panel<T>& panel, const RowOf<T>* rows, int64_t num_rows, float* sums, Ahead (&ahead)[2]) {
  static thread_local std::vector<Line> packed_lines;
  constexpr int64_t step = Arithmetic<T>::kStep;
  const Matrix<T>&left = *panel.left, &other = panel.right ? *panel.right : left;
  // Whole panels of float32 weights meet rows where they lie.
  const bool is_full = panel.width == (panel.right ? kPanel / 2 : kPanel);
  const bool is_direct = step == 1 && sizeof(T) == sizeof(float) && is_full && left.out_stride == 1 &&
                         other.out_stride == 1 && left.in_stride == other.in_stride;
  for (int64_t start = 0; start < left.depth; start += kDepth) {
    const int64_t part = std::min(kDepth, left.depth - start), num_lines = part / step;
    if (is_direct) {
      const auto line = [&](const Matrix<T>& matrix) {
        return reinterpret_cast<const float*>(matrix.at(panel.network, start, panel.first));
      };
      const float* more = panel.right ? line(other) : line(left) + kPanel / 2;
      tiles<T>(rows + start, left.depth, num_rows, line(left), more, left.in_stride, num_lines, sums, start == 0, ahead);
      continue;
    }
    float* packed = room<float>(packed_lines, num_lines * kPanel);
    pack(left, panel.network, start, part, panel.first, panel.width, packed);
    if (panel.right) pack(other, panel.network, start, part, panel.first, panel.width, packed + kPanel / 2);
    tiles<T>(rows + start, left.depth, num_rows, packed, packed + kPanel / 2, kPanel, num_lines, sums, start == 0, ahead);
  }
}

// Every panel times every row [S, N, depth]; `finish(panel, row, sums, right_sums)` takes what came of each row. All
// threads of a parallel region call this together, and leave it together.
template <typename T, typename Finish>
void multiply(Product<T>& product, const RowOf<T>* rows, const Finish& finish) {
  static thread_local std::vector<Line> sum_lines;
  const std::vector<Panel<T>>& panels = product.panels;
  const int64_t num_panels = panels.size(), num_rows = product.num_rows, part_rows = product.part_rows;
  // Strips of a page's length would have the sums of all rows in the same sets of the cache.
  const int64_t half = product.panel_width / 2, stride = product.panel_width + (product.is_wide ? kLanes : 0);
  product.shares.each([&](int64_t task) {
    const Panel<T>& panel = panels[task % num_panels];
    const int64_t depth = panel.left->depth, first_row = task / num_panels * part_rows;
    const int64_t count = std::min(part_rows, num_rows - first_row);
    if (count <= 0) return;
    const RowOf<T>* own = rows + (panel.network * num_rows + first_row) * depth;
    float* sums = room<float>(sum_lines, count * stride);
    const auto each_matrix = [&](const auto& run) {
      run(*panel.left, sums);
      if (panel.right) run(*panel.right, sums + half);
    };
    if (product.is_wide) {
      each_matrix([&](const Matrix<T>& matrix, float* to) {
        const T* lines = matrix.at(panel.network, 0, panel.first);
        strip(own, depth, count, lines, matrix.in_stride, depth, panel.width, to, stride);
      });
    } else {
      Ahead ahead[2];
      if (task + 1 < num_panels * product.num_parts && count > 2 * kRows) {
        const Panel<T>& coming = panels[(task + 1) % num_panels];
        ahead[0] = Ahead(*coming.left, coming.network, coming.first, coming.width);
        if (coming.right) ahead[1] = Ahead(*coming.right, coming.network, coming.first, coming.width);
      }
      multiply_panel(panel, own, count, sums, ahead);
    }
    each_matrix([&](const Matrix<T>& matrix, float* to) {
      const float* bias = matrix.bias + panel.network * matrix.width + panel.first;
      for (int64_t row = 0; matrix.bias && row < count; ++row)
        for (int64_t o = 0; o < panel.width; ++o) to[row * stride + o] += bias[o];
    });
    for (int64_t row = 0; row < count; ++row)
      finish(panel, first_row + row, sums + row * stride, sums + row * stride + half);
  });
}

}  // namespace cong
