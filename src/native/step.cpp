// Loss and all gradients of a two-layer disentangled model, sequence by sequence, nothing stored for the batch.
//
// Notation for one sequence x of length T (S tokens, blocks of d0 = S + T numbers [token | position]), head h of layer
// 0, head m of layer 1:
//
//     P_h[i, j]   pattern of layer 0: softmax over j <= i of
//                 A[x_i, x_j] + A[S + i, x_j] + A[x_i, S + j] + A[S + i, S + j]
//     q_m         the last position's residual times A2_m;  q_m[h] its block for what head h copied
//     r_mh[k]     q_m[h][x_k] + q_m[h][S + k];  scores of layer 1: t_m = q_m[0][x] + q_m[0][S + .] + sum_h P_h r_mh
//     p_m         softmax(t_m);  u_mh = P_h^T p_m;  logits = sum over blocks of rows of W_U
//
// Backward, c_m0 and c_mh[k] being the gradient that reaches p_m directly and u_mh[k]:
//
//     dp_m = c_m0 + sum_h P_h c_mh;  dt_m = p_m (dp_m - p_m . dp_m);  dP_h = sum_m p_m (x) c_mh + dt_m (x) r_mh
//     dS_h = P_h (dP_h - row means), the means being sum_m p_m (P_h c_mh) + dt_m (P_h r_mh): already at hand.
//
// p_m . dp_m is the product of the outputs p_m and u_mh with what reaches them, so dt is known as soon as a query's
// P_h c_mh is. Queries are needed a band at a time. In long contexts, whose patterns do not fit the cache, they are not
// kept but computed again on the way back, and u is summed relative to the largest score so far (an online softmax,
// Milakov & Gimelshein 2018); all sequences of a chunk pass through one band, then through the next.
#include <memory>

#include "attention.h"
#include "dense.h"

namespace KERNELS_NAMESPACE {
namespace {

// What a chunk of sequences shares its dense products for.
struct Chunk {
    int32_t* x;  // [sequence, padded context]
    float *features, *queries, *last, *d_logits, *d_dense;
    // features [sequence, all of the residual but the embedding]; queries of layer 1 [m2, sequence, d1], then what
    // reaches them; last [sequence, m1, context] the last query's pattern; what reaches logits and layer 0's last
    // outputs
};

// Of one sequence: scale [m1, context] of e^scores; r, reached (P r), u (later what dt brings together), passed (P c)
// [m2, m1, context]; p and dt [m2, context]; c [m2, 1 + m1, context]; top [m2, units] the largest score up to a band,
// total [m2] of e^(score - top); inner [m2] p . dp; d_features;
// by_token [m1, query token, key position] the gradient of layer 0's scores.
struct Sequence {
    float *scale, *r, *reached, *u, *passed, *p, *dt, *c, *top, *total, *inner, *d_features, *by_token;
    void take(Arena& arena, const Shape& s) {
        const int wide = s.context, pairs = s.m1 * s.m2 * wide;
        scale = arena.take<float>(s.m1 * wide), r = arena.take<float>(pairs), reached = arena.take<float>(pairs);
        u = arena.take<float>(pairs), passed = arena.take<float>(pairs), p = arena.take<float>(s.m2 * wide);
        dt = arena.take<float>(s.m2 * wide), c = arena.take<float>(s.m2 * (1 + s.m1) * wide);
        top = arena.take<float>(s.m2 * s.units), total = arena.take<float>(s.m2), inner = arena.take<float>(s.m2);
        d_features = arena.take<float>(s.wide_features), by_token = arena.take<float>(s.m1 * s.tokens * s.context);
    }
};

struct Memory {
    Arena arena;
    Sizes sizes{};
    Packed packed;
    Sums sums;
    Chunk chunk;
    std::unique_ptr<Tables[]> weights, gradients;
    std::unique_ptr<bool[]> wide;
    std::unique_ptr<Sequence[]> sequences;
    float *columns, *identity, *through, *back, *means, *by_token;  // see Pass

