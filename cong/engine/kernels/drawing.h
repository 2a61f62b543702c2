// A token for every row of several networks' logits, by the rule of cong.decoding: the head set is found first, and all
// that follows looks at it alone.
//
// A row's numbers do not depend on what is drawn beside it. Knows numbers only, and nothing of sequences.

#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <numeric>
#include <vector>

#include "vectors.h"

namespace cong {

constexpr float kNever = -std::numeric_limits<float>::infinity();

// Logits [rows, words] of one network; words lie side by side.
template <typename T>
struct Logits {
  const T* data;
  int64_t stride;

  explicit Logits(const at::Tensor& logits) : data(logits.const_data_ptr<T>()), stride(logits.stride(0)) {
    TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1, "logits are [rows, words], and words lie side by side");
  }
  const T* row(int64_t number) const { return data + number * stride; }
};

// What turns logits into log-probabilities.
struct Total {
  float best, log_sum;

  float logprob(float logit) const { return logit - best - log_sum; }
};

// Over numbers that `number(v)` gives, lane by lane, so that the compiler can use whole vectors.
template <typename Numbers>
float largest(int64_t count, const Numbers& number) {
  const int64_t whole = count / kLanes * kLanes;
  float lanes[kLanes], best = kNever;
  std::fill_n(lanes, kLanes, kNever);
  for (int64_t v = 0; v < whole; v += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = std::max(lanes[lane], number(v + lane));
  for (int64_t v = whole; v < count; ++v) best = std::max(best, number(v));
  for (const float lane : lanes) best = std::max(best, lane);
  return best;
}

template <typename Numbers>
float sum_of(int64_t count, const Numbers& number) {
  const int64_t whole = count / kLanes * kLanes;
  float lanes[kLanes] = {}, sum = 0.0f;
  for (int64_t v = 0; v < whole; v += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += number(v + lane);
  for (int64_t v = whole; v < count; ++v) sum += number(v);
  for (const float lane : lanes) sum += lane;
  return sum;
}

inline float probability(float logq) {
  const float found = exponential(logq);
  return logq < -87.0f ? 0.0f : found;
}

template <typename T>
Total total_of(const T* logits, int64_t num_words) {
  const float best = largest(num_words, [&](int64_t v) { return widen(logits[v]); });
  const float sum = sum_of(num_words, [&](int64_t v) { return exponential(widen(logits[v]) - best); });
  return {best, std::log(sum)};
}

// Of scores of which at least one is finite.
inline void log_softmax(std::vector<float>& scores) {
  const int64_t count = scores.size();
  float* const own = scores.data();
  const float best = largest(count, [&](int64_t h) { return own[h]; });
  const float log_sum = std::log(sum_of(count, [&](int64_t h) { return probability(own[h] - best); }));
  for (int64_t h = 0; h < count; ++h) own[h] = own[h] - best - log_sum;
}

// SplitMix64's output function (Steele, Lea, Flood 2014).
inline uint64_t scramble(uint64_t value) {
  value += 0x9E3779B97F4A7C15u;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

inline double uniform(uint64_t seed, uint64_t sample_index, uint64_t position) {
  return static_cast<double>(scramble(scramble(scramble(seed) ^ sample_index) ^ position) >> 11) * 0x1p-53;
}

// A row's rule as `number_rules` lays it out: these, then the weights of the networks.
enum Number { kFloor, kTemperature, kTopK, kTopP, kPenalty, kPenaltyRule, kWeights };
enum PenaltyRule { kAdditive, kMultiplicative, kReference };

// Flags [rows, words], or none.
struct Flags {
  const bool* data = nullptr;
  int64_t stride = 0;

  explicit Flags(const std::optional<at::Tensor>& flags) {
    if (!flags) return;
    TORCH_CHECK(flags->is_contiguous() && flags->scalar_type() == at::kBool, "flags are contiguous booleans");
    data = flags->const_data_ptr<bool>();
    stride = flags->size(1);
  }
  const bool* row(int64_t number) const { return data ? data + number * stride : nullptr; }
};

// Keeps of the head set, by ascending id, what top-k and top-p keep; of equal ones the lower ids.
inline void keep_top(std::vector<float>& logq, float top_k, double top_p) {
  static thread_local std::vector<int32_t> order;
  static thread_local std::vector<float> prob;
  order.clear(), prob.resize(logq.size());
  for (size_t h = 0; h < logq.size(); ++h) {
    prob[h] = probability(logq[h]);
    if (prob[h] > 0.0f) order.push_back(static_cast<int32_t>(h));
  }
  const auto is_before = [&](int32_t a, int32_t b) { return prob[a] > prob[b] || (prob[a] == prob[b] && a < b); };
  const size_t num_best = std::min(order.size(), static_cast<size_t>(top_k));
  std::partial_sort(order.begin(), order.begin() + num_best, order.end(), is_before);
  double total = 0.0, mass = 0.0;
  for (size_t i = 0; i < num_best; ++i) total += prob[order[i]];
  size_t num_kept = 0;
  for (; num_kept < num_best; ++num_kept) {
    const double through = mass + prob[order[num_kept]];
    if (top_p < 1.0 && through - prob[order[num_kept]] >= top_p * total) break;
    mass = through;
  }
  for (const int32_t h : order) prob[h] = 0.0f;
  for (size_t i = 0; i < num_kept; ++i) prob[order[i]] = 1.0f;
  for (size_t h = 0; h < logq.size(); ++h)
    if (prob[h] == 0.0f) logq[h] = kNever;
  log_softmax(logq);
}

// A row's room, kept by its thread.
struct Head {
  std::vector<int32_t> ids;
  std::vector<float> anchor, other, scores, logq, prob;
  std::vector<double> sums;
  std::vector<Total> totals;

  void resize(size_t size) {
    for (std::vector<float>* each : {&anchor, &other, &scores, &logq, &prob}) each->resize(size);
  }
};

// Log-probabilities of some words.
template <typename T>
void pick(const T* logits, Total total, const std::vector<int32_t>& ids, float* to) {
  const int64_t size = ids.size();
  for (int64_t h = 0; h < size; ++h) to[h] = widen(logits[ids[h]]);
  for (int64_t h = 0; h < size; ++h) to[h] = total.logprob(to[h]);
}

constexpr int64_t kPart = 256;

// The first of these, walking upwards, through which their sum exceeds `share` of all of it. Parts whose sum does not
// reach so far are passed over.
inline int64_t walk(const float* prob, int64_t size, double share, std::vector<double>& sums) {
  sums.clear();
  double total = 0.0;
  for (int64_t start = 0; start < size; start += kPart) {
    double lanes[kLanes] = {}, sum = 0.0;
    const int64_t stop = std::min(start + kPart, size), whole = start + (stop - start) / kLanes * kLanes;
    for (int64_t h = start; h < whole; h += kLanes)
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += prob[h + lane];
    for (int64_t h = whole; h < stop; ++h) sum += prob[h];
    for (const double lane : lanes) sum += lane;
    sums.push_back(total);
    total += sum;
  }
  const double target = share * total;
  int64_t part = sums.size() - 1;
  while (part > 0 && sums[part] > target) --part;
  int64_t last = 0;
  double sum = sums[part];
  for (int64_t h = part * kPart; h < size; ++h) {
    sum += prob[h];
    if (sum > target) return h;
  }
  // Rounding has left the target at the very total; the token that completes it is meant.
  for (int64_t h = 0; h < size; ++h)
    if (prob[h] > 0.0f) last = h;
  return last;
}

// Ids of the words with at least this log-probability, ascending.
template <typename T>
void find(const T* logits, int64_t num_words, Total total, float threshold, std::vector<int32_t>& ids) {
  ids.resize(num_words);
  int32_t* const to = ids.data();
  int64_t size = 0;
  for (int64_t v = 0; v < num_words; v += kLanes) {
    const int64_t stop = std::min(v + kLanes, num_words);
    if (total.logprob(largest(stop - v, [&](int64_t i) { return widen(logits[v + i]); })) < threshold) continue;
    for (int64_t word = v; word < stop; ++word) {
      to[size] = static_cast<int32_t>(word);  // without a branch, which nobody could foresee
      size += total.logprob(widen(logits[word])) >= threshold;
    }
  }
  ids.resize(size);
}

template <typename T>
void draw_row(const std::vector<Logits<T>>& logits, int64_t row, int64_t num_words, float head_log_lambda,
              const float* numbers, double uniform_number, const bool* is_seen, const bool* is_banned,
              const bool* is_exempt, Head& head, double* record) {
  const size_t num_networks = logits.size();
  head.totals.clear();
  for (const Logits<T>& each : logits) head.totals.push_back(total_of(each.row(row), num_words));
  const T* const anchor = logits[0].row(row);
  const Total of_anchor = head.totals[0];
  // As in the plain rule, both sides of the comparison are log-probabilities in float32.
  find(anchor, num_words, of_anchor, of_anchor.logprob(of_anchor.best) + head_log_lambda, head.ids);
  const int64_t size = head.ids.size();
  head.resize(size);
  const int32_t* const ids = head.ids.data();
  float *__restrict const own = head.anchor.data(), *__restrict const other = head.other.data();
  float *__restrict const scores = head.scores.data(), *__restrict const logq = head.logq.data();
  const float own_weight = numbers[kWeights], temperature = numbers[kTemperature], floor = numbers[kFloor];
  pick(anchor, of_anchor, head.ids, own);
  for (int64_t h = 0; h < size; ++h) scores[h] = own_weight * own[h];
  float shift = 0.0f;
  for (size_t k = 1; k < num_networks; ++k) {
    const float weight = numbers[kWeights + k];
    pick(logits[k].row(row), head.totals[k], head.ids, other);
    if (is_seen) {
      const float inside = sum_of(size, [&](int64_t h) { return probability(other[h]); });
      shift -= weight * std::log(inside + static_cast<float>(num_words - size) * 0.99900049983337499f);  // e ** -0.001
    }
    for (int64_t h = 0; is_exempt && h < size; ++h)
      if (is_exempt[ids[h]]) other[h] = own[h];
    for (int64_t h = 0; h < size; ++h) scores[h] += weight * std::max(other[h], floor);
  }
  if (is_seen) {
    const float penalty = numbers[kPenalty], rule = numbers[kPenaltyRule];
    for (int64_t h = 0; h < size; ++h) {
      const float shifted = scores[h] + (rule == kReference ? shift : 0.0f);
      if (!is_seen[ids[h]])
        scores[h] = shifted;
      else if (rule == kAdditive)
        scores[h] -= std::log(penalty);
      else
        scores[h] = shifted > 0.0f ? shifted / penalty : shifted * penalty;
    }
  }
  if (is_banned) {
    if (std::any_of(ids, ids + size, [&](int32_t word) { return !is_banned[word]; }))
      for (int64_t h = 0; h < size; ++h)
        if (is_banned[ids[h]]) scores[h] = kNever;
  }

  int64_t chosen = 0;
  if (temperature == 0.0f) {
    chosen = std::max_element(scores, scores + size) - scores;
    logq[chosen] = 0.0f;
  } else {
    for (int64_t h = 0; h < size; ++h) logq[h] = scores[h] / temperature;
    log_softmax(head.logq);
    if (numbers[kTopK] < static_cast<float>(num_words) || numbers[kTopP] < 1.0f)
      keep_top(head.logq, numbers[kTopK], numbers[kTopP]);
    float* __restrict const prob = head.prob.data();
    for (int64_t h = 0; h < size; ++h) prob[h] = probability(logq[h]);
    chosen = walk(prob, size, uniform_number, head.sums);
  }
  const int32_t word = ids[chosen];
  record[0] = word, record[1] = static_cast<double>(size), record[2] = logq[chosen];
  for (size_t k = 0; k < num_networks; ++k) record[3 + k] = head.totals[k].logprob(widen(logits[k].row(row)[word]));
}

}  // namespace cong
