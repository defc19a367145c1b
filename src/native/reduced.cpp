// Loss and gradients of the reduced model (section 4 of the paper), whose layer 0 attends alike in every sequence.
//
//     P = softmax of A1's rows over j <= i;  a[k] = A2[x_T, x_k];  t = P a;  p = softmax(t);  f[v] = sum_j p[j] [x_j = v]
//     loss = - sum_v target[v] log(f[v] + 1e-9)
//
// Backward: dp[j] = -target[x_j] / (f[x_j] + 1e-9);  dt = p (dp - p . dp);  dP = sum over sequences of dt (x) a;
// da = P^T dt, added up by token in row x_T of A2;  dA1 = P (dP - row sums of P dP).
//
// t, da and dP are dense products for a chunk of sequences.
#include <algorithm>
#include <vector>

#include "dense.h"
#include "kernels.h"
#include "softmax.h"

namespace KERNELS_NAMESPACE {
namespace {

constexpr float PROBABILITY_FLOOR = 1e-9f;  // that of models/structured.py

// One batch through one model; rows of positions are padded to `wide` numbers.
struct Pass {
    const int n_ctx, n_tok, wide = padded(n_ctx);
    const float* a2;
    const Watched watched;
    const float share;
    // pattern, d_pattern [query, key]; pattern_t [key, query]; d_a2 [query token, key token]
    std::vector<float> pattern = zeros(n_ctx), pattern_t = zeros(n_ctx), d_pattern = zeros(n_ctx);
    std::vector<float> d_a2 = std::vector<float>(n_tok * n_tok);
    // Of a chunk, [sequence, position]: a, then t which becomes p and dt, then da. Of a sequence: f and its gradient.
    std::vector<float> reach = zeros(CHUNK), scores = zeros(CHUNK), d_reach = zeros(CHUNK);
    std::vector<float> probs = std::vector<float>(n_tok), d_probs = std::vector<float>(n_tok);

    std::vector<float> zeros(int n_rows) const { return std::vector<float>(n_rows * wide); }

    void pack(const float* a1) {
        for (int i = 0; i < n_ctx; ++i) {
            std::copy_n(a1 + i * n_ctx, i + 1, &pattern[i * wide]);
            softmax(&pattern[i * wide], i + 1);
            for (int j = 0; j <= i; ++j) pattern_t[j * wide + i] = pattern[i * wide + j];
        }
    }

    double run(const int32_t* x, const float* targets, int n) {
        double loss = 0;
        for (int start = 0; start < n; start += CHUNK) {
            const int size = std::min(CHUNK, n - start);
            const int32_t* tokens = x + start * n_ctx;
            const auto row_of_a2 = [=](int b) { return tokens[(b + 1) * n_ctx - 1] * n_tok; };
            for (int b = 0; b < size; ++b)
                for (int k = 0; k < n_ctx; ++k) reach[b * wide + k] = a2[row_of_a2(b) + tokens[b * n_ctx + k]];
            std::fill(scores.begin(), scores.end(), 0.0f), std::fill(d_reach.begin(), d_reach.end(), 0.0f);
            multiply({reach.data(), wide, 1}, size, n_ctx, pattern_t.data(), wide, n_ctx, scores.data(), wide);
            for (int b = 0; b < size; ++b)
                loss += back_to_scores(tokens + b * n_ctx, targets + (start + b) * n_tok, &scores[b * wide]);
            multiply({scores.data(), wide, 1}, size, n_ctx, pattern.data(), wide, n_ctx, d_reach.data(), wide);
            multiply({scores.data(), 1, wide}, n_ctx, size, reach.data(), wide, n_ctx, d_pattern.data(), wide);
            for (int b = 0; b < size; ++b)
                for (int k = 0; k < n_ctx; ++k) d_a2[row_of_a2(b) + tokens[b * n_ctx + k]] += d_reach[b * wide + k];
        }
        return loss;
    }

    // The loss of a sequence; dt takes the place of t.
    double back_to_scores(const int32_t* x, const float* target, float* p) {
        softmax(p, n_ctx);
        std::fill(probs.begin(), probs.end(), 0.0f);
        for (int k = 0; k < n_ctx; ++k) probs[x[k]] += p[k];
        double loss = 0;
        for (int t = 0; t < n_tok; ++t) {
            const float prob = probs[t] + PROBABILITY_FLOOR;
            loss -= target[t] * std::log(prob);
            d_probs[t] = -target[t] / prob;
        }
        float inner = 0;
        for (int k = 0; k < n_ctx; ++k) inner += p[k] * d_probs[x[k]];
        for (int k = 0; k < n_ctx; ++k) {
            const float dp = d_probs[x[k]], dt = p[k] * (dp - inner);
            if (watched.pattern) {
                watched.last[k] += share * p[k], watched.d_last[k] += share * dp;
                watched.d_scores[k] += share * dt;
            }
            p[k] = dt;
        }
        return loss;
    }

    void write(Weights<float> to, int n) const {
        for (int i = 0; i < n_ctx; ++i) {
            const float *p = &pattern[i * wide], *dp = &d_pattern[i * wide];
            float inner = 0;
            for (int j = 0; j <= i; ++j) inner += p[j] * dp[j];
            for (int j = 0; j < n_ctx; ++j) to.a1[i * n_ctx + j] = j <= i ? share * p[j] * (dp[j] - inner) : 0.0f;
            for (int j = 0; watched.pattern && j <= i; ++j) {
                watched.pattern[i * n_ctx + j] = share * n * p[j];
                watched.d_pattern[i * n_ctx + j] = share * dp[j];
            }
        }
        for (int i = 0; i < n_tok * n_tok; ++i) to.a2[i] = share * d_a2[i];
    }
};

}  // namespace

double reduced_gradient(Sizes sizes, const int32_t* tokens, const float* targets, int n, Weights<const float> weights,
                        Weights<float> gradients, Watched watched, float share) {
    Pass pass{sizes.n_ctx, sizes.n_tok, padded(sizes.n_ctx), weights.a2, watched, share};
    if (watched.pattern) std::fill_n(watched.pattern, Watched::size(sizes), 0.0f);
    pass.pack(weights.a1);
    const double loss = pass.run(tokens, targets, n);
    pass.write(gradients, n);
    return loss * share;
}

}  // namespace KERNELS_NAMESPACE
