// Any bytes to the wire decoder: it never reads out of bounds, keeps its memory in proportion, and what it says holds
// together. native/fuzz/run.py builds and runs it; `fuzz_wire_seeds.py` writes what to begin with.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <variant>
#include <vector>

#include "wire.hpp"

namespace {

std::size_t allocated_max = 0;

void require(bool holds) {
    if (!holds) std::abort();
}

bool is_sound(const warmroute::Hashes& hashes) {
    if (!hashes.tagged.empty() && !hashes.numbers.empty()) return false;
    for (const std::string& tagged : hashes.tagged) {
        const char tag = tagged.empty() ? '\0' : tagged.front();
        const bool sized = tag == 'b' || (tag == 'u' && tagged.size() == 9) ||
                           (tag == 'n' && tagged.size() >= 2 && tagged.size() <= 9 && (tagged[1] & 0x80) != 0);
        if (!sized) return false;
    }
    return true;
}

struct Check {
    void operator()(const warmroute::Stored& event) const {
        require(is_sound(event.hashes) && is_sound(event.parent) && event.parent.size() <= 1);
        require(event.digests.empty() || event.digests.size() == event.hashes.size());
        require(event.block_size > 0);
    }
    void operator()(const warmroute::Removed& event) const { require(is_sound(event.hashes)); }
    void operator()(const warmroute::Cleared&) const {}
};

}  // namespace

void* operator new(std::size_t size) {
    allocated_max = size > allocated_max ? size : allocated_max;
    if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
    throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::vector<std::uint8_t> exact(data, data + size);
    allocated_max = 0;
    const auto batch = warmroute::decode_payload(exact);
    // The most that one byte can ask for: eight times a token, a key (a byte each), growing by doubling.
    require(allocated_max <= 64 * size + 4096);
    if (!batch) return 0;
    std::size_t clears = 0;
    for (const warmroute::Event& event : batch->events) {
        std::visit(Check{}, event);
        clears += std::holds_alternative<warmroute::Cleared>(event) ? 1 : 0;
    }
    require(batch->has_clear == (clears > 0));
    require(batch->unknown_media <= batch->events.size());
    require(batch->mark == warmroute::payload_mark(exact));
    require(!warmroute::decode_payload({exact.data(), size - 1}));  // nothing can be missing
    return 0;
}
