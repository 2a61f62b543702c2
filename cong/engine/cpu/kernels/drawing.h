// Drawing: K networks' logits of a row in, its token and what is recorded of it out.
//
// Says what `decode_step` of cong.decoding says, in the same order of float32 operations wherever a comparison hangs on
// it. A row is read twice per network; all that follows looks at its head set alone. Knows nothing of models.

#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "vectors.h"

namespace cong {

constexpr int64_t kBlock = 256;  // tokens that are looked at, or passed over, together
constexpr float kNever = -std::numeric_limits<float>::infinity();

typedef double EightWide __attribute__((vector_size(64)));
typedef float EightNarrow __attribute__((vector_size(32), aligned(4)));

inline float largest(Vector x) {
  float most = x[0];
  for (int64_t lane = 1; lane < kLanes; ++lane) most = std::max(most, x[lane]);
  return most;
}

// The sum of exp(x - best) over some numbers, in double from block to block; NaN where one of them is.
template <typename T>
double sum_of_exponentials(const T* numbers, int64_t count, float best) {
  double total = 0.0;
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t stop = std::min(start + kBlock, count);
    Vector sums{};
    int64_t i = start;
    for (; i + kLanes <= stop; i += kLanes) sums += exponential(load(numbers + i) - best);
    float rest = 0.0f;
    for (; i < stop; ++i) rest += exponential(widen(numbers[i]) - best);
    total += static_cast<double>(sum(sums)) + rest;
  }
  return total;
}

// One row's rule, in the order in which cong.engine.rule_numbers has it.
struct DrawRule {
  static constexpr int64_t kNumbers = 6;
  float floor, temperature, top_k, top_p, penalty, penalty_kind;
  const float* weights;

  explicit DrawRule(const float* numbers)
      : floor(numbers[0]),
        temperature(numbers[1]),
        top_k(numbers[2]),
        top_p(numbers[3]),
        penalty(numbers[4]),
        penalty_kind(numbers[5]),
        weights(numbers + kNumbers) {}
};
constexpr float kAdditive = 0.0f, kReference = 2.0f;

// What is asked of single tokens of a row; null where nothing is.
struct Marks {
  const bool *is_seen, *is_banned, *is_exempt;
};

// A random number in [0, 1) from a draw's coordinates: SplitMix64 (Steele, Lea, Flood 2014), as cong.decoding has it.
inline uint64_t scramble(uint64_t value) {
  value += 0x9E3779B97F4A7C15u;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}
inline double uniform(uint64_t seed, uint64_t sample_index, uint64_t position) {
  return static_cast<double>(scramble(scramble(scramble(seed) ^ sample_index) ^ position) >> 11) * 0x1p-53;
}

// Draws for one row after the other; holds the room that a row needs.
template <typename T>
class RowDrawer {
 public:
  RowDrawer(int64_t num_networks, int64_t vocab_size) : num_networks_(num_networks), vocab_size_(vocab_size) {
    best_.resize(num_networks), log_total_.resize(num_networks);
    block_best_.resize((vocab_size + kBlock - 1) / kBlock);
    ids_.resize(vocab_size), anchors_.resize(vocab_size);
    scores_.resize(vocab_size + kLanes), masses_.resize(vocab_size + kLanes);
  }

  // Writes token, size of the head set, log-prob under the mixture and under each network. The size is 0 where logits
  // are not numbers: then nothing else is said.
  void draw(const T* const* rows, float head_log_lambda, const DrawRule& rule, double random, const Marks& marks,
            double* record) {
    record[1] = 0.0;
    for (int64_t k = 0; k < num_networks_; ++k) weigh(rows[k], k);
    find_head(rows[0], head_log_lambda);
    if (size_ == 0) return;
    score(rows, rule, marks);
    if (marks.is_seen) penalize(rows, rule, marks.is_seen);
    if (marks.is_banned) ban(marks.is_banned);
    int64_t chosen = first_of_best();
    if (chosen == size_) return;
    double mixture_logprob = 0.0;
    if (rule.temperature != 0.0f) {
      const float best = scores_[chosen] / rule.temperature;
      const double total = spread(rule, best);
      chosen = find(random * total);
      mixture_logprob = scores_[chosen] / rule.temperature - best - static_cast<float>(std::log(total));
    }
    record[0] = ids_[chosen];
    record[1] = static_cast<double>(size_);
    record[2] = mixture_logprob;
    for (int64_t k = 0; k < num_networks_; ++k) record[3 + k] = logprob(rows[k], k, ids_[chosen]);
  }

 private:
  float logprob(const T* row, int64_t network, int64_t token) const {
    return widen(row[token]) - best_[network] - log_total_[network];
  }

