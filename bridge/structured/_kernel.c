/* The structured codec's inner loops in C: each does exactly what its Python twin does.
 *
 * docs/link-format-structured.md sections 3 and 5. Built where there is a compiler, else the twins
 * named in kernel.py run (tests/bridge/structured/test_kernel.py compares them). Nothing here
 * decides anything that the twins do not.
 *
 * The coder is here, what reaches into Python's objects in _kernel_access.c; each other part says
 * what it has.
 *
 * Invariants: every index is checked against the list it is used on, so that a body can make these
 * functions raise and nothing worse; no list is read through a pointer that was taken before a call
 * that may run Python code or change that list's size.
 */

#include "_kernel.h"

#include <string.h>

#define SCALE_BITS 14
#define SCALE (1 << SCALE_BITS)
#define STATE_LOW (1 << 16)
#define SPAN_BITS 16 /* a span: start << SPAN_BITS | frequency */
#define SPAN_MASK ((1 << SPAN_BITS) - 1)

#define DIRECT 8
#define BUCKET_BITS_MIN 4
#define BUCKET_BITS_MAX 20
#define HALVED_BITS_MAX 8
#define BUCKETS (2 * DIRECT + 1)
#define HALVED (4 * (HALVED_BITS_MAX - BUCKET_BITS_MIN + 1))
#define BIG (BUCKETS + HALVED + 2 * (BUCKET_BITS_MAX - HALVED_BITS_MAX))
#define ESCAPE (BIG + 1)
_Static_assert(ESCAPE == KERNEL_ESCAPE, "one number for what is no integer");

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

/* Puts the spans of the symbols from `from` to `to`, the tables being as they are. */
int kernel_write_symbols(PyObject *put, PyObject *spans, PyObject *logs, PyObject *contexts,
                         const Py_ssize_t *cells, const int *symbols, PyObject *after,
                         Py_ssize_t from, Py_ssize_t to)
{
    for (Py_ssize_t i = from; i < to; i++) {
        Py_ssize_t which;
        if (kernel_index(contexts, cells[i], &which))
            return -1;
        PyObject *table = kernel_item(spans, which);
        PyObject *span = table ? kernel_item(table, symbols[i]) : NULL;
        PyObject *log = span ? kernel_item(logs, which) : NULL;
        PyObject *next = log ? kernel_item(after, symbols[i]) : NULL;
        if (next == NULL || PyList_Append(put, span) < 0 ||
            kernel_append_new(log, PyLong_FromLong(symbols[i])))
            return -1;
        kernel_put_item(contexts, cells[i], next);
    }
    return 0;
}

/* Takes the coder's state on by a symbol of that frequency, `offset` past its start. */
static int advance(PyObject *words, int64_t *at, uint64_t *state, long freq, long offset)
{
    *state = (uint64_t)freq * (*state >> SCALE_BITS) + (unsigned long)offset;
    if (*state >= STATE_LOW)
        return 0;
    Py_ssize_t word;
    if (*at >= PyList_GET_SIZE(words)) {
        PyErr_SetString(PyExc_EOFError, "the symbols end too early");
        return -1;
    }
    if (kernel_index(words, (Py_ssize_t)*at, &word))
        return -1;
    *state = *state << 16 | (uint64_t)word;
    ++*at;
    return 0;
}

/* Reads the next symbol of a table and takes the coder's state on by it; -1 with an error set. */
static Py_ssize_t take_symbol(PyObject *spans, PyObject *words, int64_t *at, uint64_t *state)
{
    if (!PyList_Check(spans) || !PyList_Check(words)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return -1;
    }
    long low = (long)(*state & (SCALE - 1)), span = 0;
    Py_ssize_t first = 0, end = PyList_GET_SIZE(spans);
    while (first < end) { /* the last start that is not above `low` */
        Py_ssize_t middle = (first + end) / 2;
        long tried = PyLong_AsLong(PyList_GET_ITEM(spans, middle));
        if (tried == -1 && PyErr_Occurred())
            return -1;
        if (low < tried >> SPAN_BITS) {
            end = middle;
        } else {
            first = middle + 1;
            span = tried;
        }
    }
    if (first == 0) {
        PyErr_SetString(PyExc_IndexError, "no such symbol");
        return -1;
    }
    long freq = span & SPAN_MASK, start = span >> SPAN_BITS;
    if (advance(words, at, state, freq, low - start))
        return -1;
    return first - 1;
}

