// Sequences of a task: the numbers of causal_circuits/tasks/draws.py and task.py, LANES sequences at a time.
//
// A lane of a vector is a sequence: transition matrices lie in memory as [row, token, lane]. Every number of a sequence
// is a function of the seed's key, the sequence's place and what it is for, so that neither threads nor the width of a
// vector change what is drawn.
#include "sampler.h"

#include <algorithm>
#include <memory>

#include "kernels.h"
#include "philox.h"
#include "shape.h"

namespace KERNELS_NAMESPACE {
namespace {

constexpr uint32_t FOR_GAMMAS = 0, FOR_TOKENS = 1;
// Added to every gamma: a row of zeros, or a token never left, has no law. Rows that sum to less than SMALL have
// underflowed and are scaled by their largest entry first.
constexpr float TINY = 1e-37f, SMALL = 1e-25f;
// Entries whose gammas are drawn before those that were rejected are drawn again, together.
constexpr int CHUNK = 128;

// sin(pi t) for t in [-1/2, 1/2] to 2e-7: the Taylor series.
inline Floats sin_pi(Floats t) {
    const Floats square = t * t;
    Floats p = square * -0.00737043094f + 0.0821458866f;
    p = p * square - 0.59926453f;
    p = p * square + 2.55016404f;
    p = p * square - 5.16771278f;
    p = p * square + 3.14159265f;
    return p * t;
}

// Attempts at d v ~ Gamma(d + 1/3) by Marsaglia & Tsang (2000), several vectors at once: `draws.log_gammas`.
// Every loop is one short chain of instructions a vector, so that the processor works on several vectors at a time; with
// a whole attempt in registers it waited, and this was 0.8 times as fast.
class Attempts {
  public:
    static constexpr int MOST = 32;
    Floats log_v[MOST];    // 0 where v would not be positive
    unsigned kept[MOST];   // bits of lanes
    Floats log_power[MOST];

    void set(int i, const Counter& words) {
        radius[i] = uniform(words.c0), angle[i] = uniform(words.c1) - 0.5f, height[i] = uniform(words.c2);
        log_power[i] = uniform(words.c3);
    }
    // With d(i) and c(i) for vectors 0, ..., n - 1.
    template <class D, class C> void judge(int n, D d, C c) {
        for (int i = 0; i < n; ++i) x[i] = square_root(log(radius[i]) * -2.0f) * sin_pi(angle[i]);
        for (int i = 0; i < n; ++i) {
            const Floats root = c(i) * x[i] + 1.0f;
            log_v[i] = log(select(root > 0.0f, root, splat(1.0f))) * 3.0f;
        }
        for (int i = 0; i < n; ++i) {
            const Floats root = c(i) * x[i] + 1.0f;
            const Floats bound = d(i) * ((log_v[i] - root * root * root) + 1.0f) + x[i] * x[i] * 0.5f;
            kept[i] = bits_of((root > 0.0f) & (log(height[i]) < bound));
        }
    }

  private:
    Floats radius[MOST], angle[MOST], height[MOST], x[MOST];
};

// What a thread works in, kept from call to call.
struct Workspace {
    float* logs;        // [entry of a chunk, lane] of gammas
    float* powers;      // [entry of a chunk, lane]
    int32_t* again;     // [entry of a chunk, lane] which of them were rejected
    float* matrices;    // [row, token, lane]
    float* work;        // [token, token, lane] of `stationary_law`
    float* law;         // [token, lane] of the roots
    float* running;     // [wide, lane] sums of a row
    float* cumulative;  // [lane, row, wide] bounds of the tokens; the last row has the law of the roots
    float* numbers;     // [position, lane] uniform numbers
    int32_t* tokens;    // [position, lane]
    int32_t* turned;    // [lane, position]

