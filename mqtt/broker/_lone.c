/* Reads that are one publish each, and their PUBACKs: most of what devices that wait for each
 * answer make a broker do (benchmarks/fan_in.py).
 *
 * Built where there is a compiler, else the twins run that say what each function does: `find` in
 * lone.py, `settle_run` in settling.py (tests/mqtt/test_lone.py compares them). What is not plain
 * in every respect is left to Python, so nothing is decided here but that.
 *
 * Invariants: the slots of the broker's own classes are read where `bind` found them, and only of
 * objects that are of exactly these classes; an object whose slots are used is held, since making
 * another one can run code of anybody's; nothing is written before all that can fail has not.
 */

#include "../_slots.h"

enum type { TRANSPORT, CONNECTION, MACHINE, LIMITS, ROUTE, RUN, TYPES };

enum slot {
    PROTOCOL, TAKES_DATA, WRITES_LATE, OUTGOING, FD,
    CLOSED, PAUSED, METER, BACKLOG, THEIR_MACHINE,
    STATE, PARTIAL, SIZE, KIND, PREFIX, ID_AT, BLOCK, BLOCK_AT, ROUTES, CLIENT, SETTLED, THEIR_LIMITS,
    LAST_RECEIVED, UNACKNOWLEDGED, WRITABLE, OWNER, WRITE, WAITING, ASKS_DURABILITY, BYTES_SENT,
    RECEIVE_MAXIMUM,
    GENERATION, TARGETS, SHARES, REACH,
    RUN_CLIENT, LANE, FRAMES, COUNT, TIME, RUN_SETTLED, TOKEN, REASONS,
    SLOTS
};

static const struct {
    enum type type;
    const char *name;
} SLOT[SLOTS] = {
    {TRANSPORT, "protocol"}, {TRANSPORT, "takes_data"}, {TRANSPORT, "_writes_late"},
    {TRANSPORT, "_outgoing"}, {TRANSPORT, "_fd"},
    {CONNECTION, "closed"}, {CONNECTION, "paused"}, {CONNECTION, "meter"},
    {CONNECTION, "_backlog"}, {CONNECTION, "machine"},
    {MACHINE, "state"}, {MACHINE, "_partial"}, {MACHINE, "_size"}, {MACHINE, "_kind"},
    {MACHINE, "_prefix"}, {MACHINE, "_id_at"}, {MACHINE, "_block"}, {MACHINE, "_block_at"},
    {MACHINE, "_routes"}, {MACHINE, "client"}, {MACHINE, "_settled"}, {MACHINE, "limits"},
    {MACHINE, "last_received_s"}, {MACHINE, "unacknowledged"}, {MACHINE, "writable"},
    {MACHINE, "owner"}, {MACHINE, "_write"}, {MACHINE, "_waiting"},
    {MACHINE, "asks_durability"}, {MACHINE, "bytes_sent"},
    {LIMITS, "receive_maximum"},
    {ROUTE, "generation"}, {ROUTE, "targets"}, {ROUTE, "shares"}, {ROUTE, "reach"},
    {RUN, "client"}, {RUN, "lane"}, {RUN, "frames"}, {RUN, "count"}, {RUN, "time_us"},
    {RUN, "settled"}, {RUN, "token"}, {RUN, "reasons"},
};

static PyTypeObject *types[TYPES]; /* none before `bind`: no object is of such a class */
static Py_ssize_t offsets[SLOTS];
static PyObject *connected;          /* State.CONNECTED */
static PyObject *write_of_transport; /* the function */
static PyObject *settle_run;         /* the twin of `settle`: does what is not plain */

#define GET(object, slot) (*(PyObject **)((char *)(object) + offsets[slot]))
#define IS(object, type) ((object) != NULL && Py_TYPE(object) == types[type])

static void put(PyObject *object, enum slot slot, PyObject *value) /* takes the reference */
{
    PyObject *before = GET(object, slot);
    GET(object, slot) = value;
    Py_XDECREF(before);
}

/* The value of an int, `otherwise` of anything else. */
static long long number(PyObject *object, long long otherwise)
{
    if (object == NULL || !PyLong_Check(object))
        return otherwise;
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    return overflow ? otherwise : value;
}

static int is_tuple(PyObject *object)
{
    return object != NULL && PyTuple_CheckExact(object);
}

