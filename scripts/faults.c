/* Faults of a disk and a clock, for scripts/test-faults: LD_PRELOAD of this between a program and its C library.
 *
 *   FAULT_UNDER   only files below this folder count
 *   FAULT_COUNT   a file that gets the numbers of writes and reads when the process ends
 *   FAULT_WRITE   N: the Nth write fails with ENOSPC (a disk is full), and all later ones
 *   FAULT_READ    N: the Nth read fails with EIO
 *   FAULT_READONLY  whatever would make, change or remove a file fails with EROFS
 *   FAULT_CLOCK   N:SECONDS: from the Nth question on the time of day is another one
 *   FAULT_SLOW    microseconds that every write takes
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *under, *count_file;
static size_t under_length;
static long fail_write = -1, fail_read = -1, clock_from = -1, clock_jump, slow;
static int read_only;
static atomic_long writes, reads, questions;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long number(const char *name, long other) {
    const char *text = getenv(name);
    return text ? atol(text) : other;
}

__attribute__((constructor)) static void start(void) {
    under = getenv("FAULT_UNDER");
    under_length = under ? strlen(under) : 0;
    count_file = getenv("FAULT_COUNT");
    fail_write = number("FAULT_WRITE", -1);
    fail_read = number("FAULT_READ", -1);
    read_only = getenv("FAULT_READONLY") != NULL;
    slow = number("FAULT_SLOW", 0);
    const char *jump = getenv("FAULT_CLOCK");
    if (jump && strchr(jump, ':')) {
        clock_from = atol(jump);
        clock_jump = atol(strchr(jump, ':') + 1);
    }
}

__attribute__((destructor)) static void end(void) {
    if (!count_file) return;
    FILE *file = fopen(count_file, "w");
    if (!file) return;
    fprintf(file, "%ld %ld\n", (long)writes, (long)reads);
    fclose(file);
}

static int is_under(const char *path) {
    return under && strncmp(path, under, under_length) == 0;
}

static int counts(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_under(path);
}

/* A path below a folder that a call names; relative ones belong to the working folder. */
static int path_counts(const char *path) {
    if (path[0] == '/') return is_under(path);
    char whole[PATH_MAX];
    if (!getcwd(whole, sizeof whole)) return 0;
    strncat(whole, "/", sizeof whole - strlen(whole) - 1);
    return is_under(whole);
}

static int write_fails(int fd) {
    int before = errno;
    if (!counts(fd)) {
        errno = before;
        return 0;
    }
    if (slow) usleep((useconds_t)slow);
    errno = before;
    long at = ++writes;
    if (fail_write > 0 && at >= fail_write) {
        errno = ENOSPC;
        return 1;
    }
    return 0;
}

static int read_fails(int fd) {
    int before = errno;
    int fails = counts(fd) && ++reads == fail_read;
    errno = fails ? EIO : before;
    return fails;
}

static int change_fails(const char *path) {
    if (read_only && path_counts(path)) {
        errno = EROFS;
        return 1;
    }
    return 0;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    return write_fails(fd) ? -1 : REAL(write)(fd, bytes, length);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    return write_fails(fd) ? -1 : REAL(writev)(fd, parts, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    return write_fails(fd) ? -1 : REAL(pwrite64)(fd, bytes, length, at);
}

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t length, unsigned flags) {
    return write_fails(to) || read_fails(from) ? -1 : REAL(copy_file_range)(from, from_at, to, to_at, length, flags);
}

int fsync(int fd) {
    return write_fails(fd) ? -1 : REAL(fsync)(fd);
}

ssize_t read(int fd, void *bytes, size_t length) {
    return read_fails(fd) ? -1 : REAL(read)(fd, bytes, length);
}

ssize_t pread64(int fd, void *bytes, size_t length, off64_t at) {
    return read_fails(fd) ? -1 : REAL(pread64)(fd, bytes, length, at);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (flags & (O_WRONLY | O_RDWR | O_CREAT) && change_fails(path)) return -1;
    return REAL(open64)(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    return change_fails(path) ? -1 : REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    return change_fails(to) ? -1 : REAL(rename)(from, to);
}

int unlink(const char *path) {
    return change_fails(path) ? -1 : REAL(unlink)(path);
}

int rmdir(const char *path) {
    return change_fails(path) ? -1 : REAL(rmdir)(path);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = REAL(clock_gettime)(clock, time);
    if (result == 0 && clock == CLOCK_REALTIME && clock_from >= 0 && ++questions >= clock_from) time->tv_sec += clock_jump;
    return result;
}
