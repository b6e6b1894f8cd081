/* The columns of a family in C: docs/link-format-structured.md section 5, the twins of columns.py.
 *
 * Columns of numbers that the kernel spells, and of texts that all are known, are coded here; every
 * other one is given to `one`, a function in Python that does the whole of it. What decides that is
 * looked at before anything is changed.
 */

#include "_kernel.h"

enum { NUMBER, ENUM };

typedef struct {
    PyObject *rows, *references, *index, *referred, *referred_outside, *here, *elsewhere;
    PyObject *after_numbers, *after_texts, *one, *escape;
    /* of all rows */
    Py_ssize_t n, *all_cells;
    int64_t *all_times;
    /* of those in which a column is coded */
    KernelRows some;
    Py_ssize_t *cells;
    int64_t *times;
    KernelMaybe *refs, *xs, *by_row;
    int *symbols;
} Scene;

/* ---- rows ---------------------------------------------------------------------------------- */

/* Takes memory for all arrays at once; returns what is to be freed. */
static void *set_room(Scene *of)
{
    size_t n = (size_t)of->n + 1;
    char *block = PyMem_Malloc(n * (2 * sizeof *of->cells + 2 * sizeof *of->times +
                                    3 * sizeof *of->xs + sizeof *of->symbols));
    if (block == NULL)
        return PyErr_NoMemory();
    char *at = block;
#define CARVE(array) array = (void *)at, at += n * sizeof *array
    CARVE(of->refs);
    CARVE(of->xs);
    CARVE(of->by_row);
    CARVE(of->all_times);
    CARVE(of->times);
    CARVE(of->all_cells);
    CARVE(of->cells);
    CARVE(of->symbols);
#undef CARVE
    return block;
}

/* Reads what all columns of a family need; returns what is to be freed, NULL with an error set. */
static void *open_scene(Scene *of, PyObject *rows, PyObject *references)
{
    of->rows = rows;
    of->references = references;
    PyObject *family = kernel_get(rows, NAME_family, NULL);
    of->index = family ? kernel_get(family, NAME_index, NULL) : NULL;
    of->referred = of->index ? kernel_get(family, NAME_referred, &PySet_Type) : NULL;
    of->referred_outside =
        of->referred ? kernel_get(family, NAME_referred_outside, &PySet_Type) : NULL;
    of->here = of->referred_outside ? kernel_get(references, NAME_here, &PyDict_Type) : NULL;
    of->elsewhere = of->here ? kernel_get(references, NAME_elsewhere, &PyDict_Type) : NULL;
    PyObject *cells = of->elsewhere ? kernel_get(rows, NAME_cells, &PyList_Type) : NULL;
    PyObject *times = cells ? kernel_get(rows, NAME_times, &PyList_Type) : NULL;
    if (times == NULL)
        return NULL;
    of->n = PyList_GET_SIZE(cells);
    if (PyList_GET_SIZE(times) != of->n)
        return PyErr_Format(PyExc_ValueError, "a time for each row is needed");
    void *block = set_room(of);
    for (Py_ssize_t i = 0; block != NULL && i < of->n; i++) {
        of->all_times[i] = PyLong_AsLongLong(PyList_GET_ITEM(times, i));
        of->all_cells[i] = PyLong_AsSsize_t(PyList_GET_ITEM(cells, i));
        if (PyErr_Occurred()) {
            PyMem_Free(block);
            return NULL;
        }
    }
    return block;
}

/* Chooses the rows of a column: those at `places`, or all of them. */
static int choose(Scene *of, PyObject *places)
{
    of->some = (KernelRows){of->n, of->all_cells, of->all_times, NULL};
    if (places == Py_None)
        return 0;
    if (!PyList_Check(places) || PyList_GET_SIZE(places) > of->n) {
        PyErr_SetString(PyExc_ValueError, "places of rows are needed");
        return -1;
    }
    Py_ssize_t n = PyList_GET_SIZE(places), place;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (kernel_index(places, i, &place))
            return -1;
        if (place < 0 || place >= of->n) {
            PyErr_SetString(PyExc_IndexError, "a row that does not exist");
            return -1;
        }
        of->cells[i] = of->all_cells[place];
        of->times[i] = of->all_times[place];
    }
    of->some = (KernelRows){n, of->cells, of->times, NULL};
    return 0;
}