    Workspace(const SamplerPlan& plan, int chunk, int wide) : n_ctx(plan.n_ctx), n_tok(plan.n_tok), n_rows(plan.n_rows) {
        arena.fill([&](Arena& a) {
            const size_t rows = n_rows, matrix = size_t(n_tok) * n_tok;
            logs = a.take<float>(chunk * LANES), powers = a.take<float>(chunk * LANES), again = a.take<int32_t>(chunk * LANES);
            matrices = a.take<float>(rows * n_tok * LANES), work = a.take<float>(matrix * LANES);
            law = a.take<float>(n_tok * LANES), running = a.take<float>(wide * LANES);
            cumulative = a.take<float>((rows + 1) * wide * LANES), numbers = a.take<float>(size_t(n_ctx) * LANES);
            tokens = a.take<int32_t>(size_t(padded(n_ctx)) * LANES), turned = a.take<int32_t>(size_t(padded(n_ctx)) * LANES);
        });
    }
    bool fits(const SamplerPlan& plan) const {
        return n_ctx == plan.n_ctx && n_tok == plan.n_tok && n_rows == plan.n_rows;
    }

  private:
    Arena arena;
    const int n_ctx, n_tok, n_rows;
};

class Sampler {
  public:
    Sampler(const SamplerPlan& of, const uint32_t key[2])
        : plan(of), n_tok(of.n_tok), schedule(key), rows_at_once(std::max(CHUNK / of.n_tok, 1)),
          wide(padded(of.n_tok)), stride((of.n_rows + 1) * wide), room(workspace()) {
        for (int t = 0; t < n_tok; ++t) store(room.law + t * LANES, splat(1.0f / float(n_tok)));
        accumulate(room.law, plan.n_rows);
    }

    // Sequences of `n` <= LANES neighbouring places; the upper halves of their places are equal.
    void draw(int64_t place, int n, int32_t* tokens, float* targets) {
        const uint32_t low = uint32_t(place), high = 256 * uint32_t(place >> 32);
        draw_matrices(Stream(schedule, low, FOR_GAMMAS + high), low, FOR_GAMMAS + high);
        if (plan.roots == Roots::stationary) {
            stationary_law();
            accumulate(room.law, plan.n_rows);
        }
        draw_tokens(Stream(schedule, low, FOR_TOKENS + high));
        for (int i = 0; i < plan.n_ctx; i += 4) {
            const float* drawn = reinterpret_cast<const float*>(room.tokens + i * LANES);
            store_transposed(reinterpret_cast<float*>(room.turned + i), padded(plan.n_ctx), load(drawn), load(drawn + LANES), load(drawn + 2 * LANES),
                             load(drawn + 3 * LANES));
        }
        for (int lane = 0; lane < n; ++lane) std::copy_n(room.turned + lane * padded(plan.n_ctx), plan.n_ctx, tokens + size_t(lane) * plan.n_ctx);
        int32_t rows[LANES];
        name_rows(plan.n_ctx, rows);
        for (int lane = 0; lane < n; ++lane)
            for (int t = 0; t < n_tok; ++t)
                targets[lane * n_tok + t] = room.matrices[(size_t(rows[lane]) * n_tok + t) * LANES + lane];
    }

  private:
    const Workspace& workspace() const {
        thread_local std::unique_ptr<Workspace> kept;
        if (!kept || !kept->fits(plan)) kept.reset(), kept.reset(new Workspace(plan, rows_at_once * n_tok, wide));
        return *kept;
    }

    void draw_matrices(const Stream& stream, uint32_t place, uint32_t purpose) {
        for (int row = 0; row < plan.n_rows; row += rows_at_once) {
            const int end = std::min(row + rows_at_once, plan.n_rows);
            draw_gammas(stream, row * n_tok, end * n_tok, place, purpose);
            for (int r = row; r < end; ++r) {
                normalize(room.logs + (r - row) * n_tok * LANES, room.matrices + size_t(r) * n_tok * LANES);
                accumulate(room.matrices + size_t(r) * n_tok * LANES, r);
            }
        }
    }

