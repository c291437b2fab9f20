// The index's memory: counted, dense, and given back.
//
// Most of an index is small arrays of a few sizes that come and go: runs of blocks, growing. A general allocator adds 8
// to 24 bytes to each and keeps what was freed. Here arrays of one size live side by side in *slabs*:
//
//     slab    [header | array | array | free | array | ...]     aligned to its size, so an array's address leads to it
//
// Empty slabs go back to the operating system, but for a few; so do large arrays, which have pages of their own.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

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
    static constexpr std::size_t slab_bytes = std::size_t{64} << 10;
    static constexpr std::size_t spares_max = 16;  // an array that grows passes through about so many sizes

    void* take_small(std::size_t granules);
    void give_small(void* memory) noexcept;
    void link(Slab& slab) noexcept;
    void unlink(Slab& slab) noexcept;

    std::size_t bytes_ = 0;
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
