/* Framed payloads in C: docs/link-format-structured.md section 4.4, the twins of frames.py and
 * protobuf.py.
 */

#include "_kernel.h"

enum { LITERAL, OPEN, CLOSE }; /* items of a framed fragment */
enum { VARINT = 0, FIXED_64 = 1, PART = 2, FIXED_32 = 5 };

#define DEPTH_MAX 6       /* of messages within messages that are taken apart */
#define MARKS_DEPTH_MAX 16
#define NAME_BYTES_MAX 64
#define VARINT_BYTES_MAX 10

/* ---- put together -------------------------------------------------------------------------- */

/* Adds up how many bytes a fragment may take; -1 with an error set. */
static int add_size(PyObject *steps, Py_ssize_t *size)
{
    if (!PyList_Check(steps)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return -1;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(steps); i++) {
        PyObject *step = PyList_GET_ITEM(steps, i);
        *size += PyBytes_Check(step) ? PyBytes_GET_SIZE(step) : VARINT_BYTES_MAX;
    }
    return 0;
}

/* Writes bytes so that they end at `at`; returns where they begin. */
static char *put_back(char *at, PyObject *bytes)
{
    at -= PyBytes_GET_SIZE(bytes);
    memcpy(at, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
    return at;
}

static char *put_length_back(char *at, size_t length)
{
    char text[VARINT_BYTES_MAX];
    int size = 0;
    for (; length >= 0x80; length >>= 7)
        text[size++] = (char)(uint8_t)(length | 0x80);
    text[size++] = (char)(uint8_t)length;
    at -= size;
    memcpy(at, text, (size_t)size);
    return at;
}

typedef struct {
    char *at;                     /* what is written so far begins here */
    char *ends[MARKS_DEPTH_MAX];  /* of the parts that are open, from behind */
    int depth;
} Backwards;

/* Writes a fragment from its last step to its first. */
static int put_steps_back(Backwards *to, PyObject *steps)
{
    for (Py_ssize_t i = PyList_GET_SIZE(steps) - 1; i >= 0; i--) {
        PyObject *step = PyList_GET_ITEM(steps, i);
        if (PyBytes_Check(step)) {
            to->at = put_back(to->at, step);
            continue;
        }
        long mark = PyLong_AsLong(step);
        if (mark == CLOSE && to->depth < MARKS_DEPTH_MAX) {
            to->ends[to->depth++] = to->at;
        } else if (mark == OPEN && to->depth > 0) {
            char *end = to->ends[--to->depth];
            to->at = put_length_back(to->at, (size_t)(end - to->at));
        } else {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_ValueError, "framed parts that do not nest");
            return -1;
        }
    }
    return 0;
}

/* Returns the payload of a framed template: its fragments with tokens, one fewer, between. */
PyObject *kernel_framed(PyObject *frames, PyObject **tokens)
{
    Py_ssize_t n = PyList_GET_SIZE(frames), size = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        if (add_size(PyList_GET_ITEM(frames, i), &size))
            return NULL;
        if (i < n - 1)
            size += PyBytes_GET_SIZE(tokens[i]);
    }
    char *room = PyMem_Malloc((size_t)size + 1);
    if (room == NULL)
        return PyErr_NoMemory();
    Backwards to = {room + size, {NULL}, 0};
    int failed = 0;
    for (Py_ssize_t i = n - 1; !failed && i >= 0; i--) {
        if (i < n - 1)
            to.at = put_back(to.at, tokens[i]);
        failed = put_steps_back(&to, PyList_GET_ITEM(frames, i));
    }
    if (!failed && to.depth) {
        PyErr_SetString(PyExc_ValueError, "a framed part that is never closed");
        failed = 1;
    }
    PyObject *out = failed ? NULL : PyBytes_FromStringAndSize(to.at, room + size - to.at);
    PyMem_Free(room);
    return out;
}

PyObject *kernel_assemble(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *frames, *tokens;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &frames, &PyTuple_Type, &tokens))
        return NULL;
    Py_ssize_t n = PyTuple_GET_SIZE(tokens);
    if (PyList_GET_SIZE(frames) != n + 1)
        return PyErr_Format(PyExc_ValueError, "one fragment more than tokens is needed");
    for (Py_ssize_t i = 0; i < n; i++)
        if (!PyBytes_Check(PyTuple_GET_ITEM(tokens, i)))
            return PyErr_Format(PyExc_TypeError, "bytes are needed");
    return kernel_framed(frames, &PyTuple_GET_ITEM(tokens, 0));
}

/* ---- taken apart --------------------------------------------------------------------------- */

typedef struct {
    const char *tag, *value, *end; /* where its tag, value and next field begin */
    uint32_t number;
    int wire_type;
    int within; /* the value reads as a message: fields up to `next` are its own */
    Py_ssize_t next;
} Field;

typedef struct {
    Field *fields;
    Py_ssize_t count, room;
} Fields;

