#include "index.hpp"

#include <algorithm>
#include <variant>

#include "index_matching.hpp"

namespace warmroute {

Index::Index(Limits limits)
    : names_(ledger_),
      nodes_(ledger_, names_),
      limits_(limits),
      workers_(ledger_),
      free_workers_(ledger_),
      numbers_(ledger_),
      answers_(ledger_),
      headless_(ledger_),
      forgotten_(ledger_),
      eldest_(ledger_),
      matching_(std::make_unique<Matching>()) {}

Index::~Index() {
    for (Worker* worker : workers_) {
        if (worker != nullptr) destroy(worker);
    }
    for (Worker* worker : forgotten_) destroy(worker);
}

Worker* Index::make_worker(WorkerId id, std::uint32_t number) {
    return std::construct_at(static_cast<Worker*>(ledger_.take(sizeof(Worker))), ledger_, id, number);
}

void Index::destroy(Worker* worker) {
    worker->own_keys.each([&](std::uint32_t, const OwnKeys& own) { ledger_.give(own.keys, own.capacity * sizeof(Key)); });
    std::destroy_at(worker);
    ledger_.give(worker, sizeof(Worker));
}

// -- events

void Index::apply(WorkerId worker, const Event& event, Report& report) {
    if (const auto* stored = std::get_if<Stored>(&event)) {
        store(worker, *stored, report);
    } else if (const auto* removed = std::get_if<Removed>(&event)) {
        remove(worker, *removed, report);
    } else {
        clear(worker, report);
    }
}

void Index::store(WorkerId id, const Stored& event, Report& report) {
    Worker& worker = worker_of(id);
    const std::size_t count = event.hashes.size();
    const bool described = count != 0 && event.digests.size() == count;
    if (event.block_size != 0 && (described || event.window != no_window)) {
        if (worker.groups.learn(event.group, event.medium, event.block_size, event.window)) refresh_answers(worker);
        if (event.block_size < worker.groups.block_size(event.group, event.medium)) {
            report.partial += count;
            return;
        }
    }
    if (count == 0) return;
    const Place place = place_of(worker, event.group, event.medium);
    Claim claim{{}, 0, event.block_size};
    if (event.parent.size() != 0) claim.parent = {names_.key_of(event.parent, 0), true};
    Record record = described ? find(worker, claim.parent) : Record{};
    for (std::size_t i = 0; i < count; ++i) {
        if (described) i += store_new(worker, event, i, claim.parent, record, place, report);
        if (i == count) break;
        const Key key = names_.key_of(event.hashes, i);
        if (described) claim.digest = event.digests[i];
        record = store_block(worker, key, described ? &claim : nullptr, record, place, count - i - 1, report);
        claim.parent = {key, true};
    }
    while (worker.copies_parked > limits_.orphan_blocks_max) report.orphans_dropped += drop_longest_parked(worker);
    evict_outgrown(worker, report);
    evict(report);
    if (forgotten_.empty()) {
        names_.sweep();
    } else {
        sweep(2 * count);  // so that what is forgotten does not last, whoever else sweeps
    }
}

void Index::remove(WorkerId id, const Removed& event, Report& report) {
    const std::size_t count = event.hashes.size();
    Worker* const worker = find_worker(id);
    if (worker == nullptr) {
        report.unknown_removed += count;
        return;
    }
    const Place place = find_place(*worker, event.group, event.medium);
    Lookahead ahead(nodes_, event.hashes, 0);
    for (std::size_t i = 0; i < count; ++i) {
        ahead.next();
        remove_block(*worker, names_.key_of(event.hashes, i), place, report);
    }
    names_.sweep();
}

void Index::clear(WorkerId id, Report& report) {
    Worker* const worker = find_worker(id);
    if (worker == nullptr) return;
    report.cleared += worker->copies + worker->copies_parked;
    disown(*worker);
}

void Index::drop(WorkerId id) {
    Worker* const worker = find_worker(id);
    if (worker == nullptr) return;
    const std::uint32_t number = worker->number;
    disown(*worker);
    std::erase(headless_, number);
    numbers_.erase(id);
    destroy(std::exchange(workers_[number], nullptr));
    free_workers_.push_back(number);
    shrink();
}

// Come back under the limit: see "oldest_leaf" in the contract.
void Index::evict(Report& report) {
    while (limits_.blocks_max && copies_ > *limits_.blocks_max) {
        if (eldest_.empty()) {
            evict_greatest_worker(report);
            continue;
        }
        Worker& worker = *workers_[eldest_.begin()->second];
        report.evicted += take_all_copies(worker, find(worker, worker.leaves.front().key));
    }
}

void Index::evict_greatest_worker(Report& report) {
    Worker* greatest = nullptr;
    for (Worker* worker : workers_) {
        if (worker == nullptr) continue;
        if (greatest == nullptr || worker->copies > greatest->copies ||
            (worker->copies == greatest->copies && worker->id < greatest->id)) {
            greatest = worker;
        }
    }
    report.evicted += greatest->copies;
    report.orphans_dropped += greatest->copies_parked;
    disown(*greatest);
}

// The same within one worker.
void Index::evict_outgrown(Worker& worker, Report& report) {
    while (limits_.worker_blocks_max && worker.copies > *limits_.worker_blocks_max) {
        if (worker.leaves.empty()) {
            report.outgrown += worker.copies;
            report.orphans_dropped += worker.copies_parked;
            disown(worker);
            return;
        }
        report.outgrown += take_all_copies(worker, find(worker, worker.leaves.front().key));
    }
}

void Index::push_leaf(Worker& worker, Key key) {
    worker.leaves.push_back({key, ++youngest_age_});
    know_eldest(worker);
}

void Index::push_oldest_leaf(Worker& worker, Key key) {
    worker.leaves.push_front({key, --oldest_age_});
    know_eldest(worker);
}

void Index::touch_leaf(Worker& worker, Key key) {
    worker.leaves.touch({key, ++youngest_age_});
    know_eldest(worker);
}

void Index::erase_leaf(Worker& worker, Key key) {
    worker.leaves.erase(key);
    know_eldest(worker);
}

void Index::know_eldest(Worker& worker) {
    if (!limits_.blocks_max) return;
    const std::int64_t age = worker.leaves.empty() ? Worker::ageless : worker.leaves.front().age;
    if (age == worker.eldest) return;
    if (worker.eldest != Worker::ageless) eldest_.erase({worker.eldest, worker.number});
    if (age != Worker::ageless) eldest_.insert({age, worker.number});
    worker.eldest = age;
}

// -- workers and places

Worker* Index::find_worker(WorkerId id) const {
    const std::uint32_t* number = numbers_.find(id);
    return number == nullptr ? nullptr : workers_[*number];
}

Worker& Index::worker_of(WorkerId id) {
    if (Worker* known = find_worker(id)) return *known;
    if (free_workers_.empty()) {
        free_workers_.push_back(static_cast<std::uint32_t>(workers_.size()));
        workers_.push_back(nullptr);
    }
    const std::uint32_t number = free_workers_.back();
    free_workers_.pop_back();
    workers_[number] = make_worker(id, number);
    numbers_[id] = number;
    return *workers_[number];
}

Place Index::find_place(const Worker& worker, std::uint64_t group, Medium medium) const {
    for (const Whereabouts& at : worker.places) {
        if (at.group == group && at.medium == medium) return at.place;
    }
    return no_place;
}

Place Index::place_of(Worker& worker, std::uint64_t group, Medium medium) {
    Place place = find_place(worker, group, medium);
    if (place == no_place) {
        place = new_place(worker, medium);
        worker.places.push_back({group, medium, place});
        refresh_answers(worker);
    }
    return place;
}

// A place that marks nodes for the index itself, made when it is first needed.
Place Index::mark_place(Worker& worker, Place& place) {
    if (place == no_place) place = new_place(worker, Medium::storage);
    return place;
}

Place Index::new_place(const Worker& worker, Medium medium) {
    const Place place = nodes_.add_place();
    if (place >= answers_.size()) answers_.resize(place + 1);
    answers_[place] = {worker.id, worker.number, 0, medium};
    return place;
}

// What a match has to know of the worker's places has changed.
void Index::refresh_answers(const Worker& worker) {
    const auto& parts = worker.groups.parts();
    const bool simple = parts.size() == 1 && parts[0].full && worker.places.size() == 1 &&
                        parts[0].group == worker.places[0].group && parts[0].block_size < complex_answer;
    const bool any_full = std::any_of(parts.begin(), parts.end(), [](const Groups::Part& part) { return part.full; });
    for (const Whereabouts& at : worker.places) {
        answers_[at.place].block_size = simple     ? static_cast<std::uint32_t>(parts[0].block_size)
                                        : any_full ? complex_answer
                                                   : 0;
    }
    std::erase(headless_, worker.number);
    if (!parts.empty() && !any_full) headless_.push_back(worker.number);
}

// -- sizes

std::vector<std::uint64_t> Index::block_sizes() const {
    std::vector<std::uint64_t> sizes;
    for (const Worker* worker : workers_) {
        if (worker == nullptr) continue;
        for (const Groups::Part& part : worker->groups.parts()) sizes.push_back(part.block_size);
    }
    std::sort(sizes.begin(), sizes.end());
    sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
    return sizes;
}

std::optional<std::vector<std::uint64_t>> Index::prefix_sizes(WorkerId id) const {
    const Worker* const worker = find_worker(id);
    if (worker == nullptr || worker->groups.parts().empty()) return std::nullopt;
    std::vector<std::uint64_t> sizes = worker->groups.block_sizes();
    for (const Groups::Part& part : worker->groups.parts()) {
        if (!part.full) std::erase(sizes, part.block_size);
    }
    return sizes;
}

WorkerSizes Index::worker_sizes(WorkerId id) const {
    const Worker* const worker = find_worker(id);
    if (worker == nullptr) return {};
    std::uint64_t orphans = 0;
    for (const auto& [key, parked] : worker->parked) {
        if (parked.claim) orphans += total(parked.copies);
    }
    return {worker->held, worker->copies, orphans, worker->copies_parked - orphans, worker->groups.block_sizes()};
}

IndexSizes Index::sizes() const {
    IndexSizes sizes{numbers_.size(), nodes_.live_count(), copies_, 0, 0, ledger_.bytes() + sizeof(Index)};
    for (const Worker* worker : workers_) {
        if (worker == nullptr) continue;
        const WorkerSizes own = worker_sizes(worker->id);
        sizes.orphans += own.orphans;
        sizes.unresolved += own.unresolved;
    }
    return sizes;
}

}  // namespace warmroute
