// What the default policy thinks of each candidate: the sum of its terms, column by column.
// The reference, and the words, are core/policies/least_work.py; the order of operations is the same, so are the results.

#include <nanobind/nanobind.h>

#include <cstddef>

namespace nb = nanobind;

namespace warmroute {

namespace {

constexpr double busy_max = 0.95;
constexpr std::size_t n_weights = 7, n_columns = 7;

// The numbers of a Python list: most are floats already, counts are ints.
class Column {
  public:
    explicit Column(nb::handle list) : list_(list.ptr()) {
        if (!PyList_CheckExact(list_)) throw nb::type_error("a column must be a list");
    }
    Py_ssize_t size() const { return PyList_GET_SIZE(list_); }
    double operator[](Py_ssize_t i) const {
        PyObject* number = PyList_GET_ITEM(list_, i);
        if (PyFloat_CheckExact(number)) return PyFloat_AS_DOUBLE(number);
        if (!PyLong_CheckExact(number)) throw nb::type_error("a column must hold floats and ints");  // runs no Python
        const double value = PyLong_AsDouble(number);
        if (value == -1.0 && PyErr_Occurred() != nullptr) throw nb::python_error();
        return value;
    }

  private:
    PyObject* list_;
};

nb::object weigh(nb::tuple weights, nb::handle worth, nb::handle paid, nb::tuple columns) {
    if (weights.size() != n_weights || columns.size() != n_columns) throw nb::value_error("seven weights, seven columns");
    double w[n_weights];
    for (std::size_t i = 0; i < n_weights; ++i) w[i] = nb::cast<double>(weights[i]);
    const auto [now, prompt, steps, work, others, evictions, mean_busy] = w;
    const Column held(worth), back(paid), free_at(columns[0]), fixed(columns[1]), per_token(columns[2]),
        per_pair(columns[3]), kv(columns[4]), per_context(columns[5]), busy(columns[6]);
    const Py_ssize_t n = held.size();
    for (const Column* column : {&free_at, &fixed, &per_token, &per_pair, &kv, &per_context, &busy})
        if (column->size() != n) throw nb::value_error("columns of unequal lengths");
    if (back.size() != 0 && back.size() != n) throw nb::value_error("columns of unequal lengths");
    nb::object costs = nb::steal(PyList_New(n));
    if (!costs.is_valid()) throw nb::python_error();
    for (Py_ssize_t i = 0; i < n; ++i) {
        const double uncached = prompt - held[i], b = busy[i], free = free_at[i];
        const double wait = (free > now ? free - now : 0.0) + fixed[i] + kv[i] * per_context[i] * steps;
        const double s = uncached * (per_token[i] + (prompt - uncached / 2) * per_pair[i]) - (back.size() ? back[i] : 0.0);
        const double delayed = others * (wait + s / 2) / (1.0 - (b < busy_max ? b : busy_max));
        PyObject* cost = PyFloat_FromDouble(wait + s + s * (work + evictions * b / (b + mean_busy) + delayed));
        if (cost == nullptr) throw nb::python_error();
        PyList_SET_ITEM(costs.ptr(), i, cost);
    }
    return costs;
}

}  // namespace

void bind_weighing(nb::module_& module) {
    module.def("weigh", &weigh, nb::arg("weights"), nb::arg("worth"), nb::arg("paid"), nb::arg("columns"));
}

}  // namespace warmroute
