/* Payloads taken apart in C: the twins of shapes.py and planner.py. An encoder's affair.
 *
 * A source whose payloads all are of its known shape is planned here; every other one is given to
 * `other`, a function in Python that does the whole of it. What decides that is looked at before
 * anything is changed.
 */

#include "_kernel.h"

#include <string.h>

typedef struct {
    const char *at, *end;
} Text;

static int is_digit(char sign)
{
    return sign >= '0' && sign <= '9';
}

static int is_space(char sign)
{
    return sign == ' ' || (sign >= '\t' && sign <= '\r');
}

/* What neither ends a bare JSON scalar nor begins a string. */
static int is_bare(char sign)
{
    return !is_space(sign) && (sign == '\0' || strchr("\"[]{},:", sign) == NULL);
}

/* Goes to the quote that ends a string, or to where there is none. */
static void skip_string(Text *in)
{
    while (in->at < in->end && *in->at != '"') {
        if (*in->at != '\\') {
            in->at++;
        } else if (in->at + 1 < in->end) {
            in->at += 2;
        } else {
            return;
        }
    }
}

static void skip_bare(Text *in)
{
    while (in->at < in->end && is_bare(*in->at))
        in->at++;
}

static int take_digits(Text *in, int count)
{
    for (int i = 0; i < count; i++, in->at++)
        if (in->at >= in->end || !is_digit(*in->at))
            return 0;
    return 1;
}

static int take_sign(Text *in, const char *signs)
{
    if (in->at >= in->end || *in->at == '\0' || strchr(signs, *in->at) == NULL)
        return 0;
    in->at++;
    return 1;
}

static int take_many_digits(Text *in)
{
    const char *begin = in->at;
    while (in->at < in->end && is_digit(*in->at))
        in->at++;
    return in->at > begin;
}

/* Takes a point and digits, if both are there. */
static void take_fraction(Text *in)
{
    Text rest = *in;
    if (take_sign(&rest, ".") && take_many_digits(&rest))
        *in = rest;
}

static int take_clock(Text *in)
{
    return take_sign(in, ":") && take_digits(in, 2) && take_sign(in, ":") && take_digits(in, 2);
}

static int take_stamp(Text *in)
{
    if (!(take_digits(in, 4) && take_sign(in, "-") && take_digits(in, 2) && take_sign(in, "-") &&
          take_digits(in, 2) && take_sign(in, "T ") && take_digits(in, 2) && take_clock(in)))
        return 0;
    take_fraction(in);
    return 1;
}

static int take_number(Text *in)
{
    take_sign(in, "+-");
    if (!take_many_digits(in))
        return 0;
    take_fraction(in);
    Text rest = *in;
    if (take_sign(&rest, "eE")) {
        take_sign(&rest, "+-");
        if (take_many_digits(&rest))
            *in = rest;
    }
    return 1;
}

/* Takes a time stamp, a time of day or a number: the first of them that is there. */
static int take_value(Text *in)
{
    Text stamp = *in, clock = *in;
    if (take_stamp(&stamp)) {
        *in = stamp;
        return 1;
    }
    if (take_many_digits(&clock) && take_clock(&clock)) {
        *in = clock;
        return 1;
    }
    return take_number(in);
}

/* ---- one shape ----------------------------------------------------------------------------- */

static int take_slot(Text *in, const char *literal, Py_ssize_t size, int json)
{
    const char *begin = in->at;
    if (!json)
        return take_value(in);
    if (size > 0 && literal[size - 1] == '"') {
        skip_string(in);
        return 1;
    }
    skip_bare(in);
    return in->at > begin;
}

