/* What an encoder learns, in C: the twins of learner.py. */

#include "_kernel.h"

#include <math.h>

#define FITS ((int64_t)1 << 61)
#define STEP_FITS ((int64_t)1 << 48) /* so that no sum of squares passes 127 bits */
#define SIZES 65

/* How many integers there are by bit length, in the order in which lengths come first. */
typedef struct {
    long counts[SIZES];
    int order[SIZES], found;
} Sizes;

/* A column's value and the one before, and those of the column beside it. */
typedef struct {
    int64_t now, before, ref, ref_before;
} Beside;

enum { DIFFERENCE = 4, RATIO = 5, BEFORE = 6, LINE = 8 };

static void count(Sizes *in, kernel_wide value)
{
    kernel_wide rest = value < 0 ? -value : value;
    int bits = rest >> 64 ? 64 : rest ? 64 - __builtin_clzll((unsigned long long)rest) : 0;
    if (in->counts[bits]++ == 0)
        in->order[in->found++] = bits;
}

/* Counts the integers of a list; returns 1 where one does not fit, -1 with an error set. */
static int count_list(Sizes *in, PyObject *steps)
{
    if (!PyList_Check(steps)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(steps); i++) {
        int overflow;
        int64_t value = PyLong_AsLongLongAndOverflow(PyList_GET_ITEM(steps, i), &overflow);
        if (overflow)
            return 1;
        if (value == -1 && PyErr_Occurred())
            return -1;
        count(in, value);
    }
    return 0;
}

/* Returns about how many bits an adaptive coder spends on the integers counted. */
static PyObject *bits_of(const Sizes *from)
{
    double bits = 0;
    long total = 0, plain = 0;
    for (int i = 0; i < from->found; i++)
        total += from->counts[from->order[i]];
    for (int i = 0; i < from->found; i++) {
        long number = from->counts[from->order[i]];
        /* rounded before it is added, as Python does */
        volatile double term = (double)number * log2((double)total / (double)number);
        bits += term;
        plain += from->order[i] * number;
    }
    return PyFloat_FromDouble(bits + (double)plain);
}

/* Returns the bits that integers take; None where one does not fit. */
PyObject *kernel_step_bits(PyObject *self, PyObject *steps)
{
    (void)self;
    Sizes sizes = {0};
    int failed = count_list(&sizes, steps);
    if (failed < 0)
        return NULL;
    if (failed)
        Py_RETURN_NONE;
    return bits_of(&sizes);
}

static PyObject *whole(kernel_wide number)
{
    PyObject *high = PyLong_FromLongLong((long long)(number >> 64)), *bits = PyLong_FromLong(64);
    PyObject *low = PyLong_FromUnsignedLongLong((unsigned long long)number);
    PyObject *shifted = high && bits ? PyNumber_Lshift(high, bits) : NULL;
    PyObject *out = shifted && low ? PyNumber_Or(shifted, low) : NULL;
    Py_XDECREF(high);
    Py_XDECREF(bits);
    Py_XDECREF(low);
    Py_XDECREF(shifted);
    return out;
}

/* ---- columns side by side ------------------------------------------------------------------ */

/* Reads what stands at `place` of a list; returns 0, 1 where it does not fit, -1 with an error. */
static int at(PyObject *list, Py_ssize_t place, KernelMaybe *out)
{
    PyObject *item = kernel_item(list, place);
    if (item == NULL)
        return -1;
    if (kernel_load(item, out))
        return PyErr_Occurred() ? -1 : 1;
    return out->value <= -FITS || out->value >= FITS;
}

typedef struct {
    Beside *rows;
    Py_ssize_t n;
    PyObject *alone;
    kernel_wide square, product, own;
} Pairs;

