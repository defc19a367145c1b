// The table of one instruction set's kernels.
#include "kernels.h"

namespace KERNELS_NAMESPACE {

void sample(const SamplerPlan&, const uint32_t key[2], int64_t first, int n, int32_t* tokens, float* targets);

#define NAME_OF(name) #name
#define NAME(name) NAME_OF(name)

const Kernels& kernels() {
    static constexpr Kernels table{nullptr, sample, NAME(KERNELS_NAMESPACE)};
    return table;
}

}  // namespace KERNELS_NAMESPACE
