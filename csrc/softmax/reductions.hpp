// Running reductions of tiles of logits, one lane per context. Every sum is relative to the running maximum of its lane
// and is rescaled when the maximum rises; two parts of a vocabulary merge by the same rule.
//
// Accuracy: terms are float32 (exponentials to about 1 ulp); kRun of them are added in float32, everything else in
// float64. A sum of positive terms has a relative error of at most about (kRun + 2) * 2^-24, whatever V is.
#pragma once

#include "softmax/logits.hpp"

#include <array>
#include <vector>

namespace markovlm {

constexpr int kRun = 16;

// totals[q][lane] += sum over tokens of term(token, half)[q]
template <int N, class Term>
inline void sum_over_tokens(Index count, const std::array<double*, N>& totals, Term term) {
    for (Index first = 0; first < count; first += kRun) {
        const Index last = std::min<Index>(first + kRun, count);
        for (int half = 0; half < kLanes; half += kWidth) {
            std::array<Vec, N> run{};
            for (Index t = first; t < last; ++t) {
                const std::array<Vec, N> terms = term(t, half);
                for (int q = 0; q < N; ++q) run[q] += terms[q];
            }
            for (int q = 0; q < N; ++q)
                for (int i = 0; i < kWidth; ++i) totals[q][half + i] += run[q][i];
        }
    }
}

inline void lane_maxima(const float* z, Index count, float* maxima) {
    for (int half = 0; half < kLanes; half += kWidth) {
        constexpr Index chains = 4;  // a comparison takes longer than a load
        Vec m[chains];
        for (Index c = 0; c < chains; ++c) m[c] = load(z + half);
        for (Index t = 0; t < count; t += chains)
            for (Index c = 0; c < chains; ++c) {
                const Vec x = load(z + std::min(t + c, count - 1) * kLanes + half);
                m[c] = x > m[c] ? x : m[c];
            }
        for (Index c = 1; c < chains; ++c) m[0] = m[c] > m[0] ? m[c] : m[0];
        store(maxima + half, m[0]);
    }
}

// counts[lane] += number of tokens with z > threshold[lane]
inline void count_greater(const float* z, Index count, const float* threshold, Index* counts) {
    for (int half = 0; half < kLanes; half += kWidth) {
        const Vec bar = load(threshold + half);
        IntVec greater{};
        for (Index t = 0; t < count; ++t) greater -= load(z + t * kLanes + half) > bar;
        for (int i = 0; i < kWidth; ++i) counts[half + i] += greater[i];
    }
}

// Rounding can take what is never negative below 0; a NaN must stay, it is how an overflow is found.
inline double not_below_zero(double x) { return x < 0.0 ? 0.0 : x; }

// By how much the maximum of each lane rose; 0 where it did not.
struct Raise {
    bool needed = false;
    double by[kLanes] = {};
};

// m, s = sum of e^u and t = sum of u e^u with u = z - m.
struct SoftmaxSums {
    alignas(64) float maximum[kLanes];
    double sum[kLanes] = {}, weighted[kLanes] = {};

    SoftmaxSums() { std::fill_n(maximum, kLanes, std::numeric_limits<float>::lowest()); }

    Raise raise_maximum(const float* other) {
        Raise raise;
        for (int half = 0; half < kLanes; half += kWidth)
            raise.needed |= any(load(other + half) > load(maximum + half));
        if (!raise.needed) return raise;
        for (int i = 0; i < kLanes; ++i) {
            if (!(other[i] > maximum[i])) continue;
            raise.by[i] = static_cast<double>(other[i]) - maximum[i];
            maximum[i] = other[i];
        }
        return raise;
    }

    void rescale(const Raise& raise) {
        for (int i = 0; raise.needed && i < kLanes; ++i) {
            if (raise.by[i] == 0.0 || sum[i] == 0.0) continue;
            const double factor = std::exp(-raise.by[i]);
            weighted[i] = factor * (weighted[i] - raise.by[i] * sum[i]);
            sum[i] *= factor;
        }
    }

    // Adds a tile whose maximum was raised to before.
    void add(const float* z, Index count) {
        sum_over_tokens<2>(count, {sum, weighted}, [&](Index t, int half) {
            // Below, the exponential is zero; the bound keeps 0 * -inf out of the weighted sum.
            const Vec u = at_least(load(z + t * kLanes + half) - load(maximum + half), -88.0f);
            const Vec e = exp_within(u);
            return std::array<Vec, 2>{e, e * u};
        });
    }

