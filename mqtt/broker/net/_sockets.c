/* Many sockets accepted, read or written by one call, without the interpreter's lock.
 *
 * Built where there is a compiler, else the twins in socket_calls.py run, which say what each
 * function takes and returns (tests/mqtt/test_socket_calls.py compares them). Nothing here decides
 * anything.
 *
 * Invariants: while the lock is let go nothing of Python is touched but memory that is held, the
 * buffer by its export and the bytes by a reference each; nothing waits; no signal is raised.
 */

#define _GNU_SOURCE /* accept4 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_MAX 128
#define ACCEPT_MAX 64

static int append(PyObject *list, PyObject *item)
{
    if (item == NULL)
        return -1;
    int failed = PyList_Append(list, item);
    Py_DECREF(item);
    return failed;
}

static int append_found(PyObject *found, const struct epoll_event *event, const char *from,
                        ssize_t size)
{
    int fd = event->data.fd;
    if (event->events & ~EPOLLOUT) {
        if (append(found, PyLong_FromLong(fd)) < 0)
            return -1;
        PyObject *what = size < 0 ? PyLong_FromSsize_t(size)
                                  : PyBytes_FromStringAndSize(from, size);
        if (append(found, what) < 0)
            return -1;
    }
    if (event->events & EPOLLOUT)
        if (append(found, PyLong_FromLong(fd)) < 0 || append(found, PyLong_FromLong(EPOLLOUT)) < 0)
            return -1;
    return 0;
}

static PyObject *receive(PyObject *module, PyObject *args)
{
    PyObject *epoll;
    Py_buffer buffer;
    Py_ssize_t read_bytes;
    struct epoll_event events[EVENTS_MAX];
    ssize_t sizes[EVENTS_MAX];
    int count, fault;

    (void)module;
    if (!PyArg_ParseTuple(args, "Ow*n:receive", &epoll, &buffer, &read_bytes))
        return NULL;
    int epoll_fd = PyObject_AsFileDescriptor(epoll);
    if (epoll_fd < 0 || read_bytes <= 0 || buffer.len < EVENTS_MAX) {
        if (epoll_fd >= 0)
            PyErr_SetString(PyExc_ValueError, "a byte for each event is needed");
        PyBuffer_Release(&buffer);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    count = epoll_wait(epoll_fd, events, EVENTS_MAX, 0);
    fault = errno;
    char *at = buffer.buf;
    Py_ssize_t left = buffer.len;
    for (int index = 0; index < count; index++) {
        ssize_t size = 0;
        if (events[index].events & ~EPOLLOUT) {
            Py_ssize_t share = left / (count - index); /* never 0: see above */
            size = recv(events[index].data.fd, at,
                        (size_t)(share < read_bytes ? share : read_bytes), MSG_DONTWAIT);
            if (size < 0)
                size = -errno;
            else {
                at += size;
                left -= size;
            }
        }
        sizes[index] = size;
    }
    Py_END_ALLOW_THREADS
    if (count < 0 && fault != EINTR) {
        PyBuffer_Release(&buffer);
        errno = fault;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    PyObject *found = PyList_New(0);
    const char *from = buffer.buf;
    for (int index = 0; found != NULL && index < count; index++) {
        if (append_found(found, &events[index], from, sizes[index]) < 0)
            Py_CLEAR(found);
        if (sizes[index] > 0)
            from += sizes[index];
    }
    PyBuffer_Release(&buffer);
    return found;
}

/* As `socket.accept` has it, for an address of numbers; None for any other. */
static PyObject *address_of(const struct sockaddr_storage *from)
{
    char text[INET6_ADDRSTRLEN];
    if (from->ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)from;
        inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text);
        return Py_BuildValue("si", text, ntohs(v4->sin_port));
    }
    if (from->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)from;
        inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text);
        return Py_BuildValue("siII", text, ntohs(v6->sin6_port),
                             (unsigned)ntohl(v6->sin6_flowinfo), (unsigned)v6->sin6_scope_id);
    }
    return Py_NewRef(Py_None);
}

