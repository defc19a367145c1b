#include "trainer.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

// A step is cut into so many parts or more, whatever the number of threads; parts hold at least SMALLEST_PART sequences.
constexpr int PARTS = 8, SMALLEST_PART = 64;
constexpr int DRAWN_AT_ONCE = 128;

static int whole_parts(int members, int batch) {
    return std::max(1, std::min((PARTS + members - 1) / members, batch / SMALLEST_PART));
}

std::string described(Sizes s) {
    return "(n_ctx " + std::to_string(s.n_ctx) + ", d_vocab " + std::to_string(s.n_tok) + ", heads (" +
           std::to_string(s.m1) + ", " + std::to_string(s.m2) + "))";
}

NotEnoughMemory::NotEnoughMemory(Sizes sizes, int members, int batch)
    : what_("not enough memory to train " + std::to_string(members) + " model(s) of sizes " + described(sizes) +
            " with batches of " + std::to_string(batch) + " sequences") {}

Trainer::Trainer(Sizes s, int n_members, int batch_size, int threads, std::vector<Draws> draws) try
    : sizes(s),
      members(n_members),
      batch(batch_size),
      n_parts_(whole_parts(n_members, batch_size)),
      n_pieces_((batch_size + DRAWN_AT_ONCE - 1) / DRAWN_AT_ONCE),
      draws_(std::move(draws)) {
    for (int weight = 0; weight < 3; ++weight) {
        sizes_of_[weight] = s.numbers(weight), rows_[weight] = (s.numbers(weight) + 63) / 64 * 64;
        offsets_[weight] = whole_, whole_ += members * rows_[weight];
    }
    for (auto* stack : {&total_, &means_, &squares_}) stack->resize(whole_);
    weights_.resize(whole_ + 64);  // kernels read whole vectors, up to 64 bytes behind the last row
    if (n_parts_ > 1) parts_.resize(n_parts_ * whole_);
    losses_.resize(members), part_losses_.resize(members * n_parts_);
    for (int k = 0; k < 2; ++k) {
        tokens_[k].resize(size_t(members) * batch * s.n_ctx);
        targets_[k].resize(size_t(members) * batch * s.n_tok);
    }
    workers_ = std::make_unique<Workers<Trainer>>(*this, threads);
} catch (const std::bad_alloc&) {
    throw NotEnoughMemory(s, n_members, batch_size);
} catch (const std::length_error&) {  // more than a vector can hold
    throw NotEnoughMemory(s, n_members, batch_size);
}

Workers<Trainer>& Trainer::workers() {
    if (!workers_) throw std::logic_error("this trainer is closed");
    return *workers_;
}

// Python can write to batches: a token outside the vocabulary would be read as an address.
static void check_tokens(const int32_t* x, size_t n, int n_tok) {
    uint32_t largest = 0;
    for (size_t i = 0; i < n; ++i) largest = std::max(largest, uint32_t(x[i]));
    if (largest >= uint32_t(n_tok))
        throw std::invalid_argument("tokens must be from 0 to " + std::to_string(n_tok - 1) + ": got " +
                                    std::to_string(int32_t(largest)));
}

void Trainer::draw(int64_t first) {
    if (first < 0) throw std::invalid_argument("first must not be negative: got " + std::to_string(first));
    workers().wait_for_all();
    first_ = first, n_gradient_jobs_ = 0;
    workers_->start(draws_.empty() ? 0 : members * n_pieces_);
}

float Trainer::gradients(int64_t then_first, bool watch) {
    workers().wait_for_all();
    if (!draws_.empty() && first_ < 0) throw std::logic_error("draw the first batch before its gradients");
    now_ = 1 - now_, first_ = then_first, watch_ = watch;
    return differentiate_all(draws_.empty() ? 0 : members * n_pieces_);
}

float Trainer::gradients_again() {
    workers().wait_for_all();
    return differentiate_all(0);
}

