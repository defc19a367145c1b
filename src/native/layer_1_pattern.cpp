// The whole pattern of layer 1, which a recording shows; a step needs its last row alone (step.cpp has the notation).
//
// Query i makes q_i = residual_i A2. Its score for key k <= i is q_i[0][x_k] + q_i[0][S + k] + sum_h (P_h r_hi)_k with
// r_hi[j] = q_i[h][x_j] + q_i[h][S + j]: products of matrices over all queries, n_ctx times the work of a step.
#include "attention.h"
#include "dense.h"

namespace KERNELS_NAMESPACE {
namespace {

struct Workspace {
    Arena arena;
    Sizes sizes{};
    Packed packed;
    int32_t* x;
    // pattern [m1, unit, key, lane]; features [query, dense]; queries [query, d1]; asked and scores [query, key]
    float *pattern, *features, *queries, *asked, *scores;

    void fit(Sizes to) {
        if (sizes == to) return;
        const Shape s(to);
        sizes = {};  // until all is there: memory may run out
        arena.fill([&](Arena& a) {
            packed.take(a, s);
            x = a.take<int32_t>(s.context), pattern = a.take<float>(s.m1 * s.context * s.context);
            features = a.take<float>(s.context * s.wide_dense), queries = a.take<float>(s.context * s.wide_query);
            asked = a.take<float>(s.context * s.context), scores = a.take<float>(s.context * s.context);
        });
        sizes = to;
    }
};

template <Size SIZE>
struct Pass {
    const Shape& s;
    Workspace& work;

    float* column(int h, int unit) const { return work.pattern + (h * s.units + unit) * LANES * s.context; }

    // Layer 0's pattern, and what its heads copy to every query.
    void attend() {
        std::fill_n(work.features, s.context * s.wide_dense, 0.0f);
        for (int h = 0; h < s.m1; ++h)
            for (int unit = 0; unit < s.units; ++unit) {
                const int end = (unit + 1) * LANES;
                float* rows = column(h, unit);
                const Floats total = exponential_column<SIZE>(work.packed.heads[h], work.x, unit, s, rows);
                const Floats scale = alive(1.0f / total, unit, s, 0.0f);
                for (int key = s.pad; key < end; ++key) store(rows + key * LANES, load(rows + key * LANES) * scale);
                for (int lane = unit > 0 ? 0 : s.pad; lane < LANES; ++lane) {
                    float* block = work.features + (unit * LANES + lane) * s.wide_dense + h * s.d0;
                    for (int key = s.pad; key < end; ++key) {
                        const float weight = rows[key * LANES + lane];
                        block[work.x[key]] += weight;
                        block[s.n_tok + key - s.pad] = weight;
                    }
                }
            }
    }

    void add_pattern(int m, float* out, float share) {
        const float* a2 = work.packed.a2 + m * s.d1 * s.wide_d1;
        for (int i = s.pad; i < s.context; ++i) {
            float* query = work.queries + i * s.wide_query;
            const float *by_token = a2 + work.x[i] * s.wide_d1, *by_position = a2 + (s.n_tok + i - s.pad) * s.wide_d1;
            for (int v = 0; v < s.d1; v += LANES) store(query + v, load(by_token + v) + load(by_position + v));
        }
        multiply({work.features + s.pad * s.wide_dense, s.wide_dense, 1}, s.n_ctx, s.dense, a2 + s.d0 * s.wide_d1,
                 s.wide_d1, s.d1, work.queries + s.pad * s.wide_query, s.wide_query);
        for (int block = 0; block <= s.m1; ++block) {
            float* to = block == 0 ? work.scores : work.asked;
            for (int i = s.pad; i < s.context; ++i)
                for (int unit = 0; unit < s.units; ++unit) {
                    const float* from = work.queries + i * s.wide_query + block * s.d0;
                    store(to + i * s.context + unit * LANES, read_block<SIZE>(from, work.x, unit, s));
                }
            for (int unit = 0; block > 0 && unit < s.units; ++unit) {  // its keys are seen by queries from there on
                const int first = std::max(unit * LANES, s.pad), n_keys = (unit + 1) * LANES - s.pad;
                multiply({work.asked + first * s.context + s.pad, s.context, 1}, s.context - first, n_keys,
                         column(block - 1, unit) + s.pad * LANES, LANES, LANES,
                         work.scores + first * s.context + unit * LANES, s.context);
            }
        }
        for (int i = 0; i < s.n_ctx; ++i)
            add_softmax(work.scores + (s.pad + i) * s.context + s.pad, i + 1, share, out + i * s.n_ctx);
    }

    void run(const int32_t* x, int n, float* out, float share) {
        for (int b = 0; b < n; ++b) {
            std::copy_n(x + b * s.n_ctx, s.n_ctx, work.x + s.pad);
            attend();
            for (int m = 0; m < s.m2; ++m) add_pattern(m, out + m * s.n_ctx * s.n_ctx, share);
        }
    }
};

}  // namespace

void layer_1_pattern(Sizes sizes, const int32_t* tokens, int n, Weights<const float> weights, float* out, float share) {
    thread_local Workspace work;
    work.fit(sizes);
    const Shape s(sizes);
    pack(weights, work.packed, s);
    std::fill_n(out, s.m2 * s.n_ctx * s.n_ctx, 0.0f);
    by_size(s.n_tok, [&](auto size) { Pass<size>{s, work}.run(tokens, n, out, share); });
}

}  // namespace KERNELS_NAMESPACE
