// What a decision computes of all candidates, over the rows of core/rows.py.
// The references, and the words, are the functions `*_in_python` of core/rows.py, core/lanes.py, core/sharing.py,
// core/rates.py and core/policies/least_work.py, and what core/speculation.py does beside its call; the order of
// operations is the same, so are the results.

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

namespace nb = nanobind;

namespace warmroute {

namespace {

constexpr double busy_max = 0.95;
constexpr Py_ssize_t n_weights = 16;

// Rows of `width` numbers, as an array of counts or of doubles holds them.
template <class Number, Py_ssize_t width = 1>
class Rows {
  public:
    explicit Rows(nb::handle array) {
        const bool constant = std::is_const_v<Number>;
        if (PyObject_GetBuffer(array.ptr(), &view_, PyBUF_ND | PyBUF_FORMAT | (constant ? 0 : PyBUF_WRITABLE)) != 0)
            throw nb::python_error();
        const char wanted = std::is_floating_point_v<Number> ? 'd' : std::is_signed_v<Number> ? 'q' : 'Q';
        const char* const format = view_.format == nullptr ? "B" : view_.format;
        if (format[0] != wanted || format[1] != 0 || view_.ndim != 1 || view_.shape[0] % width != 0) {
            PyBuffer_Release(&view_);
            throw nb::type_error("rows must be whole, and an array of counts or of doubles");
        }
    }
    Rows(const Rows&) = delete;
    Rows& operator=(const Rows&) = delete;
    ~Rows() { PyBuffer_Release(&view_); }
    Py_ssize_t size() const noexcept { return view_.shape[0] / width; }
    Number* operator[](Py_ssize_t row) const noexcept { return static_cast<Number*>(view_.buf) + row * width; }