    // Logs of Gamma(alpha) draws for entries first, ..., end - 1: Gamma(alpha + 1) times U^(1 / alpha).
    void draw_gammas(const Stream& stream, int first, int end, uint32_t place, uint32_t purpose) {
        constexpr unsigned ALL = (1u << LANES) - 1;
        Attempts attempts;
        int n_again = 0;
        for (int e = first; e < end; e += Attempts::MOST) {
            const int n = std::min(end - e, Attempts::MOST);
            for (int i = 0; i < n; ++i) attempts.set(i, stream(e + i));
            attempts.judge(n, [&](int i) { return splat(plan.d[e + i]); }, [&](int i) { return splat(plan.c[e + i]); });
            for (int i = 0; i < n; ++i) {
                const Floats log_power = log(attempts.log_power[i]) * plan.inverse[e + i] + plan.log_d[e + i];
                const Floats log_v = attempts.log_v[i];
                store(room.logs + (e - first + i) * LANES, log_power + log_v);
                store(room.powers + (e - first + i) * LANES, log_power);
            }
            for (int i = 0; i < n; ++i)
                for (unsigned left = ~attempts.kept[i] & ALL; left; left &= left - 1)
                    room.again[n_again++] = (e - first + i) * LANES + __builtin_ctz(left);
        }
        for (uint32_t attempt = 1; n_again > 0; ++attempt) {
            int n_left = 0;
            for (int start = 0; start < n_again; start += Attempts::MOST * LANES) {
                const int count = std::min(n_again - start, Attempts::MOST * LANES);
                Floats d[Attempts::MOST] = {}, c[Attempts::MOST] = {};
                for (int i = 0; i * LANES < count; ++i) {
                    Counter counter{Words{}, Words{} + attempt, Words{}, Words{} + purpose};
                    for (int lane = 0; lane < LANES && i * LANES + lane < count; ++lane) {
                        const int at = room.again[start + i * LANES + lane], e = first + at / LANES;
                        counter.c0[lane] = e, counter.c2[lane] = place + at % LANES;
                        d[i][lane] = plan.d[e], c[i][lane] = plan.c[e];
                    }
                    attempts.set(i, random_words(counter, schedule));
                }
                attempts.judge((count + LANES - 1) / LANES, [&](int i) { return d[i]; }, [&](int i) { return c[i]; });
                for (int k = 0; k < count; ++k) {
                    const int at = room.again[start + k];
                    if (attempts.kept[k / LANES] >> (k % LANES) & 1) room.logs[at] = room.powers[at] + attempts.log_v[k / LANES][k % LANES];
                    else room.again[n_left++] = at;
                }
            }
            n_again = n_left;
        }
    }

    // A row of probabilities from the logs of its gammas, none of them zero.
    void normalize(const float* logs, float* row) const {
        Floats total{};
        for (int t = 0; t < n_tok; ++t) {
            const Floats gamma = exp(load(logs + t * LANES)) + TINY;
            store(row + t * LANES, gamma);
            total += gamma;
        }
        const Ints small = total < SMALL;
        if (bits_of(small)) {  // a whole row underflowed: go back to the logs
            Floats top = splat(-INF);
            for (int t = 0; t < n_tok; ++t) top = larger(load(logs + t * LANES), top);
            total = Floats{};
            for (int t = 0; t < n_tok; ++t) {
                const Floats scaled = exp(load(logs + t * LANES) - top) + TINY;
                const Floats gamma = select(small, scaled, load(row + t * LANES));
                store(row + t * LANES, gamma);
                total += gamma;
            }
        }
        const Floats z = 1.0f / total;
        for (int t = 0; t < n_tok; ++t) store(row + t * LANES, load(row + t * LANES) * z);
    }

    // Running sums of a law, infinite from where they reach the last: rounding leaves no draw without a token.
    void accumulate(const float* law, int row) {
        Floats total{};
        for (int t = 0; t < n_tok; ++t) {
            total += load(law + t * LANES);
            store(room.running + t * LANES, total);
        }
        for (int t = 0; t < wide; t += 4) {
            Floats bounds[4];
            for (int k = 0; k < 4; ++k) {
                const Floats bound = load(room.running + (t + k) * LANES);
                bounds[k] = t + k < n_tok ? select(bound < total, bound, splat(INF)) : splat(INF);
            }
            store_transposed(room.cumulative + row * wide + t, stride, bounds[0], bounds[1], bounds[2], bounds[3]);
        }
    }

