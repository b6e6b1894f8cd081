/* Forecasts of arrival in C: docs/link-format-structured.md section 6.1, the twins of timing.py.
 *
 * Where an integer is far beyond what clocks show, nothing is done and the twin does it.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#define FRACTION 8
#define GAIN_MAX 16
#define CLAMP 3
#define SPREAD_MAX 56
#define PERIOD_MAX ((int64_t)1 << 54)
#define TIME_MAX ((int64_t)1 << 61)
#define FITS ((int64_t)1 << 50) /* beyond it the twin does the work */

enum { GAP, PERIODIC };

enum {
    BURST,
    BURST_LENGTH,
    GAIN,
    GAP_MEAN,
    LAST,
    MARGIN,
    MODE,
    MULTIPLE,
    PERIOD,
    PHASE,
    SPREAD,
    STEADY,
    STRAYED,
    WAKE,
    NAMES
};

static const char *const spelled[NAMES] = {
    "burst", "burst_length", "gain",   "gap",    "last",    "margin", "mode",
    "multiple", "period",    "phase",  "spread", "steady",  "strayed", "wake",
};
static PyObject *names[NAMES];

int kernel_timing_ready(void)
{
    for (int i = 0; i < NAMES; i++)
        if (names[i] == NULL && (names[i] = PyUnicode_InternFromString(spelled[i])) == NULL)
            return -1;
    return 0;
}

/* Returns 0; -1 where the attribute does not fit (no error set) or is none (an error set). */
static int get(PyObject *source, int name, int64_t *out)
{
    int overflow;
    PyObject *value = PyObject_GetAttr(source, names[name]);
    if (value == NULL)
        return -1;
    *out = PyLong_AsLongLongAndOverflow(value, &overflow);
    Py_DECREF(value);
    if (*out == -1 && PyErr_Occurred())
        return -1;
    return overflow ? -1 : 0;
}

