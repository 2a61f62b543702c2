// Attention over keys and values that lie in blocks: every row is one token of one sequence and looks at that
// sequence's positions up to its own.
//
// Blocks are read where they lie. A row's sums are taken in float32 and in one order, whatever rows are beside it: a
// token's numbers are the same alone, in a crowd, in a prompt's chunk and by itself. Knows nothing of models.

#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <vector>

#include "sharing.h"
#include "vectors.h"

namespace cong {

// Where N rows stand: whose they are, at which position, and the places [sequences, blocks] of everybody's blocks.
struct Rows {
  const int32_t *table, *sequence, *position;
  int64_t table_width, count;

  Rows(const at::Tensor& places, const at::Tensor& sequences, const at::Tensor& positions)
      : table(places.const_data_ptr<int32_t>()),
        sequence(sequences.const_data_ptr<int32_t>()),
        position(positions.const_data_ptr<int32_t>()),
        table_width(places.size(1)),
        count(sequences.size(0)) {
    for (const at::Tensor& tensor : {places, sequences, positions})
      TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == at::kInt, "places are contiguous and int32");
  }

  const int32_t* blocks(int64_t row) const { return table + sequence[row] * table_width; }
};

// What one task attends with: a row, or neighbours in one sequence, which share what they read, and some of the heads of
// all networks, which lie side by side in every block.
struct Tile {
  int64_t first, count, first_head, num_heads;
};

// As many heads at once as leave enough tiles for all threads, and as keep a tile's scores in the cache.
inline std::vector<Tile> tiles_of(const Rows& rows, int64_t group, int64_t num_heads, int64_t num_threads) {
  constexpr int64_t kTilesPerThread = 4, kScores = 1 << 16;
  const int64_t most_rows = std::max<int64_t>(1, 16 / group);
  std::vector<Tile> stretches;
  for (int64_t row = 0; row < rows.count; ++row) {
    const bool follows = row > 0 && rows.sequence[row] == rows.sequence[row - 1] &&
                         rows.position[row] == rows.position[row - 1] + 1 && stretches.back().count < most_rows;
    if (follows)
      ++stretches.back().count;
    else
      stretches.push_back({row, 1, 0, num_heads});
  }
  const int64_t wanted = kTilesPerThread * num_threads;
  const int64_t most_heads = (num_heads * static_cast<int64_t>(stretches.size()) + wanted - 1) / wanted;
  std::vector<Tile> tiles;
  for (const Tile& all : stretches) {
    const int64_t scores = all.count * group * (rows.position[all.first] + all.count);
    const int64_t at_once = std::clamp<int64_t>(kScores / scores, 1, std::min(most_heads, num_heads));
    for (int64_t head = 0; head < num_heads; head += at_once)
      tiles.push_back({all.first, all.count, head, std::min(at_once, num_heads - head)});
  }
  return tiles;
}

// Keys or values [places, heads of all networks, block size, width].
template <typename T>
struct Pool {
  T* data;
  int64_t num_heads, size, width;

  explicit Pool(at::Tensor& pool)
      : data(pool.data_ptr<T>()), num_heads(pool.size(1)), size(pool.size(2)), width(pool.size(3)) {
    TORCH_CHECK(pool.is_contiguous(), "pools are contiguous");
  }
  T* block(int64_t place, int64_t head) const { return data + (place * num_heads + head) * size * width; }
  T* slot(const Rows& rows, int64_t row, int64_t head) const {
    const int64_t position = rows.position[row];
    return block(rows.blocks(row)[position / size], head) + position % size * width;
  }
};

// A tensor [S, heads, N, width] whose last dimension is contiguous.
template <typename T>
struct View {
  T* data;
  int64_t network_stride, head_stride, row_stride;

  T* at(int64_t network, int64_t head, int64_t row) const {
    return data + network * network_stride + head * head_stride + row * row_stride;
  }
};

// R queries, kept one after the other, against one key.
template <int R, typename T>
inline void scores_of(const float* queries, const T* key, int64_t width, float* scores, int64_t stride) {
  Vector sums[R] = {};
  float rest[R] = {};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    const Vector k = load(key + d);
    for (int r = 0; r < R; ++r) sums[r] += load(queries + r * width + d) * k;
  }
  for (; d < width; ++d)
    for (int r = 0; r < R; ++r) rest[r] += queries[r * width + d] * widen(key[d]);
  for (int r = 0; r < R; ++r) scores[r * stride] = sum(sums[r]) + rest[r];
}

// mixed [width] += the values of `count` positions, each times its share; what lies at `next` is read soon.
template <int V, typename T>
inline void add_values(float* mixed, const float* shares, const T* values, const T* next, int64_t count, int64_t width) {
  Vector sums[V];
  for (int v = 0; v < V; ++v) sums[v] = load(mixed + v * kLanes);
  for (int64_t i = 0; i < count; ++i) {
    fetch(next + i * width, V * kLanes);
    const Vector share = splat(shares[i]);
    for (int v = 0; v < V; ++v) sums[v] += share * load(values + i * width + v * kLanes);
  }
  for (int v = 0; v < V; ++v) store(mixed + v * kLanes, sums[v]);
}

// Some positions of one block and head: the first and the one behind the last, where they lie, and what is read next.
template <typename T>
struct Part {
  int64_t first, end;
  const T *here, *next;
};

template <typename T, typename Query, typename Out>
struct Attention {
  Rows rows;
  Pool<T> keys, values;
  View<const Query> query;
  View<Out> out;
  int64_t num_queries;  // heads of one network's queries
  int64_t own_heads;    // heads of one network's keys
  float scaling, softcap;
  int64_t window;

