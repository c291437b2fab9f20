// Any sequence of announcements to the index: it never contradicts itself, and without workers it holds nothing.
//
// native/fuzz/run.py builds and runs it. That what it answers is right is for native/fuzz/differential.py. Each input is a world: few hashes and contents, so
// that they meet; its bytes say who announces what.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "index.hpp"

namespace {

using namespace warmroute;

// The input's bytes, and after them pseudo-random ones: a short input is a long story.
class Choices {
  public:
    Choices(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

    std::uint64_t below(std::uint64_t bound) noexcept {
        if (next_ < size_) {
            state_ = mix(state_ + data_[next_]);
            return data_[next_++] % bound;
        }
        ++next_;
        state_ = mix(state_ + 1);
        return state_ % bound;
    }
    std::size_t taken() const noexcept { return next_; }

  private:
    const std::uint8_t* data_;
    std::size_t size_;
    std::size_t next_ = 0;
    std::uint64_t state_ = 1;
};

class Story {
  public:
    explicit Story(Choices choices)
        : choices_(choices),
          hashes_(3 + choices_.below(60)),
          labels_(1 + choices_.below(3)),
          honest_(choices_.below(2) == 0),
          salted_(choices_.below(3) == 0),
          index_({choices_.below(2) * 20, limit(choices_.below(4)), limit(choices_.below(6))}) {}

    void tell() {
        for (std::size_t step = 0; step < 150; ++step) {
            act();
            if (step % 8 == 0) check();
        }
        check();
        Index copy({20});
        copy.restore(index_.dump(std::nullopt));
        require(copy.problems());
        for (WorkerId worker = 0; worker < workers; ++worker) index_.drop(worker);
        check();
        while (index_.sweep(1 + choices_.below(50))) check();
        check();
        const IndexSizes sizes = index_.sizes();
        if (sizes.nodes != 0 || sizes.copies != 0 || sizes.workers != 0 || sizes.bytes > 2 * sizeof(Index)) std::abort();
    }

  private:
    static constexpr WorkerId workers = 4;

    static std::optional<std::uint64_t> limit(std::uint64_t choice) {
        return choice == 0 ? std::optional<std::uint64_t>{15} : choice == 1 ? std::optional<std::uint64_t>{200} : std::nullopt;
    }

    static void require(const std::vector<std::string>& problems) {
        for (const std::string& problem : problems) std::fprintf(stderr, "%s\n", problem.c_str());
        if (!problems.empty()) std::abort();
    }
    void check() { require(index_.problems()); }

    void act() {
        const WorkerId worker = choices_.below(workers);
        const std::uint64_t kind = choices_.below(100);
        Report report;
        if (kind < 1) {
            index_.drop(worker);
        } else if (kind < 3) {
            index_.apply(worker, Cleared{}, report);
        } else if (kind < 4) {
            index_.sweep(choices_.below(20));
        } else if (kind < 5) {
            index_.restore(index_.dump(std::nullopt));
        } else if (kind < 60) {
            index_.apply(worker, stored(worker), report);
        } else if (kind < 95) {
            index_.apply(worker, removed(), report);
        } else {
            match();
        }
    }

    void add(Hashes& hashes, std::uint64_t number) const {
        const bool odd = number % 7 == 0;  // then all of the event's are written out
        if (!odd && hashes.tagged.empty()) {
            hashes.numbers.push_back(number);
            return;
        }
        const auto tagged = [](std::uint64_t n) {
            std::string text(1, n % 7 == 0 ? 'b' : 'u');
            for (int shift = 56; shift >= 0; shift -= 8) text.push_back(static_cast<char>(n >> shift));
            return text;
        };
        for (const std::uint64_t known : hashes.numbers) hashes.tagged.push_back(tagged(known));
        hashes.numbers.clear();
        hashes.tagged.push_back(tagged(number));
    }

    std::uint64_t hash(WorkerId worker, PrefixHash prefix) {
        if (!honest_) return ~std::uint64_t{0} - choices_.below(hashes_);
        return mix(prefix + (salted_ ? worker : 0));
    }

    Stored stored(WorkerId worker) {
        Stored event;
        const std::size_t length = 1 + choices_.below(choices_.below(3) == 0 ? 150 : 8);
        const std::size_t start = choices_.below(3) == 0 ? choices_.below(length) : 0;
        event.block_size = choices_.below(20) == 0 ? 8 : 16;
        event.window = choices_.below(6) == 0 ? 1 + choices_.below(60) : no_window;
        event.group = choices_.below(8) == 0 ? 1 : 0;
        event.medium = static_cast<Medium>(choices_.below(6) == 0 ? choices_.below(3) : 0);
        const bool by_hash = choices_.below(12) == 0;
        PrefixHash prefix = root;
        if (start == 0 && !honest_ && choices_.below(2) == 0) add(event.parent, hash(worker, prefix));
        for (std::size_t i = 0; i < length; ++i) {
            const std::uint64_t digest = choices_.below(labels_);
            prefix = chain(prefix, digest, 0);
            const std::uint64_t name = hash(worker, prefix);
            if (i + 1 == start) add(event.parent, name);
            if (i < start) continue;
            add(event.hashes, name);
            said_.push_back(name);
            if (!by_hash) event.digests.push_back(digest);
        }
        return event;
    }

    Removed removed() {
        Removed event;
        event.group = choices_.below(8) == 0 ? 1 : 0;
        event.medium = static_cast<Medium>(choices_.below(6) == 0 ? choices_.below(3) : 0);
        if (said_.empty()) return event;
        std::size_t at = said_.size() - 1 - choices_.below(said_.size());
        const bool forwards = choices_.below(2) == 0;
        for (std::size_t count = 1 + choices_.below(30); count > 0 && at < said_.size(); --count) {
            add(event.hashes, said_[at]);
            at = forwards ? at + 1 : at - 1;
        }
        return event;
    }

    void match() {
        std::vector<PrefixHash> prefixes;
        PrefixHash prefix = root;
        for (std::size_t i = 0; i < 150; ++i) prefixes.push_back(prefix = chain(prefix, choices_.below(labels_), 0));
        Matches matches;
        index_.match(prefixes, 16, matches);
        for (std::size_t i = 0; i < matches.workers.size(); ++i) {
            const auto& media = matches.by_medium[i];
            const std::uint32_t blocks = matches.blocks[i];
            if (blocks == 0 || blocks > prefixes.size() || media[0] + media[1] + media[2] != blocks) std::abort();
        }
    }

    Choices choices_;
    std::uint64_t hashes_;
    std::uint64_t labels_;
    bool honest_;
    bool salted_;
    Index index_;
    std::vector<std::uint64_t> said_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    Story(Choices(data, size)).tell();
    return 0;
}