  // The largest logit of a row and the log of its sum of exponentials relative to it; the first network's by block.
  void weigh(const T* row, int64_t network) {
    float best = kNever;
    for (int64_t start = 0; start < vocab_size_; start += kBlock) {
      const int64_t stop = std::min(start + kBlock, vocab_size_);
      Vector most = splat(widen(row[start]));
      int64_t v = start;
      for (; v + kLanes <= stop; v += kLanes) {
        const Vector x = load(row + v);
        most = x > most ? x : most;
      }
      float block_best = largest(most);
      for (; v < stop; ++v) block_best = std::max(block_best, widen(row[v]));
      if (network == 0) block_best_[start / kBlock] = block_best;
      best = std::max(best, block_best);
    }
    best_[network] = best;
    log_total_[network] = static_cast<float>(std::log(sum_of_exponentials(row, vocab_size_, best)));
  }

  void find_head(const T* row, float head_log_lambda) {
    // As in the plain rule, both sides of the comparison are log-probabilities in float32.
    const float best = best_[0], log_total = log_total_[0], threshold = head_log_lambda - log_total;
    int64_t size = 0;
    for (int64_t start = 0; start < vocab_size_; start += kBlock) {
      if (!(block_best_[start / kBlock] - best - log_total >= threshold)) continue;
      const int64_t stop = std::min(start + kBlock, vocab_size_);
      for (int64_t v = start; v < stop; ++v) {
        const float logprob = widen(row[v]) - best - log_total;
        ids_[size] = static_cast<int32_t>(v);
        anchors_[size] = logprob;
        size += logprob >= threshold;
      }
    }
    size_ = size;
  }

  void score(const T* const* rows, const DrawRule& rule, const Marks& marks) {
    for (int64_t i = 0; i < size_; ++i) scores_[i] = rule.weights[0] * anchors_[i];
    for (int64_t k = 1; k < num_networks_; ++k) {
      const T* row = rows[k];
      const float best = best_[k], log_total = log_total_[k];
      const float weight = rule.weights[k], floor = rule.floor;
      if (marks.is_exempt) {
        for (int64_t i = 0; i < size_; ++i) {
          const float other = marks.is_exempt[ids_[i]] ? anchors_[i] : widen(row[ids_[i]]) - best - log_total;
          scores_[i] += weight * (other < floor ? floor : other);
        }
      } else {
        for (int64_t i = 0; i < size_; ++i) {
          const float other = widen(row[ids_[i]]) - best - log_total;
          scores_[i] += weight * (other < floor ? floor : other);
        }
      }
    }
  }

  // The constant by which the published code's scores lie above ours, see reference_shift of cong.decoding.contrast.
  float shift(const T* const* rows, const DrawRule& rule) const {
    float shift = 0.0f;
    for (int64_t k = 1; k < num_networks_; ++k) {
      double inside = 0.0;
      for (int64_t i = 0; i < size_; ++i) inside += std::exp(logprob(rows[k], k, ids_[i]));
      const double outside = static_cast<double>(vocab_size_ - size_) * 0.99900049983337499;  // e^-0.001
      shift -= rule.weights[k] * static_cast<float>(std::log(inside + outside));
    }
    return shift;
  }

  void penalize(const T* const* rows, const DrawRule& rule, const bool* is_seen) {
    const float penalty = rule.penalty;
    if (rule.penalty_kind == kAdditive) {
      const float log_penalty = std::log(penalty);
      for (int64_t i = 0; i < size_; ++i) scores_[i] -= is_seen[ids_[i]] ? log_penalty : 0.0f;
      return;
    }
    const float added = rule.penalty_kind == kReference ? shift(rows, rule) : 0.0f;
    for (int64_t i = 0; i < size_; ++i) {
      const float shifted = scores_[i] + added, multiplied = shifted > 0.0f ? shifted / penalty : shifted * penalty;
      scores_[i] = is_seen[ids_[i]] ? multiplied : shifted;
    }
  }

  // Banned tokens are not drawn, unless the head set holds nothing else.
  void ban(const bool* is_banned) {
    bool is_any_left = false;
    for (int64_t i = 0; i < size_; ++i) is_any_left |= !is_banned[ids_[i]] && scores_[i] > kNever;
    for (int64_t i = 0; is_any_left && i < size_; ++i)
      if (is_banned[ids_[i]]) scores_[i] = kNever;
  }

