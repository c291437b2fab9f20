// Token ids as MessagePack integers, 64 bytes at a time, where the processor can: x86-64 with AVX-512 VBMI2.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hash.hpp"

namespace warmroute::wire {

struct TokensRead {
    const std::uint8_t* at;  // behind the last one
    std::size_t count;
};

// Whether this processor can.
extern const bool reads_tokens_wide;

// Room that it needs behind the tokens that it is asked for.
inline constexpr std::size_t tokens_wide_room = 64;

// At most `count` ids from [at, end). It stops early before what is no unsigned integer of at most 32 bits, and some bytes
// before the end. Only if `reads_tokens_wide`.
TokensRead read_tokens_wide(const std::uint8_t* at, const std::uint8_t* end, Token* out, std::size_t count) noexcept;

}  // namespace warmroute::wire
