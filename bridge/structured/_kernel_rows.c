/* Readings in C: docs/link-format-structured.md section 6.2, the twins of rows.py and assembly.py.
 *
 * A reading whose head says "as expected", of a source and template that have an instance, is done
 * here; every other one is given to `other`, a function in Python that does the whole of it. What
 * decides that is looked at before anything is changed.
 */

#include "_kernel.h"

#include <string.h>

#define SEEN_MAX 64 /* successors of templates that a source remembers */

enum { PLAIN, SAME_AS_BEFORE, MASKED };

/* What of a template and its family's rows the readings of a batch use again and again. */
typedef struct {
    PyObject *template, *rows; /* NULL: nothing is known */
    PyObject *family_index, *tokens, *columns;
    PyObject *hot, *hot_columns, *cold, *cold_columns; /* tuples */
    PyObject *row_cells, *row_times, *row_templates, *row_hot, *layouts;
    int64_t literal_bytes;
} Use;

/* Returns 1 when rows of `template` can be noted, 0 when Python is to do it, -1 on error. */
static int take_up(Use *of, PyObject *template, PyObject *gathered)
{
    if (of->template == template)
        return 1;
    of->template = NULL;
    int64_t version, family_version;
    PyObject *family = kernel_get(template, NAME_family, NULL);
    if (family == NULL || kernel_need_number(template, NAME_version, &version) ||
        kernel_need_number(family, NAME_version, &family_version))
        return -1;
    if (version != family_version)
        return 0;
    of->family_index = kernel_get(family, NAME_index, NULL);
    of->rows = of->family_index ? PyDict_GetItemWithError(gathered, of->family_index) : NULL;
    if (of->rows == NULL)
        return PyErr_Occurred() ? -1 : 0;
    if ((of->tokens = kernel_get(family, NAME_tokens, &PyList_Type)) == NULL ||
        (of->columns = kernel_get(template, NAME_columns, &PyTuple_Type)) == NULL ||
        (of->hot = kernel_get(template, NAME_hot, &PyTuple_Type)) == NULL ||
        (of->hot_columns = kernel_get(template, NAME_hot_columns, &PyTuple_Type)) == NULL ||
        (of->cold = kernel_get(template, NAME_cold, &PyTuple_Type)) == NULL ||
        (of->cold_columns = kernel_get(template, NAME_cold_columns, &PyTuple_Type)) == NULL ||
        (of->row_cells = kernel_get(of->rows, NAME_cells, &PyList_Type)) == NULL ||
        (of->row_times = kernel_get(of->rows, NAME_times, &PyList_Type)) == NULL ||
        (of->row_templates = kernel_get(of->rows, NAME_templates, &PyList_Type)) == NULL ||
        (of->row_hot = kernel_get(of->rows, NAME_hot, &PyList_Type)) == NULL ||
        (of->layouts = kernel_get(of->rows, NAME_layouts, &PyDict_Type)) == NULL ||
        kernel_need_number(template, NAME_literal_bytes, &of->literal_bytes))
        return -1;
    of->template = template;
    return 1;
}

/* Returns the template a source's next reading is expected to have, its number in `*number`; NULL
 * where there is none, or with an error set. */
static PyObject *expected(PyObject *source, PyObject *templates, PyObject **number)
{
    PyObject *last = kernel_get(source, NAME_template, NULL);
    PyObject *after = last ? kernel_get(source, NAME_after, &PyDict_Type) : NULL;
    PyObject *next = after ? PyDict_GetItemWithError(after, last) : NULL;
    if (after == NULL || (next == NULL && PyErr_Occurred()))
        return NULL;
    *number = next ? next : last;
    Py_ssize_t place = PyLong_AsSsize_t(*number);
    if (place < 0)
        return NULL;
    PyObject *template = kernel_item(templates, place);
    return template == Py_None ? NULL : template;
}

