#include "heads.hpp"

#include <algorithm>
#include <utility>

namespace warmroute::heads {

namespace {

constexpr std::size_t digits_max = 18;

using Table = std::array<bool, 256>;

constexpr Table with(Text members) {
    Table table{};
    for (int c = '0'; c <= '9'; ++c) table[static_cast<std::size_t>(c)] = true;
    for (int c = 'a'; c <= 'z'; ++c) table[static_cast<std::size_t>(c)] = true;
    for (int c = 'A'; c <= 'Z'; ++c) table[static_cast<std::size_t>(c)] = true;
    for (const char c : members) table[static_cast<unsigned char>(c)] = true;
    return table;
}

constexpr Table text() {
    Table table{};
    for (std::size_t c = 0; c < table.size(); ++c) table[c] = c == '\t' || (c >= ' ' && c != 0x7F);
    return table;
}

constexpr Table in_token = with("!#$%&'*+-.^_`|~");
constexpr Table in_target = with("/-._~?=&%:,+");  // fewer than may be: the rest is the parser's
constexpr Table in_text = text();

std::size_t run(Text data, std::size_t at, const Table& table) {
    while (at < data.size() && table[static_cast<unsigned char>(data[at])]) ++at;
    return at;
}

bool has(Text data, std::size_t at, Text expected) { return data.substr(at, expected.size()) == expected; }

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; }

bool is_blank(char c) { return c == ' ' || c == '\t'; }

Text stripped(Text value) {
    while (!value.empty() && is_blank(value.front())) value.remove_prefix(1);
    while (!value.empty() && is_blank(value.back())) value.remove_suffix(1);
    return value;
}

std::optional<std::uint64_t> number(Text digits) {
    if (digits.empty() || digits.size() > digits_max) return std::nullopt;
    std::uint64_t value = 0;
    for (const char c : digits) {
        if (c < '0' || c > '9') return std::nullopt;
        value = value * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return value;
}

}  // namespace

bool equal_ignoring_case(Text one, Text other) {
    return std::equal(one.begin(), one.end(), other.begin(), other.end(), [](char a, char b) { return lower(a) == lower(b); });
}

std::uint64_t mark_of(Text name) {
    const auto first = static_cast<unsigned char>(name.empty() ? '\0' : lower(name.front()));
    return std::uint64_t{1} << ((7 * name.size() + first) % 64);
}

Kind kind_of(Text name) {
    const auto is = [name](Text other) { return equal_ignoring_case(name, other); };
    switch (name.size()) {
        case 2: return is("te") ? Kind::hop_by_hop : Kind::ordinary;
        case 4: return is("host") ? Kind::host : Kind::ordinary;
        case 6: return is("expect") ? Kind::to_server : Kind::ordinary;
        case 7: return is("trailer") || is("upgrade") ? Kind::hop_by_hop : Kind::ordinary;
        case 10: return is("connection") ? Kind::connection : is("keep-alive") ? Kind::hop_by_hop : Kind::ordinary;
        case 14: return is("content-length") ? Kind::length : is("http2-settings") ? Kind::to_server : Kind::ordinary;
        case 16: return is("proxy-connection") ? Kind::hop_by_hop : Kind::ordinary;
        case 17: return is("transfer-encoding") ? Kind::coding : Kind::ordinary;
        case 18: return is("proxy-authenticate") ? Kind::hop_by_hop : Kind::ordinary;
        case 19: return is("proxy-authorization") ? Kind::hop_by_hop : Kind::ordinary;
        case 25: return is("proxy-authentication-info") ? Kind::hop_by_hop : Kind::ordinary;
        default: return Kind::ordinary;
    }
}

bool Lines::next(Line& line) {
    const std::size_t begin = at_, colon = run(data_, begin, in_token);
    if (colon == begin) {
        line = {};
        at_ = begin + 2;
        return has(data_, begin, "\r\n");
    }
    if (!has(data_, colon, ":")) return false;
    const std::size_t end = run(data_, colon + 1, in_text);
    if (!has(data_, end, "\r\n")) return false;
    line = {data_.substr(begin, colon - begin), data_.substr(colon + 1, end - colon - 1), data_.substr(begin, end + 2 - begin)};
    at_ = end + 2;
    return true;
}

std::optional<Request> read_request(Text data) {
    constexpr Text method = "POST ", version = " HTTP/1.1\r\n";
    if (!has(data, 0, method) || !has(data, method.size(), "/")) return std::nullopt;
    const std::size_t target_end = run(data, method.size(), in_target);
    if (!has(data, target_end, version)) return std::nullopt;
    std::optional<std::uint64_t> length;
    std::uint64_t names = 0;
    bool hosted = false;
    Lines lines(data, target_end + version.size());
    for (Line line; lines.next(line);) {
        if (line.name.empty()) {
            if (!length || !hosted) return std::nullopt;
            return Request{data.substr(method.size(), target_end - method.size()), *length, lines.at(), names};
        }
        if (line.value.size() < 2 || line.value[0] != ' ') return std::nullopt;
        const Text value = line.value.substr(1);
        if (is_blank(value.front()) || is_blank(value.back())) return std::nullopt;
        names |= mark_of(line.name);
        switch (kind_of(line.name)) {
            case Kind::ordinary: break;
            case Kind::host:
                if (std::exchange(hosted, true)) return std::nullopt;
                break;
            case Kind::length:
                if (length || !(length = number(value))) return std::nullopt;
                break;
            case Kind::connection:
                if (!equal_ignoring_case(value, "keep-alive")) return std::nullopt;
                break;
            default: return std::nullopt;
        }
    }
    return std::nullopt;
}

std::optional<Answer> read_answer(Text data) {
    constexpr Text version = "HTTP/1.1 ";
    constexpr std::size_t code_size = 3;
    if (!has(data, 0, version)) return std::nullopt;
    const std::optional<std::uint64_t> code = number(data.substr(version.size(), code_size));
    std::size_t at = version.size() + code_size;
    if (!code || *code < 200 || *code == 204 || *code == 304) return std::nullopt;
    if (has(data, at, " ")) at = run(data, at, in_text);
    if (!has(data, at, "\r\n")) return std::nullopt;
    Answer answer{static_cast<int>(*code), data.substr(version.size(), at - version.size()), {}, at + 2, 0};
    bool chunked = false;
    Lines lines(data, answer.lines);
    for (Line line; lines.next(line);) {
        if (line.name.empty()) {
            if (chunked == answer.length.has_value()) return std::nullopt;
            answer.end = lines.at();
            return answer;
        }
        const Text value = stripped(line.value);
        switch (kind_of(line.name)) {
            case Kind::length:
                if (answer.length || !(answer.length = number(value))) return std::nullopt;
                break;
            case Kind::coding:
                if (std::exchange(chunked, true) || !equal_ignoring_case(value, "chunked")) return std::nullopt;
                break;
            case Kind::connection:
                if (!equal_ignoring_case(value, "keep-alive")) return std::nullopt;
                break;
            default: break;
        }
    }
    return std::nullopt;
}

}  // namespace warmroute::heads