    void fit(Sizes to) {
        if (std::memcmp(&to, &sizes, sizeof to) == 0) return;
        const Shape s(to);
        sizes = {};  // until all is there: memory may run out
        weights.reset(new Tables[s.m1]), gradients.reset(new Tables[s.m1]), wide.reset(new bool[s.m1]);
        sequences.reset(new Sequence[s.group]);
        arena.fill([&](Arena& a) {
            for (int h = 0; h < s.m1; ++h) gradients[h].take(a, s);
            packed.take(a, s, weights.get(), wide.get());
            sums = {gradients.get(),
                    a.take<float>(s.m2 * s.d1 * s.wide_d1),
                    a.take<float>(s.d0 * s.tokens),
                    a.take<float>(s.n_tok * s.wide_features),
                    {}};
            for (float** of : {&sums.watched.pattern, &sums.watched.d_pattern})
                *of = a.take<float>(s.m1 * s.context * s.context);
            for (float** of : {&sums.watched.last, &sums.watched.d_last, &sums.watched.d_scores})
                *of = a.take<float>(s.m2 * s.context);
            chunk = {a.take<int32_t>(CHUNK * s.context),
                     a.take<float>(CHUNK * s.wide_features),
                     a.take<float>(s.m2 * CHUNK * s.wide_query),
                     a.take<float>(CHUNK * s.m1 * s.context),
                     a.take<float>(CHUNK * s.tokens),
                     a.take<float>(CHUNK * s.wide_dense)};
            for (int i = 0; i < s.group; ++i) sequences[i].take(a, s);
            columns = a.take<float>(s.m1 * s.band * LANES * s.context), identity = a.take<float>(s.n_tok * s.tokens);
            through = a.take<float>(s.m1 * s.m2 * s.context), back = a.take<float>(s.m1 * s.m2 * s.context);
            means = a.take<float>(s.m1 * s.context), by_token = a.take<float>(s.tokens);
        });
        for (int t = 0; t < s.n_tok; ++t) identity[t * s.tokens + t] = 1.0f;
        sizes = to;
    }
};

// One batch through one model. SIZE is the vocabulary's, for look-ups.
template <Size SIZE>
struct Pass {
    const Shape s;
    Memory& memory;
    const Packed& packed;
    Sums& sums;
    Chunk& chunk;
    const bool watched;

    const int32_t* tokens(int b) const { return chunk.x + b * s.context; }
    float* columns(int h) const { return memory.columns + h * s.band * LANES * s.context; }
    float* column(int h, int unit, int first) const { return columns(h) + (unit - first) * LANES * s.context; }
    float* query(int m, int b) const { return chunk.queries + (m * CHUNK + b) * s.wide_query; }
    float* features(int b) const { return chunk.features + b * s.wide_features; }
    float* pair(float* of, int h, int unit, int key) const {  // [m1, unit, key, lane]
        return of + ((h * s.units + unit) * s.context + key) * LANES;
    }
    int mh(int m, int h) const { return (m * s.m1 + h) * s.context; }

    // The last query's pattern, what it copies, and the queries that layer 1 makes of that.
    void ask_layer_1(const int32_t* x, int n) {
        for (int b = 0; b < n; ++b) {
            int32_t* own = chunk.x + b * s.context;
            std::copy_n(x + b * s.n_ctx, s.n_ctx, own + s.pad);
            for (int h = 0; h < s.m1; ++h) {
                float* last = chunk.last + (b * s.m1 + h) * s.context;
                last_pattern(packed.heads[h], packed.wide[h], own, last);
                write_block(last, own, memory.identity, s, features(b) + h * s.d0);
            }
            for (int m = 0; m < s.m2; ++m) {
                const float* a2 = packed.a2 + m * s.d1 * s.wide_d1;
                const float *by_token = a2 + own[s.context - 1] * s.wide_d1, *by_position = a2 + (s.d0 - 1) * s.wide_d1;
                for (int v = 0; v < s.d1; v += LANES)
                    store(query(m, b) + v, load(by_token + v) + load(by_position + v));
            }
        }
        for (int m = 0; m < s.m2; ++m)
            multiply({chunk.features, s.wide_features, 1}, n, s.dense, packed.a2 + (m * s.d1 + s.d0) * s.wide_d1,
                     s.wide_d1, s.d1, query(m, 0), s.wide_query);
    }

