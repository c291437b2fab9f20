// MessagePack, read value by value. What is not as the caller asks for it ends the whole reading: `Declined` is thrown.
//
// Lengths are checked against the bytes that are left before anything is done with them.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>

#include "hash.hpp"
#include "wire.hpp"
#include "wire_tokens.hpp"
#include "wire_tokens_wide.hpp"

namespace warmroute::wire {

struct Declined {};

// An integer of either sign: what it is modulo 2^64, and whether it is below zero.
struct Integer {
    std::uint64_t bits;
    bool negative;
};

// Strict, as Python's: no surrogates, no overlong forms, nothing above U+10FFFF.
bool is_utf8(std::string_view text) noexcept;

class Reader {
  public:
    explicit Reader(Bytes bytes) : at_(bytes.data()), end_(at_ + bytes.size()) {}

    std::size_t left() const noexcept { return static_cast<std::size_t>(end_ - at_); }

    std::uint8_t peek() const {
        if (at_ == end_) throw Declined{};
        return *at_;
    }

    bool next_is_array() const { return is_array(peek()); }
    bool next_is_map() const { return is_map(peek()); }
    bool next_is_text() const { return is_text(peek()); }
    bool next_is_binary() const { return is_binary(peek()); }

    // Whether nil came, which is then behind us.
    bool nil() {
        if (peek() != 0xC0) return false;
        ++at_;
        return true;
    }

    // The number of elements, of which each has at least one byte.
    std::size_t array() {
        const std::uint8_t first = take();
        const std::uint64_t count = first == 0xDC   ? big_endian<2>()
                                    : first == 0xDD ? big_endian<4>()
                                                    : fixed(first, 0x90, 0x0F);
        return affordable(count, 1);
    }

    // The number of pairs.
    std::size_t map() {
        const std::uint8_t first = take();
        const std::uint64_t count = first == 0xDE   ? big_endian<2>()
                                    : first == 0xDF ? big_endian<4>()
                                                    : fixed(first, 0x80, 0x0F);
        return affordable(count, 2);
    }

    std::string_view text() {
        const std::string_view bytes = name();
        if (!is_utf8(bytes)) throw Declined{};
        return bytes;
    }

    // Text that is only compared with names that are known: it need not be UTF-8.
    std::string_view name() {
        const std::uint8_t first = take();
        switch (first) {
            case 0xD9: return span(big_endian<1>());
            case 0xDA: return span(big_endian<2>());
            case 0xDB: return span(big_endian<4>());
            default: return span(fixed(first, 0xA0, 0x1F));
        }
    }

    std::string_view binary() {
        switch (take()) {
            case 0xC4: return span(big_endian<1>());
            case 0xC5: return span(big_endian<2>());
            case 0xC6: return span(big_endian<4>());
            default: throw Declined{};
        }
    }

    double floating() {
        switch (take()) {
            case 0xCA: return std::bit_cast<float>(static_cast<std::uint32_t>(big_endian<4>()));
            case 0xCB: return std::bit_cast<double>(big_endian<8>());
            default: throw Declined{};
        }
    }

    Integer integer() {
        const std::uint8_t first = take();
        if (first < 0x80) return {first, false};
        if (first >= 0xE0) return extended(static_cast<std::int8_t>(first));
        switch (first) {
            case 0xCC: return {big_endian<1>(), false};
            case 0xCD: return {big_endian<2>(), false};
            case 0xCE: return {big_endian<4>(), false};
            case 0xCF: return {big_endian<8>(), false};
            case 0xD0: return extended(static_cast<std::int8_t>(big_endian<1>()));
            case 0xD1: return extended(static_cast<std::int16_t>(big_endian<2>()));
            case 0xD2: return extended(static_cast<std::int32_t>(big_endian<4>()));
            case 0xD3: return extended(static_cast<std::int64_t>(big_endian<8>()));
            default: throw Declined{};
        }
    }

    std::uint64_t integer(std::uint64_t min, std::uint64_t max) {
        const Integer value = integer();
        if (value.negative || value.bits < min || value.bits > max) throw Declined{};
        return value.bits;
    }

    // At most `count` integers of the longest form, which hashes mostly have; how many there were.
    std::size_t long_integers(std::uint64_t* out, std::size_t count) noexcept {
        constexpr std::size_t bytes = 1 + sizeof *out;
        std::size_t done = 0;
        for (count = std::min(count, left() / bytes); done < count && *at_ == 0xCF; ++done, at_ += bytes) {
            std::uint64_t value;
            std::memcpy(&value, at_ + 1, sizeof value);
            out[done] = __builtin_bswap64(value);
        }
        return done;
    }