  private:
    Py_buffer view_{};
};

using Held = Rows<const std::int64_t, 4>;
using Counts = Rows<const std::int64_t, 4>;
using Times = Rows<const double, 2>;
using Rates = Rows<const double, 5>;
using Column = Rows<const double>;
using Prefixes = Rows<const std::uint64_t>;

void must(bool fits) {
    if (!fits) throw nb::value_error("rows of unequal numbers");
}

// core/steps.py
double wait_s(double due, double step, double reach) noexcept {
    if (due < reach) due += step;
    return due > 0.0 ? due : 0.0;
}

nb::object survey(double now, nb::handle held_rows, nb::handle count_rows, nb::handle time_rows, nb::handle rate_rows) {
    const Held held(held_rows);
    const Counts counts(count_rows);
    const Times times(time_rows);
    const Rates rates(rate_rows);
    const Py_ssize_t n = held.size();
    must(n > 0 && counts.size() == n && times.size() == n && rates.size() == n);
    Py_ssize_t holder = 0;
    std::int64_t sum = 0;
    double busy = 0.0, free_at = times[0][0], least = 0.0;
    for (Py_ssize_t i = 0; i < n; ++i) {
        if (held[i][0] > held[holder][0]) holder = i;
        sum += held[i][0];
        busy += times[i][1];
        free_at = std::min(free_at, times[i][0]);
        const double queued = counts[i][1] != 0 && times[i][0] > now ? times[i][0] - now : 0.0;
        const double load = queued + rates[i][0] + static_cast<double>(counts[i][3]) * rates[i][3];
        if (i == 0 || load < least) least = load;
    }
    return nb::make_tuple(held[holder][0], holder, sum, busy, free_at, least);
}

// Puts the costs into their column; of how many workers the cache seems to be too small.
Py_ssize_t weigh(nb::tuple weights, nb::tuple rows, nb::handle belief_column, nb::handle room_column, nb::handle cost_column) {
    if (nb::len(weights) != n_weights || nb::len(rows) != 4) throw nb::value_error("sixteen weights, four kinds of rows");
    double w[n_weights];
    for (Py_ssize_t i = 0; i < n_weights; ++i) w[i] = nb::cast<double>(weights[i]);
    const auto [now, prompt, steps, work, others, evictions, mean_busy, cpu_loss, storage_loss, roomy, memory, credit, best,
                session_at, session_tokens, reach] = w;
    const Held held(rows[0]);
    const Counts counts(rows[1]);
    const Times times(rows[2]);
    const Rates rates(rows[3]);
    const Column belief(belief_column), room(room_column);
    const Rows<double> costs(cost_column);
    const Py_ssize_t n = held.size(), at = static_cast<Py_ssize_t>(session_at);
    Py_ssize_t full = 0;
    must(counts.size() == n && times.size() == n && rates.size() == n);
    must(belief.size() == n && room.size() == n && costs.size() == n);
    for (Py_ssize_t i = 0; i < n; ++i) {
        const double fixed = rates[i][0], per_token = rates[i][1], per_pair = rates[i][2], per_context = rates[i][3];
        const auto overlap = static_cast<double>(held[i][0]), kv = static_cast<double>(counts[i][3]), b = times[i][1];
        const double lost = static_cast<double>(held[i][1]) * cpu_loss, later = static_cast<double>(held[i][2]) * storage_loss;
        const double uncached = prompt - (i == at ? session_tokens : (overlap - lost - later) * *belief[i]);
        const double step = counts[i][0] != 0 ? rates[i][4] : 0.0;
        const double prefill = uncached * (per_token + (prompt - uncached / 2) * per_pair);
        const double alike = std::max(0.0, step - fixed - kv * per_context - prefill);
        const double wait = wait_s(times[i][0] - now, step, reach) + fixed + kv * per_context * steps + alike;
        const double paid = (best - overlap) * per_token, s = prefill - (paid < credit ? paid : credit);
        const double delayed = others * (wait + s / 2) / (1.0 - (b < busy_max ? b : busy_max));
        const double cost = wait + s + s * (work + evictions * b / (b + mean_busy) + delayed);
        const double over = kv + prompt - roomy * *room[i];
        full += over > 0.0;
        *costs[i] = over > 0.0 ? cost + memory * per_token * over : cost;
    }
    return full;
}

nb::object lowest(nb::handle cost_column, nb::handle count_rows, Py_ssize_t turn) {
    const Column costs(cost_column);
    const Counts counts(count_rows);
    must(costs.size() > 0 && counts.size() == costs.size());
    std::vector<Py_ssize_t> tied{0};  // for lowest costs, of those the fewest requests
    bool several = false;
    for (Py_ssize_t i = 1; i < costs.size(); ++i) {
        const Py_ssize_t best = tied.front();
        if (!(*costs[i] <= *costs[best])) continue;
        several = *costs[i] == *costs[best];
        if (!several || counts[i][0] < counts[best][0]) tied.clear();
        if (tied.empty() || counts[i][0] == counts[best][0]) tied.push_back(i);
    }
    if (several) ++turn;
    return nb::make_tuple(tied[static_cast<std::size_t>(turn) % tied.size()], turn);
}

// The places of the lowest, in ascending order; of equal ones the first.
nb::object cheapest(nb::handle cost_column, Py_ssize_t count) {
    const Column costs(cost_column);
    std::vector<Py_ssize_t> places(static_cast<std::size_t>(costs.size()));
    std::iota(places.begin(), places.end(), Py_ssize_t{0});
    const auto end = places.begin() + std::clamp(count, Py_ssize_t{0}, costs.size());
    const auto lower = [&](Py_ssize_t a, Py_ssize_t b) { return *costs[a] != *costs[b] ? *costs[a] < *costs[b] : a < b; };
    if (end != places.end()) std::nth_element(places.begin(), end, places.end(), lower);
    std::sort(places.begin(), end);
    nb::list found;
    for (auto place = places.begin(); place != end; ++place) found.append(*place);
    return found;
}

// Numbers of a buffer of four or eight bytes each, or of a list.
class Numbers {
  public:
    explicit Numbers(nb::handle source) : source_(source.ptr()) {
        if (PyList_CheckExact(source_)) {
            size_ = PyList_GET_SIZE(source_);
            return;
        }
        if (PyObject_GetBuffer(source_, &view_, PyBUF_ND | PyBUF_FORMAT) != 0) throw nb::python_error();
        if (view_.ndim != 1 || (view_.itemsize != 4 && view_.itemsize != 8)) {
            PyBuffer_Release(&view_);
            throw nb::type_error("numbers must be a list, or a buffer of four or eight bytes each");
        }
        size_ = view_.shape[0];
    }
    Numbers(const Numbers&) = delete;
    Numbers& operator=(const Numbers&) = delete;
    ~Numbers() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }
    Py_ssize_t size() const noexcept { return size_; }
    std::int64_t operator[](Py_ssize_t i) const {
        if (view_.obj == nullptr) return nb::cast<std::int64_t>(nb::handle(PyList_GET_ITEM(source_, i)));
        if (view_.itemsize == 4) return static_cast<const std::uint32_t*>(view_.buf)[i];
        return static_cast<const std::int64_t*>(view_.buf)[i];
    }

