/* Spellings in C: docs/link-format-structured.md section 5.2, the twins of printers.py.
 *
 * A token is parsed only where it is just what showing its integer gives.
 */

#define _GNU_SOURCE 1 /* memmem */
#include "_kernel.h"

#include <math.h>

typedef kernel_wide wide;

#define VALUE_BOUND ((int64_t)1 << 61)
#define DIGITS_MAX 18
#define CORE_MAX 192 /* more than any spelling takes beside its affixes */
#define TEXT_MAX 64

#define DAY_S 86400
#define ERA_DAYS 146097    /* of 400 years */
#define EPOCH_DAYS 719468  /* from 0000-03-01 to 1970-01-01 */
#define FIRST_DAY (-719528) /* 0000-01-01 */
#define LAST_DAY 2932896   /* 9999-12-31 */

enum {
    FIXED,
    TRIMMED,
    FLOATY,
    PADDED,
    STAMP,
    STAMP_TRIMMED,
    CLOCK,
    UNSIGNED_LITTLE,
    UNSIGNED_BIG,
    SIGNED_LITTLE,
    SIGNED_BIG,
    FLOAT_LITTLE,
    FLOAT_BIG,
    VARINT
};

static int is_digit(char sign)
{
    return sign >= '0' && sign <= '9';
}

/* Reads exactly `count` digits; returns -1 where there is another sign. */
static int64_t digits_at(const char *text, int count)
{
    int64_t number = 0;
    for (int i = 0; i < count; i++) {
        if (!is_digit(text[i]))
            return -1;
        number = number * 10 + (text[i] - '0');
    }
    return number;
}

/* Reads all of a decimal of at least `width` digits, no zeros before but to that width. */
static wide padded(const char *text, Py_ssize_t size, int width)
{
    if (size < 1 || size < width || size > DIGITS_MAX + 1 ||
        (size > width && size > 1 && *text == '0'))
        return -1;
    int64_t last = digits_at(text + size - 1, 1), before = digits_at(text, (int)size - 1);
    return last < 0 || before < 0 ? -1 : (wide)before * 10 + last;
}

static wide power_of_ten(int digits)
{
    wide power = 1;
    while (digits-- > 0)
        power *= 10;
    return power;
}

/* ---- decimals ------------------------------------------------------------------------------ */

static int parse_decimal(const KernelSpelling *by, const char *text, Py_ssize_t size, wide *value)
{
    int negative = size > 0 && text[0] == '-';
    Py_ssize_t at = negative, whole = at;
    wide number = 0;
    if (size > DIGITS_MAX + 4)
        return 0;
    while (at < size && is_digit(text[at]))
        number = number * 10 + (text[at++] - '0');
    if (at == whole || (text[whole] == '0' && at - whole > 1))
        return 0;
    Py_ssize_t fraction = size - at; /* with its point */
    if (fraction) {
        if (text[at++] != '.' || --fraction < 1 || fraction > by->digits)
            return 0;
        for (; at < size; at++) {
            if (!is_digit(text[at]))
                return 0;
            number = number * 10 + (text[at] - '0');
        }
        int zero = text[size - 1] == '0';
        if (by->kind != FIXED && zero && !(by->kind == FLOATY && fraction == 1))
            return 0;
    } else if (by->kind == FLOATY) {
        return 0;
    }
    if (by->kind == FIXED && fraction != by->digits)
        return 0;
    if (number >= VALUE_BOUND)
        return 0;
    number *= power_of_ten(by->digits - (int)fraction);
    *value = negative ? -number : number;
    return !(negative && number == 0);
}

/* These write from `end` backwards and return where the text begins. */

static char *put_digits(char *at, uint64_t number, int width)
{
    int count = 0;
    do {
        *--at = '0' + (char)(number % 10);
        number /= 10;
    } while (++count < width || number);
    return at;
}

static char *show_decimal(const KernelSpelling *by, char *end, int64_t value)
{
    uint64_t rest = value < 0 ? (uint64_t)0 - (uint64_t)value : (uint64_t)value;
    char *at = end;
    int fraction = by->digits;
    if (by->kind != FIXED) /* trailing zeros are left out */
        while (fraction > 0 && rest % 10 == 0) {
            rest /= 10;
            fraction--;
        }
    if (by->kind == FLOATY && fraction == 0)
        *--at = '0';
    for (int i = 0; i < fraction; i++) {
        *--at = '0' + (char)(rest % 10);
        rest /= 10;
    }
    if (at != end)
        *--at = '.';
    at = put_digits(at, rest, 1);
    if (value < 0)
        *--at = '-';
    return at;
}

