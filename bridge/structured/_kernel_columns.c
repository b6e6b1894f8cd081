/* Columns of symbols and of numbers in C: docs/link-format-structured.md sections 3.2 and 5.
 *
 * Each function goes through the steps of its Python twin (kernel.py, tables.py, columns.py) on the
 * same lists, without the interpreter between them.
 */

#include "_kernel.h"

#define CHUNK_ROWS 128
#define LOOK_EVERY 48
#define DUE_MIN 16
#define DUE_MAX 256
#define TOTAL_MAX 1024
#define GAIN 2048
#define ALPHABET_MAX 256

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
        if (PyList_GET_SIZE(log) >= due && (kernel_rebuild_table(table) < 0 || take_over(of, which, table) < 0))
            return -1;
    }
    return 0;
}

static int write_chain(PyObject *put, PyObject *object, PyObject *contexts, PyObject *cells,
                       PyObject *symbols, PyObject *after)
{
    Chain chain;
    if (open_chain(object, &chain) < 0)
        return -1;
    Py_ssize_t n = PyList_GET_SIZE(cells);
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
                          &PyList_Type, &cells, &PyList_Type, &symbols, &PyList_Type, &after) ||
        write_chain(put, chain, contexts, cells, symbols, after) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *read_chain(PyObject *reader, PyObject *object, PyObject *contexts,
                            PyObject *cells, PyObject *after)
{
    Chain chain;
    int64_t at, state_read;
    PyObject *words = kernel_get(reader, NAME_words, &PyList_Type);
    if (words == NULL || kernel_need_number(reader, NAME_at, &at) < 0 ||
        kernel_need_number(reader, NAME_state, &state_read) < 0 || open_chain(object, &chain) < 0)
        return NULL;
    uint64_t state = (uint64_t)state_read;
    Py_ssize_t n = PyList_GET_SIZE(cells);
    PyObject *out = PyList_New(0);
    for (Py_ssize_t from = 0; out != NULL && from < n; from += CHUNK_ROWS) {
        Py_ssize_t to = from + CHUNK_ROWS < n ? from + CHUNK_ROWS : n;
        if (kernel_read_symbols(out, words, &at, &state, chain.spans, chain.logs, contexts,
                                cells, after, from, to) < 0 ||
            note(&chain, to - from) < 0)
            Py_CLEAR(out);
    }
    if (out != NULL && (kernel_set_number(reader, NAME_at, at) < 0 ||
                        kernel_set_number(reader, NAME_state, (int64_t)state) < 0))
        Py_CLEAR(out);
    return out;
}

PyObject *kernel_read_chain(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *reader, *chain, *contexts, *cells, *after;
    if (!PyArg_ParseTuple(args, "OOO!O!O!", &reader, &chain, &PyList_Type, &contexts, &PyList_Type,
                          &cells, &PyList_Type, &after))
        return NULL;
    return read_chain(reader, chain, contexts, cells, after);
}

/* ---- columns of numbers -------------------------------------------------------------------- */

typedef struct {
    PyObject *state, *contexts, *key; /* of the column */
    PyObject *cells, *after, *chain;
    PyObject *lists[6]; /* for the predictor; the last one is set when it is known */
    int64_t kind, num, den;
} Column;

static int open_column(PyObject *column, PyObject *chain, PyObject *rows, PyObject *after,
                       Column *of)
{
    PyObject *cells, *times, *refs, *param, *printer;
    if (!PyTuple_Check(rows) ||
        !PyArg_ParseTuple(rows, "O!OO", &PyList_Type, &cells, &times, &refs))
        return -1;
    of->state = kernel_get(column, NAME_cells, NULL);
    of->contexts = of->state ? kernel_get(column, NAME_contexts, &PyList_Type) : NULL;
    printer = of->contexts ? kernel_get(column, NAME_printer, NULL) : NULL;
    of->key = printer ? kernel_get(printer, NAME_key, &PyTuple_Type) : NULL;
    param = of->key ? kernel_get(column, NAME_param, &PyTuple_Type) : NULL;
    of->lists[0] = param ? kernel_get(of->state, NAME_last, &PyList_Type) : NULL;
    of->lists[1] = of->lists[0] ? kernel_get(of->state, NAME_aux, &PyList_Type) : NULL;
    long long num, den;
    if (of->lists[1] == NULL || kernel_need_number(column, NAME_predictor, &of->kind) < 0 ||
        !PyArg_ParseTuple(param, "LL", &num, &den))
        return -1;
    of->num = num;
    of->den = den;
    of->lists[2] = of->cells = cells;
    of->lists[3] = times;
    of->lists[4] = refs;
    of->chain = chain;
    of->after = after;
    return 0;
}