  private:
    PyObject* source_;
    Py_buffer view_{};
    Py_ssize_t size_ = 0;
};

// Where a mapping of workers to positions has this one; -1: nowhere.
Py_ssize_t position(nb::dict positions, nb::handle worker, Py_ssize_t rows) {
    PyObject* const place = PyDict_GetItemWithError(positions.ptr(), worker.ptr());
    if (place == nullptr) {
        if (PyErr_Occurred()) throw nb::python_error();
        return -1;
    }
    const Py_ssize_t i = PyLong_AsSsize_t(place);
    if (i == -1 && PyErr_Occurred()) throw nb::python_error();
    must(0 <= i && i < rows);
    return i;
}

void confirm(nb::handle held_rows, nb::dict positions, nb::tuple matched, std::int64_t block_size) {
    const Rows<std::int64_t, 4> held(held_rows);
    if (nb::len(matched) != 3) throw nb::value_error("workers, blocks, blocks by medium");
    const Numbers workers(matched[0]), blocks(matched[1]), by_medium(matched[2]);
    must(blocks.size() == workers.size() && by_medium.size() == 3 * workers.size());
    for (Py_ssize_t n = 0; n < workers.size(); ++n) {
        const Py_ssize_t i = position(positions, nb::int_(workers[n]), held.size());
        if (i < 0) continue;
        held[i][0] = blocks[n] * block_size;
        held[i][1] = by_medium[3 * n + 1] * block_size;
        held[i][2] = by_medium[3 * n + 2] * block_size;
    }
}

// How many blocks from the first on are the same: hashes are chained, so one that is equal means that all before are.
Py_ssize_t common_blocks(const Prefixes& one, const Prefixes& other) noexcept {
    Py_ssize_t low = 0, high = std::min(one.size(), other.size());
    while (low < high) {
        const Py_ssize_t middle = low + (high - low) / 2;
        if (*one[middle] == *other[middle]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

nb::object field(nb::handle object, PyObject* name) {
    const nb::object found = nb::steal(PyObject_GetAttr(object.ptr(), name));
    if (!found.is_valid()) throw nb::python_error();
    return found;
}

void extend(nb::handle held_rows, nb::handle prefix_array, nb::dict positions, nb::list met, std::int64_t size, double now) {
    static PyObject* const start_name = PyUnicode_InternFromString("start");
    static PyObject* const chain_name = PyUnicode_InternFromString("chain");
    static PyObject* const deadline_name = PyUnicode_InternFromString("deadline");
    static PyObject* const worker_name = PyUnicode_InternFromString("worker");
    const Rows<std::int64_t, 4> held(held_rows);
    const Prefixes prefixes(prefix_array);
    if (size < 1) throw nb::value_error("a block has at least one token");
    for (const nb::handle claims : met) {
        if (!PyDict_CheckExact(claims.ptr())) throw nb::type_error("claims that are alike are the keys of a dict");
        std::int64_t start = 0, reached = -1;
        Py_ssize_t at = 0;
        PyObject* claim = nullptr;
        while (PyDict_Next(claims.ptr(), &at, &claim, nullptr)) {
            const nb::handle each(claim);
            if (reached < 0) {
                start = nb::cast<std::int64_t>(field(each, start_name));
                reached = common_blocks(Prefixes(field(each, chain_name)), prefixes);
            }
            if (nb::cast<double>(field(each, deadline_name)) <= now) continue;
            const Py_ssize_t i = position(positions, field(each, worker_name), held.size());
            if (i < 0) continue;
            const std::int64_t known = held[i][0] / size;
            if (start > known || known >= reached) continue;
            held[i][0] = reached * size;
            held[i][3] += (reached - known) * size;
        }
    }
}

// Counts and doubles alike are eight bytes.
void gather(nb::handle numbers, Py_ssize_t width, nb::handle places, nb::handle taken) {
    Py_buffer from{}, to{};
    if (PyObject_GetBuffer(numbers.ptr(), &from, PyBUF_ND) != 0) throw nb::python_error();
    if (PyObject_GetBuffer(taken.ptr(), &to, PyBUF_ND | PyBUF_WRITABLE) != 0) {
        PyBuffer_Release(&from);
        throw nb::python_error();
    }
    const auto release = [&] {
        PyBuffer_Release(&from);
        PyBuffer_Release(&to);
    };
    try {
        const Numbers asked(places);
        const Py_ssize_t bytes = width * 8, rows = bytes > 0 ? from.len / bytes : 0;
        must(from.itemsize == 8 && to.itemsize == 8 && bytes > 0 && asked.size() * bytes == to.len);
        for (Py_ssize_t row = 0; row < asked.size(); ++row) {
            must(0 <= asked[row] && asked[row] < rows);
            std::memcpy(static_cast<char*>(to.buf) + row * bytes, static_cast<char*>(from.buf) + asked[row] * bytes,
                        static_cast<std::size_t>(bytes));
        }
    } catch (...) {
        release();
        throw;
    }
    release();
}

void add_booked(nb::handle count_rows, nb::handle time_rows, nb::handle more_counts, nb::handle more_times, double now) {
    const Rows<std::int64_t, 4> counts(count_rows);
    const Rows<double, 2> times(time_rows);
    const Counts own_counts(more_counts);
    const Times own_times(more_times);
    const Py_ssize_t n = counts.size();
    must(times.size() == n && own_counts.size() >= n && own_times.size() >= n);
    for (Py_ssize_t i = 0; i < n; ++i) {
        const double a = own_times[i][0], b = times[i][0];
        const bool both = own_counts[i][1] != 0 && counts[i][1] != 0;
        times[i][0] = both ? (b > now ? (now > a ? now : a) + b - now : a) : std::max(a, b);
        times[i][1] = own_times[i][1] + times[i][1];
        for (int column = 0; column < 4; ++column) counts[i][column] += own_counts[i][column];
    }
}

// Rows of the page: key, four counts, two times, two sums that no decision reads.
void add_part(nb::handle count_rows, nb::handle time_rows, nb::handle page_rows, nb::handle order_column, double now) {
    const Rows<std::int64_t, 4> counts(count_rows);
    const Rows<double, 2> times(time_rows);
    const Rows<const double, 9> page(page_rows);
    const Rows<const std::int64_t> order(order_column);
    must(counts.size() == order.size() && times.size() == order.size());
    for (Py_ssize_t place = 0; place < order.size(); ++place) {
        const std::int64_t row = *order[place];
        if (row < 0) continue;
        must(row < page.size());
        const double* const there = page[row];
        for (int column = 0; column < 4; ++column) counts[place][column] += static_cast<std::int64_t>(there[1 + column]);
        double* const time = times[place];
        if (there[5] > now) time[0] = (now > time[0] ? now : time[0]) + there[5] - now;
        time[1] += there[6];
    }
}

// -- core/rates.py: see fit_in_python

constexpr double fleet_memory = 0.998, lean_observations = 5.0, configured_observations = 0.25, least_share = 0.01;
constexpr Py_ssize_t plane_numbers = 26;

struct Plane {
    double products[4][4], means[4], coefficients[4], n, seconds;
};
static_assert(sizeof(Plane) == plane_numbers * sizeof(double));

struct Features {
    double of[4];
    explicit Features(nb::tuple numbers) {
        if (nb::len(numbers) != 4) throw nb::value_error("four features");
        for (Py_ssize_t i = 0; i < 4; ++i) of[i] = nb::cast<double>(numbers[i]);
    }
};

double product(const double* a, const double* b) noexcept { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3]; }

nb::object fit(nb::handle state, nb::tuple began_numbers, nb::tuple feature_numbers, double seconds) {
    const Rows<double, plane_numbers> rows(state);
    must(rows.size() == 1);
    Plane plane;
    std::memcpy(&plane, rows[0], sizeof plane);
    const Features began(began_numbers), features(feature_numbers);
    plane.n = plane.n * fleet_memory + 1.0;
    plane.seconds = plane.seconds * fleet_memory + seconds;
    for (int i = 0; i < 4; ++i) {
        plane.means[i] = plane.means[i] * fleet_memory + features.of[i] * seconds;
        for (int j = 0; j < 4; ++j) plane.products[i][j] = plane.products[i][j] * fleet_memory + features.of[i] * features.of[j];
    }
    const double n = plane.n, began_s = product(began.of, plane.products[0]);
    const double height = (plane.seconds + configured_observations * began_s / n) / (began_s * (1.0 + configured_observations / n));
    const double lean = lean_observations / n;
    double* const c = plane.coefficients;
    for (int round = 0; round < 2; ++round) {
        for (int i = 0; i < 4; ++i) {
            const double* const row = plane.products[i];
            const double rest = plane.means[i] - product(row, c) + row[i] * c[i];
            const double least = began.of[i] * height, weight = row[i] * (1.0 + lean);
            const double found = weight != 0.0 ? (rest + lean * row[i] * least) / weight : least;
            const double floor = least * least_share;
            c[i] = weight != 0.0 ? (found > floor ? found : floor) : least;
        }
    }
    std::memcpy(rows[0], &plane, sizeof plane);
    return nb::make_tuple(c[0], c[1], c[2], c[3]);
}

}  // namespace

void bind_weighing(nb::module_& module) {
    module.def("survey", &survey, nb::arg("now"), nb::arg("held"), nb::arg("counts"), nb::arg("times"), nb::arg("rates"));
    module.def("weigh", &weigh, nb::arg("weights"), nb::arg("rows"), nb::arg("belief"), nb::arg("kv_tokens_max"), nb::arg("costs"));
    module.def("lowest", &lowest, nb::arg("costs"), nb::arg("counts"), nb::arg("turn"));
    module.def("confirm", &confirm, nb::arg("held"), nb::arg("positions"), nb::arg("matched"), nb::arg("block_size"));
    module.def("extend", &extend, nb::arg("held"), nb::arg("prefixes"), nb::arg("positions"), nb::arg("met"), nb::arg("size"),
               nb::arg("now"));
    module.def("cheapest", &cheapest, nb::arg("costs"), nb::arg("count"));
    module.def("gather", &gather, nb::arg("numbers"), nb::arg("width"), nb::arg("places"), nb::arg("taken"));
    module.def("add_part", &add_part, nb::arg("counts"), nb::arg("times"), nb::arg("rows"), nb::arg("order"), nb::arg("now"));
    module.def("fit", &fit, nb::arg("state"), nb::arg("began"), nb::arg("features"), nb::arg("seconds"));
    module.def("add_booked", &add_booked, nb::arg("counts"), nb::arg("times"), nb::arg("more_counts"), nb::arg("more_times"),
               nb::arg("now"));
}

}  // namespace warmroute
