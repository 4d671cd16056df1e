// An orthonormal basis V that grows by a block at a time, beside M V and the whole projected matrix Vᵀ M V.
//
// Nothing is assumed of the projected matrix: it is not taken to be block tridiagonal, and restarts, random blocks and
// blocks of residuals may come in any order. Directions are orthogonalised against the whole basis, twice.
#pragma once

#include "spectral/row_blocks.hpp"

#include <cmath>
#include <limits>
#include <stdexcept>

namespace markovlm {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

// Of a projected matrix.
inline Eigenpairs ritz_pairs(const Matrix& projected) {
    Eigenpairs found = eigenpairs(projected);
    if (!found.values.allFinite()) throw std::runtime_error("a projected eigenproblem was not solved");
    return found;
}

class KrylovBasis {
  public:
    KrylovBasis(Index n, Index capacity, Index block, const RowBlocks& rows, const ApplyPanel& apply,
                const DrawPanel& draw)
        : rows_(rows),
          apply_(apply),
          draw_(draw),
          block_(block),
          V_(n, capacity),
          MV_(n, capacity),
          projected_(Matrix::Zero(capacity, capacity)) {}

    Index size() const { return size_; }
    Index next_width() const { return next_.cols(); }
    bool whole() const { return size_ == V_.rows(); }
    bool has_room() const { return size_ + next_.cols() <= V_.cols(); }
    double norm() const { return norm_; }  // of M, from below: the longest image of a unit vector that was seen
    auto vectors(Index count) const { return V_.leftCols(count); }
    auto images(Index count) const { return MV_.leftCols(count); }
    const Matrix& next() const { return next_; }

    // Vᵀ M V without the first `skipped` vectors: M compressed to what is orthogonal to them, in this basis.
    Matrix projected(Index skipped = 0) const {
        return projected_.block(skipped, skipped, size_ - skipped, size_ - skipped);
    }

    // The part of the residuals of Ritz vectors (of `projected(skipped)`) outside the basis, which the block that came
    // last alone has in exact arithmetic.
    Vector outside_norms(const Eigenpairs& ritz) const {
        if (next_.cols() == 0) return Vector::Zero(ritz.values.size());
        return product(coupling_, ritz.vectors.bottomRows(coupling_.cols())).colwise().norm();
    }

    // What comes next: these directions, of length 1 or so, as far as they are new, and random ones instead of those
    // that are not.
    void set_next(Matrix directions) {
        const Index width = std::min({block_, V_.rows() - size_, directions.cols()});
        next_ = directions.leftCols(width);
        orthonormalise(next_, kNoise * kEpsilon);
        coupling_ = Matrix::Zero(width, std::min(last_, size_));
    }
    void set_next_random() { set_next(draw_(std::min(block_, V_.rows() - size_))); }

    // Takes the next block in and prepares the one after it. Returns Qᵀ M Q of the block as it was computed.
    Matrix expand() {
        const Index before = size_;
        last_ = next_.cols();
        Matrix images(next_.rows(), last_);
        apply_(next_, images);
        V_.middleCols(before, last_) = next_;
        MV_.middleCols(before, last_) = images;
        size_ += last_;
        norm_ = std::max(norm_, images.colwise().norm().maxCoeff());
        const Matrix products = rows_.inner(V_.leftCols(size_), images);
        const Matrix own = products.bottomRows(last_);
        projected_.block(0, before, before, last_) = products.topRows(before);
        projected_.block(before, 0, last_, before) = products.topRows(before).transpose();
        projected_.block(before, before, last_, last_) = (own + own.transpose()) / 2;

        rows_.subtract(images, V_.leftCols(size_), products);
        next_ = images.leftCols(std::min(last_, V_.rows() - size_));
        if (const Index more = std::min(block_, V_.rows() - size_) - next_.cols(); more > 0) {
            next_.conservativeResize(Eigen::NoChange, next_.cols() + more);
            next_.rightCols(more).setZero();  // after a narrow block: random ones
        }
        orthonormalise(next_, kNoise * kEpsilon * norm_);
        coupling_ = rows_.inner(next_, MV_.middleCols(before, last_));
        return own;
    }

    // Thick restart: the first `skipped` vectors stay, behind them stand the first `count` Ritz vectors of the others.
    // The next block stays: residuals of all of them lie in it.
    void keep(const Eigenpairs& ritz, Index count, Index skipped = 0) {
        Matrix rotation = Matrix::Zero(size_, skipped + count);
        rotation.topLeftCorner(skipped, skipped).setIdentity();
        rotation.bottomRightCorner(size_ - skipped, count) = ritz.vectors.leftCols(count);
        const Matrix projected = adjoint_product(rotation, product(projected_.topLeftCorner(size_, size_), rotation));
        rows_.rotate(V_, rotation);
        rows_.rotate(MV_, rotation);
        size_ = skipped + count;
        projected_.topLeftCorner(size_, size_) = (projected + projected.transpose()) / 2;
        coupling_ = product(coupling_, rotation.bottomRows(coupling_.cols()));  // of all vectors from now on
        last_ = size_;
    }

