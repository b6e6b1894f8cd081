/* A SUBSCRIBE's filters at a call: each function does what a loop in Python does where it is not built.
 *
 * Built where there is a compiler; filter_calls.py says which loops these are
 * (tests/mqtt/test_filter_calls.py compares them). The objects are those of the Python classes,
 * made without a call of their `__init__`: `slots_of` finds where a class has its fields, and
 * refuses one that has others than are filled here.
 *
 * Invariants: nothing is read past `size`; an object is whole before anybody else can see it; a
 * borrowed reference is not used after Python code may have run.
 */

#include "_slots.h"

#define FIELDS_MAX 7

struct slots {
    const char *const names[FIELDS_MAX];
    int count;
    PyTypeObject *type; /* held: whose fields these are, NULL before the first call */
    Py_ssize_t at[FIELDS_MAX];
};

enum { FILTER, QOS, NO_LOCAL, RETAIN_AS_PUBLISHED, RETAIN_HANDLING };
static struct slots asked = {
    .names = {"topic_filter", "qos", "no_local", "retain_as_published", "retain_handling"},
    .count = 5,
};

enum { HELD_FILTER, HELD_QOS, HELD_NO_LOCAL, HELD_RETAIN, HELD_SESSION, HELD_IDENTIFIERS, SHARE };
static struct slots held = {
    .names = {"topic_filter", "qos", "no_local", "retain_as_published", "session", "identifiers",
              "share"},
    .count = 7,
};

enum { CHILDREN, HASH, HERE, PLUS };
static struct slots node = {.names = {"children", "hash", "here", "plus"}, .count = 4};

/* Finds the fields of a class, once a class. */
static int slots_of(struct slots *slots, PyTypeObject *type)
{
    if (slots->type == type)
        return 0;
    Py_ssize_t size = (Py_ssize_t)(sizeof(PyObject) + (size_t)slots->count * sizeof(PyObject *));
    if (!PyType_Check((PyObject *)type) || type->tp_basicsize != size || type->tp_itemsize) {
        PyErr_SetString(PyExc_TypeError, "a class with other fields");
        return -1;
    }
    Py_ssize_t at[FIELDS_MAX]; /* those of the class before stay until all are found */
    for (int i = 0; i < slots->count; i++) {
        at[i] = slot_offset(type, slots->names[i]);
        if (at[i] < 0)
            return -1;
    }
    memcpy(slots->at, at, (size_t)slots->count * sizeof at[0]);
    Py_XSETREF(slots->type, (PyTypeObject *)Py_NewRef((PyObject *)type));
    return 0;
}

static PyObject **field(const struct slots *slots, PyObject *object, int which)
{
    return (PyObject **)((char *)object + slots->at[which]);
}