/* Reads integers into `out`, one a row of `n` at `places`; the others are none. Returns 1; 0 where
 * one does not fit, or -1. */
static int spread(PyObject *numbers, PyObject *places, KernelMaybe *out, Py_ssize_t n)
{
    if (!PyList_Check(numbers) || (places != Py_None && !PyList_Check(places)) ||
        PyList_GET_SIZE(numbers) != (places == Py_None ? n : PyList_GET_SIZE(places))) {
        PyErr_SetString(PyExc_ValueError, "an integer for each row is needed");
        return -1;
    }
    for (Py_ssize_t i = 0; places != Py_None && i < n; i++)
        out[i] = (KernelMaybe){0, 0};
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(numbers); i++) {
        Py_ssize_t place = i;
        if (places != Py_None && (kernel_index(places, i, &place) || place < 0 || place >= n))
            return -1;
        if (kernel_load(PyList_GET_ITEM(numbers, i), out + place))
            return PyErr_Occurred() ? -1 : 0;
    }
    return 1;
}

/* Finds what a column refers to in its rows; returns 1, 0 where `one` is to do it, or -1. */
static int refer(Scene *of, PyObject *column, PyObject *places)
{
    Py_ssize_t where, index, place;
    PyObject *ref = kernel_get(column, NAME_ref, &PyTuple_Type), *known, *numbers;
    if (ref == NULL || !PyArg_ParseTuple(ref, "nn", &where, &index))
        return -1;
    if (index < 0)
        return 1;
    of->some.refs = of->refs;
    if (where >= 0) {
        numbers = PyObject_CallMethodObjArgs(of->references, kernel_names[NAME_of_siblings],
                                             of->rows, ref, places, NULL);
        int done = numbers ? spread(numbers, Py_None, of->refs, of->some.n) : -1;
        Py_XDECREF(numbers);
        return done;
    }
    PyObject *entry = PyDict_GetItemWithError(of->here, PyTuple_GET_ITEM(ref, 1));
    if (entry == NULL) {
        for (Py_ssize_t i = 0; i < of->some.n; i++)
            of->refs[i] = (KernelMaybe){0, 0};
        return PyErr_Occurred() ? -1 : 1;
    }
    if (!PyTuple_Check(entry) || !PyArg_ParseTuple(entry, "OO", &known, &numbers))
        return -1;
    if (places == Py_None)
        return spread(numbers, known, of->refs, of->n);
    int done = spread(numbers, known, of->by_row, of->n);
    for (Py_ssize_t i = 0; done > 0 && i < of->some.n; i++) {
        if (kernel_index(places, i, &place))
            return -1;
        of->refs[i] = of->by_row[place];
    }
    return done;
}

/* Keeps the integers of a hot column that others refer to. */
static int keep(const Scene *of, PyObject *column, PyObject *places, PyObject *numbers)
{
    int64_t hot;
    PyObject *index = kernel_get(column, NAME_index, NULL);
    if (index == NULL || kernel_need_number(column, NAME_hot, &hot))
        return -1;
    if (!hot)
        return 0;
    int here = PySet_Contains(of->referred, index);
    int outside = PySet_Contains(of->referred_outside, index), failed = here < 0 || outside < 0;
    if (here > 0) {
        PyObject *entry = PyTuple_Pack(2, places, numbers);
        failed = failed || entry == NULL || PyDict_SetItem(of->here, index, entry);
        Py_XDECREF(entry);
    }
    if (outside > 0) {
        PyObject *key = PyTuple_Pack(2, of->index, index);
        PyObject *entry = PyTuple_Pack(3, of->rows, places, numbers);
        failed = failed || key == NULL || entry == NULL ||
                 PyDict_SetItem(of->elsewhere, key, entry);
        Py_XDECREF(key);
        Py_XDECREF(entry);
    }
    return failed ? -1 : 0;
}

/* ---- what a column is ---------------------------------------------------------------------- */