/* Remembers the template a source's reading had, and what followed which. */
static int note_template(PyObject *source, PyObject *number)
{
    PyObject *last = kernel_get(source, NAME_template, NULL);
    PyObject *after = last ? kernel_get(source, NAME_after, &PyDict_Type) : NULL;
    if (after == NULL)
        return -1;
    if (last == number && PyDict_GET_SIZE(after) == 0)
        return 0;
    Py_INCREF(number); /* it may be what the dictionary alone holds */
    if (PyDict_GET_SIZE(after) > SEEN_MAX)
        PyDict_Clear(after);
    int failed = PyDict_SetItem(after, last, number) || kernel_set(source, NAME_template, number);
    Py_DECREF(number);
    return failed ? -1 : 0;
}

/* Returns the source's instance in the family, -1 where it has none, or with an error set. */
static Py_ssize_t cell_of(PyObject *source, const Use *of, PyObject **cell)
{
    PyObject *instances = kernel_get(source, NAME_instances, &PyDict_Type);
    *cell = instances ? PyDict_GetItemWithError(instances, of->family_index) : NULL;
    return *cell ? PyLong_AsSsize_t(*cell) : -1;
}

/* Notes a row; its number is the count of those before. */
static int add_row(const Use *of, PyObject *cell, PyObject *time)
{
    Py_ssize_t n = PyList_GET_SIZE(of->row_templates);
    if ((n == 0 || PyList_GET_ITEM(of->row_templates, n - 1) != of->template) &&
        PyDict_SetItem(of->layouts, of->hot_columns, Py_None))
        return -1;
    return PyList_Append(of->row_cells, cell) || PyList_Append(of->row_times, time) ||
                   PyList_Append(of->row_templates, of->template)
               ? -1
               : 0;
}

static PyObject *picked(PyObject *tokens, PyObject *slots)
{
    Py_ssize_t n = PyTuple_GET_SIZE(slots);
    PyObject *out = PyTuple_New(n);
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        PyObject *token = PyTuple_GET_ITEM(tokens, PyLong_AsSsize_t(PyTuple_GET_ITEM(slots, i)));
        Py_INCREF(token); /* the slots were checked by kernel_as_before */
        PyTuple_SET_ITEM(out, i, token);
    }
    return out;
}

/* ---- encoding ------------------------------------------------------------------------------ */

typedef struct {
    PyObject *templates, *gathered, *other;
    PyObject *io, *lengths; /* a writer or reader, and the table of lengths */
    PyObject *put, *plain;  /* of a writer */
    long flag_properties;
} Batch;

/* Returns 1 when flags and properties are those of the source's last reading. */
static int plain_meta(const Batch *in, PyObject *source, PyObject *row)
{
    long flags = PyLong_AsLong(PyTuple_GET_ITEM(row, 0));
    int64_t last;
    if ((flags == -1 && PyErr_Occurred()) || kernel_need_number(source, NAME_flags, &last))
        return -1;
    if (flags != last)
        return 0;
    if (!(flags & in->flag_properties))
        return 1;
    PyObject *block = kernel_get(source, NAME_block, NULL);
    return block ? kernel_equal_bytes(block, PyTuple_GET_ITEM(row, 1)) : -1;
}

/* Returns the tokens an instance had, `tokens` being as many as the template's slots. */
static PyObject *tokens_before(const Use *of, Py_ssize_t cell, PyObject *tokens)
{
    PyObject *before = kernel_item(of->tokens, cell);
    if (before != NULL && PyList_Check(before) && PyTuple_Check(tokens) &&
        PyTuple_GET_SIZE(tokens) == PyTuple_GET_SIZE(of->columns))
        return before;
    if (!PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "tokens that are not those of the template");
    return NULL;
}

/* Notes the tokens of a reading that is no repetition; returns the cold columns it changes, as a
 * list. */
