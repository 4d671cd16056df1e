// The products that every pass is made of: a few rows of a head, or columns of a panel, times a panel of states.
//
// Operands are words of 32 bits, a float or two bfloat16. A product says how a word is made, how rows are packed, and
// how packed rows are multiplied: out (kGroup, kLanes) = or += the sum over `depth` words of `tokens`, as packed, times
// `lanes` (depth, kLanes).
#pragma once

#include "base/types.hpp"
#include "softmax/vec.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace markovlm {

constexpr int kLanes = 2 * kWidth;              // across: two vectors, mostly of contexts
constexpr int kTokens = kWidth == 16 ? 12 : 6;  // down: with two vectors each they fill 16 or 32 vector registers

// A register tile: one word after the other, accumulators in vector registers. Rows are packed as (depth, kTokens).
template <class Product>
struct RegisterTile {
    static constexpr Index kGroup = kTokens, kStep = 1;  // rows at a time; depths are multiples of kStep
    struct Scope {};                                     // what has to live while products are made

    template <class T>
    static void pack(const T* const* rows, const std::int32_t* words, Index depth, Index width, float* __restrict out) {
        const T* row[kTokens];
        std::copy_n(rows, kTokens, row);
        for (Index j = 0; j < depth; ++j, out += kTokens) {
            const Index word = words[j];
#pragma GCC unroll 12
            for (int i = 0; i < kTokens; ++i) out[i] = Product::word(row[i], word, width);
        }
    }

    __attribute__((noinline)) static void multiply(const float* lanes, const float* tokens, Index depth, bool first,
                                                   float* out) {
        Vec low[kTokens] = {}, high[kTokens] = {};
        for (Index j = 0; j < depth; ++j, lanes += kLanes, tokens += kTokens) {
            const Vec left = load(lanes), right = load(lanes + kWidth);
#pragma GCC unroll 12
            for (int i = 0; i < kTokens; ++i) {
                Product::add(low[i], left, tokens[i]);
                Product::add(high[i], right, tokens[i]);
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < kTokens; ++i, out += kLanes) {
            store(out, first ? low[i] : load(out) + low[i]);
            store(out + kWidth, first ? high[i] : load(out + kWidth) + high[i]);
        }
    }
};

struct FloatProduct : RegisterTile<FloatProduct> {
    static constexpr Index kTerms = 1;  // of a word

    // Word j of a row of `width` components.
    template <class T>
    static float word(const T* row, Index j, Index) {
        return widen(row[j]);
    }
    static void add(Vec& sum, Vec left, float right) { sum += left * right; }
};

// Pairs of bfloat16. A lone last one stands beside a zero, and words beyond are zero.
struct PairWords {
    static constexpr Index kTerms = 2;

    static float word(const BFloat16* row, Index j, Index width) {
        std::uint32_t pair = 0;
        if (2 * j + 1 < width)
            std::memcpy(&pair, row + 2 * j, sizeof pair);
        else if (2 * j < width)
            pair = row[2 * j].bits;
        return std::bit_cast<float>(pair);
    }
};

// Exact products of bfloat16, where the CPU has an instruction for these; it takes subnormal values for zero.
#if defined(__AVX512BF16__)
struct PairProduct : PairWords, RegisterTile<PairProduct> {
    static void add(Vec& sum, Vec left, float right) {
        sum = (Vec)_mm512_dpbf16_ps(sum, (__m512bh)left, (__m512bh)_mm512_set1_ps(right));
    }
};
#endif

}  // namespace markovlm
