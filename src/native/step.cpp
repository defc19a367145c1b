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
// P_h c_mh is.
#include "attention.h"
#include "dense.h"

namespace KERNELS_NAMESPACE {
namespace {

// The sums that become the gradients.
struct Sums {
    std::unique_ptr<Tables[]> heads;
    float *a2, *w, *w_t;
};

struct Workspace {
    Arena arena;
    Sizes sizes{};
    std::unique_ptr<Tables[]> heads;
    float *a2_t, *w_t;  // [m2, d1, dense] of A2, the rows that heads wrote; [n_tok, features] of W_U
    float* row_of_a;    // two pieces, padded
    Sums sums;
    float* identity;
    // Of a chunk. x [sequence, padded context]; features [sequence, all of the residual but the embedding]; queries of
    // layer 1 [m2, sequence, d1], then what reaches them; last [sequence, m1, context] the last query's pattern; what
    // reaches logits and layer 0's last outputs.
    int32_t* x;
    float *features, *queries, *last, *d_logits, *d_dense;
    // Of a sequence. columns [m1, unit, key, lane] e^scores and scale [m1, query] 1 / their sums; r, reached (P r), u
    // (later what dt brings together), passed (P c), through (p scale), back (dt scale) [m2, m1, context]; p and dt
    // [m2, context]; c [m2, 1 + m1, context]; inner [m2] p . dp; means [m1, query] of dP; by_query_token [m1, query
    // token, key position] the gradient of layer 0's scores.
    float *columns, *scale, *r, *reached, *u, *passed, *through, *back, *p, *dt, *c, *inner, *means, *d_features;
    float *by_query_token, *by_token;
    float* patterns;  // [m1, unit, key, lane] sums of layer 0's patterns, for a recording

    void fit(Sizes to) {
        if (sizes == to) return;
        const Shape s(to);
        sizes = {};  // until all is there: memory may run out
        arena.fill([&](Arena& a) { take(a, s); });
        for (int t = 0; t < s.n_tok; ++t) identity[t * s.tokens + t] = 1.0f;
        sizes = to;
    }
    void take(Arena& a, const Shape& s) {
        const auto floats = [&a](size_t n) { return a.take<float>(n); };
        const int context = s.context, pairs = s.m1 * s.m2 * context;
        heads.reset(new Tables[s.m1]), sums.heads.reset(new Tables[s.m1]);
        for (int h = 0; h < s.m1; ++h) heads[h].take(a, s), sums.heads[h].take(a, s);
        a2_t = floats(s.m2 * s.d1 * s.wide_dense), w_t = floats(s.n_tok * s.wide_features);
        identity = floats(s.n_tok * s.tokens), row_of_a = floats(s.tokens + s.context);
        sums.a2 = floats(s.m2 * s.d1 * s.wide_d1), sums.w = floats(s.d0 * s.tokens);
        sums.w_t = floats(s.n_tok * s.wide_features);
        x = a.take<int32_t>(CHUNK * context), features = floats(CHUNK * s.wide_features);
        queries = floats(s.m2 * CHUNK * s.wide_query), last = floats(CHUNK * s.m1 * context);
        d_logits = floats(CHUNK * s.tokens), d_dense = floats(CHUNK * s.wide_dense);
        columns = floats(s.m1 * context * context), patterns = floats(s.m1 * context * context),
        scale = floats(s.m1 * context);
        for (float** of : {&r, &reached, &u, &passed, &through, &back}) *of = floats(pairs);
        p = floats(s.m2 * context), dt = floats(s.m2 * context), c = floats(s.m2 * (1 + s.m1) * context);
        inner = floats(s.m2), means = floats(s.m1 * context), d_features = floats(s.wide_features);
        by_query_token = floats(s.m1 * s.tokens * context), by_token = floats(s.tokens);
    }
};

// One batch through one model. SIZE is the vocabulary's, for look-ups.
template <Size SIZE>
class Pass {
  public:
    Pass(const Shape& shape, Workspace& workspace, Weights<const float> of, Watched to_watch, float weight)
        : s(shape), work(workspace), weights(of), watched(to_watch), share(weight) {}