static PyObject *note_tokens(Use *of, PyObject *cell, PyObject *time, PyObject *tokens,
                             PyObject *before, int cold_as_before)
{
    Py_ssize_t row = PyList_GET_SIZE(of->row_cells);
    PyObject *changed =
        cold_as_before ? PyList_New(0)
                       : kernel_changes(of->rows, tokens, of->cold, before, of->cold_columns, row);
    PyObject *hot = changed ? picked(tokens, of->hot) : NULL;
    int failed = hot == NULL || add_row(of, cell, time) || PyList_Append(of->row_hot, hot);
    Py_XDECREF(hot);
    for (Py_ssize_t i = 0; !failed && i < PyTuple_GET_SIZE(tokens); i++) {
        Py_ssize_t column = PyLong_AsSsize_t(PyTuple_GET_ITEM(of->columns, i));
        failed = kernel_item(before, column) == NULL;
        if (!failed)
            kernel_put_item(before, column, PyTuple_GET_ITEM(tokens, i));
    }
    if (failed)
        Py_CLEAR(changed);
    return changed;
}

/* Notes what of a reading is to be coded: the twin of `_note_changes`. */
PyObject *kernel_note_changes(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *gathered, *template, *cell, *time, *tokens;
    Use of = {0};
    if (!PyArg_ParseTuple(args, "O!OOOO!", &PyDict_Type, &gathered, &template, &cell, &time,
                          &PyTuple_Type, &tokens))
        return NULL;
    Py_ssize_t place = PyLong_AsSsize_t(cell);
    if (PyErr_Occurred())
        return NULL;
    int known = take_up(&of, template, gathered);
    if (known <= 0)
        return known ? NULL : PyErr_Format(PyExc_ValueError, "a template that is not prepared");
    PyObject *before = tokens_before(&of, place, tokens);
    int cold = before ? kernel_as_before(tokens, of.cold, before, of.cold_columns) : -1;
    int hot = cold < 0 ? -1 : kernel_as_before(tokens, of.hot, before, of.hot_columns);
    if (hot < 0)
        return NULL;
    if (cold && hot)
        return Py_BuildValue("i()", SAME_AS_BEFORE);
    PyObject *changed = note_tokens(&of, cell, time, tokens, before, cold);
    PyObject *mask = changed ? PyList_AsTuple(changed) : NULL;
    Py_XDECREF(changed);
    return mask ? Py_BuildValue("iN", PyTuple_GET_SIZE(mask) ? MASKED : PLAIN, mask) : NULL;
}

/* Returns the head of a reading, its tokens noted; -2 where `other` is to do it, -1 on error. */
static int note_row(const Batch *in, Use *of, PyObject *source, PyObject *time, PyObject *row)
{
    PyObject *number, *cell, *wanted = PyTuple_GET_ITEM(row, 3), *tokens = PyTuple_GET_ITEM(row, 4);
    PyObject *template = expected(source, in->templates, &number);
    if (template == NULL || template != wanted)
        return PyErr_Occurred() ? -1 : -2;
    int plain = plain_meta(in, source, row);
    int known = plain > 0 ? take_up(of, template, in->gathered) : plain;
    if (known <= 0)
        return known < 0 ? -1 : -2;
    Py_ssize_t place = cell_of(source, of, &cell);
    if (place < 0)
        return PyErr_Occurred() ? -1 : -2;
    PyObject *before = tokens_before(of, place, tokens);
    if (before == NULL)
        return -1;
    int cold = kernel_as_before(tokens, of->cold, before, of->cold_columns);
    int hot = cold < 0 ? -1 : kernel_as_before(tokens, of->hot, before, of->hot_columns);
    if (hot < 0 || note_template(source, number))
        return -1;
    if (cold && hot)
        return SAME_AS_BEFORE;
    PyObject *family = kernel_get(of->template, NAME_family, NULL);
    PyObject *changed = family ? note_tokens(of, cell, time, tokens, before, cold) : NULL;
    if (changed == NULL)
        return -1;
    int masked = PyList_GET_SIZE(changed) > 0;
    int failed =
        masked && kernel_write_mask(in->put, in->plain, in->lengths, family, changed) < 0;
    Py_DECREF(changed);
    return failed ? -1 : masked ? MASKED : PLAIN;
}

