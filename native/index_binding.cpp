// The Python face of the index. Only conversions live here; see _native.pyi for the contract.

#include <nanobind/nanobind.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "index.hpp"
#include "tokens.hpp"
#include "wire.hpp"

namespace nb = nanobind;

namespace warmroute {
namespace {

// -- numbers side by side, as a buffer

struct NumberArray {
    std::shared_ptr<const void> owner;
    const void* data = nullptr;
    Py_ssize_t count = 0;
    Py_ssize_t item_bytes = 0;
    const char* format = nullptr;
};

int get_buffer(PyObject* object, Py_buffer* view, int flags) {
    static char nothing = 0;
    NumberArray& array = *nb::inst_ptr<NumberArray>(nb::handle(object));
    if (PyBuffer_FillInfo(view, object, array.count == 0 ? &nothing : const_cast<void*>(array.data),
                          array.count * array.item_bytes, 1, flags) != 0) {
        return -1;
    }
    view->itemsize = array.item_bytes;
    if ((flags & PyBUF_FORMAT) != 0) view->format = const_cast<char*>(array.format);
    if ((flags & PyBUF_ND) != 0) view->shape = &array.count;
    if ((flags & PyBUF_STRIDES) == PyBUF_STRIDES) view->strides = &array.item_bytes;
    return 0;
}

PyType_Slot array_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)}, {0, nullptr}};

nb::object memory_view(NumberArray array) {
    const nb::object exporter = nb::cast(std::move(array));
    return nb::steal(PyMemoryView_FromObject(exporter.ptr()));
}

nb::object prefix_hash_array(nb::handle source, std::int64_t block_size, std::uint64_t first_extra, std::uint64_t extra) {
    const std::size_t size = checked_block_size(block_size);
    Tokens tokens(source);
    auto prefixes = std::make_shared<std::vector<PrefixHash>>();
    prefixes->reserve(tokens.size() / size);
    PrefixHash prefix = root;
    std::uint64_t next_extra = first_extra;
    tokens.each_block_digest(size, [&](std::uint64_t digest) {
        prefix = chain(prefix, digest, next_extra);
        next_extra = extra;
        prefixes->push_back(prefix);
    });
    const auto count = static_cast<Py_ssize_t>(prefixes->size());
    const void* const data = prefixes->data();
    return memory_view({std::move(prefixes), data, count, sizeof(PrefixHash), "Q"});
}

// A request's prefixes: a buffer of 64-bit numbers is read in place, anything else as a sequence of integers.
class Prefixes {
  public:
    explicit Prefixes(nb::handle source) {
        if (!PyList_CheckExact(source.ptr()) && PyObject_CheckBuffer(source.ptr()) && open_buffer(source)) return;
        const nb::object sequence = nb::steal(PySequence_Fast(source.ptr(), "prefixes must be a sequence of integers"));
        if (!sequence.is_valid()) throw nb::python_error();
        numbers_.resize(static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence.ptr())));
        for (std::size_t i = 0; i < numbers_.size(); ++i) {
            PyObject* const item = PySequence_Fast_GET_ITEM(sequence.ptr(), static_cast<Py_ssize_t>(i));
            numbers_[i] = PyLong_AsUnsignedLongLong(item);
            if (numbers_[i] == ~std::uint64_t{0} && PyErr_Occurred()) throw nb::python_error();
        }
    }
    Prefixes(const Prefixes&) = delete;
    Prefixes& operator=(const Prefixes&) = delete;
    ~Prefixes() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }

    std::span<const PrefixHash> all() const noexcept {
        if (view_.obj == nullptr) return numbers_;
        return {static_cast<const PrefixHash*>(view_.buf), static_cast<std::size_t>(view_.len) / sizeof(PrefixHash)};
    }

  private:
    bool open_buffer(nb::handle source) {
        if (PyObject_GetBuffer(source.ptr(), &view_, PyBUF_ND | PyBUF_FORMAT) != 0) {
            PyErr_Clear();  // not contiguous: read it as a sequence
            view_ = {};
            return false;
        }
        const char* const format = view_.format == nullptr ? "B" : view_.format;
        const char kind = format[0] == '@' || format[0] == '=' || format[0] == '<' ? format[1] : format[0];
        const bool aligned = reinterpret_cast<std::uintptr_t>(view_.buf) % alignof(PrefixHash) == 0;
        if (view_.ndim == 1 && view_.itemsize == sizeof(PrefixHash) && (kind == 'Q' || kind == 'L') && aligned) return true;
        PyBuffer_Release(&view_);
        view_ = {};
        return false;
    }

    Py_buffer view_{};
    std::vector<PrefixHash> numbers_;
};