/* Returns the kind of a column that can be done here, -1 of any other; -2 with an error set. */
static int kind_of(PyObject *column, KernelSpelling *by)
{
    int64_t kind, native;
    if (kernel_need_number(column, NAME_kind, &kind))
        return -2;
    if (kind != NUMBER)
        return kind == ENUM ? ENUM : -1;
    PyObject *printer = kernel_get(column, NAME_printer, NULL);
    if (printer == NULL || printer == Py_None)
        return printer ? -1 : -2;
    if (kernel_need_number(printer, NAME_native, &native))
        return -2;
    PyObject *key = native ? kernel_get(printer, NAME_key, NULL) : NULL;
    if (key == NULL || kernel_read_key(key, by))
        return PyErr_Occurred() ? -2 : -1;
    return NUMBER;
}

/* Returns the tables of a column, made if they are not there; the column keeps them. */
static PyObject *chain_of(PyObject *column)
{
    PyObject *chain = kernel_get(column, NAME_chain, NULL);
    if (chain != Py_None)
        return chain;
    chain = PyObject_CallMethodNoArgs(column, kernel_names[NAME_prepare]);
    Py_XDECREF(chain);
    return chain;
}

/* ---- writing ------------------------------------------------------------------------------- */

typedef struct {
    PyObject *put, *plain, *lengths, *decimals;
} Out;

/* Returns the integers of tokens, none where one is not spelled so; they are in `xs` as well. */
static PyObject *parse(const KernelSpelling *by, PyObject *tokens, Py_ssize_t n, KernelMaybe *xs)
{
    PyObject *numbers = PyList_New(n);
    for (Py_ssize_t i = 0; numbers != NULL && i < n; i++) {
        PyObject *number = NULL;
        if (!kernel_parse(by, PySequence_Fast_GET_ITEM(tokens, i), xs + i))
            number = xs[i].there ? PyLong_FromLongLong(xs[i].value) : Py_NewRef(Py_None);
        if (number == NULL)
            Py_CLEAR(numbers);
        else
            PyList_SET_ITEM(numbers, i, number);
    }
    return numbers;
}

