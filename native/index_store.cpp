// What announcements do to a worker's records: they define, redefine, park, adopt and remove them.

#include <algorithm>
#include <utility>

#include "index.hpp"

namespace warmroute {

// The straight way for what nearly always comes: blocks that are new to a worker that never did anything odd, under the
// key that all workers have for them. Gives how many it took up, from `start` on; parent and record are then the last
// one's. Whatever it does not take is for `store_block`, which would have done the same with these.
std::size_t Index::store_new(Worker& worker, const Stored& event, std::size_t start, Parent& parent, Record& record,
                             Place place, Report& report) {
    const bool odd = !worker.own.empty() || !worker.twins.empty() || !worker.parked.empty();
    if (odd || (parent.known && record.kind != Record::Kind::main)) return 0;
    const std::vector<std::uint64_t>& keys = event.hashes.numbers;
    Node before = parent.known ? record.node : root_node;
    PrefixHash prefix = parent.known ? nodes_.prefix(before) : root;
    std::uint32_t segment = no_node;
    std::uint64_t unmarked = 0;  // positions in it
    Lookahead ahead(nodes_, event.hashes, start);
    std::size_t i = start;
    for (; i < keys.size() && keys[i] < first_interned; ++i) {
        const std::uint64_t hash = ahead.next();
        prefix = chain(prefix, event.digests[i], 0);
        Node node = nodes_.shared(keys[i], hash);
        if (node == no_node) {
            node = nodes_.locate(before, prefix, event.block_size, keys.size() - i - 1);
            if (nodes_.live(node) || nodes_.before(node) != before) break;  // it has another key, or is out of place
            nodes_.add_key(node, keys[i], hash);
        } else if (nodes_.prefix(node) != prefix || nodes_.before(node) != before || exists(worker, node)) {
            break;
        }
        if (segment_of(node) != segment) {
            if (unmarked != 0) nodes_.mark(segment, unmarked, place);
            segment = segment_of(node);
            unmarked = 0;
            if (before != root_node && position_of(node) == nodes_.segment(segment).first) ++worker.branches[before];
        }
        unmarked |= bit_of(node);
        before = node;
    }
    if (unmarked != 0) nodes_.mark(segment, unmarked, place);
    const std::size_t count = i - start;
    if (count == 0) return 0;
    if (limited() && parent.known) erase_leaf(worker, parent.key);
    parent = {keys[i - 1], true};
    record = {Record::Kind::main, before, keys[i - 1]};
    if (limited() && !named(worker, record)) push_leaf(worker, record.key);
    worker.held += count;
    worker.copies += count;
    copies_ += count;
    report.stored += count;
    return count;
}

// Add a copy of one block. `claim` is null if the announcement does not say what it is; `parent` is the record of the
// claim's parent. Gives the block's record: none if it was parked.
Index::Record Index::store_block(Worker& worker, Key key, const Claim* claim, const Record& parent, Place place,
                                 std::size_t more, Report& report) {
    Record record = find(worker, key);
    const bool placed = claim != nullptr && (!claim->parent.known || parent);
    if (!placed && !record) {
        park(worker, key, claim, place, report);
        return record;
    }
    ++report.stored;
    if (!record) return resolve(worker, key, *claim, parent, place, more, report);
    if (placed) {
        const PrefixHash prefix = chain(claim->parent.known ? nodes_.prefix(parent.node) : root, claim->digest, 0);
        const bool conflict = nodes_.prefix(record.node) != prefix;
        report.conflicts += conflict ? 1 : 0;
        if (conflict || !is_parent(worker, record, claim->parent, parent)) {
            record = redefine(worker, record, claim->parent, prefix, claim->block_size);
        }
    }
    add_copies(worker, record, place, 1);
    return record;
}

// Give a key its first meaning and a copy, and then all orphans that were waiting for it, directly or not.
Index::Record Index::resolve(Worker& worker, Key key, const Claim& claim, const Record& parent, Place place,
                             std::size_t more, Report& report) {
    const PrefixHash prefix = chain(claim.parent.known ? nodes_.prefix(parent.node) : root, claim.digest, 0);
    const CopiesAt one{place, 1};
    Record record{Record::Kind::main, no_node, key};
    std::uint64_t count = 1;
    const auto parked = worker.parked.empty() ? worker.parked.end() : worker.parked.find(key);
    if (parked == worker.parked.end()) {
        record.node = nodes_.locate(claim.parent.known ? parent.node : root_node, prefix, claim.block_size, more);
        record = define(worker, record, claim.parent, parent, {&one, 1});
    } else {
        Copies copies = unpark(worker, parked->second);
        report.adopted += total(copies);
        const auto same = std::find_if(copies.begin(), copies.end(), [&](const CopiesAt& at) { return at.place == place; });
        if (same == copies.end()) {
            copies.push_back(one);
        } else {
            ++same->count;
        }
        count = total(copies);
        record.node = nodes_.locate(claim.parent.known ? parent.node : root_node, prefix, claim.block_size, more);
        record = define(worker, record, claim.parent, parent, copies);
    }
    worker.copies += count;
    copies_ += count;
    if (!worker.waiting.empty()) adopt_waiting(worker, key, report);
    return record;
}

void Index::adopt_waiting(Worker& worker, Key key, Report& report) {
    std::vector<Key> ready{key};
    for (std::size_t i = 0; i < ready.size(); ++i) {
        const Parent parent{ready[i], true};
        const Record parent_record = find(worker, parent);
        while (true) {
            const auto waiting = worker.waiting.find(parent.key);
            if (waiting == worker.waiting.end()) break;
            Parked& orphan = *waiting->second.first;
            const Claim claim = *orphan.claim;
            Record record{Record::Kind::main, no_node, orphan.key};
            const Copies copies = unpark(worker, orphan);
            const PrefixHash prefix = chain(nodes_.prefix(parent_record.node), claim.digest, 0);
            record.node = nodes_.locate(parent_record.node, prefix, claim.block_size, 0);
            define(worker, record, parent, parent_record, copies);
            const std::uint64_t count = total(copies);
            report.adopted += count;
            worker.copies += count;
            copies_ += count;
            ready.push_back(record.key);
        }
    }
}

// The engine's latest word on a key that has a meaning: other content, another parent, or both.
Index::Record Index::redefine(Worker& worker, const Record& record, Parent parent, PrefixHash prefix,
                              std::uint64_t block_size) {
    const Record new_parent = find(worker, parent);
    const PrefixHash parent_prefix = new_parent ? nodes_.prefix(new_parent.node) : 0;
    const Copies copies = copies_of(worker, record);
    const Parent old_parent = parent_of(worker, record);
    const bool held = !copies.empty();
    if (held && parent.known) name_key(worker, parent.key);  // so that it outlives what is let go
    if (record.kind == Record::Kind::main) estrange_children(worker, record);
    lift(worker, record, copies);
    const Node anchor = !parent.known                                   ? root_node
                        : nodes_.is(new_parent.node, parent_prefix) ? new_parent.node
                                                                        : no_node;
    Record made{Record::Kind::main, nodes_.locate(anchor, prefix, block_size, 0), record.key};
    made = define(worker, made, parent, find(worker, parent), copies);
    if (held && parent.known) unname_key(worker, parent.key);
    if (held && old_parent.known) settle(worker, find(worker, old_parent));
    return made;
}

// A record's children know it by its place: before it moves, they are told its key.
void Index::estrange_children(Worker& worker, const Record& record) {
    const Node node = record.node;
    const auto estrange = [&](Node child) {
        if (!main_held(worker, child) || worker.parents.contains(child)) return;
        set_parent(worker, child, {record.key, true});
        name_key(worker, record.key);
    };
    if (position_of(node) + 1 < nodes_.segment_at(node).length) estrange(node + 1);
    if (!worker.branches.contains(node)) return;
    for (const Whereabouts& at : worker.places) {
        for (const std::uint32_t number : nodes_.segments_of(at.place)) {
            const Segment& segment = nodes_.segment(number);
            const Node head = node_at(number, segment.first);
            if (segment.parent == node && nodes_.before(head) == node) estrange(head);
        }
    }
    worker.branches.erase(node);
}

// Take a record away as if it had never been, but for who names it. Its parent is not told yet.
void Index::lift(Worker& worker, const Record& record, const Copies& copies) {
    const bool held = !copies.empty();
    worker.held -= held ? 1 : 0;
    const Node node = record.node;
    const bool main = record.kind == Record::Kind::main;
    const Parent parent = parent_of(worker, record);
    if (held && (!main || worker.parents.contains(node))) {
        if (parent.known) unname_key(worker, parent.key);
    } else if (held && parent.known) {
        unname_before(worker, nodes_.before(node), position_of(node) == nodes_.segment_at(node).first);
    }
    if (main && has_own_key(worker, node)) remove_own_key(worker, node);
    if (main) unset_parent(worker, node);
    for (const CopiesAt& at : copies) set_copies(worker, record, at.place, 0);  // with the last, the node may go
    if (!main) {
        remove_twin(worker, record.key);
    } else if (!held) {
        nodes_.unmark(node, worker.idle);
    }
}

// Take away one copy.
void Index::remove_block(Worker& worker, Key key, Place place, Report& report) {
    const Record record = place == no_place ? Record{} : find(worker, key);
    if (record && copies_at(worker, record, place) != 0) {
        take_copy(worker, record, place);
        ++report.removed;
    } else if (!record && place != no_place && remove_parked(worker, key, place)) {
        ++report.removed;
    } else {
        ++report.unknown_removed;
    }
}

// -- parking

void Index::park(Worker& worker, Key key, const Claim* claim, Place place, Report& report) {
    const auto [known, made] = worker.parked.try_emplace(key, ledger_);
    Parked& parked = known->second;
    if (made) {
        names_.hold(key);
        parked.key = key;
        parked.older = worker.newest;
        (worker.newest == nullptr ? worker.oldest : worker.newest->newer) = &parked;
        worker.newest = &parked;
    }
    if (claim != nullptr) {
        names_.hold(claim->parent.key);
        stop_waiting(worker, parked);
        parked.claim = *claim;
        Waiting& waiting = worker.waiting[claim->parent.key];
        parked.sibling_before = waiting.last;
        (waiting.last == nullptr ? waiting.first : waiting.last->sibling_after) = &parked;
        waiting.last = &parked;
    }
    ++(parked.claim ? report.orphaned : report.unresolved);
    const auto same = std::find_if(parked.copies.begin(), parked.copies.end(),
                                   [&](const CopiesAt& at) { return at.place == place; });
    if (same == parked.copies.end()) {
        parked.copies.push_back({place, 1});
    } else {
        ++same->count;
    }
    ++worker.copies_parked;
}

void Index::stop_waiting(Worker& worker, Parked& parked) {
    if (!parked.claim) return;
    const auto waiting = worker.waiting.find(parked.claim->parent.key);
    Parked* const before = std::exchange(parked.sibling_before, nullptr);
    Parked* const after = std::exchange(parked.sibling_after, nullptr);
    (before == nullptr ? waiting->second.first : before->sibling_after) = after;
    (after == nullptr ? waiting->second.last : after->sibling_before) = before;
    if (waiting->second.first == nullptr) worker.waiting.erase(waiting);
    if (worker.waiting.empty()) worker.waiting = decltype(worker.waiting)(0, KeyHash{}, std::equal_to<>{}, ledger_);
    names_.release(parked.claim->parent.key);
    parked.claim.reset();
}

// Gives the copies that were parked under this key; `parked` is no more.
Copies Index::unpark(Worker& worker, Parked& parked) {
    stop_waiting(worker, parked);
    (parked.older == nullptr ? worker.oldest : parked.older->newer) = parked.newer;
    (parked.newer == nullptr ? worker.newest : parked.newer->older) = parked.older;
    Copies copies = std::move(parked.copies);
    worker.copies_parked -= total(copies);
    const Key key = parked.key;
    worker.parked.erase(key);
    if (worker.parked.empty()) worker.parked = decltype(worker.parked)(0, KeyHash{}, std::equal_to<>{}, ledger_);
    names_.release(key);
    return copies;
}

std::uint64_t Index::drop_longest_parked(Worker& worker) { return total(unpark(worker, *worker.oldest)); }

// Take away one parked copy; whether there was one.
bool Index::remove_parked(Worker& worker, Key key, Place place) {
    const auto known = worker.parked.empty() ? worker.parked.end() : worker.parked.find(key);
    if (known == worker.parked.end()) return false;
    Parked& parked = known->second;
    const auto at = std::find_if(parked.copies.begin(), parked.copies.end(),
                                 [&](const CopiesAt& copies) { return copies.place == place; });
    if (at == parked.copies.end()) return false;
    if (total(parked.copies) == 1) {
        unpark(worker, parked);
        return true;
    }
    if (--at->count == 0) parked.copies.erase(at);
    --worker.copies_parked;
    return true;
}

}  // namespace warmroute