static int begins(PyObject *prefix, const char *at, Py_ssize_t left)
{
    return prefix != NULL && PyBytes_CheckExact(prefix) && PyBytes_GET_SIZE(prefix) <= left &&
           memcmp(PyBytes_AS_STRING(prefix), at, (size_t)PyBytes_GET_SIZE(prefix)) == 0;
}

static int has_no_receivers(PyObject *routes, long long generation)
{
    if (!is_tuple(routes))
        return 0;
    for (Py_ssize_t index = 0; index < PyTuple_GET_SIZE(routes); index++) {
        PyObject *route = PyTuple_GET_ITEM(routes, index);
        if (!IS(route, ROUTE) || number(GET(route, GENERATION), -1) != generation)
            return 0;
        PyObject *targets = GET(route, TARGETS), *shares = GET(route, SHARES);
        if (!is_tuple(targets) || PyTuple_GET_SIZE(targets) || !is_tuple(shares) ||
            PyTuple_GET_SIZE(shares) || GET(route, REACH) != Py_None)
            return 0;
    }
    return 1;
}

/* Where the packet identifier is in a plain read; 0 for any other. */
static Py_ssize_t id_in(PyObject *transport, PyObject *data, long long generation)
{
    if (!IS(transport, TRANSPORT) || GET(transport, TAKES_DATA) != Py_True)
        return 0;
    PyObject *connection = GET(transport, PROTOCOL);
    if (!IS(connection, CONNECTION) || GET(connection, CLOSED) != Py_False ||
        number(GET(connection, PAUSED), 1) || GET(connection, METER) != Py_None ||
        GET(connection, BACKLOG) != Py_None)
        return 0;
    PyObject *machine = GET(connection, THEIR_MACHINE);
    if (!IS(machine, MACHINE) || GET(machine, STATE) != connected ||
        GET(machine, WRITABLE) != Py_True || GET(machine, PARTIAL) != Py_None ||
        !IS(GET(machine, THEIR_LIMITS), LIMITS) || GET(machine, CLIENT) == NULL)
        return 0;
    const char *bytes = PyBytes_AS_STRING(data);
    Py_ssize_t size = PyBytes_GET_SIZE(data);
    long long kind = number(GET(machine, KIND), -1);
    Py_ssize_t at = (Py_ssize_t)number(GET(machine, ID_AT), 0);
    Py_ssize_t block_at = (Py_ssize_t)number(GET(machine, BLOCK_AT), -1);
    if (kind < 0 || (kind & 7) != 1 || number(GET(machine, SIZE), 0) != size || at <= 0 ||
        at + 2 > size || !begins(GET(machine, PREFIX), bytes, size) || block_at < 0 ||
        block_at > size || !begins(GET(machine, BLOCK), bytes + block_at, size - block_at) ||
        (!bytes[at] && !bytes[at + 1]))
        return 0;
    long long unacknowledged = number(GET(machine, UNACKNOWLEDGED), LLONG_MAX);
    if (unacknowledged >= number(GET(GET(machine, THEIR_LIMITS), RECEIVE_MAXIMUM), 0))
        return 0;
    return has_no_receivers(GET(machine, ROUTES), generation) ? at : 0;
}

/* A run of one publish; NULL with an error set. */
static PyObject *run_of(PyObject *machine, PyObject *data, Py_ssize_t id_at, PyObject *time_us)
{
    long long kind = number(GET(machine, KIND), 0);
    PyObject *run = NULL, *token = NULL;
    PyObject *routes = Py_NewRef(GET(machine, ROUTES)), *client = Py_NewRef(GET(machine, CLIENT));
    PyObject *id = PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + id_at, 2);
    PyObject *ids = id == NULL ? NULL : PyList_New(1);
    PyObject *lane = PyLong_FromLongLong(kind >> 3);
    PyObject *flags = PyLong_FromLongLong(kind & 7);
    PyObject *one = PyLong_FromLong(1);
    if (ids == NULL || lane == NULL || flags == NULL || one == NULL)
        goto done;
    PyList_SET_ITEM(ids, 0, id);
    id = NULL;
    token = PyTuple_Pack(4, machine, flags, ids, routes);
    run = token == NULL ? NULL : types[RUN]->tp_alloc(types[RUN], 0);
    if (run == NULL)
        goto done;
    GET(run, RUN_CLIENT) = Py_NewRef(client);
    GET(run, LANE) = Py_NewRef(lane);
    GET(run, FRAMES) = Py_NewRef(data);
    GET(run, COUNT) = Py_NewRef(one);
    GET(run, TIME) = Py_NewRef(time_us);
    GET(run, RUN_SETTLED) = Py_XNewRef(GET(machine, SETTLED));
    GET(run, TOKEN) = Py_NewRef(token);
    GET(run, REASONS) = Py_NewRef(Py_None);
