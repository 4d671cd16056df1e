#include "spectral/fixed_point.hpp"

#include "base/vec.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace markovlm {
namespace {

constexpr int kLanes = 2 * kWidth;           // rows of a panel: two vectors across
constexpr int kDown = kWidth == 16 ? 8 : 4;  // rows that these are multiplied with: sums stay in registers
constexpr Index kBlock = 256;                // rows, and columns, of a block of the result, which stays in a cache
constexpr Index kRun = 256;                  // words: a panel of them stays in the first cache
constexpr Index kWords = FixedPointRows::kSlab / 2;
constexpr double kLargest = 32767, kRadius = 46000;  // 46,000 + √kSlab / 2, which rounding may add, is below √2³¹
static_assert(kBlock % kLanes == 0 && kLanes % kDown == 0 && kWords % kRun == 0);

// Two numbers of 16 bits, the first one low.
std::int32_t word(std::int32_t first, std::int32_t second) {
    return static_cast<std::int32_t>((static_cast<std::uint32_t>(second) << 16) |
                                     (static_cast<std::uint32_t>(first) & 0xffffu));
}

// sum += both products of each word
inline void add_both(IntVec& sum, IntVec left, std::int32_t right) {
#if defined(MARKOVLM_EMULATE_AMX) || !defined(__SSE2__)
    sum += (left << 16 >> 16) * (right << 16 >> 16) + (left >> 16) * (right >> 16);
#elif defined(__AVX512VNNI__)
    sum = (IntVec)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)left, _mm512_set1_epi32(right));
#elif defined(__AVX512BW__)
    sum += (IntVec)_mm512_madd_epi16((__m512i)left, _mm512_set1_epi32(right));
#elif defined(__AVX2__)
    sum += (IntVec)_mm256_madd_epi16((__m256i)left, _mm256_set1_epi32(right));
#else
    sum += (IntVec)_mm_madd_epi16((__m128i)left, _mm_set1_epi32(right));
#endif
}

