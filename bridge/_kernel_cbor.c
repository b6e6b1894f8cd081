/* Values of Python as CBOR (RFC 8949, in shortest form): numbers of 64 bits, bytes, texts, lists,
 * tuples, dicts, booleans and None. What else there is raises, and kernel.py asks cbor2.
 *
 * Invariants: nothing here runs Python code while a list or dict is walked; no more is written
 * than there was made room for.
 */

#include "_kernel.h"

#include <string.h>

typedef struct {
    uint8_t *start, *out, *end;
} Written;

/* Makes sure that `more` bytes can be written. */
static int room_for(Written *to, size_t more)
{
    if ((size_t)(to->end - to->out) >= more)
        return 0;
    size_t used = (size_t)(to->out - to->start), size = 2 * (used + more);
    uint8_t *start = PyMem_Realloc(to->start, size);
    if (start == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    to->start = start;
    to->out = start + used;
    to->end = start + size;
    return 0;
}

static int put_text(Written *to, uint8_t major, const char *text, Py_ssize_t length)
{
    if (room_for(to, 9 + (size_t)length) < 0)
        return -1;
    to->out = put_head(to->out, major, (uint64_t)length);
    memcpy(to->out, text, (size_t)length);
    to->out += length;
    return 0;
}

static int put_integer(Written *to, PyObject *value)
{
    int overflow = 0;
    uint8_t major = 0;
    int64_t small = PyLong_AsLongLongAndOverflow(value, &overflow);
    uint64_t argument = (uint64_t)small;
    if (overflow) {
        argument = PyLong_AsUnsignedLongLong(value); /* OverflowError past 64 bits, and below */
        if (PyErr_Occurred())
            return -1;
    } else if (small < 0) {
        major = 0x20;
        argument = (uint64_t)~small;
    }
    to->out = put_head(to->out, major, argument);
    return 0;
}

static int put_value(Written *to, PyObject *value);

static int put_array(Written *to, PyObject *value)
{
    if (room_for(to, 9) < 0)
        return -1;
    to->out = put_head(to->out, 0x80, (uint64_t)PySequence_Fast_GET_SIZE(value));
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(value); i++)
        if (put_value(to, PySequence_Fast_GET_ITEM(value, i)) < 0)
            return -1;
    return 0;
}

static int put_map(Written *to, PyObject *value)
{
    PyObject *key, *item;
    Py_ssize_t at = 0;
    if (room_for(to, 9) < 0)
        return -1;
    to->out = put_head(to->out, 0xA0, (uint64_t)PyDict_GET_SIZE(value));
    while (PyDict_Next(value, &at, &key, &item))
        if (put_value(to, key) < 0 || put_value(to, item) < 0)
            return -1;
    return 0;
}

/* Writes a value; nothing it calls runs Python code, so lists and dicts stay as they are. */
static int put_value(Written *to, PyObject *value)
{
    int done;
    if (room_for(to, 9) < 0)
        return -1;
    if (value == Py_None || PyBool_Check(value)) {
        *to->out++ = value == Py_None ? 0xF6 : value == Py_True ? 0xF5 : 0xF4;
        return 0;
    }
    if (PyLong_Check(value))
        return put_integer(to, value);
    if (PyBytes_Check(value))
        return put_text(to, 0x40, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    if (PyUnicode_Check(value)) {
        Py_ssize_t length;
        const char *text = PyUnicode_AsUTF8AndSize(value, &length);
        return text == NULL ? -1 : put_text(to, 0x60, text, length);
    }
    if (Py_EnterRecursiveCall(" in CBOR"))
        return -1;
    if (PyList_Check(value) || PyTuple_Check(value))
        done = put_array(to, value);
    else if (PyDict_Check(value))
        done = put_map(to, value);
    else {
        PyErr_Format(PyExc_TypeError, "%s in CBOR", Py_TYPE(value)->tp_name);
        done = -1;
    }
    Py_LeaveRecursiveCall();
    return done;
}

PyObject *kernel_cbor(PyObject *self, PyObject *value)
{
    Written to = {NULL, NULL, NULL};
    PyObject *made = NULL;
    if (put_value(&to, value) == 0)
        made = PyBytes_FromStringAndSize((char *)to.start, (Py_ssize_t)(to.out - to.start));
    PyMem_Free(to.start);
    return made;
}