struct MatchResult {
    std::shared_ptr<Matches> matches = std::make_shared<Matches>();

    std::size_t size() const noexcept { return matches->workers.size(); }
    template <class Element>
    nb::object view(const std::vector<Element>& elements, Py_ssize_t item_bytes, const char* format) const {
        const auto bytes = static_cast<Py_ssize_t>(elements.size() * sizeof(Element));
        return memory_view({matches, elements.data(), bytes / item_bytes, item_bytes, format});
    }
    nb::dict to_dict() const {
        nb::dict depths;
        for (std::size_t i = 0; i < size(); ++i) depths[nb::int_(matches->workers[i])] = matches->blocks[i];
        return depths;
    }
};

MatchResult match_arrays(Index& index, nb::handle prefixes, std::uint64_t block_size) {
    MatchResult result;
    index.match(Prefixes(prefixes).all(), block_size, *result.matches);
    return result;
}

// -- Python's words for events

// An attribute of a msgspec struct.
nb::object field(nb::handle object, const char* name) { return nb::object(object.attr(name)); }

std::uint64_t whole(nb::handle number) {
    const std::uint64_t value = PyLong_AsUnsignedLongLongMask(number.ptr());
    if (value == ~std::uint64_t{0} && PyErr_Occurred()) throw nb::python_error();
    return value;
}

// A number that counts something: what is below zero is 0, what is beyond 64 bits the most there is.
std::uint64_t size_of(nb::handle number) {
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (value == -1 && overflow == 0 && PyErr_Occurred()) throw nb::python_error();
    if (overflow < 0 || (overflow == 0 && value < 0)) return 0;
    if (overflow == 0) return static_cast<std::uint64_t>(value);
    const std::uint64_t wide = PyLong_AsUnsignedLongLong(number.ptr());
    if (!PyErr_Occurred()) return wide;
    PyErr_Clear();
    return std::numeric_limits<std::uint64_t>::max();
}

std::string content_of(nb::handle bytes) {
    return {PyBytes_AS_STRING(bytes.ptr()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.ptr()))};
}

std::string tagged(nb::handle hash) {
    if (PyBytes_Check(hash.ptr())) return 'b' + content_of(hash);
    const nb::object number = nb::steal(PyNumber_Index(hash.ptr()));
    if (!number.is_valid()) throw nb::python_error();
    const std::uint64_t value = PyLong_AsUnsignedLongLong(number.ptr());
    if (!PyErr_Occurred()) {
        std::string text = "u";
        for (int shift = 56; shift >= 0; shift -= 8) text.push_back(static_cast<char>(value >> shift));
        return text;
    }
    PyErr_Clear();
    const bool negative = number < nb::int_(0);
    const auto bits = nb::cast<std::size_t>((negative ? ~number : number).attr("bit_length")());
    return 'n' + content_of(number.attr("to_bytes")(bits / 8 + 1, "big", nb::arg("signed") = true));
}

void add_hash(Hashes& hashes, nb::handle hash) {
    if (hashes.tagged.empty() && PyLong_Check(hash.ptr())) {
        const std::uint64_t number = PyLong_AsUnsignedLongLong(hash.ptr());
        if (!PyErr_Occurred()) {
            hashes.numbers.push_back(number);
            return;
        }
        PyErr_Clear();
    }
    for (const std::uint64_t number : hashes.numbers) hashes.tagged.push_back(tagged(nb::int_(number)));
    hashes.numbers.clear();
    hashes.tagged.push_back(tagged(hash));
}

