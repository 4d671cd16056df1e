// The Jensen-Shannon categorical entropy of rows, from power sums of one pass.
#pragma once

#include "softmax/reductions.hpp"

#include <vector>

namespace markovlm {

// A polynomial within 7.4e-9 of (1 + p) log(1 + p) on [0, 1/2], all but the closest; constant first:
//   mpmath.chebyfit(lambda p: (1 + p) * mpmath.log1p(p), [0, 0.5], 7)[::-1]  # at 50 digits
inline constexpr std::array<double, 7> kJensenShannonSeries = {
    -7.3101595744386014315e-9, 1.0000014380446527412,    0.49995311706707717842, -0.16608274829822503785,
    0.079768608042158695096,   -0.038201274303895599318, 0.01134540389884741614};

// H(p) = log 2 - 1/2 sum of g(p), g(p) = p (1 + p) log(1 + p) - p^2 log p: the closed form with its terms ordered.
//
// One token of the largest logit is taken out. With r the mass of all others, what it leaves of log 2 is
//   log 2 - g(1 - r) / 2 = [r (3 - r) log 2 - (1 - r)(2 - r) log(1 - r/2) + (1 - r)^2 log(1 - r)] / 2,
// in which every term vanishes with r. The others have p <= 1/2, where the polynomial holds, and what is left to be
// summed are powers e^{k u} and u e^{2 u}, over tokens beneath the maximum: so they are never rounded to the size of
// its own term, 1. Nothing cancels but by a factor of about 3, and H is as exact, relative to itself, as these terms
// are, also in rows that are all but certain.
//
// H is at least 0.43 r (the least that a search found is 0.4315; no proof), and off by less than r * 3.7e-9 by the
// polynomial, r * 2^-36 by the cut of small powers below, and r * 3 * 2^-24 (kRun + 4 + mean gap of the others from the
// maximum) by rounding; tests/reference.py has it row by row.
class JensenShannonSums {
  public:
    explicit JensenShannonSums(bool wanted) : totals_(wanted ? kSums * kLanes : 0) {}

    // Bytes per lane, besides the object itself.
    static Index lane_bytes(bool wanted) { return wanted ? static_cast<Index>(sizeof(double)) * kSums : 0; }

    void rescale(const Shift& raise) {
        if (!raise.needed || totals_.empty()) return;
        double factor[kLanes], power[kLanes], fallen[kLanes];
        for (int i = 0; i < kLanes; ++i) {
            factor[i] = raise.by[i] == 0.0 ? 1.0 : std::exp(-raise.by[i]);
            // What was at the maximum is beneath it from now on.
            fallen[i] = raise.by[i] == 0.0 ? 0.0 : total(kAtMaximum, i);
            total(kAtMaximum, i) -= fallen[i];
            power[i] = 1.0;
        }
        for (int i = 0; i < kLanes; ++i)
            total(kSquareLog, i) =
                factor[i] * factor[i] * (total(kSquareLog, i) - raise.by[i] * (total(2, i) + fallen[i]));
        for (int k = 1; k <= kPowers; ++k)
            for (int i = 0; i < kLanes; ++i) {
                power[i] *= factor[i];
                total(k, i) = power[i] * (total(k, i) + fallen[i]);
            }
    }

    // Adds a tile, whose maximum was raised to before, to these sums and to `softmax`, by the same exponentials.
    void add(const float* z, Index count, const float* tile_max, SoftmaxSums& softmax) {
        if (totals_.empty()) return softmax.add(z, count);
        std::array<double*, kSquareLog> totals;
        for (int q = 0; q < kSquareLog; ++q) totals[static_cast<std::size_t>(q)] = &total(q + 1, 0);
        softmax.add(z, count, totals, [](Vec u, Vec e) {
            const Vec beneath = u < 0.0f ? e : Vec{};
            // Products below the smallest normal float are slow on some CPUs, and would add nothing.
            const Vec squared = beneath > 0x1p-62f ? beneath : Vec{}, base = beneath > 0x1p-17f ? beneath : Vec{};
            std::array<Vec, kSquareLog> terms{beneath, squared * squared};
            for (std::size_t k = 2; k < kPowers; ++k) terms[k] = terms[k - 1] * base;
            terms[kSquareLog - 1] = terms[1] * u;
            return terms;
        });
        for (int half = 0; half < kLanes; half += kWidth) {
            const Vec maximum = load(softmax.maximum + half);
            if (!any(load(tile_max + half) == maximum)) continue;
            IntVec found{};
            for (Index t = 0; t < count; ++t) found -= load(z + t * kLanes + half) == maximum;
            for (int i = 0; i < kWidth; ++i) total(kAtMaximum, half + i) += found[i];
        }
    }

    // Adds sums of the same maximum.
    void add(const JensenShannonSums& other) {
        for (std::size_t i = 0; i < totals_.size(); ++i) totals_[i] += other.totals_[i];
    }

    double value(Index lane) const {
        const auto of_others = [&](int k) { return total(k, lane) + (total(kAtMaximum, lane) - 1.0); };
        const double others = of_others(1), rest = others / (1.0 + others);
        const double p = 1.0 / (1.0 + others), log_sum = std::log1p(others);
        const double left =
            rest * (3.0 - rest) * std::log(2.0) - p * (1.0 + p) * std::log1p(-0.5 * rest) - p * p * log_sum;
        double taken = p * p * (log_sum * of_others(2) - total(kSquareLog, lane)), power = 1.0;  // of -p^2 log p
        for (int k = 1; k <= kPowers; ++k)
            taken += kJensenShannonSeries[static_cast<std::size_t>(k - 1)] * (power *= p) * of_others(k);
        return not_below_zero(0.5 * (left - taken));
    }

  private:
    // Sums over tokens beneath the maximum, of e^{k u} at k = 1 .. kPowers and of u e^{2 u}; how many tokens are at it.
    static constexpr int kPowers = static_cast<int>(kJensenShannonSeries.size()), kSquareLog = kPowers + 1,
                         kAtMaximum = kPowers + 2, kSums = kAtMaximum;

    double& total(int which, Index lane) { return totals_[static_cast<std::size_t>((which - 1) * kLanes + lane)]; }
    double total(int which, Index lane) const { return totals_[static_cast<std::size_t>((which - 1) * kLanes + lane)]; }

    std::vector<double> totals_;  // (kSums, kLanes), or empty if not wanted
};

}  // namespace markovlm
