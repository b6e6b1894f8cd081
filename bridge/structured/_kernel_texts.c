/* Texts in C: docs/link-format-structured.md section 5.4, the twins of texts.py, and of columns.py
 * for columns of texts. How a middle is packed by its alphabet is left to Python.
 */

#include "_kernel.h"

enum { TEXT_POOL, PACKED_POOL };

typedef struct {
    const char *at;
    Py_ssize_t size;
} Piece;

static Piece piece_of(PyObject *bytes)
{
    return (Piece){PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes)};
}

/* Finds how many bytes two texts begin with in common, and how many end what is left of them. */
static void shared_ends(Piece a, Piece b, Py_ssize_t *start, Py_ssize_t *end)
{
    Py_ssize_t most = a.size < b.size ? a.size : b.size;
    for (*start = 0; *start < most && a.at[*start] == b.at[*start];)
        ++*start;
    for (*end = 0; *end < most - *start && a.at[a.size - 1 - *end] == b.at[b.size - 1 - *end];)
        ++*end;
}

PyObject *kernel_shared_ends(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *a, *b;
    Py_ssize_t start, end;
    if (!PyArg_ParseTuple(args, "SS", &a, &b))
        return NULL;
    shared_ends(piece_of(a), piece_of(b), &start, &end);
    return Py_BuildValue("nn", start, end);
}

/* ---- what is coded with -------------------------------------------------------------------- */

typedef struct {
    PyObject *io, *model;
    PyObject *put, *plain, *pools;        /* of a writer; NULL of a reader */
    PyObject *prefix, *suffix, *length;   /* tables */
    int64_t last_prefix, last_suffix, last_length;
    PyObject *packing;                    /* an Alphabet or None */
    uint8_t members[256];                 /* of it */
    int64_t left;                         /* bytes of texts that a reader may still make */
    Py_ssize_t most;
} Texts;

static int open_texts(Texts *of, int writes)
{
    if ((writes && ((of->put = kernel_get(of->io, NAME_spans, &PyList_Type)) == NULL ||
                    (of->plain = kernel_get(of->io, NAME_plain, &PyByteArray_Type)) == NULL ||
                    (of->pools = kernel_get(of->io, NAME_pools, &PyList_Type)) == NULL)) ||
        (!writes && kernel_need_number(of->io, NAME_texts_left, &of->left)) ||
        (of->prefix = kernel_get(of->model, NAME_prefix, NULL)) == NULL ||
        (of->suffix = kernel_get(of->model, NAME_suffix, NULL)) == NULL ||
        (of->length = kernel_get(of->model, NAME_length, NULL)) == NULL ||
        kernel_need_number(of->model, NAME_last_prefix, &of->last_prefix) ||
        kernel_need_number(of->model, NAME_last_suffix, &of->last_suffix) ||
        kernel_need_number(of->model, NAME_last_length, &of->last_length))
        return -1;
    if (of->packing == Py_None)
        return 0;
    PyObject *members = kernel_get(of->packing, NAME_members, &PyBytes_Type);
    for (Py_ssize_t i = 0; members != NULL && i < PyBytes_GET_SIZE(members); i++)
        of->members[(uint8_t)PyBytes_AS_STRING(members)[i]] = 1;
    return members ? 0 : -1;
}

/* Keeps what the next text's lengths are told by, and what is left for it. */
static int close_texts(const Texts *of)
{
    if (of->put == NULL && kernel_set_number(of->io, NAME_texts_left, of->left))
        return -1;
    return kernel_set_number(of->model, NAME_last_prefix, of->last_prefix) ||
                   kernel_set_number(of->model, NAME_last_suffix, of->last_suffix) ||
                   kernel_set_number(of->model, NAME_last_length, of->last_length)
               ? -1
               : 0;
}

static int is_member(const Texts *of, char sign)
{
    return of->members[(uint8_t)sign];
}

static Py_ssize_t count_signs(const Texts *of, Piece text)
{
    Py_ssize_t signs = 0;
    for (Py_ssize_t i = 0; i < text.size; i++)
        signs += !is_member(of, text.at[i]);
    return signs;
}

