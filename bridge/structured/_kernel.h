/* What the parts of the kernel share; each is described where it is defined. */

#ifndef STRUCTURED_KERNEL_H
#define STRUCTURED_KERNEL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* Names of attributes, interned by `kernel_names_ready`. */
#define KERNEL_NAMES(X)                                                                           \
    X(absent)                                                                                     \
    X(after)                                                                                      \
    X(arrivals)                                                                                   \
    X(at)                                                                                         \
    X(aux)                                                                                        \
    X(batch_cells)                                                                                \
    X(block)                                                                                      \
    X(blocks)                                                                                     \
    X(burst)                                                                                      \
    X(burst_length)                                                                               \
    X(bytes)                                                                                      \
    X(cells)                                                                                      \
    X(chain)                                                                                      \
    X(changes)                                                                                    \
    X(clear)                                                                                      \
    X(cold)                                                                                       \
    X(cold_columns)                                                                               \
    X(column)                                                                                     \
    X(column_choice)                                                                              \
    X(columns)                                                                                    \
    X(contexts)                                                                                   \
    X(counts)                                                                                     \
    X(decimals)                                                                                   \
    X(due)                                                                                        \
    X(elsewhere)                                                                                  \
    X(escapes)                                                                                    \
    X(extend)                                                                                     \
    X(extra)                                                                                      \
    X(family)                                                                                     \
    X(flags)                                                                                      \
    X(followers)                                                                                  \
    X(fragment_choice)                                                                            \
    X(fragment_index)                                                                             \
    X(fragments)                                                                                  \
    X(frames)                                                                                     \
    X(freqs)                                                                                      \
    X(fresh)                                                                                      \
    X(gain)                                                                                       \
    X(gap)                                                                                        \
    X(gap_size)                                                                                   \
    X(here)                                                                                       \
    X(hot)                                                                                        \
    X(hot_columns)                                                                                \
    X(index)                                                                                      \
    X(instances)                                                                                  \
    X(json)                                                                                       \
    X(keep_sample)                                                                                \
    X(key)                                                                                        \
    X(kind)                                                                                       \
    X(known)                                                                                      \
    X(last)                                                                                       \
    X(last_length)                                                                                \
    X(last_prefix)                                                                                \
    X(last_suffix)                                                                                \
    X(last_texts)                                                                                 \
    X(layouts)                                                                                    \
    X(length)                                                                                     \
    X(lengths)                                                                                    \
    X(literal_bytes)                                                                              \
    X(literals)                                                                                   \
    X(log)                                                                                        \
    X(logs)                                                                                       \
    X(margin)                                                                                     \
    X(mask_index)                                                                                 \
    X(mask_table)                                                                                 \
    X(masks)                                                                                      \
    X(members)                                                                                    \
    X(mode)                                                                                       \
    X(multiple)                                                                                   \
    X(native)                                                                                     \
    X(next_column)                                                                                \
    X(noted)                                                                                      \
    X(of_siblings)                                                                                \
    X(order)                                                                                      \
    X(pack)                                                                                       \
    X(param)                                                                                      \
    X(payloads)                                                                                   \
    X(period)                                                                                     \
    X(phase)                                                                                      \
    X(piece)                                                                                      \
    X(pieces)                                                                                     \
    X(plain)                                                                                      \
    X(plain_at)                                                                                   \
    X(plan)                                                                                       \
    X(pools)                                                                                      \
    X(predictor)                                                                                  \
    X(prefix)                                                                                     \
    X(prepare)                                                                                    \
    X(printer)                                                                                    \
    X(prior)                                                                                      \
    X(readings)                                                                                   \
    X(recent)                                                                                     \
    X(recent_aux)                                                                                 \
    X(ref)                                                                                        \
    X(referred)                                                                                   \
    X(referred_outside)                                                                           \
    X(repeated)                                                                                   \
    X(resembles)                                                                                  \
    X(rows)                                                                                       \
    X(samples)                                                                                    \
    X(size)                                                                                       \
    X(slots)                                                                                      \
    X(source)                                                                                     \
    X(spans)                                                                                      \
    X(spread)                                                                                     \
    X(state)                                                                                      \
    X(steady)                                                                                     \
    X(strayed)                                                                                    \
    X(suffix)                                                                                     \
    X(tables)                                                                                     \
    X(template)                                                                                   \
    X(templates)                                                                                  \
    X(text_index)                                                                                 \
    X(texts)                                                                                      \
    X(texts_left)                                                                                 \
    X(times)                                                                                      \
    X(tokens)                                                                                     \
    X(total)                                                                                      \
    X(unpack)                                                                                     \
    X(uses)                                                                                       \
    X(version)                                                                                    \
    X(views)                                                                                      \
    X(wake)                                                                                       \
    X(wants_sample)                                                                               \
    X(words)

