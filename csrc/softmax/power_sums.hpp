// Renyi entropies of rows, from one running sum per order.
#pragma once

#include "softmax/reductions.hpp"

#include <vector>

namespace markovlm {

// The tokens of a tile that no mask removes. Below order 0 these count, and not what their logits are: a logit too low
// for float32 is -inf as one of a masked token is, but belongs to a token that is there.
struct Present {
    Index count = 0, tokens[kTile];

    Present(const Head& head, Index first, Index tile) {
        for (Index t = 0; t < tile; ++t)
            if (head.has(first + t)) tokens[count++] = t;
    }
};

// One sum per Renyi order a, in the form that loses no digits; u = z - m from the largest logit, v = z - l from the
// least:
//   |a - 1| <= 1/2:  E = sum of e^u expm1((a - 1) u),  H_a = log s + log1p(E / s) / (1 - a), smooth through a = 1
//   other a > 0:     P = sum of e^{a u},               H_a = (log P - a log s) / (1 - a)
//   a < 0:           P = sum of e^{a v},               H_a = (log P + a log p_min) / (1 - a), log p_min = l - m - log s
// Orders 0 and 1 need no sum; of order infinity H = log s, of order -infinity H = -log p_min.
//
// An exponent is rounded three times, and so off by 3 * 2^-24 of itself: that grows with |a u|, but a term counts by
// its share of P, and the mean exponent by shares is at most log V, since the shares' entropy is log P plus that mean.
// So outside |a - 1| <= 1/2 log P is within (kRun + 4 + 3 log V) * 2^-24, however large the order, and log s within
// (kRun + 4 + log V) * 2^-24. Below 0, H_a takes of the two errors a mean, by weights 1 / (1 - a) and -a / (1 - a).
class PowerSums {
  public:
    explicit PowerSums(const std::vector<double>& orders)
        : orders_(&orders),
          totals_(orders.size() * kLanes),
          minimum_(has_negative(orders) ? kLanes : 0, std::numeric_limits<float>::max()) {}

    // Bytes per lane, besides the object itself.
    static Index lane_bytes(const std::vector<double>& orders) {
        return static_cast<Index>(sizeof(double) * orders.size() + (has_negative(orders) ? sizeof(float) : 0));
    }

    // To be called before `sums` is rescaled by the same raise.
    void rescale(const Shift& raise, const SoftmaxSums& sums) {
        if (!raise.needed) return;
        for (std::size_t q = 0; q < orders_->size(); ++q)
            for (int i = 0; i < kLanes; ++i)
                if (raise.by[i] != 0.0 && sums.sum[i] != 0.0 && from_maximum(order(q))) {
                    const double a = order(q), delta = raise.by[i];
                    double& total = totals_[q * kLanes + static_cast<std::size_t>(i)];
                    total *= std::exp(-a * delta);
                    if (near_one(a)) total += difference_of_exponentials(a, delta) * sums.sum[i];
                }
    }

    void add(const float* z, Index count, const Present& present, const float* maximum) {
        for (std::size_t q = 0; q < orders_->size(); ++q) {
            if (!from_maximum(order(q))) continue;
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
        if (!minimum_.empty() && present.count > 0) add_from_minimum(z, present);
    }

    // Adds sums of the same maximum; minima may differ.
    void add(PowerSums other) {
        if (!minimum_.empty()) {
            lower_minimum(other.minimum_.data());
            other.lower_minimum(minimum_.data());
        }
        for (std::size_t i = 0; i < totals_.size(); ++i) totals_[i] += other.totals_[i];
    }

    double renyi(std::size_t q, Index lane, double log_sum, const SoftmaxSums& sums) const {
        const double a = order(q), total = totals_[q * kLanes + static_cast<std::size_t>(lane)];
        if (a < 0.0) {
            const double least = minimum_[static_cast<std::size_t>(lane)];
            const double surprise = log_sum - (least - sums.maximum[lane]);  // -log p_min
            if (std::isinf(a) || std::isinf(surprise)) return not_below_zero(surprise);
            // a * surprise might overflow
            return not_below_zero(std::log(total) / (1.0 - a) - a / (1.0 - a) * surprise);
        }
        if (std::isinf(a)) return log_sum;
        const double value = near_one(a) ? log_sum + std::log1p(total / sums.sum[lane]) / (1.0 - a)
                                         : (std::log(total) - a * log_sum) / (1.0 - a);
        return not_below_zero(value);
    }

  private:
    static bool has_negative(const std::vector<double>& orders) {
        return std::any_of(orders.begin(), orders.end(), [](double a) { return a < 0.0; });
    }
    static bool near_one(double a) { return std::abs(a - 1.0) <= 0.5; }
    static bool from_maximum(double a) { return a > 0.0 && a != 1.0 && !std::isinf(a); }
    static bool from_minimum(double a) { return a < 0.0 && !std::isinf(a); }
    // e^{-a x} - e^{-x} without cancellation near a = 1 and without overflow for large x.
    static double difference_of_exponentials(double a, double x) {
        return x > 100.0 ? std::exp(-a * x) - std::exp(-x) : std::exp(-x) * std::expm1((1.0 - a) * x);
    }
    double order(std::size_t q) const { return (*orders_)[q]; }

    void add_from_minimum(const float* z, const Present& present) {
        const auto token = [&](Index i) { return present.tokens[i]; };
        alignas(64) float tile_min[kLanes];
        lane_extremes(z, present.count, token, below, tile_min);
        lower_minimum(tile_min);
        constexpr float most = std::numeric_limits<float>::max();
        for (std::size_t q = 0; q < orders_->size(); ++q) {
            if (!from_minimum(order(q))) continue;
            const float a = static_cast<float>(std::max<double>(order(q), -most));
            sum_over_tokens<1>(present.count, {totals_.data() + q * kLanes}, [&](Index i, int half) {
                const float* minimum = minimum_.data() + half;
                // finite: an order too small for float32 is 0, and 0 * inf would be NaN
                return std::array<Vec, 1>{exp(a * at_most(load(z + token(i) * kLanes + half) - load(minimum), most))};
            });
        }
    }

    void lower_minimum(const float* other) {
        const Shift fall = move_extremes(minimum_.data(), other, below);
        if (!fall.needed) return;
        for (std::size_t q = 0; q < orders_->size(); ++q)
            for (int i = 0; i < kLanes; ++i)
                if (fall.by[i] != 0.0 && from_minimum(order(q)))
                    totals_[q * kLanes + static_cast<std::size_t>(i)] *= std::exp(-order(q) * fall.by[i]);
    }

    const std::vector<double>* orders_;
    std::vector<double> totals_;  // (orders, kLanes)
    std::vector<float> minimum_;  // (kLanes,) over present tokens; empty without orders below 0
};

}  // namespace markovlm
