// Dumps: everything that is known of workers' blocks, so that another index can answer the same.

#include <algorithm>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "index.hpp"

namespace warmroute {

Hashes Index::hashes_of(Key key) const {
    Hashes hashes;
    if (key < first_interned) {
        hashes.numbers.push_back(key);
    } else {
        hashes.tagged.emplace_back(names_.tagged(key));
    }
    return hashes;
}

// All resolved records of a worker, held or idle.
std::vector<Index::Record> Index::records_of(const Worker& worker) const {
    std::vector<std::pair<std::uint32_t, std::uint64_t>> masks;
    const auto collect = [&](Place place) {
        if (place == no_place) return;
        for (const std::uint32_t segment : nodes_.segments_of(place)) masks.emplace_back(segment, nodes_.mask(segment, place));
    };
    for (const Whereabouts& at : worker.places) collect(at.place);
    collect(worker.idle);
    std::sort(masks.begin(), masks.end());
    std::vector<Record> records;
    for (std::size_t i = 0; i < masks.size();) {
        const std::uint32_t segment = masks[i].first;
        std::uint64_t mask = 0;
        for (; i < masks.size() && masks[i].first == segment; ++i) mask |= masks[i].second;
        for (; mask != 0; mask &= mask - 1) {
            const Node node = node_at(segment, static_cast<std::uint32_t>(std::countr_zero(mask)));
            if (exists(worker, node)) records.push_back(main_at(worker, node));
        }
    }
    for (const auto& [key, twin] : worker.twins) records.push_back({Record::Kind::twin, twin.node, key});
    return records;
}

void Index::dump_worker(const Worker& worker, std::vector<DumpedBlock>& blocks) const {
    const std::vector<Record> records = records_of(worker);
    std::unordered_map<Key, std::size_t> by_key;
    for (std::size_t i = 0; i < records.size(); ++i) by_key[records[i].key] = i;
    constexpr std::int64_t unknown = -1;
    std::vector<std::int64_t> depths(records.size(), unknown);
    for (std::size_t start = 0; start < records.size(); ++start) {
        std::vector<std::size_t> path;
        std::int64_t depth = 0;
        for (std::size_t i = start;;) {
            if (depths[i] != unknown) {  // of this path, if engines name blocks in a circle
                depth = depths[i] + 1;
                break;
            }
            depths[i] = 0;
            path.push_back(i);
            const Parent parent = parent_of(worker, records[i]);
            const auto next = parent.known ? by_key.find(parent.key) : by_key.end();
            if (next == by_key.end()) break;
            i = next->second;
        }
        for (; !path.empty(); path.pop_back()) depths[path.back()] = depth++;
    }
    std::vector<std::size_t> order(records.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto rank = [&](std::size_t i) { return std::tuple(depths[i], nodes_.prefix(records[i].node), records[i].key); };
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return rank(a) < rank(b); });
    bool first = true;
    for (const std::size_t i : order) {
        const Record& record = records[i];
        DumpedBlock& block = blocks.emplace_back();
        block.worker = worker.id;
        block.hash = hashes_of(record.key);
        const Parent parent = parent_of(worker, record);
        if (parent.known) block.parent = hashes_of(parent.key);
        block.prefix = nodes_.prefix(record.node);
        block.block_size = nodes_.segment_at(record.node).block_size;
        for (const Whereabouts& at : worker.places) {
            const std::uint64_t count = copies_at(worker, record, at.place);
            if (count != 0) block.copies.push_back({at.group, at.medium, count});
        }
        std::sort(block.copies.begin(), block.copies.end(), [](const DumpedCopies& a, const DumpedCopies& b) {
            return std::tuple(a.group, a.medium) < std::tuple(b.group, b.medium);
        });
        if (std::exchange(first, false)) block.groups = worker.groups.facts();
    }
}

std::vector<DumpedBlock> Index::dump(std::optional<WorkerId> id) const {
    std::vector<DumpedBlock> blocks;
    if (id) {
        const Worker* const worker = find_worker(*id);
        if (worker != nullptr) dump_worker(*worker, blocks);
        return blocks;
    }
    for (const Worker* worker : workers_) {
        if (worker != nullptr) dump_worker(*worker, blocks);
    }
    return blocks;
}

void Index::restore(std::span<const DumpedBlock> blocks) {
    std::vector<Worker*> restored;
    nodes_.begin_restoring();
    for (const DumpedBlock& block : blocks) {
        Worker& worker = worker_of(block.worker);
        if (std::find(restored.rbegin(), restored.rend(), &worker) == restored.rend()) restored.push_back(&worker);
        for (const Groups::Fact& fact : block.groups) {
            if (worker.groups.learn(fact.group, fact.medium, fact.block_size, fact.window)) refresh_answers(worker);
        }
        restore_block(worker, block);
    }
    nodes_.end_restoring();
    for (Worker* worker : restored) {
        for (const Record& record : records_of(*worker)) {
            if (!held(*worker, record)) forget_if_unused(*worker, record.key);
        }
    }
    Report report;
    for (Worker* worker : restored) evict_outgrown(*worker, report);
    evict(report);
    names_.sweep();
}

// Take up one dumped record in place of what is known of its key. One without copies stays until all are restored.
void Index::restore_block(Worker& worker, const DumpedBlock& block) {
    const Key key = names_.key_of(block.hash, 0);
    const Parent parent = block.parent.size() == 0 ? Parent{} : Parent{names_.key_of(block.parent, 0), true};
    const bool named_parent = parent.known && !block.copies.empty();
    if (named_parent) name_key(worker, parent.key);  // so that it outlives what is replaced
    const auto parked = worker.parked.find(key);
    Record record = find(worker, key);
    if (parked != worker.parked.end()) {
        unpark(worker, parked->second);
    } else if (record && held(worker, record)) {
        take_all_copies(worker, record);
        record = find(worker, key);
    }
    if (record) {
        record = redefine(worker, record, parent, block.prefix, block.block_size);
    } else {
        const Record parent_record = find(worker, parent);
        const Node anchor = !parent.known ? root_node : parent_record.node;
        record = {Record::Kind::main, nodes_.locate(anchor, block.prefix, block.block_size, 0), key};
        record = define(worker, record, parent, parent_record, {});
        Report report;
        adopt_waiting(worker, key, report);
    }
    for (const DumpedCopies& at : block.copies) add_copies(worker, record, place_of(worker, at.group, at.medium), at.count);
    if (!named_parent) return;
    unname_key(worker, parent.key);
    settle(worker, find(worker, parent));
}

}  // namespace warmroute
