// Loss and gradients of the reduced model (section 4 of the paper), whose layer 0 attends alike in every sequence.
//
//     P = softmax of A1's rows over j <= i;  a[k] = A2[x_T, x_k];  t = P a;  p = softmax(t);  f[v] = sum_j p[j] [x_j = v]
//     loss = - sum_v target[v] log(f[v] + 1e-9)
//
// Backward: dp[j] = -target[x_j] / (f[x_j] + 1e-9);  dt = p (dp - p . dp);  dP = sum over sequences of dt (x) a;
// da = P^T dt, added up by token in row x_T of A2;  dA1 = P (dP - row sums of P dP).
//
// t, da and dP are dense products for a chunk of sequences.
#include "attention.h"
#include "dense.h"

namespace KERNELS_NAMESPACE {
namespace {

constexpr float PROBABILITY_FLOOR = 1e-9f;  // that of models/structured.py

struct Workspace {
    Arena arena;
    Sizes sizes{};
    // pattern and d_pattern [query, key]; pattern_t [key, query]; a2 and d_a2 [query token, key token], identity
    float *pattern, *pattern_t, *d_pattern, *a2, *d_a2, *identity;
    // Of a chunk, [sequence, context]: a, then t which becomes p and dt, then da. Of a sequence: f, and its gradient.
    float *reach, *scores, *d_reach, *probs, *d_probs;
    float *last, *d_last, *d_scores;  // [context], what a recording wants of layer 1
    int32_t* x;

    void fit(Sizes to) {
        if (sizes == to) return;
        const Shape s(to);
        sizes = {};  // until all is there: memory may run out
        arena.fill([&](Arena& a) {
            for (float** of : {&pattern, &pattern_t, &d_pattern}) *of = a.take<float>(s.context * s.context);
            for (float** of : {&a2, &d_a2, &identity}) *of = a.take<float>(s.n_tok * s.tokens);
            for (float** of : {&reach, &scores, &d_reach}) *of = a.take<float>(CHUNK * s.context);
            for (float** of : {&last, &d_last, &d_scores}) *of = a.take<float>(s.context);
            probs = a.take<float>(s.tokens), d_probs = a.take<float>(s.tokens);
            x = a.take<int32_t>(CHUNK * s.context);
        });
        for (int t = 0; t < s.n_tok; ++t) identity[t * s.tokens + t] = 1.0f;
        sizes = to;
    }
    void pack(Weights<const float> from, const Shape& s) {
        for (int i = 0; i < s.n_ctx; ++i) {
            float* row = pattern + (s.pad + i) * s.context + s.pad;
            std::copy_n(from.a1 + i * s.n_ctx, i + 1, row);
            softmax(row, i + 1);
        }
        for (int i = s.pad; i < s.context; ++i)
            for (int j = s.pad; j <= i; ++j) pattern_t[j * s.context + i] = pattern[i * s.context + j];
        for (int t = 0; t < s.n_tok; ++t) std::copy_n(from.a2 + t * s.n_tok, s.n_tok, a2 + t * s.tokens);
    }
};

template <Size SIZE>
struct Pass {
    const Shape& s;
    Workspace& work;
    const bool watched;

    double run(const int32_t* x, const float* targets, int n) {
        double loss = 0;
        for (int start = 0; start < n; start += CHUNK) {
            const int size = std::min(CHUNK, n - start), numbers = size * s.context;
            for (int b = 0; b < size; ++b) {
                std::copy_n(x + (start + b) * s.n_ctx, s.n_ctx, work.x + b * s.context + s.pad);
                look_up_scores(x[(start + b + 1) * s.n_ctx - 1], work.x + b * s.context, work.reach + b * s.context);
            }
            std::fill_n(work.scores, numbers, 0.0f), std::fill_n(work.d_reach, numbers, 0.0f);
            multiply({work.reach, s.context, 1}, size, s.context, work.pattern_t, s.context, s.context, work.scores,
                     s.context);
            for (int b = 0; b < size; ++b) loss += back_to_scores(b, targets + (start + b) * s.n_tok);
            multiply({work.scores, s.context, 1}, size, s.context, work.pattern, s.context, s.context, work.d_reach,
                     s.context);
            multiply({work.scores, 1, s.context}, s.context, size, work.reach, s.context, s.context, work.d_pattern,
                     s.context);
            for (int b = 0; b < size; ++b) add_by_tokens(b);
        }
        return loss;
    }

