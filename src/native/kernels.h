// What is compiled once for each instruction set, as pointers to functions; `kernels()` is the set that this machine runs.
#pragma once
#include <cstddef>
#include <cstdint>

struct Sizes {  // of a two-layer disentangled model: context, vocabulary, heads of layer 0 and of layer 1
    int n_ctx, n_tok, m1, m2;
    int block() const { return n_tok + n_ctx; }                  // d0: [token | position]
    int width_1() const { return block() * (1 + m1); }           // d1: what layer 1 reads
    int width() const { return width_1() * (1 + m2); }           // d_model
};

struct SamplerPlan;  // sampler.h

// Weights of one model, or gradients of the same shapes: A1 [m1, d0, d0], A2 [m2, d1, d1], W_U [d_model, n_tok].
template <class T> struct Weights {
    T *a1, *a2, *w;
};

// Sums over the sequences of layer 0's pattern and of the gradient that reaches it, [m1, n_ctx, n_ctx]; null if unasked.
struct Watched {
    float *pattern, *d_pattern;
};

// A step of Adam: its rates, torch's epsilon, and 1 - beta^t for the number t of steps so far, this one included.
// `decay` is Adam's weight decay, `decoupled_decay` AdamW's.
struct AdamStep {
    double learning_rate, decay, decoupled_decay, beta1, beta2, mean_correction, square_correction;
    float epsilon;
};

struct Kernels {
    // Loss of n sequences, summed and times `share`; fills `gradients`. tokens [n, n_ctx], targets [n, n_tok].
    double (*gradient)(Sizes, const int32_t* tokens, const float* targets, int n, Weights<const float>, Weights<float>,
                       Watched, float share);
    void (*sample)(const SamplerPlan&, const uint32_t key[2], int64_t first, int n, int32_t* tokens, float* targets);
    float (*add_up)(const float* parts, int n_parts, size_t stride, size_t n, float* out);
    void (*adam)(float* weights, const float* gradients, float* means, float* squares, size_t n, AdamStep);
    void (*sgd)(float* weights, const float* gradients, size_t n, float learning_rate, float decay);
    const char* name;  // "avx512", "avx2" or "baseline"
};

const Kernels& kernels();