/* Returns what kernel_predict_lists does for `xs`, the column's state brought up to date. */
static PyObject *predict(Column *of, PyObject *xs, int forward)
{
    int64_t latest[2];
    PyObject *recent = kernel_get(of->state, NAME_recent, NULL);
    PyObject *recent_aux = recent ? kernel_get(of->state, NAME_recent_aux, NULL) : NULL;
    if (recent_aux == NULL)
        return NULL;
    of->lists[5] = xs;
    PyObject *out = kernel_predict_lists(of->lists, (int)of->kind, of->num, of->den, recent,
                                         recent_aux, forward, latest);
    if (out != NULL && out != Py_None &&
        (kernel_set_number(of->state, NAME_recent, latest[0]) < 0 ||
         kernel_set_number(of->state, NAME_recent_aux, latest[1]) < 0))
        Py_CLEAR(out);
    return out;
}

/* Returns the integers of a column's tokens, coded; None where one does not fit, all as it was. */
PyObject *kernel_write_numbers(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *put, *plain, *column, *chain, *rows, *after, *tokens;
    Column of;
    if (!PyArg_ParseTuple(args, "O!O!OOOO!O", &PyList_Type, &put, &PyList_Type, &plain, &column,
                          &chain, &rows, &PyList_Type, &after, &tokens) ||
        open_column(column, chain, rows, after, &of) < 0)
        return NULL;
    PyObject *numbers = kernel_parse_by_key(tokens, of.key);
    PyObject *steps = numbers ? predict(&of, numbers, 1) : NULL;
    if (steps == NULL || steps == Py_None) {
        Py_XDECREF(numbers);
        return steps;
    }
    PyObject *symbols = kernel_symbols(steps, plain);
    if (symbols == NULL || write_chain(put, chain, of.contexts, of.cells, symbols, after) < 0)
        Py_CLEAR(numbers);
    Py_DECREF(steps);
    Py_XDECREF(symbols);
    return numbers;
}

static int holds_none(PyObject *list)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++)
        if (PyList_GET_ITEM(list, i) == Py_None)
            return 1;
    return 0;
}

/* Returns (integers, tokens); (integers, None) where some are escaped; (None, residuals) where an
 * integer does not fit, the residuals having been read and nothing else been done. */
PyObject *kernel_read_numbers(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *reader, *column, *chain, *rows, *after;
    Column of;
    int64_t plain_at;
    if (!PyArg_ParseTuple(args, "OOOOO!", &reader, &column, &chain, &rows, &PyList_Type, &after) ||
        open_column(column, chain, rows, after, &of) < 0)
        return NULL;
    PyObject *plain = kernel_get(reader, NAME_plain, &PyUnicode_Type);
    if (plain == NULL || kernel_need_number(reader, NAME_plain_at, &plain_at) < 0)
        return NULL;
    Py_ssize_t end = (Py_ssize_t)plain_at;
    PyObject *symbols = read_chain(reader, chain, of.contexts, of.cells, after);
    PyObject *steps = symbols ? kernel_integers(symbols, plain, &end) : NULL;
    Py_XDECREF(symbols);
    if (steps == NULL || kernel_set_number(reader, NAME_plain_at, end) < 0) {
        Py_XDECREF(steps);
        return NULL;
    }
    PyObject *numbers = predict(&of, steps, 0);
    if (numbers == Py_None)
        return Py_BuildValue("NN", numbers, steps);
    Py_DECREF(steps);
    if (numbers == NULL)
        return NULL;
    if (holds_none(numbers))
        return Py_BuildValue("NO", numbers, Py_None);
    PyObject *shown = kernel_show_by_key(numbers, of.key);
    if (shown == NULL) {
        Py_DECREF(numbers);
        return NULL;
    }
    return Py_BuildValue("NN", numbers, shown);
}