    // `count` token ids, to where there is room for `tokens_wide_room` more. `read(end)` is called now and then when there are
    // more.
    template <class Read>
    void tokens(Token* out, std::size_t count, Read read) {
        Token* const out_end = out + count;
        while (reads_tokens_wide && out != out_end) {
            const TokensRead done = read_tokens_wide(at_, end_, out, std::min(left_of(out, out_end), tokens_wide_max));
            if (done.count == 0) break;
            at_ = done.at;
            out += done.count;
            read(out);
        }
        TokenRun run;
        while (left_of(out, out_end) >= TokenRun::bytes_min && left() >= TokenRun::bytes_min + token_window_bytes) {
            const std::uint8_t* const end = run.read(at_, left() - token_window_bytes, out, left_of(out, out_end));
            if (end == at_) throw Declined{};
            at_ = end;
            read(out);
        }
        TokenWalk walk{at_, left() < token_window_bytes ? at_ : end_ - token_window_bytes + 1, out};
        while (walk.out != out_end && !walk.ended()) walk.step();
        at_ = walk.at;
        for (out = walk.out; out != out_end; ++out) {
            *out = static_cast<Token>(integer(0, std::numeric_limits<Token>::max()));
        }
        read(out);
    }

    // One value of any kind that nobody asks for.
    void skip(int depth = 0) {
        if (depth > depth_max) throw Declined{};
        const std::uint8_t first = peek();
        if (is_text(first)) {
            name();
        } else if (is_binary(first)) {
            binary();
        } else if (is_array(first)) {
            for (std::size_t n = array(); n > 0; --n) skip(depth + 1);
        } else if (is_map(first)) {
            for (std::size_t n = 2 * map(); n > 0; --n) skip(depth + 1);
        } else {
            skip_scalar();
        }
    }

    // One value of a kind that has no parts and no text: nil, a boolean, a number.
    void skip_scalar() {
        const std::uint8_t first = peek();
        if (first == 0xC0 || first == 0xC2 || first == 0xC3) {
            ++at_;
        } else if (first == 0xCA || first == 0xCB) {
            floating();
        } else {
            integer();
        }
    }

  private:
    static std::size_t left_of(const Token* out, const Token* end) noexcept { return static_cast<std::size_t>(end - out); }

    static constexpr std::size_t tokens_wide_max = 2048;  // so that they are still near when `read` reads them
    static constexpr int depth_max = 32;  // far below what any reader of them allows, far above what engines send

    static bool is_array(std::uint8_t first) noexcept { return first >> 4 == 0x9 || first == 0xDC || first == 0xDD; }
    static bool is_map(std::uint8_t first) noexcept { return first >> 4 == 0x8 || first == 0xDE || first == 0xDF; }
    static bool is_text(std::uint8_t first) noexcept { return first >> 5 == 0x5 || (first >= 0xD9 && first <= 0xDB); }
    static bool is_binary(std::uint8_t first) noexcept { return first >= 0xC4 && first <= 0xC6; }

    static Integer extended(std::int64_t value) noexcept { return {static_cast<std::uint64_t>(value), value < 0}; }

    static std::uint64_t fixed(std::uint8_t first, std::uint8_t tag, std::uint8_t mask) {
        if ((first & static_cast<std::uint8_t>(~mask)) != tag) throw Declined{};
        return first & mask;
    }

    std::uint8_t take() {
        const std::uint8_t first = peek();
        ++at_;
        return first;
    }

    template <std::size_t count>
    std::uint64_t big_endian() {
        if (left() < count) throw Declined{};
        std::uint64_t value = 0;
        for (std::size_t i = 0; i < count; ++i) value = value << 8 | at_[i];
        at_ += count;
        return value;
    }

    std::size_t affordable(std::uint64_t count, std::size_t bytes_each) const {
        if (count > left() / bytes_each) throw Declined{};
        return static_cast<std::size_t>(count);
    }

    std::string_view span(std::uint64_t size) {
        if (size > left()) throw Declined{};
        const std::string_view bytes(reinterpret_cast<const char*>(at_), static_cast<std::size_t>(size));
        at_ += size;
        return bytes;
    }

    const std::uint8_t* at_;
    const std::uint8_t* end_;
};

}  // namespace warmroute::wire