Hashes hashes_from(nb::handle hashes) {
    Hashes all;
    all.numbers.reserve(nb::len(hashes));
    for (const nb::handle hash : hashes) add_hash(all, hash);
    return all;
}

Hashes parent_from(nb::handle parent) {
    Hashes one;
    if (!parent.is_none()) add_hash(one, parent);
    return one;
}

nb::object hash_from(const Hashes& hashes) {
    if (!hashes.numbers.empty()) return nb::int_(hashes.numbers[0]);
    const std::string& text = hashes.tagged[0];
    const nb::bytes content(text.data() + 1, text.size() - 1);
    if (text.front() == 'b') return content;
    const nb::handle number(reinterpret_cast<PyObject*>(&PyLong_Type));
    return number.attr("from_bytes")(content, "big", nb::arg("signed") = text.front() == 'n');
}

Medium medium_from(nb::handle medium) { return static_cast<Medium>(std::min<std::uint64_t>(whole(medium), 2)); }

std::uint64_t window_from(nb::handle window) {
    return window.is_none() ? no_window : std::max<std::uint64_t>(size_of(window), 1);
}

// Content and extra digest of each block, added up; empty if the event does not say what its blocks are.
std::vector<std::uint64_t> digests_from(nb::handle event, std::size_t count, std::uint64_t block_size) {
    const nb::object tokens = field(event, "token_ids");
    const nb::object keys = field(event, "extra_keys");
    const nb::object lora = field(event, "lora");
    const std::size_t token_count = nb::len(tokens);
    const bool fits = count != 0 && block_size != 0 && token_count % count == 0 && token_count / count == block_size;
    const std::size_t keyed = nb::len(keys);
    if (!fits || nb::cast<bool>(field(event, "by_hash")) || (keyed != 0 && keyed != count)) return {};
    std::vector<std::uint64_t> digests;
    digests.reserve(count);
    try {
        Tokens(tokens).each_block_digest(block_size, [&](std::uint64_t digest) { digests.push_back(digest); });
    } catch (nb::python_error& error) {
        if (!error.matches(PyExc_ValueError)) throw;
        return {};  // a token id out of range: no request has it either
    }
    if (lora.is_none() && keyed == 0) return digests;
    const nb::object extra_digest = nb::module_::import_("warmroute.core.hashing").attr("extra_digest");
    for (std::size_t i = 0; i < count; ++i) {
        digests[i] += whole(keyed == 0 ? extra_digest(lora) : extra_digest(lora, keys[i]));
    }
    return digests;
}

Stored stored_from(nb::handle event) {
    Stored stored;
    stored.hashes = hashes_from(field(event, "block_hashes"));
    stored.parent = parent_from(field(event, "parent"));
    stored.block_size = size_of(field(event, "block_size"));
    stored.window = window_from(field(event, "sliding_window"));
    stored.group = whole(field(event, "group"));
    stored.medium = medium_from(field(event, "medium"));
    stored.digests = digests_from(event, stored.hashes.size(), stored.block_size);
    return stored;
}

Removed removed_from(nb::handle event) {
    return {hashes_from(field(event, "block_hashes")), whole(field(event, "group")), medium_from(field(event, "medium"))};
}

// Adds to the counts of a report, by names that are made once: with one block an event this would cost more than it.
void add_to(nb::handle report, const Report& done) {
    static constexpr std::size_t counts = 12;
    static const std::array<PyObject*, counts> names = [] {
        constexpr std::array<const char*, counts> texts = {
            "stored",          "removed",    "cleared",   "unknown_removed", "orphaned", "adopted",
            "orphans_dropped", "unresolved", "conflicts", "partial",         "evicted",  "outgrown",
        };
        std::array<PyObject*, counts> made{};
        std::ranges::transform(texts, made.begin(), PyUnicode_InternFromString);
        return made;
    }();
    const std::array<std::uint64_t, counts> added = {
        done.stored,          done.removed,    done.cleared,   done.unknown_removed, done.orphaned, done.adopted,
        done.orphans_dropped, done.unresolved, done.conflicts, done.partial,         done.evicted,  done.outgrown,
    };
    for (std::size_t i = 0; i < counts; ++i) {
        if (added[i] == 0) continue;
        const nb::object sum = nb::getattr(report, nb::handle(names[i])) + nb::int_(added[i]);
        nb::setattr(report, nb::handle(names[i]), sum);
    }
}

