#include "index_nodes.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace warmroute {

// -- holders

void Holders::resize(std::uint32_t capacity, Ledger& ledger) {
    auto* const memory = static_cast<std::uint64_t*>(ledger.take(bytes(capacity)));
    const bool owned = count_ > 1;
    std::memcpy(memory, masks(), count_ * sizeof(std::uint64_t));
    std::memcpy(memory + capacity, places(), count_ * sizeof(Place));
    if (owned) ledger.give(many_, bytes(capacity_));
    many_ = memory;
    capacity_ = capacity;
}

void Holders::insert(std::uint32_t i, Place place, Ledger& ledger) {
    if (count_ == 0) {
        mask_ = 0;
        place_ = place;
        count_ = 1;
        return;
    }
    if (count_ == 1) {
        resize(2, ledger);
    } else if (count_ == capacity_) {
        resize(capacity_ + std::max(capacity_ / 2, std::uint32_t{2}), ledger);
    }
    auto* const all_places = reinterpret_cast<Place*>(many_ + capacity_);
    std::memmove(many_ + i + 1, many_ + i, (count_ - i) * sizeof(std::uint64_t));
    std::memmove(all_places + i + 1, all_places + i, (count_ - i) * sizeof(Place));
    many_[i] = 0;
    all_places[i] = place;
    ++count_;
}

void Holders::erase(std::uint32_t i, Ledger& ledger) noexcept {
    if (count_ == 1) {
        *this = {};
        return;
    }
    auto* const all_places = reinterpret_cast<Place*>(many_ + capacity_);
    std::memmove(many_ + i, many_ + i + 1, (count_ - i - 1) * sizeof(std::uint64_t));
    std::memmove(all_places + i, all_places + i + 1, (count_ - i - 1) * sizeof(Place));
    if (count_ == 2) {
        std::uint64_t* const memory = many_;
        const std::uint32_t capacity = capacity_;
        const Place last = all_places[0];
        mask_ = memory[0];
        place_ = last;
        count_ = 1;
        ledger.give(memory, bytes(capacity));
        return;
    }
    --count_;
    if (count_ * 4 < capacity_) resize(count_ * 2, ledger);
}

void Holders::clear(Ledger& ledger) noexcept {
    if (count_ > 1) ledger.give(many_, bytes(capacity_));
    *this = {};
}

// -- segments

Nodes::Nodes(Ledger& ledger, Names& names)
    : ledger_(ledger), names_(names), pages_(ledger), heads_(ledger), keys_(ledger), joined_(ledger), free_places_(ledger) {}

Nodes::~Nodes() {
    for (std::uint32_t number = 0; number < made_; ++number) {
        Segment& segment = at(number);
        if (segment.capacity != 0) ledger_.give(segment.blocks, std::size_t{segment.capacity} * 2 * sizeof(std::uint64_t));
        segment.holders.clear(ledger_);
    }
    for (Segment* page : pages_) ledger_.give(page, page_segments * sizeof(Segment));
}

std::uint32_t Nodes::take_segment() {
    if (free_ != no_node) {
        const std::uint32_t number = free_;
        free_ = at(number).next;
        --free_count_;
        at(number).next = no_node;
        return number;
    }
    if (made_ == segments_max) throw std::length_error("the index has no numbers for more runs of blocks");
    if (made_ == pages_.size() * page_segments) {
        auto* const page =
            static_cast<Segment*>(ledger_.take(page_segments * sizeof(Segment)));
        std::uninitialized_value_construct_n(page, page_segments);
        pages_.push_back(page);
    }
    at(made_).next = no_node;
    return made_++;
}

void Nodes::give_segment(std::uint32_t number) {
    Segment& segment = at(number);
    ledger_.give(segment.blocks, std::size_t{segment.capacity} * 2 * sizeof(std::uint64_t));
    segment = {};
    segment.next = free_;
    free_ = number;
    if (++free_count_ < made_) return;
    made_ = free_count_ = 0;
    free_ = no_node;
    if (pages_.size() > 1) return;  // many are swept
    std::size_t budget = page_segments;
    sweep(budget);
}

bool Nodes::sweep(std::size_t& budget) noexcept {
    while (pages_.size() * page_segments >= made_ + page_segments) {
        if (budget == 0) return false;
        ledger_.give(pages_.back(), page_segments * sizeof(Segment));
        pages_.pop_back();
        budget -= std::min<std::size_t>(budget, page_segments);
    }
    if (pages_.empty()) pages_ = decltype(pages_)(ledger_);
    return true;
}