  int64_t group() const { return num_queries / own_heads; }

  // Once per tile; every row's keys and values are in their blocks by then.
  void attend(const Tile& tile) const {
    static thread_local std::vector<float> wide, scores, mixed;
    const int64_t width = keys.width, value_width = values.width, count = tile.count * group();
    const int64_t first_position = rows.position[tile.first], end = first_position + tile.count;
    const int64_t start = begin(first_position), length = end - start;
    const int64_t in_all = tile.num_heads * count;

    wide.resize(in_all * width);
    for (int64_t q = 0; q < in_all; ++q) {
      const Query* from = head_of(query, tile, q);
      for (int64_t d = 0; d < width; ++d) wide[q * width + d] = widen(from[d]) * scaling;
    }
    if (static_cast<int64_t>(scores.size()) < in_all * length) scores.resize(in_all * length);
    const T* first_values = values.block(rows.blocks(tile.first)[start / values.size], tile.first_head);
    each_block(keys, tile, start, end, first_values, [&](int64_t head, const Part<T>& part) {
      const float* own = wide.data() + head * count * width;
      float* to = scores.data() + head * count * length + part.first - start;
      const T *key = part.here, *next = part.next;
      for (int64_t i = part.first; i < part.end; ++i, ++to, key += width, next += width) {
        fetch(next, width);
        int64_t q = 0;
        for (; q + 4 <= count; q += 4) scores_of<4>(own + q * width, key, width, to + q * length, length);
        for (; q < count; ++q) scores_of<1>(own + q * width, key, width, to + q * length, length);
      }
    });
    for (int64_t q = 0; q < in_all; ++q) {
      const int64_t position = first_position + q % count / group(), from = begin(position);
      normalise(scores.data() + q * length + from - start, position + 1 - from);
    }
    mixed.assign(in_all * value_width, 0.0f);
    each_block(values, tile, start, end, nullptr, [&](int64_t head, const Part<T>& part) {
      const T* next = part.next;
      for (int64_t row = 0, q = head * count; row < tile.count; ++row) {
        // No more than a row looks at: others' values may be no numbers, which a share of 0 does not take away.
        const int64_t position = first_position + row, from = std::max(part.first, begin(position));
        const int64_t looked_at = std::min(part.end, position + 1) - from, skipped = (from - part.first) * value_width;
        for (int64_t each = 0; each < group(); ++each, ++q, next = part.here)
          mix(mixed.data() + q * value_width, scores.data() + q * length + from - start, part.here + skipped,
              next + skipped, looked_at);
      }
    });
    for (int64_t q = 0; q < in_all; ++q) {
      Out* to = head_of(out, tile, q);
      for (int64_t d = 0; d < value_width; ++d) to[d] = static_cast<Out>(mixed[q * value_width + d]);
    }
  }

 private:
  // The blocks from position `start` to `end`, and in each the tile's heads, all in the order they lie in.
  template <typename Visit>
  void each_block(const Pool<T>& pool, const Tile& tile, int64_t start, int64_t end, const T* afterwards,
                  const Visit& visit) const {
    const int32_t* blocks = rows.blocks(tile.first);
    for (int64_t first = start; first < end;) {
      const int64_t stop = std::min(end, (first / pool.size + 1) * pool.size);
      const T* here = pool.block(blocks[first / pool.size], tile.first_head) + first % pool.size * pool.width;
      // Blocks lie anywhere, so the processor has to be told which one comes next.
      const T* next_block = stop < end ? pool.block(blocks[stop / pool.size], tile.first_head) : afterwards;
      for (int64_t head = 0; head < tile.num_heads; ++head) {
        const T* behind = here + pool.size * pool.width;
        const T* next = head + 1 < tile.num_heads ? behind : next_block;
        visit(head, Part<T>{first, stop, here, next ? next : here});
        here = behind;
      }
      first = stop;
    }
  }

  // A tile's q-th query or answer: all of its first head, then all of the next.
  template <typename U>
  U* head_of(const View<U>& view, const Tile& tile, int64_t q) const {
    const int64_t count = tile.count * group(), head = tile.first_head + q / count, own = q % count;
    return view.at(head / own_heads, head % own_heads * group() + own % group(), tile.first + own / group());
  }

  // The first position that a row at this one looks at.
  int64_t begin(int64_t position) const { return window > 0 ? std::max<int64_t>(0, position + 1 - window) : 0; }

  void mix(float* mixed, const float* shares, const T* block, const T* next, int64_t count) const {
    const int64_t width = values.width;
    int64_t d = 0;
    for (; d + 4 * kLanes <= width; d += 4 * kLanes) add_values<4>(mixed + d, shares, block + d, next + d, count, width);
    for (; d + kLanes <= width; d += kLanes) add_values<1>(mixed + d, shares, block + d, next + d, count, width);
    for (; d < width; ++d)
      for (int64_t i = 0; i < count; ++i) mixed[d] += shares[i] * widen(block[i * width + d]);
  }

  void normalise(float* scores, int64_t count) const {
    if (softcap > 0.0f)
      for (int64_t i = 0; i < count; ++i) scores[i] = std::tanh(scores[i] / softcap) * softcap;
    float best = scores[0];
    for (int64_t i = 1; i < count; ++i) best = std::max(best, scores[i]);
    for (int64_t i = 0; i < count; ++i) scores[i] = exponential(scores[i] - best);
    Vector sums{};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) sums += load(scores + i);
    float total = sum(sums);
    for (; i < count; ++i) total += scores[i];
    const float share = 1.0f / total;
    for (int64_t j = 0; j < count; ++j) scores[j] *= share;
  }
};

}  // namespace cong