static int note_rows_of(const Batch *in, Use *of, PyObject *arrival, PyObject *rows,
                        PyObject *heads)
{
    PyObject *source, *times;
    if (!PyTuple_Check(arrival) ||
        !PyArg_ParseTuple(arrival, "OO!", &source, &PyList_Type, &times) || !PyList_Check(rows) ||
        PyList_GET_SIZE(rows) != PyList_GET_SIZE(times)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a reading for each time is needed");
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(rows) && i < PyList_GET_SIZE(times); i++) {
        PyObject *row = PyList_GET_ITEM(rows, i), *time = PyList_GET_ITEM(times, i);
        if (!PyTuple_Check(row) || PyTuple_GET_SIZE(row) != 5) {
            PyErr_SetString(PyExc_TypeError, "a reading is of five parts");
            return -1;
        }
        int head = note_row(in, of, source, time, row);
        if (head == -1)
            return -1;
        if (head >= 0) {
            if (kernel_append_new(heads, PyLong_FromLong(head)))
                return -1;
            continue;
        }
        of->template = NULL; /* Python may change what is known of it */
        PyObject *found = PyObject_CallFunctionObjArgs(in->other, source, time, row, NULL);
        int failed = found == NULL || PyList_Append(heads, found);
        Py_XDECREF(found);
        if (failed)
            return -1;
    }
    return 0;
}

/* Returns the heads of all readings, the tokens of those not done by `other` being noted. */
PyObject *kernel_note_rows(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *arrivals, *plans;
    Batch in;
    Use of = {0};
    if (!PyArg_ParseTuple(args, "OOO!O!O!O!lO", &in.io, &in.lengths, &PyList_Type, &in.templates,
                          &PyList_Type, &arrivals, &PyList_Type, &plans, &PyDict_Type,
                          &in.gathered, &in.flag_properties, &in.other) ||
        (in.put = kernel_get(in.io, NAME_spans, &PyList_Type)) == NULL ||
        (in.plain = kernel_get(in.io, NAME_plain, &PyByteArray_Type)) == NULL)
        return NULL;
    if (PyList_GET_SIZE(arrivals) != PyList_GET_SIZE(plans))
        return PyErr_Format(PyExc_ValueError, "readings for each source are needed");
    PyObject *heads = PyList_New(0);
    for (Py_ssize_t i = 0; heads && i < PyList_GET_SIZE(arrivals) && i < PyList_GET_SIZE(plans);
         i++)
        if (note_rows_of(&in, &of, PyList_GET_ITEM(arrivals, i), PyList_GET_ITEM(plans, i), heads))
            Py_CLEAR(heads);
    return heads;
}

/* ---- decoding ------------------------------------------------------------------------------ */

typedef struct {
    PyObject *flags, *blocks, *payloads, *placed, *budget; /* what is made */
    PyObject *nothing;                                     /* b"" */
} Made;

/* Takes what a row needs from the budget; returns 1, 0 where there is not so much, -1 on error. */
static int take(PyObject *budget, int64_t cells, int64_t size)
{
    int64_t cells_left, bytes_left;
    if (kernel_need_number(budget, NAME_cells, &cells_left) ||
        kernel_need_number(budget, NAME_bytes, &bytes_left))
        return -1;
    if (cells_left < cells || bytes_left < size)
        return 0;
    if (cells && kernel_set_number(budget, NAME_cells, cells_left - cells))
        return -1;
    return kernel_set_number(budget, NAME_bytes, bytes_left - size) ? -1 : 1;
}

/* Reads which cold columns of an instance a row changes. */
static int read_mask(const Batch *in, const Use *of, Py_ssize_t cell, Py_ssize_t row)
{
    PyObject *family = kernel_get(of->template, NAME_family, NULL);
    PyObject *tokens = family ? kernel_item(of->tokens, cell) : NULL;
    return tokens == NULL || kernel_read_mask(in->io, in->lengths, of->rows, family,
                                              of->cold_columns, tokens, row)
               ? -1
               : 0;
}

