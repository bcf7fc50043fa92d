// Which instruction set a kernel runs with, found once at run time.
//
// A kernel has up to three builds of the same code: Portable (plain C++, every machine), Avx2 (AVX2 + FMA) and
// Avx512 (F, BW, DQ, VL).  A binding takes `isa` as a string: "auto" picks the best one, a name asks for that one
// and raises ValueError where the machine or the build lacks it, so that tests can run every path.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define TTC_X86 1
#else
#define TTC_X86 0
#endif

namespace ttc {

enum class Isa { Portable = 0, Avx2 = 1, Avx512 = 2 };

inline bool has_avx2() {
#if TTC_X86
    static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return has;
#else
    return false;
#endif
}

inline bool has_avx512() {
#if TTC_X86
    static const bool has = has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return has;
#else
    return false;
#endif
}

inline Isa best_isa() {
    static const Isa isa = has_avx512() ? Isa::Avx512 : has_avx2() ? Isa::Avx2 : Isa::Portable;
    return isa;
}

inline const char* isa_name(Isa isa) {
    return isa == Isa::Avx512 ? "avx512" : isa == Isa::Avx2 ? "avx2" : "portable";
}

// The paths this machine can run, best last.
inline std::vector<std::string> supported_isas() {
    std::vector<std::string> names{"portable"};
    if (has_avx2()) names.emplace_back("avx2");
    if (has_avx512()) names.emplace_back("avx512");
    return names;
}

// "auto" -> the best; a name -> that path.  std::invalid_argument becomes ValueError in Python.
inline Isa parse_isa(const std::string& name) {
    if (name.empty() || name == "auto") return best_isa();
    if (name == "portable") return Isa::Portable;
    if (name == "avx2" && has_avx2()) return Isa::Avx2;
    if (name == "avx512" && has_avx512()) return Isa::Avx512;
    std::string have;
    for (const auto& n : supported_isas()) have += (have.empty() ? "" : ", ") + n;
    throw std::invalid_argument("isa '" + name + "' cannot run here; this machine has " + have);
}

}  // namespace ttc