static int set(PyObject *source, int name, int64_t number)
{
    PyObject *value = PyLong_FromLongLong(number);
    int failed = value == NULL || PyObject_SetAttr(source, names[name], value) < 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

static int64_t floor_of(int64_t a, int64_t b)
{
    int64_t q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

static int bits_of(uint64_t number)
{
    int bits = 0;
    for (; number; number >>= 1)
        bits++;
    return bits;
}

static int far(int64_t number)
{
    return number >= FITS || number <= -FITS;
}

/* ---- one reading that came about when it was expected -------------------------------------- */

typedef struct {
    int64_t phase, period, spread, gain, strayed, last, gap, burst, burst_length;
} State;

static void note(State *of, int64_t time, int64_t residual)
{
    int64_t step = of->phase + of->period, error = (time << FRACTION) - step;
    int64_t limit = (int64_t)CLAMP << (of->spread >> 2) << FRACTION;
    if ((-limit <= error && error <= limit) || of->gain <= 2) {
        of->strayed = 0;
        of->gain += of->gain < GAIN_MAX;
        int64_t n = of->gain, whole = n * (n + 1);
        of->phase = step + floor_of(error * (2 * (2 * n - 1)), whole);
        int64_t period = of->period + floor_of(error * 6, whole);
        of->period = period < 1 << FRACTION ? 1 << FRACTION
                                            : period > PERIOD_MAX ? PERIOD_MAX : period;
    } else if (++of->strayed >= 3) {
        of->strayed = 0;
        of->gain = 1;
        of->phase = time << FRACTION;
    } else {
        int64_t n = of->gain;
        of->phase = step + floor_of((error > 0 ? limit : -limit) / 2 * (2 * (2 * n - 1)),
                                    n * (n + 1));
    }
    int64_t size = 4 * bits_of(residual < 0 ? 0 - (uint64_t)residual : (uint64_t)residual);
    if (size > of->spread)
        of->spread += ((size < SPREAD_MAX ? size : SPREAD_MAX) - of->spread + 3) >> 2;
    else
        of->spread += (size - of->spread) >> 2;
}

PyObject *kernel_note_expected(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *source;
    long long time, residual;
    State of;
    if (!PyArg_ParseTuple(args, "OLL", &source, &time, &residual))
        return NULL;
    if (get(source, PHASE, &of.phase) || get(source, PERIOD, &of.period) ||
        get(source, SPREAD, &of.spread) || get(source, GAIN, &of.gain) ||
        get(source, STRAYED, &of.strayed) || get(source, LAST, &of.last) ||
        get(source, GAP_MEAN, &of.gap) || get(source, BURST, &of.burst) ||
        get(source, BURST_LENGTH, &of.burst_length))
        goto left;
    if (far(time) || far(residual) || far(of.last) || far(of.gap) || far(of.phase >> FRACTION) ||
        far(of.period) || of.spread < 0 || of.spread > SPREAD_MAX || of.gain < 1 ||
        of.gain > GAIN_MAX || far((time << FRACTION) - of.phase - of.period))
        goto left;
    note(&of, time, residual);
    int64_t margin = (int64_t)4 << (of.spread >> 2) << FRACTION, gap = time - of.last;
    if (margin > of.period >> 1)
        margin = of.period >> 1;
    int steady = 4 * margin < of.period;
    if (of.burst_length || of.burst) {
        if (set(source, BURST_LENGTH, of.burst < 15 ? of.burst : 15) || set(source, BURST, 0))
            return NULL;
    }
    if (set(source, PHASE, of.phase) || set(source, PERIOD, of.period) ||
        set(source, SPREAD, of.spread) || set(source, GAIN, of.gain) ||
        set(source, STRAYED, of.strayed) || set(source, MULTIPLE, 1) ||
        set(source, MARGIN, margin) || set(source, LAST, time) ||
        set(source, GAP_MEAN, of.gap + (((gap > 0 ? gap : 0) - of.gap) >> 2)) ||
        PyObject_SetAttr(source, names[STEADY], steady ? Py_True : Py_False) ||
        set(source, WAKE, steady ? (of.phase + of.period - margin) >> FRACTION : -TIME_MAX))
        return NULL;
    Py_RETURN_TRUE;
left:
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_FALSE;
}

/* ---- how many are expected ----------------------------------------------------------------- */

static int expected_of(PyObject *source, int64_t start, int64_t end, int64_t *count, int *table)
{
    int64_t period, phase, margin, length, last, gap, mode, steady;
    if (get(source, STEADY, &steady))
        return -1;
    if (!steady) {
        if (get(source, LAST, &last) || get(source, GAP_MEAN, &gap) || get(source, MODE, &mode) ||
            far(last) || far(gap) || gap < 0)
            return -1;
        int64_t from = last > start ? last : start, window = end > from ? end - from : 0;
        int size = bits_of((uint64_t)((window << 3) / (gap + 1)));
        *count = 0;
        *table = (mode == GAP ? 12 : 24) + (size < 11 ? size : 11);
        return 0;
    }
    if (get(source, PERIOD, &period) || get(source, PHASE, &phase) ||
        get(source, MARGIN, &margin) || get(source, BURST_LENGTH, &length) ||
        far(phase >> FRACTION) || far(period) || period < 1)
        return -1;
    int64_t ahead = (end << FRACTION) - phase, periods = floor_of(ahead, period);
    *count = 0;
    *table = 0;
    if (periods < 0)
        return 0;
    int64_t rest = ahead - periods * period;
    int doubt = rest < margin ? 1 : period - rest < margin ? 2 : 0;
    *count = (periods < 64 ? periods : 64) * (length + 1);
    *table = (int)(periods < 3 ? periods : 3) * 3 + doubt;
    return 0;
}

PyObject *kernel_expect_all(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *sources;
    long long start, end;
    if (!PyArg_ParseTuple(args, "O!LL", &PyList_Type, &sources, &start, &end))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(sources);
    PyObject *counts = PyList_New(n), *tables = PyList_New(n);
    int out_of_reach = far(start) || far(end);
    for (Py_ssize_t i = 0; i < n && counts && tables && !out_of_reach; i++) {
        int64_t count;
        int table;
        if (expected_of(PyList_GET_ITEM(sources, i), start, end, &count, &table)) {
            out_of_reach = 1;
            break;
        }
        PyObject *first = PyLong_FromLongLong(count), *second = PyLong_FromLong(table);
        if (first == NULL || second == NULL) {
            Py_XDECREF(first);
            Py_XDECREF(second);
            out_of_reach = 1;
            break;
        }
        PyList_SET_ITEM(counts, i, first);
        PyList_SET_ITEM(tables, i, second);
    }
    if (counts && tables && !out_of_reach)
        return Py_BuildValue("NN", counts, tables);
    Py_XDECREF(counts);
    Py_XDECREF(tables);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}
