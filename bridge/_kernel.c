/* Loops over the readings of a batch in C: each does exactly what its twin in kernel.py does.
 *
 * docs/link-format.md sections 4.1 and 5. Built where there is a compiler, else the twins run
 * (tests/bridge/test_kernel.py compares them). Everything here takes apart what this process made
 * or has checked; what is wrong nevertheless raises and does nothing worse.
 *
 * Invariants: no item is read past the size of its list; nothing between reading a size and reading
 * the items runs Python code; a buffer is as large as the most that can be written to it.
 */

#include "_kernel.h"

#include <string.h>

#define TIME_UNITS_MAX ((int64_t)1 << 62)
#define UNION_SPAN_MAX (1 << 20)
#define OUTSIDE "a reading's time is outside what the link carries"
#define COLUMN_BYTES_MAX(n) (1 + 10 + 8 * (size_t)(n)) /* kind, a constant or n values */

/* ---- numbers ------------------------------------------------------------------------------- */

/* Puts `n` items of a list or tuple from `first` on into `out`; all have to be integers. */
static int integers(PyObject *fast, Py_ssize_t first, Py_ssize_t n, int64_t *out)
{
    if (first < 0 || n < 0 || first > PySequence_Fast_GET_SIZE(fast) - n) {
        PyErr_SetString(PyExc_IndexError, "columns of different lengths");
        return -1;
    }
    PyObject **items = PySequence_Fast_ITEMS(fast) + first;
    for (Py_ssize_t i = 0; i < n; i++) {
        int overflow = 0;
        if (!PyLong_Check(items[i])) {
            PyErr_SetString(PyExc_TypeError, "a column of integers is needed");
            return -1;
        }
        out[i] = PyLong_AsLongLongAndOverflow(items[i], &overflow);
        if (overflow) { /* no column may hold it, times least of all */
            PyErr_SetString(PyExc_ValueError, OUTSIDE);
            return -1;
        }
    }
    return 0;
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

static uint8_t *put_varint(uint8_t *out, uint64_t value)
{
    while (value >= 0x80) {
        *out++ = (uint8_t)(value | 0x80);
        value >>= 7;
    }
    *out++ = (uint8_t)value;
    return out;
}

static uint64_t zigzag(int64_t value)
{
    return value >= 0 ? (uint64_t)value << 1 : ((uint64_t)~value << 1) | 1;
}

/* ---- seqs ---------------------------------------------------------------------------------- */

/* Returns a range, into which the garbage collector need not look. */
static PyObject *range_of(PyObject *first, PyObject *last)
{
    PyObject *range = PyTuple_Pack(2, first, last);
    if (range != NULL)
        PyObject_GC_UnTrack(range);
    return range;
}

/* Returns the ranges of seqs[first:end], and writes their runs. */
static PyObject *ranges_and_runs(
    PyObject **items, const int64_t *seqs, Py_ssize_t n, Py_ssize_t count, uint8_t **runs)
{
    PyObject *ranges = PyTuple_New(count);
    if (ranges == NULL)
        return NULL;
    uint8_t *out = put_head(*runs, 0x80, 2 * (uint64_t)count - 1);
    uint64_t past = 1; /* the last range's end, and one */
    Py_ssize_t start = 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        Py_ssize_t end = start + 1;
        while (end < n && seqs[end] == seqs[end - 1] + 1)
            end++;
        PyObject *range = range_of(items[start], items[end - 1]);
        if (range == NULL) {
            Py_DECREF(ranges);
            return NULL;
        }
        PyTuple_SET_ITEM(ranges, at, range);
        out = put_head(out, 0, (uint64_t)seqs[start] - past);
        if (end < n)
            out = put_head(out, 0, (uint64_t)(end - start));
        past = (uint64_t)seqs[end - 1] + 1;
        start = end;
    }
    *runs = out;
    PyObject_GC_UnTrack(ranges);
    return ranges;
}

