// The Python face of the wire decoder. Only conversions live here; see _native.pyi for the contract.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>
#include <string>
#include <variant>

#include "wire.hpp"

namespace nb = nanobind;

namespace warmroute {
namespace {

// The bytes of any object that has contiguous ones, for as long as this lives.
class Payload {
  public:
    explicit Payload(nb::handle source) {
        if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
    }
    Payload(const Payload&) = delete;
    Payload& operator=(const Payload&) = delete;
    ~Payload() { PyBuffer_Release(&view_); }

    Bytes bytes() const noexcept {
        return {static_cast<const std::uint8_t*>(view_.buf), static_cast<std::size_t>(view_.len)};
    }

  private:
    Py_buffer view_{};
};

nb::object hash_of(const std::string& tagged) {
    const auto* content = reinterpret_cast<const unsigned char*>(tagged.data()) + 1;
    const std::size_t size = tagged.size() - 1;
    if (tagged.front() == 'b') return nb::bytes(content, size);
    const nb::handle number(reinterpret_cast<PyObject*>(&PyLong_Type));
    return number.attr("from_bytes")(nb::bytes(content, size), "big", nb::arg("signed") = tagged.front() == 'n');
}

nb::tuple hashes_of(const Hashes& hashes) {
    nb::list all;
    for (const std::uint64_t number : hashes.numbers) all.append(number);
    for (const std::string& tagged : hashes.tagged) all.append(hash_of(tagged));
    return nb::tuple(all);
}

struct EventAsTuple {
    nb::object operator()(const Stored& event) const {
        nb::list digests;
        for (const std::uint64_t digest : event.digests) digests.append(digest);
        const nb::tuple parent = hashes_of(event.parent);
        return nb::make_tuple("stored", hashes_of(event.hashes), nb::len(parent) > 0 ? parent[0] : nb::none(),
                              nb::tuple(digests), event.block_size,
                              event.window == no_window ? nb::none() : nb::cast(event.window), event.group,
                              static_cast<int>(event.medium));
    }
    nb::object operator()(const Removed& event) const {
        return nb::make_tuple("removed", hashes_of(event.hashes), event.group, static_cast<int>(event.medium));
    }
    nb::object operator()(const Cleared&) const { return nb::make_tuple("cleared"); }
};

nb::tuple to_python(const EventBatch& batch) {
    nb::list events;
    for (const Event& event : batch.events) events.append(std::visit(EventAsTuple{}, event));
    return nb::tuple(events);
}

}  // namespace

void bind_wire(nb::module_& module) {
    auto batch = nb::class_<EventBatch>(module, "EventBatch")
                     .def_ro("ts", &EventBatch::ts)
                     .def_ro("rank", &EventBatch::rank)
                     .def_ro("mark", &EventBatch::mark)
                     .def_ro("unknown_media", &EventBatch::unknown_media)
                     .def_ro("has_clear", &EventBatch::has_clear)
                     .def_prop_ro("n_events", [](const EventBatch& self) { return self.events.size(); })
                     .def("to_python", &to_python);
    batch.attr("rejected") = nb::tuple();
    module.def("decode_batch", [](nb::handle payload) { return decode_payload(Payload(payload).bytes()); },
               nb::arg("payload"));
    module.def("payload_mark", [](nb::handle payload) { return payload_mark(Payload(payload).bytes()); },
               nb::arg("payload"));
}

}  // namespace warmroute
