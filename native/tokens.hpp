// Token ids as Python has them -> unsigned 32-bit integers, block by block.
//
// A buffer of unsigned 32-bit integers is read in place; anything else is read as a sequence of integers. Token ids are
// checked where they are read: one that does not fit raises ValueError, with its position.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "hash.hpp"

namespace warmroute {

namespace nb = nanobind;

// The value of a small int (at most one digit of 30 bits, as all real token ids), or -1.
inline std::int64_t small_int(PyObject* object) noexcept {
    if (!Py_IS_TYPE(object, &PyLong_Type)) return -1;
    const auto* number = reinterpret_cast<PyLongObject*>(object);
#if PY_VERSION_HEX >= 0x030C0000
    return PyUnstable_Long_IsCompact(number) ? static_cast<std::int64_t>(PyUnstable_Long_CompactValue(number)) : -1;
#else
    const Py_ssize_t digits = Py_SIZE(number);
    if (digits == 1) return number->ob_digit[0];
    return digits == 0 ? 0 : -1;
#endif
}

[[noreturn]] inline void refuse_token(PyObject* object, std::size_t position) {
    PyErr_Format(PyExc_ValueError, "token id %S at position %zu: token ids are unsigned 32-bit integers", object, position);
    throw nb::python_error();
}

inline std::size_t checked_block_size(std::int64_t block_size) {
    if (block_size < 1) {
        PyErr_Format(PyExc_ValueError, "block_size is %lld: it must be a positive number of tokens",
                     static_cast<long long>(block_size));
        throw nb::python_error();
    }
    return static_cast<std::size_t>(block_size);
}

// Any integer-like object. Slow: only what is not a small int comes here.
inline Token large_token(PyObject* object, std::size_t position) {
    const nb::object number = nb::steal(PyNumber_Index(object));
    if (!number.is_valid()) throw nb::python_error();
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (value == -1 && overflow == 0 && PyErr_Occurred()) throw nb::python_error();
    if (overflow != 0 || value < 0 || value > std::numeric_limits<Token>::max()) refuse_token(number.ptr(), position);
    return static_cast<Token>(value);
}

class Tokens {
  public:
    explicit Tokens(nb::handle source) {
        if (!PyList_CheckExact(source.ptr()) && !PyTuple_CheckExact(source.ptr()) && open_buffer(source)) return;
        sequence_ = nb::steal(PySequence_Fast(source.ptr(), "token ids must be a sequence of integers"));
        if (!sequence_.is_valid()) throw nb::python_error();
    }
    Tokens(const Tokens&) = delete;
    Tokens& operator=(const Tokens&) = delete;
    ~Tokens() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }

    std::size_t size() const noexcept {
        return view_.obj != nullptr ? static_cast<std::size_t>(view_.len) / sizeof(Token)
                                    : static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence_.ptr()));
    }

    // Calls visit(digest) for each full block in order.
    template <class Visit>
    void each_block_digest(std::size_t block_size, Visit visit) {
        const std::size_t blocks = size() / block_size;
        if (view_.obj != nullptr) {
            const auto* bytes = static_cast<const unsigned char*>(view_.buf);
            for (std::size_t i = 0; i < blocks; ++i) visit(block_digest(bytes + i * block_size * sizeof(Token), block_size));
            return;
        }
        std::vector<Token> block(blocks == 0 ? 0 : block_size);
        for (std::size_t i = 0; i < blocks; ++i) {
            read(i * block_size, block);
            visit(block_digest(block.data(), block_size));
        }
    }

  private:
    bool open_buffer(nb::handle source) {
        if (!PyObject_CheckBuffer(source.ptr())) return false;
        if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_ND | PyBUF_FORMAT) != 0) {
            PyErr_Clear();  // not contiguous: read it as a sequence
            view_ = {};
            return false;
        }
        const std::string_view format = view_.format == nullptr ? "B" : view_.format;
        const bool unsigned32 = view_.itemsize == sizeof(Token) && (format == "I" || format == "=I" || format == "<I" ||
                                                                    format == "@I" || format == "L" || format == "<L" ||
                                                                    format == "=L");
        if (view_.ndim == 1 && unsigned32) return true;
        PyBuffer_Release(&view_);
        view_ = {};
        return false;
    }

    void read(std::size_t start, std::vector<Token>& block) const {
        for (std::size_t i = 0; i < block.size(); ++i) {
            // Looked up each time: an element's __index__ may run Python code that changes the list.
            if (start + i >= size()) throw nb::value_error("the token ids changed while they were read");
            PyObject* item = PySequence_Fast_GET_ITEM(sequence_.ptr(), static_cast<Py_ssize_t>(start + i));
            const std::int64_t value = small_int(item);
            block[i] = value >= 0 ? static_cast<Token>(value) : large_token(item, start + i);
        }
    }

    Py_buffer view_{};
    nb::object sequence_;
};

}  // namespace warmroute
