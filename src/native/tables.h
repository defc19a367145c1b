// A model's weights as the pass over sequences reads them, and the sums that become their gradients.
//
// The score of query i for key j is A[x_i, x_j] + A[x_i, S + j] + A[S + i, x_j] + A[S + i, S + j]: four tables, by the
// token or the position of each. Rows are keys and lanes are queries, except in the copies for the last query alone.
#pragma once
#include <algorithm>

#include "shape.h"

namespace KERNELS_NAMESPACE {

// A sum by token is kept in so many copies: adding to the same numbers again has to wait until they are stored.
constexpr int COPIES = 4;

// Of one head of layer 0. tt [key token, query token], tp [key position, query token], pt [unit, key token, lane],
// pp [unit, key position, lane]
// (the sums' pt is [unit, copy, key token, lane]); of the last query tt_last and tp_last [query token, key], pt_last
// and pp_last [key].
struct Tables {
    float *tt, *tp, *pt, *pp, *tt_last, *tp_last, *pt_last, *pp_last;

    void take(Arena& arena, const Shape& s) {
        tt = arena.take<float>(s.n_tok * s.tokens), tp = arena.take<float>(s.context * s.tokens);
        pt = arena.take<float>(COPIES * s.context * s.n_tok), pp = arena.take<float>(s.context * s.context);
        tt_last = arena.take<float>(s.n_tok * s.tokens), tp_last = arena.take<float>(s.n_tok * s.context);
        pt_last = arena.take<float>(s.tokens), pp_last = arena.take<float>(s.context);
    }
    // Calls visit(entry of a table, query, key) for every entry of A that causality leaves, the last query's twice.
    template <class Visit>
    void each(const Shape& s, Visit visit) const {
        const int S = s.n_tok, T = s.n_ctx;
        for (int q = 0; q < S; ++q) {
            for (int k = 0; k < S; ++k) visit(tt[k * s.tokens + q], q, k), visit(tt_last[q * s.tokens + k], q, k);
            for (int j = 0; j < T; ++j)
                visit(tp[(s.pad + j) * s.tokens + q], q, S + j), visit(tp_last[q * s.context + s.pad + j], q, S + j);
        }
        for (int i = 0; i < T; ++i) {
            const int unit = (s.pad + i) / LANES, lane = (s.pad + i) % LANES;
            for (int k = 0; k < S; ++k) visit(pt[(unit * S + k) * LANES + lane], S + i, k);
            for (int j = 0; j <= i; ++j) visit(pp[(unit * s.context + s.pad + j) * LANES + lane], S + i, S + j);
        }
        for (int k = 0; k < S; ++k) visit(pt_last[k], S + T - 1, k);
        for (int j = 0; j < T; ++j) visit(pp_last[s.pad + j], S + T - 1, S + j);
    }
};

// What of the weights a pass reads. a2 [m2, d1, d1] padded; a2_t [m2, d1, dense], its rows that heads wrote,
// transposed; w [d0, n_tok] the embedding's rows of W_U; w_t [n_tok, features] the others, transposed.
struct Packed {
    Tables* heads;
    bool* wide;  // of each head: whether its tables hold scores instead of exponentials
    float *a2, *a2_t, *w, *w_t, *row;
};

struct Sums {
    Tables* heads;
    float *a2, *w, *w_t;
    Watched watched;  // in vectors: [m1, unit, key position, lane] and [m2, padded context]
};

// The largest of n numbers minus the smallest.
inline float spread(const float* row, int n) {
    const auto [least, most] = std::minmax_element(row, row + n);
    return *most - *least;
}

inline void exponentials(const float* row, int n, float* out) {
    const float top = *std::max_element(row, row + n);
    std::copy_n(row, n, out);
    for (int v = 0; v < n; v += LANES) store(out + v, exp_of_negative(load(out + v) - top));
}

// One head's tables, and whether they hold scores. A row of `a` is a query; its two halves belong to a table each.
inline bool pack_head(const float* a, Tables& to, const Shape& s, float* row) {
    const int S = s.n_tok, d0 = s.d0, half = padded(S) + LANES;
    float gaps[4] = {0, 0, 0, 0};
    for (int q = 0; q < d0; ++q) {
        const float gap[2] = {spread(a + q * d0, S), spread(a + q * d0 + S, q < S ? s.n_ctx : q - S + 1)};
        for (int k = 0; k < 2; ++k) {
            float& widest = gaps[k + (q < S ? 0 : 2)];
            if (gap[k] > widest || gap[k] != gap[k]) widest = gap[k];  // a NaN stays
        }
    }
    const bool scores = !(gaps[0] + gaps[1] + gaps[2] + gaps[3] < WIDEST_GAP);
    std::fill_n(to.pp, s.context * s.context, scores ? -INF : 0.0f);  // later keys, and those before the first
    int ready = -1;                                                   // whose row stands in `row`
    to.each(s, [&](float& entry, int q, int k) {
        if (scores) {
            entry = a[q * d0 + k];
            return;
        }
        if (q != ready) {
            exponentials(a + q * d0, S, row);
            exponentials(a + q * d0 + S, q < S ? s.n_ctx : q - S + 1, row + half);
            ready = q;
        }
        entry = row[k < S ? k : half + k - S];
    });
    return scores;
}

// to[c, r] = from[r, c], block by block; rows of `from` are padded to whole vectors.
inline void transpose(const float* from, int stride, int n_rows, int n_columns, float* to, int to_stride) {
    int r = 0;
    for (; r + LANES <= n_rows; r += LANES)
        for (int c = 0; c < n_columns; c += LANES) {
            Floats block[LANES];
            for (int k = 0; k < LANES; ++k) block[k] = load(from + (r + k) * stride + c);
            transpose(block);
            for (int k = 0; k < std::min(LANES, n_columns - c); ++k) store(to + (c + k) * to_stride + r, block[k]);
        }
    for (; r < n_rows; ++r)
        for (int c = 0; c < n_columns; ++c) to[c * to_stride + r] = from[r * stride + c];
}

inline void pack(Weights<const float> from, Packed& to, const Shape& s) {
    for (int h = 0; h < s.m1; ++h) to.wide[h] = pack_head(from.a1 + h * s.d0 * s.d0, to.heads[h], s, to.row);
    for (int m = 0; m < s.m2; ++m) {
        const float* a2 = from.a2 + m * s.d1 * s.d1;
        for (int d = 0; d < s.d1; ++d) std::copy_n(a2 + d * s.d1, s.d1, to.a2 + (m * s.d1 + d) * s.wide_d1);
        const float* dense = to.a2 + (m * s.d1 + s.d0) * s.wide_d1;
        transpose(dense, s.wide_d1, s.dense, s.d1, to.a2_t + m * s.d1 * s.wide_dense, s.wide_dense);
    }
    for (int d = 0; d < s.d0; ++d) std::copy_n(from.w + d * s.n_tok, s.n_tok, to.w + d * s.tokens);
    for (int f = 0; f < s.features; ++f)
        for (int t = 0; t < s.n_tok; ++t) to.w_t[t * s.wide_features + f] = from.w[(s.d0 + f) * s.n_tok + t];
}

// Pattern-like sums [unit, key, lane] as [query, key], zero above the diagonal.
inline void write_pattern(const float* from, float* to, const Shape& s, float share) {
    for (int i = 0; i < s.n_ctx; ++i)
        for (int j = 0; j < s.n_ctx; ++j) {
            const int unit = (s.pad + i) / LANES, lane = (s.pad + i) % LANES;
            to[i * s.n_ctx + j] = j <= i ? share * from[(unit * s.context + s.pad + j) * LANES + lane] : 0.0f;
        }
}

inline void unpack(const Sums& from, Weights<float> to, Watched watched, const Shape& s, float share) {
    const int pairs = s.context * s.context;
    for (int h = 0; h < s.m1; ++h) {
        float* a1 = to.a1 + h * s.d0 * s.d0;
        std::fill_n(a1, s.d0 * s.d0, 0.0f);
        const int unit_size = s.n_tok * LANES;
        float* pt = from.heads[h].pt;
        for (int v = 0; v < s.context * s.n_tok;
             v += LANES) {  // sums over the copies, each in the place of an earlier one
            Floats total{};
            for (int copy = 0; copy < COPIES; ++copy)
                total += load(pt + v / unit_size * (COPIES - 1) * unit_size + copy * unit_size + v);
            store(pt + v, total);
        }
        from.heads[h].each(s, [&](float sum, int q, int k) { a1[q * s.d0 + k] += share * sum; });
        if (!watched.pattern) continue;
        write_pattern(from.watched.pattern + h * pairs, watched.pattern + h * s.n_ctx * s.n_ctx, s, share);
        write_pattern(from.watched.d_pattern + h * pairs, watched.d_pattern + h * s.n_ctx * s.n_ctx, s, share);
    }
    for (int m = 0; watched.pattern && m < s.m2; ++m)
        for (int k = 0; k < s.n_ctx; ++k) {
            const int at = m * s.context + s.pad + k;
            watched.last[m * s.n_ctx + k] = share * from.watched.last[at];
            watched.d_last[m * s.n_ctx + k] = share * from.watched.d_last[at];
            watched.d_scores[m * s.n_ctx + k] = share * from.watched.d_scores[at];
        }
    for (int d = 0; d < s.m2 * s.d1; ++d)
        for (int e = 0; e < s.d1; ++e) to.a2[d * s.d1 + e] = share * from.a2[d * s.wide_d1 + e];
    for (int d = 0; d < s.d0; ++d)
        for (int t = 0; t < s.n_tok; ++t) to.w[d * s.n_tok + t] = share * from.w[d * s.tokens + t];
    for (int f = 0; f < s.features; ++f)
        for (int t = 0; t < s.n_tok; ++t) to.w[(s.d0 + f) * s.n_tok + t] = share * from.w_t[t * s.wide_features + f];
}

}  // namespace KERNELS_NAMESPACE
