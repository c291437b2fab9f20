// Any bytes to the readers of plain heads: they never read out of bounds, and what they say holds together.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "heads.hpp"

namespace {

using namespace warmroute::heads;

void require(bool holds) {
    if (!holds) std::abort();
}

// Where the first empty line ends, by looking for nothing else.
std::size_t end_of(Text data) {
    const std::size_t at = data.find("\r\n\r\n");
    return at == Text::npos ? 0 : at + 4;
}

void check_lines(Text head, std::size_t at) {
    Lines lines(head, at);
    Line line;
    std::size_t size = at;
    while (lines.next(line) && !line.name.empty()) {
        require(line.whole.size() == line.name.size() + 1 + line.value.size() + 2);
        require(line.value.find_first_of("\r\n") == Text::npos && line.value.find('\0') == Text::npos);
        size += line.whole.size();
    }
    require(line.name.empty() && size + 2 == head.size() && lines.at() == head.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::vector<char> exact(data, data + size);
    const Text text(exact.data(), exact.size());
    if (const auto request = read_request(text)) {
        require(request->end == end_of(text) && request->target.front() == '/');
        check_lines(text.substr(0, request->end), 5 + request->target.size() + 11);
        require(!read_request(text.substr(0, request->end - 1)));  // nothing can be missing
    }
    if (const auto answer = read_answer(text)) {
        require(answer->end == end_of(text) && answer->status >= 200 && answer->status <= 999);
        check_lines(text.substr(0, answer->end), answer->lines);
        require(!read_answer(text.substr(0, answer->end - 1)));
    }
    return 0;
}
