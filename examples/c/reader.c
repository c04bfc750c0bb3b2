/*
 * reader: reads tensors of a model in a vbootfs mount while others change them,
 * and never uses a torn one.
 *
 *     cc -O2 -std=c11 -pthread -o reader reader.c
 *     reader /mnt/models/vector_boot/models/P --until 1000 a b
 *     reader /mnt/models/vector_boot/models/P --count 5 output_norm.weight
 *
 * The protocol: s = sequence, again while it is odd; read; is the sequence still
 * s? Then all that was read is of one generation.
 *
 * --until G    read until generation G was read
 * --count N    read N generations, waiting for each on the doorbell, and say so
 * --uniform    check that all tensors are F32 and every value is the number of the
 *              generation: what a writer made that is to be caught with torn reads
 *
 * It prints what it has read: the number of reads, how many the sequence counter
 * made it repeat, how many of those it would have been wrong to use (mixed), and
 * how many torn ones it used all the same. That is 0, or the exit code is 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

struct control {
	char magic[8]; /* VBOOTCTL */
	uint32_t abi, size;
	_Atomic uint64_t sequence; /* odd while tensors are being changed */
	_Atomic uint64_t generation;
	_Atomic uint64_t segment; /* another number means: map the model anew */
	_Atomic uint64_t bytes;
	char reserved[16];
	_Atomic uint32_t doorbell; /* futex word: one more for every change and interrupt */
	_Atomic uint32_t opcode;
	_Atomic uint64_t request;
};
_Static_assert(offsetof(struct control, sequence) == 16 && offsetof(struct control, doorbell) == 64 &&
                   offsetof(struct control, request) == 72,
               "layout of the control page");

#define MAX_TENSORS 16

struct tensor {
	const char *name;
	size_t offset, bytes;
	void *copy;
};

struct reader {
	const char *dir; /* models/P */
	struct control *control;
	const char *map;
	size_t size;
	uint64_t segment;
	struct tensor tensors[MAX_TENSORS];
	int count;
};

static void die(const char *what)
{
	fprintf(stderr, "reader: %s: %s\n", what, errno ? strerror(errno) : "not as expected");
	exit(2);
}

static int open_in(const char *dir, const char *name, int flags)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%s", dir, name);
	int fd = open(path, flags | O_CLOEXEC);
	if (fd < 0)
		die(path);
	return fd;
}

