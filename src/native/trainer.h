// One or many models of the same sizes in training: their weights, gradients, optimisers' moments and batches, in stacks
// [member, ...]; a batch's gradient by all threads, while they draw the next.
#pragma once
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "kernels.h"
#include "sampler.h"
#include "workers.h"

struct Draws {  // of one member: its task and the key of its stream
    const SamplerPlan* plan;
    uint32_t key[2];
};

std::string described(Sizes);

class NotEnoughMemory : public std::bad_alloc {  // what was asked
  public:
    NotEnoughMemory(Sizes, int members, int batch);
    const char* what() const noexcept override { return what_.c_str(); }

  private:
    std::string what_;
};

// What does not fit in memory is a NotEnoughMemory; tokens outside the vocabulary, an std::invalid_argument. One thread
// at a time may use a trainer.
class Trainer {
  public:
    // Without draws, the caller fills the batches: `next_tokens` and `next_targets`, before each `gradients`.
    Trainer(Sizes, int members, int batch, int threads, std::vector<Draws>);
    virtual ~Trainer() = default;

    // Starts drawing the sequences first, first + 1, ... of every member's stream as the next batch.
    void draw(int64_t first);
    // Takes the next batch and differentiates the mean loss of every member; with draws, starts drawing the batch after
    // it, from place `then_first` of the streams. Returns the sum of all gradients, which is a number if they all are.
    float gradients(int64_t then_first, bool watch);
    // The gradients of the same batch again, for other weights.
    float gradients_again();

    // Ends the threads; jobs that have not begun are left.
    void close() { workers_.reset(); }

    // A step of an optimiser on a weight of some members; `step` counts from 1.
    void adam(int weight, int first_member, int end_member, double learning_rate, double decay, double decoupled_decay,
              int64_t step);
    void sgd(int weight, int first_member, int end_member, float learning_rate, float decay);
    void check(int weight, int first_member, int end_member) const;

    // Weight 0, 1, 2 is A1, A2, W_U. Rows of a stack are padded: member i begins at i * row(weight).
    size_t size(int weight) const { return sizes_of_[weight]; }
    size_t row(int weight) const { return rows_[weight]; }
    float* weights(int weight) { return weights_.data() + offset(weight); }
    float* gradients_of(int weight) { return total_.data() + offset(weight); }
    float* means(int weight) { return means_.data() + offset(weight); }
    float* squares(int weight) { return squares_.data() + offset(weight); }

    int32_t* tokens() { return tokens_[now_].data(); }  // [member, batch, n_ctx], of the last gradients
    float* targets() { return targets_[now_].data(); }  // [member, batch, n_tok]
    int32_t* next_tokens() { return tokens_[1 - now_].data(); }
    float* next_targets() { return targets_[1 - now_].data(); }
    double* losses() { return losses_.data(); }  // [member], of the last gradients
    float* watched();                            // [member, Watched::size], of the last gradients that were watched

    void work(int job);
    // Called now and then by the thread that waits for gradients; what it raises ends them.
    virtual void between_jobs() {}

    const Sizes sizes;
    const int members, batch;

  private:
    size_t offset(int weight) const { return offsets_[weight]; }
    Workers<Trainer>& workers();
    float differentiate_all(int n_draws);
    void differentiate(int member, int part);
    void fill(int member, int piece);

    const int n_parts_;   // of a member's batch: fixed, so that sums do not depend on the number of threads
    const int n_pieces_;  // of a member's batch, drawn in one go
    size_t sizes_of_[3], rows_[3], offsets_[3], whole_ = 0;
    std::vector<float> weights_, total_, means_, squares_, parts_, watched_, watched_parts_;
    std::vector<double> losses_, part_losses_;
    std::vector<int32_t> tokens_[2];
    std::vector<float> targets_[2];
    std::vector<Draws> draws_;
    int now_ = 0, n_gradient_jobs_ = 0;
    int64_t first_ = -1;  // of the batch that is drawn; before the first, -1
    bool watch_ = false;
    std::unique_ptr<Workers<Trainer>> workers_;
};
