// The table of one instruction set's kernels.
#include "kernels.h"

namespace KERNELS_NAMESPACE {

void sample(const SamplerPlan&, const uint32_t key[2], int64_t first, int n, int32_t* tokens, float* targets);

Gradient gradient, reduced_gradient;
float add_up(const float* parts, int n_parts, size_t stride, size_t n, float* out);
void adam(float* weights, const float* gradients, float* means, float* squares, size_t n, AdamStep);
void sgd(float* weights, const float* gradients, size_t n, float learning_rate, float decay);

#define NAME_OF(name) #name
#define NAME(name) NAME_OF(name)

const Kernels& kernels() {
    static constexpr Kernels table{gradient, reduced_gradient, sample, add_up, adam, sgd, NAME(KERNELS_NAMESPACE)};
    return table;
}

}  // namespace KERNELS_NAMESPACE
