// Tiles of logits: the one place that multiplies states by a head.
//
// Contexts lie across the lanes of the vectors ("panels" of kLanes contexts), tokens along memory. So the head is read
// in place, row by row, without packing; reductions over the vocabulary are vertical, one lane per context; and a tile
// of kTile tokens is reduced while it is in L1. An element is summed in the same order whatever panel, lane or tile it
// stands in: the same context and token give the same bits everywhere.
#pragma once

#include "base/types.hpp"
#include "softmax/vec.hpp"

#include <Eigen/Core>

#include <algorithm>
#include <cmath>

namespace markovlm {

constexpr int kLanes = 2 * kWidth;              // contexts per panel: two vectors
constexpr int kTokens = kWidth == 16 ? 12 : 6;  // head rows per register tile: fills 16 or 32 vector registers
constexpr int kTile = 96;                       // tokens per tile of logits: (kTile, kLanes) floats stay in L1
constexpr int kDepth = 96;  // terms summed in one run of float32: short runs keep the rounding of a logit small
static_assert(kTile % kTokens == 0);

// z = softcap * tanh(scale * (W h + bias) / softcap) / temperature, or scale * (W h + bias) / temperature without one.
struct Head {
    MatrixView<float> weight;     // (V, d)
    const float* bias = nullptr;  // (V,) or none; -inf removes a token, also under soft-capping
    double scale = 1.0, softcap = 0.0, temperature = 1.0;  // softcap 0: none

    Index vocabulary() const { return weight.rows; }
    Index width() const { return weight.cols; }
};

// `count` <= kLanes contexts, transposed to (d, kLanes); missing lanes repeat the first: no lane is special.
inline void pack_panel(const MatrixView<float>& hidden, Index first, Index count, float* panel) {
    using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Eigen::Map<const Rows, 0, Eigen::OuterStride<>> states(hidden.row(first), count, hidden.cols,
                                                                 Eigen::OuterStride<>(hidden.stride));
    Eigen::Map<Eigen::Matrix<float, Eigen::Dynamic, kLanes, Eigen::RowMajor>> out(panel, hidden.cols, kLanes);
    out.leftCols(count) = states.transpose();
    out.rightCols(kLanes - count).colwise() = states.row(0).transpose();
}

class LogitTile {
  public:
    explicit LogitTile(const Head& head)
        : head_(head),
          gain_(static_cast<float>(head.softcap > 0 ? head.scale / head.softcap : head.scale / head.temperature)),
          cap_(static_cast<float>(head.softcap / head.temperature)) {}

    // Logits of `count` <= kTile consecutive tokens for one panel, into z: (kTile, kLanes).
    void operator()(const float* panel, Index first_token, Index count, float* z) const {
        produce(panel, count, z, [=](Index i) { return first_token + i; });
    }
    // The same for the tokens ids[0 .. count).
    void operator()(const float* panel, const Index* ids, Index count, float* z) const {
        produce(panel, count, z, [=](Index i) { return ids[i]; });
    }

  private:
    template <class Token>
    void produce(const float* panel, Index count, float* z, Token token) const {
        const float* rows[kTile];
        const Index groups = (count + kTokens - 1) / kTokens;
        for (Index i = 0; i < groups * kTokens; ++i) rows[i] = head_.weight.row(token(std::min(i, count - 1)));
        for (Index k = 0; k < head_.width(); k += kDepth) {
            const Index depth = std::min<Index>(kDepth, head_.width() - k);
            for (Index g = 0; g < groups; ++g)
                multiply(panel + k * kLanes, rows + g * kTokens, k, depth, z + g * kTokens * kLanes);
        }
        if (head_.bias || gain_ != 1.0f || cap_ > 0)
            for (Index i = 0; i < count; ++i) finish(z + i * kLanes, head_.bias ? head_.bias[token(i)] : 0.0f);
    }

    // z (kTokens, kLanes) = or += head rows times a block of the panel; the accumulators live in registers.
    __attribute__((noinline)) static void multiply(const float* panel, const float* const* rows, Index k, Index depth,
                                                   float* z) {
        Vec low[kTokens] = {}, high[kTokens] = {};
        for (Index j = 0; j < depth; ++j) {
            const Vec h_low = load(panel + j * kLanes), h_high = load(panel + j * kLanes + kWidth);
#pragma GCC unroll 12
            for (int i = 0; i < kTokens; ++i) {
                const float w = rows[i][k + j];
                low[i] += h_low * w;
                high[i] += h_high * w;
            }
        }
        for (int i = 0; i < kTokens; ++i) {
            float* out = z + i * kLanes;
            store(out, k == 0 ? low[i] : load(out) + low[i]);
            store(out + kWidth, k == 0 ? high[i] : load(out + kWidth) + high[i]);
        }
    }

    void finish(float* z, float bias) const {
        for (int half = 0; half < kLanes; half += kWidth) {
            const Vec x = (load(z + half) + bias) * gain_;
            store(z + half, cap_ > 0 && bias != -INFINITY ? cap_ * tanh(x) : x);
        }
    }

    Head head_;
    float gain_, cap_;  // before and after the soft-cap
};

}  // namespace markovlm
