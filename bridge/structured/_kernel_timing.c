/* Forecasts of arrival in C: docs/link-format-structured.md section 6.1, the twins of forecasts.py
 * and timing.py.
 *
 * Where an integer is far beyond what clocks show, nothing is done and the twin does it.
 */

#include "_kernel.h"

#define FRACTION 8
#define GAIN_MAX 16
#define CLAMP 3
#define HALF ((int64_t)1 << (FRACTION - 1))
#define SPREAD_MAX 56
#define PERIOD_MAX ((int64_t)1 << 54)
#define TIME_MAX ((int64_t)1 << 61)
#define COUNT_MAX ((int64_t)1 << 32) /* of readings in a batch, far beyond any limit */
#define FITS ((int64_t)1 << 50) /* beyond it the twin does the work */

enum { GAP, PERIODIC };

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

/* Returns 1 when the reading was noted, 0 where the twin is to do it, -1 with an error set. */
static int note_expected(PyObject *source, int64_t time, int64_t residual)
{
    State of;
    if (kernel_get_number(source, NAME_phase, &of.phase) ||
        kernel_get_number(source, NAME_period, &of.period) ||
        kernel_get_number(source, NAME_spread, &of.spread) ||
        kernel_get_number(source, NAME_gain, &of.gain) ||
        kernel_get_number(source, NAME_strayed, &of.strayed) ||
        kernel_get_number(source, NAME_last, &of.last) ||
        kernel_get_number(source, NAME_gap, &of.gap) ||
        kernel_get_number(source, NAME_burst, &of.burst) ||
        kernel_get_number(source, NAME_burst_length, &of.burst_length) || far(time) ||
        far(residual) || far(of.last) || far(of.gap) || far(of.phase >> FRACTION) ||
        far(of.period) || of.spread < 0 || of.spread > SPREAD_MAX || of.gain < 1 ||
        of.gain > GAIN_MAX || far((time << FRACTION) - of.phase - of.period))
        return PyErr_Occurred() ? -1 : 0;
    State before = of;
    note(&of, time, residual);
    int64_t margin = (int64_t)4 << (of.spread >> 2) << FRACTION, gap = time - of.last;
    if (margin > of.period >> 1)
        margin = of.period >> 1;
    int steady = 4 * margin < of.period;
    if ((of.burst_length || of.burst) &&
        (kernel_set_number(source, NAME_burst_length, of.burst < 15 ? of.burst : 15) ||
         kernel_set_number(source, NAME_burst, 0)))
        return -1;
    if ((of.gain != before.gain && kernel_set_number(source, NAME_gain, of.gain)) ||
        (of.strayed != before.strayed && kernel_set_number(source, NAME_strayed, of.strayed)) ||
        (of.spread != before.spread && kernel_set_number(source, NAME_spread, of.spread)) ||
        kernel_set_number(source, NAME_phase, of.phase) ||
        kernel_set_number(source, NAME_period, of.period) ||
        kernel_set_number(source, NAME_multiple, 1) ||
        kernel_set_number(source, NAME_margin, margin) ||
        kernel_set_number(source, NAME_last, time) ||
        kernel_set_number(source, NAME_gap, of.gap + (((gap > 0 ? gap : 0) - of.gap) >> 2)) ||
        kernel_set(source, NAME_steady, steady ? Py_True : Py_False) ||
        kernel_set_number(source, NAME_wake,
                          steady ? (of.phase + of.period - margin) >> FRACTION : -TIME_MAX))
        return -1;
    return 1;
}

/* ---- a round ------------------------------------------------------------------------------- */

