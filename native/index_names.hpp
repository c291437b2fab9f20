// What engines call their blocks, as 64-bit keys.
//
// Nearly all engines publish numbers below 2^64, and a number below `first_interned` is its own key. Whatever else comes
// (bytes, numbers below zero or beyond 64 bits, and the few numbers that `first_interned` takes away) is given a key from
// there on for as long as somebody uses it; so keys are equal exactly if the hashes are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "event.hpp"
#include "index_tables.hpp"

namespace warmroute {

using Key = std::uint64_t;

inline constexpr Key first_interned = ~Key{0} - 0xFFFFFFFF;

class Names {
  public:
    explicit Names(Ledger& ledger) : ledger_(ledger), pages_(ledger), table_(ledger), unused_(ledger) {}
    Names(const Names&) = delete;
    Names& operator=(const Names&) = delete;
    ~Names();

    // The key of the i-th hash. A new one is used by nobody yet: `hold` it, or it is forgotten by the next `sweep`.
    Key key_of(const Hashes& hashes, std::size_t i);

    void hold(Key key) {
        if (key >= first_interned) ++name(key).count;
    }
    void release(Key key) {
        if (key >= first_interned && --name(key).count == 0) unused_.push_back(key);
    }
    // Forget what is not used. Between two sweeps, keys keep their meaning.
    void sweep() {
        if (!unused_.empty()) forget_unused();
    }
    // Give up memory for numbers that were used once, about `budget` of them, which counts down; whether that was the rest.
    bool shrink(std::size_t& budget) noexcept;

    // As in event.hpp: a hash with its tag. Only for keys from first_interned on.
    std::string_view tagged(Key key) const { return name(key).view(); }

    std::size_t size() const noexcept { return table_.size(); }
    std::uint64_t uses(Key key) const { return name(key).count; }

  private:
    struct Name {
        char* text;  // null: the number is free
        std::size_t size;
        std::uint64_t hash;
        std::uint64_t count;  // of a free one: the next free number
        std::string_view view() const noexcept { return {text, size}; }
    };
    static constexpr std::uint32_t page_names = 2048;  // 64 KiB, which goes back to the system as it is

    Name& name(Key key) noexcept { return at(static_cast<std::uint32_t>(key - first_interned)); }
    const Name& name(Key key) const noexcept { return at(static_cast<std::uint32_t>(key - first_interned)); }
    Name& at(std::uint32_t number) const noexcept { return pages_[number / page_names][number % page_names]; }
    auto hash_of() const noexcept {
        return [this](std::uint32_t number) { return at(number).hash; };
    }
    Key intern(std::string_view tagged);
    std::uint32_t take_number();
    void forget_unused();

    Ledger& ledger_;
    std::vector<Name*, Counted<Name*>> pages_;  // by number: nothing ever moves
    std::uint32_t made_ = 0;                    // numbers that there are
    std::uint64_t free_ = no_node;              // the first free one
    SplitNodeTable table_;                      // of numbers, by hash
    std::vector<Key, Counted<Key>> unused_;
};

}  // namespace warmroute
