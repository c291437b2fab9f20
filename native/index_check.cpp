// Checking: what is derived is worked out anew from the records and compared.

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "index.hpp"

namespace warmroute {

struct Index::Checking {
    std::vector<std::string> problems;
    std::map<Key, std::uint64_t> uses;  // of interned keys
    std::uint64_t leaves = 0;  // of the worker that is checked
    std::uint64_t eldest = 0;
    std::string subject;

    void say(bool wrong, const char* what) {
        if (wrong) problems.push_back(subject + what);
    }
    void use(Key key) {
        if (key >= first_interned) ++uses[key];
    }
    void use(Parent parent) {
        if (parent.known) use(parent.key);
    }
};

std::vector<std::string> Index::problems() const {
    Checking checking;
    nodes_.problems(checking.problems);
    for (std::uint32_t number = 0; number < nodes_.segments_made(); ++number) {
        const Segment& segment = nodes_.segment(number);
        for (std::uint64_t left = segment.named; left != 0; left &= left - 1) {
            checking.use(segment.key(static_cast<std::uint32_t>(std::countr_zero(left))));
        }
    }
    std::uint64_t copies = 0;
    for (const Worker* worker : workers_) {
        if (worker == nullptr) continue;
        checking.subject = "worker " + std::to_string(worker->id) + ": ";
        check_worker(*worker, checking);
        copies += worker->copies;
    }
    for (const Worker* worker : forgotten_) check_forgotten(*worker, checking);
    checking.subject.clear();
    checking.say(copies != copies_, "the copies do not add up");
    checking.say(limits_.blocks_max && copies_ > *limits_.blocks_max, "more copies than allowed");
    checking.say(checking.eldest != eldest_.size(), "the eldest leaves are not what the workers say");
    checking.say(checking.uses.size() != names_.size(), "hashes are kept that nobody uses");
    for (const auto& [key, uses] : checking.uses) checking.say(uses != names_.uses(key), "a hash's uses are miscounted");
    return checking.problems;
}

void Index::check_worker(const Worker& worker, Checking& checking) const {
    const std::vector<Record> records = records_of(worker);
    std::uint64_t copies = 0;
    std::uint64_t held_count = 0;
    checking.leaves = 0;
    for (const Record& record : records) {
        check_record(worker, record, checking);
        copies += total(copies_of(worker, record));
        held_count += held(worker, record) ? 1 : 0;
    }
    checking.say(copies != worker.copies, "the count of copies is not what the records say");
    checking.say(held_count != worker.held, "the count of blocks is not what the records say");
    checking.say(checking.leaves != worker.leaves.size(), "the leaves are not what the records say");
    checking.say(limits_.worker_blocks_max && worker.copies > *limits_.worker_blocks_max, "more copies than one may have");
    if (limits_.blocks_max && !worker.leaves.empty()) {
        ++checking.eldest;
        checking.say(!eldest_.contains({worker.leaves.front().age, worker.number}), "its eldest leaf is not known");
    }
    check_names(worker, records, checking);
    check_own_keys(worker, checking);
    check_parked(worker, checking);
    std::size_t twins = 0;
    worker.twins_at.each([&](Node node, Key key) {
        checking.say(!nodes_.held(node, worker.twinned), "a node with twins is not marked");
        for (const Twin* twin = &worker.twins.find(key)->second;; twin = &worker.twins.find(twin->next)->second) {
            ++twins;
            checking.say(twin->node != node, "a twin is at the wrong node");
            if (!twin->has_next) break;
        }
    });
    checking.say(twins != worker.twins.size(), "twins are not found by their nodes");
    worker.parents.each([&](Node node, const Parent& parent) {
        checking.use(parent);
        checking.say(!exists(worker, node), "a node has a parent and no record");
    });
    worker.more_copies.each([&](std::uint64_t place_and_node, std::uint64_t count) {
        const auto node = static_cast<Node>(place_and_node);
        const auto place = static_cast<Place>(place_and_node >> 32);
        checking.say(count == 0 || !nodes_.held(node, place), "there are more copies where there are none");
    });
}

void Index::check_record(const Worker& worker, const Record& record, Checking& checking) const {
    const Record found = find(worker, record.key);
    checking.say(found.kind != record.kind || found.node != record.node, "a record is not found by its key");
    const bool is_held = held(worker, record);
    const bool is_named = named(worker, record);
    checking.say(!is_held && !is_named, "a record is neither held nor named by a held one");
    checking.say(!nodes_.live(record.node), "a record's node is dead");
    const bool leaf = limited() && is_held && !is_named;
    checking.leaves += leaf ? 1 : 0;
    checking.say(leaf != worker.leaves.contains(record.key), "the leaves are not what the records say");
    if (record.kind == Record::Kind::twin) {
        checking.use(record.key);
        checking.use(worker.twins.find(record.key)->second.parent);
        return;
    }
    checking.say(is_held == idle(worker, record.node), "a record is held and idle, or neither");
    if (worker.parents.contains(record.node)) return;
    checking.say(!is_held, "an idle record does not say who its parent is");
    const Node before = nodes_.before(record.node);
    checking.say(before == no_node || (before != root_node && !exists(worker, before)), "a record's parent is not there");
}

// Counts by key say the truth; `branches`, `named_keys` and neighbours' marks must come to the same.
void Index::check_names(const Worker& worker, const std::vector<Record>& records, Checking& checking) const {
    std::map<Key, std::uint64_t> names;
    std::map<Key, std::uint32_t> by_key;
    std::map<Node, std::uint32_t> branches;
    for (const Record& record : records) {
        const Parent parent = parent_of(worker, record);
        if (!held(worker, record) || !parent.known) continue;
        ++names[parent.key];
        if (record.kind == Record::Kind::twin || worker.parents.contains(record.node)) {
            ++by_key[parent.key];
        } else if (position_of(record.node) == nodes_.segment_at(record.node).first) {
            ++branches[nodes_.before(record.node)];
        }
    }
    for (const Record& record : records) {
        checking.say(named(worker, record) != names.contains(record.key), "a record's names are not what the held ones say");
    }
    checking.say(by_key.size() != worker.named_keys.size(), "the named keys are not what the held records say");
    worker.named_keys.each([&](Key key, std::uint32_t count) {
        checking.use(key);
        checking.say(by_key[key] != count, "a named key's count is not what the held records say");
    });
    checking.say(branches.size() != worker.branches.size(), "the branches are not what the held records say");
    worker.branches.each([&](Node node, std::uint32_t count) {
        checking.say(branches[node] != count, "a branch's count is not what the held records say");
    });
}

void Index::check_own_keys(const Worker& worker, Checking& checking) const {
    std::size_t count = 0;
    worker.own_keys.each([&](std::uint32_t segment, const OwnKeys& own) {
        checking.say(own.mask == 0 || own.capacity < static_cast<std::uint32_t>(std::popcount(own.mask)), "own keys without room");
        for (std::uint64_t left = own.mask; left != 0; left &= left - 1, ++count) {
            const Node node = node_at(segment, static_cast<std::uint32_t>(std::countr_zero(left)));
            checking.use(key_of(worker, node));
            checking.say(!exists(worker, node), "an own key of no record");
        }
    });
    checking.say(count != worker.own.size(), "the table of own keys is not what they are");
}

void Index::check_parked(const Worker& worker, Checking& checking) const {
    std::uint64_t copies = 0;
    std::size_t count = 0;
    std::size_t claimed = 0;
    for (const Parked* parked = worker.oldest; parked != nullptr; parked = parked->newer, ++count) {
        copies += total(parked->copies);
        claimed += parked->claim ? 1 : 0;
        checking.use(parked->key);
        if (parked->claim) checking.use(parked->claim->parent);
        checking.say(parked->copies.empty(), "a parked record has no copies");
        checking.say(static_cast<bool>(find(worker, parked->key)), "a parked record has its meaning");
        checking.say(parked->claim && find(worker, parked->claim->parent), "an orphan's parent is known");
        checking.say(parked->newer == nullptr && parked != worker.newest, "the order of parking is broken");
    }
    std::size_t waiting = 0;
    for (const auto& [key, orphans] : worker.waiting) {
        for (const Parked* parked = orphans.first; parked != nullptr; parked = parked->sibling_after, ++waiting) {
            checking.say(!parked->claim || parked->claim->parent.key != key, "an orphan waits for another parent");
        }
    }
    checking.say(count != worker.parked.size() || waiting != claimed, "the tables of parked records do not agree");
    checking.say(copies != worker.copies_parked, "the count of parked copies is not what the records say");
    checking.say(copies > limits_.orphan_blocks_max, "more parked copies than allowed");
}

// What is not swept yet still uses hashes.
void Index::check_forgotten(const Worker& worker, Checking& checking) const {
    checking.subject = "a forgotten worker " + std::to_string(worker.id) + ": ";
    for (const Whereabouts& at : worker.places) {
        checking.say(answers_[at.place].block_size != 0, "one of its places still answers");
    }
    worker.own_keys.each([&](std::uint32_t, const OwnKeys& own) {
        std::for_each(own.keys, own.keys + std::popcount(own.mask), [&](Key key) { checking.use(key); });
    });
    worker.parents.each([&](Node, const Parent& parent) { checking.use(parent); });
    worker.named_keys.each([&](Key key, std::uint32_t) { checking.use(key); });
    for (const auto& [key, twin] : worker.twins) {
        checking.use(key);
        checking.use(twin.parent);
    }
    for (const auto& [key, parked] : worker.parked) {
        checking.use(key);
        if (parked.claim) checking.use(parked.claim->parent);
    }
}

}  // namespace warmroute
