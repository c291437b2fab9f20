// Any bytes to the wire decoder: it never reads out of bounds, keeps its memory in proportion, and what it says holds
// together. native/fuzz/run.py builds and runs it; `fuzz_wire_seeds.py` writes what to begin with.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <variant>
#include <vector>

#include "wire.hpp"
#include "wire_tokens.hpp"
#include "wire_tokens_wide.hpp"

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

// Whatever the processor, both ways to read many token ids find what reading one after the other finds, from anywhere.
void read_tokens_alike(const std::vector<std::uint8_t>& bytes, std::size_t from) {
    using namespace warmroute;
    const std::uint8_t* const at = bytes.data() + from;
    const std::uint8_t* const end = bytes.data() + bytes.size();
    std::vector<Token> expected;
    std::vector<const std::uint8_t*> ends = {at};
    for (const std::uint8_t* next = at; next != end;) {
        const std::size_t more = *next < 0x80 ? 0 : *next == 0xCC ? 1 : *next == 0xCD ? 2 : *next == 0xCE ? 4 : bytes.size();
        if (more >= static_cast<std::size_t>(end - next)) break;
        Token token = more == 0 ? *next : 0;
        for (std::size_t i = 1; i <= more; ++i) token = token << 8 | next[i];
        expected.push_back(token);
        ends.push_back(next += more + 1);
    }
    std::vector<Token> out(bytes.size() + wire::tokens_wide_room);
    const auto require_alike = [&](std::size_t count, const std::uint8_t* stopped) {
        require(count <= expected.size() && std::equal(out.data(), out.data() + count, expected.data()));
        require(stopped == ends[count]);
    };
    for (const std::size_t count : {bytes.size(), expected.size(), expected.size() / 2}) {
        if (!wire::reads_tokens_wide) break;
        const wire::TokensRead read = wire::read_tokens_wide(at, end, out.data(), count);
        require_alike(read.count, read.at);
        require(read.count == std::min(count, expected.size()) || end - read.at <= 8 || end - ends.back() <= 4);
    }
    if (static_cast<std::size_t>(end - at) < wire::TokenRun::bytes_min + wire::token_window_bytes) return;
    wire::TokenRun run;
    Token* last = out.data();
    const auto* const stopped = run.read(at, static_cast<std::size_t>(end - at) - wire::token_window_bytes, last, bytes.size());
    require_alike(static_cast<std::size_t>(last - out.data()), stopped);
}

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
    if (size != 0) read_tokens_alike(exact, exact[size / 2] * size / 256);
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
