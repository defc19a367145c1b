// Which of the instruction sets that the kernels were compiled for this machine runs.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace baseline {
const Kernels& kernels();
}
#if defined(HAS_X86_KERNELS)
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
#endif

static const Kernels& choose() {
    // CAUSAL_CIRCUITS_KERNELS names the set that the tests want; a machine without it says so.
    const char* wanted = std::getenv("CAUSAL_CIRCUITS_KERNELS");
    const auto is_wanted = [wanted](const Kernels& set) { return !wanted || std::string(wanted) == set.name; };
#if defined(HAS_X86_KERNELS)
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512 && is_wanted(avx512::kernels())) return avx512::kernels();
    if (has_avx2 && is_wanted(avx2::kernels())) return avx2::kernels();
#endif
    if (is_wanted(baseline::kernels())) return baseline::kernels();
    throw std::invalid_argument("CAUSAL_CIRCUITS_KERNELS names instructions that this machine can run: baseline, avx2 "
                                "or avx512; got " + std::string(wanted));
}

const Kernels& kernels() {
    static const Kernels& chosen = choose();
    return chosen;
}