/* Returns the tokens of a payload of a known shape; NULL where it is of another, or on error. */
static PyObject *match(PyObject *payload, PyObject *fragments, int json)
{
    Py_ssize_t n = PyTuple_GET_SIZE(fragments);
    Text in = {PyBytes_AS_STRING(payload), NULL};
    in.end = in.at + PyBytes_GET_SIZE(payload);
    PyObject *tokens = n > 0 ? PyTuple_New(n - 1) : NULL;
    for (Py_ssize_t i = 0; tokens != NULL && i < n; i++) {
        PyObject *fragment = PyTuple_GET_ITEM(fragments, i), *token;
        if (!PyBytes_Check(fragment)) {
            PyErr_SetString(PyExc_TypeError, "bytes are needed");
            break;
        }
        const char *literal = PyBytes_AS_STRING(fragment), *begin;
        Py_ssize_t size = PyBytes_GET_SIZE(fragment);
        if (in.end - in.at < size || memcmp(in.at, literal, (size_t)size) != 0)
            break;
        begin = in.at += size;
        if (i == n - 1) {
            if (in.at < in.end)
                break;
            return tokens;
        }
        if (!take_slot(&in, literal, size, json) ||
            (token = PyBytes_FromStringAndSize(begin, in.at - begin)) == NULL)
            break;
        PyTuple_SET_ITEM(tokens, i, token);
    }
    Py_XDECREF(tokens);
    return NULL;
}

PyObject *kernel_match_shape(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *payload, *fragments;
    int json;
    if (!PyArg_ParseTuple(args, "O!pO!", &PyTuple_Type, &fragments, &json, &PyBytes_Type,
                          &payload))
        return NULL;
    PyObject *tokens = match(payload, fragments, json);
    if (tokens != NULL || PyErr_Occurred())
        return tokens;
    Py_RETURN_NONE;
}

/* ---- any JSON ------------------------------------------------------------------------------ */

/* Goes over what is between scalars; returns 1 at a scalar, 0 at the end, -1 at what is no JSON. */
static int skip_between(Text *in, int *keys)
{
    while (in->at < in->end) {
        if (*in->at != '"') {
            if (is_bare(*in->at))
                return 1;
            in->at++;
            continue;
        }
        Text key = {in->at + 1, in->end};
        skip_string(&key);
        if (key.at >= key.end || *key.at != '"')
            return -1;
        key.at++;
        while (key.at < key.end && is_space(*key.at))
            key.at++;
        if (key.at >= key.end || *key.at != ':')
            return 1;
        in->at = key.at;
        *keys = 1;
    }
    return 0;
}

static int append_slice(PyObject *list, const char *begin, const char *end)
{
    return kernel_append_new(list, PyBytes_FromStringAndSize(begin, end - begin));
}

/* Returns the fragments and tokens of JSON; None where it is none, or is for the twin to judge. */
PyObject *kernel_split_json(PyObject *self, PyObject *payload)
{
    (void)self;
    if (!PyBytes_Check(payload))
        return PyErr_Format(PyExc_TypeError, "bytes are needed");
    Text in = {PyBytes_AS_STRING(payload), NULL};
    in.end = in.at + PyBytes_GET_SIZE(payload);
    PyObject *fragments = PyList_New(0), *tokens = PyList_New(0), *out = NULL;
    const char *from = in.at;
    int failed = !fragments || !tokens, found = 0, keys = 0;
    while (!failed) {
        keys = 0;
        found = skip_between(&in, &keys);
        if (found <= 0)
            break;
        int string = *in.at == '"';
        const char *begin = in.at += string;
        if (string)
            skip_string(&in);
        else
            skip_bare(&in);
        failed = append_slice(fragments, from, begin) || append_slice(tokens, begin, in.at);
        from = in.at;
        in.at += string; /* the quote behind it */
    }
    if (!failed && found == 0 && !keys && PyList_GET_SIZE(tokens) &&
        !append_slice(fragments, from, in.end)) {
        PyObject *first = PyList_AsTuple(fragments);
        PyObject *second = first ? PyList_AsTuple(tokens) : NULL;
        out = second ? Py_BuildValue("NN", first, second) : NULL;
        if (second == NULL)
            Py_XDECREF(first);
    }
    Py_XDECREF(fragments);
    Py_XDECREF(tokens);
    if (out != NULL || PyErr_Occurred())
        return out;
    Py_RETURN_NONE;
}