    void last_pattern(const Tables& t, bool wide, const int32_t* x, float* out) {
        const float *tt = t.tt_last + x[s.context - 1] * s.tokens, *tp = t.tp_last + x[s.context - 1] * s.context;
        for (int unit = 0; unit < s.units; ++unit) {
            const int v = unit * LANES;
            const Ints keys = load<Ints>(x + v);
            const Floats value = wide ? look_up<SIZE, true>(tt, t.pt_last, keys) + load(tp + v) + load(t.pp_last + v)
                                      : look_up<SIZE, false>(tt, t.pt_last, keys) * load(tp + v) * load(t.pp_last + v);
            store(out + v, alive(value, unit, s, wide ? -INF : 0.0f));
        }
        if (wide) {
            softmax_of_context(out);
            return;
        }
        Floats total{};
        for (int v = 0; v < s.context; v += LANES) total += load(out + v);
        const float z = 1.0f / sum(total);
        for (int v = 0; v < s.context; v += LANES) store(out + v, load(out + v) * z);
    }

    void softmax_of_context(float* scores) { softmax(scores, s.context); }

    // What layer 1 gives to each position as embedded, the first part of its scores, and to each as it was copied.
    void begin(Sequence& one, int b) {
        const int32_t* x = tokens(b);
        for (int m = 0; m < s.m2; ++m)
            for (int unit = 0; unit < s.units; ++unit) {
                store(one.p + m * s.context + unit * LANES,
                      alive(read_block<SIZE>(query(m, b), x, unit, s), unit, s, -INF));
                for (int h = 0; h < s.m1; ++h)
                    store(one.r + mh(m, h) + unit * LANES, read_block<SIZE>(query(m, b) + (1 + h) * s.d0, x, unit, s));
            }
        std::fill_n(one.u, s.m1 * s.m2 * s.context, 0.0f);
        if (!s.is_short) std::fill_n(one.by_token, s.m1 * s.tokens * s.context, 0.0f);
    }

    // A band of layer 0's pattern and layer 1's scores there.
    void forward(Sequence& one, int b, int first, int end) {
        for (int h = 0; h < s.m1; ++h)
            for (int unit = first; unit < end; ++unit) {
                const int v = unit * LANES;
                float* rows = column(h, unit, first);
                const Floats total =
                    exponential_column<SIZE>(packed.heads[h], packed.wide[h], tokens(b), unit, s, rows);
                const Floats scale = alive(1.0f / total, unit, s, 0.0f);
                store(one.scale + h * s.context + v, scale);
                for (int m = 0; m < s.m2; ++m) {
                    const Floats reached = over_keys(rows, one.r + mh(m, h), unit, s) * scale;
                    store(one.reached + mh(m, h) + v, reached);
                    add_to(one.p + m * s.context + v, reached);
                }
                if (watched)
                    for (int key = s.pad; key < v + LANES; ++key)
                        add_to(pair(sums.watched.pattern, h, unit, key), load(rows + key * LANES) * scale);
            }
        for (int m = 0; m < s.m2; ++m) mix(one, m, first, end);
    }

