/* Predictors in C: docs/link-format-structured.md section 5.3, the twins of predictors.py.
 *
 * Python's integers have no end, these have: where one would not fit, all that was changed is put
 * back and None returned, and the twin does it.
 */

#include "_kernel.h"

typedef __int128 wide;

#define VALUE_BOUND ((int64_t)1 << 62) /* of every value, so that no product passes 127 bits */
#define CLAMP ((wide)1 << 62)

enum { LAST, LINEAR, MEAN, TIME, DIFFERENCE, RATIO, BEFORE, SIBLING, LINE, KINDS };

typedef struct {
    int there;
    int64_t value;
} Maybe;

typedef struct {
    int kind;
    int64_t num, den;
    int64_t recent, recent_aux;
} Predictor;

typedef struct {
    Maybe last, aux, ref;
    int64_t time;
} Row;

/* Returns 0, or -1 where the integer does not fit (no error set) or is none (an error set). */
static int load(PyObject *item, Maybe *out)
{
    out->there = item != Py_None;
    out->value = 0;
    if (!out->there)
        return 0;
    int overflow;
    out->value = PyLong_AsLongLongAndOverflow(item, &overflow);
    if (overflow || (out->value == -1 && PyErr_Occurred()))
        return -1;
    return out->value <= -VALUE_BOUND * 2 + 1 ? -1 : 0;
}

