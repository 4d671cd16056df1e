// Divergences of two softmax rows p and q, from tiles of both.
//
// Sums are of terms of one sign, each as exact as the log-ratio delta = log q - log p: where delta is small, a term is
// p times a function of delta that vanishes there with its first derivative (e^d - 1 - d and the like), never a
// difference of probabilities, nor the sum a difference of large sums.
#pragma once

#include "softmax/reductions.hpp"

#include <vector>

namespace markovlm {

struct Divergence {
    enum class Kind {
        kl,              // sum of p log(p/q)
        variation,       // 1/2 sum of |p - q|
        jensen_shannon,  // the mean KL of p and q from their mean
        power,           // log of the sum of p^a q^(1-a), for an order a other than 0 and 1
        largest_ratio,   // max of log(p/q) over the support of p
        kept_mass,       // log of the mass of q on the support of p
    };
    Kind kind;
    double order = 0.0;    // a
    bool reverse = false;  // with p and q exchanged
};

// Which tokens one row has and the other lacks, by the masks of their heads.
struct Support {
    bool p_leaves_q = false, q_leaves_p = false, disjoint = true;

    Support(const Head& p, const Head& q) {
        for (Index w = 0; w < p.vocabulary(); ++w) {
            const bool in_p = p.has(w), in_q = q.has(w);
            p_leaves_q |= in_p && !in_q;
            q_leaves_p |= in_q && !in_p;
            disjoint &= !(in_p && in_q);
        }
    }
};

// A tile of two rows per lane: log p, p, log q, q and delta, which is finite also where p or q is zero.
class PairTile {
  public:
    struct Pair {
        Vec log_p, p, log_q, q, delta;
        Pair reversed() const { return {log_q, q, log_p, p, -delta}; }
    };
    static constexpr Index kSize = 5 * kLanes * kTile;  // floats
    PairTile() : values_(kSize) {}

    // zp: (count, kLanes) logits of p. x: those of q, or how far those of q are above those of p (`x_is_difference`);
    // log_z_gap: log Z of q less that of p.
    void fill(const float* zp, const float* x, bool x_is_difference, Index count, const Normalizer& p,
              const Normalizer& q, const double* log_z_gap) {
        constexpr float most = std::numeric_limits<float>::max();
        alignas(64) float lanes[5][kLanes];
        for (int i = 0; i < kLanes; ++i) {
            const double of_lane[5] = {p.maximum[i], p.log_sum[i], q.maximum[i], q.log_sum[i], log_z_gap[i]};
            for (int j = 0; j < 5; ++j) lanes[j][i] = static_cast<float>(of_lane[j]);
        }
        for (Index t = 0; t < count; ++t)
            for (int half = 0; half < kLanes; half += kWidth) {
                const Vec z = load(zp + t * kLanes + half), given = load(x + t * kLanes + half);
                const Vec zq = x_is_difference ? z + given : given;
                const Vec log_p = (z - load(lanes[0] + half)) - load(lanes[1] + half);
                const Vec log_q = (zq - load(lanes[2] + half)) - load(lanes[3] + half);
                const auto both_removed = (z == -INFINITY) & (zq == -INFINITY);
                const Vec above = both_removed ? Vec{} : x_is_difference ? given : zq - z;
                float* at = values_.data() + (t * kLanes + half) * 5;
                store(at, log_p);
                store(at + kWidth, exp(log_p));
                store(at + 2 * kWidth, log_q);
                store(at + 3 * kWidth, exp(log_q));
                store(at + 4 * kWidth, at_most(at_least(above - load(lanes[4] + half), -most), most));
            }
    }

    Pair operator()(Index t, int half) const {
        const float* at = values_.data() + (t * kLanes + half) * 5;
        return {load(at), load(at + kWidth), load(at + 2 * kWidth), load(at + 3 * kWidth), load(at + 4 * kWidth)};
    }

