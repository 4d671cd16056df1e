// Tiles of P^a = softmax(H W^T)^a: what panel products and pairs of contexts are made of.
#pragma once

#include "softmax/reductions.hpp"

#include <cmath>

namespace markovlm {

// P^a = e^{a (z - shift)} factor for panels of contexts, the shift being log Z (or a guess of it) as a float.
class PowerTiles {
  public:
    PowerTiles(const FloatMatrix& hidden, const Head& head, const double* log_normalizer, double power, Index panels)
        : hidden_(hidden),
          log_normalizer_(log_normalizer),
          power_(power),
          order_(hidden, head.weight, false),
          logits_(head, order_),
          states_(panels, order_),
          shift_(panels * kLanes),
          factor_(panels * kLanes) {}

    // Panel p has the contexts [first, first + lanes); what stands in its other lanes is 0.
    void pack(Index p, Index first, Index lanes) {
        states_.pack(p, lanes, hidden_, first);
        for (Index i = 0; i < kLanes; ++i) {
            const double log_normalizer = log_normalizer_[first + (i < lanes ? i : 0)];
            const float shift = static_cast<float>(log_normalizer);
            shift_.data()[p * kLanes + i] = shift;
            factor_.data()[p * kLanes + i] =
                i < lanes ? static_cast<float>(std::exp(power_ * (shift - log_normalizer))) : 0.0f;
        }
    }

    // z (panels, kTile, kLanes) of the panels [begin, end) and the tokens [token, token + count).
    // packed: LogitTile::kPackedSize floats.
    void operator()(Index begin, Index end, Index token, Index count, float* packed, float* z) const {
        logits_(states_[begin], end - begin, 0, token, count, packed, z);
        const float power = static_cast<float>(power_);
        for (Index p = begin; p < end; ++p, z += LogitTile::kSize)
            for (int half = 0; half < kLanes; half += kWidth) {
                const Vec shift = load(shift_.data() + p * kLanes + half),
                          factor = load(factor_.data() + p * kLanes + half);
                for (Index t = 0; t < count; ++t) {
                    float* at = z + t * kLanes + half;
                    store(at, exp(power * (load(at) - shift)) * factor);
                }
            }
    }

  private:
    const FloatMatrix hidden_;
    const double* const log_normalizer_;
    const double power_;
    const SummationOrder order_;
    const LogitTile logits_;
    Panels states_;
    AlignedBuffer<float> shift_, factor_;  // (panels, kLanes)
};

// totals (panels, 2, kLanes) += the sums of tiles z (panels, kTile, kLanes), and of their squares
inline void add_moments(const float* z, Index panels, Index count, double* totals) {
    for (Index p = 0; p < panels; ++p, z += LogitTile::kSize, totals += 2 * kLanes)
        sum_over_tokens(count, std::array{totals, totals + kLanes}, [z](Index t, int half) {
            const Vec x = load(z + t * kLanes + half);
            return std::array{x, x * x};
        });
}

}  // namespace markovlm
