// Tiles of logits: the one place that multiplies states by a head.
//
// Contexts lie across the lanes of the vectors ("panels" of kLanes contexts), tokens along memory. So reductions over
// the vocabulary are vertical, one lane per context. A piece of the head is packed once for all panels of a block of
// contexts and then multiplied from the cache. A logit is summed in an order that the pass fixes: the same context and
// token give the same bits in every tile and thread.
#pragma once

#include "base/types.hpp"
#include "softmax/multiply.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

namespace markovlm {

constexpr int kTile = 96;   // tokens per tile of logits
constexpr int kDepth = 96;  // terms summed in one run of float32, then added to the logit
static_assert(kTile % kTokens == 0);

// z = softcap * tanh(scale * (W h + bias) / softcap) / temperature, or scale * (W h + bias) / temperature without one.
struct Head {
    FloatMatrix weight;           // (V, d)
    const float* bias = nullptr;  // (V,) or none; -inf removes a token, also under soft-capping
    double scale = 1.0, softcap = 0.0, temperature = 1.0;  // softcap 0: none

    Index vocabulary() const { return weight.rows(); }
    Index width() const { return weight.cols(); }
    bool has(Index token) const { return !bias || bias[token] != -INFINITY; }
};

// Whether logits of the two differ by the product with the difference of the states.
inline bool same_linear_head(const Head& a, const Head& b) {
    return a.weight == b.weight && a.bias == b.bias && a.scale == b.scale && a.temperature == b.temperature &&
           a.softcap == 0 && b.softcap == 0;
}

// Components are summed from small to large. States of language models have a few components far larger than the rest,
// and every term that follows such a one is rounded at its size. Within a run of the head's memory, and among the runs,
// the large ones therefore come last: on SmolLM2 logits are three times more accurate by that, at no cost.
class SummationOrder {
  public:
    explicit SummationOrder(const FloatMatrix& hidden) : order_(static_cast<std::size_t>(hidden.cols())) {
        const Index width = hidden.cols();
        Eigen::ArrayXf size = Eigen::ArrayXf::Zero(width);  // of the largest state in each component
        hidden.visit([&](const auto& states) {
            for (Index i = 0; i < states.rows; ++i)
                for (Index j = 0; j < width; ++j) size[j] = std::max(size[j], std::abs(widen(states.row(i)[j])));
        });
        std::vector<std::pair<float, Index>> runs;  // the largest component in each, and where it begins
        for (Index begin = 0; begin < width; begin += kDepth)
            runs.emplace_back(size.segment(begin, std::min<Index>(kDepth, width - begin)).maxCoeff(), begin);
        std::sort(runs.begin(), runs.end());
        auto out = order_.begin();
        for (const auto& [largest, begin] : runs) {
            const auto end = out + std::min<Index>(kDepth, width - begin);
            std::iota(out, end, static_cast<std::int32_t>(begin));
            std::sort(out, end,
                      [&](std::int32_t a, std::int32_t b) { return std::pair(size[a], a) < std::pair(size[b], b); });
            out = end;
        }
    }

    Index width() const { return static_cast<Index>(order_.size()); }
    std::int32_t operator[](Index j) const { return order_[static_cast<std::size_t>(j)]; }
    const std::int32_t* from(Index j) const { return order_.data() + j; }

  private:
    std::vector<std::int32_t> order_;
};

// Panels of up to kLanes contexts, transposed, components in an order of summation; missing lanes repeat the first
// context, so that no lane is special.
class Panels {
  public:
    Panels(Index count, const SummationOrder& order)
        : order_(order), count_(count), states_(count * order.width() * kLanes) {}

    Index count() const { return count_; }
    const float* operator[](Index p) const { return states_.data() + p * order_.width() * kLanes; }  // (d, kLanes)

    void pack(Index p, Index count, const FloatMatrix& hidden, Index first) {
        hidden.visit([&](const auto& states) {
            fill(p, count, [&](Index i, Index component) { return widen(states.row(first + i)[component]); });
        });
    }

    // hidden less reference
    void pack_difference(Index p, Index count, const FloatMatrix& hidden, Index first, const FloatMatrix& reference,
                         Index reference_first) {
        hidden.visit([&](const auto& states) {
            reference.visit([&](const auto& others) {
                fill(p, count, [&](Index i, Index component) {
                    return widen(states.row(first + i)[component]) - widen(others.row(reference_first + i)[component]);
                });
            });
        });
    }

