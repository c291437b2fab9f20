// warmroute._native: the Python face of the native core. Only conversions live here; see _native.pyi for the contract.

#include <nanobind/nanobind.h>

#include <cstdint>

#include "hash.hpp"
#include "tokens.hpp"

namespace nb = nanobind;

namespace warmroute {

void bind_index(nb::module_& module);  // index_binding.cpp
void bind_wire(nb::module_& module);   // wire_binding.cpp
void bind_weighing(nb::module_& module);  // weighing.cpp
void bind_heads(nb::module_& module);  // heads_binding.cpp

namespace {

// A list of 64-bit numbers that is filled from the front.
class NumberList {
  public:
    explicit NumberList(std::size_t size) : list_(nb::steal(PyList_New(static_cast<Py_ssize_t>(size)))) {
        if (!list_.is_valid()) throw nb::python_error();
    }
    void append(std::uint64_t number) {
        PyObject* boxed = PyLong_FromUnsignedLongLong(number);
        if (boxed == nullptr) throw nb::python_error();
        PyList_SET_ITEM(list_.ptr(), next_++, boxed);
    }
    nb::object take() { return std::move(list_); }

  private:
    nb::object list_;
    Py_ssize_t next_ = 0;
};

nb::object prefix_hashes(nb::handle source, std::int64_t block_size, std::uint64_t first_extra, std::uint64_t extra) {
    const std::size_t size = checked_block_size(block_size);
    Tokens tokens(source);
    NumberList prefixes(tokens.size() / size);
    PrefixHash prefix = root;
    std::uint64_t next_extra = first_extra;
    tokens.each_block_digest(size, [&](std::uint64_t digest) {
        prefix = chain(prefix, digest, next_extra);
        next_extra = extra;
        prefixes.append(prefix);
    });
    return prefixes.take();
}

nb::object block_digests(nb::handle source, std::int64_t block_size) {
    const std::size_t size = checked_block_size(block_size);
    Tokens tokens(source);
    NumberList digests(tokens.size() / size);
    tokens.each_block_digest(size, [&](std::uint64_t digest) { digests.append(digest); });
    return digests.take();
}

}  // namespace
}  // namespace warmroute

NB_MODULE(_native, module) {
    module.attr("__version__") = WARMROUTE_VERSION;
    module.def("prefix_hashes", &warmroute::prefix_hashes, nb::arg("tokens"), nb::arg("block_size"),
               nb::arg("first_extra"), nb::arg("extra"));
    module.def("block_digests", &warmroute::block_digests, nb::arg("tokens"), nb::arg("block_size"));
    warmroute::bind_wire(module);
    warmroute::bind_index(module);
    warmroute::bind_weighing(module);
    warmroute::bind_heads(module);
}