/* ---- the sources of a batch ---------------------------------------------------------------- */

typedef struct {
    PyObject *times, *flags, *payloads, *properties; /* of the batch's readings */
    PyObject *templates, *room, *batch, *other;
    Py_ssize_t token_bytes, payload_bytes;
    long flag_properties;
    int64_t pending; /* readings planned here since `other` was called */
} Plan;

/* Returns the template a shape stands for if it is in the ring; NULL if not, or on error. */
static PyObject *template_of(PyObject *known, PyObject *templates)
{
    int64_t place;
    PyObject *plan = kernel_get(known, NAME_plan, NULL);
    PyObject *template = plan ? kernel_get(plan, NAME_template, NULL) : NULL;
    if (template == NULL || template == Py_None)
        return NULL;
    if (kernel_need_number(template, NAME_index, &place))
        return NULL;
    return kernel_item(templates, (Py_ssize_t)place) == template ? template : NULL;
}

/* Returns the tokens of a payload that is a slot alone; NULL where it is none, or on error. */
static PyObject *scalar(PyObject *payload, PyObject *known)
{
    PyObject *columns = kernel_get(known, NAME_columns, &PyList_Type);
    PyObject *first = columns ? kernel_item(columns, 0) : NULL;
    PyObject *column = first ? kernel_get(first, NAME_column, NULL) : NULL;
    if (column == NULL || column == Py_None)
        return NULL;
    PyObject *printer = kernel_get(column, NAME_printer, NULL);
    if (printer == NULL)
        return NULL;
    int fits;
    if (printer != Py_None) {
        PyObject *found =
            PyObject_CallMethodOneArg(printer, kernel_names[NAME_resembles], payload);
        fits = found ? PyObject_IsTrue(found) : -1;
        Py_XDECREF(found);
    } else {
        PyObject *texts = kernel_get(column, NAME_text_index, &PyDict_Type);
        fits = texts ? PyDict_Contains(texts, payload) : -1;
    }
    return fits > 0 ? PyTuple_Pack(1, payload) : NULL;
}

/* Returns 1 when no token is longer than allowed. */
static int has_room(const Plan *in, PyObject *tokens)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tokens); i++)
        if (PyBytes_GET_SIZE(PyTuple_GET_ITEM(tokens, i)) > in->token_bytes)
            return 0;
    return 1;
}

/* Returns a reading as it is to be coded; NULL where its payload is of another shape, or on
 * error. */
static PyObject *row_of(const Plan *in, PyObject *known, PyObject *pieces, int json,
                        PyObject *template, Py_ssize_t place)
{
    PyObject *payload = kernel_item(in->payloads, place);
    PyObject *flag = payload ? kernel_item(in->flags, place) : NULL;
    if (flag == NULL || !PyBytes_Check(payload) || PyBytes_GET_SIZE(payload) > in->payload_bytes)
        return NULL;
    long flags = PyLong_AsLong(flag);
    if (flags == -1 && PyErr_Occurred())
        return NULL;
    PyObject *block = flags & in->flag_properties ? kernel_item(in->properties, place) : NULL;
    if (block == NULL && (flags & in->flag_properties))
        return NULL;
    PyObject *tokens =
        pieces != Py_None ? match(payload, pieces, json) : scalar(payload, known);
    if (tokens == NULL)
        return NULL;
    if (PyBytes_GET_SIZE(payload) > in->token_bytes && !has_room(in, tokens)) {
        Py_DECREF(tokens);
        return NULL;
    }
    if (block == NULL)
        return Py_BuildValue("Oy#OON", flag, "", (Py_ssize_t)0, payload, template, tokens);
    return Py_BuildValue("OOOON", flag, block, payload, template, tokens);
}

/* Returns the readings of a source as they are to be coded; NULL where not all are of the known
 * shape, or on error. */
