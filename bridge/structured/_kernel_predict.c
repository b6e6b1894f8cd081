/* Predictors in C: docs/link-format-structured.md section 5.3, the twins of predictors.py.
 *
 * Python's integers have no end, these have: where one would not fit, all that was changed is put
 * back and None returned, and the twin does it.
 */

#include "_kernel.h"

typedef kernel_wide wide;

#define VALUE_BOUND ((int64_t)1 << 62) /* of every value, so that no product passes 127 bits */
#define CLAMP ((wide)1 << 62)

enum { LAST, LINEAR, MEAN, TIME, DIFFERENCE, RATIO, BEFORE, SIBLING, LINE, KINDS };

typedef struct {
    int kind;
    int64_t num, den;
    int64_t recent, recent_aux;
} Predictor;

typedef struct {
    KernelMaybe last, aux, ref;
    int64_t time;
} Row;

/* Returns 0, or -1 where the integer does not fit (no error set) or is none (an error set). */
int kernel_load(PyObject *item, KernelMaybe *out)
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
        return clamped(kernel_floor((wide)row->time * by->num + aux, by->den));
    case DIFFERENCE:
    case SIBLING:
        return row->ref.there ? row->ref.value + aux : last;
    case RATIO:
        if (row->last.there && row->ref.there && row->aux.there && row->aux.value) {
            wide before = row->aux.value;
            return clamped(kernel_floor(2 * last * row->ref.value + before, 2 * before));
        }
        return last;
    case BEFORE:
        return row->aux.there ? row->aux.value : last;
    case LINE:
        return row->ref.there ? clamped(kernel_floor((wide)row->ref.value * by->num + aux, by->den))
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

/* Takes one row on: its value to the residual, or back, in `*x`; `numbers` has its value, or gets
 * it. Returns 0, or -1 with an error set or, where something does not fit, none. */
static int step(Predictor *by, PyObject *cells[2], const KernelRows *rows, Py_ssize_t i,
                KernelMaybe *x, PyObject *numbers, int forward, PyObject **saved)
{
    if (!x->there) {
        if (!forward)
            PyList_SET_ITEM(numbers, i, Py_NewRef(Py_None));
        return 0;
    }
    Row row = {{0, 0}, {0, 0}, {0, 0}, 0};
    Py_ssize_t cell = rows->cells[i];
    PyObject *last = checked(cells[0], cell), *aux = last ? checked(cells[1], cell) : NULL;
    if (aux == NULL || kernel_load(last, &row.last) < 0 || kernel_load(aux, &row.aux) < 0)
        return -1;
    if (by->kind == TIME)
        row.time = rows->times[i];
    else if (by->kind >= DIFFERENCE)
        row.ref = rows->refs[i];
    if (!fits(row.last.value) || !fits(row.ref.value) || !fits(row.time) || !fits(by->recent))
        return -1;
    wide p = expected(by, &row), changed;
    wide value = forward ? x->value : x->value + p;
    wide made = forward ? x->value - p : value;
    if (!fits(value) || made > INT64_MAX || made < -INT64_MAX)
        return -1;
    x->value = (int64_t)made;
    if (!forward) {
        PyObject *result = PyLong_FromLongLong((long long)made);
        if (result == NULL)
            return -1;
        PyList_SET_ITEM(numbers, i, result);
    }
    if (exchange(cells[0], cell, Py_NewRef(PyList_GET_ITEM(numbers, i)), &saved[0]) < 0)
        return -1;
    if (!learned(by, &row, (int64_t)value, &changed))
        return 0;
    if (changed > INT64_MAX || changed < -INT64_MAX)
        return -1;
    return exchange(cells[1], cell, PyLong_FromLongLong((long long)changed), &saved[1]);
}

/* Lets go of what was saved; puts it back first where `undo` says so. */
static void release(PyObject *cells[2], const KernelRows *rows, PyObject **saved, int undo)
{
    for (Py_ssize_t i = rows->n - 1; i >= 0; i--) {
        for (int part = 0; part < 2; part++) {
            PyObject *before = saved[2 * i + part];
            if (before == NULL)
                continue;
            if (undo) {
                PyObject *now = PyList_GET_ITEM(cells[part], rows->cells[i]);
                PyList_SET_ITEM(cells[part], rows->cells[i], before);
                before = now;
            }
            Py_DECREF(before);
        }
    }
    PyMem_Free(saved);
}

/* Takes values to residuals, or back, in `xs`; `numbers` has the values, or gets them. Returns 0;
 * 1 where something does not fit, the cells being as they were; -1 with an error set. */