/* ---- times --------------------------------------------------------------------------------- */

static int days_of_month(int64_t year, int64_t month)
{
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return days[month - 1] + (month == 2 && leap);
}

static int64_t days_since_1970(int64_t year, int64_t month, int64_t day)
{
    year -= month <= 2; /* counted from March, so that the leap day is last */
    int64_t era = (year >= 0 ? year : year - 399) / 400, year_of_era = year - era * 400;
    int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    return era * ERA_DAYS + day_of_era - EPOCH_DAYS;
}

static int parse_stamp(const KernelSpelling *by, const char *text, Py_ssize_t size, wide *value)
{
    if (size < 19 || size > 20 + DIGITS_MAX || by->text_size != 1 || text[4] != '-' ||
        text[7] != '-' || text[10] != by->text[0] || text[13] != ':' || text[16] != ':')
        return 0;
    int64_t year = digits_at(text, 4), month = digits_at(text + 5, 2), day = digits_at(text + 8, 2);
    int64_t hour = digits_at(text + 11, 2), minute = digits_at(text + 14, 2);
    int64_t second = digits_at(text + 17, 2);
    if (year < 0 || month < 1 || month > 12 || day < 1 || day > days_of_month(year, month) ||
        hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59)
        return 0;
    int fraction = (int)size - 19; /* with its point */
    wide units = 0;
    if (fraction) {
        fraction--;
        units = text[19] == '.' && fraction ? digits_at(text + 20, fraction) : -1;
        if (units < 0 || fraction > by->digits)
            return 0;
        if (by->kind == STAMP_TRIMMED && text[size - 1] == '0')
            return 0;
    }
    if (by->kind == STAMP && fraction != by->digits)
        return 0;
    int64_t seconds = days_since_1970(year, month, day) * DAY_S;
    seconds += hour * 3600 + minute * 60 + second;
    *value = seconds * power_of_ten(by->digits) + units * power_of_ten(by->digits - fraction);
    return 1;
}

static char *show_stamp(const KernelSpelling *by, char *end, int64_t value)
{
    int64_t scale = (int64_t)power_of_ten(by->digits);
    int64_t units = value % scale, seconds = value / scale, fraction = by->digits;
    if (units < 0) {
        units += scale;
        seconds--;
    }
    int64_t second = seconds % DAY_S, days = seconds / DAY_S;
    if (second < 0) {
        second += DAY_S;
        days--;
    }
    if (days < FIRST_DAY || days > LAST_DAY || by->text_size != 1)
        return NULL;
    int64_t count = days + EPOCH_DAYS;
    int64_t era = (count >= 0 ? count : count - ERA_DAYS + 1) / ERA_DAYS;
    int64_t of_era = count - era * ERA_DAYS;
    int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    int64_t of_year = of_era - (365 * year + year / 4 - year / 100);
    int64_t month = (5 * of_year + 2) / 153;
    int64_t day = of_year - (153 * month + 2) / 5 + 1;
    month += month < 10 ? 3 : -9;
    year += era * 400 + (month <= 2);
    char *at = end;
    if (by->kind == STAMP_TRIMMED)
        while (fraction > 0 && units % 10 == 0) {
            units /= 10;
            fraction--;
        }
    if (fraction) {
        at = put_digits(at, (uint64_t)units, (int)fraction);
        *--at = '.';
    }
    const int64_t parts[] = {second % 60, second / 60 % 60, second / 3600, day, month};
    const char before[] = {':', ':', by->text[0], '-', '-'};
    for (int i = 0; i < 5; i++) {
        at = put_digits(at, (uint64_t)parts[i], 2);
        *--at = before[i];
    }
    return put_digits(at, (uint64_t)year, 4);
}

