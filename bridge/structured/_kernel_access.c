/* Attributes and items of Python objects, always checked.
 *
 * The classes the kernel works on have slots: each keeps an attribute at one place within its
 * objects. Those places are looked up once a class and name; where a class has none, Python is
 * asked each time.
 */

#include "_kernel.h"

#include <limits.h>
#include <structmember.h>

PyObject *kernel_names[NAMES];
KernelSlot kernel_slots[NAMES][KERNEL_CLASSES];

int kernel_names_ready(void)
{
#define AS_TEXT(name) #name,
    static const char *const spelled[NAMES] = {KERNEL_NAMES(AS_TEXT)};
#undef AS_TEXT
    for (int i = 0; i < NAMES; i++)
        if (kernel_names[i] == NULL &&
            (kernel_names[i] = PyUnicode_InternFromString(spelled[i])) == NULL)
            return -1;
    return 0;
}

PyObject *kernel_no_item(PyObject *list)
{
    if (PyList_Check(list))
        PyErr_SetString(PyExc_IndexError, "an index past its list");
    else
        PyErr_SetString(PyExc_TypeError, "a list is needed");
    return NULL;
}

/* Appends an item that was made for it, NULL with an error set being none. */
int kernel_append_new(PyObject *list, PyObject *item)
{
    int failed = item == NULL || PyList_Append(list, item);
    Py_XDECREF(item);
    return failed ? -1 : 0;
}

/* These return what a list of small integers holds, to be freed; NULL with an error set. */

int *kernel_numbers_of(PyObject *list)
{
    Py_ssize_t n = PyList_GET_SIZE(list);
    int *out = PyMem_New(int, n + 1);
    if (out == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        long number = PyLong_AsLong(PyList_GET_ITEM(list, i));
        if (number == -1 && PyErr_Occurred()) {
            PyMem_Free(out);
            return NULL;
        }
        out[i] = number < INT_MIN || number > INT_MAX ? -1 : (int)number;
    }
    return out;
}

Py_ssize_t *kernel_places_of(PyObject *list)
{
    Py_ssize_t n = PyList_GET_SIZE(list);
    Py_ssize_t *out = PyMem_New(Py_ssize_t, n + 1);
    if (out == NULL)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        out[i] = PyLong_AsSsize_t(PyList_GET_ITEM(list, i));
        if (out[i] == -1 && PyErr_Occurred()) {
            PyMem_Free(out);
            return NULL;
        }
    }
    return out;
}

PyObject *kernel_list_of(const KernelMaybe *numbers, Py_ssize_t n)
{
    PyObject *out = PyList_New(n);
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        PyObject *number =
            numbers[i].there ? PyLong_FromLongLong(numbers[i].value) : Py_NewRef(Py_None);
        if (number == NULL)
            Py_CLEAR(out);
        else
            PyList_SET_ITEM(out, i, number);
    }
    return out;
}

/* Returns the place of an attribute that is a writable slot of the class; 0 where it is not. */
static Py_ssize_t offset_of(PyTypeObject *type, int name)
{
    if (type->tp_getattro != PyObject_GenericGetAttr ||
        type->tp_setattro != PyObject_GenericSetAttr)
        return 0;
    PyObject *found = PyObject_GetAttr((PyObject *)type, kernel_names[name]);
    if (found == NULL) {
        PyErr_Clear();
        return 0;
    }
    Py_ssize_t offset = 0;
    if (Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        const PyMemberDef *member = ((PyMemberDescrObject *)found)->d_member;
        if (member->type == T_OBJECT_EX && !(member->flags & READONLY))
            offset = member->offset;
    }
    Py_DECREF(found);
    return offset;
}

PyObject **kernel_find_slot(PyObject *object, int name)
{
    for (int i = 0; i < KERNEL_CLASSES; i++) {
        KernelSlot *known = &kernel_slots[name][i];
        if (known->type != NULL)
            continue;
        known->type = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(object));
        known->offset = offset_of(known->type, name);
        return known->offset ? (PyObject **)((char *)object + known->offset) : NULL;
    }
    return NULL;
}

/* Returns a borrowed attribute, which its object keeps; NULL with an error set. */
PyObject *kernel_get(PyObject *object, int name, PyTypeObject *type)
{
    PyObject **slot = kernel_slot(object, name), *value;
    if (slot != NULL && *slot != NULL) {
        value = *slot;
    } else {
        value = PyObject_GetAttr(object, kernel_names[name]);
        if (value == NULL)
            return NULL;
        int kept = Py_REFCNT(value) > 1;
        Py_DECREF(value);
        if (!kept)
            return PyErr_Format(PyExc_TypeError, "an attribute that its object does not keep");
    }
    if (type == NULL || PyObject_TypeCheck(value, type))
        return value;
    return PyErr_Format(PyExc_TypeError, "an attribute of another type");
}

/* Returns 0; -1 where the attribute does not fit (no error set) or is none (an error set). */
int kernel_get_number(PyObject *object, int name, int64_t *out)
{
    int overflow;
    PyObject **slot = kernel_slot(object, name), *value = NULL;
    if (slot != NULL && *slot != NULL) {
        *out = PyLong_AsLongLongAndOverflow(*slot, &overflow);
    } else {
        value = PyObject_GetAttr(object, kernel_names[name]);
        if (value == NULL)
            return -1;
        *out = PyLong_AsLongLongAndOverflow(value, &overflow);
        Py_DECREF(value);
    }
    return overflow || (*out == -1 && PyErr_Occurred()) ? -1 : 0;
}

/* The same where not to fit is an error as well. */
int kernel_need_number(PyObject *object, int name, int64_t *out)
{
    int failed = kernel_get_number(object, name, out);
    if (failed && !PyErr_Occurred())
        PyErr_SetString(PyExc_OverflowError, "a number of more than 64 bits");
    return failed;
}

int kernel_set(PyObject *object, int name, PyObject *value)
{
    if (value == NULL)
        return -1;
    PyObject **slot = kernel_slot(object, name), *before;
    if (slot == NULL)
        return PyObject_SetAttr(object, kernel_names[name], value);
    before = *slot;
    *slot = Py_NewRef(value);
    Py_XDECREF(before);
    return 0;
}

int kernel_set_number(PyObject *object, int name, int64_t number)
{
    PyObject *value = PyLong_FromLongLong(number);
    int failed = kernel_set(object, name, value) < 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}