    // Adds a band to what head m of layer 1 brings together, in units of e^(the largest score so far).
    void mix(Sequence& one, int m, int first, int end) {
        float *p = one.p + m * s.context, *top = one.top + m * s.units;
        Floats most = load(p + first * LANES), total{};
        for (int unit = first + 1; unit < end; ++unit) most = larger(load(p + unit * LANES), most);
        top[first] = largest(most);
        if (first > 0) {
            const float before = top[first - 1];
            top[first] = std::max(top[first], before);
            const float shrink = std::exp(before - top[first]);
            for (int h = 0; h < s.m1; ++h)
                for (int v = 0; v < first * LANES; v += LANES)
                    store(one.u + mh(m, h) + v, load(one.u + mh(m, h) + v) * shrink);
            one.total[m] *= shrink;
        } else {
            one.total[m] = 0;
        }
        for (int unit = first; unit < end; ++unit) {
            const int v = unit * LANES;
            const Floats weight = exp_of_negative(load(p + v) - top[first]);
            store(p + v, weight);
            total += weight;
            for (int h = 0; h < s.m1; ++h)
                store(memory.through + h * s.context + v, weight * load(one.scale + h * s.context + v));
        }
        one.total[m] += sum(total);
        for (int h = 0; h < s.m1; ++h)
            over_queries(columns(h), memory.through + h * s.context, first, end, s, one.u + mh(m, h));
    }

    // Layer 1's pattern and outputs, the loss, and back to what reaches them.
    double turn_round(Sequence& one, int b, const float* target) {
        const int32_t* x = tokens(b);
        for (int m = 0; m < s.m2; ++m) {
            const float *top = one.top + m * s.units, scale = 1.0f / one.total[m];
            const int last = (s.units - 1) / s.band * s.band;
            for (int first = 0; first < s.units; first += s.band) {
                const float factor = std::exp(top[first] - top[last]) * scale;
                for (int v = first * LANES; v < std::min(first + s.band, s.units) * LANES; v += LANES)
                    store(one.p + m * s.context + v, load(one.p + m * s.context + v) * factor);
            }
            float* out = features(b) + s.dense + m * s.d1;
            write_block(one.p + m * s.context, x, memory.identity, s, out);
            for (int h = 0; h < s.m1; ++h) {
                for (int v = 0; v < s.context; v += LANES)
                    store(one.u + mh(m, h) + v, load(one.u + mh(m, h) + v) * scale);
                write_block(one.u + mh(m, h), x, memory.identity, s, out + (1 + h) * s.d0);
            }
        }
        const double loss = logits(b, target);
        for (int v = 0; v < s.features; v += LANES) {
            Floats reaching{};
            for (int t = 0; t < s.n_tok; ++t)
                reaching += chunk.d_logits[b * s.tokens + t] * load(packed.w_t + t * s.wide_features + v);
            store(one.d_features + v, reaching);
        }
        std::copy_n(one.d_features, s.dense, chunk.d_dense + b * s.wide_dense);
        for (int m = 0; m < s.m2; ++m) {
            Floats inner{};
            for (int block = 0; block <= s.m1; ++block) {
                float* c = one.c + (m * (1 + s.m1) + block) * s.context;
                const float* output = block == 0 ? one.p + m * s.context : one.u + mh(m, block - 1);
                for (int unit = 0; unit < s.units; ++unit) {
                    const Floats value =
                        read_block<SIZE>(one.d_features + s.dense + m * s.d1 + block * s.d0, x, unit, s);
                    store(c + unit * LANES, value);
                    inner += value * load(output + unit * LANES);
                }
            }
            one.inner[m] = sum(inner);
        }
        std::fill_n(one.u, s.m1 * s.m2 * s.context, 0.0f);
        return loss;
    }

    // The loss of a sequence; its logits' gradient, softmax(logits) times the targets' sum - target, takes their place.
    double logits(int b, const float* target) {
        float* out = chunk.d_logits + b * s.tokens;
        const int token = tokens(b)[s.context - 1];
        for (int first = 0; first < s.n_tok; first += LANES) {
            Floats totals[LANES] = {};
            for (int t = first; t < std::min(first + LANES, s.n_tok); ++t) {
                Floats total{};
                for (int v = 0; v < s.features; v += LANES)
                    total += load(features(b) + v) * load(packed.w_t + t * s.wide_features + v);
                totals[t - first] = total;
            }
            store(out + first, KERNELS_NAMESPACE::sums(totals) + load(packed.w + token * s.tokens + first) +
                                   load(packed.w + (s.d0 - 1) * s.tokens + first));
        }
        float* padded_target = memory.by_token;
        std::copy_n(target, s.n_tok, padded_target);
        Floats total{}, product{};
        for (int v = 0; v < s.n_tok; v += LANES) {
            const Floats of = select(lane_numbers() < s.n_tok - v, load(padded_target + v), Floats{});
            store(padded_target + v, of);
            total += of, product += of * select(lane_numbers() < s.n_tok - v, load(out + v), Floats{});
        }
        const float all = sum(total);
        const double loss = double(all) * softmax(out, s.n_tok) - sum(product);
        for (int v = 0; v < s.n_tok; v += LANES) store(out + v, all * load(out + v) - load(padded_target + v));
        return loss;
    }