static int parse_clock(const KernelSpelling *by, const char *text, Py_ssize_t size, wide *value)
{
    wide days = 0;
    if (by->text_size) {
        const char *found = memmem(text, (size_t)size, by->text, (size_t)by->text_size);
        if (found == NULL || (days = padded(text, found - text, 1)) < 0)
            return 0;
        size -= found - text + by->text_size;
        text = found + by->text_size;
    }
    if (size < 7 || text[size - 3] != ':' || text[size - 6] != ':')
        return 0;
    wide hours = padded(text, size - 6, by->digits);
    int64_t minutes = digits_at(text + size - 5, 2), seconds = digits_at(text + size - 2, 2);
    if (hours < 0 || minutes < 0 || minutes > 59 || seconds < 0 || seconds > 59 ||
        (by->text_size && hours > 23))
        return 0;
    *value = days * DAY_S + hours * 3600 + minutes * 60 + seconds;
    return 1;
}

static char *show_clock(const KernelSpelling *by, char *end, int64_t value)
{
    if (value < 0)
        return NULL;
    int64_t days = value / DAY_S, rest = by->text_size ? value % DAY_S : value;
    char *at = put_digits(end, (uint64_t)(rest % 60), 2);
    *--at = ':';
    at = put_digits(at, (uint64_t)(rest / 60 % 60), 2);
    *--at = ':';
    at = put_digits(at, (uint64_t)(rest / 3600), by->digits);
    if (by->text_size) {
        at -= by->text_size;
        memcpy(at, by->text, (size_t)by->text_size);
        at = put_digits(at, (uint64_t)days, 1);
    }
    return at;
}

/* ---- bytes --------------------------------------------------------------------------------- */

static int parse_whole(const KernelSpelling *by, const char *text, Py_ssize_t size, wide *value)
{
    int little = by->kind == UNSIGNED_LITTLE || by->kind == SIGNED_LITTLE;
    int is_signed = by->kind == SIGNED_LITTLE || by->kind == SIGNED_BIG;
    wide number = 0;
    if (size != by->digits)
        return 0;
    for (Py_ssize_t i = 0; i < size; i++)
        number = number * 256 + (uint8_t)text[little ? size - 1 - i : i];
    wide over = (wide)1 << (8 * size);
    *value = is_signed && number >= over / 2 ? number - over : number;
    return 1;
}

static char *show_whole(const KernelSpelling *by, char *end, int64_t value)
{
    int little = by->kind == UNSIGNED_LITTLE || by->kind == SIGNED_LITTLE;
    int is_signed = by->kind == SIGNED_LITTLE || by->kind == SIGNED_BIG;
    wide over = (wide)1 << (8 * by->digits);
    if (value < (is_signed ? -over / 2 : 0) || value >= (is_signed ? over / 2 : over))
        return NULL;
    char *at = end - by->digits;
    for (int i = 0; i < by->digits; i++)
        at[little ? i : by->digits - 1 - i] = (char)(uint8_t)((uint64_t)value >> (8 * i));
    return at;
}

static int parse_varint(const char *text, Py_ssize_t size, wide *value)
{
    uint64_t number = 0;
    if (size < 1 || size > 10)
        return 0;
    for (Py_ssize_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)text[i];
        if ((byte < 0x80) != (i == size - 1) || (i == 9 && byte > 1))
            return 0;
        number |= (uint64_t)(byte & 0x7F) << (7 * i);
    }
    if (size > 1 && text[size - 1] == 0)
        return 0;
    *value = (int64_t)number;
    return 1;
}

static char *show_varint(char *end, int64_t value)
{
    uint64_t rest = (uint64_t)value;
    char text[10];
    int size = 0;
    while (rest >= 0x80) {
        text[size++] = (char)(uint8_t)(rest | 0x80);
        rest >>= 7;
    }
    text[size++] = (char)(uint8_t)rest;
    memcpy(end - size, text, (size_t)size);
    return end - size;
}

/* ---- floats -------------------------------------------------------------------------------- */

#define EXACT ((int64_t)1 << 53) /* integers up to it are floats as well */

/* Returns the bytes of a float, of the width `by` says; 0 where there is none. */
static int put_float(const KernelSpelling *by, char *text, int64_t value)
{
    double number;
    int little = by->kind == FLOAT_LITTLE;
    if (value >= -EXACT && value <= EXACT) {
        number = (double)value / (double)power_of_ten(by->digits);
    } else { /* rounded once, as Python does */
        PyObject *whole = PyLong_FromLongLong(value);
        PyObject *scale = PyLong_FromLongLong((long long)power_of_ten(by->digits));
        PyObject *found = whole && scale ? PyNumber_TrueDivide(whole, scale) : NULL;
        number = found ? PyFloat_AsDouble(found) : 0;
        Py_XDECREF(whole);
        Py_XDECREF(scale);
        Py_XDECREF(found);
    }
    int failed = PyErr_Occurred() || (by->text[0] == '4' ? PyFloat_Pack4(number, text, little)
                                                         : PyFloat_Pack8(number, text, little));
    PyErr_Clear(); /* a number past what four bytes hold */
    return !failed;
}

