// The prefix index: which worker holds how much of a prompt's beginning. Its contract is warmroute/core/index/contract.py,
// its slow twin reference.py. Pure C++; index_binding.cpp is its Python face.
//
// A prompt's blocks are a chain of PrefixHashes, each of which stands for all before it. So there is no tree to walk:
//
//     run    p0 p1 p2 p3 p4 | p5 p6 ..       blocks side by side, in *segments* of at most 64
//                    \                       a branch splits nothing:
//     run             q3 q4 q5               it is a new run, found by its own first prefix
//
//     heads  p0, p5, q3                      first prefix of a segment -> where it is
//     match  look up a head, compare side by side to the end or a difference, look up the next head, ..., stop
//
// Who holds what is one bit per block and *place* (a worker's group in a medium), so a segment that 64 workers hold
// costs 12 bytes for each of them, however they came by its blocks and in whatever order they lose them:
//
//     segment     first     length            place    blocks held
//     prefixes      p0 p1 p2 p3 p4            0        1 1 1 1 1
//     keys          k0 k1 k2 k3 k4            1        1 1 1 . .
//     parent of p0, block size                7        1 . 1 1 .
//
// What engines call a block, its *key*, leads to the node (segment and position). Engines that agree on it share one
// table; where a worker's key for a node is another, it has an entry in a table of its own:
//
//     shared     k2 -> (segment, 2)           for every worker that holds it and has no own key for it
//     own        x2 -> (segment, 2)           this worker's only
//
// A *record* is one worker's (key, node): all copies that it announced under the key. Nearly always it is the worker's
// only one at its node, and its parent is its record at the node before; then marks say all there is to say. For what
// engines do beside that there are small tables in Worker, empty in peaceful times:
//
//     more_copies   copies beyond the first
//     twins         a second key for the same content
//     parents       a record whose parent is another than that: after conflicts, and all that are idle
//     idle          (a place of its own) records without copies, known as long as held ones name them as parent
//     parked        orphans and blocks known by hash only
//
// A node is live while any place has a mark on it, and freed with its last one. Numbers of freed nodes are used again:
// whoever keeps one across that (a segment its parent) checks by the prefix that it still means the same.
//
// A worker that is cleared or dropped is *forgotten*: at once its marks are at places that answer nothing, and its tables
// are asked by nobody. They are swept later, some at a time, as a million marks take 50 ms to clear. Until then they are
// to all others what another worker's are.
//
// Architecture invariant: two contents with equal 64-bit PrefixHashes are one content here. See hashing.py on collisions.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "event.hpp"
#include "index_names.hpp"
#include "index_nodes.hpp"
#include "index_tables.hpp"
#include "index_worker.hpp"

namespace warmroute {

using WorkerId = std::uint64_t;

inline constexpr std::size_t media_count = 3;

// See contract.ApplyReport.
struct Report {
    std::uint64_t stored = 0;
    std::uint64_t removed = 0;
    std::uint64_t cleared = 0;
    std::uint64_t unknown_removed = 0;
    std::uint64_t orphaned = 0;
    std::uint64_t adopted = 0;
    std::uint64_t orphans_dropped = 0;
    std::uint64_t unresolved = 0;
    std::uint64_t conflicts = 0;
    std::uint64_t partial = 0;
    std::uint64_t evicted = 0;
    std::uint64_t outgrown = 0;
};

// See contract.Overlap; side by side, one element per worker.
struct Matches {
    std::vector<WorkerId> workers;
    std::vector<std::uint32_t> blocks;
    std::vector<std::array<std::uint32_t, media_count>> by_medium;
};

// See contract.IndexSizes and contract.WorkerSizes.
struct IndexSizes {
    std::uint64_t workers, nodes, copies, orphans, unresolved, bytes;
};
struct WorkerSizes {
    std::uint64_t blocks = 0, copies = 0, orphans = 0, unresolved = 0;
    std::vector<std::uint64_t> block_sizes;
};

// See contract.DumpEntry.
struct DumpedCopies {
    std::uint64_t group;
    Medium medium;
    std::uint64_t count;
};
struct DumpedBlock {
    WorkerId worker = 0;
    Hashes hash;    // one
    Hashes parent;  // one or none
    PrefixHash prefix = 0;
    std::uint64_t block_size = 0;
    std::vector<DumpedCopies> copies;
    std::vector<Groups::Fact> groups;
};

// See make_index.
struct Limits {
    std::uint64_t orphan_blocks_max;
    std::optional<std::uint64_t> blocks_max{};
    std::optional<std::uint64_t> worker_blocks_max{};
};

class Index {
  public:
    explicit Index(Limits limits);
    Index(const Index&) = delete;
    Index& operator=(const Index&) = delete;
    ~Index();

