// What the index is beside two plainer designs, on the same blocks: why runs, marks and shared keys are worth their code.
//
//     g++ -std=c++20 -O3 -Inative benchmarks/index/alternatives.cpp native/index.cpp native/index_[!b]*.cpp -o build/alternatives
//     build/alternatives
//
// (`[!b]` leaves out the Python binding.) The plainer designs do less: one copy of a block, no media, orphans, conflicts
// or limits. Each case runs in a process of its own; time is CPU time, memory is RSS per block and worker that holds it.

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <cstdlib>
#include <memory>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "index.hpp"

namespace {

using namespace warmroute;

constexpr std::size_t depth = 512;
constexpr std::size_t blocks_an_event = 16;

struct Chain {
    std::vector<std::uint64_t> keys;
    std::vector<std::uint64_t> digests;
    std::vector<PrefixHash> prefixes;
};

Chain make_chain(std::uint64_t seed) {
    Chain made;
    PrefixHash prefix = root;
    for (std::uint64_t i = 0; i < depth; ++i) {
        made.keys.push_back(mix(seed * 1'000'003 + 2 * i));
        made.digests.push_back(mix(seed * 1'000'003 + 2 * i + 1));
        made.prefixes.push_back(prefix = chain(prefix, made.digests.back(), 0));
    }
    return made;
}

// Every block is an entry of one hash table, with the list of its holders; each worker has a table of its keys.
class Map {
  public:
    static constexpr const char* name = "a hash table of blocks";

    void store(WorkerId worker, const Chain& blocks, std::size_t start, std::size_t stop) {
        auto& keys = keys_[worker];
        PrefixHash prefix = start == 0 ? root : keys.at(blocks.keys[start - 1]);
        for (std::size_t i = start; i < stop; ++i) {
            prefix = chain(prefix, blocks.digests[i], 0);
            if (keys.emplace(blocks.keys[i], prefix).second) holders_[prefix].push_back(static_cast<std::uint32_t>(worker));
        }
    }

    std::size_t match(const std::vector<PrefixHash>& prefixes) {
        holding_.clear();
        ended_.clear();
        for (std::size_t i = 0; i < prefixes.size(); ++i) {
            const auto found = holders_.find(prefixes[i]);
            if (found == holders_.end()) break;
            if (i == 0) {
                holding_ = found->second;
            } else if (holding_ != found->second) {
                for (const std::uint32_t worker : holding_) {
                    const bool held = std::find(found->second.begin(), found->second.end(), worker) != found->second.end();
                    if (!held) ended_.push_back(worker);
                }
                std::erase_if(holding_, [&](std::uint32_t worker) {
                    return std::find(ended_.begin(), ended_.end(), worker) != ended_.end();
                });
            }
        }
        return holding_.size() + ended_.size();
    }

  private:
    std::unordered_map<PrefixHash, std::vector<std::uint32_t>> holders_;
    std::unordered_map<WorkerId, std::unordered_map<std::uint64_t, PrefixHash>> keys_;
    std::vector<std::uint32_t> holding_, ended_;
};

// Every block is a node of a tree that knows its children and holders; each worker has a table of keys to nodes.
class Tree {
  public:
    static constexpr const char* name = "a tree of blocks";

    void store(WorkerId worker, const Chain& blocks, std::size_t start, std::size_t stop) {
        auto& keys = keys_[worker];
        Block* at = start == 0 ? &root_ : keys.at(blocks.keys[start - 1]);
        for (std::size_t i = start; i < stop; ++i) {
            std::unique_ptr<Block>& child = at->children[blocks.digests[i]];
            if (!child) child = std::make_unique<Block>();
            at = child.get();
            if (keys.emplace(blocks.keys[i], at).second) at->holders.push_back(static_cast<std::uint32_t>(worker));
        }
    }

    std::size_t match(const std::vector<std::uint64_t>& digests) {
        const Block* at = &root_;
        const std::vector<std::uint32_t>* holding = nullptr;
        for (const std::uint64_t digest : digests) {
            const auto child = at->children.find(digest);
            if (child == at->children.end()) break;
            at = child->second.get();
            if (holding == nullptr || *holding == at->holders) holding = &at->holders;
        }
        return holding == nullptr ? 0 : holding->size();
    }