// out (kDown, kLanes), its rows kBlock apart, += products of kDown rows of one panel with all of another; both lie as
// (words, kLanes).
__attribute__((noinline)) void multiply(const std::int32_t* down, const std::int32_t* across, Index words,
                                        std::int32_t* out) {
    IntVec low[kDown] = {}, high[kDown] = {};
#pragma GCC unroll 4
    for (Index j = 0; j < words; ++j) {
        const IntVec left = load(across + j * kLanes), right = load(across + j * kLanes + kWidth);
#pragma GCC unroll 8
        for (int i = 0; i < kDown; ++i) {
            add_both(low[i], left, down[j * kLanes + i]);
            add_both(high[i], right, down[j * kLanes + i]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < kDown; ++i, out += kBlock) {
        store(out, load(out) + low[i]);
        store(out + kWidth, load(out + kWidth) + high[i]);
    }
}

// x / largest * per_largest, rounded, is a row in its steps.
struct Step {
    double size;  // NaN where a number is not finite, 0 where all are zero
    float inverse_largest, per_largest;
};

// The least step for a row of kSlab numbers. Relative to the largest one: squares of floats leave their range.
Step step_for(const float* x) {
    Vec most{}, squares{};
    for (Index j = 0; j < FixedPointRows::kSlab; j += kWidth) {
        const Vec size = abs(load(x + j));
        most = size > most ? size : most;
    }
    float largest = 0.0f;
    for (int l = 0; l < kWidth; ++l) largest = std::max(largest, most[l]);
    const float inverse = largest >= std::numeric_limits<float>::min() ? 1.0f / largest : 0.0f;
    for (Index j = 0; j < FixedPointRows::kSlab; j += kWidth) {
        const Vec share = load(x + j) * inverse;  // NaN for what is not finite
        squares += share * share;
    }
    double total = 0.0;
    for (int l = 0; l < kWidth; ++l) total += squares[l];
    if (!std::isfinite(total)) return {std::numeric_limits<double>::quiet_NaN(), 0.0f, 0.0f};
    const double steps = 1.0 / std::max(1.0 / kLargest, std::sqrt(total) / kRadius);
    return {inverse > 0.0f ? largest / steps : 0.0, inverse, static_cast<float>(steps)};
}

void ignore(Index) {}

}  // namespace

FixedPointRows::FixedPointRows(Index rows, Index columns)
    : rows_(rows),
      columns_(columns),
      panels_(divided_up(rows, kLanes)),
      slabs_(divided_up(columns, kSlab)),
      words_(slabs_ * panels_ * kWords * kLanes),
      step_(static_cast<std::size_t>(slabs_ * panels_ * kLanes)) {}

const std::int32_t* FixedPointRows::words(Index slab, Index panel) const {
    return words_.data() + (slab * panels_ + panel) * kWords * kLanes;
}

Index FixedPointRows::used(Index slab) const { return divided_up(std::min(kSlab, columns_ - slab * kSlab), 2); }

void FixedPointRows::assign(const MatrixView<float>& from, Index first, const float* mean, int num_threads) {
    parallel_blocks(
        slabs_ * panels_, num_threads,
        [&](Index task, int, const StopToken&) { round(from, first, mean, task / panels_, task % panels_); }, ignore);
}

void FixedPointRows::round(const MatrixView<float>& from, Index first, const float* mean, Index slab, Index panel) {
    alignas(64) float x[kSlab];
    std::int32_t rounded[kSlab];
    const Index begin = slab * kSlab, columns = std::min(kSlab, columns_ - begin);
    std::int32_t* out = words_.data() + (slab * panels_ + panel) * kWords * kLanes;
    for (Index lane = 0; lane < kLanes; ++lane) {
        const Index i = panel * kLanes + lane;
        std::fill_n(x, kSlab, 0.0f);  // as the rows are that there are not
        if (i < rows_) {
            std::copy_n(from.row(i) + first + begin, columns, x);
            for (Index j = 0; mean && j < columns; ++j) x[j] -= mean[begin + j];
        }
        const Step step = step_for(x);
        step_[static_cast<std::size_t>(slab * panels_ * kLanes + i)] = step.size;
        for (Index j = 0; j < kSlab; j += kWidth) {
            constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23: floats about it are integers
            const Vec share = load(x + j) * step.inverse_largest;
            const Vec nearest = (share * step.per_largest + to_integer) - to_integer;
            store(rounded + j, __builtin_convertvector(nearest, IntVec));
        }
        for (Index j = 0; j < used(slab); ++j) out[j * kLanes + lane] = word(rounded[2 * j], rounded[2 * j + 1]);
    }
}

void FixedPointRows::add_products(const FixedPointRows& other, bool lower, float* out, Index stride, int num_threads,
                                  const Watch& watch) const {
    const AlignedBuffer<std::int32_t> products(num_threads * kBlock * kBlock);
    const Index down = divided_up(rows_, kBlock), across = divided_up(other.rows_, kBlock);
    parallel_blocks(
        down * across, num_threads,
        [&](Index task, int worker, const StopToken&) {
            if (!lower || task % across <= task / across)
                add_block(other, task / across, task % across, lower, products.data() + worker * kBlock * kBlock, out,
                          stride);
        },
        [&](Index done) { watch(std::min(rows_, done / across * kBlock)); });
}

void FixedPointRows::add_block(const FixedPointRows& other, Index down, Index across, bool lower,
                               std::int32_t* products, float* out, Index stride) const {
    constexpr Index panels = kBlock / kLanes;
    const Index p_end = std::min((down + 1) * panels, panels_), q_end = std::min((across + 1) * panels, other.panels_);
    for (Index slab = 0; slab < slabs_; ++slab) {
        std::fill_n(products, kBlock * kBlock, 0);
        for (Index begin = 0; begin < used(slab); begin += kRun)
            for (Index q = across * panels; q < q_end; ++q)
                for (Index p = lower ? std::max(down * panels, q) : down * panels; p < p_end; ++p)
                    for (Index i = 0; i < kLanes; i += kDown)
                        multiply(words(slab, p) + begin * kLanes + i, other.words(slab, q) + begin * kLanes,
                                 std::min(kRun, used(slab) - begin),
                                 products + ((p % panels) * kLanes + i) * kBlock + (q % panels) * kLanes);
        const double* steps = step_.data() + slab * panels_ * kLanes;
        const double* others = other.step_.data() + slab * other.panels_ * kLanes;
        for (Index i = down * kBlock; i < std::min(rows_, (down + 1) * kBlock); ++i) {
            const std::int32_t* row = products + i % kBlock * kBlock;
            const Index end = std::min(lower ? i + 1 : other.rows_, (across + 1) * kBlock);
            for (Index j = across * kBlock; j < end; ++j)
                out[i * stride + j] += static_cast<float>(steps[i] * others[j] * row[j % kBlock]);
        }
    }
}

void add_centered_gram(const MatrixView<float>& F, float* gram, int num_threads, const Watch& watch) {
    constexpr Index kMeans = 64;  // columns that are averaged at a time
    for (Index first = 0; first < F.cols; first += FixedPointRows::kSlab) {
        const Index columns = std::min(FixedPointRows::kSlab, F.cols - first);
        std::vector<float> mean(static_cast<std::size_t>(columns));
        parallel_blocks(
            divided_up(columns, kMeans), num_threads,
            [&](Index block, int, const StopToken&) {
                const Index begin = block * kMeans, count = std::min(kMeans, columns - begin);
                std::array<double, kMeans> sum{};
                for (Index i = 0; i < F.rows; ++i)
                    for (Index j = 0; j < count; ++j) sum[static_cast<std::size_t>(j)] += F.row(i)[first + begin + j];
                for (Index j = 0; j < count; ++j)
                    mean[static_cast<std::size_t>(begin + j)] =
                        static_cast<float>(sum[static_cast<std::size_t>(j)] / static_cast<double>(F.rows));
            },
            ignore);
        FixedPointRows slab(F.rows, columns);
        slab.assign(F, first, mean.data(), num_threads);
        slab.add_products(slab, true, gram, F.rows, num_threads, [&](Index) { watch(first); });
    }
    watch(F.cols);
}

}  // namespace markovlm
