// Heads of HTTP messages that are plain: what nearly all of them are, read in one go.
//
// Only what the Python readers (httptools behind edge/http/client.py; edge/http/head.py) would read without a doubt, and in
// the same way, is read here; everything else is declined, so a message means the same whichever way it is read.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace warmroute::heads {

using Text = std::string_view;

struct Line {
    Text name;   // empty: the empty line behind all others
    Text value;  // all that is between the colon and the end of the line
    Text whole;  // with CRLF
};

// Header lines one by one; false at what is none, or not there yet.
class Lines {
  public:
    explicit Lines(Text data, std::size_t at = 0) : data_(data), at_(at) {}
    [[nodiscard]] bool next(Line& line);
    std::size_t at() const { return at_; }

  private:
    Text data_;
    std::size_t at_;
};

struct Request {
    Text target;
    std::uint64_t length = 0;  // of the body
    std::size_t end = 0;       // of the head in the data
    std::uint64_t names = 0;   // mark_of all of them
};

struct Answer {
    int status = 0;
    Text status_text;  // status and reason
    std::optional<std::uint64_t> length;  // of the body; none: it is chunked
    std::size_t lines = 0;  // where they begin
    std::size_t end = 0;
};

// A POST with one Host and one Content-Length, of whose other headers none is about the connection but to keep it alive.
[[nodiscard]] std::optional<Request> read_request(Text data);

// A final answer that has a body of a known length or in chunks and leaves the connection open.
[[nodiscard]] std::optional<Answer> read_answer(Text data);

// What a header is to a proxy, whatever the case of its name.
enum class Kind {
    ordinary,
    length,
    coding,
    connection,
    host,
    hop_by_hop,  // not to be passed on
    to_server,   // of requests alone: between the client and the server it is connected to
};
[[nodiscard]] Kind kind_of(Text name);

// One bit for a name in any case: a head without it has no header of that name.
[[nodiscard]] std::uint64_t mark_of(Text name);

[[nodiscard]] bool equal_ignoring_case(Text one, Text other);

}  // namespace warmroute::heads