    ~Tree() {  // not by recursion, which chains are too long for
        std::vector<std::unique_ptr<Block>> gone;
        const auto take = [&](Block& block) {
            for (auto& [digest, child] : block.children) gone.push_back(std::move(child));
        };
        take(root_);
        while (!gone.empty()) {
            const std::unique_ptr<Block> block = std::move(gone.back());
            gone.pop_back();
            take(*block);
        }
    }

  private:
    struct Block {
        std::unordered_map<std::uint64_t, std::unique_ptr<Block>> children;
        std::vector<std::uint32_t> holders;
    };
    Block root_;
    std::unordered_map<WorkerId, std::unordered_map<std::uint64_t, Block*>> keys_;
};

class Runs {
  public:
    static constexpr const char* name = "runs, marks, shared keys";

    void store(WorkerId worker, const Chain& blocks, std::size_t start, std::size_t stop) {
        Stored event;
        event.block_size = 16;
        const auto part = [&](const std::vector<std::uint64_t>& all) {
            return std::vector(all.begin() + static_cast<long>(start), all.begin() + static_cast<long>(stop));
        };
        event.hashes.numbers = part(blocks.keys);
        event.digests = part(blocks.digests);
        if (start != 0) event.parent.numbers = {blocks.keys[start - 1]};
        index_.apply(worker, event, report_);
    }

    std::size_t match(const std::vector<PrefixHash>& prefixes) {
        index_.match(prefixes, 16, matches_);
        return matches_.workers.size();
    }

  private:
    Index index_{Limits{1000}};
    Report report_;
    Matches matches_;
};

double cpu_ns() {
    timespec now{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

double rss_bytes() {
    long pages = 0;
    long resident = 0;
    std::FILE* const file = std::fopen("/proc/self/statm", "r");
    if (file == nullptr || std::fscanf(file, "%ld %ld", &pages, &resident) != 2) return 0;
    std::fclose(file);
    return static_cast<double>(resident) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

template <class Design>
void measure(std::size_t chains, WorkerId holders) {
    std::vector<Chain> all;
    for (std::size_t k = 0; k < chains; ++k) all.push_back(make_chain(k));
    Design design;
    const double before = rss_bytes();
    const double start = cpu_ns();
    for (std::size_t k = 0; k < chains; ++k) {
        for (WorkerId holder = 0; holder < holders; ++holder) {
            for (std::size_t at = 0; at < depth; at += blocks_an_event) {
                design.store(holders > 1 ? holder : k % 16, all[k], at, at + blocks_an_event);
            }
        }
    }
    const double entries = static_cast<double>(chains * depth * holders);
    const double stored = (cpu_ns() - start) / entries;
    const double bytes = (rss_bytes() - before) / entries;
    const auto ask = [&](std::size_t k) {
        if constexpr (std::is_same_v<Design, Tree>) return design.match(all[k].digests);
        if constexpr (!std::is_same_v<Design, Tree>) return design.match(all[k].prefixes);
    };
    const auto match_ns = [&](std::size_t many, auto which) {
        const double begin = cpu_ns();
        for (std::size_t i = 0; i < many; ++i) {
            if (ask(which(i)) != holders) std::abort();
        }
        return (cpu_ns() - begin) / static_cast<double>(many);
    };
    const double cold = match_ns(chains, [&](std::size_t i) { return i * 2'654'435'761 % chains; });
    const double warm = match_ns(2000, [](std::size_t) { return std::size_t{1}; });
    std::printf("%-26s %5zu x %3zu %14.0f %12.2f %12.2f %14.1f\n", Design::name, chains, static_cast<std::size_t>(holders),
                stored, warm / 1e3, cold / 1e3, bytes);
}

template <class Design>
void measure_alone(std::size_t chains, WorkerId holders) {
    std::fflush(stdout);
    if (fork() == 0) {
        measure<Design>(chains, holders);
        std::fflush(stdout);
        _exit(0);
    }
    wait(nullptr);
}

}  // namespace

int main() {
    std::printf("%-26s %11s %14s %12s %12s %14s\n", "chains of 512 x holders", "", "store ns/block", "match us", "other us",
                "bytes/entry");
    for (const auto& [chains, holders] : {std::pair{2048, 1}, {256, 8}, {32, 64}}) {
        measure_alone<Map>(static_cast<std::size_t>(chains), static_cast<WorkerId>(holders));
        measure_alone<Tree>(static_cast<std::size_t>(chains), static_cast<WorkerId>(holders));
        measure_alone<Runs>(static_cast<std::size_t>(chains), static_cast<WorkerId>(holders));
    }
}
