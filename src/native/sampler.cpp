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
// Entries of the matrices that are drawn before what was rejected of them is drawn again: enough to fill vectors.
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

// Attempts at Gamma(d + 1/3) = d v by Marsaglia & Tsang (2000), several vectors at once: `draws.log_gammas`.
// Every loop is one short chain of instructions a vector, so that the processor works on several vectors at a time: in
// one loop, with everything in registers, it waits (0.79 times the sampler's rate at n_ctx 20, n_tok 10, AVX-512).
class Attempts {
  public:
    static constexpr int MOST = 16;
    Floats log_v[MOST];  // 0 where v would not be positive
    Ints rejected[MOST];
    Floats spare[MOST];  // a uniform number that the attempt does not use

    void set(int i, const Counter& words) {
        u1[i] = uniform(words.c0), u2[i] = uniform(words.c1), u3[i] = uniform(words.c2), spare[i] = uniform(words.c3);
    }
    // Vector i is of Gamma(d(i) + 1/3), and c(i) = 1 / sqrt(9 d(i)).
    template <class D, class C>
    void judge(int n, D d, C c) {
        for (int i = 0; i < n; ++i) x[i] = square_root(log(u1[i]) * -2.0f) * sin_pi(u2[i] - 0.5f);
        for (int i = 0; i < n; ++i) {
            const Floats root = c(i) * x[i] + 1.0f;
            log_v[i] = log(select(root > 0.0f, root, splat(1.0f))) * 3.0f;
        }
        for (int i = 0; i < n; ++i) {
            const Floats root = c(i) * x[i] + 1.0f;
            const Floats bound = d(i) * ((log_v[i] - root * root * root) + 1.0f) + x[i] * x[i] * 0.5f;
            rejected[i] = ~((root > 0.0f) & (log(u3[i]) < bound));
        }
    }

  private:
    Floats u1[MOST], u2[MOST], u3[MOST], x[MOST];
};

// What a thread works in, kept from call to call.
struct Workspace {
    float *log_v, *log_powers;  // [entry of a chunk, lane] a gamma's logarithm is their sum
    int32_t* again;             // [entry of a chunk, lane] which of them were rejected
    float* matrices;            // [row, token, lane]
    float* work;                // [token, token, lane] of `stationary_law`
    float* law;                 // [token, lane] of the roots
    float* running;             // [token, lane] sums of a row
    float* cumulative;          // [lane, row, wide] bounds of the tokens; the last row has the law of the roots
    float* numbers;             // [position, lane] uniform numbers
    int32_t *tokens, *turned;   // [position, lane], [lane, position]
    int32_t *named, *zeros;     // [lane] rows

