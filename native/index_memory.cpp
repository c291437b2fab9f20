#include "index_memory.hpp"

#include <sys/mman.h>

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
constexpr std::size_t mapped_min = std::size_t{32} << 10;  // from here on, what rounding up to pages adds is little

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
    while (spares_ != nullptr) munmap(std::exchange(spares_, spares_->after), slab_bytes);
}

void* Ledger::take(std::size_t bytes) {
    void* memory = nullptr;
    if (WARMROUTE_SLABS && bytes <= small_max) {
        memory = take_small((bytes + granule - 1) / granule);
    } else if (WARMROUTE_SLABS && bytes >= mapped_min) {
        memory = map(bytes);
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
    } else if (WARMROUTE_SLABS && bytes >= mapped_min) {
        munmap(memory, bytes);
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
            slab = reinterpret_cast<Slab*>(map_aligned(slab_bytes));
        }
        const std::size_t capacity = (slab_bytes - sizeof(Slab)) / ((granules == 0 ? 1 : granules) * granule);
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
    auto* const slab = reinterpret_cast<Slab*>(reinterpret_cast<std::uintptr_t>(memory) & ~(slab_bytes - 1));
    *static_cast<void**>(memory) = slab->free;
    slab->free = memory;
    if (slab->used-- == slab->capacity) link(*slab);
    if (slab->used != 0) return;
    unlink(*slab);
    if (spare_count_ == spares_max) {
        munmap(slab, slab_bytes);
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