    // Back through a band: dt there, what dt brings together, and the gradient of layer 0's scores, added up in its
    // tables.
    void backward(Sequence& one, int b, int first, int end) {
        for (int unit = first; unit < end; ++unit) {
            const int v = unit * LANES;
            for (int m = 0; m < s.m2; ++m) {
                Floats dp = load(one.c + m * (1 + s.m1) * s.context + v) - one.inner[m];
                for (int h = 0; h < s.m1; ++h) {
                    const float* c = one.c + (m * (1 + s.m1) + 1 + h) * s.context;
                    const Floats passed =
                        over_keys(column(h, unit, first), c, unit, s) * load(one.scale + h * s.context + v);
                    store(one.passed + mh(m, h) + v, passed);
                    dp += passed;
                }
                const Floats p = load(one.p + m * s.context + v);
                store(one.dt + m * s.context + v, dp * p);
                if (watched) {
                    const int at = m * s.context + v;
                    add_to(sums.watched.last + at, p), add_to(sums.watched.d_last + at, dp + one.inner[m]);
                    add_to(sums.watched.d_scores + at, dp * p);
                }
            }
            for (int h = 0; h < s.m1; ++h) {
                const Floats scale = load(one.scale + h * s.context + v);
                Floats mean{};
                for (int m = 0; m < s.m2; ++m) {
                    const Floats through = load(one.p + m * s.context + v) * scale,
                                 back = load(one.dt + m * s.context + v) * scale;
                    store(memory.through + mh(m, h) + v, through), store(memory.back + mh(m, h) + v, back);
                    mean += through * load(one.passed + mh(m, h) + v) + back * load(one.reached + mh(m, h) + v);
                }
                store(memory.means + h * s.context + v, mean);
            }
        }
        for (int h = 0; h < s.m1; ++h) {
            for (int m = 0; m < s.m2; ++m)
                over_queries(columns(h), memory.back + mh(m, h), first, end, s, one.u + mh(m, h));
            for (int unit = first; unit < end; ++unit) {
                if (watched) watch_gradient(one, h, unit);
                differentiate(one, b, h, unit, column(h, unit, first));
            }
            s.is_short ? multiply_by_query_token(b, h, first, end) : add_by_query_token(one, b, h, first, end);
        }
    }

    // dS = P (dP - mean) of a unit's queries in place of its column, added up by query position.
    void differentiate(const Sequence& one, int b, int h, int unit, float* rows) {
        const int v = unit * LANES, begin = s.pad, end = v + LANES,
                  n_tok = s.n_tok;  // what a store might change is read once
        const int32_t* x = tokens(b);
        Tables& to = sums.heads[h];
        float *pt = to.pt + unit * COPIES * n_tok * LANES, *pp = to.pp + unit * s.context * LANES;
        const Floats mean = load(memory.means + h * s.context + v);
        const auto add = [&](int key, Floats value) {
            value *= load(rows + key * LANES);
            store(rows + key * LANES, value);
            add_to(pp + key * LANES, value);
            add_to(pt + ((key % COPIES) * n_tok + x[key]) * LANES, value);
        };
        if (s.m2 == 1) {
            const Floats through = load(memory.through + mh(0, h) + v), back = load(memory.back + mh(0, h) + v);
            const float *c = one.c + (1 + h) * s.context, *r = one.r + mh(0, h);
            for (int key = begin; key < end; ++key) add(key, c[key] * through + (r[key] * back - mean));
            return;
        }
        for (int key = begin; key < end; ++key) {
            Floats value = -mean;
            for (int m = 0; m < s.m2; ++m)
                value += one.c[(m * (1 + s.m1) + 1 + h) * s.context + key] * load(memory.through + mh(m, h) + v) +
                         one.r[mh(m, h) + key] * load(memory.back + mh(m, h) + v);
            add(key, value);
        }
    }

