// Preloaded into a process (LD_PRELOAD): what happens to it amid its writes below the folder CRASH_ROOT.
//
//   CRASH_KILL=N   the N-th operation there that changes something is cut short (half of a write) and the process
//   killed CRASH_FULL=N   from the N-th write on the disk is full CRASH_READONLY=1   nothing there may be changed

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(result, name, ...) result (*real)(__VA_ARGS__) = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static atomic_long operations, writes;

static long number(const char* name) {
  const char* text = getenv(name);
  return text ? atol(text) : 0;
}

static int below(const char* path) {
  const char* root = getenv("CRASH_ROOT");
  if (!root || !path) return 0;
  char whole[PATH_MAX * 2];
  if (path[0] != '/') {
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    path = whole;
  }
  return strncmp(path, root, strlen(root)) == 0;
}

static int handle_below(int handle) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return below(path);
}

static void killed(void) { kill(getpid(), SIGKILL); }

// Whether this is the operation that the process does not survive.
static int last(void) {
  long at = number("CRASH_KILL");
  return at && atomic_fetch_add(&operations, 1) + 1 == at;
}

static int is_full(void) {
  long at = number("CRASH_FULL");
  return at && atomic_fetch_add(&writes, 1) + 1 >= at;
}

static int is_readonly(void) { return number("CRASH_READONLY") != 0; }

ssize_t write(int handle, const void* data, size_t size) {
  REAL(ssize_t, "write", int, const void*, size_t);
  if (handle > 2 && handle_below(handle)) {
    if (last()) {
      real(handle, data, size / 2);
      killed();
    }
    if (is_full()) {
      errno = ENOSPC;
      return -1;
    }
  }
  return real(handle, data, size);
}

int fsync(int handle) {
  REAL(int, "fsync", int);
  if (handle_below(handle) && last()) killed();
  return real(handle);
}

#define CHANGE(call)    \
  if (last()) killed(); \
  if (is_readonly()) {  \
    errno = EROFS;      \
    return -1;          \
  }

int rename(const char* from, const char* to) {
  REAL(int, "rename", const char*, const char*);
  if (below(to)) {
    CHANGE()
  }
  return real(from, to);
}

int link(const char* from, const char* to) {
  REAL(int, "link", const char*, const char*);
  if (below(to)) {
    CHANGE()
  }
  return real(from, to);
}

int unlink(const char* path) {
  REAL(int, "unlink", const char*);
  if (below(path)) {
    CHANGE()
  }
  return real(path);
}

int mkdir(const char* path, mode_t mode) {
  REAL(int, "mkdir", const char*, mode_t);
  if (below(path)) {
    CHANGE()
  }
  return real(path, mode);
}

static int changes(const char* path, int flags) {
  return (flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC)) && below(path);
}

#define OPEN(name)                             \
  int name(const char* path, int flags, ...) { \
    REAL(int, #name, const char*, int, ...);   \
    mode_t mode = 0;                           \
    if (flags & (O_CREAT | O_TMPFILE)) {       \
      va_list list;                            \
      va_start(list, flags);                   \
      mode = va_arg(list, mode_t);             \
      va_end(list);                            \
    }                                          \
    if (changes(path, flags)) {                \
      CHANGE()                                 \
    }                                          \
    return real(path, flags, mode);            \
  }

OPEN(open)
OPEN(open64)
