// Matching: a request's prefixes are found in pieces, each side by side in one segment; then holders are asked.
//
// Nearly all workers have one place, a full-attention group in GPU memory. They are followed together: while a piece is
// held by exactly those that held the one before, a comparison of their lists and one pass over their masks will do.

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "index_matching.hpp"

namespace warmroute {
namespace {

// How many elements are equal from the start.
std::uint32_t common_length(const PrefixHash* a, const PrefixHash* b, std::uint32_t count) noexcept {
    constexpr std::uint32_t step = 8;
    std::uint32_t i = 0;
    for (; i + step <= count; i += step) {
        std::uint64_t different = 0;
        for (std::uint32_t j = i; j < i + step; ++j) different |= a[j] ^ b[j];
        if (different != 0) break;
    }
    while (i < count && a[i] == b[i]) ++i;
    return i;
}

std::uint64_t held_by_all(const Holders& holders) noexcept {
    const std::uint64_t* const masks = holders.masks();
    std::uint64_t all = ~std::uint64_t{0};
    for (std::uint32_t i = 0; i < holders.count(); ++i) all &= masks[i];
    return all;
}

std::uint32_t leading(std::uint64_t mask, std::uint32_t position, std::uint32_t count) noexcept {
    return std::min(static_cast<std::uint32_t>(std::countr_one(mask >> position)), count);
}

std::uint32_t ones(std::uint64_t mask) noexcept { return static_cast<std::uint32_t>(std::popcount(mask)); }

}  // namespace

void Index::match(std::span<const PrefixHash> prefixes, std::uint64_t block_size, Matches& matches) {
    Matching& matching = *matching_;
    matches.workers.clear();
    matches.blocks.clear();
    matches.by_medium.clear();
    matching.places.clear();
    matching.elements.clear();
    matching.media.clear();
    matching.complex.clear();
    matching.depth = 0;
    find_pieces(prefixes);
    if (!pieces_.empty() && pieces_.front().start == 0) begin_simple(block_size, matches);
    for (std::size_t i = 1; i < pieces_.size() && !matching.places.empty(); ++i) {
        if (pieces_[i].start != matching.depth) break;
        extend_simple(pieces_[i], matches);
    }
    for (const std::uint32_t element : matching.elements) matches.blocks[element] = matching.depth;
    for (std::size_t i = 0; i < matches.blocks.size(); ++i) {
        matches.by_medium[i][static_cast<std::size_t>(matching.media[i])] = matches.blocks[i];
    }
    if (matching.complex.empty() && headless_.empty()) return;
    std::sort(matching.complex.begin(), matching.complex.end());
    matching.complex.erase(std::unique(matching.complex.begin(), matching.complex.end()), matching.complex.end());
    const auto asked = static_cast<std::uint32_t>(prefixes.size());
    for (const std::uint32_t number : matching.complex) match_complex(*workers_[number], block_size, asked, matches);
    for (const std::uint32_t number : headless_) match_complex(*workers_[number], block_size, asked, matches);
}

std::uint32_t Index::depth(WorkerId id, std::span<const PrefixHash> prefixes, std::uint64_t block_size) {
    const Worker* const worker = find_worker(id);
    if (worker == nullptr) return 0;
    find_pieces(prefixes);
    Matches own;
    match_complex(*worker, block_size, static_cast<std::uint32_t>(prefixes.size()), own);
    return own.blocks.empty() ? 0 : own.blocks.front();
}

// Where the prefixes are, from the first on. What is behind one that nobody holds counts only for headless workers.
void Index::find_pieces(std::span<const PrefixHash> prefixes) {
    pieces_.clear();
    const auto asked = static_cast<std::uint32_t>(prefixes.size());
    std::uint32_t hint = no_node;
    for (std::uint32_t i = 0; i < asked;) {
        Node node = no_node;
        if (hint < nodes_.segments_made()) {
            const Segment& next = nodes_.segment(hint);
            if (next.length != 0 && next.prefix(next.first) == prefixes[i]) node = node_at(hint, next.first);
        }
        if (node == no_node) node = nodes_.find(prefixes[i]);
        hint = no_node;
        if (node == no_node) {
            if (headless_.empty()) return;
            ++i;
            continue;
        }
        const Segment& segment = nodes_.segment_at(node);
        const std::uint32_t position = position_of(node);
        const std::uint32_t most = std::min(asked - i, segment.length - position);
        const std::uint32_t count = common_length(&prefixes[i], &segment.blocks[position - segment.base], most);
        pieces_.push_back({segment_of(node), position, i, count});
        i += count;
        if (position + count == segment.length) hint = segment.next;
    }
}

void Index::begin_simple(std::uint64_t block_size, Matches& matches) {
    Matching& matching = *matching_;
    const Piece& piece = pieces_.front();
    const Holders& holders = nodes_.segment(piece.segment).holders;
    matching.depth = piece.count;
    for (std::uint32_t i = 0; i < holders.count(); ++i) {
        const std::uint32_t held = leading(holders.masks()[i], piece.position, piece.count);
        if (held == 0) continue;
        const Place place = holders.places()[i];
        const Answer& answer = answers_[place];
        if (answer.block_size == complex_answer) matching.complex.push_back(answer.worker_number);
        if (answer.block_size != block_size || block_size == complex_answer) continue;
        if (held == piece.count) {
            matching.places.push_back(place);
            matching.elements.push_back(static_cast<std::uint32_t>(matches.blocks.size()));
        }
        matches.workers.push_back(answer.worker);
        matches.blocks.push_back(held);
        matches.by_medium.push_back({});
        matching.media.push_back(answer.medium);
    }
}

// Of those who hold everything before this piece, find who holds how much of it.
void Index::extend_simple(const Piece& piece, Matches& matches) {
    Matching& matching = *matching_;
    const Holders& holders = nodes_.segment(piece.segment).holders;
    const std::size_t count = matching.places.size();
    const bool same = holders.count() == count &&
                      std::memcmp(holders.places(), matching.places.data(), count * sizeof(Place)) == 0;
    if (same && (~held_by_all(holders) & piece.mask()) == 0) {
        matching.depth += piece.count;
        return;
    }
    std::size_t kept = 0;
    const Place* at = holders.places();
    const Place* const end = at + holders.count();
    for (std::size_t i = 0; i < count; ++i) {
        const Place place = matching.places[i];
        at = count * 8 < holders.count() ? std::lower_bound(at, end, place) : std::find_if(at, end, [&](Place other) { return other >= place; });
        const std::uint64_t mask = at != end && *at == place ? holders.masks()[at - holders.places()] : 0;
        const std::uint32_t held = leading(mask, piece.position, piece.count);
        const std::uint32_t element = matching.elements[i];
        if (held < piece.count) {
            matches.blocks[element] = matching.depth + held;
            continue;
        }
        matching.places[kept] = place;
        matching.elements[kept++] = element;
    }
    matching.places.resize(kept);
    matching.elements.resize(kept);
    matching.depth += piece.count;
}

// A worker with several places: see "What a match counts" in the contract.
void Index::match_complex(const Worker& worker, std::uint64_t block_size, std::uint32_t asked, Matches& matches) {
    const auto& all = worker.groups.parts();
    const auto first = std::find_if(all.begin(), all.end(), [&](const auto& part) { return part.block_size == block_size; });
    const auto last = std::find_if(first, all.end(), [&](const auto& part) { return part.block_size != block_size; });
    const std::span<const Groups::Part> parts(first, last);
    if (parts.empty()) return;
    const bool sliding = std::any_of(first, last, [](const Groups::Part& part) { return !part.full; });
    const auto by_medium = sliding ? overlap_by_windows(worker, parts, asked) : overlap_by_chains(worker, parts);
    const std::uint32_t blocks = std::accumulate(by_medium.begin(), by_medium.end(), std::uint32_t{0});
    if (blocks == 0) return;
    matches.workers.push_back(worker.id);
    matches.blocks.push_back(blocks);
    matches.by_medium.push_back(by_medium);
}

// Which blocks of a segment a worker's group holds in each medium or a faster one.
std::array<std::uint64_t, media_count> Index::held_up_to(const Worker& worker, std::uint64_t group,
                                                         std::uint32_t segment) const {
    std::array<std::uint64_t, media_count> held{};
    for (const Whereabouts& at : worker.places) {
        if (at.group != group) continue;
        const std::uint64_t mask = nodes_.mask(segment, at.place);
        for (auto medium = static_cast<std::size_t>(at.medium); medium < media_count; ++medium) held[medium] |= mask;
    }
    return held;
}

// Every group must hold every block; the slowest of them is waited for.
Index::ByMedium Index::overlap_by_chains(const Worker& worker, std::span<const Groups::Part> parts) const {
    ByMedium by_medium{};
    std::uint32_t depth = 0;
    for (const Piece& piece : pieces_) {
        if (piece.start != depth) break;
        std::array<std::uint64_t, media_count> held;
        held.fill(~std::uint64_t{0});
        for (const Groups::Part& part : parts) {
            const auto own = held_up_to(worker, part.group, piece.segment);
            for (std::size_t medium = 0; medium < media_count; ++medium) held[medium] &= own[medium];
        }
        const std::uint32_t count = leading(held[media_count - 1], piece.position, piece.count);
        if (count == 0) break;
        const std::uint64_t counted = Piece{piece.segment, piece.position, 0, count}.mask();
        std::uint64_t faster = 0;
        for (std::size_t medium = 0; medium < media_count; ++medium) {
            by_medium[medium] += ones(held[medium] & ~faster & counted);
            faster |= held[medium];
        }
        depth += count;
        if (count < piece.count) break;
    }
    return by_medium;
}

// Block by block, as there are windows: the longest length that all groups of the size can use.
Index::ByMedium Index::overlap_by_windows(const Worker& worker, std::span<const Groups::Part> parts,
                                          std::uint32_t asked) const {
    const bool any_full = std::any_of(parts.begin(), parts.end(), [](const Groups::Part& part) { return part.full; });
    ByMedium best{};
    ByMedium sum{};
    std::vector<std::uint64_t> runs(parts.size());
    std::vector<std::array<std::uint64_t, media_count>> held(parts.size());
    std::size_t next_piece = 0;
    for (std::uint32_t i = 0; i < asked; ++i) {
        while (next_piece < pieces_.size() && pieces_[next_piece].start + pieces_[next_piece].count <= i) ++next_piece;
        const Piece* const piece =
            next_piece < pieces_.size() && pieces_[next_piece].start <= i ? &pieces_[next_piece] : nullptr;
        if (piece != nullptr && piece->start == i) {
            for (std::size_t p = 0; p < parts.size(); ++p) held[p] = held_up_to(worker, parts[p].group, piece->segment);
        }
        std::size_t slowest = 0;
        bool usable = true;
        for (std::size_t p = 0; p < parts.size(); ++p) {
            std::size_t medium = 0;
            const std::uint64_t bit = piece == nullptr ? 0 : std::uint64_t{1} << (piece->position + i - piece->start);
            while (medium < media_count && (held[p][medium] & bit) == 0) ++medium;
            const bool here = medium < media_count;
            if (parts[p].full && !here) return best;
            runs[p] = here ? runs[p] + 1 : 0;
            if (!parts[p].full) usable = usable && runs[p] >= std::min<std::uint64_t>(i + 1, parts[p].need);
            // What no full group needs and no window reaches needs no loading at all.
            if (here && parts[p].full == any_full) slowest = std::max(slowest, medium);
        }
        ++sum[slowest];
        if (usable) best = sum;
    }
    return best;
}

}  // namespace warmroute
