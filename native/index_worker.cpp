#include "index_worker.hpp"

#include <algorithm>
#include <tuple>

namespace warmroute {

// -- groups

bool Groups::learn(std::uint64_t group, Medium medium, std::uint64_t block_size, std::uint64_t window) {
    bool changed = false;
    auto kind = std::find_if(kinds_.begin(), kinds_.end(), [&](const Kind& known) { return known.group == group; });
    if (kind == kinds_.end()) {
        kinds_.push_back({group, false, no_window});
        kind = kinds_.end() - 1;
        changed = true;
    }
    if (window != no_window && (!kind->sliding || kind->window != window)) {
        kind->sliding = true;
        kind->window = window;
        changed = true;
    }
    const auto place = std::tuple(group, medium);
    auto fact = std::find_if(facts_.begin(), facts_.end(),
                             [&](const Fact& known) { return std::tuple(known.group, known.medium) >= place; });
    if (fact == facts_.end() || std::tuple(fact->group, fact->medium) != place) {
        fact = facts_.insert(fact, {group, medium, 0, no_window});
    }
    if (block_size > fact->block_size) {
        fact->block_size = block_size;
        changed = true;
    }
    if (changed) make_parts();
    return changed;
}

std::uint64_t Groups::block_size(std::uint64_t group, Medium medium) const noexcept {
    for (const Fact& fact : facts_) {
        if (fact.group == group && fact.medium == medium) return fact.block_size;
    }
    return 0;
}

// In the group's fastest medium.
std::uint64_t Groups::block_size(std::uint64_t group) const noexcept {
    for (const Fact& fact : facts_) {
        if (fact.group == group) return fact.block_size;
    }
    return 0;
}

void Groups::make_parts() {
    const bool any_full = std::any_of(kinds_.begin(), kinds_.end(), [](const Kind& kind) { return !kind.sliding; });
    std::vector<std::uint64_t> sizes;
    for (const Kind& kind : kinds_) {
        if (!any_full || !kind.sliding) sizes.push_back(block_size(kind.group));
    }
    parts_.clear();
    for (const Kind& kind : kinds_) {
        const std::uint64_t size = block_size(kind.group);
        if (std::find(sizes.begin(), sizes.end(), size) == sizes.end()) continue;
        const std::uint64_t reach = kind.window <= 1 ? 0 : kind.window - 1;  // tokens before the next one that it sees
        parts_.push_back({size, kind.group, !kind.sliding, reach / size + (reach % size != 0 ? 1 : 0)});
    }
    std::sort(parts_.begin(), parts_.end(), [](const Part& a, const Part& b) {
        return std::tuple(a.block_size, a.group) < std::tuple(b.block_size, b.group);
    });
}

std::vector<Groups::Fact> Groups::facts() const {
    std::vector<Fact> facts(facts_.begin(), facts_.end());
    for (Fact& fact : facts) {
        for (const Kind& kind : kinds_) {
            if (kind.group == fact.group) fact.window = kind.sliding ? kind.window : no_window;
        }
    }
    return facts;
}

std::vector<std::uint64_t> Groups::block_sizes() const {
    std::vector<std::uint64_t> sizes;
    for (const Part& part : parts_) {
        if (sizes.empty() || sizes.back() != part.block_size) sizes.push_back(part.block_size);
    }
    return sizes;
}

// -- leaves

void Leaves::push_front(Leaf leaf) {
    erase(leaf.key);
    places_.emplace(leaf.key, order_.insert(order_.begin(), leaf));
}

void Leaves::push_back(Leaf leaf) {
    const auto [known, made] = places_.try_emplace(leaf.key, order_.end());
    if (made) known->second = order_.insert(order_.end(), leaf);
}

void Leaves::erase(Key key) {
    const auto known = places_.find(key);
    if (known == places_.end()) return;
    order_.erase(known->second);
    places_.erase(known);
}

void Leaves::touch(Leaf leaf) {
    const auto known = places_.find(leaf.key);
    if (known == places_.end()) return;
    known->second->age = leaf.age;
    order_.splice(order_.end(), order_, known->second);
}

}  // namespace warmroute
