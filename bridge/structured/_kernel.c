/* The structured codec's inner loops in C: each does exactly what its Python twin does.
 *
 * docs/link-format-structured.md sections 3 and 5. Built where there is a compiler, else the twins
 * named in kernel.py run (tests/bridge/structured/test_kernel.py compares them). Nothing here
 * decides anything: lists come in, lists go out.
 *
 * The coder is here; _kernel_predict.c has predictors, _kernel_spell.c spellings,
 * _kernel_timing.c forecasts of arrival.
 *
 * Invariants: every index is checked against the list it is used on, so that a body can make these
 * functions raise and nothing worse; no list is read through a pointer that was taken before a call
 * that may run Python code or change that list's size.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define SCALE_BITS 14
#define SCALE (1 << SCALE_BITS)
#define STATE_LOW (1 << 16)

#define DIRECT 8
#define BUCKET_BITS_MIN 4
#define BUCKET_BITS_MAX 20
#define HALVED_BITS_MAX 8
#define BUCKETS (2 * DIRECT + 1)
#define HALVED (4 * (HALVED_BITS_MAX - BUCKET_BITS_MIN + 1))
#define BIG (BUCKETS + HALVED + 2 * (BUCKET_BITS_MAX - HALVED_BITS_MAX))
#define ESCAPE (BIG + 1)

#define ALPHABET_MAX 256

enum { FIXED, TRIMMED, FLOATY };

/* ---- access, always checked ---------------------------------------------------------------- */

/* Returns a borrowed item of a list, or NULL with IndexError set. */
static PyObject *item_of(PyObject *list, Py_ssize_t at)
{
    if (!PyList_Check(list)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return NULL;
    }
    if (at < 0 || at >= PyList_GET_SIZE(list)) {
        PyErr_SetString(PyExc_IndexError, "an index past its list");
        return NULL;
    }
    return PyList_GET_ITEM(list, at);
}

static int index_in(PyObject *list, Py_ssize_t at, Py_ssize_t *out)
{
    PyObject *item = item_of(list, at);
    if (item == NULL)
        return -1;
    *out = PyLong_AsSsize_t(item);
    return *out == -1 && PyErr_Occurred() ? -1 : 0;
}

/* Puts a new reference to `value` into a list whose size was not changed since it was checked. */
static void put_item(PyObject *list, Py_ssize_t at, PyObject *value)
{
    PyObject *before = PyList_GET_ITEM(list, at);
    Py_INCREF(value);
    PyList_SET_ITEM(list, at, value);
    Py_DECREF(before);
}

static int bit_length(uint64_t magnitude)
{
    int bits = 0;
    while (magnitude) {
        bits++;
        magnitude >>= 1;
    }
    return bits;
}

/* ---- the coder ----------------------------------------------------------------------------- */

static PyObject *write_symbols(PyObject *self, PyObject *args)
{
    PyObject *put, *spans, *logs, *contexts, *cells, *symbols, *after;
    Py_ssize_t from, to;
    if (!PyArg_ParseTuple(args, "O!O!O!O!O!O!O!nn", &PyList_Type, &put, &PyList_Type, &spans,
                          &PyList_Type, &logs, &PyList_Type, &contexts, &PyList_Type, &cells,
                          &PyList_Type, &symbols, &PyList_Type, &after, &from, &to))
        return NULL;
    for (Py_ssize_t i = from; i < to; i++) {
        Py_ssize_t cell, which, symbol;
        if (index_in(cells, i, &cell) || index_in(symbols, i, &symbol) ||
            index_in(contexts, cell, &which))
            return NULL;
        PyObject *table = item_of(spans, which);
        PyObject *span = table ? item_of(table, symbol) : NULL;
        PyObject *log = span ? item_of(logs, which) : NULL;
        PyObject *next = log ? item_of(after, symbol) : NULL;
        if (next == NULL || PyList_Append(put, span) < 0 ||
            PyList_Append(log, PyList_GET_ITEM(symbols, i)) < 0)
            return NULL;
        put_item(contexts, cell, next);
    }
    Py_RETURN_NONE;
}