static PyObject *seq_runs(PyObject *self, PyObject *args)
{
    PyObject *list, *found = NULL;
    Py_ssize_t first, end;
    if (!PyArg_ParseTuple(args, "O!nn", &PyList_Type, &list, &first, &end))
        return NULL;
    Py_ssize_t n = end - first;
    if (n < 1)
        return PyErr_Format(PyExc_ValueError, "no seqs");
    int64_t *seqs = PyMem_Malloc(sizeof(int64_t) * (size_t)n);
    uint8_t *packed = PyMem_Malloc(18 * (size_t)n + 9);
    if (seqs == NULL || packed == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (integers(list, first, n, seqs) < 0)
        goto done;
    Py_ssize_t count = 1;
    for (Py_ssize_t i = 1; i < n; i++) {
        if (seqs[i] <= seqs[i - 1]) {
            PyErr_SetString(PyExc_ValueError, "seqs that do not rise");
            goto done;
        }
        count += seqs[i] != seqs[i - 1] + 1;
    }
    if (seqs[0] < 1) {
        PyErr_SetString(PyExc_ValueError, "a seq below 1");
        goto done;
    }
    uint8_t *out = packed;
    PyObject *ranges =
        ranges_and_runs(PySequence_Fast_ITEMS(list) + first, seqs, n, count, &out);
    if (ranges != NULL)
        found = Py_BuildValue("Ny#", ranges, (char *)packed, (Py_ssize_t)(out - packed));
done:
    PyMem_Free(seqs);
    PyMem_Free(packed);
    return found;
}

/* Reads (first, last); returns -1 with an error set for anything else. */
static int read_range(PyObject *range, int64_t *first, int64_t *last)
{
    if (!PyTuple_Check(range) || PyTuple_GET_SIZE(range) != 2) {
        PyErr_SetString(PyExc_TypeError, "a range is needed");
        return -1;
    }
    int64_t pair[2];
    if (integers(range, 0, 2, pair) < 0)
        return -1;
    *first = pair[0];
    *last = pair[1];
    return 0;
}

static PyObject *count_apart(PyObject *self, PyObject *ranges)
{
    if (!PyTuple_Check(ranges))
        return PyErr_Format(PyExc_TypeError, "a tuple of ranges is needed");
    int64_t total = 0, first, last;
    uint64_t past = 0; /* what the next range must lie behind */
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(ranges); i++) {
        if (read_range(PyTuple_GET_ITEM(ranges, i), &first, &last) < 0) {
            if (!PyErr_ExceptionMatches(PyExc_ValueError))
                return NULL;
            PyErr_Clear();
            return PyLong_FromLong(-1);
        }
        if (first < 1 || (uint64_t)first <= past || last < first)
            return PyLong_FromLong(-1);
        total += last - first + 1;
        past = (uint64_t)last + 1;
    }
    return PyLong_FromLongLong(total);
}

static PyObject *packed_ranges(PyObject *self, PyObject *ranges)
{
    if (!PyTuple_Check(ranges))
        return PyErr_Format(PyExc_TypeError, "a tuple of ranges is needed");
    Py_ssize_t count = PyTuple_GET_SIZE(ranges);
    PyObject *made = PyBytes_FromStringAndSize(NULL, 18 * count + 9);
    if (made == NULL)
        return NULL;
    uint8_t *start = (uint8_t *)PyBytes_AS_STRING(made);
    uint8_t *out = put_head(start, 0x80, 2 * (uint64_t)count);
    for (Py_ssize_t i = 0; i < count; i++) {
        int64_t first, last;
        if (read_range(PyTuple_GET_ITEM(ranges, i), &first, &last) == 0 && (first < 0 || last < 0))
            PyErr_SetString(PyExc_ValueError, "a seq below 0");
        if (PyErr_Occurred()) {
            Py_DECREF(made);
            return NULL;
        }
        out = put_head(out, 0, (uint64_t)first);
        out = put_head(out, 0, (uint64_t)last);
    }
    _PyBytes_Resize(&made, (Py_ssize_t)(out - start));
    return made;
}