/* Codes a token that is no integer of its column: a known text, or a decimal of other digits. */
static int write_escape(const Scene *of, const Out *to, PyObject *column, PyObject *token)
{
    KernelMaybe value;
    int digits;
    PyObject *table = kernel_get(column, NAME_escapes, NULL);
    PyObject *texts = table ? kernel_get(column, NAME_text_index, &PyDict_Type) : NULL;
    PyObject *place = texts ? PyDict_GetItemWithError(texts, token) : NULL;
    if (texts == NULL || (place == NULL && PyErr_Occurred()))
        return -1;
    if (table != Py_None && place != NULL) {
        long number = PyLong_AsLong(place);
        return number < 0 ? -1 : kernel_write_number(to->put, to->plain, table, number);
    }
    if (kernel_parse_other_decimal(token, &digits, &value))
        return -1;
    if (table != Py_None && value.there) {
        PyObject *first = kernel_item(to->decimals, 0), *second = kernel_item(to->decimals, 1);
        return first == NULL || second == NULL ||
                       kernel_write_number(to->put, to->plain, table, -1) < 0 ||
                       kernel_write_number(to->put, to->plain, first, digits) < 0 ||
                       kernel_write_number(to->put, to->plain, second, value.value) < 0
                   ? -1
                   : 0;
    }
    PyObject *done = PyObject_CallFunctionObjArgs(of->escape, column, token, NULL);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Returns 1 when a column was coded, 0 where `one` is to do it, or -1. */
static int write_numbers(Scene *of, const Out *to, const KernelSpelling *by, PyObject *column,
                         PyObject *places, PyObject *tokens)
{
    Py_ssize_t n = of->some.n;
    PyObject *state = kernel_get(column, NAME_cells, NULL);
    PyObject *contexts = state ? kernel_get(column, NAME_contexts, &PyList_Type) : NULL;
    int ready = contexts ? refer(of, column, places) : -1;
    if (ready <= 0)
        return ready;
    PyObject *numbers = parse(by, tokens, n, of->xs);
    int late = numbers ? kernel_predict_rows(column, state, &of->some, of->xs, numbers, 1) : -1;
    int failed = late < 0;
    for (Py_ssize_t i = 0; !late && !failed && i < n; i++) {
        of->symbols[i] = of->xs[i].there ? kernel_symbol_of(of->xs[i].value, to->plain)
                                         : KERNEL_ESCAPE;
        failed = of->symbols[i] < 0;
    }
    if (!late && !failed) {
        PyObject *chain = chain_of(column);
        failed = chain == NULL || kernel_code_chain(to->put, chain, contexts, of->some.cells, n,
                                                    of->symbols, of->after_numbers) < 0;
        for (Py_ssize_t i = 0; !failed && i < n; i++)
            failed = !of->xs[i].there &&
                     write_escape(of, to, column, PySequence_Fast_GET_ITEM(tokens, i)) < 0;
        failed = failed || keep(of, column, places, numbers) < 0;
    }
    Py_XDECREF(numbers);
    return failed ? -1 : !late;
}

/* The same for texts that all are known. */
static int write_texts(Scene *of, const Out *to, PyObject *column, PyObject *tokens)
{
    PyObject *texts = kernel_get(column, NAME_text_index, &PyDict_Type);
    PyObject *contexts = texts ? kernel_get(column, NAME_contexts, &PyList_Type) : NULL;
    if (contexts == NULL)
        return -1;
    for (Py_ssize_t i = 0; i < of->some.n; i++) {
        PyObject *place = PyDict_GetItemWithError(texts, PySequence_Fast_GET_ITEM(tokens, i));
        long symbol = place ? PyLong_AsLong(place) : -1;
        if (symbol < 0)
            return PyErr_Occurred() ? -1 : 0;
        of->symbols[i] = (int)symbol;
    }
    PyObject *chain = chain_of(column);
    return chain == NULL || kernel_write_number(to->put, to->plain, to->lengths, 0) < 0 ||
                   kernel_code_chain(to->put, chain, contexts, of->some.cells, of->some.n,
                                     of->symbols, of->after_texts) < 0
               ? -1
               : 1;
}

static int write_column(Scene *of, const Out *to, PyObject *column, PyObject *places,
                        PyObject *given)
{
    KernelSpelling by;
    int kind = kind_of(column, &by), done = 0;
    if (kind == -2 || choose(of, places) < 0)
        return -1;
    PyObject *tokens = PySequence_Fast(given, "tokens are needed");
    if (tokens == NULL)
        return -1;
    if (PySequence_Fast_GET_SIZE(tokens) != of->some.n) {
        PyErr_SetString(PyExc_ValueError, "a token for each row is needed");
        done = -1;
    } else if (kind == NUMBER) {
        done = write_numbers(of, to, &by, column, places, tokens);
    } else if (kind == ENUM) {
        done = write_texts(of, to, column, tokens);
    }
    Py_DECREF(tokens);
    if (done)
        return done;
    PyObject *found = PyObject_CallFunctionObjArgs(of->one, column, places, given, NULL);
    Py_XDECREF(found);
    return found ? 1 : -1;
}

/* Codes columns of one family, each with the rows in which it is coded and its tokens there. */
PyObject *kernel_write_columns(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *io, *rows, *items, *references, *tables, *column, *places, *tokens;
    Scene of;
    Out to;
    if (!PyArg_ParseTuple(args, "OOO!OO(O!O!)OO", &io, &rows, &PyList_Type, &items, &references,
                          &tables, &PyList_Type, &of.after_numbers, &PyList_Type, &of.after_texts,
                          &of.one, &of.escape))
        return NULL;
    if ((to.put = kernel_get(io, NAME_spans, &PyList_Type)) == NULL ||
        (to.plain = kernel_get(io, NAME_plain, &PyByteArray_Type)) == NULL ||
        (to.lengths = kernel_get(tables, NAME_lengths, NULL)) == NULL ||
        (to.decimals = kernel_get(tables, NAME_decimals, &PyList_Type)) == NULL)
        return NULL;
    void *block = open_scene(&of, rows, references);
    int failed = block == NULL;
    for (Py_ssize_t i = 0; !failed && i < PyList_GET_SIZE(items); i++) {
        PyObject *item = Py_NewRef(PyList_GET_ITEM(items, i));
        failed = !PyTuple_Check(item) ||
                 !PyArg_ParseTuple(item, "OOO", &column, &places, &tokens) ||
                 write_column(&of, &to, column, places, tokens) < 0;
        Py_DECREF(item);
    }
    PyMem_Free(block);
    if (!failed)
        Py_RETURN_NONE;
    return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "a tuple is needed");
}

/* ---- reading ------------------------------------------------------------------------------- */