/* Returns the symbol whose range holds `low`: the last start that is not above it. */
static Py_ssize_t find_symbol(PyObject *starts, long low)
{
    Py_ssize_t first = 0, end = PyList_GET_SIZE(starts);
    while (first < end) {
        Py_ssize_t middle = (first + end) / 2;
        long start = PyLong_AsLong(PyList_GET_ITEM(starts, middle));
        if (start == -1 && PyErr_Occurred())
            return -1;
        if (low < start)
            end = middle;
        else
            first = middle + 1;
    }
    return first - 1;
}

static PyObject *read_symbols(PyObject *self, PyObject *args)
{
    PyObject *out, *words, *starts, *spans, *logs, *contexts, *cells, *after;
    Py_ssize_t at, from, to;
    unsigned long long state;
    if (!PyArg_ParseTuple(args, "O!O!nKO!O!O!O!O!O!nn", &PyList_Type, &out, &PyList_Type, &words,
                          &at, &state, &PyList_Type, &starts, &PyList_Type, &spans, &PyList_Type,
                          &logs, &PyList_Type, &contexts, &PyList_Type, &cells, &PyList_Type,
                          &after, &from, &to))
        return NULL;
    for (Py_ssize_t i = from; i < to; i++) {
        Py_ssize_t cell, which;
        if (index_in(cells, i, &cell) || index_in(contexts, cell, &which))
            return NULL;
        PyObject *table = item_of(starts, which);
        if (table == NULL || !PyList_Check(table))
            return table ? PyErr_Format(PyExc_TypeError, "a list is needed") : NULL;
        long low = (long)(state & (SCALE - 1));
        Py_ssize_t symbol = find_symbol(table, low);
        if (symbol < 0)
            return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_IndexError, "no such symbol");
        PyObject *row = item_of(spans, which);
        PyObject *span = row ? item_of(row, symbol) : NULL;
        if (span == NULL)
            return NULL;
        if (!PyTuple_Check(span) || PyTuple_GET_SIZE(span) != 2)
            return PyErr_Format(PyExc_TypeError, "a frequency and a start are needed");
        long freq = PyLong_AsLong(PyTuple_GET_ITEM(span, 0));
        long start = PyLong_AsLong(PyTuple_GET_ITEM(span, 1));
        if ((freq == -1 || start == -1) && PyErr_Occurred())
            return NULL;
        state = (unsigned long long)freq * (state >> SCALE_BITS) + (unsigned long)(low - start);
        if (state < STATE_LOW) {
            Py_ssize_t word;
            if (at >= PyList_GET_SIZE(words))
                return PyErr_Format(PyExc_EOFError, "the symbols end too early");
            if (index_in(words, at, &word))
                return NULL;
            state = state << 16 | (unsigned long long)word;
            at++;
        }
        PyObject *log = item_of(logs, which);
        PyObject *next = log ? item_of(after, symbol) : NULL;
        PyObject *number = next ? PyLong_FromSsize_t(symbol) : NULL;
        if (number == NULL)
            return NULL;
        if (PyList_Append(log, number) < 0 || PyList_Append(out, number) < 0) {
            Py_DECREF(number);
            return NULL;
        }
        Py_DECREF(number);
        put_item(contexts, cell, next);
    }
    return Py_BuildValue("Kn", state, at);
}