/* Returns the ranges of a bitmap, whose bit 0 is `base`. */
static PyObject *ranges_of_bits(const uint64_t *bits, uint64_t span, int64_t base)
{
    PyObject *found = PyList_New(0);
    uint64_t at = 0;
    while (found != NULL && at < span) {
        uint64_t word = bits[at / 64] >> (at % 64);
        if (!word) {
            at = (at / 64 + 1) * 64;
            continue;
        }
        while (!(word & 1)) {
            word >>= 1;
            at++;
        }
        uint64_t end = at;
        while (end < span && (bits[end / 64] >> (end % 64) & 1))
            end += end % 64 == 0 && bits[end / 64] == UINT64_MAX && end + 64 <= span ? 64 : 1;
        PyObject *range = Py_BuildValue("LL", base + (int64_t)at, base + (int64_t)end - 1);
        if (range == NULL || PyList_Append(found, range) < 0)
            Py_CLEAR(found);
        Py_XDECREF(range);
        at = end;
    }
    return found;
}

/* Calls `one` with every range of a list of tuples of ranges. */
static int each_range(PyObject *several, int (*one)(void *, int64_t, int64_t), void *state)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(several); i++) {
        PyObject *ranges = PyList_GET_ITEM(several, i);
        if (!PyTuple_Check(ranges)) {
            PyErr_SetString(PyExc_TypeError, "a list of tuples of ranges is needed");
            return -1;
        }
        for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(ranges); k++) {
            int64_t first, last;
            if (read_range(PyTuple_GET_ITEM(ranges, k), &first, &last) < 0)
                return -1;
            if (first < 1 || last < first || one(state, first, last) < 0) {
                if (!PyErr_Occurred())
                    PyErr_SetString(PyExc_ValueError, "a range that ends before it begins");
                return -1;
            }
        }
    }
    return 0;
}

typedef struct {
    int64_t least, most;
    uint64_t *bits;
} Union;

static int widen(void *state, int64_t first, int64_t last)
{
    Union *all = state;
    if (first < all->least)
        all->least = first;
    if (last > all->most)
        all->most = last;
    return 0;
}

static int set_bits(void *state, int64_t first, int64_t last)
{
    Union *all = state;
    uint64_t end = (uint64_t)(last - all->least);
    for (uint64_t at = (uint64_t)(first - all->least); at <= end; at++)
        all->bits[at / 64] |= (uint64_t)1 << (at % 64);
    return 0;
}

static PyObject *merged(PyObject *self, PyObject *several)
{
    Union all = {INT64_MAX, 0, NULL};
    if (!PyList_Check(several))
        return PyErr_Format(PyExc_TypeError, "a list is needed");
    if (each_range(several, widen, &all) < 0)
        return NULL;
    if (all.least > all.most)
        return PyList_New(0);
    if (all.most - all.least >= UNION_SPAN_MAX)
        Py_RETURN_NONE;
    uint64_t span = (uint64_t)(all.most - all.least) + 1;
    all.bits = PyMem_Calloc((size_t)(span / 64 + 1), sizeof(uint64_t));
    if (all.bits == NULL)
        return PyErr_NoMemory();
    PyObject *found =
        each_range(several, set_bits, &all) < 0 ? NULL : ranges_of_bits(all.bits, span, all.least);
    PyMem_Free(all.bits);
    return found;
}

/* ---- rows by partition --------------------------------------------------------------------- */

