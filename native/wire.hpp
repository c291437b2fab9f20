// One published payload -> one EventBatch, natively: the fast form of warmroute/core/wire.
//
// The Python dialects say what bytes mean. This reads only what they would read without a doubt: well-formed events in
// either form of any release. Whatever else comes makes it decline the whole payload, which is then read in Python;
// so there is one place that judges malformed events, and a test holds both readers to equal results.
//
// Pure C++: nothing here knows Python. Bytes are never read out of bounds and memory stays in proportion to them,
// whatever they are; native/fuzz/fuzz_wire.cpp holds it to that.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "event.hpp"

namespace warmroute {

using Bytes = std::span<const std::uint8_t>;

// See warmroute.core.wire.events.EventBatch. Every event of it could be read.
struct EventBatch {
    double ts = 0;
    std::uint64_t rank = 0;
    std::uint64_t mark = 0;           // payload_mark of the bytes that it was read from
    std::uint64_t unknown_media = 0;  // events on a medium that no dialect knows, taken as storage
    bool has_clear = false;           // whether one of the events is Cleared
    std::vector<Event> events;
};

// A number for the bytes of a payload: tells batches apart, and is equal for repetitions.
std::uint64_t payload_mark(Bytes payload) noexcept;

// What the payload says, or nothing if that is for Python to judge. Throws only std::bad_alloc.
std::optional<EventBatch> decode_payload(Bytes payload);

}  // namespace warmroute
