// The register tile that every product is made of.
#pragma once

#include "base/types.hpp"
#include "softmax/vec.hpp"

namespace markovlm {

constexpr int kLanes = 2 * kWidth;              // across: two vectors, mostly of contexts
constexpr int kTokens = kWidth == 16 ? 12 : 6;  // down, mostly of tokens: fills 16 or 32 vector registers

// out (kTokens, kLanes) = or += the sum over `depth` of tokens (depth, kTokens) times lanes (depth, kLanes), one term
// after the other; accumulators live in registers.
__attribute__((noinline)) inline void multiply_register_tile(const float* lanes, const float* tokens, Index depth,
                                                             bool first, float* out) {
    Vec low[kTokens] = {}, high[kTokens] = {};
    for (Index j = 0; j < depth; ++j, lanes += kLanes, tokens += kTokens) {
        const Vec left = load(lanes), right = load(lanes + kWidth);
#pragma GCC unroll 12
        for (int i = 0; i < kTokens; ++i) {
            low[i] += left * tokens[i];
            high[i] += right * tokens[i];
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kTokens; ++i, out += kLanes) {
        store(out, first ? low[i] : load(out) + low[i]);
        store(out + kWidth, first ? high[i] : load(out + kWidth) + high[i]);
    }
}

}  // namespace markovlm