static PyObject *accept_all(PyObject *module, PyObject *args)
{
    PyObject *listening;
    Py_ssize_t wanted, count = 0;
    struct sockaddr_storage from[ACCEPT_MAX];
    int descriptors[ACCEPT_MAX], fault = 0;

    (void)module;
    if (!PyArg_ParseTuple(args, "On:accept", &listening, &wanted))
        return NULL;
    int fd = PyObject_AsFileDescriptor(listening);
    if (fd < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    for (; count < wanted && count < ACCEPT_MAX; count++) {
        socklen_t size = sizeof from[count];
        from[count].ss_family = AF_UNSPEC;
        descriptors[count] = accept4(fd, (struct sockaddr *)&from[count], &size,
                                     SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (descriptors[count] < 0) {
            fault = errno;
            break;
        }
    }
    Py_END_ALLOW_THREADS
    if (!count && fault && fault != EAGAIN && fault != EINTR && fault != ECONNABORTED) {
        errno = fault;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    PyObject *accepted = PyList_New(0);
    for (Py_ssize_t index = 0; accepted != NULL && index < count; index++)
        if (append(accepted, PyLong_FromLong(descriptors[index])) < 0 ||
            append(accepted, address_of(&from[index])) < 0)
            Py_CLEAR(accepted);
    for (Py_ssize_t index = 0; accepted == NULL && index < count; index++)
        close(descriptors[index]);
    return accepted;
}

struct job {
    PyObject *data; /* held */
    int fd;
    ssize_t sent;
};

/* Takes a reference to each of the data; returns how many jobs there are, -1 with an error set. */
static Py_ssize_t fill(struct job *jobs, PyObject *outgoing)
{
    Py_ssize_t at = 0, count = 0;
    PyObject *key, *data;
    while (PyDict_Next(outgoing, &at, &key, &data)) {
        long fd = PyLong_AsLong(key);
        if ((fd == -1 && PyErr_Occurred()) || fd < 0 || fd > INT_MAX || !PyBytes_Check(data)) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "bytes by descriptor are needed");
            while (count)
                Py_DECREF(jobs[--count].data);
            return -1;
        }
        jobs[count].fd = (int)fd;
        jobs[count++].data = Py_NewRef(data);
    }
    return count;
}

static PyObject *send_all(PyObject *module, PyObject *outgoing)
{
    int whole = 1;

    (void)module;
    if (!PyDict_Check(outgoing)) {
        PyErr_SetString(PyExc_TypeError, "a dict is needed");
        return NULL;
    }
    struct job *jobs = PyMem_New(struct job, (size_t)PyDict_GET_SIZE(outgoing));
    if (jobs == NULL)
        return PyErr_NoMemory();
    Py_ssize_t count = fill(jobs, outgoing);
    if (count < 0) {
        PyMem_Free(jobs);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t index = 0; index < count; index++) {
        struct job *job = &jobs[index];
        Py_ssize_t size = PyBytes_GET_SIZE(job->data);
        job->sent = send(job->fd, PyBytes_AS_STRING(job->data), (size_t)size,
                         MSG_DONTWAIT | MSG_NOSIGNAL);
        if (job->sent < 0)
            job->sent = -errno;
        whole &= job->sent == size;
    }
    Py_END_ALLOW_THREADS
    PyObject *rest = whole ? Py_NewRef(Py_None) : PyList_New(0);
    for (Py_ssize_t index = 0; index < count; index++) {
        struct job *job = &jobs[index];
        if (!whole && rest != NULL && job->sent != PyBytes_GET_SIZE(job->data))
            if (append(rest, PyLong_FromLong(job->fd)) < 0 ||
                append(rest, PyLong_FromSsize_t(job->sent)) < 0)
                Py_CLEAR(rest);
        Py_DECREF(job->data);
    }
    PyMem_Free(jobs);
    return rest;
}

static PyMethodDef methods[] = {
    {"accept", accept_all, METH_VARARGS, "Accept those who wait."},
    {"receive", receive, METH_VARARGS, "Read every socket that is ready."},
    {"send", send_all, METH_O, "Write to many sockets."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_sockets", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__sockets(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "VERSION", 3) < 0)
        Py_CLEAR(module);
    return module;
}