static PyObject *split(PyObject *self, PyObject *args)
{
    PyObject *index, *partitions, *found = NULL;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &index, &PyList_Type, &partitions))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(index), sources = PyList_GET_SIZE(partitions);
    int64_t *rows = PyMem_Malloc(sizeof(int64_t) * (size_t)(n + 1));
    int64_t *of_source = PyMem_Malloc(sizeof(int64_t) * (size_t)(sources + 1));
    Py_ssize_t counts[256] = {0};
    PyObject *lists[256] = {NULL};
    if (rows == NULL || of_source == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (integers(index, 0, n, rows) < 0 || integers(partitions, 0, sources, of_source) < 0)
        goto done;
    for (Py_ssize_t i = 0; i < sources; i++)
        if (of_source[i] < 0 || of_source[i] > 255) {
            PyErr_SetString(PyExc_ValueError, "no such partition");
            goto done;
        }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (rows[i] < 0 || rows[i] >= sources) {
            PyErr_SetString(PyExc_IndexError, "a source index past the source table");
            goto done;
        }
        rows[i] = of_source[rows[i]];
        counts[rows[i]]++;
    }
    if ((found = PyDict_New()) == NULL)
        goto done;
    for (Py_ssize_t i = 0; i < sources; i++) { /* in the table's order, as the twin */
        int64_t partition = of_source[i];
        if (!counts[partition] || lists[partition] != NULL)
            continue;
        PyObject *key = PyLong_FromLongLong(partition);
        lists[partition] = key == NULL ? NULL : PyList_New(counts[partition]);
        if (lists[partition] == NULL || PyDict_SetItem(found, key, lists[partition]) < 0) {
            Py_XDECREF(key);
            Py_XDECREF(lists[partition]);
            Py_CLEAR(found);
            goto done;
        }
        Py_DECREF(key);
        Py_DECREF(lists[partition]); /* the dict has it */
        counts[partition] = 0;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *row = PyLong_FromSsize_t(i);
        if (row == NULL) {
            Py_CLEAR(found);
            goto done;
        }
        PyList_SET_ITEM(lists[rows[i]], counts[rows[i]]++, row);
    }
done:
    PyMem_Free(rows);
    PyMem_Free(of_source);
    return found;
}

