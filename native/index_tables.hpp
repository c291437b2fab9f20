// What the index is built from: a map of small things, and a table of node numbers.
//
// Both tables give all their memory back when they become empty, and most of it when they become nearly empty.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "hash.hpp"
#include "index_memory.hpp"

namespace warmroute {

// Numbers from engines are not trusted to be spread out.
inline std::uint64_t table_hash(std::uint64_t key) noexcept {
    return mum(key ^ secret(std::uint64_t{1} << 32), secret((std::uint64_t{1} << 32) + 1));
}

// Number -> small trivial value, by open addressing. A pointer to a value holds until the next insertion or erasure.
template <class Key, class Value>
class FlatMap {
    static_assert(std::is_trivially_copyable_v<Value> && std::is_unsigned_v<Key>);
    struct Slot {
        Key key;
        Value value;
    };

  public:
    explicit FlatMap(Ledger& ledger) noexcept : ledger_(&ledger) {}
    FlatMap(const FlatMap&) = delete;
    FlatMap& operator=(const FlatMap&) = delete;
    ~FlatMap() { clear(); }

    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }

    Value* find(Key key) noexcept { return const_cast<Value*>(std::as_const(*this).find(key)); }
    const Value* find(Key key) const noexcept {
        if (size_ == 0) return nullptr;
        for (std::size_t i = home(key); full_[i]; i = next(i)) {
            if (slots_[i].key == key) return &slots_[i].value;
        }
        return nullptr;
    }
    bool contains(Key key) const noexcept { return find(key) != nullptr; }

    // The value of the key, made from nothing if there is none.
    Value& operator[](Key key) {
        if (Value* known = find(key)) return *known;
        if ((size_ + 1) * 4 > capacity_ * 3) resize(capacity_ == 0 ? 4 : capacity_ * 2);
        ++size_;
        return place(key, Value{});
    }

    bool erase(Key key) {
        if (size_ == 0) return false;
        std::size_t gap = home(key);
        while (full_[gap] && slots_[gap].key != key) gap = next(gap);
        if (!full_[gap]) return false;
        for (std::size_t i = next(gap); full_[i]; i = next(i)) {
            const std::size_t wanted = home(slots_[i].key);
            if (((i - wanted) & (capacity_ - 1)) < ((i - gap) & (capacity_ - 1))) continue;
            slots_[gap] = slots_[i];
            gap = i;
        }
        full_[gap] = 0;
        --size_;
        if (size_ == 0) {
            clear();
        } else if (size_ * 8 < capacity_) {
            resize(capacity_ / 2);
        }
        return true;
    }

    template <class Visit>
    void each(Visit visit) const {
        for (std::size_t i = 0; i < capacity_; ++i) {
            if (full_[i]) visit(slots_[i].key, slots_[i].value);
        }
    }

    // For a map that nobody asks any more: visit and forget what is in the slots from `next` on, as many as `budget` says.
    // Whether that was the rest.
    template <class Visit>
    bool drain(std::size_t& next, std::size_t& budget, Visit visit) {
        if (capacity_ == 0) return true;
        for (; next < capacity_ && budget != 0; ++next, --budget) {
            if (!full_[next]) continue;
            visit(slots_[next].key, slots_[next].value);
            full_[next] = 0;
        }
        if (next < capacity_) return false;
        next = 0;
        clear();
        return true;
    }

    void clear() noexcept {
        if (capacity_ != 0) ledger_->give(slots_, bytes(capacity_));
        slots_ = nullptr;
        full_ = nullptr;
        size_ = capacity_ = 0;
    }

  private:
    static std::size_t bytes(std::size_t capacity) noexcept { return capacity * (sizeof(Slot) + 1); }
    std::size_t home(Key key) const noexcept { return (table_hash(key) >> 20) & (capacity_ - 1); }
    std::size_t next(std::size_t i) const noexcept { return (i + 1) & (capacity_ - 1); }

    Value& place(Key key, const Value& value) noexcept {
        std::size_t i = home(key);
        while (full_[i]) i = next(i);
        full_[i] = 1;
        slots_[i] = {key, value};
        return slots_[i].value;
    }

    void resize(std::size_t capacity) {
        auto* const memory = static_cast<Slot*>(ledger_->take(bytes(capacity)));
        Slot* const old_slots = slots_;
        std::uint8_t* const old_full = full_;
        const std::size_t old_capacity = capacity_;
        slots_ = memory;
        full_ = reinterpret_cast<std::uint8_t*>(memory + capacity);
        capacity_ = capacity;
        std::memset(full_, 0, capacity);
        for (std::size_t i = 0; i < old_capacity; ++i) {
            if (old_full[i]) place(old_slots[i].key, old_slots[i].value);
        }
        if (old_capacity != 0) ledger_->give(old_slots, bytes(old_capacity));
    }

