// Sums of sparse rows, by column. Both accumulators take the rows one after another and add in that order, and give the
// columns of the sum rising, without those whose sum is zero; then they are as new. begin() returns how many elements
// take() may write.
#pragma once

#include "base/types.hpp"

#include <algorithm>
#include <vector>

namespace markovlm {

// NaN is not zero. By its bits: a comparison of floats takes two more instructions, and every column meets it.
inline bool is_zero(double x) { return std::bit_cast<std::uint64_t>(x) << 1 == 0; }

// A sum for every column: for matrices of so few columns that this is no burden for a thread.
template <class I>
class DenseAccumulator {
  public:
    explicit DenseAccumulator(Index columns)
        : columns_(columns),
          lowest_(columns),
          sums_(static_cast<std::size_t>(divided_up(columns, kBits) * kBits)),
          marks_(static_cast<std::size_t>(divided_up(columns, kBits))),
          marked_words_(static_cast<std::size_t>(divided_up(divided_up(columns, kBits), kBits))) {}

    // Before the rows of a sum, which have `entries` in all.
    Index begin(Index entries) {
        everywhere_ = entries >= columns_ / 3;
        return everywhere_ ? columns_ : entries + kAtOnce;
    }

    void add(double factor, const I* columns, const double* values, Index count) {
        if (everywhere_)
            add<false>(factor, columns, values, count);
        else
            add<true>(factor, columns, values, count);
    }

    Index take(I* columns, double* values) {
        const Index marked = everywhere_ ? columns_ : list_marked(columns);
        Index count = 0;
        for (Index k = 0; k < marked; ++k) {  // no branch: which sums are zero cannot be foreseen
            const I column = everywhere_ ? static_cast<I>(k) : columns[k];
            const double sum = std::exchange(sums_[static_cast<std::size_t>(column)], 0.0);
            columns[count] = column;
            values[count] = sum;
            count += !is_zero(sum);
        }
        return count;
    }

  private:
    static constexpr Index kBits = 64;
    static constexpr int kAtOnce = 2;
    static constexpr Index kRun = 8;  // a row of so many columns without a gap is added without looking at them

    template <bool marking>
    void add(double factor, const I* columns, const double* values, Index count) {
        if (count >= kRun && columns[count - 1] - columns[0] == count - 1) {
            double* sums = sums_.data() + columns[0];
            for (Index q = 0; q < count; ++q) sums[q] += factor * values[q];
            if (marking) mark_run(columns[0], columns[count - 1]);
            return;
        }
        for (Index q = 0; q < count; ++q) {
            const auto column = static_cast<std::size_t>(columns[q]);
            sums_[column] += factor * values[q];
            if (marking) mark(column / kBits, std::uint64_t{1} << column % kBits);
        }
        lowest_ = 0;
        highest_ = columns_ - 1;
    }

    // The marked columns, and some elements behind them.
    Index list_marked(I* columns) {
        const Index first = std::exchange(lowest_, columns_) / (kBits * kBits),
                    last = std::exchange(highest_, -1) / (kBits * kBits);
        Index count = 0;
        for (Index words = first; words <= last; ++words) {
            for (std::uint64_t rest = std::exchange(marked_words_[static_cast<std::size_t>(words)], 0); rest;
                 rest &= rest - 1) {
                const Index word = words * kBits + std::countr_zero(rest);
                std::uint64_t marks = std::exchange(marks_[static_cast<std::size_t>(word)], 0);
                const Index after = count + std::popcount(marks);
                do {  // several at once: a loop that ends with the marks ends where no CPU expects it
                    for (int k = 0; k < kAtOnce; ++k, marks &= marks - 1)
                        columns[count + k] = static_cast<I>(word * kBits + std::countr_zero(marks));
                    count += kAtOnce;
                } while (marks);
                count = after;
            }
        }
        return count;
    }

    void mark_run(I first, I last) {
        lowest_ = std::min<Index>(lowest_, first);
        highest_ = std::max<Index>(highest_, last);
        const auto first_word = static_cast<std::size_t>(first / kBits),
                   last_word = static_cast<std::size_t>(last / kBits);
        for (std::size_t word = first_word; word <= last_word; ++word) {
            std::uint64_t bits = ~std::uint64_t{0};
            if (word == first_word) bits &= bits << first % kBits;
            if (word == last_word) bits &= ~std::uint64_t{0} >> (kBits - 1 - last % kBits);
            mark(word, bits);
        }
    }

    void mark(std::size_t word, std::uint64_t bits) {
        marks_[word] |= bits;
        marked_words_[word / kBits] |= std::uint64_t{1} << word % kBits;
    }

    Index columns_;
    Index lowest_, highest_ = -1;  // marks are not beyond; close if all rows are runs, as a band's are
    bool everywhere_ = false;      // so many entries that marks would cost more than they save
    std::vector<double> sums_;
    std::vector<std::uint64_t> marks_, marked_words_;  // a bit for each column, and for each word of marks
};

// A hash table of the columns there are: memory for the sum, however many columns there could be.
template <class I>
class HashAccumulator {
  public:
    explicit HashAccumulator(Index) { rebuild(256); }

    Index begin(Index entries) { return entries; }

    void add(double factor, const I* columns, const double* values, Index count) {
        while (2 * (used_.size() + static_cast<std::size_t>(count)) > table_.size()) rebuild(2 * table_.size());
        for (Index q = 0; q < count; ++q) {
            const std::size_t slot = find(columns[q]);
            if (table_[slot].column == kEmpty) {
                table_[slot] = {columns[q], 0.0};
                used_.push_back({columns[q], slot});
            }
            table_[slot].sum += factor * values[q];
        }
    }

    Index take(I* columns, double* values) {
        std::sort(used_.begin(), used_.end(), [](const Used& x, const Used& y) { return x.column < y.column; });
        Index count = 0;
        for (const auto& [column, slot] : used_) {
            columns[count] = column;
            values[count] = table_[slot].sum;
            count += !is_zero(table_[slot].sum);
            table_[slot].column = kEmpty;
        }
        used_.clear();
        return count;
    }

  private:
    static constexpr I kEmpty = -1;
    struct Entry {
        I column = kEmpty;
        double sum = 0.0;
    };
    struct Used {
        I column;
        std::size_t slot;
    };

    // Where a column is, or would be.
    std::size_t find(I column) const {
        constexpr std::uint64_t golden = 0x9e3779b97f4a7c15u;
        std::size_t slot = static_cast<std::uint64_t>(column) * golden >> shift_;
        while (table_[slot].column != column && table_[slot].column != kEmpty) slot = (slot + 1) & (table_.size() - 1);
        return slot;
    }

    void rebuild(std::size_t size) {  // a power of two
        const std::vector<Entry> before = std::exchange(table_, std::vector<Entry>(size));
        shift_ = 1 + std::countl_zero(size);
        for (auto& [column, slot] : used_) {
            const Entry& entry = before[slot];
            slot = find(column);
            table_[slot] = entry;
        }
    }

    std::vector<Entry> table_;
    std::vector<Used> used_;
    int shift_ = 0;
};

}  // namespace markovlm