    // The same, added up by the query's token: in short contexts a product with the tokens' one-hot rows (1.1 times the
    // rate of the whole step at n_ctx 20, .97 at 32 with two heads; with AVX-512).
    void multiply_by_query_token(int b, int h, int first, int end) {
        constexpr int KEYS = LANES < 8 ? LANES : 8;  // that share the load of a row
        const int row = tokens_of<SIZE>(s);
        const int32_t* x = tokens(b);
        const Tables& to = sums.heads[h];
        for (int key = s.pad / KEYS * KEYS; key < end * LANES; key += KEYS)
            for (int t = 0; t < row; t += LANES) {
                Floats totals[KEYS] = {};
                for (int unit = std::max(key / LANES, first); unit < end; ++unit) {
                    const float* rows = column(h, unit, first) + key * LANES;
                    for (int lane = std::max(key - unit * LANES, 0); lane < LANES; ++lane) {
                        const Floats one_hot = load(memory.identity + x[unit * LANES + lane] * row + t);
                        for (int k = 0; k < KEYS; ++k) totals[k] += rows[k * LANES + lane] * one_hot;
                    }
                }
                for (int k = 0; k < KEYS; ++k) {
                    add_to(to.tp + (key + k) * row + t, totals[k]);
                    add_to(to.tt + x[key + k] * row + t, totals[k]);
                }
            }
    }

    // In longer ones, [token, key], by blocks of [key, query] turned into [query, key].
    void add_by_query_token(const Sequence& one, int b, int h, int first, int end) {
        for (int unit = first; unit < end; ++unit)
            for (int keys = 0; keys <= unit * LANES; keys += LANES)
                add_transposed(column(h, unit, first) + keys * LANES, LANES, tokens(b) + unit * LANES,
                               one.by_token + h * s.tokens * s.context + keys, s.context);
    }

    // What a whole sequence gave by the query's token: by the key's position, and by its token.
    void add_by_tokens(const Sequence& one, int b) {
        for (int h = 0; h < s.m1; ++h) {
            const Tables& to = sums.heads[h];
            const float* from = one.by_token + h * s.tokens * s.context;
            for (int v = 0; v < s.n_tok * s.context; v += LANES) add_to(to.tp_last + v, load(from + v));
            for (int keys = 0; keys < s.context; keys += LANES)
                for (int t = 0; t < s.n_tok; t += LANES)
                    add_transposed(from + t * s.context + keys, s.context, tokens(b) + keys, to.tt + t, s.tokens);
        }
    }

    // The gradient that reaches layer 0's pattern through layer 1.
    void watch_gradient(Sequence& one, int h, int unit) {
        const int v = unit * LANES;
        for (int key = s.pad; key < v + LANES; ++key)
            for (int m = 0; m < s.m2; ++m) {
                const float c = one.c[(m * (1 + s.m1) + 1 + h) * s.context + key], r = one.r[mh(m, h) + key];
                const Floats value = load(one.p + m * s.context + v) * c + load(one.dt + m * s.context + v) * r;
                add_to(pair(sums.watched.d_pattern, h, unit, key), value);
            }
    }

    // What reaches layer 1's queries takes their place.
    void write_queries(const Sequence& one, int b) {
        for (int m = 0; m < s.m2; ++m) {
            write_block(one.dt + m * s.context, tokens(b), memory.identity, s, query(m, b));
            for (int h = 0; h < s.m1; ++h)
                write_block(one.u + mh(m, h), tokens(b), memory.identity, s, query(m, b) + (1 + h) * s.d0);
        }
    }