static int refuse(const char *why)
{
    PyErr_SetString(PyExc_ValueError, why);
    return -1;
}

/* ---- writing ------------------------------------------------------------------------------- */

static int add_to_pool(const Texts *of, int pool, Piece more)
{
    PyObject *bytes = kernel_item(of->pools, pool);
    if (bytes == NULL || !PyByteArray_Check(bytes))
        return bytes ? refuse("a pool of bytes is needed") : -1;
    Py_ssize_t size = PyByteArray_GET_SIZE(bytes);
    if (PyByteArray_Resize(bytes, size + more.size))
        return -1;
    memcpy(PyByteArray_AS_STRING(bytes) + size, more.at, (size_t)more.size);
    return 0;
}

/* Returns what of a middle is to be packed; NULL where it is not of the alphabet, or on error. */
static PyObject *packable(const Texts *of, Piece middle, Piece replaced)
{
    int like = middle.size == replaced.size && count_signs(of, replaced) > 0;
    PyObject *out = PyBytes_FromStringAndSize(NULL, middle.size);
    Py_ssize_t size = 0;
    for (Py_ssize_t i = 0; out != NULL && i < middle.size; i++) {
        if (like && !is_member(of, replaced.at[i])) {
            if (middle.at[i] != replaced.at[i])
                Py_CLEAR(out);
        } else if (is_member(of, middle.at[i])) {
            PyBytes_AS_STRING(out)[size++] = middle.at[i];
        } else {
            Py_CLEAR(out);
        }
    }
    if (out != NULL)
        _PyBytes_Resize(&out, size);
    return out;
}

static int write_packed(const Texts *of, PyObject *kept)
{
    if (PyBytes_GET_SIZE(kept) == 0)
        return 0;
    PyObject *pack = kernel_get(of->packing, NAME_pack, NULL);
    PyObject *packed = pack ? PyObject_CallOneArg(pack, kept) : NULL;
    int failed = packed == NULL || !PyBytes_Check(packed) ||
                 add_to_pool(of, PACKED_POOL, piece_of(packed));
    Py_XDECREF(packed);
    return failed ? -1 : 0;
}

static int write_text(Texts *of, Piece reference, Piece value)
{
    Py_ssize_t prefix = 0, suffix = 0;
    if (value.size && reference.size)
        shared_ends(value, reference, &prefix, &suffix);
    Piece middle = {value.at + prefix, value.size - prefix - suffix};
    Piece replaced = {reference.at + prefix, reference.size - prefix - suffix};
    if (value.size > of->most)
        return refuse("a text longer than allowed");
    PyObject *kept = NULL;
    int packs = of->packing != Py_None, escapes = 0;
    if (packs && value.size) {
        kept = packable(of, middle, replaced);
        if (kept == NULL && PyErr_Occurred())
            return -1;
        escapes = kept == NULL;
    }
    int failed = kernel_write_number(of->put, of->plain, of->prefix, prefix - of->last_prefix) ||
                 kernel_write_number(of->put, of->plain, of->suffix, suffix - of->last_suffix);
    if (!failed && escapes)
        failed = kernel_put_symbol(of->put, of->length, KERNEL_ESCAPE) ||
                 kernel_write_number(of->put, of->plain, of->length, middle.size);
    else if (!failed)
        failed = kernel_write_number(of->put, of->plain, of->length,
                                     middle.size - of->last_length);
    if (!failed)
        failed = kept ? write_packed(of, kept) : add_to_pool(of, TEXT_POOL, middle);
    Py_XDECREF(kept);
    of->last_prefix = prefix;
    of->last_suffix = suffix;
    of->last_length = middle.size;
    return failed ? -1 : 0;
}

/* ---- reading ------------------------------------------------------------------------------- */

/* Returns bytes of a pool. */
static PyObject *take_from_pool(const Texts *of, int pool, Py_ssize_t size)
{
    PyObject *number = PyLong_FromLong(pool), *length = PyLong_FromSsize_t(size), *out = NULL;
    if (number != NULL && length != NULL)
        out = PyObject_CallMethodObjArgs(of->io, kernel_names[NAME_piece], number, length, NULL);
    Py_XDECREF(number);
    Py_XDECREF(length);
    if (out != NULL && (!PyBytes_Check(out) || PyBytes_GET_SIZE(out) != size)) {
        Py_CLEAR(out);
        refuse("bytes of another length");
    }
    return out;
}