/* Returns the place of the first of rising values that is past `value`. */
static Py_ssize_t place_past(const int64_t *values, Py_ssize_t n, int64_t value)
{
    Py_ssize_t low = 0;
    while (low < n) {
        Py_ssize_t middle = (low + n) / 2;
        if (values[middle] > value)
            n = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* Returns the next section and moves `row` and `source` past it; NULL with an error set. */
static PyObject *next_section(const int64_t *rows, Py_ssize_t n_rows, const int64_t *used,
                              Py_ssize_t n_used, const int64_t *first_rows,
                              const int64_t *first_sources, Py_ssize_t n_first, Py_ssize_t *row,
                              Py_ssize_t *source)
{
    Py_ssize_t origin = place_past(first_rows, n_first, rows[*row]) - 1;
    if (origin < 0 || origin + 1 >= n_first)
        return PyErr_Format(PyExc_IndexError, "a row of no origin");
    Py_ssize_t end_row = *row + 1, end_source = *source;
    while (end_row < n_rows && rows[end_row] < first_rows[origin + 1])
        end_row++;
    while (end_source < n_used && used[end_source] < first_sources[origin + 1])
        end_source++;
    PyObject *found = Py_BuildValue("nnnnn", origin, *row, end_row, *source, end_source);
    *row = end_row;
    *source = end_source;
    return found;
}

static PyObject *sections(PyObject *self, PyObject *args)
{
    PyObject *lists[4], *found = NULL;
    int64_t *values[4] = {NULL};
    Py_ssize_t sizes[4], row = 0, source = 0;
    if (!PyArg_ParseTuple(args, "O!O!O!O!", &PyList_Type, &lists[0], &PyList_Type, &lists[1],
                          &PyList_Type, &lists[2], &PyList_Type, &lists[3]))
        return NULL;
    for (int i = 0; i < 4; i++) {
        sizes[i] = PyList_GET_SIZE(lists[i]);
        values[i] = PyMem_Malloc(sizeof(int64_t) * (size_t)(sizes[i] + 1));
        if (values[i] == NULL) {
            PyErr_NoMemory();
            goto done;
        }
        if (integers(lists[i], 0, sizes[i], values[i]) < 0)
            goto done;
    }
    if (sizes[2] != sizes[3]) {
        PyErr_SetString(PyExc_IndexError, "columns of different lengths");
        goto done;
    }
    found = PyList_New(0);
    while (found != NULL && row < sizes[0]) {
        PyObject *section = next_section(values[0], sizes[0], values[1], sizes[1], values[2],
                                         values[3], sizes[2], &row, &source);
        if (section == NULL || PyList_Append(found, section) < 0)
            Py_CLEAR(found);
        Py_XDECREF(section);
    }
done:
    for (int i = 0; i < 4; i++)
        PyMem_Free(values[i]);
    return found;
}

static PyObject *untrack(PyObject *self, PyObject *const *lists, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++)
        if (PyList_CheckExact(lists[i]))
            PyObject_GC_UnTrack(lists[i]);
    Py_RETURN_NONE;
}

/* ---- columns ------------------------------------------------------------------------------- */

/* Writes a column: nothing for none, one value for a constant, else planes. */
static uint8_t *put_column(uint8_t *out, const int64_t *values, Py_ssize_t n, int with_sign)
{
    if (!n)
        return out;
    int64_t low = values[0], high = values[0];
    for (Py_ssize_t i = 1; i < n; i++) {
        if (values[i] < low)
            low = values[i];
        if (values[i] > high)
            high = values[i];
    }
    if (low == high) {
        *out++ = 0;
        return put_varint(out, with_sign ? zigzag(low) : (uint64_t)low);
    }
    int bits = with_sign ? bit_length((uint64_t)(high > ~low ? high : ~low)) + 1
                         : bit_length((uint64_t)high);
    int width = bits <= 8 ? 1 : bits <= 16 ? 2 : bits <= 32 ? 4 : 8;
    *out++ = (uint8_t)(width | (with_sign ? 0x10 : 0));
    for (int plane = 0; plane < width; plane++)
        for (Py_ssize_t i = 0; i < n; i++)
            *out++ = (uint8_t)((uint64_t)values[i] >> (8 * plane));
    return out;
}

static int none_negative(const int64_t *values, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++)
        if (values[i] < 0) {
            PyErr_SetString(PyExc_ValueError, "a negative number");
            return -1;
        }
    return 0;
}

static uint8_t *put_bytes(uint8_t *out, PyObject *bytes)
{
    memcpy(out, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
    return out + PyBytes_GET_SIZE(bytes);
}

/* Writes time steps, from times that were checked. */
static uint8_t *put_times(uint8_t *out, int64_t *times, Py_ssize_t n, int64_t reference)
{
    out = put_varint(out, zigzag(times[0] - reference));
    for (Py_ssize_t i = 0; i + 1 < n; i++)
        times[i] = times[i + 1] - times[i];
    return put_column(out, times, n - 1, 1);
}

static int times_in_bounds(const int64_t *times, Py_ssize_t n, int64_t reference)
{
    int good = reference > -TIME_UNITS_MAX && reference < TIME_UNITS_MAX;
    for (Py_ssize_t i = 0; i < n; i++)
        good &= times[i] > -TIME_UNITS_MAX && times[i] < TIME_UNITS_MAX;
    if (!good)
        PyErr_SetString(PyExc_ValueError, OUTSIDE);
    return good ? 0 : -1;
}

/* Returns the bytes of all payloads, and their lengths; -1 with an error set. */
static Py_ssize_t lengths_of(PyObject *payloads, Py_ssize_t n, int64_t *lengths)
{
    Py_ssize_t total = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *one = PyList_GET_ITEM(payloads, i);
        if (!PyBytes_Check(one)) {
            PyErr_SetString(PyExc_TypeError, "a payload that is not bytes");
            return -1;
        }
        lengths[i] = PyBytes_GET_SIZE(one);
        total += PyBytes_GET_SIZE(one);
    }
    return total;
}