    Workspace(const SamplerPlan& plan, int chunk, int wide)
        : n_ctx(plan.n_ctx), n_tok(plan.n_tok), n_rows(plan.n_rows) {
        arena.fill([&](Arena& a) {
            const size_t n = n_tok * LANES, positions = size_t(padded(n_ctx)) * LANES;
            log_v = a.take<float>(chunk * LANES), log_powers = a.take<float>(chunk * LANES);
            again = a.take<int32_t>(chunk * LANES);
            matrices = a.take<float>(n_rows * n), work = a.take<float>(n_tok * n);
            law = a.take<float>(n), running = a.take<float>(n);
            cumulative = a.take<float>(size_t(n_rows + 1) * wide * LANES), numbers = a.take<float>(positions);
            tokens = a.take<int32_t>(positions), turned = a.take<int32_t>(positions);
            named = a.take<int32_t>(LANES), zeros = a.take<int32_t>(LANES);
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
        : plan(of),
          n_tok(of.n_tok),
          wide(padded(n_tok)),
          rows_at_once(std::max(CHUNK / n_tok, 1)),
          stride(size_t(of.n_rows + 1) * wide),
          schedule(key),
          memory(workspace()) {
        for (int t = 0; t < n_tok; ++t) store(memory.law + t * LANES, splat(1.0f / float(n_tok)));
    }

    // The sequences of n <= LANES neighbouring places, whose upper halves are equal.
    void draw(int64_t place, int n, int32_t* tokens, float* targets) {
        const uint32_t low = uint32_t(place), high = 256 * uint32_t(place >> 32);
        draw_matrices(low, FOR_GAMMAS + high);
        if (plan.roots == Roots::stationary) stationary_law();
        if (plan.roots == Roots::stationary_in_logs) stationary_law_in_logs();
        if (plan.roots != Roots::shared) accumulate(memory.law, plan.n_rows);
        draw_tokens(Stream(schedule, low, FOR_TOKENS + high));
        write_tokens(n, tokens);
        const Rows rows = rows_of(plan.n_ctx);
        for (int lane = 0; lane < n; ++lane) {
            const float* row = memory.matrices + size_t(rows.first + rows.below[lane]) * n_tok * LANES + lane;
            for (int t = 0; t < n_tok; ++t) targets[lane * n_tok + t] = row[t * LANES];
        }
    }

  private:
    const Workspace& workspace() const {
        thread_local std::unique_ptr<Workspace> kept;
        if (!kept || !kept->fits(plan)) kept.reset(), kept.reset(new Workspace(plan, rows_at_once * n_tok, wide));
        return *kept;
    }

    void draw_matrices(uint32_t place, uint32_t purpose) {
        const size_t size = size_t(n_tok) * LANES;
        for (int first = 0; first < plan.n_rows; first += rows_at_once) {
            const int end = std::min(first + rows_at_once, plan.n_rows);
            draw_gammas(first * n_tok, end * n_tok, place, purpose);
            for (int row = first; row < end; ++row) {
                const size_t at = (row - first) * size;
                normalize(at, memory.matrices + row * size);
                accumulate(memory.matrices + row * size, row);
                if (plan.roots == Roots::stationary_in_logs) normalize_in_logs(at, memory.work + row * size);
            }
        }
    }

    // Of Gamma(alpha) = U^(1 / alpha) d v for entries first, ..., end - 1: the logs of v and of the rest.
    void draw_gammas(int first, int end, uint32_t place, uint32_t purpose) {
        const Stream stream(schedule, place, purpose);
        Attempts attempts;
        int n_again = 0;
        for (int e = first; e < end; e += Attempts::MOST) {
            const int n = std::min(end - e, Attempts::MOST), at = (e - first) * LANES;
            for (int i = 0; i < n; ++i) attempts.set(i, stream(e + i));
            attempts.judge(n, [&](int i) { return splat(plan.d[e + i]); }, [&](int i) { return splat(plan.c[e + i]); });
            for (int i = 0; i < n; ++i) {
                store(memory.log_v + at + i * LANES, attempts.log_v[i]);
                const Floats log_power = log(attempts.spare[i]) * plan.inverse[e + i];
                store(memory.log_powers + at + i * LANES, log_power + plan.log_d[e + i]);
            }
            for (int i = 0; i < n; ++i)
                n_again +=
                    store_chosen(memory.again + n_again, lane_numbers() + (at + i * LANES), attempts.rejected[i]);
        }
        for (uint32_t attempt = 1; n_again > 0; ++attempt)
            n_again = draw_again(n_again, first, attempt, place, purpose);
    }

    // Another attempt at the log v of `memory.again`; how many were rejected once more, now at its beginning.
    int draw_again(int n_again, int first, uint32_t attempt, uint32_t place, uint32_t purpose) {
        store(memory.again + n_again, Ints{});  // fills the last vector
        Attempts attempts;
        int n_left = 0;
        for (int start = 0; start < n_again; start += Attempts::MOST * LANES) {
            const int32_t* again = memory.again + start;
            const int count = std::min(n_again - start, Attempts::MOST * LANES), n = (count + LANES - 1) / LANES;
            const auto entry = [&](int i) { return Ints(load<Words>(again + i * LANES) / LANES); };
            for (int i = 0; i < n; ++i) {
                const Words lane = load<Words>(again + i * LANES) % LANES;
                const Counter counter{Words(entry(i) + first), Words{} + attempt, lane + place, Words{} + purpose};
                attempts.set(i, random_words(counter, schedule));
            }
            attempts.judge(
                n, [&](int i) { return look_up<Size::any>(plan.d + first, entry(i)); },
                [&](int i) { return look_up<Size::any>(plan.c + first, entry(i)); });
            for (int k = 0; k < count; ++k) {  // without a branch: the next attempt writes over what is rejected
                const int at = again[k];
                memory.log_v[at] = attempts.log_v[k / LANES][k % LANES];
                memory.again[n_left] = at;
                n_left -= attempts.rejected[k / LANES][k % LANES];
            }
        }
        return n_left;
    }

    // A row of probabilities, none of them zero, from its gammas: those from `at` on.
    void normalize(size_t at, float* row) const {
        const int size = n_tok * LANES;
        Floats total{};
        for (int t = 0; t < size; t += LANES) {
            const Floats gamma = exp(log_gamma(at + t)) + TINY;
            store(row + t, gamma);
            total += gamma;
        }
        const Ints small = total < SMALL;
        if (bits_of(small)) {  // a whole row underflowed: go back to the logs
            const Floats top = largest_log_gamma(at);
            total = Floats{};
            for (int t = 0; t < size; t += LANES) {
                const Floats gamma = select(small, exp(log_gamma(at + t) - top) + TINY, load(row + t));
                store(row + t, gamma);
                total += gamma;
            }
        }
        const Floats z = 1.0f / total;
        for (int t = 0; t < size; t += LANES) store(row + t, load(row + t) * z);
    }

    Floats log_gamma(size_t at) const { return load(memory.log_v + at) + load(memory.log_powers + at); }

    Floats largest_log_gamma(size_t at) const {
        Floats top = splat(-INF);
        for (int t = 0; t < n_tok; ++t) top = larger(log_gamma(at + t * LANES), top);
        return top;
    }

    // Running sums of a law, infinite from where they reach the last: rounding leaves no draw without a token.
    void accumulate(const float* law, int row) {
        Floats total{};
        for (int t = 0; t < n_tok; ++t) {
            total += load(law + t * LANES);
            store(memory.running + t * LANES, total);
        }
        const auto bound = [this, total](int t) {
            const Floats sum = t < n_tok ? load(memory.running + t * LANES) : total;
            return select(sum < total, sum, splat(INF));
        };
        for (int t = 0; t < wide; t += LANES) {
            Floats rows[LANES];
            for (int k = 0; k < LANES; ++k) rows[k] = bound(t + k);
            transpose(rows);
            for (int lane = 0; lane < LANES; ++lane)
                store(memory.cumulative + lane * stride + size_t(row) * wide + t, rows[lane]);
        }
    }

    // Grassmann, Taksar & Heyman (1985): eliminate states one at a time; no subtraction, so float32 keeps its digits.
    // The weights of states that are hardly ever left would overflow: they are kept divided by their sum.
    void stationary_law() {
        const size_t size = size_t(n_tok) * LANES;
        const float* from = memory.matrices;
        for (int k = n_tok - 1; k > 0; --k) {
            const float* gone = from + k * size;
            Floats total{};
            for (int s = 0; s < k; ++s) total += load(gone + s * LANES);
            const Floats leaving = 1.0f / total;
            for (int r = 0; r < k; ++r) {
                const float* old = from + r * size;
                float* row = memory.work + r * size;
                const Floats factor = load(old + k * LANES) * leaving;
                store(row + k * LANES, factor);
                for (int s = 0; s < k; ++s)
                    store(row + s * LANES, factor * load(gone + s * LANES) + load(old + s * LANES));
            }
            from = memory.work;
        }
        store(memory.law, splat(1.0f));
        for (int k = 1; k < n_tok; ++k) {
            Floats weight{};
            for (int s = 0; s < k; ++s)
                weight += load(memory.law + s * LANES) * load(memory.work + s * size + k * LANES);
            const Floats z = 1.0f / (weight + 1.0f);
            for (int s = 0; s < k; ++s) store(memory.law + s * LANES, load(memory.law + s * LANES) * z);
            store(memory.law + k * LANES, weight * z);
        }
    }

    // The logs of a row of probabilities; their differences keep their digits however long the odds are.
    void normalize_in_logs(size_t at, float* row) const {
        const Floats top = largest_log_gamma(at);
        Floats total{};
        for (int t = 0; t < n_tok; ++t) total += exp(log_gamma(at + t * LANES) - top);
        for (int t = 0; t < n_tok; ++t) store(row + t * LANES, (log_gamma(at + t * LANES) - top) - log(total));
    }

    // log(e^a + e^b)
    static Floats add_logs(Floats a, Floats b) {
        const Floats top = larger(a, b), other = a > b ? b : a;
        return top + log(exp(other - top) + 1.0f);
    }

    // `stationary_law` of the logs in `work`.
    void stationary_law_in_logs() {
        const size_t size = size_t(n_tok) * LANES;
        const auto work = [this, size](int row, int token) { return memory.work + row * size + token * LANES; };
        for (int k = n_tok - 1; k > 0; --k) {
            Floats leaving = load(work(k, 0));
            for (int s = 1; s < k; ++s) leaving = add_logs(leaving, load(work(k, s)));
            for (int r = 0; r < k; ++r) {
                const Floats factor = load(work(r, k)) - leaving;
                store(work(r, k), factor);
                for (int s = 0; s < k; ++s) store(work(r, s), add_logs(load(work(r, s)), factor + load(work(k, s))));
            }
        }
        Floats top{}, total{};  // the first state's weight is 1
        store(memory.law, Floats{});
        for (int k = 1; k < n_tok; ++k) {
            Floats weight = load(memory.law) + load(work(0, k));
            for (int s = 1; s < k; ++s) weight = add_logs(weight, load(memory.law + s * LANES) + load(work(s, k)));
            store(memory.law + k * LANES, weight);
            top = larger(weight, top);
        }
        for (int k = 0; k < n_tok; ++k) {
            const Floats weight = exp(load(memory.law + k * LANES) - top);
            store(memory.law + k * LANES, weight);
            total += weight;
        }
        for (int k = 0; k < n_tok; ++k) store(memory.law + k * LANES, load(memory.law + k * LANES) / total);
    }

    struct Rows {  // row first + below[lane] of all transition matrices
        int first;
        const int32_t* below;
    };
    // The rows that the tokens of a node's parents name.
    Rows rows_of(int node) const {
        const int degree = plan.degrees[node];
        if (degree == 0) return {plan.roots == Roots::shared ? plan.n_rows - 1 : plan.n_rows, memory.zeros};
        const int32_t* parents = plan.parents + size_t(node) * plan.max_parents;
        if (degree == 1) return {plan.first_row[1], memory.tokens + parents[0] * LANES};
        Ints row{};
        for (int k = 0; k < degree; ++k) row = row * n_tok + load<Ints>(memory.tokens + parents[k] * LANES);
        store(memory.named, row);
        return {plan.first_row[degree], memory.named};
    }

    // A position's token is the first of its row whose running sum is above a uniform number.
    void draw_tokens(const Stream& stream) {
        Floats query{};
        for (int i = 0; i < plan.n_ctx; ++i) {
            const Counter words = stream(i);
            store(memory.numbers + i * LANES, uniform(words.c0));
            query = uniform(words.c1) * float(n_tok);  // in the end, the last position's
        }
        const Ints rounded = __builtin_convertvector(query, Ints);
        for (int i = 0; i < plan.n_ctx; ++i) {
            int32_t* drawn = memory.tokens + i * LANES;
            if (plan.degrees[i] < 0) {
                store(drawn, rounded < n_tok ? rounded : splat_ints(n_tok - 1));
                continue;
            }
            const Rows rows = rows_of(i);
            const float *bounds = memory.cumulative + size_t(rows.first) * wide, *numbers = memory.numbers + i * LANES;
            const size_t all = stride, width = wide, last = wide - LANES;
#pragma GCC unroll 4
            for (int lane = 0; lane < LANES; ++lane, bounds += all) {
                const float* row = bounds + rows.below[lane] * width;
                int n_below = count_not_above(row + last, numbers[lane]);
                for (size_t t = 0; t < last; t += LANES) n_below += count_not_above(row + t, numbers[lane]);
                drawn[lane] = n_below;
            }
        }
    }

    void write_tokens(int n, int32_t* tokens) const {
        const size_t n_ctx = plan.n_ctx, wide_ctx = padded(plan.n_ctx);
        for (size_t i = 0; i < n_ctx; i += LANES) {
            Floats rows[LANES];
            for (int k = 0; k < LANES; ++k)
                rows[k] = load(reinterpret_cast<const float*>(memory.tokens) + (i + k) * LANES);
            transpose(rows);
            for (int lane = 0; lane < LANES; ++lane) store(memory.turned + lane * wide_ctx + i, rows[lane]);
        }
        for (int lane = 0; lane < n; ++lane)
            std::memcpy(tokens + lane * n_ctx, memory.turned + lane * wide_ctx, n_ctx * sizeof *tokens);
    }

    const SamplerPlan& plan;
    const int n_tok, wide, rows_at_once;
    const size_t stride;  // of the lanes of `cumulative`
    const Schedule schedule;
    const Workspace& memory;
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