    // The first `count` vectors orthonormal to rounding again, their images from the operator itself, and diagonal in
    // the projected matrix. Returns Ritz values, of all.
    Vector refresh(Index count) {
        for (Index j = 0; j < size_; ++j) orthonormalise_column(V_, j);
        for (Index first = 0; first < count; first += block_) {
            const Index width = std::min(block_, count - first);
            const Matrix X = V_.middleCols(first, width);
            Matrix Y(X.rows(), width);
            apply_(X, Y);
            MV_.middleCols(first, width) = Y;
        }
        project_again();
        const Eigenpairs ritz = ritz_pairs(projected_.topLeftCorner(count, count));
        rows_.rotate(V_, ritz.vectors);
        rows_.rotate(MV_, ritz.vectors);
        project_again();
        Vector values = projected_.diagonal();
        values.head(count) = ritz.values;  // the same to rounding, and in order
        return values;
    }

    // M V − V diag(θ) of the first vectors.
    Matrix residuals(const Vector& values) const {
        return MV_.leftCols(values.size()) - V_.leftCols(values.size()) * values.asDiagonal();
    }

    // Only these vectors stay, in this order.
    void select(const std::vector<Index>& chosen) {
        for (std::size_t j = 0; j < chosen.size(); ++j) {  // which rise: nothing is overwritten that is still needed
            const auto to = static_cast<Index>(j);
            V_.col(to) = V_.col(chosen[j]).eval();
            MV_.col(to) = MV_.col(chosen[j]).eval();
        }
        size_ = static_cast<Index>(chosen.size());
        project_again();
    }

  private:
    static constexpr double kNoise = 32.0;  // times rounding: what is left of an image below it says nothing

    void project_again() {
        const Matrix products = rows_.inner(V_.leftCols(size_), MV_.leftCols(size_));
        projected_.topLeftCorner(size_, size_) = (products + products.transpose()) / 2;
    }

    void project_out(Eigen::Ref<Matrix> X) const {
        rows_.subtract(X, V_.leftCols(size_), rows_.inner(V_.leftCols(size_), X));
    }

    // Column j of X, orthogonal to those before it; its length before it was normalised.
    static double orthonormalise_column(Matrix& X, Index j) {
        for (int pass = 0; pass < 2; ++pass) {
            add_product(X.col(j), X.leftCols(j), adjoint_product(X.leftCols(j), X.col(j)), -1);
        }
        const double length = X.col(j).norm();
        if (length > 0) X.col(j) /= length;
        return length;
    }

    // Block Gram–Schmidt, twice against the basis (and once before, by the caller or here). Columns shorter than
    // `noise` after that give place to random ones.
    void orthonormalise(Matrix& X, double noise) const {
        project_out(X);
        for (int pass = 0; pass < 2; ++pass) {
            for (Index j = 0; j < X.cols(); ++j)
                if (orthonormalise_column(X, j) <= (pass == 0 ? noise : kLost)) replace(X, j);
            project_out(X);
        }
        for (Index j = 0; j < X.cols(); ++j) orthonormalise_column(X, j);
    }

    void replace(Matrix& X, Index j) const {
        for (int attempt = 0; attempt < 8; ++attempt) {
            Matrix x = draw_(1);
            x /= x.norm();
            double length = 0;
            for (int pass = 0; pass < 3; ++pass) {
                project_out(x);
                X.col(j) = x;
                length = orthonormalise_column(X, j);
                x = X.col(j);
            }
            if (length > kLost) return;
        }
        throw std::runtime_error("no random vector is orthogonal to the basis");
    }

    static constexpr double kLost = 0.1;  // of a unit vector, in a second pass: what is left is no longer the vector

    const RowBlocks& rows_;
    const ApplyPanel& apply_;
    const DrawPanel& draw_;
    Index block_, size_ = 0, last_ = 0;
    double norm_ = 0;
    Matrix V_, MV_;     // (n, capacity), of which `size_` columns are used
    Matrix projected_;  // Vᵀ M V
    Matrix next_;       // (n, b), orthonormal and orthogonal to V
    Matrix coupling_;   // nextᵀ M V of the vectors that came last
};

}  // namespace markovlm
