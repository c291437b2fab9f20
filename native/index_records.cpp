// Records: what a worker's keys mean, how many copies there are, and who names whom as parent.

#include <algorithm>
#include <cstring>

#include "index.hpp"

namespace warmroute {
namespace {

std::uint64_t place_and_node(Place place, Node node) noexcept { return std::uint64_t{place} << 32 | node; }

}  // namespace

// -- keys

Index::Record Index::find(const Worker& worker, Key key) const {
    if (!worker.twins.empty()) {
        const auto twin = worker.twins.find(key);
        if (twin != worker.twins.end()) return {Record::Kind::twin, twin->second.node, key};
    }
    if (!worker.own.empty()) {
        const Node node = worker.own.find(table_hash(key), [&](Node own) { return key_of(worker, own) == key; });
        if (node != no_node) return {Record::Kind::main, node, key};
    }
    const Node node = nodes_.shared(key);
    if (node == no_node || has_own_key(worker, node) || !exists(worker, node)) return {};
    return {Record::Kind::main, node, key};
}

Index::Record Index::main_at(const Worker& worker, Node node) const {
    return {Record::Kind::main, node, key_of(worker, node)};
}

// The key of the worker's main record at the node.
Key Index::key_of(const Worker& worker, Node node) const {
    if (!worker.own_keys.empty()) {
        const OwnKeys* own = worker.own_keys.find(segment_of(node));
        if (own != nullptr && (own->mask & bit_of(node)) != 0) return own->keys[own->rank(node)];
    }
    return nodes_.key(node);
}

bool Index::has_own_key(const Worker& worker, Node node) const noexcept {
    if (worker.own_keys.empty()) return false;
    const OwnKeys* own = worker.own_keys.find(segment_of(node));
    return own != nullptr && (own->mask & bit_of(node)) != 0;
}

void Index::add_own_key(Worker& worker, Key key, Node node) {
    OwnKeys& own = worker.own_keys[segment_of(node)];
    const auto count = static_cast<std::uint32_t>(std::popcount(own.mask));
    if (count == own.capacity) {
        const std::uint32_t capacity = std::min(segment_blocks_max, count + count / 2 + 1);
        auto* const keys = static_cast<Key*>(ledger_.take(capacity * sizeof(Key)));
        if (count != 0) std::memcpy(keys, own.keys, count * sizeof(Key));
        if (own.capacity != 0) ledger_.give(own.keys, own.capacity * sizeof(Key));
        own.keys = keys;
        own.capacity = capacity;
    }
    const std::uint32_t rank = own.rank(node);
    std::memmove(own.keys + rank + 1, own.keys + rank, (count - rank) * sizeof(Key));
    own.keys[rank] = key;
    own.mask |= bit_of(node);
    worker.own.insert(table_hash(key), node, [&](Node other) { return table_hash(key_of(worker, other)); });
    names_.hold(key);
}

void Index::remove_own_key(Worker& worker, Node node) {
    const std::uint32_t segment = segment_of(node);
    const Key key = key_of(worker, node);
    worker.own.erase(table_hash(key), node, [&](Node other) { return table_hash(key_of(worker, other)); });
    OwnKeys& own = *worker.own_keys.find(segment);
    const auto count = static_cast<std::uint32_t>(std::popcount(own.mask));
    const std::uint32_t rank = own.rank(node);
    std::memmove(own.keys + rank, own.keys + rank + 1, (count - rank - 1) * sizeof(Key));
    own.mask &= ~bit_of(node);
    if (own.mask == 0) {
        ledger_.give(own.keys, own.capacity * sizeof(Key));
        worker.own_keys.erase(segment);
    }
    names_.release(key);
}

// -- existence

bool Index::main_held(const Worker& worker, Node node) const {
    const bool twinned = has_twins(worker, node);
    return std::any_of(worker.places.begin(), worker.places.end(), [&](const Whereabouts& at) {
        return twinned ? worker.more_copies.contains(place_and_node(at.place, node)) : nodes_.held(node, at.place);
    });
}

bool Index::exists(const Worker& worker, Node node) const { return main_held(worker, node) || idle(worker, node); }

bool Index::held(const Worker& worker, const Record& record) const {
    if (record.kind == Record::Kind::main) return main_held(worker, record.node);
    return !worker.twins.find(record.key)->second.copies.empty();
}

Parent Index::parent_of(const Worker& worker, const Record& record) const {
    if (record.kind == Record::Kind::twin) return worker.twins.find(record.key)->second.parent;
    if (const Parent* parent = worker.parents.find(record.node)) return *parent;
    const Node before = nodes_.before(record.node);
    return before == root_node ? Parent{} : Parent{key_of(worker, before), true};
}

// Whether `parent`, whose record is given, is what the record has as its parent.
bool Index::is_parent(const Worker& worker, const Record& record, Parent parent, const Record& parent_record) const {
    if (record.kind == Record::Kind::main && !worker.parents.contains(record.node)) {
        const Node before = nodes_.before(record.node);
        return parent.known ? parent_record.kind == Record::Kind::main && parent_record.node == before : before == root_node;
    }
    return parent_of(worker, record) == parent;
}

// -- copies

std::uint64_t Index::copies_at(const Worker& worker, const Record& record, Place place) const {
    if (record.kind == Record::Kind::twin) {
        for (const CopiesAt& at : worker.twins.find(record.key)->second.copies) {
            if (at.place == place) return at.count;
        }
        return 0;
    }
    const std::uint64_t* more = worker.more_copies.find(place_and_node(place, record.node));
    const std::uint64_t count = more == nullptr ? 0 : *more;
    if (has_twins(worker, record.node)) return count;
    return nodes_.held(record.node, place) ? count + 1 : 0;
}

void Index::set_copies(Worker& worker, const Record& record, Place place, std::uint64_t count) {
    const Node node = record.node;
    if (record.kind == Record::Kind::twin) {
        Copies& copies = worker.twins.find(record.key)->second.copies;
        std::erase_if(copies, [&](const CopiesAt& at) { return at.place == place; });
        if (count != 0) copies.push_back({place, count});
        sync_mark(worker, node, place);
        return;
    }
    const bool twinned = has_twins(worker, node);
    const std::uint64_t more = twinned || count == 0 ? count : count - 1;
    if (more != 0) {
        worker.more_copies[place_and_node(place, node)] = more;
    } else if (!worker.more_copies.empty()) {
        worker.more_copies.erase(place_and_node(place, node));
    }
    if (twinned) {
        sync_mark(worker, node, place);
    } else if (count != 0) {
        nodes_.mark(node, place);
    } else {
        nodes_.unmark(node, place);
    }
}

// At a node with twins, a mark stands for copies of any of the records.
void Index::sync_mark(Worker& worker, Node node, Place place) {
    bool any = worker.more_copies.contains(place_and_node(place, node));
    const Key* first = worker.twins_at.find(node);
    for (const Twin* twin = first == nullptr ? nullptr : &worker.twins.find(*first)->second; twin != nullptr && !any;
         twin = twin->has_next ? &worker.twins.find(twin->next)->second : nullptr) {
        any = std::any_of(twin->copies.begin(), twin->copies.end(), [&](const CopiesAt& at) { return at.place == place; });
    }
    if (any) {
        nodes_.mark(node, place);
    } else {
        nodes_.unmark(node, place);
    }
}

Copies Index::copies_of(const Worker& worker, const Record& record) const {
    Copies copies(ledger_);
    for (const Whereabouts& at : worker.places) {
        const std::uint64_t count = copies_at(worker, record, at.place);
        if (count != 0) copies.push_back({at.place, count});
    }
    return copies;
}

void Index::add_copies(Worker& worker, const Record& record, Place place, std::uint64_t count) {
    const std::uint64_t known = copies_at(worker, record, place);
    const bool was_held = known != 0 || held(worker, record);
    if (!was_held) {
        const Parent parent = parent_of(worker, record);
        begin_holding(worker, record, parent, find(worker, parent));
    } else if (limited()) {
        touch_leaf(worker, record.key);
    }
    set_copies(worker, record, place, known + count);
    if (!was_held && record.kind == Record::Kind::main) nodes_.unmark(record.node, worker.idle);
    worker.copies += count;
    copies_ += count;
}

void Index::take_copy(Worker& worker, const Record& record, Place place) {
    const std::uint64_t known = copies_at(worker, record, place);
    --worker.copies;
    --copies_;
    const bool last = known == 1 && std::none_of(worker.places.begin(), worker.places.end(), [&](const Whereabouts& at) {
        return at.place != place && copies_at(worker, record, at.place) != 0;
    });
    if (last) {
        release(worker, record, place);
    } else {
        set_copies(worker, record, place, known - 1);
    }
}

std::uint64_t Index::take_all_copies(Worker& worker, const Record& record) {
    const Copies copies = copies_of(worker, record);
    const std::uint64_t count = total(copies);
    worker.copies -= count;
    copies_ -= count;
    for (std::size_t i = 1; i < copies.size(); ++i) set_copies(worker, record, copies[i].place, 0);
    release(worker, record, copies[0].place);
    return count;
}

// -- a record's life

// A new record, held if there are copies; else idle, though nobody may name it yet. The node may be new as well.
Index::Record Index::define(Worker& worker, Record record, Parent parent, const Record& parent_record,
                            std::span<const CopiesAt> copies) {
    const Node node = record.node;
    if (nodes_.live(node) && exists(worker, node)) {
        record = add_twin(worker, record.key, node, parent);
    } else if (!nodes_.offer_key(node, record.key)) {
        add_own_key(worker, record.key, node);
    }
    if (!copies.empty()) {
        begin_holding(worker, record, parent, parent_record);
        for (const CopiesAt& at : copies) set_copies(worker, record, at.place, at.count);
    } else if (record.kind == Record::Kind::main) {
        set_parent(worker, node, parent);
        nodes_.mark(node, mark_place(worker, worker.idle));
    }
    return record;
}

Index::Record Index::add_twin(Worker& worker, Key key, Node node, Parent parent) {
    const bool first = !has_twins(worker, node);
    Twin& twin = worker.twins.emplace(key, Twin(ledger_)).first->second;
    twin.node = node;
    twin.parent = parent;
    names_.hold(key);
    if (parent.known) names_.hold(parent.key);
    if (first) {
        for (const Whereabouts& at : worker.places) {
            if (nodes_.held(node, at.place)) ++worker.more_copies[place_and_node(at.place, node)];
        }
        nodes_.mark(node, mark_place(worker, worker.twinned));
    } else {
        twin.next = *worker.twins_at.find(node);
        twin.has_next = true;
    }
    worker.twins_at[node] = key;
    return {Record::Kind::twin, node, key};
}

// A twin without copies goes.
void Index::remove_twin(Worker& worker, Key key) {
    const auto gone = worker.twins.find(key);
    const Twin& twin = gone->second;
    const Node node = twin.node;
    Key& first = *worker.twins_at.find(node);
    const bool last = first == key && !twin.has_next;
    if (first == key) {
        first = twin.next;
    } else {
        Twin* before = &worker.twins.find(first)->second;
        while (before->next != key) before = &worker.twins.find(before->next)->second;
        before->next = twin.next;
        before->has_next = twin.has_next;
    }
    if (twin.parent.known) names_.release(twin.parent.key);
    names_.release(key);
    worker.twins.erase(gone);
    if (worker.twins.empty()) worker.twins = decltype(worker.twins)(0, KeyHash{}, std::equal_to<>{}, ledger_);
    if (!last) return;
    worker.twins_at.erase(node);
    for (const Whereabouts& at : worker.places) {
        std::uint64_t* const count = worker.more_copies.find(place_and_node(at.place, node));
        if (count != nullptr && --*count == 0) worker.more_copies.erase(place_and_node(at.place, node));
    }
    nodes_.unmark(node, worker.twinned);
}

// A record gets its first copy: from now on it names its parent.
void Index::begin_holding(Worker& worker, const Record& record, Parent parent, const Record& parent_record) {
    ++worker.held;
    if (record.kind == Record::Kind::twin) {
        if (parent.known) name_key(worker, parent.key);
    } else {
        const Node before = nodes_.before(record.node);
        const bool regular = parent.known ? parent_record.kind == Record::Kind::main && parent_record.node == before
                                          : before == root_node;
        if (regular) {
            if (!worker.parents.empty()) unset_parent(worker, record.node);
            name_before(worker, record.node);
        } else {
            set_parent(worker, record.node, parent);
            if (parent.known) name_key(worker, parent.key);
        }
    }
    if (limited() && !named(worker, record)) push_leaf(worker, record.key);
}

// A record loses its last copies, all in one place. It stays, idle, while held ones name it.
void Index::release(Worker& worker, const Record& record, Place place) {
    --worker.held;
    if (limited()) erase_leaf(worker, record.key);
    if (record.kind == Record::Kind::main && !worker.parents.contains(record.node)) {
        const Node before = nodes_.before(record.node);
        const bool first = position_of(record.node) == nodes_.segment_at(record.node).first;
        if (named(worker, record)) {
            set_parent(worker, record.node, before == root_node ? Parent{} : Parent{key_of(worker, before), true});
            nodes_.mark(record.node, mark_place(worker, worker.idle));
        } else if (has_own_key(worker, record.node)) {
            remove_own_key(worker, record.node);
        }
        set_copies(worker, record, place, 0);
        if (before != root_node) {
            unname_before(worker, before, first);
            settle_before(worker, before);
        }
        return;
    }
    const Parent parent = parent_of(worker, record);
    if (record.kind == Record::Kind::main) nodes_.mark(record.node, mark_place(worker, worker.idle));
    set_copies(worker, record, place, 0);
    if (parent.known) {
        unname_key(worker, parent.key);
        settle(worker, find(worker, parent.key));
    }
    forget_if_unused(worker, record.key);
}

// A record without copies that nobody names goes.
void Index::forget(Worker& worker, const Record& record) {
    if (record.kind == Record::Kind::twin) {
        remove_twin(worker, record.key);
        return;
    }
    unset_parent(worker, record.node);
    if (has_own_key(worker, record.node)) remove_own_key(worker, record.node);
    nodes_.unmark(record.node, worker.idle);
}

void Index::forget_if_unused(Worker& worker, Key key) {
    const Record record = find(worker, key);
    if (record && !held(worker, record) && !named(worker, record)) forget(worker, record);
}

// -- who names whom

void Index::set_parent(Worker& worker, Node node, Parent parent) {
    if (parent.known) names_.hold(parent.key);
    unset_parent(worker, node);
    worker.parents[node] = parent;
}

void Index::unset_parent(Worker& worker, Node node) {
    const Parent* known = worker.parents.find(node);
    if (known == nullptr) return;
    if (known->known) names_.release(known->key);
    worker.parents.erase(node);
}

// Whether a held record names this one as its parent.
bool Index::named(const Worker& worker, const Record& record) const {
    if (!worker.named_keys.empty() && worker.named_keys.contains(record.key)) return true;
    if (record.kind != Record::Kind::main) return false;
    const Node node = record.node;
    if (position_of(node) + 1 < nodes_.segment_at(node).length && main_held(worker, node + 1) &&
        !worker.parents.contains(node + 1)) {
        return true;
    }
    return worker.branches.contains(node);
}

void Index::name_key(Worker& worker, Key key) {
    std::uint32_t& count = worker.named_keys[key];
    if (count++ == 0) names_.hold(key);
    if (limited()) erase_leaf(worker, key);
}

void Index::unname_key(Worker& worker, Key key) {
    std::uint32_t& count = *worker.named_keys.find(key);
    if (--count != 0) return;
    worker.named_keys.erase(key);
    names_.release(key);
}

// The record at this node names the one at the node before.
void Index::name_before(Worker& worker, Node node) {
    const Node before = nodes_.before(node);
    if (before == root_node) return;
    if (position_of(node) == nodes_.segment_at(node).first) ++worker.branches[before];
    if (limited()) erase_leaf(worker, key_of(worker, before));
}

// A record after this node does not name the one here any more. `first`: it is the first of its segment.
void Index::unname_before(Worker& worker, Node node, bool first) {
    if (!first) return;  // then its mark said so
    std::uint32_t& count = *worker.branches.find(node);
    if (--count == 0) worker.branches.erase(node);
}

// A record may have lost its last name.
void Index::settle(Worker& worker, const Record& record) {
    if (!record || named(worker, record)) return;
    if (!held(worker, record)) {
        forget(worker, record);
    } else if (limited()) {
        push_oldest_leaf(worker, record.key);  // what is left of a chain that is given up goes first
    }
}

void Index::settle_before(Worker& worker, Node node) {
    if (limited() || idle(worker, node)) settle(worker, main_at(worker, node));
}

}  // namespace warmroute