/* Adds a step of a column with that of the one beside it; as `at`. */
static int add_pair(Pairs *to, KernelMaybe now, KernelMaybe before, PyObject *values,
                    Py_ssize_t place)
{
    KernelMaybe ref, last;
    int failed = at(values, place, &ref);
    failed = failed ? failed : at(values, place - 1, &last);
    if (failed)
        return failed;
    int64_t step = now.value - before.value, other = ref.value - last.value;
    if (!ref.there || !last.there)
        return kernel_append_new(to->alone, PyLong_FromLongLong(step));
    if (step <= -STEP_FITS || step >= STEP_FITS || other <= -STEP_FITS || other >= STEP_FITS)
        return 1;
    to->rows[to->n++] = (Beside){now.value, before.value, ref.value, last.value};
    to->square += (kernel_wide)other * other;
    to->product += (kernel_wide)step * other;
    to->own += (kernel_wide)step * step;
    return 0;
}

/* Returns a column's steps beside those of another: the rows, for bits_beside; its steps where the
 * other has no value; and the sums of squares and products of both. None where one does not fit. */
PyObject *kernel_pair_up(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *places, *now, *before, *values;
    if (!PyArg_ParseTuple(args, "O!O!O!O!", &PyList_Type, &places, &PyList_Type, &now,
                          &PyList_Type, &before, &PyList_Type, &values))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(places), number, place;
    PyObject *data = PyBytes_FromStringAndSize(NULL, n * (Py_ssize_t)sizeof(Beside)), *out = NULL;
    Pairs to = {NULL, 0, PyList_New(0), 0, 0, 0};
    int failed = data == NULL || to.alone == NULL ? -1 : 0;
    to.rows = data ? (Beside *)(void *)PyBytes_AS_STRING(data) : NULL;
    for (Py_ssize_t i = 0; !failed && i < n; i++) {
        KernelMaybe value, old;
        failed = at(now, i, &value);
        failed = failed ? failed : at(before, i, &old);
        PyObject *pair = failed ? NULL : kernel_item(places, i);
        if (pair == NULL || !PyTuple_Check(pair) ||
            !PyArg_ParseTuple(pair, "nn", &number, &place))
            failed = failed ? failed : -1;
        PyObject *series = failed ? NULL : kernel_item(values, number);
        failed = failed ? failed : series ? add_pair(&to, value, old, series, place) : -1;
    }
    if (!failed && !_PyBytes_Resize(&data, to.n * (Py_ssize_t)sizeof(Beside)))
        out = Py_BuildValue("OONNN", data, to.alone, whole(to.square), whole(to.product),
                            whole(to.own));
    Py_XDECREF(data);
    Py_XDECREF(to.alone);
    if (out != NULL || PyErr_Occurred())
        return out;
    Py_RETURN_NONE;
}

/* Returns how far a value is from what another column makes it out to be. */
static kernel_wide step_of(const Beside *row, int kind, int64_t num, int64_t den)
{
    kernel_wide now = row->now, before = row->before, ref = row->ref, last = row->ref_before;
    switch (kind) {
    case DIFFERENCE:
        return now - before - ref + last;
    case RATIO:
        return last ? now - kernel_floor(2 * before * ref + last, 2 * last) : now - before;
    case LINE:
        return now - kernel_floor(ref * num + before * den + (den >> 1) - last * num, den);
    default:
        return now - last;
    }
}

/* Returns the bits that residuals against another column take, and the steps alone. */
PyObject *kernel_bits_beside(PyObject *self, PyObject *args)
{
    (void)self;
    const char *data;
    Py_ssize_t size;
    PyObject *alone;
    int kind;
    long long num, den;
    Sizes sizes = {0};
    if (!PyArg_ParseTuple(args, "y#O!iLL", &data, &size, &PyList_Type, &alone, &kind, &num, &den))
        return NULL;
    if (size % (Py_ssize_t)sizeof(Beside) || (kind == LINE && den < 1) || num <= -FITS ||
        num >= FITS || den >= FITS)
        return PyErr_Format(PyExc_ValueError, "rows or a slope of another form");
    for (Py_ssize_t i = 0; i < size / (Py_ssize_t)sizeof(Beside); i++) {
        Beside row;
        memcpy(&row, data + i * (Py_ssize_t)sizeof row, sizeof row);
        count(&sizes, step_of(&row, kind, num, den));
    }
    int failed = count_list(&sizes, alone);
    if (failed > 0)
        PyErr_SetString(PyExc_ValueError, "a step of more than 63 bits");
    return failed ? NULL : bits_of(&sizes);
}