// Memory for positions [base, base + capacity), to which what is live moves.
void Nodes::reserve(Segment& segment, std::uint32_t base, std::uint32_t capacity) {
    auto* const memory =
        static_cast<std::uint64_t*>(ledger_.take(std::size_t{capacity} * 2 * sizeof(std::uint64_t)));
    const std::size_t kept = std::size_t{segment.length} - segment.first;
    const std::size_t skipped = segment.first - base;
    if (segment.capacity != 0) {
        const std::size_t start = std::size_t{segment.first} - segment.base;
        std::memcpy(memory + skipped, segment.blocks + start, kept * sizeof(std::uint64_t));
        std::memcpy(memory + capacity + skipped, segment.blocks + segment.capacity + start, kept * sizeof(std::uint64_t));
        ledger_.give(segment.blocks, std::size_t{segment.capacity} * 2 * sizeof(std::uint64_t));
    }
    segment.blocks = memory;
    segment.base = static_cast<std::uint8_t>(base);
    segment.capacity = static_cast<std::uint8_t>(capacity);
}

// -- finding and making nodes

bool Nodes::is(Node node, PrefixHash prefix) const noexcept {
    if (node >= root_node || segment_of(node) >= made_) return false;
    const Segment& segment = segment_at(node);
    const std::uint32_t position = position_of(node);
    return position >= segment.first && position < segment.length && segment.prefix(position) == prefix;
}

Node Nodes::before(Node node) const noexcept {
    const Segment& segment = segment_at(node);
    if (position_of(node) > segment.first) return node - 1;
    if (segment.parent == root_node) return root_node;
    return is(segment.parent, segment.parent_prefix) ? segment.parent : no_node;
}

Node Nodes::find(PrefixHash prefix) const {
    return heads_.find(table_hash(prefix), [&](Node node) { return this->prefix(node) == prefix; });
}

bool Nodes::follows(Node parent, PrefixHash prefix) const noexcept {
    if (parent >= root_node) return false;
    const Segment& segment = segment_at(parent);
    const std::uint32_t position = position_of(parent) + 1;
    return position < segment.length && segment.prefix(position) == prefix;
}

Node Nodes::locate(Node parent, PrefixHash prefix, std::uint64_t block_size, std::size_t more) {
    Node node = no_node;
    if (everywhere_) {
        const Node* known = everywhere_->find(prefix);
        if (known != nullptr) node = *known;
    } else {
        node = follows(parent, prefix) ? parent + 1 : find(prefix);
    }
    if (node != no_node) {
        Segment& segment = at_node(node);
        if (position_of(node) == segment.first && parent != no_node && before(node) == no_node) link(segment, parent);
        return node;
    }
    node = parent < root_node ? append(parent, prefix, block_size, more) : no_node;
    if (node == no_node) {
        node = begin(parent, prefix, block_size, more);
    } else if (everywhere_) {
        list(node);
    }
    if (everywhere_) (*everywhere_)[prefix] = node;
    return node;
}

// The node after `parent` if its segment ends there and has room, else no_node.
Node Nodes::append(Node parent, PrefixHash prefix, std::uint64_t block_size, std::size_t more) {
    Segment& segment = at_node(parent);
    const std::uint32_t position = position_of(parent) + 1;
    if (position != segment.length || position == segment_blocks_max || block_size != segment.block_size) return no_node;
    const std::uint32_t used = position - segment.base;
    if (used == segment.capacity) {
        const std::uint32_t first = segment.first;
        const std::size_t wanted =
            std::max<std::size_t>(position - first + 1 + more, std::size_t{position - first} * 3 / 2 + 1);
        reserve(segment, first, static_cast<std::uint32_t>(std::min<std::size_t>(wanted, segment_blocks_max - first)));
    }
    segment.length = static_cast<std::uint8_t>(position + 1);
    segment.prefix(position) = prefix;
    return parent + 1;
}

Node Nodes::begin(Node parent, PrefixHash prefix, std::uint64_t block_size, std::size_t more) {
    const std::uint32_t number = take_segment();
    if (parent < root_node && position_of(parent) + 1 == at_node(parent).length) at_node(parent).next = number;
    Segment& segment = at(number);
    reserve(segment, 0, static_cast<std::uint32_t>(std::min<std::size_t>(more + 1, segment_blocks_max)));
    segment.length = 1;
    segment.block_size = static_cast<std::uint32_t>(block_size);
    segment.prefix(0) = prefix;
    link(segment, parent);
    const Node node = node_at(number, 0);
    heads_.insert(table_hash(prefix), node, hash_of_prefix());
    return node;
}

void Nodes::link(Segment& segment, Node parent) noexcept {
    segment.parent = parent;
    segment.parent_prefix = parent < root_node ? prefix(parent) : 0;
}

void Nodes::list(Node node) {
    heads_.insert(table_hash(prefix(node)), node, hash_of_prefix());
    ++listed_;
}

