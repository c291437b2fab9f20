// The Python face of plain heads. Only conversions, and heads put together; see _native.pyi for the contract.

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "heads.hpp"

namespace nb = nanobind;

namespace warmroute {
namespace {

using heads::Kind;
using heads::Line;
using heads::Lines;
using heads::Text;

Text text_of(nb::handle bytes) {
    if (!PyBytes_Check(bytes.ptr())) throw nb::type_error("bytes are wanted");
    return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

nb::bytes bytes_of(Text text) { return nb::bytes(text.data(), text.size()); }

// Headers to set: a tuple of pairs of bytes, which stays the caller's while this lives.
class Own {
  public:
    explicit Own(nb::tuple headers) : headers_(std::move(headers)) {
        for (const nb::handle header : headers_) {
            if (!PyTuple_Check(header.ptr()) || PyTuple_GET_SIZE(header.ptr()) != 2) throw nb::type_error("pairs are wanted");
            size_ += part(header, 0).size() + 2 + part(header, 1).size() + 2;
        }
    }
    std::size_t size() const { return size_; }
    bool has(Text name) const {
        for (const nb::handle header : headers_)
            if (heads::equal_ignoring_case(part(header, 0), name)) return true;
        return false;
    }
    template <typename Out>
    void write(Out& out) const {
        for (const nb::handle header : headers_) {
            out.put(part(header, 0));
            out.put(": ");
            out.put(part(header, 1));
            out.put("\r\n");
        }
    }

  private:
    static Text part(nb::handle header, Py_ssize_t i) { return text_of(PyTuple_GET_ITEM(header.ptr(), i)); }

    nb::tuple headers_;
    std::size_t size_ = 0;
};

// Bytes that are written from the front; `room` is at least what will be.
class Message {
  public:
    explicit Message(std::size_t room) : bytes_(PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(room))) {
        if (bytes_ == nullptr) throw nb::python_error();
        next_ = PyBytes_AS_STRING(bytes_);
    }
    Message(const Message&) = delete;
    Message& operator=(const Message&) = delete;
    ~Message() { Py_XDECREF(bytes_); }

    void put(Text text) {
        std::memcpy(next_, text.data(), text.size());
        next_ += text.size();
    }
    nb::bytes take() {
        if (_PyBytes_Resize(&bytes_, next_ - PyBytes_AS_STRING(bytes_)) != 0) throw nb::python_error();
        return nb::steal<nb::bytes>(std::exchange(bytes_, nullptr));
    }

  private:
    PyObject* bytes_;
    char* next_;
};

// A request's head that is plain, as ports.RequestHead has it.
class PlainHead {
  public:
    PlainHead(nb::bytes raw, const heads::Request& request)
        : raw_(std::move(raw)), target_size_(request.target.size()), length_(request.length), names_(request.names) {}

    std::size_t end() const { return text_of(raw_).size(); }
    std::uint64_t length() const { return length_; }
    nb::bytes target() const { return bytes_of(text_of(raw_).substr(method_size, target_size_)); }

    nb::object header(nb::handle name) const {
        const Text wanted = text_of(name);
        if ((names_ & heads::mark_of(wanted)) == 0) return nb::none();
        Lines lines = all();
        for (Line line; lines.next(line) && !line.name.empty();)
            if (heads::equal_ignoring_case(line.name, wanted)) return bytes_of(line.value.substr(1));
        return nb::none();
    }

    nb::tuple headers() const {
        nb::list found;
        Lines lines = all();
        for (Line line; lines.next(line) && !line.name.empty();)
            found.append(nb::make_tuple(bytes_of(line.name), bytes_of(line.value.substr(1))));
        return nb::tuple(found);
    }

    // The same without headers of these names, and with that one.
    PlainHead replaced(nb::tuple names, nb::handle name, nb::handle value) const {
        const Text raw = text_of(raw_), new_name = text_of(name), new_value = text_of(value);
        Message out(raw.size() + new_name.size() + new_value.size() + 4);
        Lines lines = all();
        out.put(raw.substr(0, lines.at()));
        for (Line line; lines.next(line) && !line.name.empty();) {
            bool kept = true;
            for (const nb::handle each : names) kept = kept && !heads::equal_ignoring_case(text_of(each), line.name);
            if (kept) out.put(line.whole);
        }
        for (const Text part : {new_name, Text(": "), new_value, Text("\r\n\r\n")}) out.put(part);
        nb::bytes made = out.take();
        const auto request = heads::read_request(text_of(made));
        const bool one_line = new_name.find('\r') == Text::npos && new_value.find('\r') == Text::npos;
        if (!one_line || !request || request->end != text_of(made).size()) throw nb::value_error("not a header of a plain head");
        return PlainHead(std::move(made), *request);
    }