/* Puts the symbols of the cells from `from` to `to`; takes `state` and `at` on. */
int kernel_read_symbols(int *out, PyObject *words, int64_t *at, uint64_t *state, PyObject *spans,
                        PyObject *logs, PyObject *contexts, const Py_ssize_t *cells,
                        PyObject *after, Py_ssize_t from, Py_ssize_t to)
{
    for (Py_ssize_t i = from; i < to; i++) {
        Py_ssize_t which;
        if (kernel_index(contexts, cells[i], &which))
            return -1;
        PyObject *table = kernel_item(spans, which);
        Py_ssize_t symbol = table ? take_symbol(table, words, at, state) : -1;
        if (symbol < 0)
            return -1;
        PyObject *log = kernel_item(logs, which);
        PyObject *next = log ? kernel_item(after, symbol) : NULL;
        if (next == NULL || kernel_append_new(log, PyLong_FromSsize_t(symbol)))
            return -1;
        out[i] = (int)symbol;
        kernel_put_item(contexts, cells[i], next);
    }
    return 0;
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
        long span = PyLong_AsLong(PyList_GET_ITEM(spans, i));
        long freq = span & SPAN_MASK, start = span >> SPAN_BITS;
        if (span < 0 || freq < 1 || freq > SCALE || start >= SCALE) {
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

/* Returns the spans of a table whose symbols were seen so often. */
PyObject *kernel_frequencies(PyObject *prior, PyObject *counts, long gain)
{
    int64_t weights[ALPHABET_MAX];
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
    PyObject *spans = PyList_New(n);
    int64_t start = 0;
    for (Py_ssize_t i = 0; spans && i < n; i++) {
        PyObject *span = PyLong_FromLongLong(start << SPAN_BITS | weights[i]);
        if (span == NULL) {
            Py_CLEAR(spans);
            break;
        }
        PyList_SET_ITEM(spans, i, span);
        start += weights[i];
    }
    return spans;
}

static PyObject *frequencies(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *prior, *counts;
    long gain;
    if (!PyArg_ParseTuple(args, "O!O!l", &PyList_Type, &prior, &PyList_Type, &counts, &gain))
        return NULL;
    return kernel_frequencies(prior, counts, gain);
}

/* ---- residuals ----------------------------------------------------------------------------- */

/* Appends the low `count` bits of `value` as signs 0 and 1, the lowest first. */
static int put_bits(PyObject *plain, int count, uint64_t value)
{
    Py_ssize_t size = PyByteArray_GET_SIZE(plain);
    if (PyByteArray_Resize(plain, size + count) < 0)
        return -1;
    char *text = PyByteArray_AS_STRING(plain) + size;
    for (int i = 0; i < count; i++)
        text[i] = '0' + (char)(value >> i & 1);
    return 0;
}

/* Returns the symbol of an integer, its plain bits appended; -1 with an error set. */
int kernel_symbol_of(int64_t value, PyObject *plain)
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
    (void)self;
    PyObject *steps, *plain;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &steps, &PyByteArray_Type, &plain))
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
            symbol = kernel_symbol_of(value, plain);
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

/* Turns symbols into integers, none for an escape; -1 with an error set. */
int kernel_integers(const int *symbols, Py_ssize_t n, PyObject *plain, Py_ssize_t *end,
                    KernelMaybe *out)
{
    if (!PyUnicode_IS_ASCII(plain) || *end > PyUnicode_GET_LENGTH(plain)) {
        PyErr_SetString(PyExc_ValueError, "no such bits");
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        out[i].there = symbols[i] != ESCAPE;
        out[i].value = 0;
        if (symbols[i] < 0 || symbols[i] > ESCAPE) {
            PyErr_SetString(PyExc_ValueError, "no such symbol");
            return -1;
        }
        if (out[i].there && integer_of(symbols[i], plain, end, &out[i].value) < 0)
            return -1;
    }
    return 0;
}

static PyObject *integers_of(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *given, *plain, *out = NULL;
    Py_ssize_t end;
    if (!PyArg_ParseTuple(args, "O!O!n", &PyList_Type, &given, &PyUnicode_Type, &plain, &end))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(given);
    int *symbols = kernel_numbers_of(given);
    KernelMaybe *steps = PyMem_New(KernelMaybe, n + 1);
    if (steps == NULL)
        PyErr_NoMemory();
    else if (symbols != NULL && kernel_integers(symbols, n, plain, &end, steps) == 0)
        out = kernel_list_of(steps, n);
    PyMem_Free(symbols);
    PyMem_Free(steps);
    return out ? Py_BuildValue("Nn", out, end) : NULL;
}

/* ---- one by one ---------------------------------------------------------------------------- */

/* Notes a symbol in its table, which may be rebuilt. */
static int note_symbol(PyObject *table, long symbol)
{
    int64_t due;
    PyObject *log = kernel_get(table, NAME_log, &PyList_Type);
    if (log == NULL || kernel_append_new(log, PyLong_FromLong(symbol)) ||
        kernel_need_number(table, NAME_due, &due))
        return -1;
    return PyList_GET_SIZE(log) >= due ? kernel_rebuild_table(table) : 0;
}