/* Returns 1 where an instance has a token in each column of the template, 0 or -1 otherwise. */
static int is_complete(const Use *of, Py_ssize_t cell)
{
    PyObject *tokens = kernel_item(of->tokens, cell);
    for (Py_ssize_t i = 0; tokens != NULL && i < PyTuple_GET_SIZE(of->columns); i++) {
        PyObject *token =
            kernel_item(tokens, PyLong_AsSsize_t(PyTuple_GET_ITEM(of->columns, i)));
        if (token == NULL || token == Py_None)
            return token ? 0 : -1;
    }
    return tokens ? 1 : -1;
}

/* Places a reading whose payload is to be made; returns 1, 0 where `other` is to do it, or -1. */
static int place_row(const Batch *in, Use *of, const Made *out, PyObject *source, PyObject *time,
                     long head)
{
    PyObject *number, *cell;
    int64_t index, flags;
    if (head != PLAIN && head != SAME_AS_BEFORE && head != MASKED)
        return 0;
    PyObject *template = expected(source, in->templates, &number);
    if (template == NULL)
        return PyErr_Occurred() ? -1 : 0;
    int known = take_up(of, template, in->gathered);
    if (known <= 0)
        return known;
    if (kernel_need_number(source, NAME_index, &index) ||
        kernel_need_number(source, NAME_flags, &flags))
        return -1;
    Py_ssize_t place = index < 0 ? -1 : cell_of(source, of, &cell);
    if (place < 0)
        return PyErr_Occurred() ? -1 : 0;
    int complete = is_complete(of, place);
    int taken = complete > 0 ? take(out->budget, PyTuple_GET_SIZE(of->columns), of->literal_bytes)
                             : complete;
    if (taken <= 0)
        return taken;
    PyObject *block = flags & in->flag_properties ? kernel_get(source, NAME_block, &PyBytes_Type)
                                                  : out->nothing;
    PyObject *last = kernel_get(source, NAME_flags, NULL);
    long row = head == SAME_AS_BEFORE ? -1 : (long)PyList_GET_SIZE(of->row_cells);
    if (block == NULL || last == NULL || note_template(source, number) ||
        (row >= 0 && add_row(of, cell, time)) ||
        (head == MASKED && read_mask(in, of, place, row)) || PyList_Append(out->flags, last) ||
        PyList_Append(out->blocks, block))
        return -1;
    PyObject *entry = Py_BuildValue("nOOOl", PyList_GET_SIZE(out->payloads), of->rows, template,
                                    cell, row);
    int failed = entry == NULL || PyList_Append(out->placed, entry) ||
                 PyList_Append(out->payloads, out->nothing);
    Py_XDECREF(entry);
    return failed ? -1 : 1;
}

static int place_rows_of(const Batch *in, Use *of, const Made *out, PyObject *arrival,
                         PyObject *heads, Py_ssize_t *next)
{
    PyObject *source, *times;
    if (!PyTuple_Check(arrival) ||
        !PyArg_ParseTuple(arrival, "OO!", &source, &PyList_Type, &times)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "a source and its times are needed");
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(times); i++) {
        PyObject *head = kernel_item(heads, (*next)++), *time = PyList_GET_ITEM(times, i);
        long kind = head ? PyLong_AsLong(head) : -1;
        if (kind == -1 && PyErr_Occurred())
            return -1;
        int done = place_row(in, of, out, source, time, kind);
        if (done < 0)
            return -1;
        if (done)
            continue;
        of->template = NULL;
        PyObject *found = PyObject_CallFunctionObjArgs(in->other, source, time, head, NULL);
        if (found == NULL)
            return -1;
        Py_DECREF(found);
    }
    return 0;
}

