#include "index_names.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>

namespace warmroute {
namespace {

constexpr std::size_t number_bytes = sizeof(Key);

std::string tagged_number(Key number) {
    std::string tagged = "u";
    for (std::size_t i = number_bytes; i-- > 0;) tagged.push_back(static_cast<char>(number >> (8 * i)));
    return tagged;
}

Key number_of(std::string_view tagged) noexcept {
    Key number = 0;
    for (const char byte : tagged.substr(1)) number = number << 8 | static_cast<unsigned char>(byte);
    return number;
}

}  // namespace

Key Names::key_of(const Hashes& hashes, std::size_t i) {
    if (hashes.tagged.empty()) {
        const Key number = hashes.numbers[i];
        return number < first_interned ? number : intern(tagged_number(number));
    }
    const std::string& tagged = hashes.tagged[i];
    if (tagged.size() == 1 + number_bytes && tagged.front() == 'u') {
        const Key number = number_of(tagged);
        if (number < first_interned) return number;
    }
    return intern(tagged);
}

Key Names::intern(std::string_view tagged) {
    const std::uint64_t hash = table_hash(std::hash<std::string_view>{}(tagged));
    const auto same = [&](std::uint32_t number) { return at(number).view() == tagged; };
    if (const std::uint32_t known = table_.find(hash, same); known != no_node) return first_interned + known;
    const std::uint32_t number = take_number();
    auto* const text = static_cast<char*>(ledger_.take(tagged.size()));
    std::memcpy(text, tagged.data(), tagged.size());
    at(number) = {text, tagged.size(), hash, 0};
    table_.insert(hash, number, hash_of());
    unused_.push_back(first_interned + number);
    return first_interned + number;
}

std::uint32_t Names::take_number() {
    if (free_ != no_node) {
        const auto number = static_cast<std::uint32_t>(free_);
        free_ = at(number).count;
        return number;
    }
    if (made_ == no_node) throw std::length_error("the index has no numbers for more hashes");
    if (made_ == pages_.size() * page_names) {
        pages_.push_back(static_cast<Name*>(ledger_.take(page_names * sizeof(Name))));
    }
    return made_++;
}

void Names::forget_unused() {
    for (const Key key : unused_) {
        Name& gone = name(key);
        if (gone.text == nullptr || gone.count != 0) continue;
        const auto number = static_cast<std::uint32_t>(key - first_interned);
        table_.erase(gone.hash, number, hash_of());
        ledger_.give(gone.text, gone.size);
        gone = {nullptr, 0, 0, free_};
        free_ = number;
    }
    unused_.clear();
    if (!table_.empty()) return;
    made_ = 0;
    free_ = no_node;
    unused_ = decltype(unused_)(ledger_);
    if (pages_.size() > 1) return;  // many are given up bit by bit
    std::size_t budget = page_names;
    shrink(budget);
}

bool Names::shrink(std::size_t& budget) noexcept {
    while (pages_.size() * page_names >= made_ + page_names) {
        if (budget == 0) return false;
        ledger_.give(pages_.back(), page_names * sizeof(Name));
        pages_.pop_back();
        budget -= std::min<std::size_t>(budget, page_names);
    }
    if (pages_.empty()) pages_ = decltype(pages_)(ledger_);
    return true;
}

Names::~Names() {
    for (std::uint32_t number = 0; number < made_; ++number) {
        if (at(number).text != nullptr) ledger_.give(at(number).text, at(number).size);
    }
    for (Name* page : pages_) ledger_.give(page, page_names * sizeof(Name));
}

}  // namespace warmroute