    double run(const int32_t* x, const float* targets, int n) {
        double loss = 0;
        if (watched.pattern) std::fill_n(work.patterns, s.m1 * s.context * s.context, 0.0f);
        for (int start = 0; start < n; start += CHUNK) {
            const int size = std::min(CHUNK, n - start);
            make_queries(x + start * s.n_ctx, size);
            for (int b = 0; b < size; ++b) {
                forward(b);
                loss += logits(b, targets + (start + b) * s.n_tok);
                backward(b);
            }
            add_dense_products(size);
            for (int b = 0; b < size; ++b) back_through_last_row(b);
        }
        if (watched.pattern) write_pattern();
        return loss;
    }

  private:
    const Shape s;
    Workspace& work;
    const Weights<const float> weights;
    const Watched watched;
    const float share;
    Sums& sums = work.sums;

    const int32_t* tokens(int b) const { return work.x + b * s.context; }
    float* columns(int h) const { return work.columns + h * s.context * s.context; }
    float* column(int h, int unit) const { return columns(h) + unit * LANES * s.context; }
    float* query(int m, int b) const { return work.queries + (m * CHUNK + b) * s.wide_query; }
    float* features(int b) const { return work.features + b * s.wide_features; }
    int mh(int m, int h) const { return (m * s.m1 + h) * s.context; }
    float* c(int m, int block) const { return work.c + (m * (1 + s.m1) + block) * s.context; }
    void write(const float* values, const int32_t* x, float* block) const {
        write_block(values, x, work.identity, s, block);
    }

    // The last query's pattern, what it copies, and the queries that layer 1 makes of that.
    void make_queries(const int32_t* x, int n) {
        for (int b = 0; b < n; ++b) {
            int32_t* own = work.x + b * s.context;
            std::copy_n(x + b * s.n_ctx, s.n_ctx, own + s.pad);
            for (int h = 0; h < s.m1; ++h) {
                float* last = work.last + (b * s.m1 + h) * s.context;
                last_pattern(work.heads[h], own, last);
                write(last, own, features(b) + h * s.d0);
            }
            for (int m = 0; m < s.m2; ++m) {
                const float* a2 = weights.a2 + m * s.d1 * s.d1;
                const float *by_token = a2 + own[s.context - 1] * s.d1, *by_position = a2 + (s.d0 - 1) * s.d1;
                for (int v = 0; v < s.d1; v += LANES)
                    store(query(m, b) + v, load(by_token + v) + load(by_position + v));
            }
        }
        for (int m = 0; m < s.m2; ++m)
            multiply({work.features, s.wide_features, 1}, n, s.dense, weights.a2 + (m * s.d1 + s.d0) * s.d1, s.d1, s.d1,
                     query(m, 0), s.wide_query);
    }

    void last_pattern(const Tables& t, const int32_t* x, float* out) {
        const bool scores = t.holds_scores;
        const float *tt = t.tt_last + x[s.context - 1] * s.tokens, *tp = t.tp_last + x[s.context - 1] * s.context;
        Floats total{};
        for (int unit = 0; unit < s.units; ++unit) {
            const int v = unit * LANES;
            const Ints keys = load<Ints>(x + v);
            Floats value = scores ? look_up<SIZE, true>(tt, t.pt_last, keys) + load(tp + v) + load(t.pp_last + v)
                                  : look_up<SIZE, false>(tt, t.pt_last, keys) * load(tp + v) * load(t.pp_last + v);
            value = alive(value, unit, s, scores ? -INF : 0.0f);
            store(out + v, value);
            total += value;
        }
        if (scores) {
            softmax(out, s.context);
            return;
        }
        const float z = 1.0f / sum(total);
        for (int v = 0; v < s.context; v += LANES) store(out + v, load(out + v) * z);
    }

