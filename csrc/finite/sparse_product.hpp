// Products of sparse matrices.
#pragma once

#include "base/parallel.hpp"
#include "finite/growing_array.hpp"

#include <variant>

namespace markovlm {

// Compressed rows: row i has its columns, rising, and their values in [offsets[i], offsets[i + 1]).
template <class I>
struct SparseView {
    const I* offsets = nullptr;      // (rows + 1,)
    const I* columns = nullptr;      // (entries,)
    const double* values = nullptr;  // (entries,)
    Index rows = 0;

    Index entries() const { return offsets[rows]; }
};
using SparseMatrix = std::variant<SparseView<std::int32_t>, SparseView<std::int64_t>>;

template <class I>
struct SparseRows {
    GrowingArray<I> offsets, columns;
    GrowingArray<double> values;
    Index rows = 0;

    Index entries() const { return offsets.data()[rows]; }
};
using SparseResult = std::variant<SparseRows<std::int32_t>, SparseRows<std::int64_t>>;

constexpr Index kLargestNarrow = std::numeric_limits<std::int32_t>::max();

// A B, where B has `columns` columns: columns rise, sums that are zero are left out. Each sum is taken in the order of
// the row of A. 32-bit indices where rows, columns and entries are at most `largest_narrow`.
SparseResult sparse_product(const SparseMatrix& a, const SparseMatrix& b, Index columns, int num_threads,
                            const Watch& watch, Index largest_narrow = kLargestNarrow);

}  // namespace markovlm