    // Grassmann, Taksar & Heyman (1985): eliminate states one at a time; no subtraction, so float32 keeps its digits.
    // The weights of states that are hardly ever left would overflow: they are kept divided by their sum.
    void stationary_law() {
        const size_t row_size = size_t(n_tok) * LANES;
        const float* from = room.matrices;
        for (int k = n_tok - 1; k > 0; --k) {
            const float* gone = from + k * row_size;
            Floats total{};
            for (int s = 0; s < k; ++s) total += load(gone + s * LANES);
            const Floats leaving = 1.0f / total;
            for (int r = 0; r < k; ++r) {
                const float* old = from + r * row_size;
                float* row = room.work + r * row_size;
                const Floats factor = load(old + k * LANES) * leaving;
                store(row + k * LANES, factor);
                for (int s = 0; s < k; ++s) store(row + s * LANES, factor * load(gone + s * LANES) + load(old + s * LANES));
            }
            from = room.work;
        }
        store(room.law, splat(1.0f));
        for (int k = 1; k < n_tok; ++k) {
            Floats weight{};
            for (int s = 0; s < k; ++s) weight += load(room.law + s * LANES) * load(room.work + s * row_size + k * LANES);
            const Floats z = 1.0f / (weight + 1.0f);
            for (int s = 0; s < k; ++s) store(room.law + s * LANES, load(room.law + s * LANES) * z);
            store(room.law + k * LANES, weight * z);
        }
    }

    // The rows that the tokens of a node's parents name, of all transition matrices, for every lane.
    void name_rows(int node, int32_t* rows) const {
        const int degree = plan.degrees[node], size = n_tok, first = plan.first_row[std::max(degree, 0)];
        const int32_t *parents = plan.parents + size_t(node) * plan.max_parents, *tokens = room.tokens;
        if (degree == 0) store(rows, splat_ints(plan.roots == Roots::shared ? plan.n_rows - 1 : plan.n_rows));
        if (degree == 0) return;
        for (int lane = 0; lane < LANES; ++lane) {  // no vectors: they would wait for the parents' lanes to be stored
            int row = tokens[parents[0] * LANES + lane];
            for (int k = 1; k < degree; ++k) row = row * size + tokens[parents[k] * LANES + lane];
            rows[lane] = first + row;
        }
    }

    // tokens [position, lane]: the first of a row whose running sum is above a uniform number.
    void draw_tokens(const Stream& stream) {
        Floats query{};
        for (int i = 0; i < plan.n_ctx; ++i) {
            const Counter words = stream(i);
            store(room.numbers + i * LANES, uniform(words.c0));
            query = uniform(words.c1);  // in the end, the last position's
        }
        const Ints query_token = __builtin_convertvector(query * float(n_tok), Ints);
        for (int i = 0; i < plan.n_ctx; ++i) {
            int32_t* drawn = room.tokens + i * LANES;
            if (plan.degrees[i] < 0) {
                store(drawn, query_token < n_tok - 1 ? query_token : splat_ints(n_tok - 1));
                continue;
            }
            int32_t rows[LANES];
            name_rows(i, rows);
            const float *bounds = room.cumulative, *numbers = room.numbers + i * LANES;
            const size_t one = wide, all = stride, last = wide - LANES;
            for (int lane = 0; lane < LANES; ++lane, bounds += all) {
                const float* row = bounds + rows[lane] * one;
                int below = count_not_above(row + last, numbers[lane]);
                for (size_t t = 0; t < last; t += LANES) below += count_not_above(row + t, numbers[lane]);
                drawn[lane] = below;
            }
        }
    }

    const SamplerPlan& plan;
    const int n_tok;
    const Schedule schedule;
    const int rows_at_once, wide, stride;
    const Workspace& room;
};

}  // namespace

void sample(const SamplerPlan& plan, const uint32_t key[2], int64_t first, int n, int32_t* tokens, float* targets) {
    Sampler sampler(plan, key);
    for (int done = 0; done < n;) {
        const int64_t place = first + done, until_carry = (int64_t(1) << 32) - (place & 0xFFFFFFFF);
        const int count = int(std::min<int64_t>({n - done, LANES, until_carry}));
        sampler.draw(place, count, tokens + size_t(done) * plan.n_ctx, targets + size_t(done) * plan.n_tok);
        done += count;
    }
}

}  // namespace KERNELS_NAMESPACE