/* Returns the tokens of values; `escape` reads those that are none. */
static PyObject *show(const Scene *of, const KernelSpelling *by, PyObject *column)
{
    PyObject *out = PyList_New(of->some.n);
    for (Py_ssize_t i = 0; out != NULL && i < of->some.n; i++) {
        PyObject *token = of->xs[i].there ? kernel_show(by, of->xs[i].value)
                                          : PyObject_CallOneArg(of->escape, column);
        if (token == NULL)
            Py_CLEAR(out);
        else
            PyList_SET_ITEM(out, i, token);
    }
    return out;
}

/* Returns a column's tokens; NULL where `one` is to read them, nothing having been read, or with
 * an error set. Where an integer does not fit, `rest` makes the tokens of the residuals read. */
static PyObject *read_numbers(Scene *of, PyObject *io, const KernelSpelling *by, PyObject *column,
                              PyObject *places, PyObject *rest)
{
    Py_ssize_t n = of->some.n, end;
    int64_t plain_at;
    PyObject *state = kernel_get(column, NAME_cells, NULL);
    PyObject *contexts = state ? kernel_get(column, NAME_contexts, &PyList_Type) : NULL;
    PyObject *plain = contexts ? kernel_get(io, NAME_plain, &PyUnicode_Type) : NULL;
    PyObject *chain = plain ? chain_of(column) : NULL;
    if (chain == NULL || refer(of, column, places) <= 0 ||
        kernel_take_chain(io, chain, contexts, of->some.cells, n, of->symbols,
                          of->after_numbers) < 0 ||
        kernel_need_number(io, NAME_plain_at, &plain_at))
        return NULL;
    end = (Py_ssize_t)plain_at;
    if (kernel_integers(of->symbols, n, plain, &end, of->xs) < 0 ||
        kernel_set_number(io, NAME_plain_at, end))
        return NULL;
    KernelMaybe *steps = of->by_row; /* what it was used for is in `refs` */
    for (Py_ssize_t i = 0; i < n; i++)
        steps[i] = of->xs[i];
    PyObject *numbers = PyList_New(n), *out = NULL;
    int late = numbers ? kernel_predict_rows(column, state, &of->some, of->xs, numbers, 0) : -1;
    if (late > 0) {
        PyObject *list = kernel_list_of(steps, n);
        out = list ? PyObject_CallFunctionObjArgs(rest, column, places, list, NULL) : NULL;
        Py_XDECREF(list);
    } else if (late == 0) {
        out = show(of, by, column);
        if (out != NULL && keep(of, column, places, numbers) < 0)
            Py_CLEAR(out);
    }
    Py_XDECREF(numbers);
    return out;
}

static PyObject *read_column(Scene *of, PyObject *io, PyObject *column, PyObject *places,
                             PyObject *rest)
{
    KernelSpelling by;
    int kind = kind_of(column, &by);
    if (kind == -2 || choose(of, places) < 0)
        return NULL;
    PyObject *tokens = NULL;
    if (kind == NUMBER)
        tokens = read_numbers(of, io, &by, column, places, rest);
    if (tokens == NULL && !PyErr_Occurred())
        tokens = PyObject_CallFunctionObjArgs(of->one, column, places, NULL);
    return tokens;
}

/* Returns the tokens of columns of one family, each in the rows in which it is coded. */
PyObject *kernel_read_columns(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *io, *rows, *items, *references, *column, *places, *rest;
    Scene of;
    if (!PyArg_ParseTuple(args, "OOO!OO!OOO", &io, &rows, &PyList_Type, &items, &references,
                          &PyList_Type, &of.after_numbers, &of.one, &rest, &of.escape))
        return NULL;
    void *block = open_scene(&of, rows, references);
    PyObject *out = block ? PyList_New(0) : NULL;
    for (Py_ssize_t i = 0; out != NULL && i < PyList_GET_SIZE(items); i++) {
        PyObject *item = Py_NewRef(PyList_GET_ITEM(items, i)), *tokens = NULL;
        if (!PyTuple_Check(item))
            PyErr_SetString(PyExc_TypeError, "a tuple is needed");
        else if (PyArg_ParseTuple(item, "OO", &column, &places))
            tokens = read_column(&of, io, column, places, rest);
        Py_DECREF(item);
        if (kernel_append_new(out, tokens))
            Py_CLEAR(out);
    }
    PyMem_Free(block);
    return out;
}