  private:
    AlignedBuffer<float> values_;
};

namespace detail {

constexpr float kNear = 4.0f;  // beyond, differences of probabilities lose nothing

inline Vec gap_term(const PairTile::Pair& x) { return abs(x.delta) <= kNear ? x.p * expm1(x.delta) : x.q - x.p; }

inline Vec kl_term(const PairTile::Pair& x) {
    return abs(x.delta) <= kNear ? x.p * expm1_minus(x.delta) : x.q - x.p - x.p * x.delta;
}

// (p + q)/2 h(s) with s = (q - p)/(q + p) = tanh(delta/2), h(s) = (1 + s)/2 log(1 + s) + (1 - s)/2 log(1 - s).
inline Vec jensen_shannon_term(const PairTile::Pair& x) {
    const Vec size = abs(x.delta), e = exp(-size), s = tanh(0.5f * x.delta), s2 = s * s;
    Vec series = broadcast(1.0f / 240);  // s^{2k} / (2k (2k - 1)), up to s^16
    for (float k : {7.0f, 6.0f, 5.0f, 4.0f, 3.0f, 2.0f, 1.0f}) series = series * s2 + 1.0f / (2 * k * (2 * k - 1));
    const Vec far = 0.693147181f - log1p_of_fraction(e) - (e == 0.0f ? Vec{} : size * e / (1.0f + e));
    return 0.5f * (x.p + x.q) * (size <= 1.0f ? series * s2 : far);
}

// p^a q^b - p - b (q - p) with b = 1 - a <= 1/2: sums to the power sum less 1, and is never negative (a > 1) or
// positive.
inline Vec power_term(const PairTile::Pair& x, float b) {
    const Vec scaled = b * x.delta;
    const Vec far = (x.p == 0.0f ? Vec{} : exp(x.log_p + scaled)) - x.p - b * (x.q - x.p);
    const auto is_near = (abs(x.delta) <= kNear) & (abs(scaled) <= 40.0f);
    return is_near ? x.p * (expm1_minus(scaled) - b * expm1_minus(x.delta)) : far;
}

}  // namespace detail

// What the vocabulary, or a chunk of it, adds to the divergences of one panel, in one or two sweeps: `centre` finds how
// far the log-ratios are from those of rows that sum to 1, and the peaks of power sums; `add` does the rest. KL alone
// needs no first sweep: what is left of the excess is known in the end, and taken out exactly.
class DivergenceSums {
  public:
    explicit DivergenceSums(const std::vector<Divergence>& wanted)
        : wanted_(&wanted), totals_(2 * wanted.size() * kLanes), peaks_(wanted.size() * kLanes, -INFINITY) {}

    static bool need_centre(const std::vector<Divergence>& wanted) {
        return std::any_of(wanted.begin(), wanted.end(),
                           [](const Divergence& d) { return d.kind != Divergence::Kind::kl; });
    }

    void centre(const PairTile& tile, Index count) {
        add_mass(tile, count);
        for (std::size_t i = 0; i < wanted_->size(); ++i)
            if (const Divergence& d = (*wanted_)[i]; d.kind == Divergence::Kind::power)
                raise_peak(tile, count, i,
                           [b = exponent(d)](const PairTile::Pair& x) { return x.log_p + b * x.delta; });
    }

    // `whole`: the merged sums of `centre`, for its peaks.
    void add(const PairTile& tile, Index count, const DivergenceSums& whole) {
        add_mass(tile, count);
        for (std::size_t i = 0; i < wanted_->size(); ++i) {
            const Divergence& d = (*wanted_)[i];
            switch (d.kind) {
                case Divergence::Kind::kl:
                    add_terms(tile, count, i, 0, [](const PairTile::Pair& x, int) { return detail::kl_term(x); });
                    break;
                case Divergence::Kind::variation:
                    add_terms(tile, count, i, 0,
                              [](const PairTile::Pair& x, int) { return 0.5f * abs(detail::gap_term(x)); });
                    break;
                case Divergence::Kind::jensen_shannon:
                    add_terms(tile, count, i, 0,
                              [](const PairTile::Pair& x, int) { return detail::jensen_shannon_term(x); });
                    break;
                case Divergence::Kind::power: {
                    const float b = exponent(d);
                    const float* peak = whole.peaks_.data() + i * kLanes;
                    add_terms(tile, count, i, 0,
                              [b](const PairTile::Pair& x, int) { return detail::power_term(x, b); });
                    add_terms(tile, count, i, 1, [b, peak](const PairTile::Pair& x, int half) {
                        return x.log_p == -INFINITY ? Vec{} : exp(x.log_p + b * x.delta - load(peak + half));
                    });
                    break;
                }
                case Divergence::Kind::largest_ratio:
                    raise_peak(tile, count, i, [](const PairTile::Pair& x) { return -x.delta; });
                    break;
                case Divergence::Kind::kept_mass:
                    add_terms(tile, count, i, 0,
                              [](const PairTile::Pair& x, int) { return x.log_p == -INFINITY ? x.q : Vec{}; });
                    add_terms(tile, count, i, 1,
                              [](const PairTile::Pair& x, int) { return x.log_p == -INFINITY ? Vec{} : x.q; });
                    break;
            }
        }
    }

