// Vectors of float32 and int32 in the compilers' own vector extensions, and what is done with them lane by lane.
//
// Every kernel source is compiled once for each instruction set; LANES is 16 with AVX-512, 8 with AVX2, else 4
// (SSE2, NEON). Only look-ups in a table need instructions that the extensions do not reach. Plain loops over a dozen
// arrays become vector code only where the compiler can prove that none overlaps.
#pragma once
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef KERNELS_NAMESPACE
#define KERNELS_NAMESPACE baseline
#endif

namespace KERNELS_NAMESPACE {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

constexpr float INF = std::numeric_limits<float>::infinity();

// n rounded up to whole vectors.
inline int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

template <class V = Floats, class T>
inline V load(const T* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
template <class V, class T>
inline void store(T* to, V value) {
    std::memcpy(to, &value, sizeof value);
}
inline void add_to(float* to, Floats value) { store(to, load(to) + value); }

inline Floats splat(float value) { return Floats{} + value; }
inline Ints splat_ints(int32_t value) { return Ints{} + value; }
inline Ints lane_numbers() {
    Ints numbers;
    for (int lane = 0; lane < LANES; ++lane) numbers[lane] = lane;
    return numbers;
}

template <class To, class From>
inline To bits_as(From from) {
    To to;
    static_assert(sizeof to == sizeof from);
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// Lane by lane: a where the mask is set, b elsewhere. A comparison of vectors is such a mask.
inline Floats select(Ints mask, Floats a, Floats b) { return mask ? a : b; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// (GCC makes shuffles of these loops only if asked for them: else the sampler has .55 to .65 times its rate.)
// Lanes of a pair of vectors in any order: lane i takes number index(i) of a, or index(i) - LANES of b.
template <class Index>
[[gnu::always_inline]] inline Floats pick(Floats a, Floats b, Index index) {
#if defined(__clang__)
    Floats picked;
    for (int i = 0; i < LANES; ++i) picked[i] = index(i) < LANES ? a[index(i)] : b[index(i) - LANES];
    return picked;
#else
    Ints lanes;
    for (int i = 0; i < LANES; ++i) lanes[i] = index(i);
    return __builtin_shuffle(a, b, lanes);
#endif
}

// Lane i takes what lane i ^ BIT holds.
template <int BIT>
inline Floats swap_lanes(Floats value) {
    return pick(value, value, [](int i) { return i ^ BIT; });
}

template <int BIT = LANES / 2>
inline float sum(Floats value) {
    if constexpr (BIT == 0)
        return value[0];
    else
        return sum<BIT / 2>(value + swap_lanes<BIT>(value));
}
template <int BIT = LANES / 2>
inline float largest(Floats value) {
    if constexpr (BIT == 0)
        return value[0];
    else
        return largest<BIT / 2>(larger(value, swap_lanes<BIT>(value)));
}

// LANES rows of LANES numbers, turned into columns: first within blocks of four, by instructions that do not cross these,
// then block by block.
template <int BIT = 4>
[[gnu::always_inline]] inline void transpose_blocks(Floats (&rows)[LANES]) {
    if constexpr (BIT < LANES) {
        for (int k = 0; k < LANES; ++k) {
            if (k & BIT) continue;
            const Floats low = rows[k], high = rows[k + BIT];
            rows[k] = pick(low, high, [](int i) { return i & BIT ? LANES + i - BIT : i; });
            rows[k + BIT] = pick(low, high, [](int i) { return i & BIT ? LANES + i : i + BIT; });
        }
        transpose_blocks<2 * BIT>(rows);
    }
}
[[gnu::always_inline]] inline void transpose(Floats (&rows)[LANES]) {
    const auto low_singles = [](int i) { return (i & 1) * LANES + (i & ~3) + (i & 2) / 2; };
    const auto high_singles = [=](int i) { return low_singles(i) + 2; };
    const auto low_pairs = [](int i) { return (i & 2) / 2 * LANES + (i & ~3) + (i & 1); };
    const auto high_pairs = [=](int i) { return low_pairs(i) + 2; };
    for (int k = 0; k < LANES; k += 4) {
        const Floats a = pick(rows[k], rows[k + 1], low_singles), b = pick(rows[k], rows[k + 1], high_singles);
        const Floats c = pick(rows[k + 2], rows[k + 3], low_singles), d = pick(rows[k + 2], rows[k + 3], high_singles);
        rows[k] = pick(a, c, low_pairs), rows[k + 1] = pick(a, c, high_pairs);
        rows[k + 2] = pick(b, d, low_pairs), rows[k + 3] = pick(b, d, high_pairs);
    }
    transpose_blocks(rows);
}

// The sums over the lanes of LANES vectors, which are used up: lane k is the sum of vector k. Neighbouring lanes of pairs
// are added up, within blocks of four; then neighbouring blocks.
[[gnu::always_inline]] inline Floats sums(Floats (&of)[LANES]) {
    const auto even = [](int i) { return (i & 2) / 2 * LANES + (i & ~3) + 2 * (i & 1); };
    const auto odd = [=](int i) { return even(i) + 1; };
    const auto even_blocks = [](int i) { return 2 * (i & ~3) + (i & 3); };
    const auto odd_blocks = [=](int i) { return even_blocks(i) + 4; };
    for (int n = LANES / 2; n > 0; n /= 2)
        for (int k = 0; k < n; ++k) {
            const Floats a = of[2 * k], b = of[2 * k + 1];
            of[k] =
                4 * n >= LANES ? pick(a, b, even) + pick(a, b, odd) : pick(a, b, even_blocks) + pick(a, b, odd_blocks);
        }
    return of[0];
}

// How long a table is that a look-up reads: one vector, two, or longer ones, which are read from memory. Without the
// second, the step has .86 times its rate at n_ctx 20, d_vocab 20, and .73 at n_ctx 100.
enum class Size { one_vector, two_vectors, any };

inline Floats gather(const float* table, Ints index) {
    Floats value;
    for (int lane = 0; lane < LANES; ++lane) value[lane] = table[index[lane]];
    return value;
}

inline Floats permute(Floats table, Ints index) {
#if defined(__AVX512F__)
    return Floats(_mm512_permutexvar_ps(__m512i(index), __m512(table)));
#elif defined(__AVX2__)
    return Floats(_mm256_permutevar8x32_ps(__m256(table), __m256i(index)));
#else
    float lanes[LANES];
    store(lanes, table);
    return gather(lanes, index & (LANES - 1));
#endif
}

inline Floats permute(Floats low, Floats high, Ints index) {
#if defined(__AVX512F__)
    return Floats(_mm512_permutex2var_ps(__m512(low), __m512i(index), __m512(high)));
#else
    return select(index < LANES, permute(low, index), permute(high, index));
#endif
}

// table[index] lane by lane, for a table of this size.
template <Size SIZE>
inline Floats look_up(const float* table, Ints index) {
    if constexpr (SIZE == Size::one_vector) return permute(load(table), index);
    if constexpr (SIZE == Size::two_vectors) return permute(load(table), load(table + LANES), index);
    return gather(table, index);
}

// The product, or the sum, of two tables, looked up.
template <Size SIZE, bool SUM>
inline Floats look_up(const float* a, const float* b, Ints index) {
    const auto joined = [](Floats x, Floats y) { return SUM ? x + y : x * y; };
    if constexpr (SIZE == Size::one_vector) return permute(joined(load(a), load(b)), index);
    if constexpr (SIZE == Size::two_vectors)
        return permute(joined(load(a), load(b)), joined(load(a + LANES), load(b + LANES)), index);
    return joined(gather(a, index), gather(b, index));
}

// e^x to 2e-7 relative for x <= 88; 0 below -87, NaN stays NaN.
// x = n ln 2 + r, a polynomial for e^r (coefficients: Cephes, expf) and 2^n from bits: adding `round` leaves n in the
// lowest bits of the sum.
inline Floats exp(Floats x) {
    constexpr float round = 12582912.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const Floats clamped = x < -87.0f ? splat(-87.0f) : x;
    const Floats rounded = clamped * 1.4426950408889634f + round;
    const Floats whole = rounded - round;
    const Floats r = (clamped - whole * ln2_high) - whole * ln2_low;
    Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.0f);
    return x < -87.0f ? Floats{} : p * bits_as<Floats>((bits_as<Ints>(rounded) + 127) << 23);
}

// The natural logarithm of positive normal numbers, to 1e-7.
// x = m 2^e with m in [1/sqrt 2, sqrt 2): subtracting the bits of 1/sqrt 2 leaves e on top; a polynomial for log m
// (coefficients: Cephes, logf).
inline Floats log(Floats x) {
    constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const Ints bits = bits_as<Ints>(x), exponent = (bits - 0x3f3504f3) >> 23;
    const Floats m = bits_as<Floats>(bits - (exponent << 23)) - 1.0f, e = __builtin_convertvector(exponent, Floats);
    constexpr float COEFFICIENTS[] = {1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                                      2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f};
    const Floats m2 = m * m;
    Floats p = m * 7.0376836292e-2f - 1.1514610310e-1f;
    for (const float coefficient : COEFFICIENTS) p = p * m + coefficient;
    return e * ln2_high + (m + (p * (m2 * m) + (m2 * -0.5f + e * ln2_low)));
}

inline Floats square_root(Floats x) {
    float lanes[LANES];
    store(lanes, x);
    for (float& lane : lanes) lane = __builtin_sqrtf(lane);
    return load(lanes);
}

// Random words as numbers in (0, 1): the upper 24 bits, at the middle of their interval.
inline Floats uniform(Words words) { return __builtin_convertvector(Ints(words >> 8), Floats) * 0x1p-24f + 0x1p-25f; }

// The lanes where a mask is set, as the bits of a number. Lane by lane, the sampler has .92 to .99 times its rate with
// AVX-512, .5 to .9 with AVX2.
inline unsigned bits_of(Ints mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(__m512i(mask));
#elif defined(__AVX2__)
    return unsigned(_mm256_movemask_ps(__m256(mask)));
#elif defined(__x86_64__)
    return unsigned(_mm_movemask_ps(__m128(mask)));
#else
    unsigned bits = 0;
    for (int lane = 0; lane < LANES; ++lane) bits |= unsigned(mask[lane] & 1) << lane;
    return bits;
#endif
}

// Writes the lanes where a mask is set, one after the other, and perhaps anything up to a vector behind; how many. Lane
// by lane, the sampler has .94 to .98 times its rate.
inline int store_chosen(int32_t* to, Ints values, Ints mask) {
#if defined(__AVX512F__)
    const unsigned chosen = bits_of(mask);
    store(to, Ints(_mm512_maskz_compress_epi32(__mmask16(chosen), __m512i(values))));
    return __builtin_popcount(chosen);
#else
    int n = 0;
    for (int lane = 0; lane < LANES; ++lane) {  // without a branch: which lanes are chosen cannot be predicted
        to[n] = values[lane];
        n -= mask[lane];
    }
    return n;
#endif
}

// Upper and lower halves of the 64-bit products of unsigned lanes with a number: even and odd lanes are multiplied apart.
// By the compiler's 64-bit vectors, the sampler has .8 to .9 times its rate with AVX-512, .6 with SSE2.
struct WideProduct {
    Words high, low;
};
inline WideProduct multiply_wide(Words a, uint32_t number) {
#if defined(__AVX512F__)
    const __m512i factor = _mm512_set1_epi64(number), odd_lanes = _mm512_srli_epi64(__m512i(a), 32);
    const __m512i even = _mm512_mul_epu32(__m512i(a), factor), odd = _mm512_mul_epu32(odd_lanes, factor);
    return {Words(_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB)),
            Words(_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA))};
#elif defined(__AVX2__)
    const __m256i factor = _mm256_set1_epi64x(number), odd_lanes = _mm256_srli_epi64(__m256i(a), 32);
    const __m256i even = _mm256_mul_epu32(__m256i(a), factor), odd = _mm256_mul_epu32(odd_lanes, factor);
    return {Words(_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA)),
            Words(_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA))};