int kernel_put_symbol(PyObject *put, PyObject *table, long number)
{
    PyObject *spans = kernel_get(table, NAME_spans, &PyList_Type);
    PyObject *span = spans ? kernel_item(spans, number) : NULL;
    return span == NULL || PyList_Append(put, span) < 0 ? -1 : note_symbol(table, number);
}

int kernel_write_number(PyObject *put, PyObject *plain, PyObject *table, int64_t value)
{
    int symbol = kernel_symbol_of(value, plain);
    return symbol < 0 ? -1 : kernel_put_symbol(put, table, symbol);
}

PyObject *kernel_write_symbol(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *put, *table;
    long symbol;
    if (!PyArg_ParseTuple(args, "O!Ol", &PyList_Type, &put, &table, &symbol) ||
        kernel_put_symbol(put, table, symbol) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyObject *kernel_write_integer(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *put, *plain, *table, *number;
    int overflow;
    if (!PyArg_ParseTuple(args, "O!O!OO", &PyList_Type, &put, &PyByteArray_Type, &plain, &table,
                          &number))
        return NULL;
    long long value = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (overflow)
        return PyErr_Format(PyExc_ValueError, "an integer of more than 63 bits");
    if ((value == -1 && PyErr_Occurred()) || kernel_write_number(put, plain, table, value) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* Returns the next symbol of a table; -1 with an error set. */
long kernel_next_symbol(PyObject *reader, PyObject *table)
{
    int64_t at, state_read;
    PyObject *words = kernel_get(reader, NAME_words, &PyList_Type);
    PyObject *spans = words ? kernel_get(table, NAME_spans, &PyList_Type) : NULL;
    if (spans == NULL || kernel_need_number(reader, NAME_at, &at) ||
        kernel_need_number(reader, NAME_state, &state_read))
        return -1;
    uint64_t state = (uint64_t)state_read;
    int64_t before = at;
    Py_ssize_t symbol = take_symbol(spans, words, &at, &state);
    if (symbol < 0 || kernel_set_number(reader, NAME_state, (int64_t)state) ||
        (at != before && kernel_set_number(reader, NAME_at, at)))
        return -1;
    return note_symbol(table, (long)symbol) < 0 ? -1 : (long)symbol;
}

/* These code an integer of 0 to `bound` - 1, all equally likely; -1 with an error set. */

static int check_below(Py_ssize_t bound, Py_ssize_t value)
{
    if (value >= 0 && value < bound && bound <= INT32_MAX)
        return 0;
    PyErr_SetString(PyExc_IndexError, "an index past its table");
    return -1;
}

int kernel_put_below(PyObject *put, PyObject *plain, Py_ssize_t bound, Py_ssize_t value)
{
    if (check_below(bound, value))
        return -1;
    if (bound > SCALE)
        return put_bits(plain, bit_length((uint64_t)bound - 1), (uint64_t)value);
    long share = SCALE / bound, freq = value < bound - 1 ? share : SCALE - share * (bound - 1);
    return kernel_append_new(put, PyLong_FromLong(share * value << SPAN_BITS | freq));
}

static int read_bits_below(PyObject *reader, Py_ssize_t bound, Py_ssize_t *value)
{
    int64_t plain_at;
    uint64_t found;
    PyObject *plain = kernel_get(reader, NAME_plain, &PyUnicode_Type);
    if (plain == NULL || kernel_need_number(reader, NAME_plain_at, &plain_at))
        return -1;
    Py_ssize_t end = (Py_ssize_t)plain_at;
    if (!PyUnicode_IS_ASCII(plain) || end > PyUnicode_GET_LENGTH(plain)) {
        PyErr_SetString(PyExc_ValueError, "no such bits");
        return -1;
    }
    if (take_bits(plain, &end, bit_length((uint64_t)bound - 1), &found))
        return -1;
    *value = (Py_ssize_t)found;
    return check_below(bound, *value) || kernel_set_number(reader, NAME_plain_at, end) ? -1 : 0;
}

int kernel_read_below(PyObject *reader, Py_ssize_t bound, Py_ssize_t *value)
{
    int64_t at, state_read;
    if (check_below(bound, 0))
        return -1;
    if (bound > SCALE)
        return read_bits_below(reader, bound, value);
    PyObject *words = kernel_get(reader, NAME_words, &PyList_Type);
    if (words == NULL || kernel_need_number(reader, NAME_at, &at) ||
        kernel_need_number(reader, NAME_state, &state_read))
        return -1;
    uint64_t state = (uint64_t)state_read;
    long low = (long)(state & (SCALE - 1)), share = SCALE / bound;
    *value = low / share < bound - 1 ? low / share : bound - 1;
    long freq = *value < bound - 1 ? share : SCALE - share * (bound - 1);
    return advance(words, &at, &state, freq, low - share * *value) ||
                   kernel_set_number(reader, NAME_state, (int64_t)state) ||
                   kernel_set_number(reader, NAME_at, at)
               ? -1
               : 0;
}

/* Reads an integer; returns 1 for an escape, which is none, and -1 with an error set. */
int kernel_read_number(PyObject *reader, PyObject *table, int64_t *value)
{
    int64_t plain_at;
    long symbol = kernel_next_symbol(reader, table);
    if (symbol < 0)
        return -1;
    if (symbol == ESCAPE)
        return 1;
    if (symbol > ESCAPE) {
        PyErr_SetString(PyExc_ValueError, "no such symbol");
        return -1;
    }
    if (symbol < BUCKETS)
        return integer_of(symbol, NULL, NULL, value);
    PyObject *plain = kernel_get(reader, NAME_plain, &PyUnicode_Type);
    if (plain == NULL || kernel_need_number(reader, NAME_plain_at, &plain_at))
        return -1;
    Py_ssize_t end = (Py_ssize_t)plain_at;
    if (!PyUnicode_IS_ASCII(plain) || end > PyUnicode_GET_LENGTH(plain)) {
        PyErr_SetString(PyExc_ValueError, "no such bits");
        return -1;
    }
    if (integer_of(symbol, plain, &end, value) < 0)
        return -1;
    return kernel_set_number(reader, NAME_plain_at, end);
}

PyObject *kernel_read_symbol(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *reader, *table;
    if (!PyArg_ParseTuple(args, "OO", &reader, &table))
        return NULL;
    long symbol = kernel_next_symbol(reader, table);
    return symbol < 0 ? NULL : PyLong_FromLong(symbol);
}

PyObject *kernel_read_integer(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *reader, *table;
    int64_t value;
    if (!PyArg_ParseTuple(args, "OO", &reader, &table))
        return NULL;
    int found = kernel_read_number(reader, table, &value);
    if (found < 0)
        return NULL;
    if (found)
        Py_RETURN_NONE;
    return PyLong_FromLongLong(value);
}

/* ---- the module ---------------------------------------------------------------------------- */

#define METHODS(X)                                                                                \
    X(assemble)                                                                                   \
    X(bits_beside)                                                                                \
    X(code_slots)                                                                                 \
    X(code_text)                                                                                  \
    X(code_texts)                                                                                 \
    X(expect_all)                                                                                 \
    X(forecasts)                                                                                  \
    X(gather)                                                                                     \
    X(match_shape)                                                                                \
    X(note_changes)                                                                               \
    X(note_round)                                                                                 \
    X(note_rows)                                                                                  \
    X(off_counts)                                                                                 \
    X(pair_up)                                                                                    \
    X(parse_all)                                                                                  \
    X(place_rows)                                                                                 \
    X(plan_sources)                                                                               \
    X(predict)                                                                                    \
    X(put_together)                                                                               \
    X(read_chain)                                                                                 \
    X(read_gap)                                                                                   \
    X(read_integer)                                                                               \
    X(read_columns)                                                                               \
    X(read_symbol)                                                                                \
    X(rebuild)                                                                                    \
    X(scatter)                                                                                    \
    X(shared_ends)                                                                                \
    X(show_all)                                                                                   \
    X(sort_slots)                                                                                 \
    X(split_protobuf)                                                                             \
    X(take_due)                                                                                   \
    X(write_chain)                                                                                \
    X(write_columns)                                                                              \
    X(write_gap)                                                                                  \
    X(write_integer)                                                                              \
    X(write_symbol)

#define AS_DECLARED(name) PyObject *kernel_##name(PyObject *self, PyObject *args);
METHODS(AS_DECLARED)
PyObject *kernel_split_json(PyObject *self, PyObject *payload);
PyObject *kernel_step_bits(PyObject *self, PyObject *steps);
#undef AS_DECLARED

#define AS_METHOD(name) {#name, kernel_##name, METH_VARARGS, "As its Python twin."},
static PyMethodDef methods[] = {
    METHODS(AS_METHOD)
    {"frequencies", frequencies, METH_VARARGS, "As its Python twin."},
    {"integers_of", integers_of, METH_VARARGS, "As its Python twin."},
    {"pack_symbols", pack_symbols, METH_O, "As its Python twin."},
    {"split_json", kernel_split_json, METH_O, "As its Python twin."},
    {"step_bits", kernel_step_bits, METH_O, "As its Python twin."},
    {"symbols_of", symbols_of, METH_VARARGS, "As its Python twin."},
    {NULL, NULL, 0, NULL},
};
#undef AS_METHOD

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernel", "The structured codec's inner loops.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    if (kernel_names_ready() < 0)
        return NULL;
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntConstant(made, "VERSION", 13) < 0)
        Py_CLEAR(made);
    return made;
}
