// The metric of one context, A = sum of p_w x_w x_wᵀ with x_w = D_w g_w - m, D_w = dz_w/da_w and m = sum of p_w D_w
// g_w.
//
// Where one token has nearly all the probability, A is as small as what the others have, and so are its x_w and m - c,
// c being its own D g. Few tokens can be so heavy; their rows are taken relative to c in double. All others are light,
// and rounding of their rows, relative to g, counts by their own share alone.
#pragma once

#include "base/dense.hpp"
#include "base/types.hpp"

#include <algorithm>
#include <vector>

namespace markovlm {

using FloatColumns = Columns<float>;  // (d, m)
using FloatRows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using DoubleColumns = Columns<double>;
using DoubleVector = Eigen::VectorXd;

// Rows of a head as floats: where they lie, or widened.
class HeadRows {
  public:
    using Rows = Eigen::Map<const FloatRows, 0, Eigen::OuterStride<>>;

    explicit HeadRows(const FloatMatrix& weight) : weight_(weight) {}

    Index count() const { return weight_.rows(); }
    Index width() const { return weight_.cols(); }
    // How many are taken at a time: what fits in a cache of 512 KiB.
    Index at_a_time() const {
        return std::clamp<Index>((Index{1} << 17) / std::max<Index>(width(), 1) / 16 * 16, 32, 256);
    }

    // [first, first + count); scratch: (count, d)
    Rows operator()(Index first, Index count, float* scratch) const {
        return weight_.visit([&]<class T>(const MatrixView<T>& view) -> Rows {
            if constexpr (std::is_same_v<T, float>) {
                return {view.row(first), count, view.cols, Eigen::OuterStride<>(view.stride)};
            } else {
                for (Index i = 0; i < count; ++i)
                    std::transform(view.row(first + i), view.row(first + i) + view.cols, scratch + i * view.cols,
                                   [](T x) { return widen(x); });
                return {scratch, count, view.cols, Eigen::OuterStride<>(view.cols)};
            }
        });
    }

    // out = factor g_w - offset
    template <class Scalar, class Offset>
    void shifted(Index token, Scalar factor, const Offset* offset, Scalar* out) const {
        weight_.visit([&](const auto& view) {
            const auto* row = view.row(token);
            for (Index j = 0; j < view.cols; ++j)
                out[j] = factor * static_cast<Scalar>(widen(row[j])) - static_cast<Scalar>(offset[j]);
        });
    }

  private:
    const FloatMatrix weight_;
};

// What the softmax of a context is to the metric.
struct MetricContext {
    struct Token {
        Index id;
        double power;  // e^(z - max z)
        float slope;   // D
    };
    static constexpr double kHeavy = 1.0 / 64;  // the least probability of a heavy token

    double sum = 0;                // of all powers
    std::vector<Token> heavy;      // in rising order
    float* power = nullptr;        // (V,) of light tokens, 0 for heavy ones
    const float* slope = nullptr;  // (V,), or none: `constant_slope` for all
    float constant_slope = 1;
    double light_sum = 0, light_square = 0;  // of powers, and of powers times |D g|²
    DoubleVector top;                        // c
    DoubleVector beyond_top;                 // m - c
    Eigen::VectorXf mean;                    // m
    double trace = 0;

    float slope_of(Index token) const { return slope ? slope[token] : constant_slope; }

    // From powers of all tokens and their sum: moves the heavy ones out of `power`.
    void split(Index vocabulary, double total, const double* squared_norms) {
        sum = total;
        heavy.clear();
        light_sum = light_square = 0;
        const float least = static_cast<float>(kHeavy * total);
        for (Index w = 0; w < vocabulary; ++w) {
            if (power[w] >= least) {
                heavy.push_back({w, power[w], slope_of(w)});
                power[w] = 0;
            }
            const double d = slope_of(w);
            light_sum += power[w];
            light_square += power[w] * d * d * squared_norms[w];
        }
    }

    // m and the trace, from the sum over light tokens of powers times D g.
    void centre(const HeadRows& head, const DoubleVector& light, Index likeliest, double likeliest_slope) {
        const DoubleVector zero = DoubleVector::Zero(head.width());
        top.resize(head.width());
        head.shifted(likeliest, likeliest_slope, zero.data(), top.data());
        beyond_top = light - light_sum * top;
        double square = light_square - 2 * top.dot(light) + light_sum * top.squaredNorm();
        DoubleVector row(head.width());
        for (const Token& token : heavy) {
            head.shifted(token.id, static_cast<double>(token.slope), top.data(), row.data());
            beyond_top += token.power * row;
            square += token.power * row.squaredNorm();
        }
        beyond_top /= sum;
        mean = (top + beyond_top).cast<float>();
        trace = square / sum - beyond_top.squaredNorm();
        if (trace < 0) trace = 0;  // by rounding; a NaN stays, it tells of an overflow
    }

    // x_w of a heavy token
    DoubleVector heavy_row(const HeadRows& head, const Token& token) const {
        DoubleVector row(head.width());
        head.shifted(token.id, static_cast<double>(token.slope), top.data(), row.data());
        return row - beyond_top;
    }
};

}  // namespace markovlm