void Nodes::unlist(Node node) {
    if (listed_ != 0 && heads_.erase(table_hash(prefix(node)), node, hash_of_prefix())) --listed_;
}

bool Nodes::offer_key(Node node, Key key) {
    if (has_key(node)) return this->key(node) == key;
    const std::uint64_t hash = table_hash(key);
    if (shared(key, hash) != no_node) return false;
    add_key(node, key, hash);
    return true;
}

void Nodes::add_key(Node node, Key key, std::uint64_t hash) {
    Segment& segment = at_node(node);
    segment.key(position_of(node)) = key;
    segment.named |= bit_of(node);
    keys_.insert(hash, node, hash_of_key());
    names_.hold(key);
}

void Nodes::begin_restoring() {
    everywhere_.emplace(ledger_);
    for (std::uint32_t number = 0; number < made_; ++number) {
        const Segment& segment = at(number);
        for (std::uint32_t position = segment.first; position < segment.length; ++position) {
            (*everywhere_)[segment.prefix(position)] = node_at(number, position);
        }
    }
}

void Nodes::end_restoring() { everywhere_.reset(); }

// -- places

Place Nodes::add_place() {
    if (!free_places_.empty()) {
        const Place place = free_places_.back();
        free_places_.pop_back();
        return place;
    }
    joined_.emplace_back(ledger_);
    return static_cast<Place>(joined_.size() - 1);
}

void Nodes::remove_place(Place place) {
    free_places_.push_back(place);
    if (free_places_.size() < joined_.size()) return;
    joined_ = decltype(joined_)(ledger_);
    free_places_ = decltype(free_places_)(ledger_);
}

// The holder that the place is in this segment, made if there is none.
std::uint32_t Nodes::join(std::uint32_t number, Place place) {
    Holders& holders = at(number).holders;
    if (recent_segment_ == number && recent_place_ == place && recent_holder_ < holders.count() &&
        holders.places()[recent_holder_] == place) {
        return recent_holder_;
    }
    const std::uint32_t i = holders.search(place);
    if (i == holders.count() || holders.places()[i] != place) {
        holders.insert(i, place, ledger_);
        joined_[place].insert(table_hash(number), number, table_hash);
    }
    recent_segment_ = number;
    recent_place_ = place;
    recent_holder_ = i;
    return i;
}

void Nodes::leave(std::uint32_t number, std::uint32_t holder) {
    Holders& holders = at(number).holders;
    const Place place = holders.places()[holder];
    holders.erase(holder, ledger_);
    joined_[place].erase(table_hash(number), number, table_hash);
}

std::vector<std::uint32_t> Nodes::segments_of(Place place) const {
    std::vector<std::uint32_t> segments;
    joined_[place].each([&](std::uint32_t number) { segments.push_back(number); });
    std::sort(segments.begin(), segments.end());
    return segments;
}

std::uint64_t Nodes::mask(std::uint32_t number, Place place) const noexcept {
    return segment(number).holders.mask_of(place);
}

void Nodes::mark(std::uint32_t number, std::uint64_t positions, Place place) {
    Segment& segment = at(number);
    segment.holders.mask(join(number, place)) |= positions;
    live_count_ += static_cast<std::uint64_t>(std::popcount(positions & ~segment.live));
    segment.live |= positions;
}

void Nodes::unmark(Node node, Place place) {
    const std::uint32_t number = segment_of(node);
    Holders& holders = at(number).holders;
    const std::uint32_t holder = holders.search(place);
    if (holder == holders.count() || holders.places()[holder] != place) return;
    std::uint64_t& mask = holders.mask(holder);
    if ((mask & bit_of(node)) == 0) return;
    mask &= ~bit_of(node);
    if (mask == 0) leave(number, holder);
    bury(number, bit_of(node));
}

bool Nodes::unmark_some(Place place, std::size_t& next, std::size_t& budget) {
    return joined_[place].drain(next, budget, [&](std::uint32_t number) {
        Holders& holders = at(number).holders;
        const std::uint32_t holder = holders.search(place);
        const std::uint64_t gone = holders.masks()[holder];
        holders.erase(holder, ledger_);
        // One is left: it is counted with what was looked at.
        budget -= std::min(budget - 1, static_cast<std::size_t>(std::popcount(gone)));
        bury(number, gone);
    });
}

// Of these positions of a segment, give up those that no place holds any more.
void Nodes::bury(std::uint32_t number, std::uint64_t positions) {
    Segment& segment = at(number);
    const std::uint64_t* const masks = segment.holders.masks();
    for (std::uint32_t i = 0; i < segment.holders.count() && positions != 0; ++i) positions &= ~masks[i];
    if (positions == 0) return;
    for (std::uint64_t left = positions; left != 0; left &= left - 1) {
        const Node node = node_at(number, static_cast<std::uint32_t>(std::countr_zero(left)));
        if (has_key(node)) {
            names_.release(key(node));
            keys_.erase(table_hash(key(node)), node, hash_of_key());
        }
    }
    segment.live &= ~positions;
    segment.named &= ~positions;
    live_count_ -= static_cast<std::uint64_t>(std::popcount(positions));
    trim(number);
}

