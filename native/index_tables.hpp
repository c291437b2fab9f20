// What the index is built from: a map of small things, and a table of node numbers.
//
// Both give all their memory back when they become empty, and most of it when they become nearly empty. Neither ever moves
// more than some thousand entries at once: each is many small tables that split, see Splitting.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

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
    static constexpr std::size_t size_max = 3072;  // of one that splits

    explicit FlatMap(Ledger& ledger) noexcept : ledger_(&ledger) {}
    FlatMap(const FlatMap&) = delete;
    FlatMap& operator=(const FlatMap&) = delete;
    ~FlatMap() { clear(); }

    // Give to another one what the rule says of a key's hash.
    template <class Rule>
    void share(FlatMap& other, Rule goes) {
        std::vector<Key> going;
        each([&](Key key, const Value&) {
            if (goes(table_hash(key))) going.push_back(key);
        });
        for (const Key key : going) {
            other[key] = *find(key);
            erase(key);
        }
    }

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

    // For one that nobody asks any more: visit and forget what is from `next` on, about as much as `budget` says. Whether
    // that was the rest.
    template <class Visit>
    bool drain(std::size_t& next, std::size_t& budget, Visit visit) {
        for (; next < capacity_ && budget != 0; ++next, --budget) {
            if (std::exchange(full_[next], 0) == 0) continue;
            --size_;
            visit(slots_[next].key, slots_[next].value);
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
    std::size_t home(Key key) const noexcept { return (table_hash(key) >> 32) & (capacity_ - 1); }
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
    static constexpr std::size_t chunks_max = 1024;  // of one that splits: 64 KiB, as memory has them in large pages

  public:
    static constexpr std::size_t size_max = chunks_max * slots_filled;

    explicit NodeTable(Ledger& ledger) noexcept : ledger_(&ledger) {}
    NodeTable(NodeTable&& other) noexcept
        : ledger_(other.ledger_),
          chunks_(std::exchange(other.chunks_, nullptr)),
          chunk_count_(std::exchange(other.chunk_count_, 0)),
          size_(std::exchange(other.size_, 0)) {}
    NodeTable& operator=(NodeTable&&) = delete;
    ~NodeTable() { clear(); }

    // Give to another, empty one what the rule says of a node's hash. What stays does not move.
    template <class HashOf, class Rule>
    void share(NodeTable& other, HashOf hash_of, Rule goes) {
        other.resize(chunk_count_, hash_of);
        std::array<std::uint64_t, slots> hashes;
        for (std::size_t c = 0; c < chunk_count_; ++c) {
            hash_all(chunks_[c], hash_of, hashes);
            for (std::size_t slot = 0; slot < slots; ++slot) {
                if (chunks_[c].tags[slot] == 0 || !goes(hashes[slot])) continue;
                other.place_in_order(hashes[slot], chunks_[c].nodes[slot]);
                take_out(hashes[slot], c, slot);
                ++other.size_;
            }
        }
    }

    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }

    [[gnu::always_inline]] void prefetch(std::uint64_t hash) const noexcept {
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
            resize(chunk_count_ == 0 ? 1 : chunk_count_ < 256 ? chunk_count_ * 4 : chunk_count_ * 2, hash_of);
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
                take_out(hash, c, slot);
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

    // As FlatMap's.
    template <class Visit>
    bool drain(std::size_t& next, std::size_t& budget, Visit visit) {
        for (; next < chunk_count_ && budget != 0; ++next, --budget) {
            for (std::size_t slot = 0; slot < slots; ++slot) {
                if (std::exchange(chunks_[next].tags[slot], 0) == 0) continue;
                --size_;
                visit(chunks_[next].nodes[slot]);
            }
        }
        if (next < chunk_count_) return false;
        next = 0;
        clear();
        return true;
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

    void take_out(std::uint64_t hash, std::size_t c, std::size_t slot) noexcept {
        chunks_[c].tags[slot] = 0;
        for (std::size_t passed = home(hash); passed != c; passed = next(passed)) {
            if (chunks_[passed].overflow != overflow_max) --chunks_[passed].overflow;
        }
        --size_;
    }

    // All hashes of a chunk at once: each is a walk through memory, and they do not wait for each other.
    template <class HashOf>
    static void hash_all(const Chunk& chunk, HashOf hash_of, std::array<std::uint64_t, slots>& hashes) {
        for (std::size_t slot = 0; slot < slots; ++slot) {
            if (chunk.tags[slot] != 0) hashes[slot] = hash_of(chunk.nodes[slot]);
        }
    }

    template <class Do>
    static void each(const Chunk& chunk, Do act) {
        for (std::size_t slot = 0; slot < slots; ++slot) {
            if (chunk.tags[slot] != 0) act(chunk.nodes[slot]);
        }
    }

    template <class HashOf>
    void resize(std::size_t count, HashOf hash_of) {
        auto* const memory = static_cast<Chunk*>(ledger_->take(count * sizeof(Chunk)));
        std::memset(static_cast<void*>(memory), 0, count * sizeof(Chunk));
        Chunk* const old = std::exchange(chunks_, memory);
        const std::size_t old_count = std::exchange(chunk_count_, count);
        std::array<std::uint64_t, slots> hashes;
        for (std::size_t c = 0; c < old_count; ++c) {
            if constexpr (requires { hash_of.reach(Node{}); }) {  // what the next ones are hashed by comes meanwhile
                if (c + 2 < old_count) each(old[c + 2], [&](Node node) { hash_of.approach(node); });
                if (c + 1 < old_count) each(old[c + 1], [&](Node node) { hash_of.reach(node); });
            }
            hash_all(old[c], hash_of, hashes);
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

// Many small tables in place of a large one, so that no insertion has to move millions of entries. Some bits of a hash lead
// to its table; when one is full, its entries are shared with a new one by the next bit:
//
//     directory   0 1 2 3 4 5 6 7        depth 3: three bits of a hash
//     tables      A B C B A B D B        A tells by two bits, B by one, C and D by three
template <class Table>
class Splitting {
    struct Part {
        Part(Ledger& ledger, unsigned bits) : table(ledger), depth(bits) {}
        Table table;
        unsigned depth;
    };
    static constexpr unsigned first_bit = 8;  // those below, and from 32 on, are the tables' own
    static constexpr std::size_t spread_min = Table::size_max / 8;  // entries per bit pattern: hashes that somebody made
                                                                    // alike are left together

  public:
    explicit Splitting(Ledger& ledger) noexcept : ledger_(&ledger) {}
    Splitting(Splitting&& other) noexcept
        : ledger_(other.ledger_),
          directory_(std::exchange(other.directory_, nullptr)),
          parts_(std::exchange(other.parts_, nullptr)),
          part_count_(std::exchange(other.part_count_, 0)),
          depth_(std::exchange(other.depth_, 0)),
          mask_(std::exchange(other.mask_, 0)),
          size_(std::exchange(other.size_, 0)) {}
    Splitting& operator=(Splitting&&) = delete;
    ~Splitting() { clear(); }

    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }

    template <class Visit>
    void each(Visit visit) const {
        for (std::size_t i = 0; i < part_count_; ++i) parts_[i]->table.each(visit);
    }

    // For one that nobody asks any more: visit and forget some, about as many as `budget` says. Whether that was the rest.
    template <class Visit>
    bool drain(std::size_t& next, std::size_t& budget, Visit visit) {
        while (part_count_ != 0) {
            Table& table = parts_[part_count_ - 1]->table;
            const std::size_t before = table.size();
            const bool done = table.drain(next, budget, visit);
            size_ -= before - table.size();
            if (!done) return false;
            drop_part();
        }
        clear();
        return true;
    }

    void clear() noexcept {
        while (part_count_ != 0) drop_part();
        if (directory_ != nullptr) {
            ledger_->give(directory_, sizeof(Part*) << depth_);
            ledger_->give(parts_, sizeof(Part*) << depth_);
        }
        directory_ = parts_ = nullptr;
        depth_ = 0;
        mask_ = size_ = 0;
    }

  protected:
    // The table for a hash, if there is anything at all.
    Table* table(std::uint64_t hash) const noexcept { return &part(hash).table; }
    // The same, with room for one more. share(from, to, rule) is how entries are shared.
    template <class Share>
    Table& roomy(std::uint64_t hash, Share share) {
        if (directory_ == nullptr) begin();
        while (part(hash).table.size() >= Table::size_max && size_ >> part(hash).depth >= spread_min) split(hash, share);
        return part(hash).table;
    }

    std::size_t& count() noexcept { return size_; }

  private:
    Part& part(std::uint64_t hash) const noexcept { return *directory_[(hash >> first_bit) & mask_]; }

    Part** take_parts(unsigned depth) { return static_cast<Part**>(ledger_->take(sizeof(Part*) << depth)); }
    Part* new_part(unsigned depth) {
        Part* const made = std::construct_at(static_cast<Part*>(ledger_->take(sizeof(Part))), *ledger_, depth);
        return parts_[part_count_++] = made;
    }
    void drop_part() noexcept {
        Part* const gone = parts_[--part_count_];
        std::destroy_at(gone);
        ledger_->give(gone, sizeof(Part));
    }

    void begin() {
        directory_ = take_parts(0);
        parts_ = take_parts(0);
        directory_[0] = new_part(0);
    }

    void widen() {
        const std::size_t bytes = sizeof(Part*) << depth_;
        Part** const directory = take_parts(depth_ + 1);
        Part** const parts = take_parts(depth_ + 1);
        std::memcpy(directory, directory_, bytes);
        std::memcpy(directory + (std::size_t{1} << depth_), directory_, bytes);
        std::memcpy(parts, parts_, part_count_ * sizeof(Part*));
        ledger_->give(std::exchange(directory_, directory), bytes);
        ledger_->give(std::exchange(parts_, parts), bytes);
        ++depth_;
        mask_ = 2 * mask_ + 1;
    }

    template <class Share>
    void split(std::uint64_t hash, Share share) {
        Part& full = part(hash);
        if (full.depth == depth_) widen();
        const unsigned bit = full.depth++;
        Part* const half = new_part(full.depth);
        share(full.table, half->table, [&](std::uint64_t other) { return (other >> (first_bit + bit) & 1) != 0; });
        const std::size_t step = std::size_t{1} << bit;
        for (std::size_t i = ((hash >> first_bit) & (step - 1)) | step; i <= mask_; i += 2 * step) directory_[i] = half;
    }

    Ledger* ledger_;
    Part** directory_ = nullptr;
    Part** parts_ = nullptr;  // each once
    std::size_t part_count_ = 0;
    unsigned depth_ = 0;
    std::size_t mask_ = 0;  // of `depth_` bits
    std::size_t size_ = 0;
};

template <class Key, class Value>
class SplitMap : public Splitting<FlatMap<Key, Value>> {
    using Table = FlatMap<Key, Value>;

  public:
    using Splitting<Table>::Splitting;

    Value* find(Key key) noexcept { return const_cast<Value*>(std::as_const(*this).find(key)); }
    const Value* find(Key key) const noexcept {
        return this->empty() ? nullptr : this->table(table_hash(key))->find(key);
    }
    bool contains(Key key) const noexcept { return find(key) != nullptr; }

    Value& operator[](Key key) {
        if (Value* known = find(key)) return *known;
        const auto share = [](Table& from, Table& to, auto rule) { from.share(to, rule); };
        Value& made = this->roomy(table_hash(key), share)[key];
        ++this->count();
        return made;
    }

    bool erase(Key key) {
        if (this->empty() || !this->table(table_hash(key))->erase(key)) return false;
        if (--this->count() == 0) this->clear();
        return true;
    }
};

class SplitNodeTable : public Splitting<NodeTable> {
  public:
    using Splitting::Splitting;

    template <class Is>
    Node find(std::uint64_t hash, Is is) const {
        return empty() ? no_node : this->table(hash)->find(hash, is);
    }
    template <class HashOf>
    void insert(std::uint64_t hash, Node node, HashOf hash_of) {
        const auto share = [&](NodeTable& from, NodeTable& to, auto rule) { from.share(to, hash_of, rule); };
        roomy(hash, share).insert(hash, node, hash_of);
        ++count();
    }
    template <class HashOf>
    bool erase(std::uint64_t hash, Node node, HashOf hash_of) {
        if (empty() || !this->table(hash)->erase(hash, node, hash_of)) return false;
        if (--count() == 0) clear();
        return true;
    }
};

// The same for the two tables of all workers, which every block asks: always so many, and one step less to each.
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
    // Inlined always: as a call of its own the compiler takes it for one without effect.
    [[gnu::always_inline]] void prefetch(std::uint64_t hash) const noexcept { of(hash).prefetch(hash); }
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
