#include "index_memory.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <new>
#include <utility>

// AddressSanitizer knows its own allocator best: under it, every array is one of its.
#if defined(__SANITIZE_ADDRESS__)
#define WARMROUTE_SLABS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WARMROUTE_SLABS 0
#endif
#endif
#ifndef WARMROUTE_SLABS
#define WARMROUTE_SLABS 1
#endif

namespace warmroute {
namespace {

constexpr std::size_t alignment = 64;

char* map(std::size_t bytes) {
    void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    return static_cast<char*>(memory);
}

// Memory that is aligned to its size.
char* map_aligned(std::size_t bytes) {
    char* const memory = map(bytes);
    if (reinterpret_cast<std::uintptr_t>(memory) % bytes == 0) return memory;  // the system hands out neighbours
    munmap(memory, bytes);
    char* const wide = map(2 * bytes);
    const std::size_t before = bytes - reinterpret_cast<std::uintptr_t>(wide) % bytes;
    if (before != bytes) munmap(wide, before);
    char* const aligned = before == bytes ? wide : wide + before;
    munmap(aligned + bytes, static_cast<std::size_t>(wide + 2 * bytes - (aligned + bytes)));
    return aligned;
}

}  // namespace

// -- units

// The first arena is short and has small pages, so that a small index is small. All others have large ones, where the
// system has them: what they hold is touched for the first time at a fifth of the cost, and looked up at less.
void* Ledger::take_units(std::size_t count) {
    if (count > arena_units) return map(count * unit_bytes);
    if (arenas_.empty() && count <= first_units) open_arena(first_units);
    const std::uint32_t wanted = run_of(count);
    for (Arena& arena : arenas_) {
        for (std::size_t at = 0; at + count <= arena_units; ++at) {
            if ((arena.free >> at & wanted) != wanted) continue;
            arena.free &= ~(wanted << at);
            return arena.memory + at * unit_bytes;
        }
    }
    Arena& arena = open_arena(arena_units);
    arena.free &= ~wanted;
    return arena.memory;
}

Ledger::Arena& Ledger::open_arena(std::size_t count) {
    arenas_.reserve(arenas_.size() + 1);
    char* const memory = map_aligned(arena_bytes);
    if (count == arena_units) madvise(memory, arena_bytes, MADV_HUGEPAGE);
    arenas_.push_back({memory, run_of(count), run_of(count)});
    return arenas_.back();
}

void Ledger::give_units(void* memory, std::size_t count) noexcept {
    if (count > arena_units) {
        munmap(memory, count * unit_bytes);
        return;
    }
    char* const start = static_cast<char*>(memory);
    const auto is_home = [&](const Arena& arena) { return start >= arena.memory && start < arena.memory + arena_bytes; };
    const auto home = std::find_if(arenas_.begin(), arenas_.end(), is_home);
    home->free |= run_of(count) << static_cast<std::size_t>(start - home->memory) / unit_bytes;
    if (home->free != home->all) {
        madvise(memory, count * unit_bytes, MADV_DONTNEED);
        return;
    }
    munmap(home->memory, arena_bytes);
    *home = arenas_.back();
    arenas_.pop_back();
}

// -- small arrays

struct alignas(64) Ledger::Slab {
    std::size_t granules;  // per array
    std::uint32_t capacity;
    std::uint32_t used;
    std::uint32_t touched;  // arrays from here on have never been used
    void* free;             // the first free array, which holds the address of the next one
    Slab* before;
    Slab* after;

    char* arrays() noexcept { return reinterpret_cast<char*>(this + 1); }
};

Ledger::~Ledger() {
    while (spares_ != nullptr) give_units(std::exchange(spares_, spares_->after), 1);
}

void* Ledger::take(std::size_t bytes) {
    void* memory = nullptr;
    if (WARMROUTE_SLABS && bytes <= small_max) {
        memory = take_small((bytes + granule - 1) / granule);
    } else if (WARMROUTE_SLABS && bytes >= unit_bytes) {
        memory = take_units(units(bytes));
    } else {
        memory = ::operator new(bytes, std::align_val_t{alignment});
    }
    bytes_ += bytes;
    return memory;
}

void Ledger::give(void* memory, std::size_t bytes) noexcept {
    bytes_ -= bytes;
    if (WARMROUTE_SLABS && bytes <= small_max) {
        give_small(memory);
    } else if (WARMROUTE_SLABS && bytes >= unit_bytes) {
        give_units(memory, units(bytes));
    } else {
        ::operator delete(memory, std::align_val_t{alignment});
    }
}

void* Ledger::take_small(std::size_t granules) {
    Slab* slab = slabs_[granules];
    if (slab == nullptr) {
        if (spares_ != nullptr) {
            slab = std::exchange(spares_, spares_->after);
            --spare_count_;
        } else {
            slab = static_cast<Slab*>(take_units(1));
        }
        const std::size_t capacity = (unit_bytes - sizeof(Slab)) / ((granules == 0 ? 1 : granules) * granule);
        *slab = {granules, static_cast<std::uint32_t>(capacity), 0, 0, nullptr, nullptr, nullptr};
        link(*slab);
    }
    void* memory = slab->free;
    if (memory != nullptr) {
        slab->free = *static_cast<void**>(memory);
    } else {
        memory = slab->arrays() + slab->touched++ * granules * granule;
    }
    if (++slab->used == slab->capacity) unlink(*slab);
    return memory;
}

void Ledger::give_small(void* memory) noexcept {
    auto* const slab = reinterpret_cast<Slab*>(reinterpret_cast<std::uintptr_t>(memory) & ~(unit_bytes - 1));
    *static_cast<void**>(memory) = slab->free;
    slab->free = memory;
    if (slab->used-- == slab->capacity) link(*slab);
    if (slab->used != 0) return;
    unlink(*slab);
    if (spare_count_ == spares_max) {
        give_units(slab, 1);
        return;
    }
    slab->after = std::exchange(spares_, slab);
    ++spare_count_;
}

void Ledger::link(Slab& slab) noexcept {
    Slab*& first = slabs_[slab.granules];
    slab.before = nullptr;
    slab.after = first;
    if (first != nullptr) first->before = &slab;
    first = &slab;
}

void Ledger::unlink(Slab& slab) noexcept {
    (slab.before == nullptr ? slabs_[slab.granules] : slab.before->after) = slab.after;
    if (slab.after != nullptr) slab.after->before = slab.before;
}

}  // namespace warmroute
