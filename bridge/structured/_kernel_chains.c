/* Tables and chains of them in C: docs/link-format-structured.md section 3.2, the twins of
 * tables.py and of the chains of kernel.py.
 */

#include "_kernel.h"

#define CHUNK_ROWS 128
#define LOOK_EVERY 48
#define DUE_MIN 16
#define DUE_MAX 256
#define TOTAL_MAX 1024
#define GAIN 2048

/* ---- tables -------------------------------------------------------------------------------- */

static PyObject *zeros(Py_ssize_t n)
{
    PyObject *out = PyList_New(n), *zero = PyLong_FromLong(0);
    for (Py_ssize_t i = 0; out != NULL && zero != NULL && i < n; i++) {
        Py_INCREF(zero);
        PyList_SET_ITEM(out, i, zero);
    }
    if (zero == NULL)
        Py_CLEAR(out);
    Py_XDECREF(zero);
    return out;
}

/* Adds the symbols of `log` to `counts`, halving all of them where `total` says so. */
static int count_symbols(PyObject *log, PyObject *counts, int64_t *total)
{
    long seen[ALPHABET_MAX] = {0};
    Py_ssize_t n = PyList_GET_SIZE(counts);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(log); i++) {
        Py_ssize_t symbol;
        if (kernel_index(log, i, &symbol))
            return -1;
        if (symbol < 0 || symbol >= n || symbol >= ALPHABET_MAX) {
            PyErr_SetString(PyExc_IndexError, "no such symbol");
            return -1;
        }
        seen[symbol]++;
    }
    *total += PyList_GET_SIZE(log);
    int halves = *total > TOTAL_MAX;
    if (halves)
        *total = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!seen[i] && !halves)
            continue;
        Py_ssize_t count;
        if (kernel_index(counts, i, &count))
            return -1;
        count = (count + seen[i]) >> halves;
        PyObject *number = PyLong_FromSsize_t(count);
        if (number == NULL)
            return -1;
        kernel_put_item(counts, i, number);
        Py_DECREF(number);
        if (halves)
            *total += count;
    }
    return 0;
}

/* Makes the frequencies anew from all symbols seen; the log is empty after it. */
int kernel_rebuild_table(PyObject *table)
{
    int64_t total;
    PyObject *log = kernel_get(table, NAME_log, &PyList_Type);
    PyObject *prior = log ? kernel_get(table, NAME_prior, NULL) : NULL;
    PyObject *freqs = prior ? kernel_get(prior, NAME_freqs, &PyList_Type) : NULL;
    PyObject *counts = freqs ? kernel_get(table, NAME_counts, NULL) : NULL;
    if (counts == NULL || kernel_need_number(table, NAME_total, &total) < 0)
        return -1;
    if (counts == Py_None) {
        PyObject *fresh = zeros(PyList_GET_SIZE(freqs));
        int failed = kernel_set(table, NAME_counts, fresh) < 0;
        Py_XDECREF(fresh);
        counts = failed ? NULL : kernel_get(table, NAME_counts, NULL);
        if (counts == NULL)
            return -1;
    }
    if (!PyList_Check(counts) || PyList_GET_SIZE(counts) > ALPHABET_MAX) {
        PyErr_SetString(PyExc_ValueError, "a table of another size");
        return -1;
    }
    if (count_symbols(log, counts, &total) < 0 ||
        PyList_SetSlice(log, 0, PyList_GET_SIZE(log), NULL) < 0)
        return -1;
    int64_t due = total >> 1;
    due = due < DUE_MIN ? DUE_MIN : due > DUE_MAX ? DUE_MAX : due;
    PyObject *made = kernel_frequencies(freqs, counts, GAIN);
    int failed = made == NULL || kernel_set(table, NAME_spans, made) < 0 ||
                 kernel_set_number(table, NAME_total, total) < 0 ||
                 kernel_set_number(table, NAME_due, due) < 0;
    Py_XDECREF(made);
    return failed ? -1 : 0;
}

