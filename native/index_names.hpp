// What engines call their blocks, as 64-bit keys.
//
// Nearly all engines publish numbers below 2^64, and a number below `first_interned` is its own key. Whatever else comes
// (bytes, numbers below zero or beyond 64 bits, and the few numbers that `first_interned` takes away) is given a key from
// there on for as long as somebody uses it; so keys are equal exactly if the hashes are.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "event.hpp"
#include "index_tables.hpp"

namespace warmroute {

using Key = std::uint64_t;

inline constexpr Key first_interned = ~Key{0} - 0xFFFFFFFF;

class Names {
  public:
    explicit Names(Ledger& ledger)
        : ledger_(ledger), interned_(0, Hash{}, std::equal_to<>{}, ledger), by_number_(ledger), free_(ledger), unused_(ledger) {}

    // The key of the i-th hash. A new one is used by nobody yet: `hold` it, or it is forgotten by the next `sweep`.
    Key key_of(const Hashes& hashes, std::size_t i);

    void hold(Key key) {
        if (key >= first_interned) ++entry(key).second.count;
    }
    void release(Key key) {
        if (key >= first_interned && --entry(key).second.count == 0) unused_.push_back(key);
    }
    // Forget what is not used. Between two sweeps, keys keep their meaning.
    void sweep() {
        if (!unused_.empty()) forget_unused();
    }

    // As in event.hpp: a hash with its tag. Only for keys from first_interned on.
    std::string_view tagged(Key key) const { return by_number_[key - first_interned]->first; }

    std::size_t size() const noexcept { return interned_.size(); }
    std::uint64_t uses(Key key) const { return by_number_[key - first_interned]->second.count; }

  private:
    using Text = std::basic_string<char, std::char_traits<char>, Counted<char>>;
    struct Hash {
        using is_transparent = void;
        std::size_t operator()(std::string_view text) const noexcept { return std::hash<std::string_view>{}(text); }
    };
    struct Use {
        Key key;
        std::uint64_t count;
    };
    using Interned = std::unordered_map<Text, Use, Hash, std::equal_to<>, Counted<std::pair<const Text, Use>>>;

    Interned::value_type& entry(Key key) { return *by_number_[key - first_interned]; }
    Key intern(std::string_view tagged);
    void forget_unused();

    Ledger& ledger_;
    Interned interned_;
    std::vector<Interned::value_type*, Counted<Interned::value_type*>> by_number_;
    std::vector<Key, Counted<Key>> free_;
    std::vector<Key, Counted<Key>> unused_;
};

}  // namespace warmroute