void store(Index& index, WorkerId worker, nb::handle event, nb::handle report) {
    Report done;
    index.store(worker, stored_from(event), done);
    add_to(report, done);
}

void remove(Index& index, WorkerId worker, nb::handle event, nb::handle report) {
    Report done;
    index.remove(worker, removed_from(event), done);
    add_to(report, done);
}

void clear(Index& index, WorkerId worker, nb::handle report) {
    Report done;
    index.clear(worker, done);
    if (!report.is_none()) add_to(report, done);
}

void apply_batch(Index& index, WorkerId worker, const EventBatch& batch, nb::handle report) {
    Report done;
    for (const Event& event : batch.events) index.apply(worker, event, done);
    add_to(report, done);
}

// -- sizes and dumps

nb::tuple tuple_of(const std::vector<std::uint64_t>& numbers) {
    nb::list list;
    for (const std::uint64_t number : numbers) list.append(number);
    return nb::tuple(list);
}

nb::tuple tuple_of(const Matches& matches) {
    nb::list overlaps;
    for (std::size_t i = 0; i < matches.workers.size(); ++i) {
        const auto& media = matches.by_medium[i];
        overlaps.append(nb::make_tuple(matches.workers[i], matches.blocks[i], nb::make_tuple(media[0], media[1], media[2])));
    }
    return nb::tuple(overlaps);
}

nb::object window_of(const Groups::Fact& fact) {
    return fact.window == no_window ? nb::none() : nb::object(nb::int_(fact.window));
}

nb::list dump(const Index& index, nb::handle worker) {
    const auto blocks = index.dump(worker.is_none() ? std::nullopt : std::optional(nb::cast<WorkerId>(worker)));
    nb::list entries;
    for (const DumpedBlock& block : blocks) {
        nb::list copies;
        for (const DumpedCopies& at : block.copies) {
            copies.append(nb::make_tuple(at.group, static_cast<int>(at.medium), at.count));
        }
        nb::list groups;
        for (const Groups::Fact& fact : block.groups) {
            groups.append(nb::make_tuple(fact.group, static_cast<int>(fact.medium), fact.block_size, window_of(fact)));
        }
        entries.append(nb::make_tuple(block.worker, hash_from(block.hash), block.prefix,
                                      block.parent.size() == 0 ? nb::none() : hash_from(block.parent), block.block_size,
                                      nb::tuple(copies), nb::tuple(groups)));
    }
    return entries;
}

void restore(Index& index, nb::handle entries) {
    std::vector<DumpedBlock> blocks;
    for (const nb::handle entry : entries) {
        DumpedBlock& block = blocks.emplace_back();
        block.worker = nb::cast<WorkerId>(field(entry, "worker"));
        block.hash = parent_from(field(entry, "block_hash"));
        block.parent = parent_from(field(entry, "parent"));
        block.prefix = nb::cast<PrefixHash>(field(entry, "prefix"));
        block.block_size = size_of(field(entry, "block_size"));
        for (const nb::handle at : field(entry, "copies")) {
            if (const std::uint64_t count = size_of(at[2])) block.copies.push_back({whole(at[0]), medium_from(at[1]), count});
        }
        for (const nb::handle fact : field(entry, "groups")) {
            block.groups.push_back({whole(fact[0]), medium_from(fact[1]), size_of(fact[2]), window_from(fact[3])});
        }
    }
    index.restore(blocks);
}