done:
    Py_DECREF(routes);
    Py_DECREF(client);
    Py_XDECREF(id);
    Py_XDECREF(ids);
    Py_XDECREF(lane);
    Py_XDECREF(flags);
    Py_XDECREF(one);
    Py_XDECREF(token);
    return run;
}

/* Takes one read if it is plain: 1, else 0; -1 with an error set. */
static int take(PyObject *transport, PyObject *data, long long generation, PyObject *now_s,
                PyObject *time_us, PyObject *runs)
{
    Py_ssize_t id_at = id_in(transport, data, generation);
    if (!id_at)
        return 0;
    PyObject *machine = Py_NewRef(GET(GET(transport, PROTOCOL), THEIR_MACHINE));
    PyObject *run = run_of(machine, data, id_at, time_us);
    PyObject *count = PyLong_FromLongLong(number(GET(machine, UNACKNOWLEDGED), 0) + 1);
    int taken = run == NULL || count == NULL || PyList_Append(runs, run) < 0 ? -1 : 1;
    if (taken == 1) {
        put(machine, UNACKNOWLEDGED, Py_NewRef(count));
        put(machine, LAST_RECEIVED, Py_NewRef(now_s));
    }
    Py_XDECREF(count);
    Py_XDECREF(run);
    Py_DECREF(machine);
    return taken;
}

static PyObject *find(PyObject *module, PyObject *args)
{
    PyObject *found, *transports, *now_s, *time_us, *runs;
    long long generation;

    (void)module;
    if (!PyArg_ParseTuple(args, "O!O!LOOO!:find", &PyList_Type, &found, &PyDict_Type, &transports,
                          &generation, &now_s, &time_us, &PyList_Type, &runs))
        return NULL;
    PyObject *rest = PyList_New(0);
    for (Py_ssize_t at = 0; rest != NULL && at + 1 < PyList_GET_SIZE(found); at += 2) {
        PyObject *descriptor = Py_NewRef(PyList_GET_ITEM(found, at));
        PyObject *what = Py_NewRef(PyList_GET_ITEM(found, at + 1));
        int taken = 0;
        if (PyBytes_CheckExact(what)) {
            PyObject *transport = PyDict_GetItemWithError(transports, descriptor);
            Py_XINCREF(transport);
            taken = transport == NULL
                        ? -!!PyErr_Occurred()
                        : take(transport, what, generation, now_s, time_us, runs);
            Py_XDECREF(transport);
        }
        if (taken < 0 || (!taken && (PyList_Append(rest, descriptor) < 0 ||
                                     PyList_Append(rest, what) < 0)))
            Py_CLEAR(rest);
        Py_DECREF(descriptor);
        Py_DECREF(what);
    }
    return rest;
}

/* The dict that a machine's writes go to, if a plain PUBACK may go there; else NULL, no error. */
static PyObject *outgoing_of(PyObject *machine, PyObject **descriptor)
{
    PyObject *write = GET(machine, WRITE), *owner = GET(machine, OWNER);
    if (GET(machine, STATE) != connected || GET(machine, ASKS_DURABILITY) != Py_False ||
        GET(machine, WAITING) != Py_None || !IS(owner, CONNECTION) ||
        number(GET(owner, PAUSED), 1) || write == NULL || !PyMethod_Check(write) ||
        PyMethod_GET_FUNCTION(write) != write_of_transport)
        return NULL;
    PyObject *transport = PyMethod_GET_SELF(write);
    if (!IS(transport, TRANSPORT) || GET(transport, WRITES_LATE) != Py_False)
        return NULL;
    PyObject *outgoing = GET(transport, OUTGOING);
    *descriptor = GET(transport, FD);
    /* The first of a turn has to have the end of the turn told to the event loop. */
    if (outgoing == NULL || !PyDict_CheckExact(outgoing) || !PyDict_GET_SIZE(outgoing) ||
        *descriptor == NULL || PyDict_Contains(outgoing, *descriptor) != 0) {
        PyErr_Clear();
        return NULL;
    }
    return outgoing;
}