    void apply(WorkerId worker, const Event& event, Report& report);
    void store(WorkerId worker, const Stored& event, Report& report);
    void remove(WorkerId worker, const Removed& event, Report& report);
    void clear(WorkerId worker, Report& report);
    void drop(WorkerId worker);
    // Free what clears and drops have left, about so many blocks of it; whether there is more.
    bool sweep(std::size_t blocks);

    void match(std::span<const PrefixHash> prefixes, std::uint64_t block_size, Matches& matches);
    // What a match says of one worker: blocks, 0 if it is left out.
    std::uint32_t depth(WorkerId id, std::span<const PrefixHash> prefixes, std::uint64_t block_size);
    std::vector<std::uint64_t> block_sizes() const;
    std::optional<std::vector<std::uint64_t>> prefix_sizes(WorkerId worker) const;
    WorkerSizes worker_sizes(WorkerId worker) const;
    IndexSizes sizes() const;

    std::vector<DumpedBlock> dump(std::optional<WorkerId> worker) const;
    void restore(std::span<const DumpedBlock> blocks);
    // Every contradiction inside, in words: none, or a bug of ours.
    std::vector<std::string> problems() const;

  private:
    // A resolved record of a worker: its main one at the node, or a twin.
    struct Record {
        enum class Kind : std::uint8_t { none, main, twin };
        Kind kind = Kind::none;
        Node node = no_node;
        Key key = 0;
        explicit operator bool() const noexcept { return kind != Kind::none; }
    };
    // What a match has to know of a place at once.
    struct Answer {
        WorkerId worker = 0;
        std::uint32_t worker_number = 0;
        std::uint32_t block_size = 0;  // 0: takes no part in matches; complex_answer: see Worker::groups
        Medium medium = Medium::gpu;
    };
    static constexpr std::uint32_t complex_answer = 0xFFFFFFFF;
    struct Piece {  // of a request that was found side by side
        std::uint32_t segment;
        std::uint32_t position;
        std::uint32_t start;  // in the request
        std::uint32_t count;
        std::uint64_t mask() const noexcept { return (~std::uint64_t{0} >> (64 - count)) << position; }
    };
    struct Matching;

    // index.cpp: events, workers
    Worker* find_worker(WorkerId id) const;
    Worker& worker_of(WorkerId id);
    Place find_place(const Worker& worker, std::uint64_t group, Medium medium) const;
    Place place_of(Worker& worker, std::uint64_t group, Medium medium);
    Place mark_place(Worker& worker, Place& place);
    Place new_place(const Worker& worker, Medium medium);
    void refresh_answers(const Worker& worker);
    Worker* make_worker(WorkerId id, std::uint32_t number);
    void destroy(Worker* worker);
    void disown(Worker& worker);
    void shrink();
    bool sweep_worker(Worker& worker, std::size_t& budget);
    bool sweep_keys(Worker& worker, std::size_t& budget);
    void evict(Report& report);
    void evict_outgrown(Worker& worker, Report& report);
    void evict_greatest_worker(Report& report);
    bool limited() const noexcept { return limits_.blocks_max || limits_.worker_blocks_max; }
    void push_leaf(Worker& worker, Key key);
    void push_oldest_leaf(Worker& worker, Key key);
    void touch_leaf(Worker& worker, Key key);
    void erase_leaf(Worker& worker, Key key);
    void know_eldest(Worker& worker);

    // index_store.cpp: what announcements do to records
    std::size_t store_new(Worker& worker, const Stored& event, std::size_t start, Parent& parent, Record& record,
                          Place place, Report& report);
    Record store_block(Worker& worker, Key key, const Claim* claim, const Record& parent, Place place, std::size_t more,
                       Report& report);
    void remove_block(Worker& worker, Key key, Place place, Report& report);
    Record resolve(Worker& worker, Key key, const Claim& claim, const Record& parent, Place place, std::size_t more,
                   Report& report);
    void adopt_waiting(Worker& worker, Key key, Report& report);
    Record redefine(Worker& worker, const Record& record, Parent parent, PrefixHash prefix, std::uint64_t block_size);
    void estrange_children(Worker& worker, const Record& record);
    void lift(Worker& worker, const Record& record, const Copies& copies);
    void park(Worker& worker, Key key, const Claim* claim, Place place, Report& report);
    Copies unpark(Worker& worker, Parked& parked);
    void stop_waiting(Worker& worker, Parked& parked);
    std::uint64_t drop_longest_parked(Worker& worker);
    bool remove_parked(Worker& worker, Key key, Place place);

