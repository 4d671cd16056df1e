// Leading eigenvectors of what approximates the metric of a context, from few of its tokens.
#pragma once

#include "softmax/metric_context.hpp"

#include <bit>
#include <cmath>
#include <random>

namespace markovlm {

// The metric with its light tail replaced: tokens whose terms are small are one token at their mean, and their
// covariance about it is that of all rows of the head, scaled so that the trace is exact. On language models the mean
// is most of what dropping them would miss, and the shape of the covariance most of the rest.
class ReducedMetric {
  public:
    // spread: (V,) |g_w - mean g|²; rest: (d, d) covariance of the head's rows, of trace 1 (or 0 for equal rows).
    ReducedMetric(const HeadRows& head, const float* spread, const FloatColumns& rest, Index cache_rows)
        : head_(head),
          spread_(spread),
          rest_(rest),
          rows_(std::max(cache_rows, kRows), head.width()),
          tail_row_(head.width()) {}

    static constexpr Index kRows = 256;  // multiplied at a time, where they are not kept

    // tail: what the terms that are replaced may add up to, as a share of the largest eigenvalue.
    void set(const MetricContext& context, double tail, std::mt19937_64& generator) {
        context_ = &context;
        std::fill_n(histogram_mass_, kBins, 0.0);
        std::fill_n(histogram_count_, kBins, Index{0});
        for (Index w = 0; w < head_.count(); ++w) {
            const int bin = bin_of(term(w));
            histogram_mass_[bin] += term(w);
            ++histogram_count_[bin];
        }
        int bin = kBins;  // the heaviest few hundred: enough to see the size of the largest eigenvalue
        for (Index count = 0; bin > 1 && count < kRows;) count += histogram_count_[--bin];
        keep(bin);
        const double allowed = tail * largest_eigenvalue(generator) * context.sum;
        int first = 0;
        for (double mass = 0; first < bin; ++first) {
            mass += histogram_mass_[first];
            if (mass > allowed) break;
        }
        if (first < bin) keep(std::max(first, 1));
    }

    Index kept() const { return static_cast<Index>(tokens_.size()); }

    // A X for X (d, b)
    FloatColumns operator()(const Eigen::Ref<const FloatColumns>& X) {
        FloatColumns found = FloatColumns::Zero(X.rows(), X.cols());
        each([&](const auto& rows, const auto& weights) {
            values_.setZero(rows.rows(), X.cols());
            add_adjoint_product(values_, rows.transpose(), X);
            values_.array().colwise() *= weights.array();
            add_product(found, rows.transpose(), values_);
        });
        if (tail_mass_ > 0)
            add_product(found, tail_row_, adjoint_product(tail_row_, X), static_cast<float>(tail_mass_));
        if (tail_spread_ > 0) add_product(found, rest_, X, static_cast<float>(tail_spread_));
        return found;
    }

  private:
    static constexpr int kBins = 2048;  // by exponent and three bits more; bin 0: no terms at all
    static int bin_of(float x) { return static_cast<int>(std::bit_cast<std::uint32_t>(x) >> 20); }

    float term(Index w) const {
        const float d = context_->slope_of(w);
        return context_->power[w] * d * d * spread_[w];
    }

    void keep(int least_bin) {
        tokens_.clear();
        for (const auto& token : context_->heavy) tokens_.push_back(token.id);
        for (Index w = 0; w < head_.count(); ++w)
            if (bin_of(term(w)) >= least_bin) tokens_.push_back(w);
        weights_.resize(kept());
        filled_ = false;
        double square = 0, mass = 0;
        DoubleVector sum = DoubleVector::Zero(head_.width());
        const Index heavy = static_cast<Index>(context_->heavy.size());
        for (Index i = 0; i < kept(); ++i) {
            const Index w = tokens_[static_cast<std::size_t>(i)];
            const double power = i < heavy ? context_->heavy[static_cast<std::size_t>(i)].power : context_->power[w];
            weights_[i] = static_cast<float>(power / context_->sum);
            if (i >= heavy) mass += power;
        }
        each([&](const auto& rows, const auto& weights) {
            sum += product(rows.transpose(), weights).template cast<double>();
            square += static_cast<double>(rows.rowwise().squaredNorm().dot(weights));
        });
        tail_mass_ = std::max(0.0, (context_->light_sum - mass) / context_->sum);
        if (tail_mass_ <= 1e-7 * context_->light_sum / context_->sum) {  // rounding of the sums
            tail_mass_ = tail_spread_ = 0;
            return;
        }
        tail_row_ = (-sum / tail_mass_).cast<float>();  // all x_w p_w add up to 0
        tail_spread_ = std::max(0.0, context_->trace - square - sum.squaredNorm() / tail_mass_);
    }

    // use(rows x_w, weights p_w), some at a time
    template <class Use>
    void each(Use use) {
        const bool fits = kept() <= rows_.rows();
        const Index step = fits ? std::max<Index>(kept(), 1) : kRows;
        for (Index first = 0; first < kept(); first += step) {
            const Index count = std::min(step, kept() - first);
            if (!fits || !filled_)
                for (Index i = 0; i < count; ++i) fill(first + i, rows_.row(i).data());
            use(rows_.topRows(count), weights_.segment(first, count));
        }
        filled_ = fits;
    }

