// The best of this package's x86-64 builds that the CPU has the instructions for and the OS saves the registers of.
// bf16 is v4 with products of bfloat16 and of 16-bit integers, amx has the former in tile registers too.
// Compiled without any -march flag: it decides whether code with one may be loaded.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace markovlm {

#if defined(__x86_64__)
namespace detail {

struct CpuId {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    CpuId(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx); }
};

inline bool has(unsigned word, std::initializer_list<int> bits) {
    for (int bit : bits)
        if (!(word >> bit & 1u)) return false;
    return true;
}

inline unsigned long long os_saved_state() {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<unsigned long long>(high) << 32 | low;
}

// Asks the OS for the tile registers, which it gives to processes that asked before their first use.
inline bool may_use_tiles() {
#if defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

}  // namespace detail
#endif

// Builds that can run here, best first. The bits are those of the x86-64 psABI micro-architecture levels.
inline std::vector<std::string> runnable_builds() {
    std::vector<std::string> builds{"baseline"};
#if defined(__x86_64__)
    const detail::CpuId one(1, 0), seven(7, 0), seven_one(7, 1), extended(0x80000001u, 0);
    constexpr int sse3 = 0, ssse3 = 9, fma = 12, cx16 = 13, sse41 = 19, sse42 = 20, movbe = 22, popcnt = 23,  // leaf 1
        osxsave = 27, avx = 28, f16c = 29;                                                                    // ecx
    constexpr int bmi1 = 3, avx2 = 5, bmi2 = 8, avx512f = 16, avx512dq = 17, avx512cd = 28,  // leaf 7, ebx
        avx512bw = 30, avx512vl = 31;
    constexpr int avx512vnni = 11;               // leaf 7, ecx
    constexpr int amx_bf16 = 22, amx_tile = 24;  // leaf 7, edx
    constexpr int avx512bf16 = 5;                // leaf 7, subleaf 1, eax
    constexpr int lahf = 0, lzcnt = 5;           // extended leaf, ecx
    if (!detail::has(one.ecx, {osxsave})) return builds;
    const auto saved = detail::os_saved_state();
    const bool v3 = detail::has(one.ecx, {sse3, ssse3, fma, cx16, sse41, sse42, movbe, popcnt, avx, f16c}) &&
                    detail::has(seven.ebx, {bmi1, avx2, bmi2}) && detail::has(extended.ecx, {lahf, lzcnt}) &&
                    (saved & 0x06) == 0x06;  // SSE and AVX registers
    if (v3) builds.insert(builds.begin(), "v3");
    const bool v4 = v3 && detail::has(seven.ebx, {avx512f, avx512dq, avx512cd, avx512bw, avx512vl}) &&
                    (saved & 0xe6) == 0xe6;  // and mask and 512-bit registers
    if (v4) builds.insert(builds.begin(), "v4");
    const bool bf16 = v4 && detail::has(seven_one.eax, {avx512bf16}) && detail::has(seven.ecx, {avx512vnni});
    if (bf16) builds.insert(builds.begin(), "bf16");
    if (bf16 && detail::has(seven.edx, {amx_bf16, amx_tile}) && (saved & 0x60000) == 0x60000 && detail::may_use_tiles())
        builds.insert(builds.begin(), "amx");
#endif
    return builds;
}

}  // namespace markovlm
