/* Templates in C: docs/link-format-structured.md section 4.2, the twins of schema.py and
 * context.py; rows of several templates by column and back, those of heads.py.
 */

#include "_kernel.h"

#include <stdlib.h>

#define FOLLOWERS 12 /* fragments remembered to have followed a fragment */
#define FAMILY_COLUMNS_MAX 1024

enum { KNOWN_FRAGMENT = FOLLOWERS };
enum { NEXT_COLUMN, KNOWN_COLUMN };

/* ---- a new template ------------------------------------------------------------------------ */

typedef struct {
    PyObject *io, *family;
    int writes;
    PyObject *put, *plain; /* of a writer */
    PyObject *fragments, *fragment_index, *followers, *repeated, *next_column, *columns;
    PyObject *fragment_choice, *column_choice; /* tables */
    PyObject *new_fragment, *new_column;       /* functions in Python for what is new */
    uint8_t *used;                             /* by fragment: it is in this template */
    Py_ssize_t room;                           /* of `used` */
    uint8_t taken[FAMILY_COLUMNS_MAX];         /* columns of this template */
} Schema;

static int open_schema(Schema *of, PyObject *tables, Py_ssize_t slots)
{
    of->put = of->writes ? kernel_get(of->io, NAME_spans, &PyList_Type) : Py_None;
    of->plain = of->writes && of->put ? kernel_get(of->io, NAME_plain, &PyByteArray_Type) : Py_None;
    if (of->put == NULL || of->plain == NULL ||
        (of->fragments = kernel_get(of->family, NAME_fragments, &PyList_Type)) == NULL ||
        (of->fragment_index = kernel_get(of->family, NAME_fragment_index, &PyDict_Type)) == NULL ||
        (of->followers = kernel_get(of->family, NAME_followers, &PyDict_Type)) == NULL ||
        (of->repeated = kernel_get(of->family, NAME_repeated, &PySet_Type)) == NULL ||
        (of->next_column = kernel_get(of->family, NAME_next_column, &PyDict_Type)) == NULL ||
        (of->columns = kernel_get(of->family, NAME_columns, &PyList_Type)) == NULL ||
        (of->fragment_choice = kernel_get(tables, NAME_fragment_choice, &PyList_Type)) == NULL ||
        (of->column_choice = kernel_get(tables, NAME_column_choice, NULL)) == NULL)
        return -1;
    of->room = PyList_GET_SIZE(of->fragments) + slots + 1; /* each may be a new one */
    of->used = PyMem_Calloc((size_t)of->room, 1);
    if (of->used == NULL)
        PyErr_NoMemory();
    return of->used ? 0 : -1;
}

static int code_symbol(const Schema *of, PyObject *table, long symbol)
{
    if (table == NULL)
        return -1;
    if (!of->writes)
        return (int)kernel_next_symbol(of->io, table);
    return kernel_put_symbol(of->put, table, symbol) ? -1 : (int)symbol;
}

static Py_ssize_t code_below(const Schema *of, PyObject *list, Py_ssize_t value)
{
    if (of->writes)
        return kernel_put_below(of->put, of->plain, PyList_GET_SIZE(list), value) ? -1 : value;
    return kernel_read_below(of->io, PyList_GET_SIZE(list), &value) ? -1 : value;
}

/* Returns what followed `before`, the last one first; made if it is not there. */
static PyObject *followers_of(const Schema *of, PyObject *before)
{
    PyObject *found = PyDict_GetItemWithError(of->followers, before);
    if (found == NULL && !PyErr_Occurred()) {
        PyObject *made = PyList_New(0);
        int failed = made == NULL || PyDict_SetItem(of->followers, before, made);
        Py_XDECREF(made);
        found = failed ? NULL : made;
    }
    if (found == NULL || PyList_Check(found))
        return found;
    return PyErr_Format(PyExc_TypeError, "a list is needed");
}

