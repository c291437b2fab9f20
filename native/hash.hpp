// PrefixHash, natively. The specification is the docstring of warmroute/core/hashing.py; this is its fast form.
//
// Pure C++: nothing here knows Python, so the index can hash what it stores with the same few functions.
//
// The work per block of 16 tokens is four independent multiplications (the digest) and one that waits for the block
// before (the chain): out-of-order cores overlap the digests of several blocks with one chain.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace warmroute {

static_assert(std::endian::native == std::endian::little, "words are read as they lie in memory");

using PrefixHash = std::uint64_t;
using Token = std::uint32_t;

// Low half of the 128-bit product, exclusive-or the high half.
constexpr std::uint64_t mum(std::uint64_t a, std::uint64_t b) noexcept {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

// The splitmix64 finaliser.
constexpr std::uint64_t mix(std::uint64_t x) noexcept {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

// The j-th number of the stream of constants; negative numbers wrap round.
constexpr std::uint64_t secret(std::uint64_t j) noexcept { return mix(j * 0x9E3779B97F4A7C15); }

inline constexpr PrefixHash root = secret(std::uint64_t{0} - 1);
inline constexpr std::uint64_t parent_secret = secret(std::uint64_t{0} - 2);
inline constexpr std::uint64_t block_secret = secret(std::uint64_t{0} - 3);
inline constexpr PrefixHash extra_root = secret(std::uint64_t{0} - 4);

// The secret of word j, bits 63 and 31 set: no word of token ids below 2^31 makes it zero.
constexpr std::uint64_t position_secret(std::size_t j) noexcept {
    return secret(j + 1) | (std::uint64_t{1} << 63) | (std::uint64_t{1} << 31);
}

inline constexpr std::size_t tokens_per_pair = 4;
inline constexpr std::size_t tokens_usual = 16;  // in a block of vLLM
inline constexpr std::size_t tabled_words = 512;  // blocks of up to 1024 tokens: engines use 16 to some hundreds

inline constexpr auto position_secrets = [] {
    std::array<std::uint64_t, tabled_words> table{};
    for (std::size_t j = 0; j < tabled_words; ++j) table[j] = position_secret(j);
    return table;
}();

// The part of a block's digest that comes from its words `start` and on, two at a time; `secret_of(j)` is the secret of
// word j. `bytes` are the tokens from there on.
template <class SecretOf>
std::uint64_t digest_words(const unsigned char* bytes, std::size_t start, std::size_t count, SecretOf secret_of) noexcept {
    std::uint64_t sum = 0;
    std::size_t j = start;
    std::array<std::uint64_t, 2> word;
    for (; count >= tokens_per_pair; count -= tokens_per_pair, j += 2, bytes += sizeof word) {
        std::memcpy(word.data(), bytes, sizeof word);
        sum += mum(word[0] ^ secret_of(j), word[1] ^ secret_of(j + 1));
    }
    if (count == 0) return sum;
    word = {};
    std::memcpy(word.data(), bytes, count * sizeof(Token));
    return sum + mum(word[0] ^ secret_of(j), word[1] ^ secret_of(j + 1));
}

// Content digest of one block of `count` tokens; `tokens` need not be aligned.
inline std::uint64_t block_digest(const void* tokens, std::size_t count) noexcept {
    const auto* bytes = static_cast<const unsigned char*>(tokens);
    const auto tabled = [](std::size_t j) { return position_secrets[j]; };
    if (count == tokens_usual) return mix(tokens_usual) + digest_words(bytes, 0, tokens_usual, tabled);  // without a loop
    const std::size_t near = std::min(count, tabled_words * 2);
    std::uint64_t sum = mix(count) + digest_words(bytes, 0, near, tabled);
    if (count > near) sum += digest_words(bytes + near * sizeof(Token), tabled_words, count - near, position_secret);
    return sum;
}

// The prefix that ends with a block of this digest and extra, after `parent`.
constexpr PrefixHash chain(PrefixHash parent, std::uint64_t digest, std::uint64_t extra) noexcept {
    return mum(parent ^ parent_secret, (digest + extra) ^ block_secret);
}

// What else makes a block's content distinct, as one number: 0 if nothing was added.
class ExtraDigest {
  public:
    // Tags: 'L' for the LoRA name, then for each key 'S' (text, as UTF-8) or 'B' (bytes).
    void add(char tag, std::string_view content) {
        std::array<char, sizeof(std::uint64_t)> size{};
        const std::uint64_t bytes = content.size();
        std::memcpy(size.data(), &bytes, sizeof bytes);
        framed_.push_back(tag);
        framed_.append(size.data(), size.size()).append(content);
    }

    std::uint64_t value() {
        if (framed_.empty()) return 0;
        framed_.resize((framed_.size() + sizeof(Token) - 1) / sizeof(Token) * sizeof(Token));
        const std::uint64_t digest = chain(extra_root, block_digest(framed_.data(), framed_.size() / sizeof(Token)), 0);
        return digest == 0 ? 1 : digest;
    }

  private:
    std::string framed_;
};

}  // namespace warmroute
