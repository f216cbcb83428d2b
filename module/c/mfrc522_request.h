/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The text commands of the MFRC522 driver, and their parser.
 *
 * Nothing here depends on more than basic types, so that the parser can be
 * compiled and fuzzed in user space.
 */
#ifndef _MFRC522_REQUEST_H
#define _MFRC522_REQUEST_H

#ifdef __KERNEL__
#include <linux/array_size.h>
#include <linux/errno.h>
#include <linux/string.h>
#include <linux/types.h>
#else
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#ifndef ARRAY_SIZE
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#endif
#endif

/* The size of the device's internal buffer */
#define MFRC522_MEM_SIZE 25

/* "mem_write:25:", the data, and a newline */
#define MFRC522_REQUEST_MAX (sizeof("mem_write:25:") - 1 + MFRC522_MEM_SIZE + 1)

enum mfrc522_op {
	MFRC522_OP_MEM_WRITE,
	MFRC522_OP_MEM_READ,
	MFRC522_OP_GET_VERSION,
	MFRC522_OP_GEN_RAND_ID,
	MFRC522_OP_SELF_TEST,
	MFRC522_OP_DEBUG_ON,
	MFRC522_OP_DEBUG_OFF,
};

/**
 * struct mfrc522_request - a parsed command
 * @op: what to do
 * @data: for %MFRC522_OP_MEM_WRITE, what to write; points into the text parsed
 * @len: length of @data, at most %MFRC522_MEM_SIZE
 */
struct mfrc522_request {
	enum mfrc522_op op;
	const char *data;
	size_t len;
};

/* Parse what follows "mem_write:", that is "<len>:<data>" */
static inline int mfrc522_parse_mem_write(const char *text, size_t count,
					  struct mfrc522_request *request)
{
	size_t len = 0, pos;

	for (pos = 0; pos < count && text[pos] >= '0' && text[pos] <= '9'; pos++) {
		len = len * 10 + (size_t)(text[pos] - '0');
		if (len > MFRC522_MEM_SIZE)
			return -EINVAL;
	}
	if (!pos || pos == count || text[pos] != ':')
		return -EINVAL;
	pos++;
	if (count - pos != len)
		return -EINVAL;

	request->op = MFRC522_OP_MEM_WRITE;
	request->data = text + pos;
	request->len = len;
	return 0;
}

/**
 * mfrc522_parse_request() - parse the text of one command
 * @text: the text, not terminated; may contain any byte
 * @count: its length
 * @request: where to put the result; its data points into @text
 *
 * One trailing newline is dropped, and never belongs to the data.
 *
 * Return: 0, or -EINVAL if @text is no command.
 */
static inline int mfrc522_parse_request(const char *text, size_t count,
					struct mfrc522_request *request)
{
	static const char mem_write[] = "mem_write:";
	static const struct {
		const char *text;
		enum mfrc522_op op;
	} words[] = {
		{ "mem_read", MFRC522_OP_MEM_READ },
		{ "get_version", MFRC522_OP_GET_VERSION },
		{ "version", MFRC522_OP_GET_VERSION },
		{ "gen_rand_id", MFRC522_OP_GEN_RAND_ID },
		{ "self_test", MFRC522_OP_SELF_TEST },
		{ "debug:on", MFRC522_OP_DEBUG_ON },
		{ "debug:off", MFRC522_OP_DEBUG_OFF },
	};
	const size_t prefix = sizeof(mem_write) - 1;
	size_t i;

	if (count > MFRC522_REQUEST_MAX)
		return -EINVAL;
	if (count && text[count - 1] == '\n')
		count--;

	if (count >= prefix && !memcmp(text, mem_write, prefix))
		return mfrc522_parse_mem_write(text + prefix, count - prefix,
					       request);

	for (i = 0; i < ARRAY_SIZE(words); i++) {
		if (count != strlen(words[i].text) ||
		    memcmp(text, words[i].text, count))
			continue;
		request->op = words[i].op;
		request->data = NULL;
		request->len = 0;
		return 0;
	}
	return -EINVAL;
}

#endif /* _MFRC522_REQUEST_H */
