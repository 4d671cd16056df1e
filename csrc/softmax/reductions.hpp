// Running reductions of tiles of logits, one lane per context. Every sum is relative to the running maximum of its
// lane, or to the minimum, and is rescaled when that moves; two parts of a vocabulary merge by the same rule.
//
// Accuracy: terms are float32 (exponentials to about 1 ulp); kRun of them are added in float32, everything else in
// float64. A sum of positive terms has a relative error of at most about (kRun + 2) * 2^-24, whatever V is.
#pragma once

#include "softmax/logits.hpp"

#include <array>

namespace markovlm {

constexpr int kRun = 16;

// totals[q][lane] += sum over tokens of term(token, half)[q]
template <std::size_t N, class Term>
inline void sum_over_tokens(Index count, const std::array<double*, N>& totals, Term term) {
    for (Index first = 0; first < count; first += kRun) {
        const Index last = std::min<Index>(first + kRun, count);
        for (int half = 0; half < kLanes; half += kWidth) {
            std::array<Vec, N> run{};
            for (Index t = first; t < last; ++t) {
                const std::array<Vec, N> terms = term(t, half);
                for (std::size_t q = 0; q < N; ++q) run[q] += terms[q];
            }
            for (std::size_t q = 0; q < N; ++q) add_to(totals[q] + half, run[q]);
        }
    }
}

// What a running extreme may be: the largest or the smallest of its lane. A NaN is neither.
inline constexpr auto above = [](auto x, auto than) { return x > than; };
inline constexpr auto below = [](auto x, auto than) { return x < than; };

// Of each lane, over the logits of the tokens token(0 .. count).
template <class Beyond, class Token>
inline void lane_extremes(const float* z, Index count, Token token, Beyond beyond, float* extremes) {
    for (int half = 0; half < kLanes; half += kWidth) {
        constexpr Index chains = 4;  // a comparison takes longer than a load
        const auto at = [&](Index i) { return load(z + token(std::min(i, count - 1)) * kLanes + half); };
        Vec m[chains];
        for (Index c = 0; c < chains; ++c) m[c] = at(0);
        for (Index i = 0; i < count; i += chains)
            for (Index c = 0; c < chains; ++c) {
                const Vec x = at(i + c);
                m[c] = beyond(x, m[c]) ? x : m[c];
            }
        for (Index c = 1; c < chains; ++c) m[0] = beyond(m[c], m[0]) ? m[c] : m[0];
        store(extremes + half, m[0]);
    }
}

inline void lane_maxima(const float* z, Index count, float* maxima) {
    lane_extremes(z, count, [](Index t) { return t; }, above, maxima);
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

// By how much the running extreme of each lane moved; 0 where it did not.
struct Shift {
    bool needed = false;
    double by[kLanes] = {};
};

template <class Beyond>
inline Shift move_extremes(float* extremes, const float* other, Beyond beyond) {
    Shift shift;
    for (int half = 0; half < kLanes; half += kWidth)
        shift.needed |= any(beyond(load(other + half), load(extremes + half)));
    if (!shift.needed) return shift;
    for (int i = 0; i < kLanes; ++i) {
        if (!beyond(other[i], extremes[i])) continue;
        shift.by[i] = static_cast<double>(other[i]) - extremes[i];
        extremes[i] = other[i];
    }
    return shift;
}

// m, s = sum of e^u and t = sum of u e^u with u = z - m.
struct SoftmaxSums {
    alignas(64) float maximum[kLanes];
    double sum[kLanes] = {}, weighted[kLanes] = {};

    SoftmaxSums() { std::fill_n(maximum, kLanes, std::numeric_limits<float>::lowest()); }

    Shift raise_maximum(const float* other) { return move_extremes(maximum, other, above); }

    void rescale(const Shift& raise) {
        for (int i = 0; raise.needed && i < kLanes; ++i) {
            if (raise.by[i] == 0.0 || sum[i] == 0.0) continue;
            const double factor = std::exp(-raise.by[i]);
            weighted[i] = factor * (weighted[i] - raise.by[i] * sum[i]);
            sum[i] *= factor;
        }
    }

    // Adds a tile whose maximum was raised to before; and to other totals what else terms(u, e^u) makes of it.
    template <std::size_t N, class Terms>
    void add(const float* z, Index count, const std::array<double*, N>& other_totals, Terms terms) {
        std::array<double*, N + 2> totals{sum, weighted};
        std::copy_n(other_totals.begin(), N, totals.begin() + 2);
        sum_over_tokens<N + 2>(count, totals, [&](Index t, int half) {
            // Below, the exponential is zero; the bound keeps 0 * -inf out of the weighted sum.
            const Vec u = at_least(load(z + t * kLanes + half) - load(maximum + half), -88.0f);
            const Vec e = exp_within(u);
            std::array<Vec, N + 2> all{e, e * u};
            const std::array<Vec, N> others = terms(u, e);
            for (std::size_t q = 0; q < N; ++q) all[q + 2] = others[q];
            return all;
        });
    }
    void add(const float* z, Index count) {
        add<0>(z, count, {}, [](Vec, Vec) { return std::array<Vec, 0>{}; });
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

}  // namespace markovlm