  private:
    template <class Value>
    void fill(Index p, Index count, Value value) {
        float* out = states_.data() + p * order_.width() * kLanes;
        for (Index j = 0; j < order_.width(); ++j)
            for (Index i = 0; i < kLanes; ++i) out[j * kLanes + i] = value(i < count ? i : 0, order_[j]);
    }

    const SummationOrder& order_;
    Index count_;
    AlignedBuffer<float> states_;
};

class LogitTile {
  public:
    static constexpr Index kPackedSize = kTile * kDepth;  // floats of scratch memory that a caller provides
    static constexpr Index kSize = kTile * kLanes;        // floats of one panel's tile

    LogitTile(const Head& head, const SummationOrder& order)
        : head_(head),
          order_(order),
          gain_(static_cast<float>(head.softcap > 0 ? head.scale / head.softcap : head.scale / head.temperature)),
          cap_(static_cast<float>(head.softcap / head.temperature)) {}

    // Logits of `count` <= kTile consecutive tokens for consecutive panels: z is (panels, kTile, kLanes). The last
    // `differences` of the panels hold differences of states and give differences of logits; a linear head has these.
    void operator()(const float* states, Index panels, Index differences, Index first_token, Index count, float* packed,
                    float* z) const {
        produce(states, panels, differences, count, packed, z, [=](Index i) { return first_token + i; });
    }
    // The same for the tokens ids[0 .. count).
    void operator()(const float* states, Index panels, Index differences, const Index* ids, Index count, float* packed,
                    float* z) const {
        produce(states, panels, differences, count, packed, z, [=](Index i) { return ids[i]; });
    }

  private:
    template <class Token>
    void produce(const float* states, Index panels, Index differences, Index count, float* packed, float* z,
                 Token token) const {
        head_.weight.visit([&](const auto& weight) { multiply(weight, states, panels, count, packed, z, token); });
        if (!head_.bias && gain_ == 1.0f && head_.softcap == 0) return;
        for (Index p = 0; p < panels; ++p)
            for (Index i = 0; i < count; ++i)
                finish(z + p * kSize + i * kLanes,
                       head_.bias && p < panels - differences ? head_.bias[token(i)] : 0.0f);
    }

    template <class T, class Token>
    void multiply(const MatrixView<T>& weight, const float* states, Index panels, Index count, float* packed, float* z,
                  Token token) const {
        const T* rows[kTile];
        const Index groups = (count + kTokens - 1) / kTokens, width = weight.cols;
        for (Index i = 0; i < groups * kTokens; ++i) rows[i] = weight.row(token(std::min(i, count - 1)));
        for (Index k = 0; k == 0 || k < width; k += kDepth) {  // once also for d = 0: the empty sum
            const Index depth = std::min<Index>(kDepth, width - k);
            for (Index g = 0; g < groups; ++g)
                pack(rows + g * kTokens, order_.from(k), depth, packed + g * kTokens * depth);
            for (Index p = 0; p < panels; ++p)
                for (Index g = 0; g < groups; ++g)
                    multiply_register_tile(states + (p * width + k) * kLanes, packed + g * kTokens * depth, depth,
                                           k == 0, z + p * kSize + g * kTokens * kLanes);
        }
    }

    // out (depth, kTokens) = `depth` components of kTokens rows
    template <class T>
    static void pack(const T* const* rows, const std::int32_t* order, Index depth, float* __restrict out) {
        const T* row[kTokens];
        std::copy_n(rows, kTokens, row);
        for (Index j = 0; j < depth; ++j, out += kTokens) {
            const Index component = order[j];
#pragma GCC unroll 12
            for (int i = 0; i < kTokens; ++i) out[i] = widen(row[i][component]);
        }
    }

    void finish(float* z, float bias) const {
        for (int half = 0; half < kLanes; half += kWidth) {
            const Vec x = (load(z + half) + bias) * gain_;
            store(z + half, head_.softcap > 0 && bias != -INFINITY ? cap_ * tanh(x) : x);
        }
    }

    const Head& head_;
    const SummationOrder& order_;
    float gain_, cap_;  // before and after the soft-cap
};

}  // namespace markovlm
