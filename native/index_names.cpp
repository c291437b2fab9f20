#include "index_names.hpp"

#include <bit>
#include <utility>

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
    if (const auto known = interned_.find(tagged); known != interned_.end()) return known->second.key;
    if (free_.empty()) {
        free_.push_back(first_interned + by_number_.size());
        by_number_.push_back(nullptr);
    }
    const Key key = free_.back();
    free_.pop_back();
    by_number_[key - first_interned] = &*interned_.emplace(Text(tagged, ledger_), Use{key, 0}).first;
    unused_.push_back(key);
    return key;
}

void Names::forget_unused() {
    for (const Key key : unused_) {
        auto*& entry = by_number_[key - first_interned];
        if (entry == nullptr || entry->second.count != 0) continue;
        interned_.erase(interned_.find(std::string_view(entry->first)));
        entry = nullptr;
        free_.push_back(key);
    }
    unused_.clear();
    if (!interned_.empty()) return;
    interned_ = Interned(0, Hash{}, std::equal_to<>{}, ledger_);
    by_number_ = decltype(by_number_)(ledger_);
    free_ = decltype(free_)(ledger_);
    unused_ = decltype(unused_)(ledger_);
}

}  // namespace warmroute