nb::object prefix_sizes(const Index& index, WorkerId worker) {
    const auto sizes = index.prefix_sizes(worker);
    return sizes ? nb::object(tuple_of(*sizes)) : nb::none();
}

nb::list problems(const Index& index) {
    nb::list found;
    for (const std::string& problem : index.problems()) found.append(nb::str(problem.c_str()));
    return found;
}

std::optional<std::uint64_t> limit_from(nb::handle limit) {
    return limit.is_none() ? std::nullopt : std::optional(nb::cast<std::uint64_t>(limit));
}

void make_index(Index* memory, std::uint64_t orphan_blocks_max, nb::handle blocks_max, nb::handle worker_blocks_max) {
    new (memory) Index({orphan_blocks_max, limit_from(blocks_max), limit_from(worker_blocks_max)});
}

}  // namespace

void bind_index(nb::module_& module) {
    nb::class_<NumberArray>(module, "NumberArray", nb::type_slots(array_slots));
    nb::class_<MatchResult>(module, "Matches")
        .def("__len__", &MatchResult::size)
        .def_prop_ro("workers", [](const MatchResult& self) { return self.view(self.matches->workers, 8, "Q"); })
        .def_prop_ro("blocks", [](const MatchResult& self) { return self.view(self.matches->blocks, 4, "I"); })
        .def_prop_ro("by_medium", [](const MatchResult& self) { return self.view(self.matches->by_medium, 4, "I"); })
        .def("to_dict", &MatchResult::to_dict);
    nb::class_<Index>(module, "Index")
        .def("__init__", &make_index, nb::arg("orphan_blocks_max"), nb::arg("blocks_max").none() = nb::none(),
             nb::arg("worker_blocks_max").none() = nb::none())
        .def("store", &store, nb::arg("worker"), nb::arg("event"), nb::arg("report"))
        .def("remove", &remove, nb::arg("worker"), nb::arg("event"), nb::arg("report"))
        .def("clear", &clear, nb::arg("worker"), nb::arg("report").none() = nb::none())
        .def("drop", &Index::drop, nb::arg("worker"))
        .def("sweep", &Index::sweep, nb::arg("blocks"))
        .def("add_batch", &apply_batch, nb::arg("worker"), nb::arg("batch"), nb::arg("report"))
        .def("match_arrays", &match_arrays, nb::arg("prefixes"), nb::arg("block_size"))
        .def("match_tuples", [](Index& self, nb::handle prefixes, std::uint64_t block_size) {
            return tuple_of(*match_arrays(self, prefixes, block_size).matches);
        }, nb::arg("prefixes"), nb::arg("block_size"))
        .def("depth", [](Index& self, WorkerId worker, nb::handle prefixes, std::uint64_t block_size) {
            return self.depth(worker, Prefixes(prefixes).all(), block_size);
        }, nb::arg("worker"), nb::arg("prefixes"), nb::arg("block_size"))
        .def("block_sizes", [](const Index& self) { return tuple_of(self.block_sizes()); })
        .def("prefix_sizes", &prefix_sizes, nb::arg("worker"))
        .def("worker_size_tuple", [](const Index& self, WorkerId worker) {
            const WorkerSizes sizes = self.worker_sizes(worker);
            return nb::make_tuple(sizes.blocks, sizes.copies, sizes.orphans, sizes.unresolved, tuple_of(sizes.block_sizes));
        }, nb::arg("worker"))
        .def("size_tuple", [](const Index& self) {
            const IndexSizes sizes = self.sizes();
            return nb::make_tuple(sizes.workers, sizes.nodes, sizes.copies, sizes.orphans, sizes.unresolved, sizes.bytes);
        })
        .def("dump_tuples", &dump, nb::arg("worker").none() = nb::none())
        .def("restore", &restore, nb::arg("entries"))
        .def("problems", &problems);
    module.def("prefix_hash_array", &prefix_hash_array, nb::arg("tokens"), nb::arg("block_size"), nb::arg("first_extra"),
               nb::arg("extra"));
}

}  // namespace warmroute