/* Answers a run if it is plain and durable: 1, else 0; -1 with an error set. */
static int acknowledge(PyObject *run, PyObject *codes)
{
    PyObject *token = IS(run, RUN) ? GET(run, TOKEN) : NULL;
    if (!is_tuple(token) || PyTuple_GET_SIZE(token) != 4 || number(codes, -1) != 0)
        return 0;
    PyObject *machine = PyTuple_GET_ITEM(token, 0), *ids = PyTuple_GET_ITEM(token, 2), *descriptor;
    if (!IS(machine, MACHINE) || (number(PyTuple_GET_ITEM(token, 1), 0) & 3) != 1 ||
        !PyList_CheckExact(ids) || PyList_GET_SIZE(ids) != 1)
        return 0;
    PyObject *id = PyList_GET_ITEM(ids, 0), *outgoing = outgoing_of(machine, &descriptor);
    if (outgoing == NULL || !PyBytes_CheckExact(id) || PyBytes_GET_SIZE(id) != 2)
        return 0;
    char puback[4] = {0x40, 2, PyBytes_AS_STRING(id)[0], PyBytes_AS_STRING(id)[1]};
    PyObject *data = PyBytes_FromStringAndSize(puback, 4);
    PyObject *unacknowledged = PyLong_FromLongLong(number(GET(machine, UNACKNOWLEDGED), 1) - 1);
    PyObject *sent = PyLong_FromLongLong(number(GET(machine, BYTES_SENT), 0) + 4);
    int done = data == NULL || unacknowledged == NULL || sent == NULL ||
                       PyDict_SetItem(outgoing, descriptor, data) < 0
                   ? -1
                   : 1;
    if (done == 1) {
        put(machine, UNACKNOWLEDGED, Py_NewRef(unacknowledged));
        put(machine, BYTES_SENT, Py_NewRef(sent));
    }
    Py_XDECREF(data);
    Py_XDECREF(unacknowledged);
    Py_XDECREF(sent);
    return done;
}

static PyObject *settle(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2 || settle_run == NULL) {
        PyErr_SetString(PyExc_TypeError, "a run and its codes are needed");
        return NULL;
    }
    int done = acknowledge(args[0], args[1]);
    if (done < 0)
        return NULL;
    return done ? Py_NewRef(Py_None) : PyObject_Vectorcall(settle_run, args, 2, NULL);
}

static PyObject *bind(PyObject *module, PyObject *args)
{
    PyObject *given[TYPES], *state, *write;
    Py_ssize_t found[SLOTS];

    (void)module;
    if (!PyArg_ParseTuple(args, "O!O!O!O!O!O!OO:bind", &PyType_Type, &given[0], &PyType_Type,
                          &given[1], &PyType_Type, &given[2], &PyType_Type, &given[3],
                          &PyType_Type, &given[4], &PyType_Type, &given[5], &state, &write))
        return NULL;
    for (int slot = 0; slot < SLOTS; slot++) {
        found[slot] = slot_offset((PyTypeObject *)given[SLOT[slot].type], SLOT[slot].name);
        if (found[slot] < 0)
            return NULL;
    }
    memcpy(offsets, found, sizeof offsets);
    for (int type = 0; type < TYPES; type++)
        Py_XSETREF(types[type], (PyTypeObject *)Py_NewRef(given[type]));
    Py_XSETREF(connected, Py_NewRef(state));
    Py_XSETREF(write_of_transport, Py_NewRef(write));
    Py_RETURN_NONE;
}

static PyObject *leave_to(PyObject *module, PyObject *twin)
{
    (void)module;
    Py_XSETREF(settle_run, Py_NewRef(twin));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"bind", bind, METH_VARARGS, "Learn where the broker's classes have their slots."},
    {"find", find, METH_VARARGS, "Make runs of the reads that are one plain publish."},
    {"settle", (PyCFunction)(void (*)(void))settle, METH_FASTCALL, "Answer a run."},
    {"leave_to", leave_to, METH_O, "Name the twin of `settle`."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_lone", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__lone(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "VERSION", 2) < 0)
        Py_CLEAR(module);
    return module;
}
