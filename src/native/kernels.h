// What is compiled once for each instruction set, as pointers to functions; `kernels()` is the set that this machine
// runs.
#pragma once
#include <cstddef>
#include <cstdint>

struct Sizes {  // of a two-layer model: context, vocabulary, heads of layer 0 and of layer 1; disentangled or reduced
    int n_ctx, n_tok, m1, m2;
    bool reduced;
    int block() const { return n_tok + n_ctx; }         // d0: [token | position]
    int width_1() const { return block() * (1 + m1); }  // d1: what layer 1 reads
    int width() const { return width_1() * (1 + m2); }  // d_model
    size_t numbers(int weight) const {                  // of A1, A2, W_U
        const size_t d0 = reduced ? n_ctx : block(), d1 = reduced ? n_tok : width_1();
        return weight == 0 ? m1 * d0 * d0 : weight == 1 ? m2 * d1 * d1 : reduced ? 0 : size_t(width()) * n_tok;
    }
    bool operator==(const Sizes& o) const {
        return n_ctx == o.n_ctx && n_tok == o.n_tok && m1 == o.m1 && m2 == o.m2 && reduced == o.reduced;
    }
};

constexpr int CHUNK = 32;  // sequences whose dense products are done together

// A table's exponentials are taken once, relative to the largest of each query's; of the four tables' the smallest
// product is then at least e^-gap. Were the gap wider than this, products could underflow where they matter, and
// exponentials are taken of whole scores.
constexpr float WIDEST_GAP = 60.0f;

struct SamplerPlan;  // sampler.h

// Weights of one model, or gradients of the same shapes: A1 [m1, d0, d0], A2 [m2, d1, d1], W_U [d_model, n_tok]; of a
// reduced model A1 [n_ctx, n_ctx], A2 [n_tok, n_tok] and no W_U.
template <class T>
struct Weights {
    T *a1, *a2, *w;
};

// What a recording wants of a batch, summed over its sequences times `share`; null pointers if it wants nothing. Layer
// 0's pattern and the gradient that reaches it, [m1, n_ctx, n_ctx]; of layer 1, whose last query alone decides the
// loss, that query's row of the pattern, of the gradient that reaches it, and of the gradient of its scores, [m2,
// n_ctx].
struct Watched {
    float *pattern, *d_pattern, *last, *d_last, *d_scores;
    static size_t size(Sizes s) { return size_t(s.n_ctx) * (2 * s.m1 * s.n_ctx + 3 * s.m2); }
    // The five arrays one after the other, from `at` on.
    static Watched in(float* at, Sizes s) {
        if (!at) return {};
        const size_t square = size_t(s.m1) * s.n_ctx * s.n_ctx, row = size_t(s.m2) * s.n_ctx;
        float* rows = at + 2 * square;
        return {at, at + square, rows, rows + row, rows + 2 * row};
    }
};

// A step of Adam: its rates, torch's epsilon, and 1 - beta^t for the number t of steps so far, this one included.
// `decay` is Adam's weight decay, `decoupled_decay` AdamW's.
struct AdamStep {
    double learning_rate, decay, decoupled_decay, beta1, beta2, mean_correction, square_correction;
    float epsilon;
};

// Loss of n sequences, summed and times `share`; fills `gradients`. tokens [n, n_ctx], targets [n, n_tok].
using Gradient = double(Sizes, const int32_t* tokens, const float* targets, int n, Weights<const float>, Weights<float>,
                        Watched, float share);

struct Kernels {
    Gradient *gradient, *reduced_gradient;
    void (*sample)(const SamplerPlan&, const uint32_t key[2], int64_t first, int n, int32_t* tokens, float* targets);
    float (*add_up)(const float* parts, int n_parts, size_t stride, size_t n, float* out);
    void (*adam)(float* weights, const float* gradients, float* means, float* squares, size_t n, AdamStep);
    void (*sgd)(float* weights, const float* gradients, size_t n, float learning_rate, float decay);
    const char* name;  // "avx512", "avx2" or "baseline"
};

const Kernels& kernels();
