// Vectors of floats as wide as the processor's, and the few functions on them that the kernels need.
//
// Every sum is written out in one fixed order, so that a row's numbers do not depend on what is computed beside it.

#pragma once

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace cong {

using c10::BFloat16;

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef float LooseVector __attribute__((vector_size(kLanes * 4), aligned(4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2)));

inline Vector splat(float x) { return Vector{} + x; }
inline Vector load(const float* from) { return *reinterpret_cast<const LooseVector*>(from); }
inline void store(float* to, Vector x) { *reinterpret_cast<LooseVector*>(to) = x; }
inline Vector load(const BFloat16* from) {
  return reinterpret_cast<Vector>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Bits) << 16);
}

// How near to the processor numbers are fetched: next to it, or into the second cache, not to push out what is in use.
constexpr int kNear = 3, kNearby = 2;

// Tells the processor that so many numbers are read soon.
template <int Where = kNearby, typename T>
inline void fetch(const T* from, int64_t count) {
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(from) + byte, 0, Where);
}

// The lanes of two vectors in turn: those of their first halves, and those of their second.
inline void interleave(Vector a, Vector b, Vector& first, Vector& second) {
#if defined(__AVX512F__)
  first = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  second = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
  first = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  second = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#endif
}

// Lane i of row j becomes lane j of row i: each round deals the rows of both halves out like two halves of a deck.
inline void transpose(Vector (&rows)[kLanes]) {
  for (int64_t round = 1; round < kLanes; round *= 2) {
    Vector dealt[kLanes];
    for (int64_t i = 0; i < kLanes / 2; ++i)
      interleave(rows[i], rows[i + kLanes / 2], dealt[2 * i], dealt[2 * i + 1]);
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = dealt[i];
  }
}

inline float widen(float x) { return x; }
inline float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline float sum(Vector x) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  const Eight eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                      __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  const Eight eight = x;
#endif
  const Four four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) + __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// exp(x - n ln2), where that lies in [-ln2/2, ln2/2]; of a number or of every lane.
template <typename T>
[[gnu::always_inline]] inline T exponential_of_rest(T x, T n) {
  T r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  T p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * r * r + r + 1.0f;
}

// exp to about 1e-7 relative: 2^n times a polynomial on [-ln2/2, ln2/2]; below -87 it stays at about 1e-38.
[[gnu::always_inline]] inline float exponential(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float n = std::nearbyint(x * 1.44269504088896341f);
  const float p = exponential_of_rest(x, n);
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// The same of every lane; the sum with 1.5 * 2^23 leaves the nearest whole number.
[[gnu::always_inline]] inline Vector exponential(Vector x) {
  x = x < -87.0f ? splat(-87.0f) : x;
  x = x > 88.0f ? splat(88.0f) : x;
  const Vector n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
  const Vector p = exponential_of_rest(x, n);
  typedef int32_t Whole __attribute__((vector_size(kLanes * 4)));
  return p * reinterpret_cast<Vector>((__builtin_convertvector(n, Whole) + 127) << 23);
}

template <typename T>
inline float dot(const float* a, const T* b, int64_t width) {
  Vector sums{};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) sums += load(a + d) * load(b + d);
  float rest = 0.0f;
  for (; d < width; ++d) rest += a[d] * widen(b[d]);
  return sum(sums) + rest;
}

}  // namespace cong