static PyObject *pack(PyObject *self, PyObject *args)
{
    PyObject *head, *index, *times, *flags, *middle, *payloads, *made = NULL;
    long long reference;
    if (!PyArg_ParseTuple(args, "SO!O!O!SO!L", &head, &PyList_Type, &index, &PyList_Type, &times,
                          &PyList_Type, &flags, &middle, &PyList_Type, &payloads, &reference))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(index);
    if (n < 1 || PyList_GET_SIZE(times) != n || PyList_GET_SIZE(flags) != n ||
        PyList_GET_SIZE(payloads) != n)
        return PyErr_Format(PyExc_IndexError, "columns of different lengths");
    int64_t *values = PyMem_Malloc(sizeof(int64_t) * (size_t)n);
    int64_t *lengths = PyMem_Malloc(sizeof(int64_t) * (size_t)n);
    if (values == NULL || lengths == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    Py_ssize_t total = lengths_of(payloads, n, lengths);
    if (total < 0)
        goto done;
    size_t most = (size_t)(PyBytes_GET_SIZE(head) + PyBytes_GET_SIZE(middle) + total) + 10 +
                  4 * COLUMN_BYTES_MAX(n);
    made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)most);
    if (made == NULL)
        goto done;
    uint8_t *start = (uint8_t *)PyBytes_AS_STRING(made), *out = put_bytes(start, head);
    if (integers(index, 0, n, values) < 0 || none_negative(values, n) < 0)
        goto failed;
    out = put_column(out, values, n, 0);
    if (integers(times, 0, n, values) < 0 || times_in_bounds(values, n, reference) < 0)
        goto failed;
    out = put_times(out, values, n, reference);
    if (integers(flags, 0, n, values) < 0 || none_negative(values, n) < 0)
        goto failed;
    out = put_column(out, values, n, 0);
    out = put_column(put_bytes(out, middle), lengths, n, 0);
    for (Py_ssize_t i = 0; i < n; i++)
        out = put_bytes(out, PyList_GET_ITEM(payloads, i));
    _PyBytes_Resize(&made, (Py_ssize_t)(out - start));
    goto done;
failed:
    Py_CLEAR(made);
done:
    PyMem_Free(values);
    PyMem_Free(lengths);
    return made;
}

/* Returns the bytes of the texts that rows name, one each row; -1 with an error set.
 *
 * A few bytes can name gigabytes: where a size has 32 bits the sum has more. */
static int64_t named_bytes(PyObject *table, const int64_t *index, Py_ssize_t n)
{
    Py_ssize_t sources = PyList_GET_SIZE(table);
    int64_t total = 0;
    for (Py_ssize_t i = 0; i < sources; i++)
        if (!PyBytes_Check(PyList_GET_ITEM(table, i))) {
            PyErr_SetString(PyExc_TypeError, "a source that is not bytes");
            return -1;
        }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (index[i] < 0 || index[i] >= sources) {
            PyErr_SetString(PyExc_IndexError, "a source index past the source table");
            return -1;
        }
        total += PyBytes_GET_SIZE(PyList_GET_ITEM(table, index[i]));
    }
    return total;
}

/* Writes integers with their lowest bytes first. */
static uint8_t *put_little(uint8_t *out, const int64_t *values, Py_ssize_t n, int width)
{
    for (Py_ssize_t i = 0; i < n; i++)
        for (int byte = 0; byte < width; byte++)
            *out++ = (uint8_t)((uint64_t)values[i] >> (8 * byte));
    return out;
}

static int flags_in_bounds(const int64_t *flags, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++)
        if (flags[i] < 0 || flags[i] > 255) {
            PyErr_SetString(PyExc_ValueError, "a flag that is no byte");
            return -1;
        }
    return 0;
}