    // Gradients of A2 and W_U from a chunk, and what reaches the outputs of layer 0's last row.
    void add_dense_products(int n) {
        for (int m = 0; m < s.m2; ++m) {
            float* d_a2 = sums.a2 + m * s.d1 * s.wide_d1;
            multiply({query(m, 0), s.wide_query, 1}, n, s.d1, packed.a2_t + m * s.d1 * s.wide_dense, s.wide_dense,
                     s.dense, chunk.d_dense, s.wide_dense);
            multiply({chunk.features, 1, s.wide_features}, s.dense, n, query(m, 0), s.wide_query, s.d1,
                     d_a2 + s.d0 * s.wide_d1, s.wide_d1);
            for (int b = 0; b < n; ++b)
                for (int v = 0; v < s.d1; v += LANES) {
                    add_to(d_a2 + tokens(b)[s.context - 1] * s.wide_d1 + v, load(query(m, b) + v));
                    add_to(d_a2 + (s.d0 - 1) * s.wide_d1 + v, load(query(m, b) + v));
                }
        }
        multiply({chunk.d_logits, 1, s.tokens}, s.n_tok, n, chunk.features, s.wide_features, s.features, sums.w_t,
                 s.wide_features);
        for (int b = 0; b < n; ++b)
            for (int v = 0; v < s.n_tok; v += LANES) {
                add_to(sums.w + tokens(b)[s.context - 1] * s.tokens + v, load(chunk.d_logits + b * s.tokens + v));
                add_to(sums.w + (s.d0 - 1) * s.tokens + v, load(chunk.d_logits + b * s.tokens + v));
            }
    }

    // What reaches layer 0's last row, whose outputs made the query, added up in the tables of the last query.
    void back_through_last_row(int b) {
        const int32_t* x = tokens(b);
        const int token = x[s.context - 1];
        float* row = memory.through;
        for (int h = 0; h < s.m1; ++h) {
            const float* last = chunk.last + (b * s.m1 + h) * s.context;
            Tables& to = sums.heads[h];
            Floats inner{};
            for (int unit = 0; unit < s.units; ++unit) {
                const Floats reaching = read_block<SIZE>(chunk.d_dense + b * s.wide_dense + h * s.d0, x, unit, s);
                store(row + unit * LANES, reaching);
                inner += reaching * load(last + unit * LANES);
            }
            if (watched)
                for (int key = s.pad; key < s.context; ++key)
                    pair(sums.watched.d_pattern, h, s.units - 1, key)[LANES - 1] += row[key];
            const float mean = sum(inner);
            for (int v = 0; v < s.context; v += LANES) {
                const Floats value = load(last + v) * (load(row + v) - mean);
                store(row + v, value);
                add_to(to.pp_last + v, value), add_to(to.tp_last + token * s.context + v, value);
            }
            by_token(row, x, memory.identity, s, memory.by_token);
            for (int v = 0; v < s.n_tok; v += LANES) {
                add_to(to.pt_last + v, load(memory.by_token + v)),
                    add_to(to.tt_last + token * s.tokens + v, load(memory.by_token + v));
            }
        }
    }

    double run(const int32_t* x, const float* targets, int n) {
        double loss = 0;
        for (int start = 0; start < n; start += CHUNK) {
            const int size = std::min(CHUNK, n - start);
            ask_layer_1(x + start * s.n_ctx, size);
            for (int begin_at = 0; begin_at < size; begin_at += s.group)
                loss += run_group(begin_at, std::min(begin_at + s.group, size), targets + start * s.n_tok);
            add_dense_products(size);
            for (int b = 0; b < size; ++b) back_through_last_row(b);
        }
        return loss;
    }

