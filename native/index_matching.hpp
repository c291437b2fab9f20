// Memory of a match that the next one uses again.
#pragma once

#include <cstdint>
#include <vector>

#include "index.hpp"

namespace warmroute {

struct Index::Matching {
    // Workers with one place that hold everything up to now, by place, and which element of the matches each is.
    std::vector<Place> places;
    std::vector<std::uint32_t> elements;
    std::uint32_t depth = 0;
    std::vector<Medium> media;           // of all elements
    std::vector<std::uint32_t> complex;  // numbers of workers that hold the first block in some of their places
};

}  // namespace warmroute
