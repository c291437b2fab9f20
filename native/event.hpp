// What an engine announced, as arrays: where the wire decoder and the index meet.
//
// The decoder turns a payload's tokens into block digests at once, so no token ever reaches the index: a block is its
// engine's hash, and the number that `chain` needs to name its content.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace warmroute {

// Engine hashes of one event. Numbers in [0, 2^64), which nearly all engines publish, are kept as they are in `numbers`.
// If any hash of the event is of another kind (negative, longer than 64 bits, bytes), all are in `tagged` instead, one
// string each: 'u' and 8 bytes big-endian for [0, 2^64); 'n' and the two's complement, big-endian, of minimal length for
// other numbers; 'b' and the bytes for bytes. Equal hashes have equal forms: an index must not tell 'u' from a number.
struct Hashes {
    std::vector<std::uint64_t> numbers;
    std::vector<std::string> tagged;

    std::size_t size() const noexcept { return tagged.empty() ? numbers.size() : tagged.size(); }
};

enum class Medium : std::uint8_t { gpu = 0, cpu = 1, storage = 2 };

inline constexpr std::uint64_t no_window = 0;

// A chain of blocks that are now in the cache; see warmroute.core.wire.events.BlockStored.
struct Stored {
    Hashes hashes;
    Hashes parent;  // one hash, or none for the first block of a prompt
    // Per block: content digest plus extra digest, ready for `chain(parent, digest, 0)`. Empty: known by hash only.
    std::vector<std::uint64_t> digests;
    std::uint64_t block_size = 0;
    std::uint64_t window = no_window;  // in tokens, if the group is a sliding-window one
    std::uint64_t group = 0;
    Medium medium = Medium::gpu;
};

// One copy of each of these blocks has left the medium.
struct Removed {
    Hashes hashes;
    std::uint64_t group = 0;
    Medium medium = Medium::gpu;
};

struct Cleared {};

using Event = std::variant<Stored, Removed, Cleared>;

}  // namespace warmroute
