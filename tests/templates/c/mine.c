/*
 * A stand-in for the implementation, so that this package runs as it is. YOURS: the tables at the end, over what calls yours.
 *
 * It reads and writes, gives nothing back, and flushes only when it is asked to. That is too seldom, and `run` shows why.
 */
#include "crashtest.h"

#include <stdlib.h>
#include <string.h>

typedef enum crashtest_result result;

/* An open image. */
struct image {
    struct crashtest_file *file;
    const struct crashtest_calls *calls;
    uint64_t cluster, size;
};

static result number(const struct image *image, uint64_t offset, uint64_t *value)
{
    uint8_t bytes[8];
    result read = image->calls->read_at(image->file, offset, bytes, sizeof bytes);
    *value = 0;
    for (size_t at = 0; read == CRASHTEST_OK && at < sizeof bytes; at++)
        *value = *value << 8 | bytes[at];
    return read;
}

static result put(const struct image *image, uint64_t offset, uint64_t value)
{
    uint8_t bytes[8];
    for (size_t at = 0; at < sizeof bytes; at++)
        bytes[at] = (uint8_t)(value >> (56 - 8 * at));
    return image->calls->write_at(image->file, offset, bytes, sizeof bytes);
}

/* A cluster of zeroes at the end of the file, counted. Where no block has its count yet, it becomes that block itself. */
static result allocate(const struct image *image, uint64_t *host)
{
    static const uint8_t one[2] = {0, 1};
    for (;;) {
        uint64_t cluster = (image->calls->length(image->file) + image->cluster - 1) / image->cluster;
        uint64_t per_block = image->cluster / 2, table, block;
        result done = number(image, 48, &table);
        uint64_t entry = table + cluster / per_block * 8;
        if (done == CRASHTEST_OK)
            done = number(image, entry, &block);
        *host = cluster * image->cluster;
        if (done == CRASHTEST_OK)
            done = image->calls->write_zeroes(image->file, *host, image->cluster);
        if (done == CRASHTEST_OK)
            done = image->calls->write_at(image->file, (block ? block : *host) + cluster % per_block * 2, one, sizeof one);
        if (done != CRASHTEST_OK || block != 0)
            return done;
        done = put(image, entry, *host);
        if (done != CRASHTEST_OK)
            return done;
    }
}

/* Where a guest offset's cluster is, through both tables; 0 if it is nowhere. */
static result find(const struct image *image, uint64_t offset, bool allocating, uint64_t *host)
{
    uint64_t index = offset / image->cluster, per_table = image->cluster / 8;
    uint64_t indices[2] = {index / per_table, index % per_table};
    result done = number(image, 40, host);
    for (int level = 0; done == CRASHTEST_OK && level < 2; level++) {
        uint64_t entry = *host + indices[level] * 8;
        done = number(image, entry, host);
        *host &= 0x00fffffffffffe00;
        if (done != CRASHTEST_OK || *host != 0)
            continue;
        if (!allocating)
            return done;
        done = allocate(image, host);
        if (done == CRASHTEST_OK)
            done = put(image, entry, *host | (uint64_t)1 << 63);
    }
    return done;
}

/* How much of a range is in the cluster that it begins in. */
static size_t part(const struct image *image, uint64_t offset, size_t length)
{
    uint64_t rest = image->cluster - offset % image->cluster;
    return length < rest ? length : (size_t)rest;
}

static result open_image(struct crashtest_file *file, const struct crashtest_calls *calls, bool writable, void **opened)
{
    struct image *image = malloc(sizeof *image);
    if (image == NULL)
        return CRASHTEST_FAILED;
    *image = (struct image){.file = file, .calls = calls};
    (void)writable;
    uint64_t bits;
    result done = number(image, 16, &bits);
    if (done == CRASHTEST_OK)
        done = number(image, 24, &image->size);
    if (done != CRASHTEST_OK) {
        free(image);
        return done;
    }
    image->cluster = (uint64_t)1 << (bits & 63);
    *opened = image;
    return CRASHTEST_OK;
}

static void drop_image(void *image)
{
    free(image);
}

static uint64_t size_of(void *opened)
{
    const struct image *image = opened;
    return image->size;
}

static result read_image(void *opened, uint64_t offset, void *into, size_t length)
{
    const struct image *image = opened;
    for (size_t at = 0, now; at < length; at += now) {
        uint64_t host, guest = offset + at;
        now = part(image, guest, length - at);
        result done = find(image, guest, false, &host);
        if (done == CRASHTEST_OK && host == 0)
            memset((uint8_t *)into + at, 0, now);
        else if (done == CRASHTEST_OK)
            done = image->calls->read_at(image->file, host + guest % image->cluster, (uint8_t *)into + at, now);
        if (done != CRASHTEST_OK)
            return done;
    }
    return CRASHTEST_OK;
}

static result write_image(void *opened, uint64_t offset, const void *from, size_t length)
{
    const struct image *image = opened;
    for (size_t at = 0, now; at < length; at += now) {
        uint64_t host, guest = offset + at;
        now = part(image, guest, length - at);
        result done = find(image, guest, true, &host);
        if (done == CRASHTEST_OK)
            done = image->calls->write_at(image->file, host + guest % image->cluster, (const uint8_t *)from + at, now);
        if (done != CRASHTEST_OK)
            return done;
    }
    return CRASHTEST_OK;
}

static result flush_image(void *opened)
{
    const struct image *image = opened;
    return image->calls->flush(image->file);
}

static const char *const initials[] = {"fresh", NULL};

const struct crashtest_subject crashtest_subject = {
    .name = "mine 0.0.0",
    .key = "mine",
    .cluster_bits = {9, 21},
    .refcount_orders = {4, 4},
    .version_2 = true,
    .lazy_refcounts = true,
    .initials = initials,
    .leaks_little = true,
    .closes_without_leaks = true,
    .open = open_image,
    .drop = drop_image,
    .size = size_of,
    .read = read_image,
    .write = write_image,
    .flush = flush_image,
};
