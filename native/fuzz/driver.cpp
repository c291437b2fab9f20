// Runs a fuzz target where there is no libFuzzer: the corpus, then mutations of it and random bytes. Called as libFuzzer is.
//
//     fuzz_wire [-max_total_time=SECONDS] [-seed=N] DIRECTORY...
//
// It knows nothing of coverage; it is for machines without clang, under the sanitizers of their compiler.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Input = std::vector<std::uint8_t>;

class Mutator {
  public:
    Mutator(std::uint64_t seed, std::vector<Input> seeds) : random_(seed), seeds_(std::move(seeds)) {}

    Input next() {
        if (seeds_.empty() || below(20) == 0) {
            Input input(below(64));
            for (auto& byte : input) byte = any();
            return input;
        }
        Input input = seeds_[below(seeds_.size())];
        for (std::size_t times = 1 + below(4); times > 0; --times) mutate(input);
        return input;
    }

  private:
    std::size_t below(std::size_t end) { return static_cast<std::size_t>(random_() % end); }
    std::uint8_t any() { return static_cast<std::uint8_t>(random_()); }

    void mutate(Input& input) {
        const std::size_t at = below(input.size() + 1);
        const auto here = input.begin() + static_cast<std::ptrdiff_t>(at);
        const std::size_t some = below(std::min<std::size_t>(input.size() - at, 32) + 1);
        switch (below(6)) {
            case 0:
                if (at < input.size()) input[at] = any();
                break;
            case 1:
                if (at < input.size()) input[at] ^= static_cast<std::uint8_t>(1 << below(8));
                break;
            case 2: input.erase(here, here + static_cast<std::ptrdiff_t>(some)); break;
            case 3: input.insert(here, any()); break;
            case 4: {
                const Input piece(here, here + static_cast<std::ptrdiff_t>(some));
                input.insert(input.begin() + static_cast<std::ptrdiff_t>(below(input.size() + 1)), piece.begin(),
                             piece.end());
                break;
            }
            default: input.resize(at);
        }
    }

    std::mt19937_64 random_;
    std::vector<Input> seeds_;
};

}  // namespace

int main(int count, char** arguments) {
    double seconds = 10;
    std::uint64_t seed = std::random_device{}();
    std::vector<Input> seeds;
    for (int i = 1; i < count; ++i) {
        const std::string argument = arguments[i];
        if (argument.starts_with("-max_total_time=")) {
            seconds = std::stod(argument.substr(16));
        } else if (argument.starts_with("-seed=")) {
            seed = std::stoull(argument.substr(6));
        } else {
            for (const auto& entry : std::filesystem::directory_iterator(argument)) {
                std::ifstream file(entry.path(), std::ios::binary);
                seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
            }
        }
    }
    std::printf("%zu seeds, -seed=%llu\n", seeds.size(), static_cast<unsigned long long>(seed));
    std::fflush(stdout);
    for (const Input& input : seeds) LLVMFuzzerTestOneInput(input.data(), input.size());
    Mutator mutator(seed, std::move(seeds));
    std::size_t runs = 0;
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (std::chrono::steady_clock::now() < end) {
        for (int i = 0; i < 100; ++i, ++runs) {
            const Input input = mutator.next();
            LLVMFuzzerTestOneInput(input.data(), input.size());
        }
    }
    std::printf("%zu inputs, nothing found\n", runs);
    return 0;
}
