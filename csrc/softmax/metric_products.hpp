// Products with the metrics of some contexts over all tokens, and Rayleigh-Ritz pairs made of them.
#pragma once

#include "softmax/metric_krylov.hpp"

namespace markovlm {

class MetricProducts {
  public:
    struct Operand {
        const MetricContext* context;
        const FloatColumns* X;  // (d, m)
        FloatColumns* product;  // (d, m) = A X
    };

    explicit MetricProducts(const HeadRows& head) : head_(head), scratch_(head.at_a_time() * head.width()) {}

    // The head is read once for all operands.
    void operator()(const std::vector<Operand>& operands) {
        const Index d = head_.width();
        Index columns = 0;
        for (const Operand& operand : operands) columns += operand.X->cols();
        X_.resize(d, columns);
        means_.resize(columns);
        Index at = 0;
        for (const auto& [context, X, _] : operands) {
            X_.middleCols(at, X->cols()) = *X;
            means_.segment(at, X->cols()) = adjoint_product(*X, context->mean);
            at += X->cols();
        }
        total_.setZero(d, columns);
        sums_.setZero(columns);
        for (Index token = 0; token < head_.count(); token += head_.at_a_time()) {
            const Index count = std::min(head_.at_a_time(), head_.count() - token);
            const auto rows = head_(token, count, scratch_.data());
            values_.setZero(count, columns);
            add_adjoint_product(values_, rows.transpose(), X_);
            at = 0;
            for (const auto& [context, X, _] : operands) {
                weigh(*context, token, count, at, X->cols());
                at += X->cols();
            }
            part_.setZero(d, columns);
            add_product(part_, rows.transpose(), values_);
            total_ += part_.cast<double>();
        }
        at = 0;
        for (const auto& [context, X, product] : operands) {
            *product = finish(*context, *X, at);
            at += X->cols();
        }
    }

    // A itself, in double
    DoubleColumns matrix(const MetricContext& context) {
        const Index d = head_.width();
        DoubleColumns A = DoubleColumns::Zero(d, d);
        for (Index token = 0; token < head_.count(); token += head_.at_a_time()) {
            const Index count = std::min(head_.at_a_time(), head_.count() - token);
            values_.resize(d, count);
            for (Index t = 0; t < count; ++t) {
                head_.shifted(token + t, context.slope_of(token + t), context.mean.data(), values_.col(t).data());
                values_.col(t) *= std::sqrt(context.power[token + t]);
            }
            A += product(values_, values_.transpose()).cast<double>();
        }
        for (const auto& token : context.heavy) {
            const DoubleVector row = context.heavy_row(head_, token);
            A += token.power * row * row.transpose();
        }
        return A / context.sum;
    }

  private:
    // values: (tokens, columns) of g_w x become e D (D g_w x - m x); their sums without D are kept
    void weigh(const MetricContext& context, Index token, Index count, Index at, Index columns) {
        const Eigen::Map<const Eigen::ArrayXf> power(context.power + token, count);
        const Eigen::Map<const Eigen::ArrayXf> slope(context.slope ? context.slope + token : nullptr,
                                                     context.slope ? count : 0);
        for (Index j = at; j < at + columns; ++j) {
            auto value = values_.col(j).array();
            if (context.slope) {
                value = power * (slope * value - means_[j]);
                sums_[j] += static_cast<double>(value.sum());
                value *= slope;
            } else {
                value = power * (context.constant_slope * value - means_[j]);
                sums_[j] += static_cast<double>(value.sum());
                value *= context.constant_slope;
            }
        }
    }

    FloatColumns finish(const MetricContext& context, const FloatColumns& X, Index at) const {
        const DoubleColumns wide = X.cast<double>();
        DoubleColumns found = total_.middleCols(at, X.cols());
        found.noalias() -= context.mean.cast<double>() * sums_.segment(at, X.cols()).transpose();
        for (const auto& token : context.heavy) {
            const DoubleVector row = context.heavy_row(head_, token);
            add_product(found, row, adjoint_product(row, wide), token.power);
        }
        return (found / context.sum).cast<float>();
    }

    const HeadRows& head_;
    AlignedBuffer<float> scratch_;
    FloatColumns X_, values_, part_;
    DoubleColumns total_;
    Eigen::VectorXf means_;  // m x
    DoubleVector sums_;
};

// The leading pairs of one context, and the space that they are sought in.
struct RitzPairs {
    DoubleVector values, residuals;     // (k,) falling
    FloatColumns vectors;               // (d, k)
    FloatColumns fresh, fresh_product;  // to be multiplied next, empty once all residuals are small; and by the metric
    FloatColumns basis, product;        // multiplied before
    double rest_trace = 0, rest_entropy = 0;