static PyObject *pack_symbols(PyObject *self, PyObject *spans)
{
    if (!PyList_Check(spans))
        return PyErr_Format(PyExc_TypeError, "a list is needed");
    Py_ssize_t n = PyList_GET_SIZE(spans), count = 0;
    uint8_t *words = PyMem_Malloc(2 * (size_t)n + 2);
    if (words == NULL)
        return PyErr_NoMemory();
    uint8_t *end = words + 2 * n; /* filled from its end: the last word emitted is read first */
    uint64_t state = STATE_LOW;
    for (Py_ssize_t i = n - 1; i >= 0; i--) {
        PyObject *span = PyList_GET_ITEM(spans, i);
        if (!PyTuple_Check(span) || PyTuple_GET_SIZE(span) != 2) {
            PyMem_Free(words);
            return PyErr_Format(PyExc_TypeError, "a frequency and a start are needed");
        }
        long freq = PyLong_AsLong(PyTuple_GET_ITEM(span, 0));
        long start = PyLong_AsLong(PyTuple_GET_ITEM(span, 1));
        if (freq < 1 || freq > SCALE || start < 0 || start >= SCALE) {
            PyMem_Free(words);
            return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no such frequency");
        }
        if (state >= (uint64_t)freq << 18) {
            count++;
            end[-2 * count] = (uint8_t)state;
            end[-2 * count + 1] = (uint8_t)(state >> 8);
            state >>= 16;
        }
        state += state / (uint64_t)freq * (uint64_t)(SCALE - freq) + (uint64_t)start;
    }
    PyObject *out = PyBytes_FromStringAndSize(NULL, 4 + 2 * count);
    if (out != NULL) {
        uint8_t *bytes = (uint8_t *)PyBytes_AS_STRING(out);
        for (int i = 0; i < 4; i++)
            bytes[i] = (uint8_t)(state >> (8 * i));
        memcpy(bytes + 4, end - 2 * count, 2 * (size_t)count);
    }
    PyMem_Free(words);
    return out;
}

static PyObject *frequencies(PyObject *self, PyObject *args)
{
    PyObject *prior, *counts;
    long gain;
    int64_t weights[ALPHABET_MAX];
    if (!PyArg_ParseTuple(args, "O!O!l", &PyList_Type, &prior, &PyList_Type, &counts, &gain))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(prior);
    if (n < 1 || n > ALPHABET_MAX || PyList_GET_SIZE(counts) != n)
        return PyErr_Format(PyExc_ValueError, "a table of another size");
    int64_t total = 0;
    Py_ssize_t greatest = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        long first = PyLong_AsLong(PyList_GET_ITEM(prior, i));
        long count = PyLong_AsLong(PyList_GET_ITEM(counts, i));
        if (PyErr_Occurred())
            return NULL;
        if (first < 1 || first > SCALE || count < 0 || count > 1 << 20 || gain < 0 ||
            gain > 1 << 16)
            return PyErr_Format(PyExc_ValueError, "no such count");
        weights[i] = first + (int64_t)gain * count;
        total += weights[i];
        if (weights[i] > weights[greatest])
            greatest = i;
    }
    int64_t room = SCALE - n, left = SCALE;
    for (Py_ssize_t i = 0; i < n; i++) {
        weights[i] = 1 + weights[i] * room / total;
        left -= weights[i];
    }
    weights[greatest] += left;
    PyObject *spans = PyList_New(n), *starts = PyList_New(n + 1);
    int64_t start = 0;
    for (Py_ssize_t i = 0; spans && starts && i <= n; i++) {
        PyObject *begin = PyLong_FromLongLong(start);
        if (begin == NULL)
            goto failed;
        PyList_SET_ITEM(starts, i, begin);
        if (i == n)
            return Py_BuildValue("NN", spans, starts);
        PyObject *span = Py_BuildValue("LO", (long long)weights[i], begin);
        if (span == NULL)
            goto failed;
        PyList_SET_ITEM(spans, i, span);
        start += weights[i];
    }
failed:
    Py_XDECREF(spans);
    Py_XDECREF(starts);
    return NULL;
}

/* ---- residuals ----------------------------------------------------------------------------- */