static PyObject *rows_of(const Plan *in, PyObject *known, PyObject *places)
{
    int64_t json;
    PyObject *pieces = kernel_get(known, NAME_pieces, NULL);
    PyObject *template = pieces ? template_of(known, in->templates) : NULL;
    if (template == NULL || kernel_need_number(known, NAME_json, &json) ||
        (pieces != Py_None && !PyTuple_Check(pieces)))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(places), place;
    PyObject *rows = PyList_New(n);
    for (Py_ssize_t i = 0; rows != NULL && i < n; i++) {
        PyObject *row = NULL;
        if (!kernel_index(places, i, &place))
            row = row_of(in, known, pieces, (int)json, template, place);
        if (row == NULL)
            Py_CLEAR(rows);
        else
            PyList_SET_ITEM(rows, i, row);
    }
    return rows;
}

static PyObject *times_of(const Plan *in, PyObject *places)
{
    Py_ssize_t n = PyList_GET_SIZE(places), place;
    PyObject *times = PyList_New(n);
    for (Py_ssize_t i = 0; times != NULL && i < n; i++) {
        PyObject *time = kernel_index(places, i, &place) ? NULL : kernel_item(in->times, place);
        if (time == NULL) {
            Py_CLEAR(times);
            break;
        }
        Py_INCREF(time);
        PyList_SET_ITEM(times, i, time);
    }
    return times;
}

static int add_number(PyObject *object, int name, int64_t more)
{
    int64_t number;
    return kernel_need_number(object, name, &number) ||
           kernel_set_number(object, name, number + more);
}

/* Lets a family keep the readings it wants to learn from. */
static int keep_samples(PyObject *view, PyObject *known, PyObject *family, PyObject *times,
                        PyObject *rows)
{
    PyObject *slots = kernel_get(known, NAME_slots, &PyDict_Type);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows); i++) {
        PyObject *samples = kernel_get(family, NAME_samples, &PyDict_Type);
        PyObject *wants = samples ? kernel_get(family, NAME_wants_sample, NULL) : NULL;
        int kept = wants == NULL || slots == NULL ? -1
                   : wants == Py_True             ? 1
                                                  : PyDict_Contains(samples, view);
        if (kept < 0)
            return -1;
        if (!kept)
            return 0;
        PyObject *tokens = PyTuple_GET_ITEM(PyList_GET_ITEM(rows, i), 4);
        PyObject *sample = PyTuple_Pack(3, PyList_GET_ITEM(times, i), slots, tokens);
        PyObject *done = sample ? PyObject_CallMethodObjArgs(
                                      family, kernel_names[NAME_keep_sample], view, sample, NULL)
                                : NULL;
        Py_XDECREF(sample);
        Py_XDECREF(done);
        if (done == NULL)
            return -1;
    }
    return 0;
}

/* Keeps the times of a source that are not predicted well. */
static int keep_times(const Plan *in, PyObject *view, PyObject *source, PyObject *times)
{
    int64_t steady, index;
    PyObject *kept = kernel_get(view, NAME_times, NULL), *done;
    if (kept == NULL || kernel_need_number(source, NAME_steady, &steady) ||
        kernel_need_number(source, NAME_index, &index))
        return -1;
    if (steady) {
        Py_ssize_t size = PyObject_Size(kept);
        if (size <= 0)
            return (int)size;
        done = PyObject_CallMethodNoArgs(kept, kernel_names[NAME_clear]);
        Py_XDECREF(done);
        return done ? 0 : -1;
    }
    done = PyObject_CallMethodOneArg(kept, kernel_names[NAME_extend], times);
    Py_XDECREF(done);
    if (done == NULL || add_number(view, NAME_readings, PyList_GET_SIZE(times)))
        return -1;
    PyObject *views = kernel_get(in->batch, NAME_views, &PyList_Type);
    return index < 0 ? 0 : views ? PyList_Append(views, view) : -1;
}