    // Layer 0's pattern; layer 1's scores, pattern and outputs.
    void forward(int b) {
        const int32_t* x = tokens(b);
        for (int m = 0; m < s.m2; ++m)
            for (int unit = 0; unit < s.units; ++unit) {
                const int v = unit * LANES;
                store(work.p + m * s.context + v, alive(read_block<SIZE>(query(m, b), x, unit, s), unit, s, -INF));
                for (int h = 0; h < s.m1; ++h)
                    store(work.r + mh(m, h) + v, read_block<SIZE>(query(m, b) + (1 + h) * s.d0, x, unit, s));
            }
        for (int h = 0; h < s.m1; ++h)
            for (int unit = 0; unit < s.units; ++unit) {
                const int v = unit * LANES;
                float* rows = column(h, unit);
                const Floats total = work.heads[h].holds_scores
                                         ? exponential_column<SIZE, true>(work.heads[h], x, unit, s, rows)
                                         : exponential_column<SIZE, false>(work.heads[h], x, unit, s, rows);
                const Floats scale = alive(1.0f / total, unit, s, 0.0f);
                store(work.scale + h * s.context + v, scale);
                for (int m = 0; m < s.m2; ++m) {
                    const Floats reached = over_keys(rows, work.r + mh(m, h), unit, s) * scale;
                    store(work.reached + mh(m, h) + v, reached);
                    add_to(work.p + m * s.context + v, reached);
                }
            }
        if (watched.pattern) watch_pattern();
        for (int m = 0; m < s.m2; ++m) {
            float *p = work.p + m * s.context, *out = features(b) + s.dense + m * s.d1;
            softmax(p, s.context);
            write(p, x, out);
            for (int h = 0; h < s.m1; ++h) {
                float *through = work.through + mh(m, h), *u = work.u + mh(m, h);
                for (int v = 0; v < s.context; v += LANES)
                    store(through + v, load(p + v) * load(work.scale + h * s.context + v));
                over_queries(columns(h), through, s, u);
                write(u, x, out + (1 + h) * s.d0);
            }
        }
    }

