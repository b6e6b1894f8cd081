/* Cold columns that change, in C: docs/link-format-structured.md section 6.2, the twins of
 * `_note_changes` in rows.py and of `code_mask` in heads.py.
 */

#include "_kernel.h"

#define MASKS 63 /* sets of changed columns a family remembers */

/* Returns 1 when the tokens at `slots` are those at `columns` of `before`, 0 when not, -1 on
 * error. */
int kernel_as_before(PyObject *tokens, PyObject *slots, PyObject *before, PyObject *columns)
{
    Py_ssize_t n = PyTuple_GET_SIZE(slots);
    if (PyTuple_GET_SIZE(columns) != n) {
        PyErr_SetString(PyExc_ValueError, "slots that are not those of the columns");
        return -1;
    }
    int same = 1;
    for (Py_ssize_t i = 0; i < n; i++) {
        Py_ssize_t slot = PyLong_AsSsize_t(PyTuple_GET_ITEM(slots, i));
        PyObject *old = kernel_item(before, PyLong_AsSsize_t(PyTuple_GET_ITEM(columns, i)));
        if (old == NULL)
            return -1;
        if (slot < 0 || slot >= PyTuple_GET_SIZE(tokens)) {
            PyErr_SetString(PyExc_IndexError, "a slot past the tokens");
            return -1;
        }
        same = same && kernel_equal_bytes(PyTuple_GET_ITEM(tokens, slot), old);
    }
    return same;
}

/* ---- encoding ------------------------------------------------------------------------------ */

/* Returns the rows and tokens of a column, two lists that are made if they are not there. */
PyObject *kernel_lists_of(PyObject *by, PyObject *column)
{
    PyObject *found = PyDict_GetItemWithError(by, column);
    if (found == NULL && !PyErr_Occurred()) {
        PyObject *made = Py_BuildValue("([][])");
        int failed = made == NULL || PyDict_SetItem(by, column, made);
        Py_XDECREF(made); /* the dictionary keeps it */
        found = failed ? NULL : made;
    }
    if (found == NULL || (PyTuple_Check(found) && PyTuple_GET_SIZE(found) == 2))
        return found;
    return PyErr_Format(PyExc_TypeError, "two lists are needed");
}

/* Notes that a cold column is coded in `row`. */
static int add_extra(PyObject *extra, PyObject *row, PyObject *column, PyObject *token)
{
    PyObject *entry = kernel_lists_of(extra, column);
    return entry == NULL || PyList_Append(PyTuple_GET_ITEM(entry, 0), row) ||
                   PyList_Append(PyTuple_GET_ITEM(entry, 1), token)
               ? -1
               : 0;
}

/* Notes the cold columns that a row changes, or that had no token; returns those that had one, as
 * a list. All slots and columns were checked by `kernel_as_before`. */
PyObject *kernel_changes(PyObject *rows, PyObject *tokens, PyObject *slots, PyObject *before,
                         PyObject *columns, Py_ssize_t row)
{
    PyObject *extra = kernel_get(rows, NAME_extra, &PyDict_Type);
    PyObject *number = extra ? PyLong_FromSsize_t(row) : NULL;
    PyObject *changed = number ? PyList_New(0) : NULL;
    for (Py_ssize_t i = 0; changed != NULL && i < PyTuple_GET_SIZE(slots); i++) {
        PyObject *column = PyTuple_GET_ITEM(columns, i);
        PyObject *token =
            PyTuple_GET_ITEM(tokens, PyLong_AsSsize_t(PyTuple_GET_ITEM(slots, i)));
        PyObject *old = PyList_GET_ITEM(before, PyLong_AsSsize_t(column));
        if (kernel_equal_bytes(token, old))
            continue;
        if (add_extra(extra, number, column, token) ||
            (old != Py_None && PyList_Append(changed, column)))
            Py_CLEAR(changed);
    }
    Py_XDECREF(number);
    return changed;
}

typedef struct {
    PyObject *masks, *index, *table, *columns;
} Masks;

static int open_masks(PyObject *family, Masks *of)
{
    of->masks = kernel_get(family, NAME_masks, &PyList_Type);
    of->index = of->masks ? kernel_get(family, NAME_mask_index, &PyDict_Type) : NULL;
    of->table = of->index ? kernel_get(family, NAME_mask_table, NULL) : NULL;
    of->columns = of->table ? kernel_get(family, NAME_columns, &PyList_Type) : NULL;
    return of->columns ? 0 : -1;
}