static void *map(const char *dir, const char *name, int flags, int prot, size_t *size)
{
	int fd = open_in(dir, name, flags);
	struct stat st;
	if (fstat(fd, &st) < 0)
		die("fstat");
	void *p = mmap(NULL, st.st_size, prot, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	close(fd);
	*size = st.st_size;
	return p;
}

/* find looks a tensor up in layout.tsv: name, type, shape, offset, nbytes. */
static void find(struct reader *r, struct tensor *t)
{
	FILE *f = fdopen(open_in(r->dir, "layout.tsv", O_RDONLY), "r");
	char *line = NULL;
	size_t room = 0, length = strlen(t->name);
	t->bytes = 0;
	while (f && getline(&line, &room, f) > 0)
		if (!strncmp(line, t->name, length) && line[length] == '\t' &&
		    sscanf(line + length, "\t%*[^\t]\t%*[^\t]\t%zu\t%zu", &t->offset, &t->bytes) == 2)
			break;
	errno = 0;
	if (!t->bytes || t->offset + t->bytes > r->size)
		die(t->name);
	free(line);
	fclose(f);
	t->copy = realloc(t->copy, t->bytes);
}

/* map_model maps the model, anew after it was replaced. */
static void map_model(struct reader *r)
{
	if (r->map)
		munmap((void *)r->map, r->size);
	r->segment = atomic_load_explicit(&r->control->segment, memory_order_acquire);
	r->map = map(r->dir, "model.gguf", O_RDONLY, PROT_READ, &r->size);
	for (int i = 0; i < r->count; i++)
		find(r, &r->tensors[i]);
}

/* copy_words copies memory that another process may be changing. */
static void copy_words(void *to, const void *from, size_t n)
{
	size_t i = 0;
	if ((uintptr_t)from % 4 == 0)
		for (; i + 4 <= n; i += 4)
			*(uint32_t *)((char *)to + i) = atomic_load_explicit((_Atomic uint32_t *)((char *)from + i), memory_order_relaxed);
	for (; i < n; i++)
		((char *)to)[i] = atomic_load_explicit((_Atomic char *)((char *)from + i), memory_order_relaxed);
}

/* uniform reports whether every value is that of a generation. */
static int uniform(const struct reader *r, uint64_t generation)
{
	for (int i = 0; i < r->count; i++)
		for (size_t k = 0; k < r->tensors[i].bytes / 4; k++)
			if (((float *)r->tensors[i].copy)[k] != (float)generation)
				return 0;
	return 1;
}

enum result { NOT_NOW, MIXED, WHOLE };

/* attempt reads all tensors once. What is not WHOLE may not be used. */
static enum result attempt(struct reader *r, uint64_t *generation)
{
	struct control *c = r->control;
	uint64_t s = atomic_load_explicit(&c->sequence, memory_order_acquire);
	if (s % 2) {
		sched_yield();
		return NOT_NOW;
	}
	if (atomic_load_explicit(&c->segment, memory_order_relaxed) != r->segment) {
		map_model(r);
		return NOT_NOW;
	}
	*generation = atomic_load_explicit(&c->generation, memory_order_relaxed);
	for (int i = 0; i < r->count; i++)
		copy_words(r->tensors[i].copy, r->map + r->tensors[i].offset, r->tensors[i].bytes);
	atomic_thread_fence(memory_order_acquire);
	return atomic_load_explicit(&c->sequence, memory_order_relaxed) == s ? WHOLE : MIXED;
}

/* wait_for waits until the doorbell has rung since it was seen. */
static void wait_for(struct control *c, uint32_t seen)
{
	while (atomic_load_explicit(&c->doorbell, memory_order_acquire) == seen)
		syscall(SYS_futex, &c->doorbell, FUTEX_WAIT, seen, NULL, NULL, 0);
}

int main(int argc, char **argv)
{
	struct reader r = {0};
	uint64_t until = 0, count = 0, generation = 0, last = 0, seen = 0;
	unsigned long reads = 0, retries = 0, mixed = 0, torn = 0;
	int check = 0;
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--until") && i + 1 < argc)
			until = strtoull(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--count") && i + 1 < argc)
			count = strtoull(argv[++i], NULL, 10);
		else if (!strcmp(argv[i], "--uniform"))
			check = 1;
		else if (!r.dir)
			r.dir = argv[i];
		else if (r.count < MAX_TENSORS)
			r.tensors[r.count++].name = argv[i];
	}
	if (!r.count || !until == !count) {
		fprintf(stderr, "usage: reader MODEL_DIR --until GENERATION | --count N [--uniform] TENSOR...\n");
		return 2;
	}
	size_t size;
	r.control = map(r.dir, "control", O_RDWR, PROT_READ | PROT_WRITE, &size);
	errno = 0;
	if (size < 4096 || memcmp(r.control->magic, "VBOOTCTL", 8) || r.control->abi != 1)
		die("control");
	map_model(&r);
	printf("reading\n");
	fflush(stdout);
	while (until ? last < until : seen < count) {
		uint32_t bell = atomic_load_explicit(&r.control->doorbell, memory_order_acquire);
		enum result result;
		while ((result = attempt(&r, &generation)) != WHOLE) {
			retries++;
			if (check && result == MIXED && !uniform(&r, generation))
				mixed++;
		}
		reads++;
		if (check && !uniform(&r, generation))
			torn++;
		if (generation != last) {
			seen++;
			if (count)
				printf("generation %lu\n", (unsigned long)generation), fflush(stdout);
		}
		last = generation;
		if (count && seen < count)
			wait_for(r.control, bell);
	}
	printf("reads %lu generations %lu last %lu retries %lu mixed %lu torn %lu\n", reads, (unsigned long)seen,
	       (unsigned long)last, retries, mixed, torn);
	return torn > 0;
}