static void set(const struct slots *slots, PyObject *object, int which, PyObject *value)
{
    Py_XSETREF(*field(slots, object, which), Py_NewRef(value));
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Returns 1 when a filter is ASCII, no shared one, and nothing can be wrong with it but its
 * length: as `is_plain_filter`. */
static int is_plain(const unsigned char *text, Py_ssize_t size)
{
    if (!size || text[0] == '$')
        return 0;
    for (Py_ssize_t i = 0; i < size; i++) {
        unsigned char c = text[i];
        if (c == 0 || c >= 0x80)
            return 0;
        if (c == '+' || c == '#') {
            if (i && text[i - 1] != '/')
                return 0;
            if (i + 1 < size && (c == '#' || text[i + 1] != '/'))
                return 0;
        }
    }
    return 1;
}

static PyObject *subscription(PyTypeObject *kind, const unsigned char *text, Py_ssize_t size,
                              int qos)
{
    PyObject *made = kind->tp_alloc(kind, 0);
    PyObject *topic_filter = PyUnicode_New(size, 0x7F);
    PyObject *number = PyLong_FromLong(qos);
    PyObject *zero = PyLong_FromLong(0);
    if (made == NULL || topic_filter == NULL || number == NULL || zero == NULL) {
        Py_CLEAR(made);
    } else {
        memcpy(PyUnicode_1BYTE_DATA(topic_filter), text, (size_t)size);
        set(&asked, made, FILTER, topic_filter);
        set(&asked, made, QOS, number);
        set(&asked, made, NO_LOCAL, Py_False);
        set(&asked, made, RETAIN_AS_PUBLISHED, Py_False);
        set(&asked, made, RETAIN_HANDLING, zero);
    }
    Py_XDECREF(topic_filter);
    Py_XDECREF(number);
    Py_XDECREF(zero);
    return made;
}

static PyObject *subscriptions(PyObject *module, PyObject *args)
{
    PyTypeObject *kind;
    const char *data;
    Py_ssize_t size, pos, count_max;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oy#nn:subscriptions", &kind, &data, &size, &pos, &count_max) ||
        slots_of(&asked, kind) < 0)
        return NULL;
    const unsigned char *body = (const unsigned char *)data;
    PyObject *found = PyList_New(0);
    while (found != NULL && pos >= 0 && pos <= size - 3 && PyList_GET_SIZE(found) < count_max) {
        Py_ssize_t length = body[pos] << 8 | body[pos + 1];
        Py_ssize_t options = pos + 2 + length;
        if (options >= size || body[options] > 2 || !is_plain(body + pos + 2, length))
            break;
        PyObject *one = subscription(kind, body + pos + 2, length, body[options]);
        if (one == NULL || PyList_Append(found, one) < 0)
            Py_CLEAR(found);
        Py_XDECREF(one);
        pos = options + 1;
    }
    return found == NULL ? NULL : Py_BuildValue("Nn", found, pos);
}

