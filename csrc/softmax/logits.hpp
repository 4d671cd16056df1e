// Tiles of logits: the one place that multiplies states by a head.
//
// Contexts lie across the lanes of the vectors ("panels" of kLanes contexts), tokens along memory. So the head is read
// in place, row by row, without packing; reductions over the vocabulary are vertical, one lane per context; and a tile
// of kTile tokens is reduced while it is in L1. A logit is summed in an order that its panel fixes: the same panel and
// token give the same bits in every pass, tile and thread.
#pragma once

#include "base/types.hpp"
#include "softmax/vec.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

namespace markovlm {

constexpr int kLanes = 2 * kWidth;              // contexts per panel: two vectors
constexpr int kTokens = kWidth == 16 ? 12 : 6;  // head rows per register tile: fills 16 or 32 vector registers
constexpr int kTile = 96;                       // tokens per tile of logits: (kTile, kLanes) floats stay in L1
constexpr int kDepth = 96;                      // terms summed in one run of float32, then added to the logit
static_assert(kTile % kTokens == 0);

// z = softcap * tanh(scale * (W h + bias) / softcap) / temperature, or scale * (W h + bias) / temperature without one.
struct Head {
    MatrixView<float> weight;     // (V, d)
    const float* bias = nullptr;  // (V,) or none; -inf removes a token, also under soft-capping
    double scale = 1.0, softcap = 0.0, temperature = 1.0;  // softcap 0: none

    Index vocabulary() const { return weight.rows; }
    Index width() const { return weight.cols; }
};

struct Panel {
    const float* states;        // (d, kLanes), its rows in the order of summation
    const std::int32_t* order;  // (d,) which component of the states each row is
};

// Panels of up to kLanes contexts, transposed; missing lanes repeat the first context, so that no lane is special.
//
// Components are summed from small to large. States of language models have a few components far larger than the rest,
// and every term that follows such a one is rounded at its size. Within a run of the head's memory, and among the runs,
// the large ones therefore come last: on SmolLM2 logits are three times more accurate by that, at no cost.
class Panels {
  public:
    Panels(Index count, Index width) : width_(width), states_(count * width * kLanes), order_(count * width) {}

    Panel operator[](Index p) const { return {states_.data() + p * width_ * kLanes, order_.data() + p * width_}; }

    void pack(Index p, const MatrixView<float>& hidden, Index first, Index count) {
        using Rows = Eigen::Array<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
        const Eigen::Map<const Rows, 0, Eigen::OuterStride<>> states(hidden.row(first), count, width_,
                                                                     Eigen::OuterStride<>(hidden.stride));
        std::int32_t* order = order_.data() + p * width_;
        sort_by_size(states.abs().colwise().maxCoeff(), order);
        float* out = states_.data() + p * width_ * kLanes;
        for (Index j = 0; j < width_; ++j)
            for (Index i = 0; i < kLanes; ++i) out[j * kLanes + i] = states(i < count ? i : 0, order[j]);
    }

  private:
    void sort_by_size(const Eigen::ArrayXf& size, std::int32_t* order) const {
        std::vector<std::pair<float, Index>> runs;  // the largest component in each, and where it begins
        for (Index begin = 0; begin < width_; begin += kDepth)
            runs.emplace_back(size.segment(begin, std::min<Index>(kDepth, width_ - begin)).maxCoeff(), begin);
        std::sort(runs.begin(), runs.end());
        for (const auto& [largest, begin] : runs) {
            std::int32_t* end = order + std::min<Index>(kDepth, width_ - begin);
            std::iota(order, end, static_cast<std::int32_t>(begin));
            std::sort(order, end,
                      [&](std::int32_t a, std::int32_t b) { return std::pair(size[a], a) < std::pair(size[b], b); });
            order = end;
        }
    }

    Index width_;
    AlignedBuffer<float> states_;
    AlignedBuffer<std::int32_t> order_;
};

class LogitTile {
  public:
    explicit LogitTile(const Head& head)
        : head_(head),
          gain_(static_cast<float>(head.softcap > 0 ? head.scale / head.softcap : head.scale / head.temperature)),
          cap_(static_cast<float>(head.softcap / head.temperature)) {}

    // Logits of `count` <= kTile consecutive tokens for one panel, into z: (kTile, kLanes).
    void operator()(const Panel& panel, Index first_token, Index count, float* z) const {
        produce(panel, count, z, [=](Index i) { return first_token + i; });
    }
    // The same for the tokens ids[0 .. count).
    void operator()(const Panel& panel, const Index* ids, Index count, float* z) const {
        produce(panel, count, z, [=](Index i) { return ids[i]; });
    }

  private:
    template <class Token>
    void produce(const Panel& panel, Index count, float* z, Token token) const {
        const float* rows[kTile];
        const Index groups = (count + kTokens - 1) / kTokens;
        for (Index i = 0; i < groups * kTokens; ++i) rows[i] = head_.weight.row(token(std::min(i, count - 1)));
        for (Index k = 0; k == 0 || k < head_.width(); k += kDepth) {  // once also for d = 0: the empty sum
            const Index depth = std::min<Index>(kDepth, head_.width() - k);
            for (Index g = 0; g < groups; ++g)
                multiply(panel.states + k * kLanes, panel.order + k, rows + g * kTokens, depth, k == 0,
                         z + g * kTokens * kLanes);
        }
        if (head_.bias || gain_ != 1.0f || head_.softcap > 0)
            for (Index i = 0; i < count; ++i) finish(z + i * kLanes, head_.bias ? head_.bias[token(i)] : 0.0f);
    }

    // z (kTokens, kLanes) = or += head rows times `depth` rows of a panel; the accumulators live in registers.
    __attribute__((noinline)) static void multiply(const float* states, const std::int32_t* order,
                                                   const float* const* rows, Index depth, bool first, float* z) {
        Vec low[kTokens] = {}, high[kTokens] = {};
        for (Index j = 0; j < depth; ++j) {
            const Vec h_low = load(states + j * kLanes), h_high = load(states + j * kLanes + kWidth);
            const Index component = order[j];
#pragma GCC unroll 12
            for (int i = 0; i < kTokens; ++i) {
                const float w = rows[i][component];
                low[i] += h_low * w;
                high[i] += h_high * w;
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < kTokens; ++i) {
            float* out = z + i * kLanes;
            store(out, first ? low[i] : load(out) + low[i]);
            store(out + kWidth, first ? high[i] : load(out + kWidth) + high[i]);
        }
    }

    void finish(float* z, float bias) const {
        for (int half = 0; half < kLanes; half += kWidth) {
            const Vec x = (load(z + half) + bias) * gain_;
            store(z + half, head_.softcap > 0 && bias != -INFINITY ? cap_ * tanh(x) : x);
        }
    }

    Head head_;
    float gain_, cap_;  // before and after the soft-cap
};

}  // namespace markovlm