#elif defined(__x86_64__)
    const __m128i factor = _mm_set1_epi64x(number), odd_lanes = _mm_srli_epi64(__m128i(a), 32);
    const __m128i even = _mm_mul_epu32(__m128i(a), factor), odd = _mm_mul_epu32(odd_lanes, factor);
    const __m128i first = _mm_unpacklo_epi32(even, odd), second = _mm_unpackhi_epi32(even, odd);  // low low high high
    return {Words(_mm_unpackhi_epi64(first, second)), Words(_mm_unpacklo_epi64(first, second))};
#elif defined(__aarch64__)
    const uint32x4_t words = uint32x4_t(a);
    const uint32x4_t first = vreinterpretq_u32_u64(vmull_n_u32(vget_low_u32(words), number));
    const uint32x4_t second = vreinterpretq_u32_u64(vmull_n_u32(vget_high_u32(words), number));
    return {Words(vuzp2q_u32(first, second)), Words(vuzp1q_u32(first, second))};
#else
    WideProduct product;
    for (int lane = 0; lane < LANES; ++lane) {
        const uint64_t both = uint64_t(a[lane]) * number;
        product.high[lane] = uint32_t(both >> 32), product.low[lane] = uint32_t(both);
    }
    return product;
#endif
}

// How many of LANES neighbours are not above a number.
inline int count_not_above(const float* row, float number) { return __builtin_popcount(bits_of(load(row) <= number)); }

}  // namespace KERNELS_NAMESPACE
