// Vectors of floats as the compiler provides them, and the exponentials that softmax needs. One source serves every
// build: the width follows from the instruction set that this translation unit is compiled for.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace markovlm {

#if defined(__AVX512F__) || defined(MARKOVLM_EMULATE_AMX)
constexpr int kWidth = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

using Vec = float __attribute__((vector_size(kWidth * sizeof(float))));
using IntVec = std::int32_t __attribute__((vector_size(kWidth * sizeof(std::int32_t))));

inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline IntVec load(const std::int32_t* p) {
    IntVec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(std::int32_t* p, IntVec v) { std::memcpy(p, &v, sizeof v); }
inline Vec broadcast(float x) { return Vec{} + x; }

// totals[0 .. kWidth) += v, in double
inline void add_to(double* totals, Vec v) {
    using DoubleVec = double __attribute__((vector_size(kWidth * sizeof(double))));
    DoubleVec sum;
    std::memcpy(&sum, totals, sizeof sum);
    sum += __builtin_convertvector(v, DoubleVec);
    std::memcpy(totals, &sum, sizeof sum);
}

// In the next two a NaN in `x` stays: it must reach the sums, where it is found.
inline Vec at_least(Vec x, float low) { return x < low ? broadcast(low) : x; }
inline Vec at_most(Vec x, float high) { return x > high ? broadcast(high) : x; }

inline Vec abs(Vec x) { return x < 0.0f ? -x : x; }

inline bool any(IntVec mask) {
    std::uint64_t words[sizeof mask / 8], all = 0;
    std::memcpy(words, &mask, sizeof mask);
    for (auto word : words) all |= word;
    return all != 0;
}

namespace detail {

// e^r - 1 - r for |r| <= log(2)/2.
inline Vec expm1_minus_near_zero(Vec r) {
    Vec q = broadcast(1.9875691500e-4f);  // Cephes expf: minimax on the reduced interval
    q = q * r + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    return q * (r * r);
}

// x = k log 2 + r with |r| <= log(2)/2; expm1(r) = r + r^2 q(r), and 2^k as a float.
struct Reduced {
    Vec expm1_r, two_to_k;
};

inline Reduced reduce_exponential(Vec x) {
    constexpr float log2_e = 1.44269504088896341f;
    constexpr float log_2_high = 0.693359375f, log_2_low = -2.12194440054690583e-4f;  // k * high is exact
    constexpr float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
    const Vec shifted = x * log2_e + round_to_integer;
    const Vec k = shifted - round_to_integer;
    const Vec r = (x - k * log_2_high) - k * log_2_low;
    IntVec bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + (127 - 0x4b400000)) << 23;
    Vec two_to_k;
    std::memcpy(&two_to_k, &bits, sizeof bits);
    return {expm1_minus_near_zero(r) + r, two_to_k};
}

constexpr float kLargestExponent = 88.0f;    // e^88 is finite in float32
constexpr float kSmallestExponent = -87.0f;  // e^-87 is the last normal power; below, softmax terms are zero

}  // namespace detail

// e^x to about 1 ulp on [-88, 88] and nowhere else, but for NaN. Below -87.4 it may be 0, at -88 it is.
inline Vec exp_within(Vec x) {
    const auto [expm1_r, two_to_k] = detail::reduce_exponential(x);
    return expm1_r * two_to_k + two_to_k;
}

// e^x to about 1 ulp on [-87, 88]; 0 below, e^88 above, NaN for NaN.
inline Vec exp(Vec x) {
    const Vec power = exp_within(at_most(at_least(x, detail::kSmallestExponent), detail::kLargestExponent));
    return x < detail::kSmallestExponent ? Vec{} : power;
}

// e^x - 1 to about 2 ulp, also where x is tiny; -1 far below, e^88 above, NaN for NaN.
inline Vec expm1(Vec x) {
    const auto [expm1_r, two_to_k] =
        detail::reduce_exponential(at_most(at_least(x, detail::kSmallestExponent), detail::kLargestExponent));
    return expm1_r * two_to_k + (two_to_k - 1.0f);
}

// e^x - 1 - x to about 1e-6 of itself, also where x is tiny.
inline Vec expm1_minus(Vec x) {
    const Vec bounded = at_most(at_least(x, detail::kSmallestExponent), detail::kLargestExponent);
    const auto [expm1_r, two_to_k] = detail::reduce_exponential(bounded);
    // Where k = 0, r is x, and expm1(r) - r is known without a difference.
    return two_to_k == 1.0f ? detail::expm1_minus_near_zero(x) : expm1_r * two_to_k + (two_to_k - 1.0f) - x;
}

// log(1 + x) to about 2 ulp on [0, 1], as 2 artanh(x / (2 + x)).
inline Vec log1p_of_fraction(Vec x) {
    const Vec w = x / (2.0f + x), w2 = w * w;
    Vec series = broadcast(2.0f / 15);
    for (float odd : {13.0f, 11.0f, 9.0f, 7.0f, 5.0f, 3.0f}) series = series * w2 + 2.0f / odd;
    return series * w2 * w + 2.0f * w;
}

// tanh from expm1, so that small arguments keep their digits. Beyond 10 it is 1 in float32.
inline Vec tanh(Vec x) {
    const Vec e = expm1(2.0f * at_most(at_least(x, -10.0f), 10.0f));
    return e / (e + 2.0f);
}

}  // namespace markovlm
