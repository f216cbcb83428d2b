// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel as the Rust part sees it
 *
 * Rust can call neither an inline function nor a macro of a C header, and
 * doesn't know the layout of a C structure: for each there is a function here.
 * ffi.rs declares them a second time, and nothing compares the two.
 */

#include <linux/bug.h>
#include <linux/build_bug.h>
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/ktime.h>
#include <linux/string.h>

#include "mfrc522.h"
#include "mfrc522_glue.h"

/* What chip.rs and command.rs have as numbers of their own */
static_assert(EIO == 5 && ENODEV == 19 && EINVAL == 22 && ETIMEDOUT == 110);
static_assert(MFRC522_ANSWER_MAX == 25 && MFRC522_TEXT_MAX == 39);

/**
 * mfrc522_glue_transfer() - send bytes, and receive as many in their place
 * @mfrc: the reader, between mfrc522_begin() and mfrc522_end()
 * @data: the bytes; need not be DMA-safe
 * @len: how many there are
 *
 * Return: 0, or a negative errno.
 */
int mfrc522_glue_transfer(struct mfrc522 *mfrc, u8 *data, size_t len)
{
	int ret;

	if (WARN_ON_ONCE(len > sizeof(mfrc->tx)))
		return -EINVAL;

	memcpy(mfrc->tx, data, len);
	ret = mfrc522_transfer(mfrc, len);
	if (ret)
		return ret;
	memcpy(data, mfrc->rx, len);
	return 0;
}

void mfrc522_glue_sleep(unsigned long microseconds)
{
	fsleep(microseconds);
}

/* Microseconds, of a clock that never jumps */
u64 mfrc522_glue_now(void)
{
	return ktime_to_us(ktime_get());
}

void mfrc522_glue_set_debug(struct mfrc522 *mfrc, bool debug)
{
	mfrc->debug = debug;
}

bool mfrc522_glue_is_dirty(const struct mfrc522 *mfrc)
{
	return mfrc->dirty;
}

void mfrc522_glue_set_dirty(struct mfrc522 *mfrc, bool dirty)
{
	mfrc->dirty = dirty;
}
