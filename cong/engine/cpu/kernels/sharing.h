// How threads share out what a step has to do: everyone begins with the same part of it each time, since what it wrote
// before lies in its cache; and who is done takes from the others, since a thread may have lost its core to other work.

#pragma once

#include <omp.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace cong {

// Tasks of one loop over them. Made before the parallel region, for as many threads as are asked for.
class Shares {
 public:
  Shares(int64_t num_tasks, int64_t num_threads) : num_tasks_(num_tasks), next_(num_threads) {
    for (int64_t thread = 0; thread < num_threads; ++thread) next_[thread].task = begin(thread);
  }

  // All threads of a region call this together, and leave it together.
  template <typename Run>
  void each(const Run& run) {
    const int64_t num_threads = next_.size(), self = omp_get_thread_num();
    for (int64_t other = 0; other < num_threads; ++other) {
      const int64_t whose = (self + other) % num_threads, end = begin(whose + 1);
      for (int64_t task; (task = next_[whose].task.fetch_add(1, std::memory_order_relaxed)) < end;) run(task);
    }
#pragma omp barrier
  }

 private:
  // On a line of its own, so that threads do not wait for each other's.
  struct alignas(64) Next {
    std::atomic<int64_t> task;
  };

  int64_t begin(int64_t thread) const { return num_tasks_ * thread / static_cast<int64_t>(next_.size()); }

  int64_t num_tasks_;
  std::vector<Next> next_;
};

}  // namespace cong
