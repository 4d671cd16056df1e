// The products that every pass is made of: a few rows of a head, or columns of a panel, times a panel of states.
//
// Operands are words of 32 bits, a float or two bfloat16. A product says how words are made, how rows are packed, and
// how packed rows are multiplied: out (kGroup, kLanes) = or += the sum over `depth` <= kDepth words of `tokens`, as
// packed, times `lanes` (depth, kLanes). Word j of `lanes` belongs to word order[j] of the rows.
#pragma once

#include "base/types.hpp"
#include "base/vec.hpp"

#include <algorithm>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace markovlm {

constexpr int kLanes = 2 * kWidth;              // across: two vectors, mostly of contexts
constexpr int kTokens = kWidth == 16 ? 12 : 6;  // down: with two vectors each they fill 16 or 32 vector registers

constexpr int kDepth = 96;  // words that are summed in one run of float32

// A register tile: one word after the other, accumulators in vector registers. Rows are packed as (kTokens, kDepth).
template <class Product>
struct RegisterTile {
    static constexpr Index kGroup = kTokens, kStep = 1;  // rows at a time; depths are multiples of kStep
    struct Scope {};                                     // what has to live while products are made

    // Words [begin, begin + depth) of kGroup rows.
    template <class T>
    static void pack(const T* const* rows, Index begin, const std::int32_t*, Index depth, Index width, float* out) {
        for (int i = 0; i < kTokens; ++i) Product::words(rows[i], begin, depth, width, out + i * kDepth);
    }

    // `kVectors`: 1 for the first half of the lanes alone. `kRow`: floats from one row of `tokens` to the next.
    // `kRows`: how many rows there are.
    template <int kVectors = 2, int kRow = kDepth, int kRows = kTokens>
    __attribute__((noinline)) static void multiply(const float* lanes, const float* tokens, const std::int32_t* order,
                                                   Index depth, bool first, float* out) {
        Vec low[kRows] = {}, high[kRows] = {};
        for (Index j = 0; j < depth; ++j, lanes += kLanes) {
            const Vec left = load(lanes), right = load(lanes + kWidth);
            const float* word = tokens + order[j];
#pragma GCC unroll 12
            for (int i = 0; i < kRows; ++i) {
                Product::add(low[i], left, word[i * kRow]);
                if constexpr (kVectors == 2) Product::add(high[i], right, word[i * kRow]);
            }
        }
#pragma GCC unroll 12
        for (int i = 0; i < kRows; ++i, out += kLanes) {
            store(out, first ? low[i] : load(out) + low[i]);
            if constexpr (kVectors == 2) store(out + kWidth, first ? high[i] : load(out + kWidth) + high[i]);
        }
    }
};

struct FloatProduct : RegisterTile<FloatProduct> {
    static constexpr Index kTerms = 1;  // of a word

    // Words [begin, begin + depth) of a row of `width` components.
    template <class T>
    static void words(const T* row, Index begin, Index depth, Index, float* __restrict out) {
        for (Index j = 0; j < depth; ++j) out[j] = widen(row[begin + j]);
    }
    static void add(Vec& sum, Vec left, float right) { sum += left * right; }
};

// Pairs of bfloat16. A lone last one stands beside a zero, and words beyond are zero.
struct PairWords {
    static constexpr Index kTerms = 2;

    static void words(const BFloat16* row, Index begin, Index depth, Index width, float* out) {
        const Index components = std::clamp<Index>(width - 2 * begin, 0, 2 * depth);
        if (components < 2 * depth) std::memset(out + components / 2, 0, (depth - components / 2) * sizeof(float));
        std::memcpy(out, row + 2 * begin, components * sizeof(BFloat16));
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