#define AS_MEMBER(name) NAME_##name,
enum { KERNEL_NAMES(AS_MEMBER) NAMES };
#undef AS_MEMBER

extern PyObject *kernel_names[NAMES];
int kernel_names_ready(void);

/* ---- access: _kernel_access.c ---------------------------------------------------------------- */

typedef __int128 kernel_wide;

/* Returns a / b, rounded down. */
static inline kernel_wide kernel_floor(kernel_wide a, kernel_wide b)
{
    kernel_wide q = a / b;
    return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

/* An integer, or none. */
typedef struct {
    int there;
    int64_t value;
} KernelMaybe;

/* Where objects of a class keep an attribute: its place within the object, 0 where it has none. */
typedef struct {
    PyTypeObject *type;
    Py_ssize_t offset;
} KernelSlot;

#define KERNEL_CLASSES 4 /* that have an attribute of one name; of further ones none is kept */

extern KernelSlot kernel_slots[NAMES][KERNEL_CLASSES];

PyObject **kernel_find_slot(PyObject *object, int name);
PyObject *kernel_no_item(PyObject *list);
int kernel_append_new(PyObject *list, PyObject *item);
int *kernel_numbers_of(PyObject *list);
Py_ssize_t *kernel_places_of(PyObject *list);
PyObject *kernel_get(PyObject *object, int name, PyTypeObject *type);
int kernel_get_number(PyObject *object, int name, int64_t *out);
int kernel_need_number(PyObject *object, int name, int64_t *out);
int kernel_set(PyObject *object, int name, PyObject *value);
int kernel_set_number(PyObject *object, int name, int64_t number);

/* Returns where an object keeps an attribute; NULL where that is to be asked of Python. */
static inline PyObject **kernel_slot(PyObject *object, int name)
{
    for (int i = 0; i < KERNEL_CLASSES; i++) {
        const KernelSlot *known = &kernel_slots[name][i];
        if (known->type == Py_TYPE(object))
            return known->offset ? (PyObject **)((char *)object + known->offset) : NULL;
    }
    return kernel_find_slot(object, name);
}

/* Returns a borrowed item of a list, or NULL with an error set. */
static inline PyObject *kernel_item(PyObject *list, Py_ssize_t at)
{
    if (PyList_Check(list) && at >= 0 && at < PyList_GET_SIZE(list))
        return PyList_GET_ITEM(list, at);
    return kernel_no_item(list);
}

static inline int kernel_index(PyObject *list, Py_ssize_t at, Py_ssize_t *out)
{
    PyObject *item = kernel_item(list, at);
    if (item == NULL)
        return -1;
    *out = PyLong_AsSsize_t(item);
    return *out == -1 && PyErr_Occurred() ? -1 : 0;
}

/* Puts a new reference to `value` into a list whose size was not changed since it was checked. */
static inline void kernel_put_item(PyObject *list, Py_ssize_t at, PyObject *value)
{
    PyObject *before = PyList_GET_ITEM(list, at);
    Py_INCREF(value);
    PyList_SET_ITEM(list, at, value);
    Py_DECREF(before);
}

static inline int kernel_equal_bytes(PyObject *a, PyObject *b)
{
    return a == b || (PyBytes_Check(a) && PyBytes_Check(b) &&
                      PyBytes_GET_SIZE(a) == PyBytes_GET_SIZE(b) &&
                      !memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), PyBytes_GET_SIZE(a)));
}

PyObject *kernel_list_of(const KernelMaybe *numbers, Py_ssize_t n);