    // The head for an engine, and the body behind it.
    nb::bytes message(nb::handle authority, nb::tuple headers, nb::handle body) const {
        const Own own(std::move(headers));
        const Text raw = text_of(raw_), host = text_of(authority), content = text_of(body);
        constexpr Text before_host = " HTTP/1.1\r\nHost: ";
        Message out(raw.size() + before_host.size() + host.size() + 2 + own.size() + content.size());
        out.put(raw.substr(0, method_size + target_size_));
        out.put(before_host);
        out.put(host);
        out.put("\r\n");
        Lines lines = all();
        for (Line line; lines.next(line) && !line.name.empty();) {
            const Kind kind = heads::kind_of(line.name);
            const bool goes_on = kind == Kind::length || (kind == Kind::ordinary && !own.has(line.name));
            if (goes_on) out.put(line.whole);
        }
        own.write(out);
        out.put("\r\n");
        out.put(content);
        return out.take();
    }

  private:
    static constexpr std::size_t method_size = 5, version_size = 11;

    Lines all() const { return Lines(text_of(raw_), method_size + target_size_ + version_size); }

    nb::bytes raw_;
    std::size_t target_size_;
    std::uint64_t length_, names_;
};

nb::object read_request(nb::handle data) {
    const Text text = text_of(data);
    const auto request = heads::read_request(text);
    return request ? nb::cast(PlainHead(bytes_of(text.substr(0, request->end)), *request)) : nb::none();
}

// (status, length of the body or -1 if it is chunked, end of the head in the data, the head to send on and, if all of the
// body is there, that).
nb::object relay_answer(nb::handle data, nb::tuple headers, bool close) {
    const Text text = text_of(data);
    const auto answer = heads::read_answer(text);
    if (!answer) return nb::none();
    const Own own(std::move(headers));
    constexpr Text version = "HTTP/1.1 ", chunked = "Transfer-Encoding: chunked\r\n", closing = "Connection: close\r\n";
    const bool whole = answer->length && *answer->length == text.size() - answer->end;
    Message out(answer->end + own.size() + chunked.size() + closing.size() + (whole ? *answer->length : 0));
    out.put(version);
    out.put(answer->status_text);
    out.put("\r\n");
    Lines lines(text, answer->lines);
    for (Line line; lines.next(line) && !line.name.empty();) {
        const Kind kind = heads::kind_of(line.name);
        const bool dropped = kind == Kind::hop_by_hop || kind == Kind::connection || kind == Kind::coding;
        if (!dropped && !own.has(line.name)) out.put(line.whole);
    }
    own.write(out);
    if (!answer->length) out.put(chunked);
    if (close) out.put(closing);
    out.put("\r\n");
    if (whole) out.put(text.substr(answer->end));
    const auto length = answer->length ? static_cast<std::int64_t>(*answer->length) : -1;
    return nb::make_tuple(answer->status, length, answer->end, out.take());
}

}  // namespace

void bind_heads(nb::module_& module) {
    nb::class_<PlainHead>(module, "PlainHead")
        .def_prop_ro("end", &PlainHead::end)
        .def_prop_ro("length", &PlainHead::length)
        .def_prop_ro("target", &PlainHead::target)
        .def_prop_ro("headers", &PlainHead::headers)
        .def("header", &PlainHead::header, nb::arg("name"))
        .def("replaced", &PlainHead::replaced, nb::arg("names"), nb::arg("name"), nb::arg("value"))
        .def("message", &PlainHead::message, nb::arg("authority"), nb::arg("headers"), nb::arg("body"))
        .attr("method") = nb::bytes("POST");
    module.def("read_request", &read_request, nb::arg("data"));
    module.def("relay_answer", &relay_answer, nb::arg("data"), nb::arg("headers"), nb::arg("close"));
}

}  // namespace warmroute
