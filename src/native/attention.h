// The pattern of layer 0, a vector of queries at a time ("column": [key, lane]), and what is summed over it.
#pragma once
#include "tables.h"

namespace KERNELS_NAMESPACE {

// The padded vocabulary, a constant where it can be.
template <Size SIZE>
inline int tokens_of(const Shape& s) {
    return SIZE == Size::one_vector ? LANES : SIZE == Size::two_vectors ? 2 * LANES : s.tokens;
}

// Calls `pass` with the size of the vocabulary's tables as a constant.
template <class Pass>
auto by_size(int n_tok, Pass pass) {
    if (n_tok <= LANES) return pass(std::integral_constant<Size, Size::one_vector>{});
    if (n_tok <= 2 * LANES) return pass(std::integral_constant<Size, Size::two_vectors>{});
    return pass(std::integral_constant<Size, Size::any>{});
}

// Value by value at every position of a unit: what a residual block says of its token plus what it says of its
// position.
template <Size SIZE>
inline Floats read_block(const float* block, const int32_t* x, int unit, const Shape& s) {
    return look_up<SIZE>(block, load<Ints>(x + unit * LANES)) + load(block + s.n_tok + unit * LANES - s.pad);
}

inline Floats alive(Floats value, int unit, const Shape& s, float otherwise) {
    return unit > 0 ? value : select(lane_numbers() >= s.pad, value, splat(otherwise));
}

// Sums by token of the values at all positions, out[x[i]] += values[i]; up to whole vectors is written.
inline void by_token(const float* values, const int32_t* x, const float* identity, const Shape& s, float* out) {
    const int row = s.tokens;
    if (s.n_tok > FEW_TOKENS) {
        std::fill_n(out, s.n_tok, 0.0f);
        for (int i = s.pad; i < s.context; ++i) out[x[i]] += values[i];
        return;
    }
    for (int t = 0; t < row; t += LANES) {
        Floats total[4] = {};  // chains that do not wait for each other
        for (int i = s.pad / 4 * 4; i < s.context; i += 4)
            for (int k = 0; k < 4; ++k) total[k] += values[i + k] * load(identity + x[i + k] * row + t);
        store(out + t, (total[0] + total[1]) + (total[2] + total[3]));
    }
}

// The values at all positions as a residual block: summed by token, then as they are. What lies behind it is
// overwritten.
inline void write_block(const float* values, const int32_t* x, const float* identity, const Shape& s, float* block) {
    by_token(values, x, identity, s, block);
    for (int i = 0; i < s.n_ctx; i += LANES) store(block + s.n_tok + i, load(values + s.pad + i));
}

// e^scores of a unit's queries for every key up to theirs; their sums. SCORES: the tables hold scores.
template <Size SIZE, bool SCORES>
inline Floats exponential_column(const Tables& t, const int32_t* x, int unit, const Shape& s, float* column) {
    const Ints asking = load<Ints>(x + unit * LANES);
    const float *pt = t.pt + unit * s.n_tok * LANES, *pp = t.pp + unit * s.context * LANES;
    const int begin = s.pad, end = (unit + 1) * LANES;
    const int row = tokens_of<SIZE>(s);   // what a store might change is read once
    Floats total{}, top = splat(-1e30f);  // finite: where there is no key at all, e^(-inf - top) is 0
    for (int key = begin; key < end; ++key) {
        const Floats by_query = look_up<SIZE, SCORES>(t.tt + x[key] * row, t.tp + key * row, asking);
        const Floats by_token = load(pt + x[key] * LANES), by_position = load(pp + key * LANES);
        const Floats value = SCORES ? by_query + by_token + by_position : by_query * by_token * by_position;
        store(column + key * LANES, value);
        SCORES ? top = larger(value, top) : total += value;
    }
    for (int key = begin; SCORES && key < end; ++key) {
        const Floats e = exp(load(column + key * LANES) - top);
        store(column + key * LANES, e);
        total += e;
    }
    return total;
}

// sum over the keys of weights[key] column[key]: for every query of a unit.
inline Floats over_keys(const float* column, const float* weights, int unit, const Shape& s) {
    Floats total[4] = {};
    int key = s.pad;
    const int end = (unit + 1) * LANES;
    for (; key + 4 <= end; key += 4)
        for (int k = 0; k < 4; ++k) total[k] += weights[key + k] * load(column + (key + k) * LANES);
    for (; key < end; ++key) total[0] += weights[key] * load(column + key * LANES);
    return (total[0] + total[1]) + (total[2] + total[3]);
}

// out[key] = sum over the queries of weights[query] pattern[query, key]; `columns` are those of all units.
[[gnu::always_inline]] inline void over_queries(const float* columns, const float* weights, const Shape& s,
                                                float* out) {
    for (int keys = 0; keys < s.units; ++keys) {  // a vector of keys
        Floats totals[LANES] = {};
        for (int unit = keys; unit < s.units; ++unit) {
            const float* block = columns + (unit * s.context + keys * LANES) * LANES;
            const Floats weight = load(weights + unit * LANES);
            for (int k = 0; k < LANES; ++k) totals[k] += weight * load(block + k * LANES);
        }
        store(out + keys * LANES, sums(totals));
    }
}

// out[x[lane], :] += the lane's numbers in a block [LANES rows, lane].
[[gnu::always_inline]] inline void add_transposed(const float* block, int stride, const int32_t* x, float* out,
                                                  int out_stride) {
    Floats rows[LANES];
    for (int k = 0; k < LANES; ++k) rows[k] = load(block + k * stride);
    transpose(rows);
    for (int lane = 0; lane < LANES; ++lane) add_to(out + x[lane] * out_stride, rows[lane]);
}

}  // namespace KERNELS_NAMESPACE