/* Returns 1 when a source's next reading is expected one period on; 0, -1, or -2 for the twin. */
static int is_ahead(PyObject *source, int64_t *forecast, int64_t *spread, int64_t *near)
{
    int64_t mode, burst, burst_length, phase, period;
    if (kernel_get_number(source, NAME_mode, &mode))
        return -2;
    if (mode != PERIODIC)
        return 0;
    if (kernel_get_number(source, NAME_burst, &burst) ||
        kernel_get_number(source, NAME_burst_length, &burst_length))
        return -2;
    if (burst < burst_length)
        return 0;
    if (kernel_get_number(source, NAME_phase, &phase) ||
        kernel_get_number(source, NAME_period, &period) ||
        kernel_get_number(source, NAME_spread, spread) || far(phase >> FRACTION) || far(period))
        return -2;
    *forecast = (phase + period + HALF) >> FRACTION;
    *near = period >> (FRACTION + 1);
    return 1;
}

/* Returns (places, forecasts, tables, steps) of the sources that are expected one period on, the
 * steps being None without times; None where a number is too large. */
PyObject *kernel_forecasts(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *sources, *given;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &sources, &PyList_Type, &given))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(sources);
    int writes = PyList_GET_SIZE(given) != 0;
    if (writes && PyList_GET_SIZE(given) != n)
        return PyErr_Format(PyExc_ValueError, "a time for each source is needed");
    PyObject *out[4] = {PyList_New(0), PyList_New(0), PyList_New(0), PyList_New(0)};
    int failed = !out[0] || !out[1] || !out[2] || !out[3], beyond = 0;
    for (Py_ssize_t i = 0; !failed && !beyond && i < n; i++) {
        int64_t forecast, spread, near;
        int ahead = is_ahead(PyList_GET_ITEM(sources, i), &forecast, &spread, &near);
        failed = PyErr_Occurred() != NULL;
        beyond = ahead < 0;
        if (ahead <= 0)
            continue;
        failed = kernel_append_new(out[0], PyLong_FromSsize_t(i)) ||
                 kernel_append_new(out[1], PyLong_FromLongLong(forecast)) ||
                 kernel_append_new(out[2], PyLong_FromLongLong(spread >> 2));
        if (failed || !writes)
            continue;
        int overflow;
        int64_t time = PyLong_AsLongLongAndOverflow(PyList_GET_ITEM(given, i), &overflow);
        failed = time == -1 && PyErr_Occurred();
        beyond = overflow || far(time);
        int64_t step = time - forecast;
        if (failed || beyond)
            continue;
        if (step >= -near && step <= near)
            failed = kernel_append_new(out[3], PyLong_FromLongLong(step));
        else
            failed = PyList_Append(out[3], Py_None);
    }
    if (!failed && !beyond)
        return Py_BuildValue("NNNN", out[0], out[1], out[2], out[3]);
    for (int i = 0; i < 4; i++)
        Py_XDECREF(out[i]);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

/* Notes the readings that came as expected, each time in its place in `times`; those it leaves to
 * the twin, which are too large, are in the list returned, by their number among `places`. */
PyObject *kernel_note_round(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *sources, *places, *forecasts, *steps, *times;
    if (!PyArg_ParseTuple(args, "O!O!O!O!O!", &PyList_Type, &sources, &PyList_Type, &places,
                          &PyList_Type, &forecasts, &PyList_Type, &steps, &PyList_Type, &times))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(places), place;
    if (PyList_GET_SIZE(forecasts) != n || PyList_GET_SIZE(steps) != n)
        return PyErr_Format(PyExc_ValueError, "a forecast and a step for each place are needed");
    PyObject *left = PyList_New(0);
    int failed = left == NULL;
    for (Py_ssize_t i = 0; !failed && i < n; i++) {
        PyObject *item = PyList_GET_ITEM(steps, i);
        if (item == Py_None)
            continue;
        int overflow, far_off;
        int64_t step = PyLong_AsLongLongAndOverflow(item, &overflow);
        int64_t forecast =
            PyLong_AsLongLongAndOverflow(PyList_GET_ITEM(forecasts, i), &far_off);
        failed = PyErr_Occurred() || kernel_index(places, i, &place) ||
                 kernel_item(times, place) == NULL || kernel_item(sources, place) == NULL;
        if (failed)
            break;
        int done = 0;
        if (!overflow && !far_off && !far(step) && !far(forecast))
            done = note_expected(PyList_GET_ITEM(sources, place), forecast + step, step);
        PyObject *number = PyLong_FromLongLong(done > 0 ? forecast + step : i);
        failed = done < 0 || number == NULL || (!done && PyList_Append(left, number));
        if (!failed && done)
            kernel_put_item(times, place, number);
        Py_XDECREF(number);
    }
    if (failed)
        Py_CLEAR(left);
    return left;
}