    // Adds sums of the same maximum.
    void add(const SoftmaxSums& other) {
        for (int i = 0; i < kLanes; ++i) {
            sum[i] += other.sum[i];
            weighted[i] += other.weighted[i];
        }
    }
};

// log p = (z - maximum) - log_sum, lane by lane: keeps its digits where the maximum is huge and log Z, their sum, does
// not.
struct Normalizer {
    double maximum[kLanes], log_sum[kLanes];

    Normalizer() = default;
    explicit Normalizer(const SoftmaxSums& sums) {
        for (int i = 0; i < kLanes; ++i) {
            maximum[i] = sums.maximum[i];
            log_sum[i] = std::log(sums.sum[i]);
        }
    }
};

// One sum per Renyi order a, in the form that loses no digits:
//   |a - 1| <= 1/2:  E = sum of e^u expm1((a - 1) u),  H_a = log s + log1p(E / s) / (1 - a), smooth through a = 1
//   otherwise:       P = sum of e^{a u},               H_a = (log P - a log s) / (1 - a)
// Orders 0 and 1 need no sum; of order infinity H = log s.
class PowerSums {
  public:
    explicit PowerSums(const std::vector<double>& orders) : orders_(&orders), totals_(orders.size() * kLanes) {}

    // To be called before `sums` is rescaled by the same raise.
    void rescale(const Raise& raise, const SoftmaxSums& sums) {
        if (!raise.needed) return;
        for (std::size_t q = 0; q < orders_->size(); ++q)
            for (int i = 0; i < kLanes; ++i)
                if (raise.by[i] != 0.0 && sums.sum[i] != 0.0 && needs_sum(order(q))) {
                    const double a = order(q), delta = raise.by[i];
                    double& total = totals_[q * kLanes + static_cast<std::size_t>(i)];
                    total *= std::exp(-a * delta);
                    if (near_one(a)) total += difference_of_exponentials(a, delta) * sums.sum[i];
                }
    }

    void add(const float* z, Index count, const float* maximum) {
        for (std::size_t q = 0; q < orders_->size(); ++q) {
            if (!needs_sum(order(q))) continue;
            // a normal float: 0 * -inf and inf * 0 would be NaN
            const double normal =
                std::clamp<double>(order(q), std::numeric_limits<float>::min(), std::numeric_limits<float>::max());
            const float a = static_cast<float>(normal), a_minus_1 = static_cast<float>(order(q) - 1.0);
            const bool near = near_one(order(q));
            sum_over_tokens<1>(count, {totals_.data() + q * kLanes}, [&](Index t, int half) {
                const Vec u = load(z + t * kLanes + half) - load(maximum + half);
                if (!near) return std::array<Vec, 1>{exp(a * u)};
                const Vec bounded = at_least(u, -88.0f);
                return std::array<Vec, 1>{exp(bounded) * expm1(a_minus_1 * bounded)};
            });
        }
    }

    // Adds sums of the same maximum.
    void add(const PowerSums& other) {
        for (std::size_t i = 0; i < totals_.size(); ++i) totals_[i] += other.totals_[i];
    }

    double renyi(std::size_t q, Index lane, double log_sum, double sum) const {
        const double a = order(q), total = totals_[q * kLanes + static_cast<std::size_t>(lane)];
        if (std::isinf(a)) return log_sum;
        const double value =
            near_one(a) ? log_sum + std::log1p(total / sum) / (1.0 - a) : (std::log(total) - a * log_sum) / (1.0 - a);
        return not_below_zero(value);
    }

  private:
    static bool near_one(double a) { return std::abs(a - 1.0) <= 0.5; }
    static bool needs_sum(double a) { return a != 0.0 && a != 1.0 && !std::isinf(a); }
    // e^{-a x} - e^{-x} without cancellation near a = 1 and without overflow for large x.
    static double difference_of_exponentials(double a, double x) {
        return x > 100.0 ? std::exp(-a * x) - std::exp(-x) : std::exp(-x) * std::expm1((1.0 - a) * x);
    }
    double order(std::size_t q) const { return (*orders_)[q]; }

    const std::vector<double>* orders_;
    std::vector<double> totals_;
};

// What one chunk of the vocabulary adds to one panel of rows.
struct PanelSums {
    explicit PanelSums(const std::vector<double>& orders) : powers(orders) {}

    void raise_maximum(const float* other) {
        const Raise raise = softmax.raise_maximum(other);
        powers.rescale(raise, softmax);
        softmax.rescale(raise);
    }

    void merge(PanelSums other) {
        raise_maximum(other.softmax.maximum);
        other.raise_maximum(softmax.maximum);
        softmax.add(other.softmax);
        powers.add(other.powers);
        for (int i = 0; i < kLanes; ++i) greater[i] += other.greater[i];
    }

    SoftmaxSums softmax;
    PowerSums powers;
    Index greater[kLanes] = {};
};

}  // namespace markovlm