static PyObject *written(PyObject *self, PyObject *args)
{
    PyObject *table, *index, *times, *flags, *middle, *payloads, *made = NULL;
    Py_ssize_t bytes_max;
    if (!PyArg_ParseTuple(args, "O!O!O!O!SO!n", &PyList_Type, &table, &PyList_Type, &index,
                          &PyList_Type, &times, &PyList_Type, &flags, &middle, &PyList_Type,
                          &payloads, &bytes_max))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(index);
    if (PyList_GET_SIZE(times) != n || PyList_GET_SIZE(flags) != n ||
        PyList_GET_SIZE(payloads) != n)
        return PyErr_Format(PyExc_IndexError, "columns of different lengths");
    int64_t *rows = PyMem_Malloc(sizeof(int64_t) * (size_t)(n + 1));
    int64_t *lengths = PyMem_Malloc(sizeof(int64_t) * (size_t)(n + 1));
    int64_t *values = PyMem_Malloc(sizeof(int64_t) * (size_t)(n + 1));
    if (rows == NULL || lengths == NULL || values == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (integers(index, 0, n, rows) < 0)
        goto done;
    int64_t named = named_bytes(table, rows, n);
    int64_t content = named < 0 ? -1 : lengths_of(payloads, n, lengths);
    if (content < 0)
        goto done;
    if (bytes_max >= 0 && named + content > bytes_max) {
        PyObject *total = PyLong_FromLongLong(named + content);
        PyErr_SetObject(PyExc_OverflowError, total);
        Py_XDECREF(total);
        goto done;
    }
    int64_t size = (8 + 1 + 4) * (int64_t)n + named + PyBytes_GET_SIZE(middle) + content;
    if ((uint64_t)size > (uint64_t)PY_SSIZE_T_MAX) {
        PyErr_NoMemory();
        goto done;
    }
    made = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (made == NULL)
        goto done;
    uint8_t *out = (uint8_t *)PyBytes_AS_STRING(made);
    if (integers(times, 0, n, values) < 0)
        goto failed;
    out = put_little(out, values, n, 8);
    if (integers(flags, 0, n, values) < 0 || flags_in_bounds(values, n) < 0)
        goto failed;
    out = put_little(put_little(out, values, n, 1), lengths, n, 4);
    for (Py_ssize_t i = 0; i < n; i++)
        out = put_bytes(out, PyList_GET_ITEM(table, rows[i]));
    out = put_bytes(out, middle);
    for (Py_ssize_t i = 0; i < n; i++)
        out = put_bytes(out, PyList_GET_ITEM(payloads, i));
    goto done;
failed:
    Py_CLEAR(made);
done:
    PyMem_Free(rows);
    PyMem_Free(lengths);
    PyMem_Free(values);
    return made;
}

/* ---- the module ---------------------------------------------------------------------------- */

static PyMethodDef methods[] = {
    {"cbor", kernel_cbor, METH_O,
     "As cbor2.dumps, of what it knows; else TypeError or OverflowError."},
    {"count_apart", count_apart, METH_O, "As kernel._count_apart."},
    {"merged", merged, METH_O, "As kernel._merged; None when they lie too far apart."},
    {"pack", pack, METH_VARARGS, "As kernel._pack."},
    {"packed_ranges", packed_ranges, METH_O, "As kernel._packed_ranges."},
    {"sections", sections, METH_VARARGS, "As kernel._sections."},
    {"seq_runs", seq_runs, METH_VARARGS, "As kernel._seq_runs."},
    {"split", split, METH_VARARGS, "As kernel._split."},
    {"untrack", (PyCFunction)(void (*)(void))untrack, METH_FASTCALL,
     "Has the garbage collector never look into lists of numbers and bytes."},
    {"written", written, METH_VARARGS, "As kernel._written."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernel", "Loops over the readings of a batch.", -1, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made != NULL && PyModule_AddIntConstant(made, "VERSION", 4) < 0)
        Py_CLEAR(made);
    return made;
}