    Ledger* ledger_;
    Slot* slots_ = nullptr;
    std::uint8_t* full_ = nullptr;
    std::size_t size_ = 0;
    std::size_t capacity_ = 0;
};

using Node = std::uint32_t;
inline constexpr Node no_node = 0xFFFFFFFF;

// A set of nodes that is found by a number that each node has somewhere else: 5.3 bytes per slot and no copy of the
// number. One chunk is one cache line:
//
//     [12 tags of 8 bits | overflow, filled | 12 node numbers]
//
// `overflow` counts the nodes that would be here had there been room and are in a later chunk: a search goes on only
// while it is not zero, so erasing needs no tombstones.
class NodeTable {
    static constexpr std::size_t slots = 12;
    static constexpr std::size_t slots_filled = 10;  // per chunk on average, before the table grows
    static constexpr std::uint16_t overflow_max = 0xFFFF;

    struct alignas(64) Chunk {
        std::array<std::uint8_t, slots> tags;  // 0: empty
        std::uint16_t overflow;
        std::uint16_t filled;  // slots, while the chunk is new: see resize
        std::array<Node, slots> nodes;
    };
    static_assert(sizeof(Chunk) == 64);

  public:
    explicit NodeTable(Ledger& ledger) noexcept : ledger_(&ledger) {}
    NodeTable(NodeTable&& other) noexcept
        : ledger_(other.ledger_),
          chunks_(std::exchange(other.chunks_, nullptr)),
          chunk_count_(std::exchange(other.chunk_count_, 0)),
          size_(std::exchange(other.size_, 0)) {}
    NodeTable& operator=(NodeTable&&) = delete;
    ~NodeTable() { clear(); }

    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }

    void prefetch(std::uint64_t hash) const noexcept {
        if (chunk_count_ != 0) __builtin_prefetch(&chunks_[home(hash)]);
    }

    // The node of this hash for which is(node), or no_node.
    template <class Is>
    Node find(std::uint64_t hash, Is is) const {
        if (size_ == 0) return no_node;
        const std::uint8_t tag = tag_of(hash);
        std::size_t c = home(hash);
        for (std::size_t walked = 0; walked < chunk_count_; ++walked, c = next(c)) {
            const Chunk& chunk = chunks_[c];
            for (unsigned found = matching(chunk, tag); found != 0; found &= found - 1) {
                const Node node = chunk.nodes[static_cast<std::size_t>(std::countr_zero(found))];
                if (is(node)) return node;
            }
            if (chunk.overflow == 0) break;
        }
        return no_node;
    }

    // hash_of(node) gives the hash of any node that is in the table.
    template <class HashOf>
    void insert(std::uint64_t hash, Node node, HashOf hash_of) {
        if (size_ + 1 > chunk_count_ * slots_filled && !(chunk_count_ == 1 && size_ < slots)) {
            resize(std::max<std::size_t>(chunk_count_ < 256 ? chunk_count_ * 4 : chunk_count_ * 2, 1), hash_of);
        }
        place(hash, node);
        ++size_;
    }

    template <class HashOf>
    bool erase(std::uint64_t hash, Node node, HashOf hash_of) {
        if (size_ == 0) return false;
        const std::uint8_t tag = tag_of(hash);
        std::size_t c = home(hash);
        for (std::size_t walked = 0; walked < chunk_count_; ++walked, c = next(c)) {
            Chunk& chunk = chunks_[c];
            for (unsigned found = matching(chunk, tag); found != 0; found &= found - 1) {
                const auto slot = static_cast<std::size_t>(std::countr_zero(found));
                if (chunk.nodes[slot] != node) continue;
                chunk.tags[slot] = 0;
                for (std::size_t passed = home(hash); passed != c; passed = next(passed)) {
                    if (chunks_[passed].overflow != overflow_max) --chunks_[passed].overflow;
                }
                --size_;
                if (size_ == 0) {
                    clear();
                } else if (size_ * 4 < chunk_count_ * slots_filled) {
                    resize(size_ / (slots_filled * 3 / 4) + 1, hash_of);
                }
                return true;
            }
            if (chunk.overflow == 0) break;
        }
        return false;
    }

    template <class Visit>
    void each(Visit visit) const {
        for (std::size_t c = 0; c < chunk_count_; ++c) {
            for (std::size_t slot = 0; slot < slots; ++slot) {
                if (chunks_[c].tags[slot] != 0) visit(chunks_[c].nodes[slot]);
            }
        }
    }

    void clear() noexcept {
        if (chunks_ != nullptr) ledger_->give(chunks_, chunk_count_ * sizeof(Chunk));
        chunks_ = nullptr;
        chunk_count_ = size_ = 0;
    }

  private:
    static std::uint8_t tag_of(std::uint64_t hash) noexcept { return static_cast<std::uint8_t>(hash | 0x80); }
    std::size_t home(std::uint64_t hash) const noexcept { return ((hash >> 32) * chunk_count_) >> 32; }
    std::size_t next(std::size_t c) const noexcept { return c + 1 == chunk_count_ ? 0 : c + 1; }

    // One bit for each slot with this tag.
    static unsigned matching(const Chunk& chunk, std::uint8_t tag) noexcept {
#if defined(__SSE2__)
        const __m128i tags = _mm_load_si128(reinterpret_cast<const __m128i*>(&chunk));
        const __m128i same = _mm_cmpeq_epi8(tags, _mm_set1_epi8(static_cast<char>(tag)));
        return static_cast<unsigned>(_mm_movemask_epi8(same)) & ((1U << slots) - 1);
#else
        unsigned found = 0;
        for (std::size_t slot = 0; slot < slots; ++slot) found |= unsigned{chunk.tags[slot] == tag} << slot;
        return found;
#endif
    }

    void place(std::uint64_t hash, Node node) noexcept {
        for (std::size_t c = home(hash);; c = next(c)) {
            Chunk& chunk = chunks_[c];
            if (const unsigned empty = matching(chunk, 0)) {
                const auto slot = static_cast<std::size_t>(std::countr_zero(empty));
                chunk.tags[slot] = tag_of(hash);
                chunk.nodes[slot] = node;
                return;
            }
            if (chunk.overflow != overflow_max) ++chunk.overflow;
        }
    }

    // As `place`, in a table from which nothing was erased: tags that were just written are slow to read together.
    void place_in_order(std::uint64_t hash, Node node) noexcept {
        std::size_t c = home(hash);
        while (chunks_[c].filled == slots) {
            if (chunks_[c].overflow != overflow_max) ++chunks_[c].overflow;
            c = next(c);
        }
        const std::size_t slot = chunks_[c].filled++;
        chunks_[c].tags[slot] = tag_of(hash);
        chunks_[c].nodes[slot] = node;
    }

    template <class HashOf>
    void resize(std::size_t count, HashOf hash_of) {
        auto* const memory = static_cast<Chunk*>(ledger_->take(count * sizeof(Chunk)));
        std::memset(static_cast<void*>(memory), 0, count * sizeof(Chunk));
        Chunk* const old = std::exchange(chunks_, memory);
        const std::size_t old_count = std::exchange(chunk_count_, count);
        std::array<std::uint64_t, slots> hashes;
        for (std::size_t c = 0; c < old_count; ++c) {
            // All hashes of a chunk first: each is a walk through memory, and they do not wait for each other.
            for (std::size_t slot = 0; slot < slots; ++slot) {
                if (old[c].tags[slot] != 0) hashes[slot] = hash_of(old[c].nodes[slot]);
            }
            for (std::size_t slot = 0; slot < slots; ++slot) {
                if (old[c].tags[slot] != 0) place_in_order(hashes[slot], old[c].nodes[slot]);
            }
        }
        if (old != nullptr) ledger_->give(old, old_count * sizeof(Chunk));
    }

    Ledger* ledger_;
    Chunk* chunks_ = nullptr;
    std::size_t chunk_count_ = 0;
    std::size_t size_ = 0;
};