/* Appends the low `count` bits of `value` as a text of 0 and 1. */
static int put_bits(PyObject *plain, int count, uint64_t value)
{
    char text[64];
    for (int i = 0; i < count; i++)
        text[i] = '0' + (char)(value >> (count - 1 - i) & 1);
    PyObject *bits = PyUnicode_FromStringAndSize(text, count);
    if (bits == NULL)
        return -1;
    int failed = PyList_Append(plain, bits);
    Py_DECREF(bits);
    return failed;
}

/* Returns the symbol of an integer, its plain bits appended; -1 with an error set. */
static int symbol_of(int64_t value, PyObject *plain)
{
    uint64_t magnitude = value < 0 ? (uint64_t)0 - (uint64_t)value : (uint64_t)value;
    int negative = value < 0;
    if (magnitude <= DIRECT)
        return (int)(value > 0 ? 2 * value - 1 : -2 * value);
    int bits = bit_length(magnitude);
    if (bits > 63) {
        PyErr_Format(PyExc_ValueError, "an integer of %d bits", bits);
        return -1;
    }
    if (bits > BUCKET_BITS_MAX) {
        if (put_bits(plain, 7, (uint64_t)(negative << 6 | bits)) < 0 ||
            put_bits(plain, bits - 1, magnitude) < 0)
            return -1;
        return BIG;
    }
    if (bits > HALVED_BITS_MAX) {
        if (put_bits(plain, bits - 1, magnitude) < 0)
            return -1;
        return BUCKETS + HALVED + (bits - HALVED_BITS_MAX - 1) * 2 + negative;
    }
    if (put_bits(plain, bits - 2, magnitude) < 0)
        return -1;
    int half = (int)(magnitude >> (bits - 2) & 1);
    return BUCKETS + ((bits - BUCKET_BITS_MIN) * 2 + half) * 2 + negative;
}

static PyObject *symbols_of(PyObject *self, PyObject *args)
{
    PyObject *steps, *plain;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &steps, &PyList_Type, &plain))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(steps);
    PyObject *out = PyList_New(n);
    if (out == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *step = PyList_GET_ITEM(steps, i);
        int symbol = ESCAPE;
        if (step != Py_None) {
            long long value = PyLong_AsLongLong(step);
            if (value == -1 && PyErr_Occurred()) {
                if (PyErr_ExceptionMatches(PyExc_OverflowError))
                    PyErr_SetString(PyExc_ValueError, "an integer of more than 63 bits");
                goto failed;
            }
            symbol = symbol_of(value, plain);
        }
        PyObject *number = symbol < 0 ? NULL : PyLong_FromLong(symbol);
        if (number == NULL)
            goto failed;
        PyList_SET_ITEM(out, i, number);
    }
    return out;
failed:
    Py_DECREF(out);
    return NULL;
}

/* Reads `count` plain bits before `*end`; -1 with EOFError set when there are not so many. */
static int take_bits(PyObject *plain, Py_ssize_t *end, int count, uint64_t *value)
{
    Py_ssize_t begin = *end - count;
    if (begin < 32) {
        PyErr_SetString(PyExc_EOFError, "the plain bits end too early");
        return -1;
    }
    const Py_UCS1 *text = PyUnicode_1BYTE_DATA(plain) + begin;
    *value = 0;
    for (int i = 0; i < count; i++)
        *value = *value << 1 | (text[i] & 1);
    *end = begin;
    return 0;
}

