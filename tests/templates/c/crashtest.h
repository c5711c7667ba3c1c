/*
 * An implementation of qcow2 in C under the crash-consistency harness: what it offers, and what it is given.
 *
 *   harness ── open, read, write, flush ──> subject      the functions of `struct crashtest_subject`, which are yours
 *   harness <── read_at, write_at, flush ── subject      the functions of `struct crashtest_calls`, on the file of the image
 *
 * Offsets, lengths and sizes are in bytes, and are of any alignment. One request is done at a time. Images are independent of each other, and
 * several are used at once, each on a thread of its own: what lies outside an image is not written to.
 *
 * After a power cut every call of the file but `length` fails, then the image is dropped. One that goes on all the same is unwound out of a
 * call of the file after ten thousand of them: what is in C is compiled with -fexceptions, as build.rs does it, or gives up by itself.
 *
 * What is done to an image follows from a seed: an implementation that asks a clock, a random number or an address what to do cannot be
 * shown again what it did. An assertion that fails ends the process.
 */
#ifndef CRASHTEST_H
#define CRASHTEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum crashtest_result {
    CRASHTEST_OK = 0,
    /* The file failed, or memory did. */
    CRASHTEST_FAILED = 1,
    /* A read past the end of the file. */
    CRASHTEST_END = 2,
    /* Of `open` and `repair`: it is no image that the implementation takes on. It stays as it is. */
    CRASHTEST_GAVE_UP = 3,
};

/* The file of an image. */
struct crashtest_file;

struct crashtest_calls {
    uint64_t (*length)(const struct crashtest_file *file);
    enum crashtest_result (*read_at)(struct crashtest_file *file, uint64_t offset, void *into, size_t length);
    /* Makes the file longer, if need be. */
    enum crashtest_result (*write_at)(struct crashtest_file *file, uint64_t offset, const void *from, size_t length);
    enum crashtest_result (*set_length)(struct crashtest_file *file, uint64_t length);
    /* The range reads as zeroes then. */
    enum crashtest_result (*write_zeroes)(struct crashtest_file *file, uint64_t offset, uint64_t length);
    /* The range reads as before or as zeroes then. */
    enum crashtest_result (*discard)(struct crashtest_file *file, uint64_t offset, uint64_t length);
    /* What was written before is durable then. */
    enum crashtest_result (*flush)(struct crashtest_file *file);
};

struct crashtest_subject {
    /* Name and version, for reports. */
    const char *name;
    /* Two words, for case files and the folder that they are kept in. */
    const char *key;

    /* log2 of the smallest and of the largest cluster size that it opens: 9 and 21 are all there are. */
    uint32_t cluster_bits[2];
    /* log2 of the fewest and of the most bits of a refcount that it opens: 0 and 6 are all there are. */
    uint32_t refcount_orders[2];
    /* Whether it opens images of version 2, with lazy refcounts, with compressed clusters, with zstd. */
    bool version_2, lazy_refcounts, compressed, zstd;
    /* Names of what images may hold at first, ended by NULL: the words of `explore --help` for `--initial`. Without a list, all of them. */
    const char *const *initials;

    /* What it is held to besides what its guest reads: a power cut leaks no more than the requests that it met account for; a clean close
     * leaks nothing; space that was given up and flushed is used again before the file gets longer. */
    bool leaks_little, closes_without_leaks, finds_space;
    /* Calls of the file for each cluster of the file and of the disk with which all of a recovered image can be written; 0 for the usual ones. */
    uint32_t ios_per_cluster;

    /* Opens an image, safe to write if it is opened for writing. `file` stays until the image is dropped. */
    enum crashtest_result (*open)(struct crashtest_file *file, const struct crashtest_calls *calls, bool writable, void **image);
    /* Frees the memory of an image, without any I/O: a power cut drops it wherever it is. */
    void (*drop)(void *image);
    /* Bytes of the disk. */
    uint64_t (*size)(void *image);
    enum crashtest_result (*read)(void *image, uint64_t offset, void *into, size_t length);
    enum crashtest_result (*write)(void *image, uint64_t offset, const void *from, size_t length);
    /* What was written before is durable then, as its guest wants it. */
    enum crashtest_result (*flush)(void *image);

    /* What follows may be NULL: then it is not asked. */

    enum crashtest_result (*write_zeroes)(void *image, uint64_t offset, uint64_t length, bool unmap);
    enum crashtest_result (*discard)(void *image, uint64_t offset, uint64_t length);
    enum crashtest_result (*grow)(void *image, uint64_t size);
    enum crashtest_result (*shrink)(void *image, uint64_t size);
    /* Closes cleanly; `drop` comes next. Without it, a flush does. */
    enum crashtest_result (*close)(void *image);
    /* Checks and repairs an image that is not open. */
    enum crashtest_result (*repair)(struct crashtest_file *file, const struct crashtest_calls *calls);
};

/* The implementation. */
extern const struct crashtest_subject crashtest_subject;

#endif