    void fill(Index i, float* row) const {
        const Index heavy = static_cast<Index>(context_->heavy.size());
        if (i < heavy) {
            const DoubleVector exact = context_->heavy_row(head_, context_->heavy[static_cast<std::size_t>(i)]);
            std::transform(exact.data(), exact.data() + exact.size(), row,
                           [](double x) { return static_cast<float>(x); });
        } else {
            const Index w = tokens_[static_cast<std::size_t>(i)];
            head_.shifted(w, context_->slope_of(w), context_->mean.data(), row);
        }
    }

    // From below, by a few steps of the power method.
    double largest_eigenvalue(std::mt19937_64& generator) {
        std::normal_distribution<float> normal;
        FloatColumns x(head_.width(), 1);
        for (Index j = 0; j < x.rows(); ++j) x(j) = normal(generator);
        double found = 0;
        for (int step = 0; step < 4; ++step) {
            const float length = x.norm();
            if (!(length > 0)) break;
            x /= length;
            const FloatColumns product = (*this)(x);
            found = x.col(0).dot(product.col(0));
            x = product;
        }
        return found;
    }

    const HeadRows& head_;
    const float* const spread_;
    const FloatColumns& rest_;
    const MetricContext* context_ = nullptr;
    std::vector<Index> tokens_;  // kept, heavy ones first
    Eigen::VectorXf weights_;    // their probabilities
    FloatRows rows_;             // their x_w, all or some
    bool filled_ = false;
    Eigen::VectorXf tail_row_;  // of all others: x_w on average
    double tail_mass_ = 0, tail_spread_ = 0;
    FloatColumns values_;
    double histogram_mass_[kBins];
    Index histogram_count_[kBins];
};

struct KrylovResult {
    FloatColumns vectors;  // (d, k)
    double rest_trace = 0,
           rest_entropy = 0;  // of the eigenvalues after the k-th, as random vectors see them: λ, -λ log λ
};

// Block Krylov space of a random block, in full, until k pairs have residuals below `tolerance` of the largest
// eigenvalue. Its first block is b random vectors, so that the weights of Ritz vectors on it are a Gauss quadrature of
// the density of all eigenvalues (stochastic Lanczos quadrature).
inline KrylovResult krylov(ReducedMetric& A, Index d, Index k, double tolerance, std::mt19937_64& generator) {
    const Index block = std::max<Index>(8, k / 2), most = std::min(d, std::max(8 * k, 4 * block));
    FloatColumns Q(d, most), AQ(d, most);
    DoubleColumns T = DoubleColumns::Zero(most, most);
    std::normal_distribution<float> normal;
    const auto orthonormalise = [&](Index at, Index count) {  // the columns [at, at + count) of Q
        for (Index j = at; j < at + count; ++j) {
            auto column = Q.col(j);
            float before = column.norm();
            for (int pass = 0, tries = 0; pass < 2; ++pass) {
                add_product(column, Q.leftCols(j), adjoint_product(Q.leftCols(j), column), -1);
                const float after = column.norm();
                if (!(after > 1e-5f * before) || !(after > 0)) {  // nothing new: an invariant space, go on elsewhere
                    if (++tries > 8) break;
                    for (Index i = 0; i < d; ++i) column[i] = normal(generator);
                    before = column.norm();
                    pass = -1;
                    continue;
                }
                column /= after;
                before = 1;
            }
        }
    };
    for (Index j = 0; j < block; ++j)
        for (Index i = 0; i < d; ++i) Q(i, j) = normal(generator);
    orthonormalise(0, block);
    Index columns = 0, next = block;
    for (;;) {
        AQ.middleCols(columns, next) = A(Q.middleCols(columns, next));
        columns += next;
        T.block(0, columns - next, columns, next) =
            adjoint_product(Q.leftCols(columns), AQ.middleCols(columns - next, next)).cast<double>();
        T.block(columns - next, 0, next, columns) = T.block(0, columns - next, columns, next).transpose().eval();
        if (columns >= k + block || columns == most) {
            const Eigenpairs ritz = eigenpairs(T.topLeftCorner(columns, columns));
            const FloatColumns Y = ritz.vectors.leftCols(std::min(k, columns)).cast<float>();
            const Eigen::VectorXf values = ritz.values.head(Y.cols()).cast<float>();
            FloatColumns R = product(AQ.leftCols(columns), Y);
            const FloatColumns U = product(Q.leftCols(columns), Y);
            R -= U * values.asDiagonal();
            if (columns == most || R.colwise().norm().maxCoeff() <= tolerance * values[0]) {
                KrylovResult found{U};
                const double share = static_cast<double>(d) / static_cast<double>(block);
                for (Index i = k; i < columns; ++i) {
                    const double value = ritz.values[i];
                    const double weight = share * ritz.vectors.col(i).head(block).squaredNorm();
                    if (value > 0) {
                        found.rest_trace += weight * value;
                        found.rest_entropy -= weight * value * std::log(value);
                    }
                }
                return found;
            }
        }
        next = std::min(block, most - columns);
        Q.middleCols(columns, next) = AQ.middleCols(columns - next, next);
        const auto earlier = Q.leftCols(columns);
        auto fresh = Q.middleCols(columns, next);
        const float size = fresh.norm();
        add_product(fresh, earlier, adjoint_product(earlier, fresh), -1);
        if (!(fresh.norm() > 1e-6f * size)) fresh.setZero();
        orthonormalise(columns, next);
    }
}

}  // namespace markovlm