/* ---- _kernel.c ------------------------------------------------------------------------------- */

#define KERNEL_ESCAPE 62 /* the symbol that says: no integer */
#define ALPHABET_MAX 256 /* symbols of a table */

PyObject *kernel_frequencies(PyObject *prior, PyObject *counts, long gain);
int kernel_write_symbols(PyObject *put, PyObject *spans, PyObject *logs, PyObject *contexts,
                         const Py_ssize_t *cells, const int *symbols, PyObject *after,
                         Py_ssize_t from, Py_ssize_t to);
int kernel_read_symbols(int *out, PyObject *words, int64_t *at, uint64_t *state, PyObject *spans,
                        PyObject *logs, PyObject *contexts, const Py_ssize_t *cells,
                        PyObject *after, Py_ssize_t from, Py_ssize_t to);
int kernel_symbol_of(int64_t value, PyObject *plain);
int kernel_integers(const int *symbols, Py_ssize_t n, PyObject *plain, Py_ssize_t *end,
                    KernelMaybe *out);
int kernel_put_symbol(PyObject *put, PyObject *table, long number);
int kernel_write_number(PyObject *spans, PyObject *plain, PyObject *table, int64_t value);
int kernel_read_number(PyObject *reader, PyObject *table, int64_t *value);
int kernel_put_below(PyObject *put, PyObject *plain, Py_ssize_t bound, Py_ssize_t value);
int kernel_read_below(PyObject *reader, Py_ssize_t bound, Py_ssize_t *value);
long kernel_next_symbol(PyObject *reader, PyObject *table);

/* ---- _kernel_chains.c ------------------------------------------------------------------------ */

int kernel_rebuild_table(PyObject *table);
int kernel_code_chain(PyObject *put, PyObject *chain, PyObject *contexts, const Py_ssize_t *cells,
                      Py_ssize_t n, const int *symbols, PyObject *after);
int kernel_take_chain(PyObject *reader, PyObject *chain, PyObject *contexts,
                      const Py_ssize_t *cells, Py_ssize_t n, int *symbols, PyObject *after);

/* ---- _kernel_heads.c ------------------------------------------------------------------------- */

PyObject *kernel_lists_of(PyObject *by, PyObject *column);
int kernel_as_before(PyObject *tokens, PyObject *slots, PyObject *before, PyObject *columns);
PyObject *kernel_changes(PyObject *rows, PyObject *tokens, PyObject *slots, PyObject *before,
                         PyObject *columns, Py_ssize_t row);
int kernel_write_mask(PyObject *put, PyObject *plain, PyObject *lengths, PyObject *family,
                      PyObject *changed);
int kernel_read_mask(PyObject *reader, PyObject *lengths, PyObject *rows, PyObject *family,
                     PyObject *cold, PyObject *tokens, Py_ssize_t row);

/* ---- _kernel_frames.c ------------------------------------------------------------------------ */

PyObject *kernel_framed(PyObject *frames, PyObject **tokens);

/* ---- _kernel_predict.c ----------------------------------------------------------------------- */

/* The rows in which a column is coded; refs: what it refers to there, NULL for nothing. */
typedef struct {
    Py_ssize_t n;
    const Py_ssize_t *cells;
    const int64_t *times;
    const KernelMaybe *refs;
} KernelRows;

int kernel_load(PyObject *item, KernelMaybe *out);
int kernel_predict_rows(PyObject *column, PyObject *state, const KernelRows *rows, KernelMaybe *xs,
                        PyObject *numbers, int forward);

/* ---- _kernel_spell.c ------------------------------------------------------------------------- */

typedef struct {
    int kind, digits;
    const char *text, *prefix, *suffix;
    Py_ssize_t text_size, prefix_size, suffix_size;
} KernelSpelling;

int kernel_read_key(PyObject *key, KernelSpelling *by);
int kernel_parse(const KernelSpelling *by, PyObject *token, KernelMaybe *out);
int kernel_parse_other_decimal(PyObject *token, int *digits, KernelMaybe *out);
PyObject *kernel_show(const KernelSpelling *by, int64_t value);

#endif