/* Places all readings of a batch: makes room for their payloads, and notes what those will need. */
PyObject *kernel_place_rows(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *arrivals, *heads, *decoded;
    Batch in;
    Made out;
    Use of = {0};
    if (!PyArg_ParseTuple(args, "OOO!O!O!O!lOO!OO", &in.io, &in.lengths, &PyList_Type,
                          &in.templates, &PyList_Type, &arrivals, &PyList_Type, &heads,
                          &PyDict_Type, &in.gathered, &in.flag_properties, &decoded, &PyList_Type,
                          &out.placed, &out.budget, &in.other))
        return NULL;
    out.flags = kernel_get(decoded, NAME_flags, &PyList_Type);
    out.blocks = out.flags ? kernel_get(decoded, NAME_blocks, &PyList_Type) : NULL;
    out.payloads = out.blocks ? kernel_get(decoded, NAME_payloads, &PyList_Type) : NULL;
    out.nothing = out.payloads ? PyBytes_FromStringAndSize(NULL, 0) : NULL;
    if (out.nothing == NULL)
        return NULL;
    Py_ssize_t next = 0;
    int failed = 0;
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(arrivals); i++)
        failed = place_rows_of(&in, &of, &out, PyList_GET_ITEM(arrivals, i), heads, &next);
    Py_DECREF(out.nothing);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

/* ---- payloads ------------------------------------------------------------------------------ */

/* Puts the tokens of a row, if it has some of its own, among those of its instance. */
static int bring_up(PyObject *tokens, PyObject *columns, PyObject *hot, PyObject *changes)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(columns); i++) {
        Py_ssize_t column = PyLong_AsSsize_t(PyTuple_GET_ITEM(columns, i));
        if (kernel_item(tokens, column) == NULL)
            return -1;
        kernel_put_item(tokens, column, PyTuple_GET_ITEM(hot, i));
    }
    for (Py_ssize_t i = 0; changes != NULL && i < PyList_GET_SIZE(changes); i++) {
        PyObject *token, *change = PyList_GET_ITEM(changes, i);
        Py_ssize_t column;
        if (!PyTuple_Check(change) ||
            !PyArg_ParseTuple(change, "nO!", &column, &PyBytes_Type, &token) ||
            kernel_item(tokens, column) == NULL)
            return -1;
        kernel_put_item(tokens, column, token);
    }
    return 0;
}

static int update(PyObject *rows, PyObject *template, PyObject *tokens, PyObject *number)
{
    Py_ssize_t row = PyLong_AsSsize_t(number);
    if (row < 0)
        return PyErr_Occurred() ? -1 : 0;
    PyObject *columns = kernel_get(template, NAME_hot_columns, &PyTuple_Type), *hot = columns;
    PyObject *changes = columns ? kernel_get(rows, NAME_changes, &PyDict_Type) : NULL;
    if (changes == NULL)
        return -1;
    if (PyTuple_GET_SIZE(columns)) {
        PyObject *all = kernel_get(rows, NAME_hot, &PyList_Type);
        hot = all ? kernel_item(all, row) : NULL;
        if (hot == NULL)
            return -1;
        if (!PyTuple_Check(hot) || PyTuple_GET_SIZE(hot) != PyTuple_GET_SIZE(columns)) {
            PyErr_SetString(PyExc_ValueError, "a row of other columns");
            return -1;
        }
    }
    PyObject *changed = PyDict_GetItemWithError(changes, number);
    if ((changed == NULL && PyErr_Occurred()) || (changed != NULL && !PyList_Check(changed)))
        return -1;
    return bring_up(tokens, columns, hot, changed);
}

/* Returns literals with tokens between; NULL without an error where the budget is too small. */
static PyObject *joined(PyObject *literals, PyObject *columns, PyObject *tokens, PyObject *budget)
{
    Py_ssize_t n = PyTuple_GET_SIZE(columns), size = 0;
    if (PyList_GET_SIZE(literals) != n + 1)
        return PyErr_Format(PyExc_ValueError, "literals that are not those of the template");
    for (Py_ssize_t i = 0; i <= n; i++) {
        PyObject *literal = PyList_GET_ITEM(literals, i), *token = literal;
        if (i < n)
            token = kernel_item(tokens, PyLong_AsSsize_t(PyTuple_GET_ITEM(columns, i)));
        if (token == NULL)
            return NULL;
        if (!PyBytes_Check(literal) || !PyBytes_Check(token))
            return PyErr_Format(PyExc_TypeError, "bytes are needed");
        size += PyBytes_GET_SIZE(literal) + (i < n ? PyBytes_GET_SIZE(token) : 0);
    }
    if (take(budget, 0, size) <= 0)
        return NULL;
    PyObject *out = PyBytes_FromStringAndSize(NULL, size);
    char *at = out ? PyBytes_AS_STRING(out) : NULL;
    for (Py_ssize_t i = 0; at != NULL && i <= n; i++) {
        PyObject *literal = PyList_GET_ITEM(literals, i);
        memcpy(at, PyBytes_AS_STRING(literal), PyBytes_GET_SIZE(literal));
        at += PyBytes_GET_SIZE(literal);
        if (i == n)
            break;
        PyObject *token =
            PyList_GET_ITEM(tokens, PyLong_AsSsize_t(PyTuple_GET_ITEM(columns, i)));
        memcpy(at, PyBytes_AS_STRING(token), PyBytes_GET_SIZE(token));
        at += PyBytes_GET_SIZE(token);
    }
    return out;
}