/* Adds a source's readings to the batch; gives up `rows` and `times`. */
static int add_to_batch(const Plan *in, PyObject *source, PyObject *places, PyObject *times,
                        PyObject *rows)
{
    PyObject *arrivals = kernel_get(in->batch, NAME_arrivals, &PyList_Type);
    PyObject *by_source = arrivals ? kernel_get(in->batch, NAME_rows, &PyDict_Type) : NULL;
    PyObject *order = by_source ? kernel_get(in->batch, NAME_order, &PyList_Type) : NULL;
    PyObject *pair = order ? PyTuple_Pack(2, source, times) : NULL;
    int failed = pair == NULL || PyList_Append(arrivals, pair) ||
                 PyDict_SetItem(by_source, source, rows) || PyList_Append(order, places);
    Py_XDECREF(pair);
    return failed ? -1 : 0;
}

/* Returns 1 when a source was planned, 0 where `other` is to do it, -1 on error. */
static int plan_source(Plan *in, PyObject *view, PyObject *places)
{
    int64_t cells;
    PyObject *known = kernel_get(view, NAME_known, NULL);
    if (known == NULL || known == Py_None)
        return known ? 0 : -1;
    PyObject *fresh = kernel_get(known, NAME_fresh, NULL);
    PyObject *family = fresh ? kernel_get(known, NAME_family, NULL) : NULL;
    PyObject *members = family ? kernel_get(family, NAME_members, &PySet_Type) : NULL;
    PyObject *source = members ? kernel_get(view, NAME_source, NULL) : NULL;
    PyObject *columns = source ? kernel_get(known, NAME_columns, &PyList_Type) : NULL;
    if (columns == NULL || kernel_need_number(in->room, NAME_batch_cells, &cells))
        return -1;
    Py_ssize_t n = PyList_GET_SIZE(places);
    int64_t needed = (int64_t)PyList_GET_SIZE(columns) * n;
    int member = PySet_Contains(members, source);
    if (fresh == Py_True || member <= 0 || cells < needed)
        return member < 0 ? -1 : 0;
    PyObject *rows = rows_of(in, known, places);
    if (rows == NULL)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *times = times_of(in, places);
    int failed = times == NULL || kernel_set_number(in->room, NAME_batch_cells, cells - needed) ||
                 keep_times(in, view, source, times) ||
                 keep_samples(view, known, family, times, rows) ||
                 add_number(known, NAME_uses, n) || add_number(family, NAME_readings, n) ||
                 add_to_batch(in, source, places, times, rows);
    Py_XDECREF(times);
    Py_DECREF(rows);
    in->pending += n;
    return failed ? -1 : 1;
}

/* Plans the sources of a batch in order; returns how many readings were planned without `other`
 * since it was called last. */
PyObject *kernel_plan_sources(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *pairs, *view, *places;
    Plan in = {0};
    if (!PyArg_ParseTuple(args, "O!(O!O!O!O!)O!OO(nn)lO", &PyList_Type, &pairs, &PyList_Type,
                          &in.times, &PyList_Type, &in.flags, &PyList_Type, &in.payloads,
                          &PyList_Type, &in.properties, &PyList_Type, &in.templates, &in.room,
                          &in.batch, &in.token_bytes, &in.payload_bytes, &in.flag_properties,
                          &in.other))
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pairs); i++) {
        PyObject *pair = PyList_GET_ITEM(pairs, i);
        if (!PyTuple_Check(pair) || !PyArg_ParseTuple(pair, "OO!", &view, &PyList_Type, &places))
            return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "a tuple is needed");
        int done = plan_source(&in, view, places);
        if (done < 0)
            return NULL;
        if (done)
            continue;
        PyObject *found = PyObject_CallFunction(in.other, "OOL", view, places,
                                                (long long)in.pending);
        if (found == NULL)
            return NULL;
        Py_DECREF(found);
        in.pending = 0;
    }
    return PyLong_FromLongLong(in.pending);
}
