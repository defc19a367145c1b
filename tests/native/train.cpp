// Trainings with the kernels of one instruction set as a program, for check_native.py: weights and a batch from a file,
// their gradients to another; then two trainings at the same time, which must end equal.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "trainer.h"

namespace KERNELS_NAMESPACE {
const Kernels& kernels();
}
const Kernels& kernels() { return KERNELS_NAMESPACE::kernels(); }

template <class T> void read(FILE* file, T* values, size_t n) {
    if (std::fread(values, sizeof(T), n, file) != n) std::exit(2);
}

// What the core knows of a chain with uniform roots: every token has one parent, the one before.
struct Chain {
    std::vector<float> d, c, inverse, log_d;
    std::vector<int32_t> first_row{0, 0}, parents, degrees;
    SamplerPlan plan;

    Chain(int n_ctx, int n_tok, float alpha) : degrees(n_ctx + 1, 1) {
        const size_t n = size_t(n_tok) * n_tok;
        const float shape = alpha + 2.0f / 3;
        d.assign(n, shape), c.assign(n, 1 / std::sqrt(9 * shape)), inverse.assign(n, 1 / alpha), log_d.assign(n, std::log(shape));
        for (int i = 0; i <= n_ctx; ++i) parents.push_back(i > 0 ? i - 1 : 0);
        degrees[0] = 0;
        plan = {n_ctx, n_tok, n_tok, 1, Roots::uniform, d.data(), c.data(), inverse.data(), log_d.data(), first_row.data(),
                parents.data(), degrees.data()};
    }
};

// Two members' weights after three steps of Adam; a batch is still being drawn when the trainer goes.
std::vector<float> trained(Sizes sizes, int batch, int threads, const std::vector<float>& first_weights) {
    const Chain chain(sizes.n_ctx, sizes.n_tok, 0.5f);
    Trainer trainer(sizes, 2, batch, threads, {{&chain.plan, {1, 2}}, {&chain.plan, {3, 4}}});
    for (int member = 0; member < 2; ++member) {
        const float* from = first_weights.data();
        for (int weight = 0; weight < 3; from += trainer.size(weight), ++weight)
            std::copy_n(from, trainer.size(weight), trainer.weights(weight) + member * trainer.row(weight));
    }
    trainer.draw(0);
    for (int step = 1; step <= 3; ++step) {
        trainer.gradients(int64_t(step) * batch, step == 2);
        for (int weight = 0; weight < 3; ++weight)
            trainer.adam(weight, 0, 2, 0.01, 0, 0, step);
    }
    return {trainer.weights(0), trainer.weights(0) + 2 * (trainer.row(0) + trainer.row(1) + trainer.row(2))};
}

int main(int, char** paths) {
    FILE* in = std::fopen(paths[1], "rb");
    int32_t size[6];
    read(in, size, 6);
    const Sizes sizes{size[0], size[1], size[2], size[3], size[4] != 0};
    const int batch = size[5];
    Trainer trainer(sizes, 1, batch, 3, {});
    std::vector<float> weights;
    for (int weight = 0; weight < 3; ++weight) {
        read(in, trainer.weights(weight), trainer.size(weight));
        weights.insert(weights.end(), trainer.weights(weight), trainer.weights(weight) + trainer.size(weight));
    }
    read(in, trainer.next_tokens(), size_t(batch) * sizes.n_ctx);
    read(in, trainer.next_targets(), size_t(batch) * sizes.n_tok);
    trainer.gradients(0, true);
    trainer.gradients_again();

    std::vector<float> ends[2];
    std::vector<std::thread> users;
    for (int user = 0; user < 2; ++user) users.emplace_back([&, user] { ends[user] = trained(sizes, 2 * batch, 1 + user, weights); });
    for (std::thread& user : users) user.join();
    if (ends[0] != ends[1]) return 3;

    FILE* out = std::fopen(paths[2], "wb");
    const float loss = float(trainer.losses()[0]);
    std::fwrite(&loss, 4, 1, out);
    for (int weight = 0; weight < 3; ++weight) std::fwrite(trainer.gradients_of(weight), 4, trainer.size(weight), out);
    return std::fclose(out);
}