static wide floor_of(wide a, wide b)
{
    wide q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

static wide clamped(wide p)
{
    return p < -CLAMP ? -CLAMP : p > CLAMP ? CLAMP : p;
}

static wide absolute(wide a)
{
    return a < 0 ? -a : a;
}

/* Returns what a row is expected to be. */
static wide expected(const Predictor *by, const Row *row)
{
    wide last = row->last.there ? row->last.value : by->recent;
    wide aux = row->aux.there ? row->aux.value : by->recent_aux;
    switch (by->kind) {
    case LINEAR:
        return row->last.there ? last + aux : last;
    case MEAN:
        if (!row->aux.there && row->last.there)
            aux = last * 16;
        return (aux + 8) >> 4;
    case TIME:
        return clamped(floor_of((wide)row->time * by->num + aux, by->den));
    case DIFFERENCE:
    case SIBLING:
        return row->ref.there ? row->ref.value + aux : last;
    case RATIO:
        if (row->last.there && row->ref.there && row->aux.there && row->aux.value) {
            wide before = row->aux.value;
            return clamped(floor_of(2 * last * row->ref.value + before, 2 * before));
        }
        return last;
    case BEFORE:
        return row->aux.there ? row->aux.value : last;
    case LINE:
        return row->ref.there ? clamped(floor_of((wide)row->ref.value * by->num + aux, by->den))
                              : last;
    default:
        return last;
    }
}

/* Returns True if the row's aux changes, to `*aux`; notes what the next rows need. */
static int learned(Predictor *by, const Row *row, int64_t value, wide *aux)
{
    wide before = row->last.there ? row->last.value : by->recent;
    wide old = row->aux.there ? row->aux.value : by->recent_aux, seen;
    by->recent = value;
    switch (by->kind) {
    case LINEAR:
        if (!row->last.there)
            return 0;
        *aux = (wide)value - before;
        break;
    case MEAN:
        if (!row->last.there) {
            *aux = (wide)value * 16;
        } else {
            if (!row->aux.there)
                old = before * 16;
            *aux = old + (((wide)value * 16 - old) >> by->num);
        }
        break;
    case TIME:
    case LINE: {
        if (by->kind == LINE && !row->ref.there)
            return 0;
        wide from = by->kind == TIME ? row->time : row->ref.value;
        seen = (wide)value * by->den + (by->den >> 1) - from * by->num;
        *aux = seen;
        if (row->aux.there && absolute(seen - old) < (wide)64 * by->den)
            *aux = old + ((seen - old) >> 2);
        break;
    }
    case DIFFERENCE:
    case SIBLING:
        if (!row->ref.there)
            return 0;
        *aux = (wide)value - row->ref.value;
        break;
    case RATIO:
    case BEFORE:
        if (!row->ref.there)
            return 0;
        *aux = row->ref.value;
        return 1;
    default:
        return 0;
    }
    by->recent_aux = (int64_t)*aux;
    return 1;
}

static int fits(wide value)
{
    return value < VALUE_BOUND && value > -VALUE_BOUND;
}

/* Puts `value` in the place of a list's item, which goes to `*saved`. */
static int exchange(PyObject *list, Py_ssize_t at, PyObject *value, PyObject **saved)
{
    if (value == NULL)
        return -1;
    *saved = PyList_GET_ITEM(list, at);
    PyList_SET_ITEM(list, at, value);
    return 0;
}

static PyObject *checked(PyObject *list, Py_ssize_t at)
{
    if (at >= 0 && at < PyList_GET_SIZE(list))
        return PyList_GET_ITEM(list, at);
    PyErr_SetString(PyExc_IndexError, "an index past its list");
    return NULL;
}

typedef struct {
    PyObject *last, *aux, *cells, *times, *refs, *xs;
} Lists;

/* Takes one row on; returns 0, or -1 with an error set or, where something does not fit, none. */
static int step(Predictor *by, const Lists *in, Py_ssize_t i, int forward, PyObject *out,
                PyObject **saved)
{
    PyObject *x = PyList_GET_ITEM(in->xs, i);
    if (x == Py_None) {
        Py_INCREF(x);
        PyList_SET_ITEM(out, i, x);
        return 0;
    }
    Row row = {{0, 0}, {0, 0}, {0, 0}, 0};
    Maybe given, time;
    Py_ssize_t cell = PyLong_AsSsize_t(PyList_GET_ITEM(in->cells, i));
    if (cell == -1 && PyErr_Occurred())
        return -1;
    PyObject *last = checked(in->last, cell), *aux = last ? checked(in->aux, cell) : NULL;
    if (aux == NULL || load(last, &row.last) < 0 || load(aux, &row.aux) < 0 || load(x, &given) < 0)
        return -1;
    if (by->kind == TIME) {
        if (load(PyList_GET_ITEM(in->times, i), &time) < 0)
            return -1;
        row.time = time.value;
    } else if (by->kind >= DIFFERENCE && load(PyList_GET_ITEM(in->refs, i), &row.ref) < 0) {
        return -1;
    }
    if (!fits(row.last.value) || !fits(row.ref.value) || !fits(row.time) || !fits(by->recent))
        return -1;
    wide p = expected(by, &row), changed;
    wide value = forward ? given.value : given.value + p;
    wide made = forward ? given.value - p : value;
    if (!fits(value) || made > INT64_MAX || made < -INT64_MAX)
        return -1;
    PyObject *result = PyLong_FromLongLong((long long)made);
    if (result == NULL)
        return -1;
    PyList_SET_ITEM(out, i, result);
    PyObject *kept = forward ? x : result;
    Py_INCREF(kept);
    if (exchange(in->last, cell, kept, &saved[0]) < 0)
        return -1;
    if (!learned(by, &row, (int64_t)value, &changed))
        return 0;
    if (changed > INT64_MAX || changed < -INT64_MAX)
        return -1;
    return exchange(in->aux, cell, PyLong_FromLongLong((long long)changed), &saved[1]);
}

static int as_long_as(PyObject *list, Py_ssize_t n)
{
    if (PyList_Check(list) && PyList_GET_SIZE(list) == n)
        return 1;
    PyErr_SetString(PyExc_ValueError, "a list of the rows' length is needed");
    return 0;
}

/* Lets go of what was saved; puts it back first where `undo` says so. */
static void release(const Lists *in, PyObject **saved, Py_ssize_t n, int undo)
{
    for (Py_ssize_t i = n - 1; i >= 0; i--) {
        for (int part = 0; part < 2; part++) {
            PyObject *before = saved[2 * i + part], *cell = PyList_GET_ITEM(in->cells, i);
            if (before == NULL)
                continue;
            if (undo) {
                PyObject *list = part ? in->aux : in->last, *now;
                Py_ssize_t at = PyLong_AsSsize_t(cell);
                now = PyList_GET_ITEM(list, at);
                PyList_SET_ITEM(list, at, before);
                before = now;
            }
            Py_DECREF(before);
        }
    }
    PyMem_Free(saved);
}

/* Takes values to residuals, or back. Returns a list, with the column's most recent value and aux
 * in `after`; None where something does not fit, all being as it was; NULL with an error set.
 *
 * lists: the cells' last values, their aux, and by row the cell, time, referred value and x. */
PyObject *kernel_predict_lists(PyObject *lists[6], int kind, int64_t num, int64_t den,
                               PyObject *recent, PyObject *recent_aux, int forward,
                               int64_t after[2])
{
    Lists in = {lists[0], lists[1], lists[2], lists[3], lists[4], lists[5]};
    Predictor by = {kind, num, den, 0, 0};
    Maybe first, second;
    Py_ssize_t n = PyList_GET_SIZE(in.xs), i;
    if (by.kind < 0 || by.kind >= KINDS || ((by.kind == TIME || by.kind == LINE) && den < 1) ||
        (by.kind == MEAN && (num < 1 || num > 6)))
        return PyErr_Format(PyExc_ValueError, "no such predictor");
    if (!as_long_as(in.cells, n) || (by.kind == TIME && !as_long_as(in.times, n)) ||
        (by.kind >= DIFFERENCE && !as_long_as(in.refs, n)))
        return NULL;
    if (load(recent, &first) < 0 || load(recent_aux, &second) < 0) {
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_NONE;
    }
    by.recent = first.value;
    by.recent_aux = second.value;
    PyObject *out = PyList_New(n), **saved = PyMem_Calloc(2 * (size_t)n + 1, sizeof *saved);
    if (out == NULL || saved == NULL) {
        Py_XDECREF(out);
        PyMem_Free(saved);
        return PyErr_NoMemory();
    }
    for (i = 0; i < n; i++)
        if (step(&by, &in, i, forward, out, saved + 2 * i) < 0)
            break;
    release(&in, saved, n, i < n);
    after[0] = by.recent;
    after[1] = by.recent_aux;
    if (i == n)
        return out;
    Py_DECREF(out);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

PyObject *kernel_predict(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *in[6], *recent, *recent_aux;
    long long num, den;
    int kind, forward;
    int64_t after[2];
    if (!PyArg_ParseTuple(args, "iO!O!O!OOO!LLOOp", &kind, &PyList_Type, &in[0], &PyList_Type,
                          &in[1], &PyList_Type, &in[2], &in[3], &in[4], &PyList_Type, &in[5], &num,
                          &den, &recent, &recent_aux, &forward))
        return NULL;
    PyObject *out =
        kernel_predict_lists(in, kind, num, den, recent, recent_aux, forward, after);
    if (out == NULL || out == Py_None)
        return out;
    return Py_BuildValue("NLL", out, (long long)after[0], (long long)after[1]);
}