static PyObject *are_within(PyObject *module, PyObject *args)
{
    PyObject *filters;
    Py_ssize_t slashes_max, characters_max;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!nn:are_within", &PyList_Type, &filters, &slashes_max,
                          &characters_max))
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(filters); i++) {
        PyObject *text = PyList_GET_ITEM(filters, i);
        if (!PyUnicode_Check(text)) {
            PyErr_SetString(PyExc_TypeError, "strings are needed");
            return NULL;
        }
        int kind = PyUnicode_KIND(text);
        const void *data = PyUnicode_DATA(text);
        Py_ssize_t size = PyUnicode_GET_LENGTH(text), slashes = 0;
        if (size > characters_max || !size || PyUnicode_READ(kind, data, 0) == '$')
            Py_RETURN_FALSE;
        for (Py_ssize_t at = 0; at < size; at++)
            slashes += PyUnicode_READ(kind, data, at) == '/';
        if (slashes > slashes_max)
            Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

static PyObject *first_levels(PyObject *module, PyObject *filters)
{
    const void *before = NULL; /* the first level of the filter before, of one byte a character */
    Py_ssize_t before_size = -1;

    (void)module;
    if (!PyList_Check(filters)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return NULL;
    }
    PyObject *found = PySet_New(NULL);
    for (Py_ssize_t i = 0; found != NULL && i < PyList_GET_SIZE(filters); i++) {
        PyObject *text = PyList_GET_ITEM(filters, i);
        if (!PyUnicode_Check(text)) {
            PyErr_SetString(PyExc_TypeError, "strings are needed");
            Py_CLEAR(found);
            break;
        }
        Py_ssize_t size = PyUnicode_GET_LENGTH(text);
        Py_ssize_t end = PyUnicode_FindChar(text, '/', 0, size, 1);
        if (end < 0)
            end = size;
        int is_narrow = PyUnicode_KIND(text) == PyUnicode_1BYTE_KIND;
        if (is_narrow && end == before_size && !memcmp(before, PyUnicode_DATA(text), (size_t)end))
            continue;
        before = PyUnicode_DATA(text);
        before_size = is_narrow ? end : -1;
        PyObject *level = PyUnicode_Substring(text, 0, end);
        if (level == NULL || PySet_Add(found, level) < 0)
            Py_CLEAR(found);
        Py_XDECREF(level);
    }
    return found;
}

/* ---- subscribing ----------------------------------------------------------------------------- */

static PyObject *entry_of(PyTypeObject *kind, PyObject *session, PyObject *subscription,
                          PyObject *identifiers)
{
    if (slots_of(&asked, Py_TYPE(subscription)) < 0)
        return NULL;
    PyObject *made = kind->tp_alloc(kind, 0);
    if (made == NULL)
        return NULL;
    for (int which = FILTER; which <= RETAIN_AS_PUBLISHED; which++) { /* HELD_...: the same */
        PyObject *value = *field(&asked, subscription, which);
        if (value == NULL) {
            PyErr_SetString(PyExc_AttributeError, asked.names[which]);
            Py_DECREF(made);
            return NULL;
        }
        set(&held, made, which, value);
    }
    set(&held, made, HELD_SESSION, session);
    set(&held, made, HELD_IDENTIFIERS, identifiers);
    set(&held, made, SHARE, Py_None);
    return made;
}

static PyObject *entries(PyObject *module, PyObject *args)
{
    PyTypeObject *kind;
    PyObject *session, *given, *identifiers;

    (void)module;
    if (!PyArg_ParseTuple(args, "OOOO:entries", &kind, &session, &given, &identifiers) ||
        slots_of(&held, kind) < 0)
        return NULL;
    PyObject *fast = PySequence_Fast(given, "a sequence is needed");
    PyObject *made = fast == NULL ? NULL : PyList_New(PySequence_Fast_GET_SIZE(fast));
    for (Py_ssize_t i = 0; made != NULL && i < PyList_GET_SIZE(made); i++) {
        if (i >= PySequence_Fast_GET_SIZE(fast)) { /* changed by somebody meanwhile */
            PyErr_SetString(PyExc_RuntimeError, "a sequence that changes");
            Py_CLEAR(made);
            break;
        }
        PyObject *wanted = Py_NewRef(PySequence_Fast_GET_ITEM(fast, i));
        PyObject *one = entry_of(kind, session, wanted, identifiers);
        Py_DECREF(wanted);
        if (one == NULL)
            Py_CLEAR(made);
        else
            PyList_SET_ITEM(made, i, one);
    }
    Py_XDECREF(fast);
    return made;
}

/* ---- the table ------------------------------------------------------------------------------- */

static PyObject *new_node(PyTypeObject *kind)
{
    PyObject *made = kind->tp_alloc(kind, 0);
    for (int which = 0; made != NULL && which < node.count; which++)
        set(&node, made, which, Py_None);
    return made;
}

/* One level of a filter. */
struct level {
    Py_ssize_t end;
    Py_UCS4 wildcard; /* which one it is, 0 for none */
};

static struct level level_at(PyObject *topic_filter, Py_ssize_t start)
{
    Py_ssize_t size = PyUnicode_GET_LENGTH(topic_filter);
    Py_ssize_t end = PyUnicode_FindChar(topic_filter, '/', start, size, 1);
    struct level level = {end < 0 ? size : end, 0};
    if (level.end == start + 1) {
        Py_UCS4 only = PyUnicode_READ_CHAR(topic_filter, start);
        level.wildcard = only == '+' || only == '#' ? only : 0;
    }
    return level;
}

/* Returns what a node has below a level, borrowed; NULL for nothing, or with an error set.
 * `level` is NULL for `+`. */
static PyObject *get_below(PyObject *at, PyObject *level)
{
    PyObject *found = *field(&node, at, level == NULL ? PLUS : CHILDREN);
    if (found == NULL || found == Py_None)
        return NULL;
    return level == NULL ? found : PyDict_GetItemWithError(found, level);
}

static int put_below(PyObject *at, PyObject *level, PyObject *what)
{
    if (level == NULL) {
        set(&node, at, PLUS, what);
        return 0;
    }
    PyObject **children = field(&node, at, CHILDREN);
    if (*children == NULL || *children == Py_None) {
        PyObject *made = PyDict_New();
        if (made == NULL)
            return -1;
        Py_XSETREF(*children, made);
    }
    return PyDict_SetItem(*children, level, what);
}

/* Puts a filter into a node in which nothing is at its level from `start` on, past the end when
 * it ends here. As `_node_of` has it. */
static int put_alone(PyObject *at, PyObject *topic_filter, Py_ssize_t start)
{
    if (start > PyUnicode_GET_LENGTH(topic_filter)) {
        set(&node, at, HERE, topic_filter);
        return 0;
    }
    struct level level = level_at(topic_filter, start);
    if (level.wildcard) {
        set(&node, at, level.wildcard == '#' ? HASH : PLUS, topic_filter);
        return 0;
    }
    PyObject *text = PyUnicode_Substring(topic_filter, start, level.end);
    int failed = text == NULL || put_below(at, text, topic_filter) < 0;
    Py_XDECREF(text);
    return failed ? -1 : 0;
}

/* Returns a node in which is what was alone below a level; `start` is that of the next level, in
 * it as in the filter that comes now, whose levels until there are the same. */
static PyObject *node_for(PyTypeObject *kind, PyObject *alone, Py_ssize_t start)
{
    PyObject *made = new_node(kind);
    if (made != NULL && put_alone(made, alone, start) < 0)
        Py_CLEAR(made);
    return made;
}

/* Goes one level down from `at` on the way of a filter, and makes a node where another filter was
 * alone. Returns the node, borrowed; NULL when the filter is put here, or with an error set. */
static PyObject *descend(PyTypeObject *kind, PyObject *at, PyObject *level, PyObject *topic_filter,
                         Py_ssize_t next)
{
    PyObject *below = get_below(at, level);
    if (below == NULL) {
        if (!PyErr_Occurred())
            put_below(at, level, topic_filter);
        return NULL;
    }
    if (PyUnicode_Check(below)) {
        PyObject *made = node_for(kind, below, next);
        int failed = made == NULL || put_below(at, level, made) < 0;
        Py_XDECREF(made); /* the tree has it */
        return failed ? NULL : made;
    }
    if (!Py_IS_TYPE(below, kind)) {
        PyErr_SetString(PyExc_TypeError, "neither a node nor a filter");
        return NULL;
    }
    return below;
}

/* As `FilterTable._add_wildcard`. */
static int add_wildcard(PyTypeObject *kind, PyObject *root, PyObject *topic_filter)
{
    PyObject *at = root; /* borrowed: the tree has it */
    Py_ssize_t start = 0;
    while (start <= PyUnicode_GET_LENGTH(topic_filter)) {
        struct level level = level_at(topic_filter, start);
        if (level.wildcard == '#')
            break;
        PyObject *text = NULL;
        if (!level.wildcard) {
            text = PyUnicode_Substring(topic_filter, start, level.end);
            if (text == NULL)
                return -1;
        }
        start = level.end + 1;
        at = descend(kind, at, text, topic_filter, start);
        Py_XDECREF(text);
        if (at == NULL)
            return PyErr_Occurred() == NULL ? 0 : -1;
    }
    return put_alone(at, topic_filter, start);
}

/* Adds one value to those of a filter that has some: 1 when its key is new, 0 when not. */
static int add_beside(PyObject *values, PyObject *topic_filter, PyObject *there, PyObject *pair)
{
    PyObject *key = PyTuple_GET_ITEM(pair, 0), *value = PyTuple_GET_ITEM(pair, 1);
    if (PyTuple_Check(there)) {
        int same = PyObject_RichCompareBool(PyTuple_GET_ITEM(there, 0), key, Py_EQ);
        if (same < 0)
            return -1;
        if (same)
            return PyDict_SetItem(values, topic_filter, pair);
        PyObject *many = PyDict_New();
        int failed =
            many == NULL ||
            PyDict_SetItem(many, PyTuple_GET_ITEM(there, 0), PyTuple_GET_ITEM(there, 1)) < 0 ||
            PyDict_SetItem(many, key, value) < 0 || PyDict_SetItem(values, topic_filter, many) < 0;
        Py_XDECREF(many);
        return failed ? -1 : 1;
    }
    if (!PyDict_Check(there)) {
        PyErr_SetString(PyExc_TypeError, "neither a pair nor a dict");
        return -1;
    }
    Py_ssize_t before = PyDict_GET_SIZE(there);
    if (PyDict_SetItem(there, key, value) < 0)
        return -1;
    return PyDict_GET_SIZE(there) > before;
}

/* As `FilterTable.add`, but that it returns 1 when the filter has not had this key. */
static int add_filter(PyTypeObject *kind, PyObject *values, PyObject *root, PyObject *key,
                      PyObject *topic_filter, PyObject *value)
{
    if (!PyUnicode_Check(topic_filter)) {
        PyErr_SetString(PyExc_TypeError, "a filter is a string");
        return -1;
    }
    PyObject *pair = PyTuple_Pack(2, key, value);
    if (pair == NULL)
        return -1;
    int added = 1;
    PyObject *there = PyDict_SetDefault(values, topic_filter, pair);
    if (there == NULL) {
        added = -1;
    } else if (there != pair) {
        Py_INCREF(there);
        added = add_beside(values, topic_filter, there, pair);
        Py_DECREF(there);
    } else {
        Py_ssize_t size = PyUnicode_GET_LENGTH(topic_filter);
        if ((PyUnicode_FindChar(topic_filter, '+', 0, size, 1) >= 0 ||
             PyUnicode_FindChar(topic_filter, '#', 0, size, 1) >= 0) &&
            add_wildcard(kind, root, topic_filter) < 0)
            added = -1;
    }
    Py_DECREF(pair);
    return added;
}

static PyObject *add_filters(PyObject *module, PyObject *args)
{
    PyObject *values, *root, *key, *filters, *given;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!OOO!O!:add_filters", &PyDict_Type, &values, &root, &key,
                          &PyList_Type, &filters, &PyList_Type, &given))
        return NULL;
    PyTypeObject *kind = Py_TYPE(root);
    if (slots_of(&node, kind) < 0)
        return NULL;
    Py_ssize_t count = 0;
    if (PyList_GET_SIZE(filters) != PyList_GET_SIZE(given)) {
        PyErr_SetString(PyExc_ValueError, "a value for each filter is needed");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(filters) && i < PyList_GET_SIZE(given); i++) {
        PyObject *topic_filter = Py_NewRef(PyList_GET_ITEM(filters, i));
        PyObject *value = Py_NewRef(PyList_GET_ITEM(given, i));
        int added = add_filter(kind, values, root, key, topic_filter, value);
        Py_DECREF(value);
        Py_DECREF(topic_filter);
        if (added < 0)
            return NULL;
        count += added;
    }
    return PyLong_FromSsize_t(count);
}

static PyMethodDef methods[] = {
    {"subscriptions", subscriptions, METH_VARARGS, "Read a SUBSCRIBE as far as it is plain."},
    {"are_within", are_within, METH_VARARGS, "Say whether nothing has to be asked of filters."},
    {"first_levels", first_levels, METH_O, "Say with which levels filters begin."},
    {"entries", entries, METH_VARARGS, "Make the subscriptions of a session."},
    {"add_filters", add_filters, METH_VARARGS, "Add filters to a table."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_filters", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__filters(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "VERSION", 1) < 0)
        Py_CLEAR(module);
    return module;
}
