// The index's memory: counted, dense, and given back.
//
// Most of an index is small arrays of a few sizes that come and go: runs of blocks, growing. A general allocator adds 8
// to 24 bytes to each and keeps what was freed. Here arrays of one size live side by side in *slabs*, each one *unit*,
// and larger arrays, as tables are, have units of their own:
//
//     unit     64 KiB, aligned to its size, so an array's address leads to its slab
//     slab     [header | array | array | free | array | ...]
//     arena    32 units, one large page of the system
//
// Free units go back to the operating system, but for a few slabs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace warmroute {

class Ledger {
  public:
    Ledger() = default;
    Ledger(const Ledger&) = delete;
    Ledger& operator=(const Ledger&) = delete;
    ~Ledger();

    // What was taken and not given, as it was asked for.
    std::size_t bytes() const noexcept { return bytes_; }

    // Aligned to 64 bytes if it is a multiple of 64, else to 16.
    void* take(std::size_t bytes);
    void give(void* memory, std::size_t bytes) noexcept;

  private:
    struct Slab;
    static constexpr std::size_t granule = 16;
    static constexpr std::size_t small_max = 1024;
    static constexpr std::size_t unit_bytes = std::size_t{64} << 10;
    static constexpr std::size_t arena_units = 32;
    static constexpr std::size_t arena_bytes = arena_units * unit_bytes;
    static constexpr std::size_t first_units = 8;   // of the first arena so many are used: its pages are small
    static constexpr std::size_t spares_max = 16;  // an array that grows passes through about so many sizes

    struct Arena {
        char* memory;
        std::uint32_t all;   // a bit for each unit that is used at all
        std::uint32_t free;  // a bit for each of those that is not taken
    };

    static std::size_t units(std::size_t bytes) noexcept { return (bytes + unit_bytes - 1) / unit_bytes; }
    static std::uint32_t run_of(std::size_t count) noexcept { return ~std::uint32_t{0} >> (arena_units - count); }

    void* take_units(std::size_t count);
    Arena& open_arena(std::size_t units);
    void give_units(void* memory, std::size_t count) noexcept;
    void* take_small(std::size_t granules);
    void give_small(void* memory) noexcept;
    void link(Slab& slab) noexcept;
    void unlink(Slab& slab) noexcept;

    std::size_t bytes_ = 0;
    std::vector<Arena> arenas_;
    std::array<Slab*, small_max / granule + 1> slabs_{};  // by granules per array: slabs that have room
    Slab* spares_ = nullptr;                              // empty ones, so that they do not come and go all the time
    std::size_t spare_count_ = 0;
};

// The ledger as an allocator of the standard containers.
template <class T>
struct Counted {
    using value_type = T;
    using propagate_on_container_move_assignment = std::true_type;
    using propagate_on_container_swap = std::true_type;

    Counted(Ledger& counting) noexcept : ledger(&counting) {}  // NOLINT: implicit, as containers convert it
    template <class U>
    Counted(const Counted<U>& other) noexcept : ledger(other.ledger) {}  // NOLINT

    T* allocate(std::size_t count) { return static_cast<T*>(ledger->take(count * sizeof(T))); }
    void deallocate(T* memory, std::size_t count) noexcept { ledger->give(memory, count * sizeof(T)); }

    friend bool operator==(const Counted& a, const Counted& b) noexcept { return a.ledger == b.ledger; }

    Ledger* ledger;
};

}  // namespace warmroute
