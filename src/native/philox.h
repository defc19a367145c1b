// Philox4x32-7 (Salmon, Moraes, Dror & Shaw, SC 2011): four random words for a counter of four words and a key of two.
//
// A sequence's numbers have the counters (entry, attempt, place in the stream, purpose): causal_circuits/tasks/draws.py.
#pragma once
#include "simd.h"

namespace KERNELS_NAMESPACE {

constexpr int ROUNDS = 7;
constexpr uint32_t MULTIPLIER_0 = 0xD2511F53, MULTIPLIER_1 = 0xCD9E8D57;

struct Schedule {  // the two words that each round adds
    uint32_t words[ROUNDS][2];
    explicit Schedule(const uint32_t key[2]) {
        for (uint32_t round = 0; round < ROUNDS; ++round) {
            words[round][0] = key[0] + round * 0x9E3779B9u;
            words[round][1] = key[1] + round * 0xBB67AE85u;
        }
    }
};

struct Counter {
    Words c0, c1, c2, c3;
};

inline Counter rounds(Counter c, const Schedule& schedule, int first) {
    for (int round = first; round < ROUNDS; ++round) {
        const WideProduct p0 = multiply_wide(c.c0, MULTIPLIER_0), p1 = multiply_wide(c.c2, MULTIPLIER_1);
        c = {p1.high ^ c.c1 ^ schedule.words[round][0], p1.low, p0.high ^ c.c3 ^ schedule.words[round][1], p0.low};
    }
    return c;
}

inline Counter random_words(Counter c, const Schedule& schedule) { return rounds(c, schedule, 0); }

// The numbers of the first attempt for LANES neighbouring places. Of the first two rounds one half is the same for
// every entry and the other the same for every lane: done here once, and with scalars below (else the sampler has .94
// to .98 times its rate).
class Stream {
  public:
    Stream(const Schedule& of, uint32_t place, uint32_t for_what) : schedule(of), purpose(for_what) {
        const auto& words = schedule.words;
        const WideProduct p1 = multiply_wide(Words(lane_numbers()) + place, MULTIPLIER_1);
        const WideProduct p0 = multiply_wide(p1.high ^ words[0][0], MULTIPLIER_0);
        after_two = {p1.low ^ words[1][0], Words{}, p0.high ^ words[1][1], p0.low};
    }
    Counter operator()(uint32_t entry) const {
        const uint64_t p0 = uint64_t(entry) * MULTIPLIER_0;
        const uint64_t p1 = (uint32_t(p0 >> 32) ^ purpose ^ schedule.words[0][1]) * uint64_t(MULTIPLIER_1);
        return rounds({after_two.c0 ^ uint32_t(p1 >> 32), Words{} + uint32_t(p1), after_two.c2 ^ uint32_t(p0),
                       after_two.c3}, schedule, 2);
    }

  private:
    const Schedule& schedule;
    const uint32_t purpose;
    Counter after_two;
};

}  // namespace KERNELS_NAMESPACE
