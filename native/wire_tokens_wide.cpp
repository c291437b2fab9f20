#include "wire_tokens_wide.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>

namespace warmroute::wire {
namespace {

#define WARMROUTE_WIDE __attribute__((target("avx512f,avx512bw,avx512vbmi,avx512vbmi2,bmi,bmi2,popcnt,lzcnt")))

constexpr std::size_t window_bytes = 64;
constexpr std::size_t tail_bytes_max = 4;  // of a token behind its first byte

// One bit for each byte of a window. What begins with CC, CD and CE has 1, 2 and 4 bytes more; they may look like anything.
struct Markers {
    std::uint64_t any;
    std::uint64_t two_more;  // at least
    std::uint64_t four_more;

    // The bytes that these markers among them cover.
    std::uint64_t covered(std::uint64_t chosen) const noexcept {
        const std::uint64_t four = chosen & four_more;
        return chosen << 1 | (chosen & two_more) << 2 | four << 3 | four << 4;
    }
    // Those that are true, as no true one covers them. What none at all covers is true; what such a one covers is not.
    std::uint64_t truth() const noexcept {
        std::uint64_t left = any & ~covered(any & ~covered(any));
        while ((left & covered(left)) != 0) [[unlikely]] left &= ~covered(left & ~covered(left));
        return left;
    }
};

constexpr std::uint64_t lowest(std::size_t count) noexcept { return ~std::uint64_t{0} >> (64 - count); }

struct alignas(window_bytes) Numbers : std::array<std::uint8_t, window_bytes> {};

// first, first + 1, ..., each `times` times.
constexpr Numbers counting(std::size_t first, std::size_t times) noexcept {
    Numbers numbers{};
    for (std::size_t i = 0; i < window_bytes; ++i) numbers[i] = static_cast<std::uint8_t>(first + i / times);
    return numbers;
}

// By place: see below.
constexpr Numbers small_recipes = counting(3 << 6, 1);
constexpr Numbers cc_recipes = counting((3 << 6) + 1, 1);
constexpr Numbers cd_recipes = counting((2 << 6) + 1, 1);
constexpr Numbers ce_recipes = counting(1, 1);
constexpr std::array<Numbers, 4> groups = {counting(0, 4), counting(16, 4), counting(32, 4), counting(48, 4)};

}  // namespace

const bool reads_tokens_wide = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi") &&
                               __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("bmi2");

// A token is the four bytes from the one behind its first on, as a big-endian number, without what is behind it: its
// *recipe* is where they begin (6 bits), and how many bytes are too many (2 bits). Of a small one, all is in its first byte.
WARMROUTE_WIDE TokensRead read_tokens_wide(const std::uint8_t* at, const std::uint8_t* end, Token* out,
                                           std::size_t count) noexcept {
    const __m512i backwards = _mm512_set1_epi32(0x00010203);
    std::size_t done = 0;
    std::uint64_t carried = 0;  // bytes of the window that the token before it has
    while (done < count && end - at > static_cast<std::ptrdiff_t>(tail_bytes_max)) {
        const std::size_t bytes = std::min(window_bytes, static_cast<std::size_t>(end - at));
        const std::size_t stride = bytes - tail_bytes_max;
        const __m512i window = _mm512_maskz_loadu_epi8(lowest(bytes), at);
        const std::uint64_t high = _mm512_movepi8_mask(window);
        const std::uint64_t cc = _mm512_cmpeq_epi8_mask(window, _mm512_set1_epi8(static_cast<char>(0xCC)));
        const std::uint64_t cd = _mm512_cmpeq_epi8_mask(window, _mm512_set1_epi8(static_cast<char>(0xCD)));
        const std::uint64_t ce = _mm512_cmpeq_epi8_mask(window, _mm512_set1_epi8(static_cast<char>(0xCE)));
        const std::uint64_t own = ~carried & lowest(stride);
        const Markers markers{(cc | cd | ce) & own, (cd | ce) & own, ce & own};
        const std::uint64_t truth = markers.truth();
        const std::uint64_t covered = markers.covered(truth) | carried;
        const std::uint64_t starts = own & ~covered;
        const std::uint64_t odd = starts & high & ~truth;
        // Only what is among `starts` matters.
        __m512i recipes = _mm512_mask_mov_epi8(_mm512_load_si512(&small_recipes), high, _mm512_load_si512(&cc_recipes));
        recipes = _mm512_mask_mov_epi8(recipes, cd, _mm512_load_si512(&cd_recipes));
        recipes = _mm512_mask_mov_epi8(recipes, ce, _mm512_load_si512(&ce_recipes));
        recipes = _mm512_maskz_compress_epi8(starts, recipes);
        const auto take = [&](std::size_t group) WARMROUTE_WIDE {
            const __m512i each = _mm512_permutexvar_epi8(_mm512_load_si512(&groups[group]), recipes);
            const __m512i bits = _mm512_permutexvar_epi8(_mm512_add_epi8(each, backwards), window);
            const __m512i excess = _mm512_slli_epi32(_mm512_srli_epi32(each, 30), 3);
            _mm512_storeu_si512(out + done + 16 * group, _mm512_srlv_epi32(bits, excess));
        };
        take(0);
        take(1);
        const auto found = static_cast<std::size_t>(std::popcount(starts));
        if (found > 32) {
            take(2);
            take(3);
        }
        carried = covered >> stride;
        if (odd == 0 && found <= count - done) [[likely]] {
            done += found;
            at += stride;
            continue;
        }
        const std::uint64_t before_odd = odd == 0 ? starts : starts & ((odd & (~odd + 1)) - 1);
        const std::size_t good = std::min(static_cast<std::size_t>(std::popcount(before_odd)), count - done);
        return {at + std::countr_zero(_pdep_u64(std::uint64_t{1} << good, starts)), done + good};
    }
    return {at + std::popcount(carried), done};
}

}  // namespace warmroute::wire

#else

namespace warmroute::wire {

const bool reads_tokens_wide = false;

TokensRead read_tokens_wide(const std::uint8_t* at, const std::uint8_t*, Token*, std::size_t) noexcept { return {at, 0}; }

}  // namespace warmroute::wire

#endif