static int run(Predictor *by, PyObject *cells[2], const KernelRows *rows, KernelMaybe *xs,
               PyObject *numbers, int forward)
{
    if (by->kind < 0 || by->kind >= KINDS ||
        ((by->kind == TIME || by->kind == LINE) && by->den < 1) ||
        (by->kind == MEAN && (by->num < 1 || by->num > 6)) ||
        (by->kind == TIME && rows->times == NULL) ||
        (by->kind >= DIFFERENCE && rows->refs == NULL)) {
        PyErr_SetString(PyExc_ValueError, "no such predictor");
        return -1;
    }
    PyObject **saved = PyMem_Calloc(2 * (size_t)rows->n + 1, sizeof *saved);
    if (saved == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    Py_ssize_t i = 0;
    while (i < rows->n && !step(by, cells, rows, i, xs + i, numbers, forward, saved + 2 * i))
        i++;
    release(cells, rows, saved, i < rows->n);
    return i == rows->n ? 0 : PyErr_Occurred() ? -1 : 1;
}

/* The same with a column's predictor and state, which is taken on. */
int kernel_predict_rows(PyObject *column, PyObject *state, const KernelRows *rows, KernelMaybe *xs,
                        PyObject *numbers, int forward)
{
    int64_t kind;
    Predictor by;
    PyObject *param = kernel_get(column, NAME_param, &PyTuple_Type);
    PyObject *cells[2] = {kernel_get(state, NAME_last, &PyList_Type), NULL};
    cells[1] = cells[0] ? kernel_get(state, NAME_aux, &PyList_Type) : NULL;
    if (param == NULL || cells[1] == NULL || kernel_need_number(column, NAME_predictor, &kind))
        return -1;
    KernelMaybe num, den;
    if (PyTuple_GET_SIZE(param) != 2 || kernel_load(PyTuple_GET_ITEM(param, 0), &num) ||
        kernel_load(PyTuple_GET_ITEM(param, 1), &den) ||
        kernel_get_number(state, NAME_recent, &by.recent) ||
        kernel_get_number(state, NAME_recent_aux, &by.recent_aux))
        return PyErr_Occurred() ? -1 : 1;
    by.kind = (int)kind;
    by.num = num.value;
    by.den = den.value;
    int done = run(&by, cells, rows, xs, numbers, forward);
    if (done)
        return done;
    return kernel_set_number(state, NAME_recent, by.recent) ||
                   kernel_set_number(state, NAME_recent_aux, by.recent_aux)
               ? -1
               : 0;
}

/* Reads a sequence of the rows' integers; returns them, or NULL, with an error set unless one does
 * not fit. */
static KernelMaybe *loaded(PyObject *list, Py_ssize_t n)
{
    if (!PyList_Check(list) || PyList_GET_SIZE(list) != n) {
        PyErr_SetString(PyExc_ValueError, "a list of the rows' length is needed");
        return NULL;
    }
    KernelMaybe *out = PyMem_New(KernelMaybe, n + 1);
    if (out == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        if (kernel_load(PyList_GET_ITEM(list, i), out + i) == 0)
            continue;
        PyMem_Free(out);
        return NULL;
    }
    return out;
}

typedef struct {
    KernelMaybe *xs, *refs, *times;
    Py_ssize_t *cells;
    int64_t *units; /* the times */
} Loaded;

/* Reads what one predictor needs of `in`: cells, times, refs, xs. */
static int load_rows(PyObject *in[4], int kind, Loaded *of, KernelRows *rows)
{
    Py_ssize_t n = rows->n = PyList_GET_SIZE(in[3]);
    if (PyList_GET_SIZE(in[0]) != n) {
        PyErr_SetString(PyExc_ValueError, "a list of the rows' length is needed");
        return -1;
    }
    if ((of->xs = loaded(in[3], n)) == NULL || (of->cells = kernel_places_of(in[0])) == NULL ||
        (kind == TIME && (of->times = loaded(in[1], n)) == NULL) ||
        (kind >= DIFFERENCE && (of->refs = loaded(in[2], n)) == NULL))
        return -1;
    if (of->times != NULL && (of->units = PyMem_New(int64_t, n + 1)) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; of->times != NULL && i < n; i++)
        of->units[i] = of->times[i].value;
    rows->cells = of->cells;
    rows->times = of->units;
    rows->refs = of->refs;
    return 0;
}

/* Takes a list of values to one of residuals, or back; returns it with the most recent value and
 * aux; None where something does not fit, all being as it was. */
PyObject *kernel_predict(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *cells[2], *in[4], *recent, *recent_aux, *out = NULL;
    long long num, den;
    int kind, forward;
    if (!PyArg_ParseTuple(args, "iO!O!O!OOO!LLOOp", &kind, &PyList_Type, &cells[0], &PyList_Type,
                          &cells[1], &PyList_Type, &in[0], &in[1], &in[2], &PyList_Type, &in[3],
                          &num, &den, &recent, &recent_aux, &forward))
        return NULL;
    KernelMaybe first, second;
    KernelRows rows = {0};
    Loaded of = {0};
    int done = -1;
    if (!kernel_load(recent, &first) && !kernel_load(recent_aux, &second) &&
        !load_rows(in, kind, &of, &rows)) {
        Predictor by = {kind, num, den, first.value, second.value};
        PyObject *numbers = forward ? Py_NewRef(in[3]) : PyList_New(rows.n);
        done = numbers ? run(&by, cells, &rows, of.xs, numbers, forward) : -1;
        if (done == 0)
            out = Py_BuildValue("NLL", forward ? kernel_list_of(of.xs, rows.n) : Py_NewRef(numbers),
                                (long long)by.recent, (long long)by.recent_aux);
        Py_XDECREF(numbers);
    }
    PyMem_Free(of.xs);
    PyMem_Free(of.refs);
    PyMem_Free(of.times);
    PyMem_Free(of.cells);
    PyMem_Free(of.units);
    if (out != NULL || PyErr_Occurred())
        return out;
    Py_RETURN_NONE;
}
