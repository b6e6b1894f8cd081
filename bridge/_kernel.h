/* What the files of bridge's kernel share. */

#ifndef BRIDGE_KERNEL_H
#define BRIDGE_KERNEL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

/* Writes an integer of CBOR in its shortest form; `major` is the type's three bits in place. */
static inline uint8_t *put_head(uint8_t *out, uint8_t major, uint64_t value)
{
    int bytes;
    if (value < 24) {
        *out++ = major | (uint8_t)value;
        return out;
    }
    if (value < (1 << 8)) {
        *out++ = major | 24;
        bytes = 1;
    } else if (value < (1 << 16)) {
        *out++ = major | 25;
        bytes = 2;
    } else if (value < ((uint64_t)1 << 32)) {
        *out++ = major | 26;
        bytes = 4;
    } else {
        *out++ = major | 27;
        bytes = 8;
    }
    while (bytes--)
        *out++ = (uint8_t)(value >> (8 * bytes));
    return out;
}

/* As cbor2.dumps, of what it knows; else TypeError or OverflowError. */
PyObject *kernel_cbor(PyObject *self, PyObject *value);

#endif