static int parse_float(const KernelSpelling *by, const char *text, Py_ssize_t size, wide *value)
{
    int little = by->kind == FLOAT_LITTLE;
    char shown[8];
    if (size != by->text[0] - '0')
        return 0;
    double number = size == 4 ? PyFloat_Unpack4(text, little) : PyFloat_Unpack8(text, little);
    number = nearbyint(number * (double)power_of_ten(by->digits)); /* of two, the even one */
    if (!(number > -(double)VALUE_BOUND && number < (double)VALUE_BOUND))
        return 0;
    *value = (int64_t)number;
    return put_float(by, shown, (int64_t)number) && !memcmp(shown, text, (size_t)size);
}

static char *show_float(const KernelSpelling *by, char *end, int64_t value)
{
    char *at = end - (by->text[0] - '0');
    return put_float(by, at, value) ? at : NULL;
}

/* ---- many ---------------------------------------------------------------------------------- */

static int parse_core(const KernelSpelling *by, const char *text, Py_ssize_t size, wide *value)
{
    switch (by->kind) {
    case FIXED:
    case TRIMMED:
    case FLOATY:
        return parse_decimal(by, text, size, value);
    case PADDED:
        *value = padded(text, size, by->digits);
        return *value >= 0;
    case STAMP:
    case STAMP_TRIMMED:
        return parse_stamp(by, text, size, value);
    case CLOCK:
        return parse_clock(by, text, size, value);
    case FLOAT_LITTLE:
    case FLOAT_BIG:
        return parse_float(by, text, size, value);
    case VARINT:
        return parse_varint(text, size, value);
    default:
        return parse_whole(by, text, size, value);
    }
}

static char *show_core(const KernelSpelling *by, char *end, int64_t value)
{
    switch (by->kind) {
    case FIXED:
    case TRIMMED:
    case FLOATY:
        return show_decimal(by, end, value);
    case PADDED:
        return value < 0 ? NULL : put_digits(end, (uint64_t)value, by->digits);
    case STAMP:
    case STAMP_TRIMMED:
        return show_stamp(by, end, value);
    case CLOCK:
        return show_clock(by, end, value);
    case FLOAT_LITTLE:
    case FLOAT_BIG:
        return show_float(by, end, value);
    case VARINT:
        return show_varint(end, value);
    default:
        return show_whole(by, end, value);
    }
}

static int check_spelling(const KernelSpelling *by)
{
    int bytes = by->kind >= UNSIGNED_LITTLE && by->kind <= SIGNED_BIG;
    int floats = by->kind == FLOAT_LITTLE || by->kind == FLOAT_BIG;
    if (by->digits < 0 || by->digits > DIGITS_MAX || by->text_size > TEXT_MAX ||
        by->prefix_size > TEXT_MAX || by->suffix_size > TEXT_MAX ||
        !((by->kind >= FIXED && by->kind <= CLOCK) || by->kind == VARINT ||
          (bytes && by->digits >= 1 && by->digits <= 8) ||
          (floats && by->text_size == 1 && (by->text[0] == '4' || by->text[0] == '8')))) {
        PyErr_SetString(PyExc_ValueError, "a spelling that does not exist");
        return -1;
    }
    return 0;
}

static int read_spelling(PyObject *args, PyObject **given, KernelSpelling *by)
{
    if (!PyArg_ParseTuple(args, "Oiiy#y#y#", given, &by->kind, &by->digits, &by->text,
                          &by->text_size, &by->prefix, &by->prefix_size, &by->suffix,
                          &by->suffix_size))
        return -1;
    return check_spelling(by);
}

/* The same from a printer's key: (kind, digits, text, prefix, suffix). */
int kernel_read_key(PyObject *key, KernelSpelling *by)
{
    if (!PyTuple_Check(key)) {
        PyErr_SetString(PyExc_TypeError, "a tuple is needed");
        return -1;
    }
    if (!PyArg_ParseTuple(key, "iiy#y#y#", &by->kind, &by->digits, &by->text, &by->text_size,
                          &by->prefix, &by->prefix_size, &by->suffix, &by->suffix_size))
        return -1;
    return check_spelling(by);
}