/* Reads a number of the shortest spelling; returns the place behind it, NULL where it is none. */
static const char *read_varint(const char *at, const char *end, uint64_t *value)
{
    *value = 0;
    for (int shift = 0; at < end && shift < 70; shift += 7) {
        uint8_t byte = (uint8_t)*at++;
        if (shift == 63 && byte > 1)
            return NULL;
        *value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80)
            return byte == 0 && shift ? NULL : at;
    }
    return NULL;
}

static int has_unprintable(const char *at, const char *end)
{
    for (; at < end; at++)
        if (*at < 32 || *at > 126)
            return 1;
    return 0;
}

/* Returns the place of a new field, -1 without memory. */
static Py_ssize_t add_field(Fields *in)
{
    if (in->count == in->room) {
        Py_ssize_t room = 2 * in->room + 64;
        Field *more = PyMem_Resize(in->fields, Field, (size_t)room);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        in->fields = more;
        in->room = room;
    }
    return in->count++;
}

/* Reads the fields of a message; returns 1, 0 for bytes that are none, -1 on error. */
static int read_fields(Fields *in, const char *at, const char *end, int depth)
{
    while (at < end) {
        uint64_t tag, number;
        Field field = {.tag = at, .within = 0};
        at = field.value = read_varint(at, end, &tag);
        if (at == NULL || tag < 8 || tag >> 32)
            return 0;
        field.number = (uint32_t)(tag >> 3);
        field.wire_type = (int)(tag & 7);
        if (field.wire_type == VARINT || field.wire_type == PART) {
            at = read_varint(at, end, &number);
            if (at == NULL)
                return 0;
            if (field.wire_type == PART) {
                if (number > (uint64_t)(end - at))
                    return 0;
                field.value = at;
                at += number;
            }
        } else if (field.wire_type == FIXED_64 || field.wire_type == FIXED_32) {
            Py_ssize_t width = field.wire_type == FIXED_64 ? 8 : 4;
            if (end - at < width)
                return 0;
            at += width;
        } else {
            return 0;
        }
        field.end = at;
        Py_ssize_t place = add_field(in);
        if (place < 0)
            return -1;
        if (field.wire_type == PART && depth < DEPTH_MAX &&
            has_unprintable(field.value, field.end)) {
            field.within = read_fields(in, field.value, field.end, depth + 1);
            if (field.within < 0)
                return -1;
            if (!field.within)
                in->count = place + 1;
        }
        field.next = in->count;
        in->fields[place] = field;
    }
    return 1;
}

static PyObject *longer(PyObject *path, PyObject *last)
{
    Py_ssize_t n = PyTuple_GET_SIZE(path);
    PyObject *out = last ? PyTuple_New(n + 1) : NULL;
    for (Py_ssize_t i = 0; out != NULL && i < n; i++)
        PyTuple_SET_ITEM(out, i, Py_NewRef(PyTuple_GET_ITEM(path, i)));
    if (out != NULL)
        PyTuple_SET_ITEM(out, n, Py_NewRef(last));
    Py_XDECREF(last);
    return out;
}

/* Notes the paths of parts that come several times in one message. */
static int note_repeated(const Fields *in, Py_ssize_t at, Py_ssize_t end, PyObject *path,
                         PyObject *repeated)
{
    uint64_t low = 0; /* the numbers below 64 that came; those above are in `seen` */
    PyObject *seen = NULL;
    int failed = 0;
    for (; !failed && at < end; at = in->fields[at].next) {
        const Field *field = in->fields + at;
        if (!field->within)
            continue;
        PyObject *number = PyLong_FromUnsignedLong(field->number);
        int again = field->number < 64 ? low >> field->number & 1 : 0;
        if (field->number < 64) {
            low |= (uint64_t)1 << field->number;
        } else if (number != NULL && (seen != NULL || (seen = PySet_New(NULL)) != NULL)) {
            again = PySet_Contains(seen, number);
            failed = again < 0 || PySet_Add(seen, number);
        }
        PyObject *where = longer(path, number);
        failed = failed || where == NULL || (again > 0 && PySet_Add(repeated, where)) ||
                 note_repeated(in, at + 1, field->next, where, repeated);
        Py_XDECREF(where);
    }
    Py_XDECREF(seen);
    return failed ? -1 : 0;
}

typedef struct {
    PyObject *fragments, *tokens, *names, *repeated, *part;
    char *pending; /* items of the fragment under way */
    Py_ssize_t size, room;
} Split;

static int add_pending(Split *to, const char *data, Py_ssize_t size)
{
    if (to->size + size > to->room) {
        Py_ssize_t room = 2 * to->room + size + 64;
        char *more = PyMem_Realloc(to->pending, (size_t)room);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        to->pending = more;
        to->room = room;
    }
    memcpy(to->pending + to->size, data, (size_t)size);
    to->size += size;
    return 0;
}

static int add_mark(Split *to, char mark)
{
    return add_pending(to, &mark, 1);
}

/* Adds the items that stand for bytes. */
static int add_literal(Split *to, const char *at, Py_ssize_t size)
{
    for (; size > 0; at += 255, size -= 255) {
        Py_ssize_t some = size < 255 ? size : 255;
        char head[2] = {LITERAL, (char)(uint8_t)some};
        if (add_pending(to, head, 2) || add_pending(to, at, some))
            return -1;
    }
    return 0;
}