    void merge(const DivergenceSums& other) {
        for (int i = 0; i < kLanes; ++i) {
            mass_[i] += other.mass_[i];
            gap_[i] += other.gap_[i];
        }
        for (std::size_t i = 0; i < totals_.size(); ++i) totals_[i] += other.totals_[i];
        for (std::size_t i = 0; i < peaks_.size(); ++i) peaks_[i] = std::max(peaks_[i], other.peaks_[i]);
    }

    // By how much the log-ratios are too large for rows that sum to 1.
    double excess(Index lane) const { return std::log1p(gap_[lane] / mass_[lane]); }

    // `whole` as in `add`.
    double value(std::size_t i, Index lane, const Support& support, const DivergenceSums& whole) const {
        const Divergence& d = (*wanted_)[i];
        const std::size_t at = 2 * i * kLanes + static_cast<std::size_t>(lane),
                          peak = i * kLanes + static_cast<std::size_t>(lane);
        const double mass = exchanged(d) ? mass_[lane] + gap_[lane] : mass_[lane], total = totals_[at] / mass;
        const bool leaves = d.reverse ? support.q_leaves_p : support.p_leaves_q;
        switch (d.kind) {
            case Divergence::Kind::kl: {  // the mean of e^{d+s} - 1 - d - s is KL + e^s - 1 - s
                const double shift = d.reverse ? -excess(lane) : excess(lane);
                return leaves ? INFINITY : not_below_zero(total - (std::expm1(shift) - shift));
            }
            case Divergence::Kind::variation:
            case Divergence::Kind::jensen_shannon:
                return total;
            case Divergence::Kind::power:
                if (leaves && d.order > 1.0) return INFINITY;
                if (support.disjoint) return -INFINITY;
                return std::abs(total) <= 0.5 ? std::log1p(total)
                                              : whole.peaks_[peak] + std::log(totals_[at + kLanes] / mass);
            case Divergence::Kind::largest_ratio:
                return leaves ? INFINITY : peaks_[peak];
            case Divergence::Kind::kept_mass: {  // from what is lost, where that is less
                const double lost = totals_[at], kept = totals_[at + kLanes];
                return lost < kept ? std::log1p(-lost / (lost + kept)) : std::log(kept / (lost + kept));
            }
        }
        return 0.0;
    }

  private:
    // A power sum is the same with p and q exchanged and 1 - a for a; so that b is at most 1/2.
    static bool exchanged(const Divergence& d) {
        return d.reverse != (d.kind == Divergence::Kind::power && d.order < 0.5);
    }
    static float exponent(const Divergence& d) { return static_cast<float>(d.order < 0.5 ? d.order : 1.0 - d.order); }

    void add_mass(const PairTile& tile, Index count) {
        sum_over_tokens<2>(count, {mass_, gap_}, [&](Index t, int half) {
            const PairTile::Pair x = tile(t, half);
            return std::array<Vec, 2>{x.p, detail::gap_term(x)};
        });
    }

    template <class Term>
    void add_terms(const PairTile& tile, Index count, std::size_t i, std::size_t which, Term term) {
        const bool exchange = exchanged((*wanted_)[i]);
        sum_over_tokens<1>(count, {totals_.data() + (2 * i + which) * kLanes}, [&](Index t, int half) {
            const PairTile::Pair x = tile(t, half);
            return std::array<Vec, 1>{term(exchange ? x.reversed() : x, half)};
        });
    }

    template <class Value>
    void raise_peak(const PairTile& tile, Index count, std::size_t i, Value value) {
        const bool exchange = exchanged((*wanted_)[i]);
        for (int half = 0; half < kLanes; half += kWidth) {
            float* at = peaks_.data() + i * kLanes + static_cast<std::size_t>(half);
            Vec peak = load(at);
            for (Index t = 0; t < count; ++t) {
                const PairTile::Pair given = tile(t, half), x = exchange ? given.reversed() : given;
                const Vec candidate = value(x);
                peak = (x.log_p > -INFINITY) & (candidate > peak) ? candidate : peak;
            }
            store(at, peak);
        }
    }

    const std::vector<Divergence>* wanted_;
    double mass_[kLanes] = {}, gap_[kLanes] = {};  // sums of p, and of q - p
    std::vector<double> totals_;                   // (wanted, 2, kLanes)
    std::vector<float> peaks_;                     // (wanted, kLanes)
};

}  // namespace markovlm