  // The place of the largest score, of equal ones the first; the end where one is not a number.
  int64_t first_of_best() const {
    Vector most = splat(kNever), all{};
    int64_t i = 0;
    for (; i + kLanes <= size_; i += kLanes) {
      const Vector x = load(scores_.data() + i);
      most = x > most ? x : most;
      all += x * 0.0f;  // not a number where x is none, or infinite
    }
    float best = largest(most), rest = sum(all);
    for (; i < size_; ++i) {
      best = std::max(best, scores_[i]);
      rest += scores_[i] * 0.0f;
    }
    const auto is_wrong = [](float x) { return std::isnan(x); };
    if (std::isnan(rest) && std::any_of(scores_.begin(), scores_.begin() + size_, is_wrong)) return size_;
    return std::find(scores_.begin(), scores_.begin() + size_, best) - scores_.begin();
  }

  // Masses after temperature, top-k and top-p, relative to the best token's, and their sum.
  double spread(const DrawRule& rule, float best) {
    for (int64_t i = 0; i < size_; i += kLanes) {  // the room ends with a whole vector
      const Vector relative = load(scores_.data() + i) / rule.temperature - best;
      store(masses_.data() + i, relative < -87.0f ? Vector{} : exponential(relative));
    }
    if (rule.top_k < static_cast<float>(size_) || rule.top_p < 1.0f) cut(rule);
    block_masses_.clear();
    double total = 0.0;
    for (int64_t start = 0; start < size_; start += kBlock) {
      block_masses_.push_back(sum_of(start, std::min(start + kBlock, size_)));
      total += block_masses_.back();
    }
    return total;
  }

  double sum_of(int64_t start, int64_t stop) const {
    EightWide sums{};
    int64_t i = start;
    for (; i + 8 <= stop; i += 8)
      sums += __builtin_convertvector(*reinterpret_cast<const EightNarrow*>(masses_.data() + i), EightWide);
    double total = ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
    for (; i < stop; ++i) total += masses_[i];
    return total;
  }

  // Top-k, then top-p of what is left; of equal masses the lower id comes first. Only as many as are kept are sorted.
  void cut(const DrawRule& rule) {
    order_.clear();
    for (int64_t i = 0; i < size_; ++i)
      if (masses_[i] > 0.0f) order_.push_back(static_cast<int32_t>(i));
    const auto is_before = [this](int32_t a, int32_t b) {
      return masses_[a] > masses_[b] || (masses_[a] == masses_[b] && a < b);
    };
    int64_t num_kept = order_.size();
    if (rule.top_k < static_cast<float>(num_kept)) {
      num_kept = static_cast<int64_t>(rule.top_k);
      std::nth_element(order_.begin(), order_.begin() + num_kept, order_.end(), is_before);
    }
    if (rule.top_p < 1.0f) {
      double total = 0.0, before = 0.0;
      for (int64_t n = 0; n < num_kept; ++n) total += masses_[order_[n]];
      const double limit = static_cast<double>(rule.top_p) * total;
      int64_t num_sorted = 0, kept = 0;
      for (; kept < num_kept && before < limit; before += masses_[order_[kept++]]) {
        if (kept < num_sorted) continue;
        const int64_t stop = std::min(num_kept, num_sorted + std::max<int64_t>(64, num_sorted));
        const auto begin = order_.begin() + num_sorted, end = order_.begin() + num_kept;
        if (stop < num_kept) std::nth_element(begin, order_.begin() + stop, end, is_before);
        std::sort(begin, order_.begin() + stop, is_before);
        num_sorted = stop;
      }
      num_kept = kept;
    }
    for (int64_t n = num_kept; n < static_cast<int64_t>(order_.size()); ++n) masses_[order_[n]] = 0.0f;
  }

  // The first place at which the masses, walking ids upwards, exceed the target.
  int64_t find(double target) const {
    double before = 0.0;
    int64_t last = 0;
    for (int64_t start = 0; start < size_; start += kBlock) {
      const double mass = block_masses_[start / kBlock];
      const bool is_last = start + kBlock >= size_;
      if (before + mass > target || is_last) {
        double cumulative = before;
        for (int64_t i = start; i < std::min(start + kBlock, size_); ++i) {
          cumulative += masses_[i];
          if (masses_[i] > 0.0f && cumulative > target) return i;
        }
      }
      before += mass;
    }
    // Rounding may leave the target at the very total; the token that completes it is meant then.
    for (int64_t i = 0; i < size_; ++i)
      if (masses_[i] > 0.0f) last = i;
    return last;
  }

  int64_t num_networks_, vocab_size_, size_ = 0;
  std::vector<float> best_, log_total_, block_best_, anchors_, scores_, masses_;
  std::vector<double> block_masses_;
  std::vector<int32_t> ids_, order_;
};

}  // namespace cong