/* Parses a token; none where it is not spelled so. Returns -1 with an error set. */
int kernel_parse(const KernelSpelling *by, PyObject *token, KernelMaybe *out)
{
    if (!PyBytes_Check(token)) {
        PyErr_SetString(PyExc_TypeError, "bytes are needed");
        return -1;
    }
    const char *text = PyBytes_AS_STRING(token);
    Py_ssize_t size = PyBytes_GET_SIZE(token) - by->prefix_size - by->suffix_size;
    wide value = 0;
    out->there = size >= 0 && !memcmp(text, by->prefix, (size_t)by->prefix_size) &&
                 !memcmp(text + by->prefix_size + size, by->suffix, (size_t)by->suffix_size) &&
                 parse_core(by, text + by->prefix_size, size, &value) && value > -VALUE_BOUND &&
                 value < VALUE_BOUND;
    out->value = (int64_t)value;
    return 0;
}

/* Parses a token as a decimal of as many digits as it has; none where it is not spelled so. */
int kernel_parse_other_decimal(PyObject *token, int *digits, KernelMaybe *out)
{
    Py_ssize_t size = PyBytes_Check(token) ? PyBytes_GET_SIZE(token) : 0;
    const char *point = size ? memchr(PyBytes_AS_STRING(token), '.', (size_t)size) : NULL;
    Py_ssize_t fraction = point ? PyBytes_AS_STRING(token) + size - 1 - point : 0;
    KernelSpelling by = {FIXED, (int)fraction, "", "", "", 0, 0, 0};
    *digits = (int)fraction;
    out->there = 0;
    return fraction > DIGITS_MAX ? 0 : kernel_parse(&by, token, out);
}

PyObject *kernel_parse_all(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *given;
    KernelSpelling by;
    if (read_spelling(args, &given, &by) < 0)
        return NULL;
    PyObject *tokens = PySequence_Fast(given, "a sequence is needed");
    if (tokens == NULL)
        return NULL;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(tokens);
    KernelMaybe *numbers = PyMem_New(KernelMaybe, n + 1);
    int failed = numbers == NULL;
    if (failed)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; !failed && i < n; i++)
        failed = kernel_parse(&by, PySequence_Fast_GET_ITEM(tokens, i), numbers + i);
    PyObject *out = failed ? NULL : kernel_list_of(numbers, n);
    PyMem_Free(numbers);
    Py_DECREF(tokens);
    return out;
}

/* Returns the token of a value; NULL with ValueError set where there is none. */
PyObject *kernel_show(const KernelSpelling *by, int64_t value)
{
    char core[CORE_MAX], *end = core + CORE_MAX, *at = NULL;
    if (value > -VALUE_BOUND && value < VALUE_BOUND)
        at = show_core(by, end, value);
    if (at == NULL)
        return PyErr_Format(PyExc_ValueError, "an integer its column cannot spell");
    PyObject *token =
        PyBytes_FromStringAndSize(NULL, by->prefix_size + (end - at) + by->suffix_size);
    if (token != NULL) {
        char *text = PyBytes_AS_STRING(token);
        memcpy(text, by->prefix, (size_t)by->prefix_size);
        memcpy(text + by->prefix_size, at, (size_t)(end - at));
        memcpy(text + by->prefix_size + (end - at), by->suffix, (size_t)by->suffix_size);
    }
    return token;
}

PyObject *kernel_show_all(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *values, *out;
    KernelSpelling by;
    if (read_spelling(args, &values, &by) < 0)
        return NULL;
    if (!PyList_Check(values))
        return PyErr_Format(PyExc_TypeError, "a list is needed");
    Py_ssize_t n = PyList_GET_SIZE(values);
    out = PyList_New(n);
    for (Py_ssize_t i = 0; out != NULL && i < n; i++) {
        int overflow;
        long long value = PyLong_AsLongLongAndOverflow(PyList_GET_ITEM(values, i), &overflow);
        PyObject *token = NULL;
        if (value != -1 || !PyErr_Occurred())
            token = kernel_show(&by, overflow ? INT64_MAX : value);
        if (token == NULL)
            Py_CLEAR(out);
        else
            PyList_SET_ITEM(out, i, token);
    }
    return out;
}