    // Row `token` of A2 at every position.
    void look_up_scores(int token, const int32_t* x, float* out) {
        for (int unit = 0; unit < s.units; ++unit) {
            const Ints keys = load<Ints>(x + unit * LANES);
            store(out + unit * LANES, alive(look_up<SIZE>(work.a2 + token * s.tokens, keys), unit, s, 0.0f));
        }
    }

    // The loss of a sequence; dt takes the place of t.
    double back_to_scores(int b, const float* target) {
        const int32_t* x = work.x + b * s.context;
        float* p = work.scores + b * s.context;
        store(p, alive(load(p), 0, s, -INF));
        softmax(p, s.context);
        by_token(p, x, work.identity, s, work.probs);
        double loss = 0;
        for (int t = 0; t < s.n_tok; ++t) {
            const float prob = work.probs[t] + PROBABILITY_FLOOR;
            loss -= target[t] * std::log(prob);
            work.d_probs[t] = -target[t] / prob;
        }
        Floats inner{};
        for (int v = 0; v < s.context; v += LANES)
            inner += load(p + v) * look_up<SIZE>(work.d_probs, load<Ints>(x + v));
        const float p_dp = sum(inner);
        for (int v = 0; v < s.context; v += LANES) {
            const Floats dp = look_up<SIZE>(work.d_probs, load<Ints>(x + v)), dt = load(p + v) * (dp - p_dp);
            if (watched) {
                add_to(work.last + v, load(p + v)), add_to(work.d_last + v, dp);
                add_to(work.d_scores + v, dt);
            }
            store(p + v, dt);
        }
        return loss;
    }

    void add_by_tokens(int b) {
        const int32_t* x = work.x + b * s.context;
        by_token(work.d_reach + b * s.context, x, work.identity, s, work.probs);
        float* row = work.d_a2 + x[s.context - 1] * s.tokens;
        for (int t = 0; t < s.n_tok; ++t) row[t] += work.probs[t];
    }
};

}  // namespace

double reduced_gradient(Sizes sizes, const int32_t* tokens, const float* targets, int n, Weights<const float> weights,
                        Weights<float> gradients, Watched watched, float share) {
    thread_local Workspace work;
    work.fit(sizes);
    const Shape s(sizes);
    work.pack(weights, s);
    std::fill_n(work.d_pattern, s.context * s.context, 0.0f), std::fill_n(work.d_a2, s.n_tok * s.tokens, 0.0f);
    for (float* of : {work.last, work.d_last, work.d_scores}) std::fill_n(of, s.context, 0.0f);
    const bool watch = watched.pattern != nullptr;
    const double loss = by_size(s.n_tok, [&](auto size) { return Pass<size>{s, work, watch}.run(tokens, targets, n); });
    for (int i = 0; i < s.n_ctx; ++i) {
        const float *p = work.pattern + (s.pad + i) * s.context + s.pad,
                    *dp = work.d_pattern + (s.pad + i) * s.context + s.pad;
        float inner = 0;
        for (int j = 0; j <= i; ++j) inner += p[j] * dp[j];
        for (int j = 0; j < s.n_ctx; ++j) {
            const int at = i * s.n_ctx + j;
            gradients.a1[at] = j <= i ? share * p[j] * (dp[j] - inner) : 0.0f;
            if (watch) watched.pattern[at] = share * n * p[j], watched.d_pattern[at] = j <= i ? share * dp[j] : 0.0f;
        }
    }
    for (int t = 0; t < s.n_tok; ++t)
        for (int k = 0; k < s.n_tok; ++k) gradients.a2[t * s.n_tok + k] = share * work.d_a2[t * s.tokens + k];
    for (int k = 0; watch && k < s.n_ctx; ++k) {
        watched.last[k] = share * work.last[s.pad + k], watched.d_last[k] = share * work.d_last[s.pad + k];
        watched.d_scores[k] = share * work.d_scores[s.pad + k];
    }
    return loss * share;
}

}  // namespace KERNELS_NAMESPACE
