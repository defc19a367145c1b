// A model's weights as the pass over sequences reads them, and the sums that become their gradients.
//
// The score of query i for key j is A[x_i, x_j] + A[x_i, S + j] + A[S + i, x_j] + A[S + i, S + j]: four tables, by the
// token or the position of each. Rows are keys and lanes are queries, except in the copies for the last query alone: the
// sums of softmax, P r and P c then run down a column, which needs no sum across lanes.
#pragma once
#include <algorithm>
#include <memory>

#include "shape.h"

namespace KERNELS_NAMESPACE {

// Of one head of layer 0. tt [key token, query token], tp [key position, query token], pt [unit, key token, lane],
// pp [unit, key position, lane]; of the last query tt_last and tp_last [query token, key], pt_last and pp_last [key].
struct Tables {
    float *tt, *tp, *pt, *pp, *tt_last, *tp_last, *pt_last, *pp_last;
    bool holds_scores;  // instead of their exponentials

    template <class Do>
    void each(const Shape& s, Do something) {  // array and size
        something(tt, s.n_tok * s.tokens), something(tp, s.context * s.tokens);
        something(pt, s.context * s.n_tok), something(pp, s.context * s.context);
        something(tt_last, s.n_tok * s.tokens), something(tp_last, s.n_tok * s.context);
        something(pt_last, s.tokens), something(pp_last, s.context);
    }
    void take(Arena& arena, const Shape& s) {
        each(s, [&](float*& of, int n) { of = arena.take<float>(n); });
    }
    void clear(const Shape& s) {
        each(s, [](float* of, int n) { std::fill_n(of, n, 0.0f); });
    }
};

// Tables of all heads of layer 0, and of the weights that a chunk's dense products read a2 [m2, d1, d1], padded.
struct Packed {
    std::unique_ptr<Tables[]> heads;
    float *a2, *scratch;

