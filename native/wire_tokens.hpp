// Token ids as MessagePack integers -> 32-bit numbers: most of what engines publish, so most of what is read.
//
// Where an id ends is known only from its first byte, so each step of a walk through them waits for the one before. That
// wait is longer than the work, so several walks go side by side: a run of bytes is cut where ids seem to begin, and a
// walk is taken for true only if the one before it, that was found true, has ended exactly where it began.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hash.hpp"

namespace warmroute::wire {

// How a token id is written, by its first byte: where its bits are in the eight bytes from there, big-endian.
struct TokenForm {
    std::uint32_t mask = 0;
    std::uint8_t shift = 0;
    std::uint8_t bytes = 0;  // 0: this is no unsigned integer of at most 32 bits
};

inline constexpr std::size_t token_bytes_max = 5;
inline constexpr std::size_t token_window_bytes = 8;

inline constexpr auto token_forms = [] {
    std::array<TokenForm, 256> forms{};
    for (std::size_t first = 0; first < 0x80; ++first) forms[first] = {0x7F, 56, 1};
    forms[0xCC] = {0xFF, 48, 2};
    forms[0xCD] = {0xFFFF, 40, 3};
    forms[0xCE] = {0xFFFFFFFF, 24, 5};
    return forms;
}();

// One walk: it ends at a token that begins at `stop` or later, or at what is no token. Its steps have no branches.
struct TokenWalk {
    const std::uint8_t* at;
    const std::uint8_t* stop;
    Token* out;

    bool ended() const noexcept { return at >= stop || token_forms[*at].bytes == 0; }
    std::size_t steps_min() const noexcept { return at >= stop ? 0 : static_cast<std::size_t>(stop - at) / token_bytes_max; }
    void step() noexcept {
        std::uint64_t window;
        std::memcpy(&window, at, sizeof window);
        const TokenForm form = token_forms[*at];
        *out++ = static_cast<Token>(__builtin_bswap64(window) >> form.shift) & form.mask;
        at += form.bytes;
    }
};

class TokenRun {
  public:
    static constexpr std::size_t bytes_max = 1024;
    static constexpr std::size_t bytes_min = 256;  // shorter ones are not worth to be cut

    // Reads ids from `at` on to `out`, from at most `bytes` bytes: at least `bytes_min` of them, and `token_window_bytes`
    // after them can be read. Of `count`, at least `bytes_min`, it leaves some. Gives where it ended, which is where it
    // began only if no id is there; `out` is then behind what was read.
    const std::uint8_t* read(const std::uint8_t* at, std::size_t bytes, Token*& out, std::size_t count) noexcept {
        bytes = std::min(bytes, bytes_max);
        const auto cut = [&](std::size_t i) { return at + bytes * i / walks; };
        std::array<const std::uint8_t*, walks> starts;
        std::size_t count_walks = 0;
        for (std::size_t i = 0; i < walks; ++i, ++count_walks) {
            starts[i] = i == 0 ? at : likely_start(cut(i), cut(i) + bytes_min / walks / 2);
            if (starts[i] == nullptr) break;
            walk_[i] = {starts[i], cut(i + 1), tokens_[i].data()};
            if (i > 0) walk_[i - 1].stop = starts[i];
        }
        if (count_walks == walks) go_together();
        const std::uint8_t* end = at;
        for (std::size_t i = 0; i < count_walks && end == starts[i]; ++i) {
            TokenWalk& walk = walk_[i];
            while (!walk.ended()) walk.step();
            if (walk.at < walk.stop) {  // once more: while it went with others, it made steps where there is no token
                walk = {starts[i], walk.stop, tokens_[i].data()};
                while (!walk.ended()) walk.step();
            }
            const auto read = static_cast<std::size_t>(walk.out - tokens_[i].data());
            if (read > count) break;
            out = std::copy_n(tokens_[i].data(), read, out);
            count -= read;
            end = walk.at;
        }
        return end;
    }

  private:
    static constexpr std::size_t walks = 4;

    // The form says it for ids above 65535, whose high byte is zero as vocabularies are; for others the next one's does.
    static const std::uint8_t* likely_start(const std::uint8_t* from, const std::uint8_t* to) noexcept {
        for (; from != to; ++from) {
            if (from[0] == 0xCE && from[1] == 0) return from;
            if (from[0] == 0xCD && (from[3] == 0xCD || from[3] == 0xCE)) return from;
        }
        return nullptr;
    }

    void go_together() noexcept {
        std::array<TokenWalk, walks> walk = walk_;  // in registers
        while (true) {
            std::size_t steps = bytes_max;
            for (const TokenWalk& each : walk) steps = std::min(steps, each.ended() ? 0 : each.steps_min());
            if (steps == 0) break;
            for (; steps > 0; --steps) {
                for (TokenWalk& each : walk) each.step();
            }
        }
        walk_ = walk;
    }

    std::array<TokenWalk, walks> walk_;
    std::array<std::array<Token, bytes_max>, walks> tokens_;
};

}  // namespace warmroute::wire
