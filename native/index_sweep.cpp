// Forgetting a worker: at once as seen from outside, and some at a time in memory.

#include <algorithm>
#include <utility>

#include "index.hpp"

namespace warmroute {

// Let a worker begin anew, knowing its groups only. What it was is to be swept.
void Index::disown(Worker& worker) {
    if (worker.places.empty()) return;  // it has announced nothing since it began
    copies_ -= worker.copies;
    if (worker.eldest != Worker::ageless) eldest_.erase({worker.eldest, worker.number});
    for (const Whereabouts& at : worker.places) answers_[at.place] = {};
    for (const Place place : {worker.idle, worker.twinned}) {
        if (place != no_place) worker.places.push_back({0, Medium::gpu, place});
    }
    Worker* const anew = make_worker(worker.id, worker.number);
    anew->groups = std::move(worker.groups);
    workers_[worker.number] = anew;
    forgotten_.push_back(&worker);
}

// With nobody left, the tables of workers and places go.
void Index::shrink() {
    if (!numbers_.empty()) return;
    workers_ = decltype(workers_)(ledger_);
    free_workers_ = decltype(free_workers_)(ledger_);
    headless_ = decltype(headless_)(ledger_);
    if (!forgotten_.empty()) return;
    forgotten_ = decltype(forgotten_)(ledger_);
    answers_ = decltype(answers_)(ledger_);
}

bool Index::sweep(std::size_t blocks) {
    std::size_t budget = blocks;
    while (!forgotten_.empty() && sweep_worker(*forgotten_.back(), budget)) {
        destroy(forgotten_.back());
        forgotten_.pop_back();
    }
    names_.sweep();
    if (!forgotten_.empty()) return true;
    shrink();
    return !nodes_.sweep(budget) || !names_.shrink(budget);
}

bool Index::sweep_worker(Worker& worker, std::size_t& budget) {
    for (; !worker.places.empty(); worker.places.pop_back()) {
        const Place place = worker.places.back().place;
        if (!nodes_.unmark_some(place, worker.swept, budget)) return false;
        nodes_.remove_place(place);
    }
    return sweep_keys(worker, budget);
}

bool Index::sweep_keys(Worker& worker, std::size_t& budget) {
    const auto release = [&](Key key) { names_.release(key); };
    const auto release_parent = [&](Parent parent) {
        if (parent.known) names_.release(parent.key);
    };
    const auto release_own = [&](std::uint32_t, const OwnKeys& own) {
        std::for_each(own.keys, own.keys + std::popcount(own.mask), release);
        ledger_.give(own.keys, own.capacity * sizeof(Key));
    };
    if (!worker.own_keys.drain(worker.swept, budget, release_own) ||
        !worker.parents.drain(worker.swept, budget, [&](Node, const Parent& parent) { release_parent(parent); }) ||
        !worker.named_keys.drain(worker.swept, budget, [&](Key key, std::uint32_t) { release(key); })) {
        return false;
    }
    for (; !worker.twins.empty() && budget != 0; worker.twins.erase(worker.twins.begin()), --budget) {
        release(worker.twins.begin()->first);
        release_parent(worker.twins.begin()->second.parent);
    }
    for (; !worker.parked.empty() && budget != 0; worker.parked.erase(worker.parked.begin()), --budget) {
        release(worker.parked.begin()->first);
        if (const auto& claim = worker.parked.begin()->second.claim) release_parent(claim->parent);
    }
    for (; !worker.waiting.empty() && budget != 0; --budget) worker.waiting.erase(worker.waiting.begin());
    for (; !worker.leaves.empty() && budget != 0; --budget) worker.leaves.erase(worker.leaves.front().key);
    return worker.twins.empty() && worker.parked.empty() && worker.waiting.empty() && worker.leaves.empty();
}

}  // namespace warmroute
