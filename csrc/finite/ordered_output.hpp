// Where the blocks of a pass put results whose length nobody knows before.
#pragma once

#include "base/parallel.hpp"
#include "finite/growing_array.hpp"

namespace markovlm {

// Columns and values, in the order of the blocks whatever order they finish in. A block is copied while the cache has
// it. Counting first would cost each product another nanosecond, and keeping all blocks to copy them at the end page
// faults that were measured to take longer than the products.
template <class I>
class OrderedOutput {
  public:
    // Before the first block: how much may come. A guess, so that it is no failure if there is not so much memory.
    void expect(Index count) {
        try {
            columns_.reserve(count);
            values_.reserve(count);
            capacity_ = count;
        } catch (const std::bad_alloc&) {
        }
    }

    // Waits until all earlier blocks have come. Returns where the block begins, or a negative number: stopped.
    Index append(Index block, const I* columns, const double* values, Index count, const StopToken& stop) {
        Index first;
        {
            std::unique_lock lock(mutex_);
            const auto wait = [&](auto until) {
                while (!changed_.wait_for(lock, std::chrono::milliseconds(10), until))
                    if (stop.requested()) return false;
                return true;
            };
            if (!wait([&] { return next_ == block; })) return -1;
            first = size_;
            if (first + count > capacity_) {
                if (!wait([&] { return copying_ == 0; })) return -1;
                capacity_ = std::max(first + count, capacity_ + capacity_ / 2);
                columns_.reserve(capacity_);
                values_.reserve(capacity_);
            }
            size_ += count;
            ++next_;
            ++copying_;
        }
        changed_.notify_all();
        std::copy_n(columns, count, columns_.data() + first);
        std::copy_n(values, count, values_.data() + first);
        {
            const std::lock_guard lock(mutex_);
            --copying_;
        }
        changed_.notify_all();
        return first;
    }

    // When all blocks have come.
    Index size() const { return size_; }
    GrowingArray<I> columns() {
        columns_.fit(size_);
        return std::move(columns_);
    }
    GrowingArray<double> values() {
        values_.fit(size_);
        return std::move(values_);
    }

  private:
    std::mutex mutex_;
    std::condition_variable changed_;
    Index next_ = 0, size_ = 0, capacity_ = 0;
    int copying_ = 0;  // threads; the arrays stay where they are until they have finished
    GrowingArray<I> columns_;
    GrowingArray<double> values_;
};

}  // namespace markovlm
