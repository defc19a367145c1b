// The sampler's kernel of one instruction set as a program, for check_native.py: reads a plan, writes sequences.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "kernels.h"
#include "sampler.h"

namespace KERNELS_NAMESPACE {
void sample(const SamplerPlan&, const uint32_t key[2], int64_t first, int n, int32_t* tokens, float* targets);
}

template <class T> std::vector<T> read(FILE* file, size_t n) {
    std::vector<T> values(n);
    if (std::fread(values.data(), sizeof(T), n, file) != n) std::exit(2);
    return values;
}

struct Drawn {
    std::vector<int32_t> tokens;
    std::vector<float> targets;
};

int main(int, char** paths) {
    FILE* in = std::fopen(paths[1], "rb");
    const auto size = read<int32_t>(in, 6);
    const int n_ctx = size[0], n_tok = size[1], n_rows = size[2], most = size[3], n = size[5];
    const auto key = read<uint32_t>(in, 2);
    const auto first = read<int64_t>(in, 1);
    const auto constants = read<float>(in, size_t(5) * n_rows * n_tok);
    const auto first_row = read<int32_t>(in, most + 1), parents = read<int32_t>(in, size_t(n_ctx + 1) * most);
    const auto degrees = read<int32_t>(in, n_ctx + 1);
    const float* of = constants.data();
    const size_t entries = size_t(n_rows) * n_tok;
    const SamplerPlan plan{n_ctx, n_tok, n_rows, most, Roots(size[4]), of + entries, of + 2 * entries, of + 3 * entries,
                           of + 4 * entries, first_row.data(), parents.data(), degrees.data()};

    Drawn drawn[2];  // by two threads at the same time
    std::vector<std::thread> threads;
    for (Drawn& own : drawn) {
        own = {std::vector<int32_t>(size_t(n) * n_ctx), std::vector<float>(size_t(n) * n_tok)};
        threads.emplace_back([&] {
            KERNELS_NAMESPACE::sample(plan, key.data(), first[0], n, own.tokens.data(), own.targets.data());
        });
    }
    for (std::thread& thread : threads) thread.join();
    if (drawn[0].tokens != drawn[1].tokens || drawn[0].targets != drawn[1].targets) return 3;

    FILE* out = std::fopen(paths[2], "wb");
    std::fwrite(drawn[0].tokens.data(), 4, drawn[0].tokens.size(), out);
    std::fwrite(drawn[0].targets.data(), 4, drawn[0].targets.size(), out);
    return std::fclose(out);
}
