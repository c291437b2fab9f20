// What the index knows of one worker beside the marks that its places have on nodes.
#pragma once

#include <cstdint>
#include <limits>
#include <list>
#include <optional>
#include <unordered_map>
#include <vector>

#include "event.hpp"
#include "index_nodes.hpp"
#include "index_tables.hpp"

namespace warmroute {

template <class T>
using Vector = std::vector<T, Counted<T>>;

struct KeyHash {
    std::size_t operator()(Key key) const noexcept { return table_hash(key); }
};
template <class Value>
using StableMap = std::unordered_map<Key, Value, KeyHash, std::equal_to<>, Counted<std::pair<const Key, Value>>>;

// A block's parent: a key, or none for the first block of a prompt.
struct Parent {
    Key key = 0;
    bool known = false;

    friend bool operator==(const Parent& a, const Parent& b) noexcept {
        return a.known == b.known && (!a.known || a.key == b.key);
    }
};

// Whereabouts of copies: a worker's group in a medium.
struct Whereabouts {
    std::uint64_t group;
    Medium medium;
    Place place;
};

struct CopiesAt {
    Place place;
    std::uint64_t count;
};
using Copies = Vector<CopiesAt>;

inline std::uint64_t total(const Copies& copies) noexcept {
    std::uint64_t sum = 0;
    for (const CopiesAt& at : copies) sum += at.count;
    return sum;
}

// What a worker's KV groups are like, learned from announcements. Survives clears.
class Groups {
  public:
    // A group that takes part in matches of a block size.
    struct Part {
        std::uint64_t block_size;
        std::uint64_t group;
        bool full;
        std::uint64_t need;  // of a sliding group: how many blocks before the overlap's end it must hold
    };
    struct Fact {
        std::uint64_t group;
        Medium medium;
        std::uint64_t block_size;
        std::uint64_t window;  // no_window if it is no sliding group
    };

    explicit Groups(Ledger& ledger) : kinds_(ledger), facts_(ledger), parts_(ledger) {}

    // Take up an announcement that shows the group's kind. Whether that changed anything.
    bool learn(std::uint64_t group, Medium medium, std::uint64_t block_size, std::uint64_t window);
    // The largest block size announced for the group in this medium; 0 if none was.
    std::uint64_t block_size(std::uint64_t group, Medium medium) const noexcept;
    // By block size, then group.
    const Vector<Part>& parts() const noexcept { return parts_; }
    std::vector<Fact> facts() const;
    // Ascending, without repetition.
    std::vector<std::uint64_t> block_sizes() const;

  private:
    struct Kind {
        std::uint64_t group;
        bool sliding;
        std::uint64_t window;
    };
    void make_parts();
    std::uint64_t block_size(std::uint64_t group) const noexcept;

    Vector<Kind> kinds_;
    Vector<Fact> facts_;  // by group and medium
    Vector<Part> parts_;
};

// What an announcement says of a block whose parent is not known yet.
struct Claim {
    Parent parent;
    std::uint64_t digest = 0;
    std::uint64_t block_size = 0;
};

// An orphan (it has a claim, and waits for the claim's parent) or a block that is known by hash only.
struct Parked {
    explicit Parked(Ledger& ledger) : copies(ledger) {}

    Key key = 0;
    std::optional<Claim> claim;
    Copies copies;
    Parked* older = nullptr;
    Parked* newer = nullptr;
    Parked* sibling_before = nullptr;
    Parked* sibling_after = nullptr;
};

struct Waiting {
    Parked* first = nullptr;
    Parked* last = nullptr;
};

// A second record of one worker for a content that it has under another key already.
struct Twin {
    explicit Twin(Ledger& ledger) : copies(ledger) {}

    Node node = no_node;
    Parent parent;
    Copies copies;
    Key next = 0;  // the next twin at the node
    bool has_next = false;
};

// Keys of its own that a worker has for nodes of one segment, in order of position.
struct OwnKeys {
    std::uint64_t mask = 0;
    Key* keys = nullptr;
    std::uint32_t capacity = 0;

    std::uint32_t rank(Node node) const noexcept {
        return static_cast<std::uint32_t>(std::popcount(mask & (bit_of(node) - 1)));
    }
};

// A worker's held records that no held record names as its parent, the oldest first: so they would be evicted. Ages are
// the index's: the greater, the younger.
class Leaves {
  public:
    struct Leaf {
        Key key;
        std::int64_t age;
    };

    explicit Leaves(Ledger& ledger) : order_(ledger), places_(0, KeyHash{}, std::equal_to<>{}, ledger) {}

    bool empty() const noexcept { return order_.empty(); }
    std::size_t size() const noexcept { return order_.size(); }
    const Leaf& front() const noexcept { return order_.front(); }
    bool contains(Key key) const { return places_.contains(key); }
    void push_front(Leaf leaf);
    void push_back(Leaf leaf);
    void erase(Key key);
    void touch(Leaf leaf);  // make it the youngest, if it is one

  private:
    using Order = std::list<Leaf, Counted<Leaf>>;

    Order order_;
    StableMap<Order::iterator> places_;
};

struct Worker {
    Worker(Ledger& ledger, std::uint64_t worker_id, std::uint32_t worker_number)
        : id(worker_id), number(worker_number), places(ledger), groups(ledger), own_keys(ledger), own(ledger),
          twins(0, KeyHash{}, std::equal_to<>{}, ledger), twins_at(ledger), parents(ledger), branches(ledger),
          named_keys(ledger), more_copies(ledger), parked(0, KeyHash{}, std::equal_to<>{}, ledger),
          waiting(0, KeyHash{}, std::equal_to<>{}, ledger), leaves(ledger) {}

    std::uint64_t id;
    std::uint32_t number;
    std::uint64_t copies = 0;
    std::uint64_t held = 0;  // records with copies
    std::uint64_t copies_parked = 0;
    Place idle = no_place;     // marks nodes whose record has no copies, and is kept as it is named
    Place twinned = no_place;  // marks nodes that have twins
    Vector<Whereabouts> places;
    Groups groups;

    // Where the worker's key for a node is not the one that workers share: key -> node, and back.
    SplitMap<std::uint32_t, OwnKeys> own_keys;  // by segment
    SplitNodeTable own;
    StableMap<Twin> twins;
    SplitMap<Node, Key> twins_at;  // the first of them

    SplitMap<Node, Parent> parents;  // of records whose parent is not the worker's record at the node before
    // How many held records name a record as their parent, unless it is the next position of the same segment:
    SplitMap<Node, std::uint32_t> branches;   // their node is the first of a segment
    SplitMap<Key, std::uint32_t> named_keys;  // they are in `parents`, or twins
    // Copies beyond the first, by place and node; with twins at the node, all copies of its record.
    SplitMap<std::uint64_t, std::uint64_t> more_copies;

    StableMap<Parked> parked;
    Parked* oldest = nullptr;
    Parked* newest = nullptr;
    StableMap<Waiting> waiting;  // by the parent that is waited for

    static constexpr std::int64_t ageless = std::numeric_limits<std::int64_t>::max();
    Leaves leaves;                 // kept only if there is a limit
    std::int64_t eldest = ageless;  // the age of the first, where the index knows it by
    std::size_t swept = 0;         // of a forgotten worker: how far the table is that is being swept
};

}  // namespace warmroute

