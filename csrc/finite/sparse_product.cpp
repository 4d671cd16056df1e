#include "finite/sparse_product.hpp"

#include "finite/accumulators.hpp"
#include "finite/ordered_output.hpp"

#include <optional>

namespace markovlm {
namespace {

constexpr double kProducts = 1 << 15;        // in a block, about: its part of the result stays in a cache
constexpr double kRows = 4096;               // in a block, at most
constexpr Index kSampled = 64;               // rows, and one in as many, tell how long the result may become
constexpr Index kSampledEntries = 1 << 18;   // in them, at most
constexpr double kMargin = 1.125;            // of what they tell
constexpr double kDenseColumns = 1 << 20;    // at most, of a DenseAccumulator: 8 MiB in each thread
constexpr double kColumnsPerProduct = 16.0;  // at most, of a DenseAccumulator: it has to be paid for
constexpr double kColumnsPerEntry = 8192.0;  // at most, for each product in a row: beyond, a hash table is faster

// Row by row (Gustavson): row i of A B is the sum of the rows of B that row i of A names.
template <class IA, class IB, template <class> class Accumulator>
class Product {
  public:
    Product(const SparseView<IA>& a, const SparseView<IB>& b, Index columns, double products, int num_threads)
        : a_(a),
          b_(b),
          columns_(columns),
          products_(products),
          block_rows_(static_cast<Index>(
              std::clamp(kProducts * static_cast<double>(a.rows) / std::max(1.0, products), 1.0, kRows))),
          blocks_(divided_up(a.rows, block_rows_)),
          workers_(static_cast<std::size_t>(std::min<Index>(num_threads, blocks_))),
          offsets_(static_cast<std::size_t>(a.rows + 1)) {}

    SparseResult operator()(const Watch& watch, Index largest_narrow) {
        output_.expect(expected_entries());
        parallel_blocks(
            blocks_, static_cast<int>(workers_.size()),
            [&](Index block, int w, const StopToken& stop) {
                auto& worker = workers_[static_cast<std::size_t>(w)];
                if (!worker) worker.emplace(columns_);
                make(block, *worker, stop);
            },
            [&](Index done) { watch(std::min(a_.rows, done * block_rows_)); });
        if (std::max({a_.rows, columns_, output_.size()}) <= largest_narrow) return result<std::int32_t>();
        return result<std::int64_t>();
    }

  private:
    struct Worker {
        explicit Worker(Index columns) : sums(columns) {}
        Accumulator<IB> sums;
        GrowingArray<IB> columns;  // of a block
        GrowingArray<double> values;
        Index size = 0;
    };

    void make(Index block, Worker& worker, const StopToken& stop) {
        const Index first = block * block_rows_, last = std::min(a_.rows, first + block_rows_);
        worker.size = 0;
        for (Index i = first; i < last; ++i) {
            if (stop.requested()) return;
            add_row(i, worker);
            offsets_[static_cast<std::size_t>(i + 1)] = worker.size;
        }
        const Index before = output_.append(block, worker.columns.data(), worker.values.data(), worker.size, stop);
        for (Index i = first; i < last; ++i) offsets_[static_cast<std::size_t>(i + 1)] += before;
    }

    // Row i of the product, behind the rows that the worker has.
    void add_row(Index i, Worker& worker) const {
        const Index most = worker.size + worker.sums.begin(entries_to_add(i));
        worker.columns.reserve(most);
        worker.values.reserve(most);
        for (Index p = a_.offsets[i]; p < a_.offsets[i + 1]; ++p) {
            const Index row = a_.columns[p], begin = b_.offsets[row];
            worker.sums.add(a_.values[p], b_.columns + begin, b_.values + begin, b_.offsets[row + 1] - begin);
        }
        worker.size += worker.sums.take(worker.columns.data() + worker.size, worker.values.data() + worker.size);
    }

    // Of the result, as rows here and there have it: an array of about the right length need not be moved.
    Index expected_entries() {
        if (workers_.empty()) return 0;
        Worker& worker = workers_.front().emplace(columns_);
        const Index step = std::max(kSampled, a_.rows / kSampled);
        Index rows = 0;
        for (Index i = step / 2; i < a_.rows && worker.size < kSampledEntries; i += step, ++rows) add_row(i, worker);
        const double per_row = static_cast<double>(worker.size) / static_cast<double>(std::max<Index>(1, rows));
        return static_cast<Index>(std::min(products_, kMargin * per_row * static_cast<double>(a_.rows)));
    }

    // Or the number of columns, if that is less. The rows of B begin to come from memory meanwhile.
    Index entries_to_add(Index i) const {
        Index entries = 0;
        for (Index p = a_.offsets[i]; p < a_.offsets[i + 1] && entries < columns_; ++p) {
            const Index row = a_.columns[p], begin = b_.offsets[row];
            __builtin_prefetch(b_.columns + begin);
            __builtin_prefetch(b_.values + begin);
            entries += b_.offsets[row + 1] - begin;
        }
        return std::min(entries, columns_);
    }

    template <class I>
    SparseRows<I> result() {
        const auto converted = [](const auto* from, Index count) {
            GrowingArray<I> to(count);
            std::copy_n(from, count, to.data());
            return to;
        };
        SparseRows<I> rows;
        rows.rows = a_.rows;
        rows.offsets = converted(offsets_.data(), a_.rows + 1);
        if constexpr (std::is_same_v<I, IB>)
            rows.columns = output_.columns();
        else
            rows.columns = converted(output_.columns().data(), output_.size());
        rows.values = output_.values();
        return rows;
    }

    const SparseView<IA>& a_;
    const SparseView<IB>& b_;
    const Index columns_;
    const double products_;
    const Index block_rows_, blocks_;
    std::vector<std::optional<Worker>> workers_;
    std::vector<Index> offsets_;
    OrderedOutput<IB> output_;
};

}  // namespace

SparseResult sparse_product(const SparseMatrix& a, const SparseMatrix& b, Index columns, int num_threads,
                            const Watch& watch, Index largest_narrow) {
    return std::visit(
        [&]<class IA, class IB>(const SparseView<IA>& left, const SparseView<IB>& right) {
            // if entries of A meet rows of B as they come
            const double products = static_cast<double>(left.entries()) * static_cast<double>(right.entries()) /
                                    static_cast<double>(std::max<Index>(1, right.rows));
            const auto with = [&]<template <class> class Accumulator>() {
                return Product<IA, IB, Accumulator>(left, right, columns, products, num_threads)(watch, largest_narrow);
            };
            const double per_row = products / static_cast<double>(std::max<Index>(1, left.rows));
            if (static_cast<double>(columns) <=
                std::min({kDenseColumns, kColumnsPerProduct * products, kColumnsPerEntry * per_row}))
                return with.template operator()<DenseAccumulator>();
            return with.template operator()<HashAccumulator>();
        },
        a, b);
}

}  // namespace markovlm
