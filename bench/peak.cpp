// The CPU's own limits, measured: what a product can reach at most. Prints JSON; compiled by harness.py with
// -march=native. Rates are of all threads together: GFLOP/s of float32 multiply-adds, of bfloat16 ones in the best unit
// that there is, and GB/s of reading memory.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kSums = 24;
#elif defined(__AVX__)
constexpr int kWidth = 8, kSums = 12;
#else
constexpr int kWidth = 4, kSums = 12;
#endif
using Vec = float __attribute__((vector_size(kWidth * 4)));

volatile float sink;

template <class Step>
double operations(long turns, double per_step, Step step) {
    Vec sums[kSums] = {};
    for (Vec& sum : sums) asm volatile("" : "+x"(sum));  // or the compiler sees that they are all the same
    for (long turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 24
        for (int i = 0; i < kSums; ++i) step(sums[i]);
    }
    for (const Vec& sum : sums)
        for (int i = 0; i < kWidth; ++i) sink = sum[i];
    return static_cast<double>(turns) * kSums * per_step;
}

double float32(long turns) {
    Vec a = Vec{} + 1e-8f, b = a;
    asm volatile("" : "+x"(a), "+x"(b));
    return operations(turns, 2 * kWidth, [&](Vec& sum) { sum = sum * a + b; });
}

double bfloat16(long turns) {
#if defined(__AMX_BF16__)
    if (syscall(SYS_arch_prctl, 0x1023, 18) == 0) {  // ARCH_REQ_XCOMP_PERM, the tile registers
        struct alignas(64) {
            std::uint8_t palette = 1, start = 0, reserved[14] = {};
            std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shape;
        asm volatile("ldtilecfg %0" ::"m"(shape));
        for (long turn = 0; turn < turns; ++turn)
            asm volatile(
                "tdpbf16ps %tmm6, %tmm4, %tmm0\n\ttdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
                "tdpbf16ps %tmm6, %tmm5, %tmm2\n\ttdpbf16ps %tmm7, %tmm5, %tmm3");
        asm volatile("tilerelease");
        return static_cast<double>(turns) * 4 * 16 * 16 * 32 * 2;
    }
#endif
#if defined(__AVX512BF16__)
    Vec a = Vec{} + 1e-8f, b = a;
    asm volatile("" : "+x"(a), "+x"(b));
    return operations(turns, 4 * kWidth,
                      [&](Vec& sum) { sum = (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b); });
#else
    return float32(turns);
#endif
}

double memory(long turns) {
    static const std::vector<std::uint64_t> data(32u << 20, 1);  // 256 MiB: more than caches hold
    std::uint64_t sum[8] = {};
    for (long turn = 0; turn < turns; ++turn)
        for (std::size_t i = 0; i < data.size(); i += 8)
            for (std::size_t j = 0; j < 8; ++j) sum[j] += data[i + j];
    for (std::uint64_t part : sum) sink = static_cast<float>(part);
    return static_cast<double>(turns) * static_cast<double>(data.size()) * 8;
}

double best_rate(double (*work)(long), long turns, int threads) {
    double best = 0;
    for (int repeat = 0; repeat < 5; ++repeat) {
        std::vector<double> done(static_cast<std::size_t>(threads));
        std::vector<std::thread> running;
        const auto start = std::chrono::steady_clock::now();
        for (double& amount : done) running.emplace_back([&] { amount = work(turns); });
        double total = 0;
        for (std::size_t i = 0; i < running.size(); ++i) {
            running[i].join();
            total += done[i];
        }
        const double rate = total / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (repeat > 0 && rate > best) best = rate;
    }
    return best / 1e9;
}

}  // namespace

int main(int, char** arguments) {
    const int threads = std::atoi(arguments[1]);
    std::printf("{\"float32\": %.1f, \"bfloat16\": %.1f, \"memory\": %.1f}\n", best_rate(float32, 2'000'000, threads),
                best_rate(bfloat16, 2'000'000, threads), best_rate(memory, 2, threads));
}
