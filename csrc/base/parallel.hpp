// The one loop over blocks that every pass runs in: threads take blocks in order, the caller's thread watches.
#pragma once

#include "base/types.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace markovlm {

using Watch = std::function<void(Index rows_done)>;  // called from the calling thread; may throw to stop the pass

// Asked by long bodies between tiles, so that an interrupt is obeyed in milliseconds.
class StopToken {
  public:
    explicit StopToken(const std::atomic<bool>& flag) : flag_(&flag) {}
    bool requested() const { return flag_->load(std::memory_order_relaxed); }

  private:
    const std::atomic<bool>* flag_;
};

// Calls body(block, worker, stop) once for each block in [0, num_blocks) from up to num_threads threads; `worker`,
// below num_threads, says which thread it is, for scratch memory. `watch(done)` runs in the calling thread every few
// tens of milliseconds and once at the end; an exception from it, or from a body, stops the other blocks and is
// rethrown here. Bodies must write to disjoint places: then the result cannot depend on num_threads.
template <class Body, class Watch>
void parallel_blocks(Index num_blocks, int num_threads, Body&& body, Watch&& watch) {
    std::atomic<Index> next{0}, done{0};
    std::atomic<bool> stop{false};
    std::exception_ptr failure;
    std::mutex mutex;
    std::condition_variable finished;
    int running = static_cast<int>(std::min<Index>(num_threads, num_blocks));

    const auto fail = [&](std::exception_ptr error) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::move(error);
        stop = true;
    };
    const auto work = [&](int worker) {
        try {
            for (Index block; !stop && (block = next++) < num_blocks; ++done) body(block, worker, StopToken(stop));
        } catch (...) {
            fail(std::current_exception());
        }
        const std::lock_guard lock(mutex);
        if (--running == 0) finished.notify_one();
    };

    std::vector<std::thread> threads;
    const int wanted = running;
    for (int i = 0; i < wanted; ++i) {
        try {
            threads.emplace_back(work, i);
        } catch (...) {  // out of threads: go on with those we have
            const std::lock_guard lock(mutex);
            running -= wanted - i;
            break;
        }
    }
    if (threads.empty() && wanted > 0) {
        running = 1;
        work(0);
    }
    for (std::unique_lock lock(mutex);
         !finished.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; });) {
        lock.unlock();
        try {
            if (!stop) watch(done.load());
        } catch (...) {
            fail(std::current_exception());
        }
        lock.lock();
    }
    for (auto& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
    watch(num_blocks);
}

}  // namespace markovlm
