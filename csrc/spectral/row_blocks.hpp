// Products with tall matrices, block of rows by block of rows: sums are taken in an order that depends on n alone.
#pragma once

#include "base/dense.hpp"
#include "base/parallel.hpp"
#include "spectral/panels.hpp"

#include <vector>

namespace markovlm {

class RowBlocks {
  public:
    RowBlocks(Index n, int num_threads) : n_(n), num_threads_(num_threads) {}

    // Vᵀ X
    Matrix inner(const MatrixRef& V, const MatrixRef& X) const {
        const Index blocks = divided_up(n_, kRows);
        std::vector<Matrix> parts(static_cast<std::size_t>(blocks));
        each([&](Index block, Index first, Index count) {
            parts[static_cast<std::size_t>(block)] =
                adjoint_product(V.middleRows(first, count), X.middleRows(first, count));
        });
        Matrix sum = Matrix::Zero(V.cols(), X.cols());
        for (const Matrix& part : parts) sum += part;
        return sum;
    }

    // X −= V C
    void subtract(Eigen::Ref<Matrix> X, const MatrixRef& V, const Matrix& C) const {
        each([&](Index, Index first, Index count) {
            add_product(X.middleRows(first, count), V.middleRows(first, count), C, -1);
        });
    }

    // The first columns of V become V[:, :m] Y, where m is the number of rows of Y.
    void rotate(Matrix& V, const Matrix& Y) const {
        each([&](Index, Index first, Index count) {
            const Matrix rotated = product(V.block(first, 0, count, Y.rows()), Y);
            V.block(first, 0, count, Y.cols()) = rotated;
        });
    }

  private:
    static constexpr Index kRows = 4096;

    template <class Body>
    void each(Body&& body) const {
        const Index blocks = divided_up(n_, kRows);
        const auto one = [&](Index block) { body(block, block * kRows, std::min(kRows, n_ - block * kRows)); };
        if (num_threads_ == 1 || blocks == 1) {
            for (Index block = 0; block < blocks; ++block) one(block);
            return;
        }
        parallel_blocks(blocks, num_threads_, [&](Index block, int, const StopToken&) { one(block); }, [](Index) {});
    }

    Index n_;
    int num_threads_;
};

}  // namespace markovlm
