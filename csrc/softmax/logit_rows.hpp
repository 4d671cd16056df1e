// The logits of whole rows, for what needs all tokens of a context side by side.
#pragma once

#include "softmax/block.hpp"
#include "softmax/logits.hpp"

namespace markovlm {

// What a head does after its products: from a = scale (W h + bias) to z = a / T, or c tanh(a / c) / T, and dz/da.
class Activation {
  public:
    explicit Activation(const Head& head)
        : temperature_(static_cast<float>(1.0 / head.temperature)),
          softcap_(static_cast<float>(head.softcap)),
          inverse_(head.softcap > 0 ? static_cast<float>(1.0 / head.softcap) : 0.0f) {}

    bool linear() const { return softcap_ == 0; }
    float constant_slope() const { return temperature_; }  // of a linear head

    Vec logit(Vec a) const {
        if (linear()) return a * temperature_;
        return a == -INFINITY ? a : softcap_ * tanh(a * inverse_) * temperature_;
    }
    // (1 - tanh²) / T, by an exponential that keeps its digits where tanh is all but 1
    Vec slope(Vec a) const {
        if (linear()) return broadcast(temperature_);
        const Vec q = exp(-2.0f * abs(a * inverse_));
        return 4.0f * q / ((1.0f + q) * (1.0f + q)) * temperature_;
    }

  private:
    float temperature_, softcap_, inverse_;
};

// The head up to its activation.
inline Head before_activation(const Head& head) { return {head.weight, head.bias, head.scale, 0.0, 1.0}; }
// How a moves with the state: a' = scale W v.
inline Head derivative_of(const Head& head) { return {head.weight, nullptr, head.scale, 0.0, 1.0}; }

// Rows (contexts, stride) of some contexts, made tile by tile from panels. Beyond the vocabulary a row has `beyond`.
class LogitRows {
  public:
    LogitRows(const FloatMatrix& hidden, const FloatMatrix& less, const Head& head, Index contexts, float beyond)
        : hidden_(hidden),
          less_(less),
          head_(head),
          order_(hidden, head.weight, static_cast<bool>(less)),
          logits_(head_, order_),
          panels_(divided_up(contexts, kLanes)),
          states_(panels_, order_),
          rows_(panels_ * kLanes * stride(head.vocabulary())) {
        const Index padding = stride(head.vocabulary()) - head.vocabulary();
        for (Index i = 0; i < panels_ * kLanes; ++i) std::fill_n(row(i) + head.vocabulary(), padding, beyond);
    }

    static Index stride(Index vocabulary) { return divided_up(vocabulary, kWidth) * kWidth; }
    static Index scratch_size(Index contexts) { return divided_up(contexts, kLanes) * LogitTile::kSize; }

    float* row(Index i) { return rows_.data() + i * stride(head_.vocabulary()); }

    // Contexts [first, last): of `hidden`, or of what it is above `less`.
    void pack(Index first, Index last) {
        count_ = last - first;
        for (Index p = 0; p * kLanes < count_; ++p) {
            const Index at = first + p * kLanes, lanes = std::min<Index>(kLanes, last - at);
            if (less_)
                states_.pack_difference(p, lanes, hidden_, at, less_, at);
            else
                states_.pack(p, lanes, hidden_, at);
        }
    }

    // One tile of the vocabulary. packed: kPackedSize floats; z: scratch_size of the contexts.
    void make(Index tile, float* packed, float* z) {
        const Index token = tile * kTile, count = std::min<Index>(kTile, head_.vocabulary() - token);
        const Index panels = divided_up(count_, kLanes);
        logits_(states_[0], panels, less_ ? panels : 0, token, count, packed, z);
        for (Index i = 0; i < count_; ++i) {
            const float* from = z + i / kLanes * LogitTile::kSize + i % kLanes;
            float* to = row(i) + token;
            for (Index t = 0; t < count; ++t) to[t] = from[t * kLanes];
        }
    }

  private:
    const FloatMatrix hidden_, less_;
    const Head head_;
    const SummationOrder order_;
    const LogitTile logits_;
    const Index panels_;
    Panels states_;
    AlignedBuffer<float> rows_;
    Index count_ = 0;
};

// e = exp(z - max z) of a row of a + s a' (or of a, without a'), as many as `length`; their sum is returned.
inline double soften(const Activation& activation, const float* a, const float* derivative, float s, Index length,
                     float* e) {
    Vec largest = broadcast(std::numeric_limits<float>::lowest());
    for (Index w = 0; w < length; w += kWidth) {
        Vec raw = load(a + w);
        if (derivative) raw += s * load(derivative + w);
        const Vec z = activation.logit(raw);
        largest = z > largest ? z : largest;
        store(e + w, z);
    }
    float maximum = largest[0];
    for (int i = 1; i < kWidth; ++i) maximum = std::max(maximum, largest[i]);
    double total = 0;
    alignas(64) double totals[kWidth] = {};
    for (Index w = 0; w < length; w += kWidth) {
        const Vec power = exp(load(e + w) - maximum);
        store(e + w, power);
        add_to(totals, power);
    }
    for (double part : totals) total += part;
    return total;
}

}  // namespace markovlm