/* Returns `size` members as they were before they were packed. */
static PyObject *unpacked(const Texts *of, Py_ssize_t size)
{
    PyObject *sizes = kernel_get(of->packing, NAME_size, NULL), *out = NULL;
    PyObject *unpack = sizes ? kernel_get(of->packing, NAME_unpack, NULL) : NULL;
    PyObject *length = unpack ? PyLong_FromSsize_t(size) : NULL;
    PyObject *packed_size = length ? PyObject_CallOneArg(sizes, length) : NULL;
    Py_ssize_t bytes = packed_size ? PyLong_AsSsize_t(packed_size) : -1;
    PyObject *packed = bytes >= 0 ? take_from_pool(of, PACKED_POOL, bytes) : NULL;
    if (packed != NULL)
        out = PyObject_CallFunctionObjArgs(unpack, packed, length, NULL);
    Py_XDECREF(length);
    Py_XDECREF(packed_size);
    Py_XDECREF(packed);
    if (out != NULL && (!PyBytes_Check(out) || PyBytes_GET_SIZE(out) != size)) {
        Py_CLEAR(out);
        refuse("bytes of another length");
    }
    return out;
}

/* Returns the middle of a text, of `length`, that stands where `replaced` did. */
static PyObject *read_middle(const Texts *of, Py_ssize_t length, Piece replaced, int packs)
{
    if (!packs || length == 0)
        return take_from_pool(of, TEXT_POOL, length);
    Py_ssize_t signs = length == replaced.size ? count_signs(of, replaced) : 0, at = 0;
    PyObject *kept =
        length > signs ? unpacked(of, length - signs) : PyBytes_FromStringAndSize(NULL, 0);
    if (kept == NULL || signs == 0)
        return kept;
    PyObject *out = PyBytes_FromStringAndSize(NULL, length);
    for (Py_ssize_t i = 0; out != NULL && i < length; i++)
        PyBytes_AS_STRING(out)[i] = is_member(of, replaced.at[i]) ? PyBytes_AS_STRING(kept)[at++]
                                                                  : replaced.at[i];
    Py_DECREF(kept);
    return out;
}

/* Reads a number that is no escape; `of_old` is what it is counted from. */
static int read_from(const Texts *of, PyObject *table, int64_t of_old, int64_t *out)
{
    int found = kernel_read_number(of->io, table, out);
    if (found < 0)
        return -1;
    if (found)
        return refuse("an escape where an integer belongs");
    return __builtin_add_overflow(*out, of_old, out) ? refuse("a length past all bounds") : 0;
}

static PyObject *read_text(Texts *of, Piece reference)
{
    int64_t prefix, suffix, length;
    if (read_from(of, of->prefix, of->last_prefix, &prefix) ||
        read_from(of, of->suffix, of->last_suffix, &suffix))
        return NULL;
    if (prefix < 0 || suffix < 0 || prefix > reference.size || suffix > reference.size - prefix)
        return PyErr_Format(PyExc_ValueError, "a text that shares more than its reference has");
    Piece replaced = {reference.at + prefix, reference.size - prefix - suffix};
    int packs = of->packing != Py_None, found = kernel_read_number(of->io, of->length, &length);
    if (found < 0)
        return NULL;
    if (found) {
        packs = 0;
        if (read_from(of, of->length, 0, &length))
            return NULL;
    } else if (__builtin_add_overflow(length, of->last_length, &length)) {
        return PyErr_Format(PyExc_ValueError, "a length past all bounds");
    }
    if (length < 0 || length > of->most - prefix - suffix)
        return PyErr_Format(PyExc_ValueError, "a text longer than allowed");
    of->left -= prefix + length + suffix; /* each is within the bounds of a text */
    if (of->left < 0)
        return PyErr_Format(PyExc_ValueError, "the texts would be more than allowed");
    PyObject *middle = read_middle(of, (Py_ssize_t)length, replaced, packs);
    PyObject *out =
        middle ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(prefix + length + suffix)) : NULL;
    if (out != NULL) {
        char *at = PyBytes_AS_STRING(out);
        memcpy(at, reference.at, (size_t)prefix);
        memcpy(at + prefix, PyBytes_AS_STRING(middle), (size_t)length);
        memcpy(at + prefix + length, reference.at + reference.size - suffix, (size_t)suffix);
    }
    Py_XDECREF(middle);
    of->last_prefix = prefix;
    of->last_suffix = suffix;
    of->last_length = length;
    return out;
}