/* Puts the followers that are likely now; returns how many. */
static int likely_ones(const Schema *of, PyObject *followers, Py_ssize_t *likely)
{
    int found = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(followers) && found < FOLLOWERS; i++) {
        PyObject *item = PyList_GET_ITEM(followers, i);
        Py_ssize_t at = PyLong_AsSsize_t(item);
        if (at < 0 || at >= of->room) {
            PyErr_SetString(PyExc_IndexError, "no such fragment");
            return -1;
        }
        int again = of->used[at] ? PySet_Contains(of->repeated, item) : 1;
        if (again < 0)
            return -1;
        if (again)
            likely[found++] = at;
    }
    return found;
}

/* Notes that the fragment `item` followed, and that it is in this template. */
static int note_fragment(const Schema *of, PyObject *followers, PyObject *item, Py_ssize_t at)
{
    Py_ssize_t place = 0, n = PyList_GET_SIZE(followers);
    while (place < n && PyLong_AsSsize_t(PyList_GET_ITEM(followers, place)) != at)
        place++;
    if ((place < n && PyList_SetSlice(followers, place, place + 1, NULL)) ||
        PyList_Insert(followers, 0, item) ||
        (PyList_GET_SIZE(followers) > FOLLOWERS &&
         PyList_SetSlice(followers, FOLLOWERS, PyList_GET_SIZE(followers), NULL)) ||
        (of->used[at] && PySet_Add(of->repeated, item)))
        return -1;
    of->used[at] = 1;
    return 0;
}

/* Codes the fragment behind `before`, `text` of a writer; returns its number. */
static PyObject *code_fragment(const Schema *of, PyObject *before, PyObject *text)
{
    Py_ssize_t likely[FOLLOWERS], at = -1;
    PyObject *followers = followers_of(of, before), *item = NULL;
    int count = followers ? likely_ones(of, followers, likely) : -1, choice = KNOWN_FRAGMENT + 1;
    if (count < 0)
        return NULL;
    if (of->writes && (item = PyDict_GetItemWithError(of->fragment_index, text)) != NULL) {
        at = PyLong_AsSsize_t(item);
        for (choice = 0; choice < count && likely[choice] != at; choice++)
            ;
        choice = choice < count ? choice : KNOWN_FRAGMENT;
    }
    if (PyErr_Occurred())
        return NULL;
    choice = code_symbol(of, kernel_item(of->fragment_choice, count), choice);
    if (choice < 0)
        return NULL;
    if (choice < KNOWN_FRAGMENT) {
        if (choice >= count)
            return PyErr_Format(PyExc_ValueError, "a fragment that never followed");
        at = likely[choice];
    } else if (choice == KNOWN_FRAGMENT) {
        at = code_below(of, of->fragments, at);
    } else {
        PyObject *made = PyObject_CallFunctionObjArgs(of->new_fragment, before, text, NULL);
        at = made ? PyLong_AsSsize_t(made) : -1;
        Py_XDECREF(made);
    }
    if (at < 0 || at >= of->room)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_IndexError, "no such fragment");
    item = PyLong_FromSsize_t(at);
    if (item != NULL && note_fragment(of, followers, item, at))
        Py_CLEAR(item);
    return item;
}

/* Codes the column of a slot behind `fragment`, `plan` of a writer; returns its number. */
static PyObject *code_slot(Schema *of, PyObject *fragment, PyObject *plan)
{
    PyObject *next = PyDict_GetItemWithError(of->next_column, fragment), *column = Py_None;
    Py_ssize_t expected = next ? PyLong_AsSsize_t(next) : -1, at = 0;
    int choice = KNOWN_COLUMN + 1;
    if (PyErr_Occurred() || (of->writes && (column = kernel_get(plan, NAME_column, NULL)) == NULL))
        return NULL;
    if (column != Py_None) {
        int64_t index;
        if (kernel_need_number(column, NAME_index, &index))
            return NULL;
        at = (Py_ssize_t)index;
        choice = at == expected ? NEXT_COLUMN : KNOWN_COLUMN;
    }
    choice = code_symbol(of, of->column_choice, choice);
    if (choice < 0)
        return NULL;
    if (choice == NEXT_COLUMN) {
        at = expected;
    } else if (choice == KNOWN_COLUMN) {
        at = code_below(of, of->columns, at);
    } else {
        PyObject *made = PyObject_CallOneArg(of->new_column, plan);
        at = made ? PyLong_AsSsize_t(made) : -1;
        Py_XDECREF(made);
    }
    if (at < 0 || at >= PyList_GET_SIZE(of->columns) || at >= FAMILY_COLUMNS_MAX || of->taken[at])
        return PyErr_Occurred()
                   ? NULL
                   : PyErr_Format(PyExc_ValueError, "a column that never followed, or is there");
    of->taken[at] = 1;
    PyObject *item = PyLong_FromSsize_t(at);
    if (item != NULL && choice != NEXT_COLUMN && PyDict_SetItem(of->next_column, fragment, item))
        Py_CLEAR(item);
    return item;
}