/* ---- gaps ---------------------------------------------------------------------------------- */

/* Finds the table for a source's next gap; returns 1, 0 where the twin is to do it, or -1. */
static int gap_table(PyObject *source, PyObject *tables, int64_t *last, int64_t *mean,
                     PyObject **table)
{
    int64_t size;
    if (kernel_get_number(source, NAME_gap_size, &size) ||
        kernel_get_number(source, NAME_last, last) || kernel_get_number(source, NAME_gap, mean) ||
        far(*last) || far(*mean))
        return PyErr_Occurred() ? -1 : 0;
    *table = kernel_item(tables, (Py_ssize_t)size);
    return *table ? 1 : -1;
}

/* Takes over a gap that was coded: the source's last one and its mean. */
static int note_gap(PyObject *source, int64_t gap, int64_t last, int64_t mean)
{
    int size = bits_of(gap < 0 ? 0 - (uint64_t)gap : (uint64_t)gap);
    return kernel_set_number(source, NAME_gap_size, size < 21 ? size : 21) ||
           kernel_set_number(source, NAME_gap, mean + (((gap > 0 ? gap : 0) - mean) >> 2)) ||
           kernel_set_number(source, NAME_last, last + gap);
}

/* Codes a time by its gap to the source's last one; returns False where the twin is to do it. */
PyObject *kernel_write_gap(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *put, *plain, *tables, *source, *table;
    long long time;
    int64_t last, mean;
    if (!PyArg_ParseTuple(args, "O!O!O!OL", &PyList_Type, &put, &PyByteArray_Type, &plain,
                          &PyList_Type, &tables, &source, &time))
        return NULL;
    int found = far(time) ? 0 : gap_table(source, tables, &last, &mean, &table);
    if (found > 0 && (kernel_write_number(put, plain, table, time - last) < 0 ||
                      note_gap(source, time - last, last, mean)))
        return NULL;
    return found < 0 ? NULL : PyBool_FromLong(found);
}

/* Returns a time read as a gap; None where the twin is to read it; (gap,) where the twin is to
 * take over a gap that was read, which is too large or, being None, none. */
PyObject *kernel_read_gap(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *reader, *tables, *source, *table;
    int64_t last, mean, gap;
    if (!PyArg_ParseTuple(args, "OO!O", &reader, &PyList_Type, &tables, &source))
        return NULL;
    int found = gap_table(source, tables, &last, &mean, &table);
    if (found < 0)
        return NULL;
    if (!found)
        Py_RETURN_NONE;
    found = kernel_read_number(reader, table, &gap);
    if (found < 0)
        return NULL;
    if (found)
        return Py_BuildValue("(O)", Py_None);
    if (far(gap))
        return Py_BuildValue("(L)", (long long)gap);
    return note_gap(source, gap, last, mean) ? NULL : PyLong_FromLongLong(last + gap);
}

/* ---- how many are expected ----------------------------------------------------------------- */