PyObject *kernel_rebuild(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *table;
    if (!PyArg_ParseTuple(args, "O", &table) || kernel_rebuild_table(table) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* ---- chains -------------------------------------------------------------------------------- */

typedef struct {
    PyObject *object, *tables, *logs, *spans;
    int64_t noted;
} Chain;

static int open_chain(PyObject *object, Chain *of)
{
    of->object = object;
    of->tables = kernel_get(object, NAME_tables, &PyList_Type);
    of->logs = of->tables ? kernel_get(object, NAME_logs, &PyList_Type) : NULL;
    of->spans = of->logs ? kernel_get(object, NAME_spans, &PyList_Type) : NULL;
    return of->spans ? kernel_need_number(object, NAME_noted, &of->noted) : -1;
}

static int take_over(const Chain *of, Py_ssize_t which, PyObject *table)
{
    PyObject *spans = kernel_get(table, NAME_spans, NULL);
    if (spans == NULL || kernel_item(of->spans, which) == NULL)
        return -1;
    kernel_put_item(of->spans, which, spans);
    return 0;
}

/* Counts symbols of a chunk that is done; now and then rebuilds the tables that are due. */
static int note(Chain *of, Py_ssize_t count)
{
    of->noted += count;
    if (of->noted < LOOK_EVERY)
        return kernel_set_number(of->object, NAME_noted, of->noted);
    of->noted = 0;
    if (kernel_set_number(of->object, NAME_noted, 0) < 0)
        return -1;
    for (Py_ssize_t which = 0; which < PyList_GET_SIZE(of->logs); which++) {
        PyObject *log = PyList_GET_ITEM(of->logs, which);
        if (!PyList_Check(log) || PyList_GET_SIZE(log) < DUE_MIN)
            continue;
        int64_t due;
        PyObject *table = kernel_item(of->tables, which);
        if (table == NULL || kernel_need_number(table, NAME_due, &due) < 0)
            return -1;
        if (PyList_GET_SIZE(log) >= due &&
            (kernel_rebuild_table(table) < 0 || take_over(of, which, table) < 0))
            return -1;
    }
    return 0;
}

/* Codes a symbol a cell, each by the table its cell's last one chose; -1 with an error set. */
int kernel_code_chain(PyObject *put, PyObject *object, PyObject *contexts, const Py_ssize_t *cells,
                      Py_ssize_t n, const int *symbols, PyObject *after)
{
    Chain chain;
    if (open_chain(object, &chain) < 0)
        return -1;
    for (Py_ssize_t from = 0; from < n; from += CHUNK_ROWS) {
        Py_ssize_t to = from + CHUNK_ROWS < n ? from + CHUNK_ROWS : n;
        if (kernel_write_symbols(put, chain.spans, chain.logs, contexts, cells, symbols, after,
                                 from, to) < 0 ||
            note(&chain, to - from) < 0)
            return -1;
    }
    return 0;
}

PyObject *kernel_write_chain(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *put, *chain, *contexts, *cells, *symbols, *after;
    if (!PyArg_ParseTuple(args, "O!OO!O!O!O!", &PyList_Type, &put, &chain, &PyList_Type, &contexts,
                          &PyList_Type, &cells, &PyList_Type, &symbols, &PyList_Type, &after))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(cells), *places = kernel_places_of(cells);
    int *numbers = places ? kernel_numbers_of(symbols) : NULL, failed = numbers == NULL;
    if (!failed && PyList_GET_SIZE(symbols) != n) {
        PyErr_SetString(PyExc_ValueError, "a symbol for each cell is needed");
        failed = 1;
    }
    failed = failed || kernel_code_chain(put, chain, contexts, places, n, numbers, after) < 0;
    PyMem_Free(places);
    PyMem_Free(numbers);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

/* Reads a symbol a cell, each by the table its cell's last one chose; -1 with an error set. */
int kernel_take_chain(PyObject *reader, PyObject *object, PyObject *contexts,
                      const Py_ssize_t *cells, Py_ssize_t n, int *symbols, PyObject *after)
{
    Chain chain;
    int64_t at, state_read;
    PyObject *words = kernel_get(reader, NAME_words, &PyList_Type);
    if (words == NULL || kernel_need_number(reader, NAME_at, &at) < 0 ||
        kernel_need_number(reader, NAME_state, &state_read) < 0 || open_chain(object, &chain) < 0)
        return -1;
    uint64_t state = (uint64_t)state_read;
    for (Py_ssize_t from = 0; from < n; from += CHUNK_ROWS) {
        Py_ssize_t to = from + CHUNK_ROWS < n ? from + CHUNK_ROWS : n;
        if (kernel_read_symbols(symbols, words, &at, &state, chain.spans, chain.logs, contexts,
                                cells, after, from, to) < 0 ||
            note(&chain, to - from) < 0)
            return -1;
    }
    return kernel_set_number(reader, NAME_at, at) < 0 ||
                   kernel_set_number(reader, NAME_state, (int64_t)state) < 0
               ? -1
               : 0;
}

PyObject *kernel_read_chain(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *reader, *chain, *contexts, *cells, *after, *out = NULL;
    if (!PyArg_ParseTuple(args, "OOO!O!O!", &reader, &chain, &PyList_Type, &contexts, &PyList_Type,
                          &cells, &PyList_Type, &after))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(cells), *places = kernel_places_of(cells);
    int *symbols = PyMem_New(int, n + 1);
    if (symbols == NULL)
        PyErr_NoMemory();
    else if (places != NULL &&
             !kernel_take_chain(reader, chain, contexts, places, n, symbols, after))
        out = PyList_New(n);
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        PyObject *symbol = PyLong_FromLong(symbols[i]);
        if (symbol == NULL)
            Py_CLEAR(out);
        else
            PyList_SET_ITEM(out, i, symbol);
    }
    PyMem_Free(places);
    PyMem_Free(symbols);
    return out;
}
