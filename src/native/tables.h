// A model's weights as the pass over sequences reads them, and the sums that become their gradients.
//
// The score of query i for key j is A[x_i, x_j] + A[x_i, S + j] + A[S + i, x_j] + A[S + i, S + j]: four tables, by the
// token or the position of each. Rows are keys and lanes are queries, except in the copies for the last query alone.
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
        a2 = arena.take<float>(s.m2 * s.d1 * s.wide_d1), scratch = arena.take<float>(LANES * (s.tokens + s.context));
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

// LANES queries' rows of A, each [keys' tokens, padded | keys' positions, aligned as the context]: the queries with the
// tokens from..., or those of a unit.
struct Rows {
    float* at;
    int stride;
    Rows(float* scratch, const Shape& s) : at(scratch), stride(s.tokens + s.context) {}
    float* tokens(int lane) const { return at + lane * stride; }
    float* positions(int lane, const Shape& s) const { return tokens(lane) + s.tokens; }
};

// One head's tables from its A.
inline void pack_head(const float* a, Tables& to, const Shape& s, float* scratch) {
    const int S = s.n_tok;
    const Rows rows(scratch, s);
    const auto n_keys = [&](int q) { return q < S ? s.n_ctx : q - S + 1; };
    const auto read = [&](int q, int lane, float otherwise) {
        std::fill_n(rows.tokens(lane), rows.stride, otherwise);
        std::copy_n(a + q * s.d0, S, rows.tokens(lane));
        std::copy_n(a + q * s.d0 + S, n_keys(q), rows.positions(lane, s) + s.pad);
    };
    float gaps[4] = {0, 0, 0, 0};
    for (int q = 0; q < s.d0; ++q) {
        read(q, 0, 0.0f);
        const float gap[2] = {range(rows.tokens(0), S).gap, range(rows.positions(0, s) + s.pad, n_keys(q)).gap};
        for (int k = 0; k < 2; ++k) {
            float& widest = gaps[k + (q < S ? 0 : 2)];
            if (gap[k] > widest || gap[k] != gap[k]) widest = gap[k];  // a NaN stays
        }
    }
    to.holds_scores = !(gaps[0] + gaps[1] + gaps[2] + gaps[3] < WIDEST_GAP);
    const float unseen = to.holds_scores ? -INF : 0.0f;  // later keys, and what lies before the first
    const auto read_tables = [&](int q, int lane) {
        read(q, lane, unseen);
        if (to.holds_scores) return;
        exponentials(rows.tokens(lane), S);
        exponentials(rows.positions(lane, s) + s.pad, n_keys(q));
    };
    for (int first = 0; first < S; first += LANES) {
        for (int lane = 0; lane < std::min(LANES, S - first); ++lane) {
            read_tables(first + lane, lane);
            std::copy_n(rows.tokens(lane), s.tokens, to.tt_last + (first + lane) * s.tokens);
            std::copy_n(rows.positions(lane, s), s.context, to.tp_last + (first + lane) * s.context);
        }
        transpose(rows.tokens(0), rows.stride, LANES, S, to.tt + first, s.tokens);
        transpose(rows.positions(0, s), rows.stride, LANES, s.context, to.tp + first, s.tokens);
    }
    for (int unit = 0; unit < s.units; ++unit) {
        for (int lane = 0; lane < LANES; ++lane) {
            const int i = unit * LANES + lane - s.pad;
            i < 0 ? (void)std::fill_n(rows.tokens(lane), rows.stride, unseen) : read_tables(S + i, lane);
        }
        transpose(rows.tokens(0), rows.stride, LANES, S, to.pt + unit * S * LANES, LANES);
        transpose(rows.positions(0, s), rows.stride, LANES, s.context, to.pp + unit * s.context * LANES, LANES);
    }
    std::copy_n(rows.tokens(LANES - 1), s.tokens, to.pt_last);
    std::copy_n(rows.positions(LANES - 1, s), s.context, to.pp_last);
}

// One head's gradient from the sums in its tables, times `share`.
inline void unpack_head(Tables& from, float* a1, const Shape& s, float share, float* scratch) {
    const int S = s.n_tok;
    const Rows rows(scratch, s);
    const auto write = [&](int q, int lane, const float* more_tokens, const float* more_positions) {
        const float *tokens = rows.tokens(lane), *positions = rows.positions(lane, s) + s.pad;
        float* row = a1 + q * s.d0;
        for (int k = 0; k < S; ++k) row[k] = share * (tokens[k] + (more_tokens ? more_tokens[k] : 0.0f));
        for (int j = 0; j < s.n_ctx; ++j)
            row[S + j] = q < S || j <= q - S
                             ? share * (positions[j] + (more_positions ? more_positions[s.pad + j] : 0.0f))
                             : 0.0f;
    };
    for (int first = 0; first < S; first += LANES) {
        for (int t = 0; t < S; ++t)
            for (int lane = 0; lane < LANES; ++lane) rows.tokens(lane)[t] = from.tt[t * s.tokens + first + lane];
        transpose(from.tp + first, s.tokens, s.context, LANES, rows.positions(0, s), rows.stride);
        for (int lane = 0; lane < std::min(LANES, S - first); ++lane)
            write(first + lane, lane, from.tt_last + (first + lane) * s.tokens,
                  from.tp_last + (first + lane) * s.context);
    }
    for (int unit = 0; unit < s.units; ++unit) {
        for (int t = 0; t < S; ++t)
            for (int lane = 0; lane < LANES; ++lane) rows.tokens(lane)[t] = from.pt[(unit * S + t) * LANES + lane];
        transpose(from.pp + unit * s.context * LANES, LANES, s.context, LANES, rows.positions(0, s), rows.stride);
        for (int lane = unit > 0 ? 0 : s.pad; lane < LANES; ++lane) {
            const int i = unit * LANES + lane - s.pad;
            const bool last = i == s.n_ctx - 1;
            write(S + i, lane, last ? from.pt_last : nullptr, last ? from.pp_last : nullptr);
        }
    }
}

inline void pack(Weights<const float> from, Packed& to, const Shape& s) {
    for (int h = 0; h < s.m1; ++h) pack_head(from.a1 + h * s.d0 * s.d0, to.heads[h], s, to.scratch);
    for (int d = 0; d < s.m2 * s.d1; ++d) std::copy_n(from.a2 + d * s.d1, s.d1, to.a2 + d * s.wide_d1);
}

}  // namespace KERNELS_NAMESPACE
