#include "finite/jensen_shannon_pairs.hpp"

#include "base/vec.hpp"

#include <algorithm>
#include <vector>

namespace markovlm {
namespace {

constexpr Index kBlock = 16;     // rows of either side that are compared at a time
constexpr Index kTokens = 1024;  // on so many tokens at a time: both sides stay in the second cache
constexpr Index kRun = 8;        // terms that are summed in float32, before they join a sum in double
constexpr double kLog2 = 0.69314718055994530942;

// x log2(x) for x >= 0, with log2 to 1.3e-7; next to nothing for subnormal x. Minimax on [1/√2, √2]:
//   mpmath.chebyfit(lambda x: mpmath.log1p(x) / mpmath.log(2) / x, [1 / √2 - 1, √2 - 1], 8)  # to 3.2e-7
inline Vec times_log2(Vec x) {
    constexpr std::int32_t half_root = 0x3f3504f3;  // 1/√2
    IntVec bits;
    std::memcpy(&bits, &x, sizeof bits);
    const IntVec exponent = (bits - half_root) >> 23;
    bits -= exponent << 23;
    Vec y;
    std::memcpy(&y, &bits, sizeof y);
    y -= 1.0f;
    Vec series = broadcast(-0.14275973436f);
    for (float next : {0.232652578821f, -0.249271822075f, 0.287288882374f, -0.360225182461f, 0.480916708f,
                       -0.721352931363f, 1.44269499489f})
        series = series * y + next;
    return x * (series * y + __builtin_convertvector(exponent, Vec));
}

Vec load_some(const float* from, Index count) {
    Vec v{};
    std::memcpy(&v, from, static_cast<std::size_t>(count) * sizeof(float));
    return v;
}

// Σ (p + q) log2(p + q)
double sum_of_logs(const float* p, const float* q, Index count) {
    using DoubleVec = double __attribute__((vector_size(kWidth * sizeof(double))));
    DoubleVec lanes{};
    Index t = 0;
    for (; t + kRun * kWidth <= count; t += kRun * kWidth) {
        Vec sum{};
#pragma GCC unroll 8
        for (Index i = t; i < t + kRun * kWidth; i += kWidth) sum += times_log2(load(p + i) + load(q + i));
        lanes += __builtin_convertvector(sum, DoubleVec);
    }
    for (; t < count; t += kWidth) {
        const Index left = std::min<Index>(kWidth, count - t);
        lanes += __builtin_convertvector(times_log2(load_some(p + t, left) + load_some(q + t, left)), DoubleVec);
    }
    double total = 0;
    for (int i = 0; i < kWidth; ++i) total += lanes[i];
    return total;
}

}  // namespace

// With L(p, q) = Σ (p + q) log2(p + q), JS(p, q) / log 2 = L(p, p) / 4 + L(q, q) / 4 − L(p, q) / 2: what is lost in a
// term is lost in the same way where p and q are alike.
void jensen_shannon_pairs(const MatrixView<float>& p, const MatrixView<float>& q, double* out, int num_threads,
                          const Watch& watch) {
    std::vector<double> own(static_cast<std::size_t>(p.rows + q.rows));  // L of each row and itself
    const auto alone = [&](Index row, int, const StopToken&) {
        const float* entries = row < p.rows ? p.row(row) : q.row(row - p.rows);
        double& total = own[static_cast<std::size_t>(row)];
        for (Index token = 0; token < p.cols; token += kTokens)
            total += sum_of_logs(entries + token, entries + token, std::min(kTokens, p.cols - token));
    };
    parallel_blocks(p.rows + q.rows, num_threads, alone, [&](Index) { watch(0); });

    const Index down = divided_up(p.rows, kBlock), across = divided_up(q.rows, kBlock);
    const auto compare = [&](Index block, int, const StopToken& stop) {
        const Index first_p = block / across * kBlock, first_q = block % across * kBlock;
        const Index last_p = std::min(first_p + kBlock, p.rows), last_q = std::min(first_q + kBlock, q.rows);
        double totals[kBlock][kBlock] = {};
        for (Index token = 0; token < p.cols && !stop.requested(); token += kTokens) {
            const Index count = std::min(kTokens, p.cols - token);
            for (Index i = first_p; i < last_p; ++i)
                for (Index j = first_q; j < last_q; ++j)
                    totals[i - first_p][j - first_q] += sum_of_logs(p.row(i) + token, q.row(j) + token, count);
        }
        for (Index i = first_p; i < last_p; ++i)
            for (Index j = first_q; j < last_q; ++j) {
                const double of_both = own[static_cast<std::size_t>(i)] + own[static_cast<std::size_t>(p.rows + j)];
                out[i * q.rows + j] = kLog2 * (of_both / 4 - totals[i - first_p][j - first_q] / 2);
            }
    };
    parallel_blocks(down * across, num_threads, compare, watch);
}

}  // namespace markovlm