/* Codes fragments and columns of a new template; returns both. */
PyObject *kernel_code_slots(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *tables, *texts, *plans;
    Py_ssize_t slots;
    Schema of = {0};
    if (!PyArg_ParseTuple(args, "OOOnOOOO", &of.io, &tables, &of.family, &slots, &texts, &plans,
                          &of.new_fragment, &of.new_column))
        return NULL;
    of.writes = texts != Py_None;
    if (slots < 0 || slots > FAMILY_COLUMNS_MAX ||
        (of.writes && (!PyTuple_Check(texts) || PyTuple_GET_SIZE(texts) != slots + 1 ||
                       !PyList_Check(plans) || PyList_GET_SIZE(plans) != slots)))
        return PyErr_Format(PyExc_ValueError, "a template of another form");
    PyObject *fragments = PyTuple_New(slots + 1), *columns = PyTuple_New(slots);
    PyObject *before = PyLong_FromLong(-1);
    int failed = !fragments || !columns || !before || open_schema(&of, tables, slots);
    for (Py_ssize_t i = 0; !failed && i <= slots; i++) {
        PyObject *fragment =
            code_fragment(&of, before, of.writes ? PyTuple_GET_ITEM(texts, i) : Py_None);
        failed = fragment == NULL;
        if (failed)
            break;
        Py_SETREF(before, Py_NewRef(fragment));
        PyTuple_SET_ITEM(fragments, i, fragment);
        if (i == slots)
            break;
        PyObject *plan = of.writes ? kernel_item(plans, i) : Py_None;
        PyObject *column = plan ? code_slot(&of, before, plan) : NULL;
        failed = column == NULL;
        if (!failed)
            PyTuple_SET_ITEM(columns, i, column);
    }
    PyMem_Free(of.used);
    Py_XDECREF(before);
    if (!failed)
        return Py_BuildValue("NN", fragments, columns);
    Py_XDECREF(fragments);
    Py_XDECREF(columns);
    return NULL;
}

/* ---- slots by heat ------------------------------------------------------------------------- */

typedef struct {
    Py_ssize_t column, slot;
    int hot;
} Slot;

static int by_column(const void *a, const void *b)
{
    Py_ssize_t first = ((const Slot *)a)->column, second = ((const Slot *)b)->column;
    return (first > second) - (first < second);
}

/* Returns the slots of one heat, or their columns. */
static PyObject *of_heat(const Slot *slots, Py_ssize_t n, int hot, int columns)
{
    Py_ssize_t count = 0, at = 0;
    for (Py_ssize_t i = 0; i < n; i++)
        count += slots[i].hot == hot;
    PyObject *out = PyTuple_New(count);
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        if (slots[i].hot != hot)
            continue;
        PyObject *item = PyLong_FromSsize_t(columns ? slots[i].column : slots[i].slot);
        if (item == NULL)
            Py_CLEAR(out);
        else
            PyTuple_SET_ITEM(out, at++, item);
    }
    return out;
}