    // Sequences from..to of the chunk, band by band there and back.
    double run_group(int from, int to, const float* targets) {
        double loss = 0;
        auto& sequences = memory.sequences;
        for (int b = from; b < to; ++b) begin(sequences[b - from], b);
        for (int first = 0; first < s.units; first += s.band)
            for (int b = from; b < to; ++b) forward(sequences[b - from], b, first, std::min(first + s.band, s.units));
        for (int b = from; b < to; ++b) loss += turn_round(sequences[b - from], b, targets + b * s.n_tok);
        for (int first = 0; first < s.units; first += s.band)
            for (int b = from; b < to; ++b) {
                const int end = std::min(first + s.band, s.units);
                if (s.group > 1)
                    for (int h = 0; h < s.m1; ++h)
                        for (int unit = first; unit < end; ++unit)
                            exponential_column<SIZE>(packed.heads[h], packed.wide[h], tokens(b), unit, s,
                                                     column(h, unit, first));
                backward(sequences[b - from], b, first, end);
            }
        for (int b = from; b < to; ++b) {
            write_queries(sequences[b - from], b);
            if (!s.is_short) add_by_tokens(sequences[b - from], b);
        }
        return loss;
    }
};

void clear(Sums& sums, const Shape& s, bool watched) {
    for (int h = 0; h < s.m1; ++h) {
        Tables& t = sums.heads[h];
        std::fill_n(t.tt, s.n_tok * s.tokens, 0.0f), std::fill_n(t.tp, s.context * s.tokens, 0.0f);
        std::fill_n(t.pt, COPIES * s.context * s.n_tok, 0.0f), std::fill_n(t.pp, s.context * s.context, 0.0f);
        std::fill_n(t.tt_last, s.n_tok * s.tokens, 0.0f), std::fill_n(t.tp_last, s.n_tok * s.context, 0.0f);
        std::fill_n(t.pt_last, s.tokens, 0.0f), std::fill_n(t.pp_last, s.context, 0.0f);
    }
    std::fill_n(sums.a2, s.m2 * s.d1 * s.wide_d1, 0.0f), std::fill_n(sums.w, s.d0 * s.tokens, 0.0f);
    std::fill_n(sums.w_t, s.n_tok * s.wide_features, 0.0f);
    if (!watched) return;
    for (float* of : {sums.watched.pattern, sums.watched.d_pattern})
        std::fill_n(of, s.m1 * s.context * s.context, 0.0f);
    for (float* of : {sums.watched.last, sums.watched.d_last, sums.watched.d_scores})
        std::fill_n(of, s.m2 * s.context, 0.0f);
}

float total(const float* of, size_t n) {
    Floats sums{};
    size_t v = 0;
    for (; v + LANES <= n; v += LANES) sums += load(of + v);
    float rest = sum(sums);
    for (; v < n; ++v) rest += of[v];
    return rest;
}

}  // namespace

double gradient(Sizes sizes, const int32_t* tokens, const float* targets, int n, Weights<const float> weights,
                Weights<float> gradients, Watched watched, float share) {
    thread_local Memory memory;
    memory.fit(sizes);
    const Shape s(sizes);
    pack(weights, memory.packed, s);
    clear(memory.sums, s, watched.pattern != nullptr);
    const auto run = [&](auto pass) { return pass.run(tokens, targets, n); };
    const bool watch = watched.pattern != nullptr;
    const double loss = s.n_tok <= LANES
                            ? run(Pass<Size::one_vector>{s, memory, memory.packed, memory.sums, memory.chunk, watch})
                        : s.n_tok <= 2 * LANES
                            ? run(Pass<Size::two_vectors>{s, memory, memory.packed, memory.sums, memory.chunk, watch})
                            : run(Pass<Size::any>{s, memory, memory.packed, memory.sums, memory.chunk, watch});
    unpack(memory.sums, gradients, watched, s, share, memory.packed.row);
    const double all = loss + total(gradients.a1, s.m1 * s.d0 * s.d0) + total(gradients.a2, s.m2 * s.d1 * s.d1) +
                       total(gradients.w, (s.d0 + s.features) * s.n_tok);
    if (!std::isfinite(all))
        memory.sizes = {};  // what is not a number may stand in what pads arrays: begin with zeros again
    return loss * share;
}

}  // namespace KERNELS_NAMESPACE