static int end_fragment(Split *to)
{
    int failed =
        kernel_append_new(to->fragments, PyBytes_FromStringAndSize(to->pending, to->size));
    to->size = 0;
    return failed;
}

/* Adds a slot, `kind` being what its name ends with. */
static int add_token(Split *to, const Field *field, PyObject *path, PyObject *kind)
{
    return end_fragment(to) ||
                   kernel_append_new(to->tokens, PyBytes_FromStringAndSize(
                                                     field->value, field->end - field->value)) ||
                   kernel_append_new(to->names, longer(path, kind))
               ? -1
               : 0;
}

/* Returns 1 for a field that may say which of several parts this one is. */
static int is_name(const Field *field)
{
    Py_ssize_t size = field->end - field->value;
    return !field->within && (field->wire_type == VARINT || field->wire_type == PART) &&
           size > 0 && size <= NAME_BYTES_MAX;
}

static int split_fields(Split *to, const Fields *in, Py_ssize_t at, Py_ssize_t end,
                        PyObject *path);

/* Adds a part that reads as a message. */
static int split_part(Split *to, const Fields *in, Py_ssize_t at, PyObject *where)
{
    const Field *field = in->fields + at, *first = field + 1;
    PyObject *path = Py_NewRef(where);
    int named = PySet_Contains(to->repeated, where), failed = named < 0 || add_mark(to, OPEN);
    named = named > 0 && is_name(first);
    if (!failed && named) {
        /* its tag, and for a text its length, stand before the value */
        failed = add_literal(to, first->tag, first->end - first->tag);
        Py_SETREF(path, longer(path, PyBytes_FromStringAndSize(first->value,
                                                               first->end - first->value)));
        failed = failed || path == NULL;
    }
    failed = failed || split_fields(to, in, named ? first->next : at + 1, field->next, path) ||
             add_mark(to, CLOSE);
    Py_XDECREF(path);
    return failed ? -1 : 0;
}

static int split_fields(Split *to, const Fields *in, Py_ssize_t at, Py_ssize_t end,
                        PyObject *path)
{
    for (; at < end; at = in->fields[at].next) {
        const Field *field = in->fields + at;
        Py_ssize_t tag = field->wire_type == PART ? 0 : field->value - field->tag;
        if (field->wire_type == PART) {
            uint64_t ignored;
            tag = read_varint(field->tag, field->end, &ignored) - field->tag;
        }
        PyObject *where = longer(path, PyLong_FromUnsignedLong(field->number));
        int failed = where == NULL || add_literal(to, field->tag, tag);
        if (failed)
            ;
        else if (field->within)
            failed = split_part(to, in, at, where);
        else if (field->wire_type == PART)
            failed = add_mark(to, OPEN) || add_token(to, field, where, Py_NewRef(to->part)) ||
                     add_mark(to, CLOSE);
        else
            failed = add_token(to, field, where, PyLong_FromLong(field->wire_type));
        Py_XDECREF(where);
        if (failed)
            return -1;
    }
    return 0;
}

/* Returns 1 when a message has two fields or more, counted with those within its own. */
static int is_worth_it(const Fields *in)
{
    Py_ssize_t found = 0;
    for (Py_ssize_t at = 0; at < in->count; at = in->fields[at].next) {
        found++;
        for (Py_ssize_t i = at + 1; i < in->fields[at].next; i = in->fields[i].next)
            found++;
    }
    return found >= 2;
}

/* Returns the fragments, tokens and names of a payload that reads as protobuf, else None. */
PyObject *kernel_split_protobuf(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *payload, *repeated, *out = NULL;
    Fields in = {0};
    Split to = {0};
    if (!PyArg_ParseTuple(args, "O!O!", &PyBytes_Type, &payload, &PySet_Type, &repeated))
        return NULL;
    const char *begin = PyBytes_AS_STRING(payload);
    int read = read_fields(&in, begin, begin + PyBytes_GET_SIZE(payload), 0);
    if (read > 0 && is_worth_it(&in)) {
        PyObject *path = PyTuple_New(0);
        to.fragments = PyList_New(0);
        to.tokens = PyList_New(0);
        to.names = PyList_New(0);
        to.part = PyUnicode_InternFromString("part");
        to.repeated = repeated;
        int failed = !path || !to.fragments || !to.tokens || !to.names || !to.part ||
                     note_repeated(&in, 0, in.count, path, repeated) ||
                     split_fields(&to, &in, 0, in.count, path) || end_fragment(&to);
        if (!failed && PyList_GET_SIZE(to.tokens))
            out = Py_BuildValue("NNN", PyList_AsTuple(to.fragments), PyList_AsTuple(to.tokens),
                                PyList_AsTuple(to.names));
        Py_XDECREF(path);
        Py_XDECREF(to.fragments);
        Py_XDECREF(to.tokens);
        Py_XDECREF(to.names);
        Py_XDECREF(to.part);
    }
    PyMem_Free(in.fields);
    PyMem_Free(to.pending);
    if (out != NULL || PyErr_Occurred())
        return out;
    Py_RETURN_NONE;
}
