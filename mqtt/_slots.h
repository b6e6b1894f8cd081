/* Where a class with `__slots__` has its fields: for C that reads and makes objects of Python classes.
 *
 * Every field that is found is of one kind: a reference, NULL when it was deleted or not set yet.
 */

#ifndef MQTT_SLOTS_H
#define MQTT_SLOTS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

/* Returns the offset of a slot in objects of a class; -1 with an error set when it has no such. */
static Py_ssize_t slot_offset(PyTypeObject *type, const char *name)
{
    PyObject *found = PyObject_GetAttrString((PyObject *)type, name);
    if (found == NULL)
        return -1;
    Py_ssize_t offset = -1;
    if (Py_IS_TYPE(found, &PyMemberDescr_Type) && PyType_IsSubtype(type, PyDescr_TYPE(found))) {
        const PyMemberDef *member = ((PyMemberDescrObject *)found)->d_member;
        offset = member->type == T_OBJECT_EX ? member->offset : -1;
    }
    Py_DECREF(found);
    if (offset < 0)
        PyErr_Format(PyExc_TypeError, "%s is no slot", name);
    return offset;
}

#endif
