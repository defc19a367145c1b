// A model's weights as the pass over sequences reads them, and the sums that become their gradients.
//
// The score of query i for key j is A[x_i, x_j] + A[x_i, S + j] + A[S + i, x_j] + A[S + i, S + j]: four tables, by the
// token or the position of each. Keys are rows and queries are lanes: the sums of softmax, P r and P c then run down a
// column, which needs no sum across lanes. The last query, which layer 1 starts from, has tables of its own, whose lanes
// are keys (1.03 times the rate at n_ctx 20, 1.1 with two heads in layer 0).
#pragma once
#include <algorithm>
#include <memory>

#include "shape.h"
#include "softmax.h"

namespace KERNELS_NAMESPACE {

// The numbers of one query, token or position: by the key's token and by its position, `stride` apart.
struct Row {
    float *tokens, *positions;
    int stride;
};

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

    // Of query q: a token or, from n_tok on, a position.
    Row row(int q, const Shape& s) const {
        if (q < s.n_tok) return {tt + q, tp + s.pad * s.tokens + q, s.tokens};
        const int at = s.pad + q - s.n_tok, unit = at / LANES, lane = at % LANES;
        return {pt + unit * s.n_tok * LANES + lane, pp + (unit * s.context + s.pad) * LANES + lane, LANES};
    }
    Row row_of_last(int q, const Shape& s) const {  // a token or the last position
        if (q < s.n_tok) return {tt_last + q * s.tokens, tp_last + q * s.context + s.pad, 1};
        return {pt_last, pp_last + s.pad, 1};
    }
    // Calls `see` with each row of query q.
    template <class See>
    void each_row(int q, const Shape& s, See see) const {
        see(row(q, s));
        if (q < s.n_tok || q == s.d0 - 1) see(row_of_last(q, s));
    }
};

// One head's tables from its A: of scores, or of their exponentials relative to the largest of each query's. Returns
// the largest sum of the gaps between a query's largest and smallest score in its four tables.
inline float fill_tables(const float* a, Tables& to, const Shape& s, float* scratch) {
    const float unseen = to.holds_scores ? -INF : 0.0f;  // later keys
    float gaps[2][2] = {};
    for (int q = 0; q < s.d0; ++q) {
        const bool is_token = q < s.n_tok;
        const int n_keys = is_token ? s.n_ctx : q - s.n_tok + 1;
        float *tokens = scratch, *positions = scratch + s.tokens;
        std::copy_n(a + q * s.d0, s.n_tok, tokens), std::copy_n(a + q * s.d0 + s.n_tok, n_keys, positions);
        if (!to.holds_scores) {
            gaps[is_token][0] = std::max(gaps[is_token][0], exponentials(tokens, s.n_tok).gap);
            gaps[is_token][1] = std::max(gaps[is_token][1], exponentials(positions, n_keys).gap);
        }
        std::fill(positions + n_keys, positions + s.n_ctx, unseen);
        to.each_row(q, s, [&](Row row) {
            for (int k = 0; k < s.n_tok; ++k) row.tokens[k * row.stride] = tokens[k];
            for (int k = 0; k < s.n_ctx; ++k) row.positions[k * row.stride] = positions[k];
        });
    }
    return gaps[0][0] + gaps[0][1] + gaps[1][0] + gaps[1][1];
}

inline void pack_head(const float* a, Tables& to, const Shape& s, float* scratch) {
    to.holds_scores = false;
    to.holds_scores = fill_tables(a, to, s, scratch) >= WIDEST_GAP;
    if (to.holds_scores) fill_tables(a, to, s, scratch);
}

// One head's gradient from the sums in its tables, times `share`.
inline void unpack_head(const Tables& from, float* a, const Shape& s, float share) {
    std::fill_n(a, s.d0 * s.d0, 0.0f);
    for (int q = 0; q < s.d0; ++q, a += s.d0)
        from.each_row(q, s, [&](Row row) {
            for (int k = 0; k < s.n_tok; ++k) a[k] += share * row.tokens[k * row.stride];
            for (int k = 0; k < s.n_ctx; ++k) a[s.n_tok + k] += share * row.positions[k * row.stride];
        });
}

}  // namespace KERNELS_NAMESPACE