/* Codes a text, `value` being that of a writer and else NULL; returns it. */
static PyObject *code_text(Texts *of, PyObject *reference, PyObject *value)
{
    if (value == NULL)
        return read_text(of, piece_of(reference));
    return write_text(of, piece_of(reference), piece_of(value)) ? NULL : Py_NewRef(value);
}

PyObject *kernel_code_text(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *reference, *value, *out;
    Texts of = {0};
    if (!PyArg_ParseTuple(args, "OOSnOO", &of.io, &of.model, &reference, &of.most, &value,
                          &of.packing))
        return NULL;
    if (value != Py_None && !PyBytes_Check(value))
        return PyErr_Format(PyExc_TypeError, "bytes are needed");
    if (open_texts(&of, value != Py_None))
        return NULL;
    out = code_text(&of, reference, value == Py_None ? NULL : value);
    if (out != NULL && close_texts(&of))
        Py_CLEAR(out);
    return out;
}

/* ---- a column ------------------------------------------------------------------------------ */

/* Codes the next text of a cell, near its last or else the column's; returns it. */
static PyObject *code_cell(Texts *of, PyObject *column, PyObject *last, PyObject *cell,
                           PyObject *value)
{
    Py_ssize_t place = PyLong_AsSsize_t(cell);
    PyObject *near = place == -1 && PyErr_Occurred() ? NULL : kernel_item(last, place);
    if (near != NULL && PyBytes_Check(near) && PyBytes_GET_SIZE(near) == 0)
        near = kernel_get(column, NAME_recent, &PyBytes_Type);
    if (near == NULL || !PyBytes_Check(near) || (value != NULL && !PyBytes_Check(value)))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_TypeError, "bytes are needed");
    Py_INCREF(near);
    PyObject *out = code_text(of, near, value);
    Py_DECREF(near);
    if (out == NULL || kernel_item(last, place) == NULL || kernel_set(column, NAME_recent, out)) {
        Py_XDECREF(out);
        return NULL;
    }
    kernel_put_item(last, place, out);
    return out;
}

/* Codes the texts of a column, `tokens` being those of a writer; returns them. */
PyObject *kernel_code_texts(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *column, *cells, *tokens;
    Texts of = {0};
    if (!PyArg_ParseTuple(args, "OOOO!OnO", &of.io, &of.model, &column, &PyList_Type, &cells,
                          &tokens, &of.most, &of.packing))
        return NULL;
    PyObject *last = kernel_get(column, NAME_last_texts, &PyList_Type), *given = NULL;
    if (last == NULL || open_texts(&of, tokens != Py_None) ||
        (tokens != Py_None && (given = PySequence_Fast(tokens, "tokens are needed")) == NULL))
        return NULL;
    Py_ssize_t n = PyList_GET_SIZE(cells);
    PyObject *out = PyList_New(0);
    if (given != NULL && PySequence_Fast_GET_SIZE(given) != n) {
        refuse("a token for each cell is needed");
        Py_CLEAR(out);
    }
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        PyObject *value = given ? PySequence_Fast_GET_ITEM(given, i) : NULL;
        PyObject *cell = kernel_item(cells, i);
        if (kernel_append_new(out, cell ? code_cell(&of, column, last, cell, value) : NULL))
            Py_CLEAR(out);
    }
    if (out != NULL && close_texts(&of))
        Py_CLEAR(out);
    Py_XDECREF(given);
    return out;
}