    void take(Arena& arena, const Shape& s) {
        heads.reset(new Tables[s.m1]);
        for (int h = 0; h < s.m1; ++h) heads[h].take(arena, s);
        a2 = arena.take<float>(s.m2 * s.d1 * s.wide_d1), scratch = arena.take<float>(s.tokens + s.context);
    }
};

// The largest of n numbers, and that minus the smallest: not a number if one of them is none. Whole vectors are read.
struct Range {
    float top, gap;
};
inline Range range(const float* row, int n) {
    Floats high = splat(-INF), low = splat(INF), nothing{};  // nothing: the sum of 0 times each
    for (int v = 0; v < n; v += LANES) {
        const Floats value = select(lane_numbers() < n - v, load(row + v), splat(row[0]));
        high = larger(value, high), low = -larger(-value, -low), nothing += value * 0.0f;
    }
    const float top = largest(high);
    return {top, top + largest(-low) + sum(nothing)};
}

// Of n numbers, in place, relative to their largest; zero up to whole vectors.
inline void exponentials(float* row, int n) {
    const float top = range(row, n).top;
    for (int v = 0; v < n; v += LANES)
        store(row + v, select(lane_numbers() < n - v, exp(load(row + v) - top), Floats{}));
}

// The largest sum of the gaps of a query's four tables.
inline float widest_gap(const float* a, const Shape& s, float* scratch) {
    float gaps[4] = {0, 0, 0, 0};
    for (int q = 0; q < s.d0; ++q) {
        const int of_query = q < s.n_tok ? 0 : 2, n_keys[2] = {s.n_tok, q < s.n_tok ? s.n_ctx : q - s.n_tok + 1};
        for (int of_key = 0; of_key < 2; ++of_key) {
            std::copy_n(a + q * s.d0 + of_key * s.n_tok, n_keys[of_key], scratch);
            const float gap = range(scratch, n_keys[of_key]).gap;
            float& widest = gaps[of_query + of_key];
            if (gap > widest || gap != gap) widest = gap;  // a NaN stays
        }
    }
    return gaps[0] + gaps[1] + gaps[2] + gaps[3];
}

// One head's tables from its A.
inline void pack_head(const float* a, Tables& to, const Shape& s, float* scratch) {
    float *tokens = scratch, *positions = scratch + s.tokens;
    to.holds_scores = !(widest_gap(a, s, scratch) < WIDEST_GAP);
    const float unseen = to.holds_scores ? -INF : 0.0f;  // later keys, and what lies before the first
    const auto read = [&](int q, int n_keys) {
        std::fill_n(scratch, s.tokens + s.context, unseen);
        std::copy_n(a + q * s.d0, s.n_tok, tokens);
        std::copy_n(a + q * s.d0 + s.n_tok, n_keys, positions + s.pad);
        if (to.holds_scores) return;
        exponentials(tokens, s.n_tok);
        exponentials(positions + s.pad, n_keys);
    };
    for (int t = 0; t < s.n_tok; ++t) {
        read(t, s.n_ctx);
        std::copy_n(tokens, s.tokens, to.tt_last + t * s.tokens);
        std::copy_n(positions, s.context, to.tp_last + t * s.context);
        for (int k = 0; k < s.n_tok; ++k) to.tt[k * s.tokens + t] = tokens[k];
        for (int k = 0; k < s.context; ++k) to.tp[k * s.tokens + t] = positions[k];
    }
    for (int i = 0; i < s.context; ++i) {
        const int unit = i / LANES, lane = i % LANES;
        i < s.pad ? (void)std::fill_n(scratch, s.tokens + s.context, unseen) : read(s.n_tok + i - s.pad, i - s.pad + 1);
        for (int k = 0; k < s.n_tok; ++k) to.pt[(unit * s.n_tok + k) * LANES + lane] = tokens[k];
        for (int k = 0; k < s.context; ++k) to.pp[(unit * s.context + k) * LANES + lane] = positions[k];
    }
    std::copy_n(tokens, s.tokens, to.pt_last);
    std::copy_n(positions, s.context, to.pp_last);
}

// One head's gradient from the sums in its tables, times `share`.
inline void unpack_head(const Tables& from, float* a1, const Shape& s, float share) {
    const int S = s.n_tok;
    for (int t = 0; t < S; ++t) {
        float* row = a1 + t * s.d0;
        for (int k = 0; k < S; ++k) row[k] = share * (from.tt[k * s.tokens + t] + from.tt_last[t * s.tokens + k]);
        for (int k = s.pad; k < s.context; ++k)
            row[S + k - s.pad] = share * (from.tp[k * s.tokens + t] + from.tp_last[t * s.context + k]);
    }
    for (int i = s.pad; i < s.context; ++i) {
        float* row = a1 + (S + i - s.pad) * s.d0;
        const int unit = i / LANES, lane = i % LANES;
        for (int k = 0; k < S; ++k) row[k] = share * from.pt[(unit * S + k) * LANES + lane];
        for (int k = s.pad; k < s.context; ++k)
            row[S + k - s.pad] = k <= i ? share * from.pp[(unit * s.context + k) * LANES + lane] : 0.0f;
    }
    float* last = a1 + (s.d0 - 1) * s.d0;
    for (int k = 0; k < S; ++k) last[k] += share * from.pt_last[k];
    for (int k = s.pad; k < s.context; ++k) last[S + k - s.pad] += share * from.pp_last[k];
}

inline void pack(Weights<const float> from, Packed& to, const Shape& s) {
    for (int h = 0; h < s.m1; ++h) pack_head(from.a1 + h * s.d0 * s.d0, to.heads[h], s, to.scratch);
    for (int d = 0; d < s.m2 * s.d1; ++d) std::copy_n(from.a2 + d * s.d1, s.d1, to.a2 + d * s.wide_d1);
}

}  // namespace KERNELS_NAMESPACE