// Many small tables in place of a large one, so that no single insertion has to move millions of entries.
class ShardedNodeTable {
    static constexpr std::size_t shards = 64;

  public:
    explicit ShardedNodeTable(Ledger& ledger) noexcept
        : tables_(make(ledger, std::make_index_sequence<shards>{})) {}

    std::size_t size() const noexcept {
        std::size_t sum = 0;
        for (const NodeTable& table : tables_) sum += table.size();
        return sum;
    }
    void prefetch(std::uint64_t hash) const noexcept { of(hash).prefetch(hash); }
    template <class Is>
    Node find(std::uint64_t hash, Is is) const {
        return of(hash).find(hash, is);
    }
    template <class HashOf>
    void insert(std::uint64_t hash, Node node, HashOf hash_of) {
        tables_[shard(hash)].insert(hash, node, hash_of);
    }
    template <class HashOf>
    bool erase(std::uint64_t hash, Node node, HashOf hash_of) {
        return tables_[shard(hash)].erase(hash, node, hash_of);
    }

  private:
    template <std::size_t... I>
    static std::array<NodeTable, shards> make(Ledger& ledger, std::index_sequence<I...>) {
        return {((void)I, NodeTable(ledger))...};
    }
    static std::size_t shard(std::uint64_t hash) noexcept { return (hash >> 8) % shards; }
    const NodeTable& of(std::uint64_t hash) const noexcept { return tables_[shard(hash)]; }

    std::array<NodeTable, shards> tables_;
};

}  // namespace warmroute