/* Returns a framed payload; NULL without an error where the budget is too small. */
static PyObject *framed(PyObject *template, PyObject *columns, PyObject *tokens, PyObject *budget)
{
    Py_ssize_t n = PyTuple_GET_SIZE(columns);
    PyObject *frames = kernel_get(template, NAME_frames, &PyList_Type);
    if (frames == NULL || PyList_GET_SIZE(frames) != n + 1)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "frames of another form");
    PyObject **some = PyMem_New(PyObject *, n + 1), *out = NULL;
    if (some == NULL)
        return PyErr_NoMemory();
    int failed = 0;
    for (Py_ssize_t i = 0; !failed && i < n; i++) {
        some[i] = kernel_item(tokens, PyLong_AsSsize_t(PyTuple_GET_ITEM(columns, i)));
        failed = some[i] == NULL || !PyBytes_Check(some[i]);
    }
    if (!failed)
        out = kernel_framed(frames, some);
    else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "bytes are needed");
    PyMem_Free(some);
    if (out != NULL && take(budget, 0, PyBytes_GET_SIZE(out)) <= 0)
        Py_CLEAR(out);
    return out;
}

/* Returns the payload of what was placed: its template with its instance's tokens as by then. */
static PyObject *payload_of(PyObject *entry, PyObject *budget, PyObject *other, Py_ssize_t *place)
{
    PyObject *rows, *template, *cell, *number;
    if (!PyTuple_Check(entry) ||
        !PyArg_ParseTuple(entry, "nOOOO", place, &rows, &template, &cell, &number))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "a tuple is needed");
    PyObject *family = kernel_get(rows, NAME_family, NULL);
    PyObject *all = family ? kernel_get(family, NAME_tokens, &PyList_Type) : NULL;
    PyObject *tokens = all ? kernel_item(all, PyLong_AsSsize_t(cell)) : NULL;
    if (tokens == NULL || update(rows, template, tokens, number) < 0)
        return NULL;
    PyObject *columns = kernel_get(template, NAME_columns, &PyTuple_Type);
    PyObject *literals = columns ? kernel_get(template, NAME_literals, &PyList_Type) : NULL;
    if (literals == NULL)
        return NULL;
    PyObject *out = PyList_GET_SIZE(literals) ? joined(literals, columns, tokens, budget)
                                              : framed(template, columns, tokens, budget);
    if (out == NULL && !PyErr_Occurred()) /* larger than allowed */
        out = PyObject_CallFunctionObjArgs(other, template, tokens, NULL);
    return out;
}

/* Makes the payloads of what was placed, in order. */
PyObject *kernel_put_together(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *payloads, *placed, *budget, *other;
    if (!PyArg_ParseTuple(args, "O!O!OO", &PyList_Type, &payloads, &PyList_Type, &placed, &budget,
                          &other))
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(placed); i++) {
        Py_ssize_t place;
        PyObject *payload = payload_of(PyList_GET_ITEM(placed, i), budget, other, &place);
        if (payload == NULL)
            return NULL;
        if (kernel_item(payloads, place) == NULL) {
            Py_DECREF(payload);
            return NULL;
        }
        kernel_put_item(payloads, place, payload);
        Py_DECREF(payload);
    }
    Py_RETURN_NONE;
}