/* Turns a symbol other than ESCAPE into its integer; -1 with an error set. */
static int integer_of(long symbol, PyObject *plain, Py_ssize_t *end, int64_t *value)
{
    uint64_t magnitude, rest = 0;
    int negative;
    if (symbol < BUCKETS) {
        *value = symbol & 1 ? (symbol + 1) / 2 : -(symbol / 2);
        return 0;
    }
    if (symbol == BIG) {
        if (take_bits(plain, end, 7, &rest) < 0)
            return -1;
        int bits = (int)(rest & 0x3F);
        negative = rest >> 6 & 1;
        if (bits == 0) {
            PyErr_SetString(PyExc_ValueError, "an integer of no bits");
            return -1;
        }
        if (take_bits(plain, end, bits - 1, &rest) < 0)
            return -1;
        magnitude = (uint64_t)1 << (bits - 1) | rest;
    } else {
        long place = symbol - BUCKETS;
        int extra;
        if (place < HALVED) {
            extra = (int)(place / 4) + BUCKET_BITS_MIN - 2;
            magnitude = (uint64_t)(2 + place / 2 % 2) << extra;
        } else {
            extra = (int)((place - HALVED) / 2) + HALVED_BITS_MAX;
            magnitude = (uint64_t)1 << extra;
        }
        negative = place & 1;
        if (take_bits(plain, end, extra, &rest) < 0)
            return -1;
        magnitude += rest;
    }
    *value = negative ? -(int64_t)magnitude : (int64_t)magnitude;
    return 0;
}

static PyObject *integers_of(PyObject *self, PyObject *args)
{
    PyObject *symbols, *plain;
    Py_ssize_t end;
    if (!PyArg_ParseTuple(args, "O!O!n", &PyList_Type, &symbols, &PyUnicode_Type, &plain, &end))
        return NULL;
    if (!PyUnicode_IS_ASCII(plain) || end > PyUnicode_GET_LENGTH(plain))
        return PyErr_Format(PyExc_ValueError, "no such bits");
    Py_ssize_t n = PyList_GET_SIZE(symbols);
    PyObject *out = PyList_New(n);
    if (out == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < n; i++) {
        long symbol = PyLong_AsLong(PyList_GET_ITEM(symbols, i));
        PyObject *number = NULL;
        if (symbol == ESCAPE) {
            number = Py_None;
            Py_INCREF(number);
        } else if (symbol < 0 || symbol > ESCAPE) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "no such symbol");
        } else {
            int64_t value;
            if (integer_of(symbol, plain, &end, &value) == 0)
                number = PyLong_FromLongLong(value);
        }
        if (number == NULL) {
            Py_DECREF(out);
            return NULL;
        }
        PyList_SET_ITEM(out, i, number);
    }
    return Py_BuildValue("Nn", out, end);
}

/* ---- the module ---------------------------------------------------------------------------- */

PyObject *kernel_expect_all(PyObject *self, PyObject *args);
PyObject *kernel_note_expected(PyObject *self, PyObject *args);
PyObject *kernel_parse_all(PyObject *self, PyObject *args);
PyObject *kernel_predict(PyObject *self, PyObject *args);
PyObject *kernel_show_all(PyObject *self, PyObject *args);
int kernel_timing_ready(void);

static PyMethodDef methods[] = {
    {"expect_all", kernel_expect_all, METH_VARARGS, "As timing.expect_all."},
    {"frequencies", frequencies, METH_VARARGS, "As tables.frequencies."},
    {"integers_of", integers_of, METH_VARARGS, "As columns.integers_of."},
    {"note_expected", kernel_note_expected, METH_VARARGS, "As timing.note_expected."},
    {"pack_symbols", pack_symbols, METH_O, "As coder.pack_symbols."},
    {"parse_all", kernel_parse_all, METH_VARARGS, "As printers.Printer.parse, for many."},
    {"predict", kernel_predict, METH_VARARGS, "As the functions of predictors."},
    {"read_symbols", read_symbols, METH_VARARGS, "As columns.read_symbols."},
    {"show_all", kernel_show_all, METH_VARARGS, "As printers.Printer.show, for many."},
    {"symbols_of", symbols_of, METH_VARARGS, "As columns.symbols_of."},
    {"write_symbols", write_symbols, METH_VARARGS, "As columns.write_symbols."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernel", "The structured codec's inner loops.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    if (kernel_timing_ready() < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntConstant(made, "VERSION", 1) < 0)
        Py_CLEAR(made);
    return made;
}