// Give up a segment's dead ends: or all of it. Dead nodes between live ones stay, as they lead to those behind them:
// whatever is neither first nor in the table of heads truly follows the node before it.
void Nodes::trim(std::uint32_t number) {
    Segment& segment = at(number);
    const std::uint32_t old_first = segment.first;
    const std::uint32_t first = segment.live == 0 ? segment.length : static_cast<std::uint32_t>(std::countr_zero(segment.live));
    const std::uint32_t length = segment.live == 0 ? 0 : 64 - static_cast<std::uint32_t>(std::countl_zero(segment.live));
    for (std::uint32_t position = old_first; position < segment.length; ++position) {
        if (position >= first && position < length) continue;
        const Node node = node_at(number, position);
        if (everywhere_) everywhere_->erase(segment.prefix(position));
        if (position == old_first) {
            heads_.erase(table_hash(prefix(node)), node, hash_of_prefix());
        } else {
            unlist(node);
        }
    }
    if (segment.live == 0) {
        give_segment(number);
        return;
    }
    if (first != old_first) {
        const Node head = node_at(number, first);
        unlist(head);
        segment.first = static_cast<std::uint8_t>(first);
        link(segment, no_node);
        heads_.insert(table_hash(prefix(head)), head, hash_of_prefix());
    }
    segment.length = static_cast<std::uint8_t>(length);
    const std::uint32_t used = length - first;
    if (segment.capacity >= 4 && used * 2 <= segment.capacity) reserve(segment, first, used);
}

// -- checking

void Nodes::check_segment(std::uint32_t number, std::vector<std::string>& found) const {
    const Segment& segment = this->segment(number);
    const auto say = [&](bool wrong, const char* what) {
        if (wrong) found.push_back("segment " + std::to_string(number) + ": " + what);
    };
    std::uint64_t held = 0;
    for (std::uint32_t i = 0; i < segment.holders.count(); ++i) {
        const Place place = segment.holders.places()[i];
        held |= segment.holders.masks()[i];
        say(segment.holders.masks()[i] == 0, "a place that holds nothing");
        say(i > 0 && segment.holders.places()[i - 1] >= place, "its places are out of order");
        const auto same = [&](std::uint32_t other) { return other == number; };
        say(joined_[place].find(table_hash(number), same) == no_node, "its place does not know it");
    }
    say(held != segment.live, "what is live is not what is held");
    if (segment.length == 0) return;
    const std::uint32_t span = std::uint32_t{segment.length} - segment.base;
    say(span > segment.capacity || segment.base > segment.first, "it is larger than its memory");
    say(segment.live == 0, "it is empty");
    say((segment.live >> segment.first & 1) == 0 || (segment.live >> (segment.length - 1) & 1) == 0, "its ends are dead");
    say((segment.named & ~segment.live) != 0, "a dead node has a key");
    say(find(segment.prefix(segment.first)) != node_at(number, segment.first), "its first node is not found");
    for (std::uint64_t left = segment.named; left != 0; left &= left - 1) {
        const Node node = node_at(number, static_cast<std::uint32_t>(std::countr_zero(left)));
        say(shared(key(node)) != node, "a node is not found by its key");
    }
}

void Nodes::problems(std::vector<std::string>& found) const {
    std::uint64_t live = 0;
    std::uint64_t named = 0;
    std::uint64_t used = 0;
    std::vector<std::uint32_t> joined(joined_.size());
    for (std::uint32_t number = 0; number < made_; ++number) {
        check_segment(number, found);
        const Segment& segment = this->segment(number);
        live += static_cast<std::uint64_t>(std::popcount(segment.live));
        named += static_cast<std::uint64_t>(std::popcount(segment.named));
        used += segment.length != 0 ? 1 : 0;
        for (std::uint32_t i = 0; i < segment.holders.count(); ++i) ++joined[segment.holders.places()[i]];
    }
    if (live != live_count_) found.push_back("the count of live nodes is not what the segments say");
    if (named != keys_.size()) found.push_back("the table of keys is not what the segments say");
    if (used + listed_ != heads_.size()) found.push_back("the table of heads is not what the segments say");
    if (used + free_count_ != made_) found.push_back("segments are lost");
    if (everywhere_) found.push_back("a restoration has not ended");
    for (std::size_t place = 0; place < joined.size(); ++place) {
        if (joined[place] != joined_[place].size()) found.push_back("a place's count of segments is wrong");
    }
}

}  // namespace warmroute
