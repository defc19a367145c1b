// What happens to weights between two gradients, on flat arrays: sums over the parts of a batch, Adam(W), SGD.
//
// Arrays are padded to a multiple of 64, so that no entry's place decides whether a vector or a scalar instruction
// rounds it.
#include <cmath>

#include "kernels.h"
#include "simd.h"

namespace KERNELS_NAMESPACE {

// out[i] = sum over the parts of parts[part * stride + i]; returns the sum of all, a number if all are finite.
float add_up(const float* parts, int n_parts, size_t stride, size_t n, float* out) {
    Floats total{};
    for (size_t v = 0; v < n; v += LANES) {
        Floats value = load(parts + v);
        for (int part = 1; part < n_parts; ++part) value += load(parts + part * stride + v);
        store(out + v, value);
        total += value;
    }
    return sum(total);
}

// Kingma & Ba (2015), algorithm 1, with torch's epsilon and weight decay: coupled (Adam) or decoupled (AdamW).
// `step` counts from 1.
void adam(float* weights, const float* gradients, float* means, float* squares, size_t n, AdamStep s) {
    const float to_mean = float(1.0 - s.beta1), to_square = float(1.0 - s.beta2);
    const float keep = 1.0f - float(s.learning_rate * s.decoupled_decay), decay = float(s.decay);
    const float rate = float(s.learning_rate / s.mean_correction), scale = float(1.0 / std::sqrt(s.square_correction));
    for (size_t v = 0; v < n; v += LANES) {
        const Floats w = load(weights + v) * keep, g = w * decay + load(gradients + v);
        const Floats mean = load(means + v) + (g - load(means + v)) * to_mean;
        const Floats square = load(squares + v) + (g * g - load(squares + v)) * to_square;
        store(means + v, mean), store(squares + v, square);
        store(weights + v, w - rate * (mean / (square_root(square) * scale + s.epsilon)));
    }
}

void sgd(float* weights, const float* gradients, size_t n, float learning_rate, float decay) {
    for (size_t v = 0; v < n; v += LANES) {
        const Floats w = load(weights + v);
        store(weights + v, w - learning_rate * (load(gradients + v) + decay * w));
    }
}

}  // namespace KERNELS_NAMESPACE