    // The loss of a sequence; its logits' gradient, softmax(logits) times the targets' sum - target, takes their place.
    double logits(int b, const float* target) {
        float* out = work.d_logits + b * s.tokens;
        const int token = tokens(b)[s.context - 1];
        for (int first = 0; first < s.n_tok; first += LANES) {
            Floats totals[LANES] = {};
            for (int t = first; t < std::min(first + LANES, s.n_tok); ++t) {
                Floats total{};
                for (int v = 0; v < s.features; v += LANES)
                    total += load(features(b) + v) * load(work.w_t + t * s.wide_features + v);
                totals[t - first] = total;
            }
            store(out + first, KERNELS_NAMESPACE::sums(totals) + load(weights.w + token * s.n_tok + first) +
                                   load(weights.w + (s.d0 - 1) * s.n_tok + first));
        }
        float* padded_target = work.by_token;
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

    // From the logits back to layer 1's queries, and to layer 0's scores, which are added up in its tables.
    void backward(int b) {
        back_to_layer_1(b);
        for (int unit = 0; unit < s.units; ++unit) back_through_layer_1(unit);
        if (watched.pattern) watch_gradients();
        for (int m = 0; m < s.m2; ++m) write(work.dt + m * s.context, tokens(b), query(m, b));
        for (int h = 0; h < s.m1; ++h) {
            for (int m = 0; m < s.m2; ++m) {
                over_queries(columns(h), work.back + mh(m, h), s, work.u);
                write(work.u, tokens(b), query(m, b) + (1 + h) * s.d0);
            }
            for (int unit = 0; unit < s.units; ++unit) differentiate(b, h, unit);
            s.is_short ? multiply_by_query_token(b, h) : add_by_query_token(b, h);
        }
    }

    // What reaches layer 1's pattern, directly and through what it copied.
    void back_to_layer_1(int b) {
        for (int v = 0; v < s.features; v += LANES) {
            Floats reaching{};
            for (int t = 0; t < s.n_tok; ++t)
                reaching += work.d_logits[b * s.tokens + t] * load(work.w_t + t * s.wide_features + v);
            store(work.d_features + v, reaching);
        }
        std::copy_n(work.d_features, s.dense, work.d_dense + b * s.wide_dense);
        for (int m = 0; m < s.m2; ++m) {
            Floats inner{};
            for (int block = 0; block <= s.m1; ++block) {
                const float* reaching = work.d_features + s.dense + m * s.d1 + block * s.d0;
                const float* output = block == 0 ? work.p + m * s.context : work.u + mh(m, block - 1);
                for (int unit = 0; unit < s.units; ++unit) {
                    const Floats value = read_block<SIZE>(reaching, tokens(b), unit, s);
                    store(c(m, block) + unit * LANES, value);
                    inner += value * load(output + unit * LANES);
                }
            }
            work.inner[m] = sum(inner);
        }
    }

    // dt of a unit's queries, and the means of dP.
    void back_through_layer_1(int unit) {
        const int v = unit * LANES;
        for (int m = 0; m < s.m2; ++m) {
            Floats dp = load(c(m, 0) + v) - work.inner[m];
            for (int h = 0; h < s.m1; ++h) {
                const Floats passed =
                    over_keys(column(h, unit), c(m, 1 + h), unit, s) * load(work.scale + h * s.context + v);
                store(work.passed + mh(m, h) + v, passed);
                dp += passed;
            }
            const int at = m * s.context + v;
            const Floats p = load(work.p + at);
            store(work.dt + at, dp * p);
        }
        for (int h = 0; h < s.m1; ++h) {
            Floats mean{};
            for (int m = 0; m < s.m2; ++m) {
                const int at = mh(m, h) + v;
                const Floats back = load(work.dt + m * s.context + v) * load(work.scale + h * s.context + v);
                store(work.back + at, back);
                mean += load(work.through + at) * load(work.passed + at) + back * load(work.reached + at);
            }
            store(work.means + h * s.context + v, mean);
        }
    }

    // dS = P (dP - mean) of a unit's queries in place of its column, added up by query position.
    void differentiate(int b, int h, int unit) {
        const int v = unit * LANES, begin = s.pad, end = v + LANES,
                  m2 = s.m2;  // what a store might change is read once
        const int32_t* x = tokens(b);
        const Tables& to = sums.heads[h];
        float *rows = column(h, unit), *pt = to.pt + unit * s.n_tok * LANES, *pp = to.pp + unit * s.context * LANES;
        const Floats mean = load(work.means + h * s.context + v);
        const Floats through = load(work.through + mh(0, h) + v), back = load(work.back + mh(0, h) + v);
        const float *c = this->c(0, 1 + h), *r = work.r + mh(0, h);
        for (int key = begin; key < end; ++key) {
            Floats value = c[key] * through + (r[key] * back - mean);
            for (int m = 1; m < m2; ++m)
                value += this->c(m, 1 + h)[key] * load(work.through + mh(m, h) + v) +
                         work.r[mh(m, h) + key] * load(work.back + mh(m, h) + v);
            value *= load(rows + key * LANES);
            store(rows + key * LANES, value);
            add_to(pp + key * LANES, value);
            add_to(pt + x[key] * LANES, value);
        }
    }

    // The same, added up by the query's token: in short contexts a product with the tokens' one-hot rows (1.1 times the
    // rate of the whole step at n_ctx 20, .99 at 32 with two heads; with AVX-512).
    void multiply_by_query_token(int b, int h) {
        constexpr int KEYS = LANES < 8 ? LANES : 8;  // that share the load of a row
        const int row = tokens_of<SIZE>(s);
        const int32_t* x = tokens(b);
        const Tables& to = sums.heads[h];
        for (int key = s.pad / KEYS * KEYS; key < s.context; key += KEYS)
            for (int t = 0; t < row; t += LANES) {
                Floats totals[KEYS] = {};
                for (int unit = key / LANES; unit < s.units; ++unit) {
                    const float* rows = column(h, unit) + key * LANES;
                    for (int lane = std::max(key - unit * LANES, 0); lane < LANES; ++lane) {
                        const Floats one_hot = load(work.identity + x[unit * LANES + lane] * row + t);
                        for (int k = 0; k < KEYS; ++k) totals[k] += rows[k * LANES + lane] * one_hot;
                    }
                }
                for (int k = 0; k < KEYS; ++k) {
                    add_to(to.tp + (key + k) * row + t, totals[k]);
                    add_to(to.tt + x[key + k] * row + t, totals[k]);
                }
            }
    }

    // In longer ones, blocks of [key, query] turned into [query, key]; then by the key's position, and by its token.
    void add_by_query_token(int b, int h) {
        const Tables& to = sums.heads[h];
        std::fill_n(work.by_query_token, s.n_tok * s.context, 0.0f);
        for (int unit = 0; unit < s.units; ++unit)
            for (int keys = 0; keys <= unit * LANES; keys += LANES)
                add_transposed(column(h, unit) + keys * LANES, LANES, tokens(b) + unit * LANES,
                               work.by_query_token + keys, s.context);
        for (int v = 0; v < s.n_tok * s.context; v += LANES) add_to(to.tp_last + v, load(work.by_query_token + v));
        for (int keys = 0; keys < s.context; keys += LANES)
            for (int t = 0; t < s.n_tok; t += LANES)
                add_transposed(work.by_query_token + t * s.context + keys, s.context, tokens(b) + keys, to.tt + t,
                               s.tokens);
    }

    // Adds up layer 0's pattern, laid out as columns (recording every step costs 1.3 to 1.9 times as much in
    // [query, key]).
    [[gnu::noinline]] void watch_pattern() {
        for (int h = 0; h < s.m1; ++h)
            for (int unit = 0; unit < s.units; ++unit) {
                const Floats scale = load(work.scale + h * s.context + unit * LANES);
                for (int key = s.pad; key < (unit + 1) * LANES; ++key) {
                    const int at = ((h * s.units + unit) * s.context + key) * LANES;
                    add_to(work.patterns + at, load(work.columns + at) * scale);
                }
            }
    }

    void write_pattern() {
        for (int h = 0; h < s.m1; ++h)
            for (int i = s.pad; i < s.context; ++i)
                for (int j = s.pad; j <= i; ++j)
                    watched.pattern[(h * s.n_ctx + i - s.pad) * s.n_ctx + j - s.pad] =
                        share * work.patterns[((h * s.units + i / LANES) * s.context + j) * LANES + i % LANES];
    }

    // Layer 1's pattern, what reaches it and its scores; and what reaches layer 0's pattern through it.
    [[gnu::noinline]] void watch_gradients() {
        for (int m = 0; m < s.m2; ++m) {
            const float *p = work.p + m * s.context, *dt = work.dt + m * s.context;
            float* d_last = watched.d_last + m * s.n_ctx - s.pad;
            for (int k = s.pad; k < s.context; ++k) {
                watched.last[m * s.n_ctx + k - s.pad] += share * p[k];
                watched.d_scores[m * s.n_ctx + k - s.pad] += share * dt[k];
                d_last[k] += share * c(m, 0)[k];
            }
            for (int h = 0; h < s.m1; ++h) {
                const float *from = c(m, 1 + h), *r = work.r + mh(m, h), *passed = work.passed + mh(m, h);
                float* to = watched.d_pattern + h * s.n_ctx * s.n_ctx - s.pad;
                for (int k = s.pad; k < s.context; ++k) d_last[k] += share * passed[k];
                for (int i = s.pad; i < s.context; ++i, to += s.n_ctx)
                    for (int j = s.pad; j <= i; ++j) to[j] += share * (p[i] * from[j] + dt[i] * r[j]);
            }
        }
    }

    // Gradients of A2 and W_U from a chunk, and what reaches the outputs of layer 0's last row.
    void add_dense_products(int n) {
        for (int m = 0; m < s.m2; ++m) {
            float* d_a2 = sums.a2 + m * s.d1 * s.wide_d1;
            multiply({query(m, 0), s.wide_query, 1}, n, s.d1, work.a2_t + m * s.d1 * s.wide_dense, s.wide_dense,
                     s.dense, work.d_dense, s.wide_dense);
            multiply({work.features, 1, s.wide_features}, s.dense, n, query(m, 0), s.wide_query, s.d1,
                     d_a2 + s.d0 * s.wide_d1, s.wide_d1);
            for (int b = 0; b < n; ++b)
                for (int v = 0; v < s.d1; v += LANES) {
                    add_to(d_a2 + tokens(b)[s.context - 1] * s.wide_d1 + v, load(query(m, b) + v));
                    add_to(d_a2 + (s.d0 - 1) * s.wide_d1 + v, load(query(m, b) + v));
                }
        }
        multiply({work.d_logits, 1, s.tokens}, s.n_tok, n, work.features, s.wide_features, s.features, sums.w_t,
                 s.wide_features);
        for (int b = 0; b < n; ++b)
            for (int v = 0; v < s.n_tok; v += LANES) {
                add_to(sums.w + tokens(b)[s.context - 1] * s.tokens + v, load(work.d_logits + b * s.tokens + v));
                add_to(sums.w + (s.d0 - 1) * s.tokens + v, load(work.d_logits + b * s.tokens + v));
            }
    }

    // What reaches layer 0's last row, whose outputs made the query.
    void back_through_last_row(int b) {
        const int32_t* x = tokens(b);
        for (int h = 0; h < s.m1; ++h) {
            const float* last = work.last + (b * s.m1 + h) * s.context;
            float* reaching = work.through;
            Floats inner{};
            for (int unit = 0; unit < s.units; ++unit) {
                const Floats d = read_block<SIZE>(work.d_dense + b * s.wide_dense + h * s.d0, x, unit, s);
                store(reaching + unit * LANES, d);
                inner += d * load(last + unit * LANES);
            }
            const float mean = sum(inner);
            if (watched.pattern)
                for (int k = 0; k < s.n_ctx; ++k)
                    watched.d_pattern[((h + 1) * s.n_ctx - 1) * s.n_ctx + k] += share * reaching[s.pad + k];
            const Tables& to = sums.heads[h];
            const int token = x[s.context - 1];
            for (int v = 0; v < s.context; v += LANES) {
                const Floats value = load(last + v) * (load(reaching + v) - mean);
                store(reaching + v, value);
                add_to(to.pp_last + v, value), add_to(to.tp_last + token * s.context + v, value);
            }
            by_token(reaching, x, work.identity, s, work.by_token);
            for (int v = 0; v < s.n_tok; v += LANES) {
                add_to(to.pt_last + v, load(work.by_token + v));
                add_to(to.tt_last + token * s.tokens + v, load(work.by_token + v));
            }
        }
    }
};

void pack(Weights<const float> from, Workspace& to, const Shape& s) {
    for (int h = 0; h < s.m1; ++h) pack_head(from.a1 + h * s.d0 * s.d0, to.heads[h], s, to.row_of_a);
    for (int m = 0; m < s.m2; ++m)
        for (int e = 0; e < s.d1; ++e)
            for (int d = 0; d < s.dense; ++d)
                to.a2_t[(m * s.d1 + e) * s.wide_dense + d] = from.a2[(m * s.d1 + s.d0 + d) * s.d1 + e];
    for (int f = 0; f < s.features; ++f)
        for (int t = 0; t < s.n_tok; ++t) to.w_t[t * s.wide_features + f] = from.w[(s.d0 + f) * s.n_tok + t];
}

float total(const float* of, size_t n) {
    Floats sums{};
    size_t v = 0;
    for (; v + LANES <= n; v += LANES) sums += load(of + v);
    float rest = sum(sums);
    for (; v < n; ++v) rest += of[v];
    return rest;
}

void clear(Sums& sums, const Shape& s) {
    for (int h = 0; h < s.m1; ++h) sums.heads[h].clear(s);
    std::fill_n(sums.a2, s.m2 * s.d1 * s.wide_d1, 0.0f), std::fill_n(sums.w, s.d0 * s.tokens, 0.0f);
    std::fill_n(sums.w_t, s.n_tok * s.wide_features, 0.0f);
}

void write_gradients(const Sums& from, Weights<float> to, const Shape& s, float share) {
    for (int h = 0; h < s.m1; ++h) unpack_head(from.heads[h], to.a1 + h * s.d0 * s.d0, s, share);
    for (int d = 0; d < s.m2 * s.d1; ++d)
        for (int e = 0; e < s.d1; ++e) to.a2[d * s.d1 + e] = share * from.a2[d * s.wide_d1 + e];
    for (int d = 0; d < s.d0; ++d)
        for (int t = 0; t < s.n_tok; ++t) to.w[d * s.n_tok + t] = share * from.w[d * s.tokens + t];
    for (int f = 0; f < s.features; ++f)
        for (int t = 0; t < s.n_tok; ++t) to.w[(s.d0 + f) * s.n_tok + t] = share * from.w_t[t * s.wide_features + f];
}

}  // namespace

double gradient(Sizes sizes, const int32_t* tokens, const float* targets, int n, Weights<const float> weights,
                Weights<float> gradients, Watched watched, float share) {
    thread_local Workspace work;
    work.fit(sizes);
    const Shape s(sizes);
    pack(weights, work, s);
    clear(work.sums, s);
    if (watched.pattern) std::fill_n(watched.pattern, Watched::size(sizes), 0.0f);
    const double loss = by_size(
        s.n_tok, [&](auto size) { return Pass<size>(s, work, weights, watched, share).run(tokens, targets, n); });
    write_gradients(work.sums, gradients, s, share);
    const double all = loss + total(gradients.a1, s.m1 * s.d0 * s.d0) + total(gradients.a2, s.m2 * s.d1 * s.d1) +
                       total(gradients.w, (s.d0 + s.features) * s.n_tok);
    if (!std::isfinite(all)) work.sizes = {};  // NaN may stand in what pads arrays: begin with zeros again
    return loss * share;
}

}  // namespace KERNELS_NAMESPACE