/* Remembers a mask, if there is room for one more. */
static int add_mask(const Masks *of, PyObject *mask)
{
    Py_ssize_t n = PyList_GET_SIZE(of->masks);
    if (n >= MASKS)
        return 0;
    PyObject *place = PyLong_FromSsize_t(n + 1);
    int failed =
        place == NULL || PyList_Append(of->masks, mask) || PyDict_SetItem(of->index, mask, place);
    Py_XDECREF(place);
    return failed ? -1 : 0;
}

/* Codes which cold columns changed in a row: a list of one or more that rise. */
int kernel_write_mask(PyObject *put, PyObject *plain, PyObject *lengths, PyObject *family,
                      PyObject *changed)
{
    Masks of;
    PyObject *mask = open_masks(family, &of) ? NULL : PyList_AsTuple(changed);
    if (mask == NULL)
        return -1;
    PyObject *place = PyDict_GetItemWithError(of.index, mask);
    long symbol = place ? PyLong_AsLong(place) : 0;
    int failed = PyErr_Occurred() || kernel_put_symbol(put, of.table, symbol);
    if (!failed && symbol == 0) {
        Py_ssize_t n = PyTuple_GET_SIZE(mask), bound = PyList_GET_SIZE(of.columns);
        failed = kernel_write_number(put, plain, lengths, n);
        for (Py_ssize_t i = 0; !failed && i < n; i++) {
            Py_ssize_t column = PyLong_AsSsize_t(PyTuple_GET_ITEM(mask, i));
            failed = kernel_put_below(put, plain, bound, column);
        }
        failed = failed || add_mask(&of, mask);
    }
    Py_DECREF(mask);
    return failed ? -1 : 0;
}

/* ---- decoding ------------------------------------------------------------------------------ */

/* Returns a mask the family does not remember. */
static PyObject *read_new_mask(PyObject *reader, PyObject *lengths, const Masks *of)
{
    int64_t count;
    Py_ssize_t bound = PyList_GET_SIZE(of->columns), before = -1, column;
    int found = kernel_read_number(reader, lengths, &count);
    if (found < 0)
        return NULL;
    if (found || count < 1 || count > bound)
        return PyErr_Format(PyExc_ValueError, "a mask of no columns");
    PyObject *mask = PyTuple_New((Py_ssize_t)count);
    for (Py_ssize_t i = 0; mask != NULL && i < count; i++) {
        PyObject *item = NULL;
        if (!kernel_read_below(reader, bound, &column)) {
            if (column > before)
                item = PyLong_FromSsize_t(column);
            else
                PyErr_SetString(PyExc_ValueError, "a mask whose columns do not rise");
        }
        if (item == NULL)
            Py_CLEAR(mask);
        else
            PyTuple_SET_ITEM(mask, i, item);
        before = column;
    }
    if (mask != NULL && add_mask(of, mask))
        Py_CLEAR(mask);
    return mask;
}

/* Reads which cold columns a row changes and notes them; `cold` are those it has, in order. */
int kernel_read_mask(PyObject *reader, PyObject *lengths, PyObject *rows, PyObject *family,
                     PyObject *cold, PyObject *tokens, Py_ssize_t row)
{
    Masks of;
    if (open_masks(family, &of))
        return -1;
    long symbol = kernel_next_symbol(reader, of.table);
    if (symbol < 0)
        return -1;
    PyObject *mask = symbol ? Py_XNewRef(kernel_item(of.masks, symbol - 1))
                            : read_new_mask(reader, lengths, &of);
    PyObject *extra = mask ? kernel_get(rows, NAME_extra, &PyDict_Type) : NULL;
    PyObject *number = extra ? PyLong_FromSsize_t(row) : NULL;
    PyObject *nothing = number ? PyBytes_FromStringAndSize(NULL, 0) : NULL;
    int failed = nothing == NULL || !PyTuple_Check(mask);
    Py_ssize_t at = 0;
    for (Py_ssize_t i = 0; !failed && i < PyTuple_GET_SIZE(mask); i++) {
        PyObject *column = PyTuple_GET_ITEM(mask, i);
        Py_ssize_t wanted = PyLong_AsSsize_t(column);
        while (at < PyTuple_GET_SIZE(cold) &&
               PyLong_AsSsize_t(PyTuple_GET_ITEM(cold, at)) < wanted)
            at++;
        PyObject *token = kernel_item(tokens, wanted);
        failed = token == NULL || token == Py_None || at >= PyTuple_GET_SIZE(cold) ||
                 PyLong_AsSsize_t(PyTuple_GET_ITEM(cold, at)) != wanted ||
                 add_extra(extra, number, column, nothing);
    }
    Py_XDECREF(mask);
    Py_XDECREF(number);
    Py_XDECREF(nothing);
    if (failed && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "a change in a column that is not there");
    return failed ? -1 : 0;
}