static int expected_of(PyObject *source, int64_t start, int64_t end, int64_t *count, int *table)
{
    int64_t period, phase, margin, length, last, gap, mode, steady;
    if (kernel_get_number(source, NAME_steady, &steady))
        return -1;
    if (!steady) {
        if (kernel_get_number(source, NAME_last, &last) ||
            kernel_get_number(source, NAME_gap, &gap) ||
            kernel_get_number(source, NAME_mode, &mode) || far(last) || far(gap) || gap < 0)
            return -1;
        int64_t from = last > start ? last : start, window = end > from ? end - from : 0;
        int size = bits_of((uint64_t)((window << 3) / (gap + 1)));
        *count = 0;
        *table = (mode == GAP ? 12 : 24) + (size < 11 ? size : 11);
        return 0;
    }
    if (kernel_get_number(source, NAME_period, &period) ||
        kernel_get_number(source, NAME_phase, &phase) ||
        kernel_get_number(source, NAME_margin, &margin) ||
        kernel_get_number(source, NAME_burst_length, &length) || far(phase >> FRACTION) ||
        far(period) || period < 1)
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

/* ---- how many came ------------------------------------------------------------------------- */

static PyObject *lists_of(PyObject *args, PyObject **due, PyObject **expected, PyObject **third,
                          PyTypeObject *type)
{
    if (!PyArg_ParseTuple(args, "O!O!O!", &PyList_Type, due, &PyList_Type, expected, type, third))
        return NULL;
    if (PyList_GET_SIZE(*due) != PyList_GET_SIZE(*expected))
        return PyErr_Format(PyExc_ValueError, "a count for each source is needed");
    return *due;
}

/* Returns how many more readings each source has than expected; `wanted` has their times. */
PyObject *kernel_off_counts(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *due, *expected, *wanted;
    if (lists_of(args, &due, &expected, &wanted, &PyDict_Type) == NULL)
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(due), count;
    PyObject *out = PyList_New(n);
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        PyObject *times = PyDict_GetItemWithError(wanted, PyList_GET_ITEM(due, i));
        PyObject *number = NULL;
        if (!PyErr_Occurred() && !kernel_index(expected, i, &count))
            number = PyLong_FromSsize_t((times ? PyObject_Size(times) : 0) - count);
        if (number == NULL)
            Py_CLEAR(out);
        else
            PyList_SET_ITEM(out, i, number);
    }
    return out;
}

/* Returns 0 where a source with so many readings may stay awake, or -1 with an error set. */
static int note_silence(PyObject *source, Py_ssize_t expected)
{
    int64_t absent, steady;
    if (kernel_need_number(source, NAME_steady, &steady))
        return -1;
    if (expected <= 1 && steady)
        return 0;
    return kernel_need_number(source, NAME_absent, &absent)
               ? -1
               : kernel_set_number(source, NAME_absent, absent + 1);
}

/* Returns the places of the sources that have readings, and how many each has; notes the silence
 * of the others. */
PyObject *kernel_take_due(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *due, *expected, *steps;
    if (lists_of(args, &due, &expected, &steps, &PyList_Type) == NULL)
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(due), count;
    if (PyList_GET_SIZE(steps) != n)
        return PyErr_Format(PyExc_ValueError, "a step for each source is needed");
    PyObject *places = PyList_New(0), *counts = PyList_New(0);
    int failed = !places || !counts;
    for (Py_ssize_t i = 0; !failed && i < n; i++) {
        PyObject *source = PyList_GET_ITEM(due, i);
        int overflow;
        if (PyList_GET_ITEM(steps, i) == Py_None) {
            PyErr_SetString(PyExc_ValueError, "an escape in place of a count");
            failed = 1;
            break;
        }
        int64_t step = PyLong_AsLongLongAndOverflow(PyList_GET_ITEM(steps, i), &overflow);
        failed = PyErr_Occurred() || kernel_index(expected, i, &count);
        if (failed)
            break;
        if (step == -count) {
            failed = note_silence(source, count);
            continue;
        }
        if (overflow || step < -count || step > COUNT_MAX - count) {
            PyErr_SetString(PyExc_ValueError, "counts of readings that do not add up");
            failed = 1;
            break;
        }
        failed = kernel_append_new(places, PyLong_FromSsize_t(i)) ||
                 kernel_append_new(counts, PyLong_FromLongLong(count + step)) ||
                 kernel_set_number(source, NAME_absent, 0);
    }
    if (!failed)
        return Py_BuildValue("NN", places, counts);
    Py_XDECREF(places);
    Py_XDECREF(counts);
    return NULL;
}