    // Of a metric that is 0, or not finite.
    void none(Index d, Index k, double value) {
        values = DoubleVector::Constant(k, value);
        residuals = DoubleVector::Constant(k, value);
        vectors = FloatColumns::Identity(d, k);
        fresh.resize(d, 0);
    }

    void dense(const DoubleColumns& A, Index k) {
        const Eigenpairs all = eigenpairs(A);
        values = all.values.head(k).cwiseMax(0.0);
        vectors = all.vectors.leftCols(k).cast<float>();
        const DoubleColumns wide = vectors.cast<double>();
        residuals = (markovlm::product(A, wide) - wide * values.asDiagonal()).colwise().norm();
        rest_trace = rest_entropy = 0;
        for (Index i = k; i < A.rows(); ++i) add_rest(all.values[i]);
        fresh.resize(A.rows(), 0);
        turn();
    }

    void start(const KrylovResult& found) {
        fresh = found.vectors;
        basis.resize(fresh.rows(), 0);
        product.resize(fresh.rows(), 0);
        rest_trace = found.rest_trace;
        rest_entropy = found.rest_entropy;
    }

    // Takes the products of the fresh vectors in; new fresh ones are residuals above tolerance, if any.
    void improve(Index k, double tolerance) {
        append(basis, fresh);
        append(product, fresh_product);
        const DoubleColumns S = basis.cast<double>(), AS = product.cast<double>();
        DoubleColumns H = adjoint_product(S, AS);
        H = (H + H.transpose()).eval() / 2;
        const auto [ritz_values, Y] = eigenpairs(H);
        values = ritz_values.head(k).cwiseMax(0.0);
        const DoubleColumns U = markovlm::product(S, Y.leftCols(k));
        const DoubleColumns R = markovlm::product(AS, Y.leftCols(k)) - U * values.asDiagonal();
        const DoubleVector lengths = U.colwise().norm();
        vectors = (U * lengths.cwiseInverse().asDiagonal()).cast<float>();
        residuals = R.colwise().norm();
        turn();
        std::vector<Index> open;
        for (Index j = 0; j < k; ++j)
            if (residuals[j] > tolerance * values[0]) open.push_back(j);
        if (basis.cols() + std::ssize(open) > 4 * k) {  // go on from the leading half
            basis = markovlm::product(S, Y.leftCols(2 * k)).cast<float>();
            product = markovlm::product(AS, Y.leftCols(2 * k)).cast<float>();
        }
        fresh.resize(basis.rows(), 0);
        const DoubleColumns wide = basis.cast<double>();
        for (const Index j : open) {
            DoubleVector r = R.col(j) / residuals[j];
            const DoubleColumns earlier = fresh.cast<double>();
            for (int pass = 0; pass < 2; ++pass) {
                add_product(r, wide, adjoint_product(wide, r), -1);
                add_product(r, earlier, adjoint_product(earlier, r), -1);
                const double length = r.norm();
                if (length < 1e-3) break;
                r /= length;
            }
            if (std::abs(r.norm() - 1) < 1e-3) append(fresh, r.cast<float>());
        }
    }

    // Of all eigenvalues over their sum: those found, and the rest as far as it was seen, scaled to its exact trace.
    double entropy(double trace) const {
        double total = 0;
        for (const double value : values)
            if (value > 0) total -= value / trace * std::log(value / trace);
        const double rest = trace - values.sum();
        if (rest > 0 && rest_trace > 0) total += rest / trace * (rest_entropy / rest_trace + std::log(trace));
        return total;
    }

  private:
    void add_rest(double value) {
        if (!(value > 0)) return;
        rest_trace += value;
        rest_entropy -= value * std::log(value);
    }

    static void append(FloatColumns& to, const FloatColumns& columns) {
        to.conservativeResize(columns.rows(), to.cols() + columns.cols());
        to.rightCols(columns.cols()) = columns;
    }

    // Signs that make the largest entry positive.
    void turn() {
        for (auto vector : vectors.colwise()) {
            Index at = 0;
            vector.cwiseAbs().maxCoeff(&at);
            if (vector[at] < 0) vector = -vector;
        }
    }
};

}  // namespace markovlm