float Trainer::differentiate_all(int n_draws) try {
    const size_t n_watched = watch_ ? Watched::size(sizes) : 0;
    if (watch_) watched_.resize(members * n_watched), watched_parts_.resize(members * n_parts_ * n_watched);
    n_gradient_jobs_ = members * n_parts_;
    workers_->start(n_gradient_jobs_ + n_draws);
    workers_->wait_for(n_gradient_jobs_, [this] { between_jobs(); });
    for (int member = 0; member < members; ++member) {
        const double* of = part_losses_.data() + member * n_parts_;
        losses_[member] = 0;
        for (int part = 0; part < n_parts_; ++part) losses_[member] += of[part];
        float* sum = watched_.data() + member * n_watched;
        std::fill_n(sum, n_watched, 0.0f);
        for (int part = 0; part < n_parts_; ++part) {
            const float* of_part = watched_parts_.data() + (member * n_parts_ + part) * n_watched;
            for (size_t i = 0; i < n_watched; ++i) sum[i] += of_part[i];
        }
    }
    const float* parts = n_parts_ > 1 ? parts_.data() : total_.data();
    return kernels().add_up(parts, n_parts_, whole_, whole_, total_.data());
} catch (const std::bad_alloc&) {
    throw NotEnoughMemory(sizes, members, batch);
}

void Trainer::check(int weight, int first_member, int end_member) const {
    if (weight < 0 || weight > 2 || first_member < 0 || end_member > members || first_member > end_member)
        throw std::invalid_argument("there are weights 0 to 2 and members 0 to " + std::to_string(members));
}

void Trainer::adam(int weight, int first_member, int end_member, double learning_rate, double decay,
                   double decoupled_decay, int64_t step) {
    check(weight, first_member, end_member);
    if (step < 1) throw std::invalid_argument("step must be at least 1: got " + std::to_string(step));
    constexpr double beta1 = 0.9, beta2 = 0.999;
    const size_t at = offset(weight) + first_member * row(weight), n = (end_member - first_member) * row(weight);
    kernels().adam(weights_.data() + at, total_.data() + at, means_.data() + at, squares_.data() + at, n,
                   {learning_rate, decay, decoupled_decay, beta1, beta2, 1 - std::pow(beta1, step),
                    1 - std::pow(beta2, step), 1e-8f});
}

void Trainer::sgd(int weight, int first_member, int end_member, float learning_rate, float decay) {
    check(weight, first_member, end_member);
    const size_t at = offset(weight) + first_member * row(weight), n = (end_member - first_member) * row(weight);
    kernels().sgd(weights_.data() + at, total_.data() + at, n, learning_rate, decay);
}

float* Trainer::watched() {
    if (watched_.empty()) throw std::invalid_argument("watched is there after gradients(..., watch=True)");
    return watched_.data();
}

void Trainer::work(int job) {
    if (job < n_gradient_jobs_) return differentiate(job / n_parts_, job % n_parts_);
    const int piece = job - n_gradient_jobs_;
    fill(piece / n_pieces_, piece % n_pieces_);
}

void Trainer::differentiate(int member, int part) {
    const size_t start = size_t(batch) * part / n_parts_, end = size_t(batch) * (part + 1) / n_parts_;
    const size_t at = size_t(member) * batch + start;
    float* out = n_parts_ > 1 ? parts_.data() + part * whole_ : total_.data();
    const auto of = [&](auto* stack, int weight) { return stack + offset(weight) + member * row(weight); };
    const float* weights = weights_.data();
    float* watched = watch_ ? watched_parts_.data() + (member * n_parts_ + part) * Watched::size(sizes) : nullptr;
    Gradient* gradient = sizes.reduced ? kernels().reduced_gradient : kernels().gradient;
    check_tokens(tokens() + at * sizes.n_ctx, (end - start) * sizes.n_ctx, sizes.n_tok);
    part_losses_[member * n_parts_ + part] =
        gradient(sizes, tokens() + at * sizes.n_ctx, targets() + at * sizes.n_tok, int(end - start),
                 {of(weights, 0), of(weights, 1), of(weights, 2)}, {of(out, 0), of(out, 1), of(out, 2)},
                 Watched::in(watched, sizes), 1.0f / batch);
}

void Trainer::fill(int member, int piece) {
    const int start = piece * DRAWN_AT_ONCE, n = std::min(DRAWN_AT_ONCE, batch - start);
    const size_t at = size_t(member) * batch + start;
    kernels().sample(*draws_[member].plan, draws_[member].key, first_ + start, n, next_tokens() + at * sizes.n_ctx,
                     next_targets() + at * sizes.n_tok);
}