    // index_records.cpp: records and who names whom
    Record find(const Worker& worker, Key key) const;
    Record find(const Worker& worker, Parent parent) const { return parent.known ? find(worker, parent.key) : Record{}; }
    Record main_at(const Worker& worker, Node node) const;
    Key key_of(const Worker& worker, Node node) const;
    bool has_own_key(const Worker& worker, Node node) const noexcept;
    void add_own_key(Worker& worker, Key key, Node node);
    void remove_own_key(Worker& worker, Node node);
    bool exists(const Worker& worker, Node node) const;
    bool main_held(const Worker& worker, Node node) const;
    bool held(const Worker& worker, const Record& record) const;
    bool idle(const Worker& worker, Node node) const noexcept {
        return worker.idle != no_place && nodes_.held(node, worker.idle);
    }
    bool has_twins(const Worker& worker, Node node) const noexcept {
        return !worker.twins_at.empty() && worker.twins_at.contains(node);
    }
    Parent parent_of(const Worker& worker, const Record& record) const;
    bool is_parent(const Worker& worker, const Record& record, Parent parent, const Record& parent_record) const;

    std::uint64_t copies_at(const Worker& worker, const Record& record, Place place) const;
    void set_copies(Worker& worker, const Record& record, Place place, std::uint64_t count);
    Copies copies_of(const Worker& worker, const Record& record) const;
    void sync_mark(Worker& worker, Node node, Place place);
    void add_copies(Worker& worker, const Record& record, Place place, std::uint64_t count);
    void take_copy(Worker& worker, const Record& record, Place place);
    std::uint64_t take_all_copies(Worker& worker, const Record& record);

    // `parent_record` is what `find` gives for the parent's key, here and below.
    Record define(Worker& worker, Record record, Parent parent, const Record& parent_record,
                  std::span<const CopiesAt> copies);
    Record add_twin(Worker& worker, Key key, Node node, Parent parent);
    void remove_twin(Worker& worker, Key key);
    void begin_holding(Worker& worker, const Record& record, Parent parent, const Record& parent_record);
    void release(Worker& worker, const Record& record, Place place);
    void forget(Worker& worker, const Record& record);
    void forget_if_unused(Worker& worker, Key key);

    void set_parent(Worker& worker, Node node, Parent parent);
    void unset_parent(Worker& worker, Node node);
    bool named(const Worker& worker, const Record& record) const;
    void name_key(Worker& worker, Key key);
    void unname_key(Worker& worker, Key key);
    void name_before(Worker& worker, Node node);
    void unname_before(Worker& worker, Node node, bool first);
    void settle(Worker& worker, const Record& record);
    void settle_before(Worker& worker, Node node);

    // index_match.cpp
    using ByMedium = std::array<std::uint32_t, media_count>;
    void find_pieces(std::span<const PrefixHash> prefixes);
    void begin_simple(std::uint64_t block_size, Matches& matches);
    void extend_simple(const Piece& piece, Matches& matches);
    void match_complex(const Worker& worker, std::uint64_t block_size, std::uint32_t asked, Matches& matches);
    std::array<std::uint64_t, media_count> held_up_to(const Worker& worker, std::uint64_t group,
                                                      std::uint32_t segment) const;
    ByMedium overlap_by_chains(const Worker& worker, std::span<const Groups::Part> parts) const;
    ByMedium overlap_by_windows(const Worker& worker, std::span<const Groups::Part> parts, std::uint32_t asked) const;

    // index_dump.cpp
    Hashes hashes_of(Key key) const;
    void dump_worker(const Worker& worker, std::vector<DumpedBlock>& blocks) const;
    std::vector<Record> records_of(const Worker& worker) const;
    void restore_block(Worker& worker, const DumpedBlock& block);

    // index_check.cpp
    struct Checking;
    void check_worker(const Worker& worker, Checking& checking) const;
    void check_record(const Worker& worker, const Record& record, Checking& checking) const;
    void check_names(const Worker& worker, const std::vector<Record>& records, Checking& checking) const;
    void check_own_keys(const Worker& worker, Checking& checking) const;
    void check_parked(const Worker& worker, Checking& checking) const;
    void check_forgotten(const Worker& worker, Checking& checking) const;

    mutable Ledger ledger_;  // what is const may still use memory
    Names names_;
    Nodes nodes_;
    Limits limits_;
    std::uint64_t copies_ = 0;
    Vector<Worker*> workers_;  // by number
    Vector<std::uint32_t> free_workers_;
    FlatMap<WorkerId, std::uint32_t> numbers_;
    Vector<Answer> answers_;           // by place
    Vector<std::uint32_t> headless_;   // workers with sliding groups only: for them, a prompt's first block is not needed
    Vector<Worker*> forgotten_;        // to be swept
    // Who has the oldest leaf of all, by its age: kept only if there is a limit for all.
    using Eldest = std::pair<std::int64_t, std::uint32_t>;
    std::set<Eldest, std::less<>, Counted<Eldest>> eldest_;
    std::int64_t youngest_age_ = 0;
    std::int64_t oldest_age_ = 0;
    std::vector<Piece> pieces_;        // of the match that is going on
    std::unique_ptr<Matching> matching_;
};

}  // namespace warmroute
