// Contents: which prefixes there are, in runs, and at which places each is held. Nothing here knows a worker.
//
// A *node* is one PrefixHash. Nodes live in *segments*, pieces of a run of at most 64 blocks; a node's number is its
// segment's number and its position there. See index.hpp for the picture.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hash.hpp"
#include "index_names.hpp"
#include "index_tables.hpp"

namespace warmroute {

inline constexpr Node root_node = 0xFFFFFFFE;  // before the first block of a prompt
inline constexpr unsigned segment_bits = 6;
inline constexpr std::uint32_t segment_blocks_max = 1U << segment_bits;
inline constexpr std::uint32_t segments_max = (1U << (32 - segment_bits)) - 1;  // the last one's nodes mean no node

using Place = std::uint32_t;  // a worker's group in a medium, or a mark of the index's own
inline constexpr Place no_place = 0xFFFFFFFF;

inline std::uint32_t segment_of(Node node) noexcept { return node >> segment_bits; }
inline std::uint32_t position_of(Node node) noexcept { return node & (segment_blocks_max - 1); }
inline Node node_at(std::uint32_t segment, std::uint32_t position) noexcept { return segment << segment_bits | position; }
inline std::uint64_t bit_of(Node node) noexcept { return std::uint64_t{1} << position_of(node); }

// Which places hold which nodes of one segment, ordered by place. A single one needs no memory of its own.
class Holders {
  public:
    std::uint32_t count() const noexcept { return count_; }
    const Place* places() const noexcept {
        return count_ > 1 ? reinterpret_cast<const Place*>(many_ + capacity_) : &place_;
    }
    const std::uint64_t* masks() const noexcept { return count_ > 1 ? many_ : &mask_; }
    std::uint64_t& mask(std::uint32_t i) noexcept { return count_ > 1 ? many_[i] : mask_; }

    // Where the place is, or would be.
    std::uint32_t search(Place place) const noexcept {
        return static_cast<std::uint32_t>(std::lower_bound(places(), places() + count_, place) - places());
    }
    std::uint64_t mask_of(Place place) const noexcept {
        const std::uint32_t i = search(place);
        return i < count_ && places()[i] == place ? masks()[i] : 0;
    }

    void insert(std::uint32_t i, Place place, Ledger& ledger);
    void erase(std::uint32_t i, Ledger& ledger) noexcept;
    void clear(Ledger& ledger) noexcept;

  private:
    static std::size_t bytes(std::uint32_t capacity) noexcept {
        return capacity * (sizeof(std::uint64_t) + sizeof(Place));
    }
    void resize(std::uint32_t capacity, Ledger& ledger);

    union {
        std::uint64_t mask_ = 0;
        std::uint64_t* many_;  // masks, then places
    };
    std::uint32_t count_ = 0;
    union {
        Place place_ = no_place;
        std::uint32_t capacity_;
    };
};

struct Segment {
    std::uint64_t* blocks = nullptr;  // prefixes of positions from `base` on, then their keys
    PrefixHash parent_prefix = 0;     // what is at `parent`: else the parent has gone and its number means another
    Node parent = no_node;            // before `first`
    std::uint32_t next = no_node;     // the segment that goes on from here, as a hint; of free ones, the next free one
    std::uint32_t block_size = 0;
    std::uint8_t base = 0;
    std::uint8_t first = 0;   // the first live position
    std::uint8_t length = 0;  // one more than the last live position; 0: the segment is free
    std::uint8_t capacity = 0;
    std::uint64_t live = 0;   // held at some place
    std::uint64_t named = 0;  // has a key that workers share
    Holders holders;

    PrefixHash& prefix(std::uint32_t position) noexcept { return blocks[position - base]; }
    PrefixHash prefix(std::uint32_t position) const noexcept { return blocks[position - base]; }
    Key& key(std::uint32_t position) noexcept { return blocks[capacity + position - base]; }
    Key key(std::uint32_t position) const noexcept { return blocks[capacity + position - base]; }
};
static_assert(sizeof(Segment) == 64, "one cache line");

class Nodes {
  public:
    Nodes(Ledger& ledger, Names& names);
    Nodes(const Nodes&) = delete;
    Nodes& operator=(const Nodes&) = delete;
    ~Nodes();

    const Segment& segment(std::uint32_t number) const noexcept { return pages_[number / page_segments][number % page_segments]; }
    const Segment& segment_at(Node node) const noexcept { return segment(segment_of(node)); }
    PrefixHash prefix(Node node) const noexcept { return segment_at(node).prefix(position_of(node)); }
    bool live(Node node) const noexcept { return (segment_at(node).live & bit_of(node)) != 0; }
    std::uint64_t live_count() const noexcept { return live_count_; }
    std::uint32_t segments_made() const noexcept { return made_; }

    // Whether the number still means this prefix.
    bool is(Node node, PrefixHash prefix) const noexcept;
    // The node before this one: root_node, or no_node if that has gone.
    Node before(Node node) const noexcept;
    // The first node of a run with this prefix, or one that was restored; no_node if there is none.
    Node find(PrefixHash prefix) const;
    // The node with this prefix after `parent` (root_node, no_node if unknown), made if there is none. A node that was
    // made must be marked at once. `more`: how many blocks are expected to follow.
    Node locate(Node parent, PrefixHash prefix, std::uint64_t block_size, std::size_t more);