/* Returns the slots of hot columns and these columns, then those of cold ones, all by column. */
PyObject *kernel_sort_slots(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *given, *columns, *out = NULL;
    if (!PyArg_ParseTuple(args, "O!O!", &PyTuple_Type, &given, &PyList_Type, &columns))
        return NULL;
    Py_ssize_t n = PyTuple_GET_SIZE(given);
    Slot *slots = PyMem_New(Slot, n + 1);
    int failed = slots == NULL;
    for (Py_ssize_t i = 0; !failed && i < n; i++) {
        int64_t hot;
        slots[i] = (Slot){PyLong_AsSsize_t(PyTuple_GET_ITEM(given, i)), i, 0};
        PyObject *column = kernel_item(columns, slots[i].column);
        failed = column == NULL || kernel_need_number(column, NAME_hot, &hot);
        slots[i].hot = !failed && hot;
    }
    if (slots == NULL)
        return PyErr_NoMemory();
    if (!failed) {
        qsort(slots, (size_t)n, sizeof *slots, by_column);
        out = Py_BuildValue("NNNN", of_heat(slots, n, 1, 0), of_heat(slots, n, 1, 1),
                            of_heat(slots, n, 0, 0), of_heat(slots, n, 0, 1));
    }
    PyMem_Free(slots);
    return out;
}

/* ---- rows of several templates ------------------------------------------------------------- */

/* Returns the hot columns of the template of a row. */
static PyObject *columns_of(PyObject *templates, Py_ssize_t row)
{
    PyObject *template = kernel_item(templates, row);
    return template ? kernel_get(template, NAME_hot_columns, &PyTuple_Type) : NULL;
}

/* Returns by hot column the rows whose templates have it, and its tokens there. */
PyObject *kernel_gather(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *templates, *hot;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &templates, &PyList_Type, &hot))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(templates);
    int tokens = PyList_GET_SIZE(hot) > 0, failed = tokens && PyList_GET_SIZE(hot) != n;
    PyObject *by = PyDict_New();
    for (Py_ssize_t row = 0; by != NULL && !failed && row < n; row++) {
        PyObject *columns = columns_of(templates, row), *number = PyLong_FromSsize_t(row);
        PyObject *some = tokens ? PyList_GET_ITEM(hot, row) : Py_None;
        failed = columns == NULL || number == NULL ||
                 (tokens && (!PyTuple_Check(some) ||
                             PyTuple_GET_SIZE(some) != PyTuple_GET_SIZE(columns)));
        for (Py_ssize_t i = 0; !failed && i < PyTuple_GET_SIZE(columns); i++) {
            PyObject *lists = kernel_lists_of(by, PyTuple_GET_ITEM(columns, i));
            failed = lists == NULL || PyList_Append(PyTuple_GET_ITEM(lists, 0), number) ||
                     (tokens &&
                      PyList_Append(PyTuple_GET_ITEM(lists, 1), PyTuple_GET_ITEM(some, i)));
        }
        Py_XDECREF(number);
    }
    if (failed && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "a row of other columns");
    if (failed)
        Py_CLEAR(by);
    return by;
}

/* Returns the rows that `tokens`, by hot column in order of rows, belong to. */
PyObject *kernel_scatter(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *templates, *tokens;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &templates, &PyDict_Type, &tokens))
        return NULL;
    Py_ssize_t *next = PyMem_Calloc(FAMILY_COLUMNS_MAX, sizeof *next);
    PyObject *out = next ? PyList_New(0) : PyErr_NoMemory();
    for (Py_ssize_t row = 0; out != NULL && row < PyList_GET_SIZE(templates); row++) {
        PyObject *columns = columns_of(templates, row);
        PyObject *some = columns ? PyTuple_New(PyTuple_GET_SIZE(columns)) : NULL;
        for (Py_ssize_t i = 0; some != NULL && i < PyTuple_GET_SIZE(columns); i++) {
            PyObject *column = PyTuple_GET_ITEM(columns, i), *token = NULL;
            Py_ssize_t index = PyLong_AsSsize_t(column);
            PyObject *list = PyDict_GetItemWithError(tokens, column);
            if (list != NULL && index >= 0 && index < FAMILY_COLUMNS_MAX)
                token = kernel_item(list, next[index]++);
            if (token == NULL) {
                if (!PyErr_Occurred())
                    PyErr_SetString(PyExc_ValueError, "a column without tokens");
                Py_CLEAR(some);
            } else {
                PyTuple_SET_ITEM(some, i, Py_NewRef(token));
            }
        }
        if (kernel_append_new(out, some))
            Py_CLEAR(out);
    }
    PyMem_Free(next);
    return out;
}
