// Products of bfloat16 in the tile registers of AMX: 32 tokens times 32 contexts at a time, sixteen words deep.
//
// MARKOVLM_EMULATE_AMX puts a few lines of C++ in the place of the instructions, so that all else is tested on any CPU.
#pragma once

#include "softmax/multiply.hpp"

#include <bit>

#if defined(MARKOVLM_AMX) || defined(MARKOVLM_EMULATE_AMX)
#define MARKOVLM_HAS_TILES

namespace markovlm {

// Tiles of 16 rows of 64 bytes. Written as assembly because GCC 12's intrinsics do not say that they read memory.
#if defined(MARKOVLM_AMX)
namespace tile {

template <int tile>
inline void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
}
template <int tile>
inline void load(const float* rows, Index stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(tile), "r"(rows), "r"(stride * 4) : "memory");
}
template <int tile>
inline void store(float* rows, Index stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(tile), "r"(rows), "r"(stride * 4) : "memory");
}
// sum (16 tokens, 16 contexts) += tokens (16, 16 words) times contexts (16 words, 16)
template <int sum, int tokens, int contexts>
inline void multiply_add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(tokens), "i"(contexts));
}

// The shape of a thread's tile registers, which it owns as long as this lives.
class Scope {
  public:
    Scope() {
        struct alignas(64) {
            std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
            std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shape;
        static_assert(sizeof shape == 64);
        asm volatile("ldtilecfg %0" ::"m"(shape));
    }
    ~Scope() { asm volatile("tilerelease"); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
};

}  // namespace tile
#else
namespace tile {

inline thread_local float registers[8][16][16];

template <int tile>
inline void zero() {
    std::memset(registers[tile], 0, sizeof registers[tile]);
}
template <int tile>
inline void load(const float* rows, Index stride) {
    for (Index i = 0; i < 16; ++i) std::memcpy(registers[tile][i], rows + i * stride, sizeof registers[tile][i]);
}
template <int tile>
inline void store(float* rows, Index stride) {
    for (Index i = 0; i < 16; ++i) std::memcpy(rows + i * stride, registers[tile][i], sizeof registers[tile][i]);
}
template <int sum, int tokens, int contexts>
inline void multiply_add() {
    for (int t = 0; t < 16; ++t)
        for (int k = 0; k < 16; ++k)
            for (int c = 0; c < 16; ++c) {
                const auto left = std::bit_cast<std::uint32_t>(registers[tokens][t][k]),
                           right = std::bit_cast<std::uint32_t>(registers[contexts][k][c]);
                const auto high = [](std::uint32_t x) { return std::bit_cast<float>(x & 0xffff0000u); };
                registers[sum][t][c] += high(left << 16) * high(right << 16);
                registers[sum][t][c] += high(left) * high(right);
            }
}
struct Scope {};

}  // namespace tile
#endif

// Rows are packed tile by tile: (depth / 16, 2, 16 tokens, 16 words).
struct TileProduct : PairWords {
    static constexpr Index kGroup = 32, kStep = 16;
    using Scope = tile::Scope;
    static_assert(kLanes == 32);

    static void pack(const BFloat16* const* rows, Index begin, const std::int32_t* order, Index depth, Index width,
                     float* __restrict out) {
        for (Index i = 0; i < kGroup; ++i) {
            float row[kDepth];
            words(rows[i], begin, depth, width, row);
            float* to = out + i * kStep;
            for (Index k = 0; k < depth; k += kStep, to += kGroup * kStep)
                for (Index j = 0; j < kStep; ++j) to[j] = row[order[k + j]];
        }
    }

    __attribute__((noinline)) static void multiply(const float* lanes, const float* tokens, const std::int32_t*,
                                                   Index depth, bool first, float* out) {
        constexpr Index half = 16, size = 16 * 16;
        tile::zero<0>();
        tile::zero<1>();
        tile::zero<2>();
        tile::zero<3>();
        for (Index k = 0; k < depth; k += kStep, lanes += kStep * kLanes, tokens += 2 * size) {
            tile::load<4>(tokens, kStep);
            tile::load<6>(lanes, kLanes);
            tile::load<7>(lanes + half, kLanes);
            tile::load<5>(tokens + size, kStep);
            tile::multiply_add<0, 4, 6>();
            tile::multiply_add<1, 4, 7>();
            tile::multiply_add<2, 5, 6>();
            tile::multiply_add<3, 5, 7>();
        }
        alignas(64) float run[kGroup * kLanes];
        float* to = first ? out : run;
        tile::store<0>(to, kLanes);
        tile::store<1>(to + half, kLanes);
        tile::store<2>(to + half * kLanes, kLanes);
        tile::store<3>(to + half * kLanes + half, kLanes);
        for (Index i = 0; !first && i < kGroup * kLanes; i += kWidth)
            markovlm::store(out + i, markovlm::load(out + i) + markovlm::load(run + i));
    }
};

}  // namespace markovlm
#endif
