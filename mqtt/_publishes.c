/* The PUBLISH packets of a read that are plain, taken apart at a call.
 *
 * Built where there is a compiler; publish_calls.py says what it stands for
 * (tests/mqtt/test_publish_calls.py compares them). It decides nothing: what is not plain it leaves
 * to the server's own pass, which says what is wrong with it.
 *
 * Invariants: nothing is read past `size`; a message is whole before anybody else can see it.
 */

#include "_slots.h"

/* Where a class has the fields that are filled here; the others are copied from a template. */
static const char *const names[] = {"topic", "payload", "qos", "retain"};
enum { TOPIC, PAYLOAD, QOS, RETAIN, FIELDS };
static PyTypeObject *known; /* held: whose fields these are, NULL before the first call */
static Py_ssize_t offsets[FIELDS];

/* Finds the fields of a class that has nothing but slots, once a class. */
static int find_fields(PyTypeObject *type)
{
    if (type == known)
        return 0;
    if (type->tp_base != &PyBaseObject_Type || type->tp_dictoffset || type->tp_weaklistoffset ||
        type->tp_itemsize) {
        PyErr_SetString(PyExc_TypeError, "a class with slots alone is needed");
        return -1;
    }
    Py_ssize_t at[FIELDS]; /* those of the class before stay until all are found */
    for (int i = 0; i < FIELDS; i++) {
        at[i] = slot_offset(type, names[i]);
        if (at[i] < 0)
            return -1;
    }
    memcpy(offsets, at, sizeof offsets);
    Py_XSETREF(known, (PyTypeObject *)Py_NewRef((PyObject *)type));
    return 0;
}

static PyObject **field(PyObject *object, Py_ssize_t offset)
{
    return (PyObject **)((char *)object + offset);
}

/* Steals `value`; -1 when it is NULL. */
static int fill(PyObject *object, int which, PyObject *value)
{
    if (value == NULL)
        return -1;
    Py_XSETREF(*field(object, offsets[which]), value);
    return 0;
}

struct publish {
    Py_ssize_t topic, id, payload, after; /* where they begin; `id` is 0 without one */
};

/* Returns 1 when a whole, plain PUBLISH begins at `pos`. */
static int find_plain(const unsigned char *data, Py_ssize_t size, Py_ssize_t pos, int version,
                      Py_ssize_t size_max, struct publish *found)
{
    Py_ssize_t at = pos + 1, length = 0;
    int shift = 0;
    unsigned char byte;
    if (pos >= size || (data[pos] & 0xFC) != 0x30) /* QoS 0 or 1, not sent again */
        return 0;
    do {
        if (at >= size || shift > 21)
            return 0;
        byte = data[at++];
        length |= (Py_ssize_t)(byte & 0x7F) << shift;
        shift += 7;
    } while (byte & 0x80);
    if (!byte && shift > 7) /* in more bytes than it needs */
        return 0;
    found->after = at + length;
    if (found->after > size || found->after - pos > size_max || length < 2)
        return 0;
    found->topic = at + 2;
    at += 2 + (data[at] << 8 | data[at + 1]);
    found->id = 0;
    found->payload = at;
    if (at == found->topic || at > found->after)
        return 0;
    if (data[pos] & 2) {
        found->id = at;
        found->payload = at += 2;
        if (at > found->after || !(data[at - 2] | data[at - 1]))
            return 0;
    }
    if (version >= 5) {
        if (at >= found->after || data[at]) /* it has properties */
            return 0;
        found->payload++;
    }
    return 1;
}

static PyObject *message_of(PyObject *template, const unsigned char *data, Py_ssize_t pos,
                            const struct publish *found)
{
    PyTypeObject *type = Py_TYPE(template);
    PyObject *made = type->tp_alloc(type, 0);
    if (made == NULL)
        return NULL;
    Py_ssize_t offset = (Py_ssize_t)sizeof(PyObject);
    for (; offset < type->tp_basicsize; offset += (Py_ssize_t)sizeof(PyObject *))
        *field(made, offset) = Py_XNewRef(*field(template, offset));
    const char *text = (const char *)data;
    Py_ssize_t topic_end = found->id ? found->id : found->topic + (data[found->topic - 2] << 8 |
                                                                  data[found->topic - 1]);
    if (fill(made, TOPIC,
             PyBytes_FromStringAndSize(text + found->topic, topic_end - found->topic)) < 0 ||
        fill(made, PAYLOAD,
             PyBytes_FromStringAndSize(text + found->payload, found->after - found->payload)) < 0 ||
        fill(made, QOS, PyLong_FromLong(data[pos] >> 1 & 3)) < 0 ||
        fill(made, RETAIN, PyBool_FromLong(data[pos] & 1)) < 0)
        Py_CLEAR(made);
    return made;
}

/* Steals `item`. */
static int append(PyObject *list, PyObject *item)
{
    int failed = item == NULL || PyList_Append(list, item) < 0;
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

static PyObject *publishes(PyObject *module, PyObject *args)
{
    PyObject *template;
    const char *text;
    Py_ssize_t size, pos, size_max, count_max;
    int version;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oy#ninn:publishes", &template, &text, &size, &pos, &version,
                          &size_max, &count_max) ||
        find_fields(Py_TYPE(template)) < 0)
        return NULL;
    if (pos < 0) {
        PyErr_SetString(PyExc_ValueError, "an offset is needed");
        return NULL;
    }
    const unsigned char *data = (const unsigned char *)text;
    PyObject *taken = PyList_New(0);
    struct publish found;
    while (taken != NULL && count_max-- > 0 &&
           find_plain(data, size, pos, version, size_max, &found)) {
        int id = found.id ? data[found.id] << 8 | data[found.id + 1] : 0;
        if (append(taken, message_of(template, data, pos, &found)) < 0 ||
            append(taken, PyLong_FromLong(id)) < 0 ||
            append(taken, PyLong_FromSsize_t(found.after)) < 0)
            Py_CLEAR(taken);
        pos = found.after;
    }
    return taken;
}

static PyMethodDef methods[] = {
    {"publishes", publishes, METH_VARARGS, "Take apart the plain PUBLISH packets that come next."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_publishes", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__publishes(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "VERSION", 1) < 0)
        Py_CLEAR(module);
    return module;
}