    // The node that workers share this key for, or no_node. Here and below, `hash` is the key's `table_hash`.
    Node shared(Key key, std::uint64_t hash) const {
        return keys_.find(hash, [&](Node node) { return this->key(node) == key; });
    }
    Node shared(Key key) const { return shared(key, table_hash(key)); }
    [[gnu::always_inline]] void prefetch_shared(std::uint64_t hash) const noexcept { keys_.prefetch(hash); }
    bool has_key(Node node) const noexcept { return (segment_at(node).named & bit_of(node)) != 0; }
    Key key(Node node) const noexcept { return segment_at(node).key(position_of(node)); }
    // Whether the key is the one that workers share for this node, or has become it now.
    bool offer_key(Node node, Key key);
    // The same where the node has no key, and the key no node.
    void add_key(Node node, Key key, std::uint64_t hash);

    Place add_place();
    // Only for a place without marks.
    void remove_place(Place place);
    bool held(Node node, Place place) const noexcept { return (mask(segment_of(node), place) & bit_of(node)) != 0; }
    std::uint64_t mask(std::uint32_t segment, Place place) const noexcept;
    void mark(Node node, Place place) { mark(segment_of(node), bit_of(node), place); }
    void mark(std::uint32_t segment, std::uint64_t positions, Place place);
    // Without its last mark, a node is gone.
    void unmark(Node node, Place place);
    // Take away a place's marks, on about `budget` nodes, which counts down; nobody else must mark there meanwhile. `next`
    // is 0 at first and then what the last call left. Whether that was the rest.
    bool unmark_some(Place place, std::size_t& next, std::size_t& budget);
    // Free segments that were used once; whether that was the rest.
    bool sweep(std::size_t& budget) noexcept;
    // Every segment with nodes that are held at the place, in order.
    std::vector<std::uint32_t> segments_of(Place place) const;

    // In between, nodes are found whatever their parent, as restored ones may be out of place.
    void begin_restoring();
    void end_restoring();

    // What contradicts what, in words.
    void problems(std::vector<std::string>& found) const;

  private:
    static constexpr std::uint32_t page_segments = 1024;  // 64 KiB, which goes back to the system as it is

    Segment& at(std::uint32_t number) noexcept { return pages_[number / page_segments][number % page_segments]; }
    Segment& at_node(Node node) noexcept { return at(segment_of(node)); }
    auto hash_of_prefix() const noexcept {
        return [this](Node node) { return table_hash(prefix(node)); };
    }
    // A key is two steps through memory away from its node: the first is taken ahead of time, then the second.
    struct HashOfKey {
        const Nodes* nodes;
        std::uint64_t operator()(Node node) const noexcept { return table_hash(nodes->key(node)); }
        void approach(Node node) const noexcept { __builtin_prefetch(&nodes->segment_at(node)); }
        void reach(Node node) const noexcept {
            const Segment& segment = nodes->segment_at(node);
            __builtin_prefetch(&segment.blocks[segment.capacity + position_of(node) - segment.base]);
        }
    };
    HashOfKey hash_of_key() const noexcept { return {this}; }

    bool follows(Node parent, PrefixHash prefix) const noexcept;
    Node append(Node parent, PrefixHash prefix, std::uint64_t block_size, std::size_t more);
    Node begin(Node parent, PrefixHash prefix, std::uint64_t block_size, std::size_t more);
    void link(Segment& segment, Node parent) noexcept;
    void list(Node node);
    void unlist(Node node);
    void reserve(Segment& segment, std::uint32_t base, std::uint32_t capacity);
    std::uint32_t take_segment();
    void give_segment(std::uint32_t number);
    std::uint32_t join(std::uint32_t segment, Place place);
    void leave(std::uint32_t segment, std::uint32_t holder);
    void bury(std::uint32_t number, std::uint64_t positions);
    void trim(std::uint32_t number);
    void check_segment(std::uint32_t number, std::vector<std::string>& found) const;

    Ledger& ledger_;
    Names& names_;
    std::vector<Segment*, Counted<Segment*>> pages_;
    std::uint32_t made_ = 0;           // segments that have numbers
    std::uint32_t free_ = no_node;     // the first free one
    std::uint32_t free_count_ = 0;
    std::uint64_t live_count_ = 0;
    ShardedNodeTable heads_;           // by prefix: the first node of each segment, and listed ones
    ShardedNodeTable keys_;            // by key: nodes that have one
    std::uint64_t listed_ = 0;         // nodes in heads_ that are not the first of their segment
    std::vector<SplitNodeTable, Counted<SplitNodeTable>> joined_;  // by place: segments with nodes that are held there
    std::vector<Place, Counted<Place>> free_places_;
    std::optional<FlatMap<PrefixHash, Node>> everywhere_;  // while restoring: every node
    std::uint32_t recent_segment_ = no_node;  // where the last mark was made: the next is likely there
    Place recent_place_ = no_place;
    std::uint32_t recent_holder_ = 0;
};

// The table of keys is larger than caches: while an event's hashes are gone through, those to come are fetched.
class Lookahead {
  public:
    Lookahead(const Nodes& nodes, const Hashes& hashes, std::size_t start) : nodes_(nodes), keys_(hashes.numbers), at_(start) {
        for (std::size_t i = start; i < start + distance; ++i) fetch(i);
    }
    // The hash of the next key, if it is a number.
    std::uint64_t next() noexcept {
        const std::uint64_t hash = hashes_[at_ % distance];
        fetch(at_ + distance);
        ++at_;
        return hash;
    }

  private:
    static constexpr std::size_t distance = 8;

    [[gnu::always_inline]] void fetch(std::size_t i) noexcept {
        if (i >= keys_.size()) return;
        const std::uint64_t hash = table_hash(keys_[i]);
        hashes_[i % distance] = hash;
        nodes_.prefetch_shared(hash);
    }

    const Nodes& nodes_;
    const std::vector<std::uint64_t>& keys_;
    std::size_t at_;
    std::array<std::uint64_t, distance> hashes_;
};

}  // namespace warmroute
