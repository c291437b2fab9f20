// A payload as Python has it -> its bytes, in place.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>

#include "wire.hpp"

namespace warmroute {

namespace nb = nanobind;

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

}  // namespace warmroute
