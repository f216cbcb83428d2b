/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The two parts of the MFRC522 driver, and what each offers the other
 *
 * mfrc522_main.c has the lifetime of a reader and its device node. The other
 * part knows the device: it's mfrc522_chip.c here, and written in Rust in the
 * module mfrc522_glue, which has the first part in common.
 */
#ifndef _MFRC522_H
#define _MFRC522_H

#include <linux/atomic.h>
#include <linux/cache.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/spi/spi.h>
#include <linux/types.h>

/* The longest command, and the longest answer to one */
#define MFRC522_TEXT_MAX	39
#define MFRC522_ANSWER_MAX	25

/* The size of the device's FIFO: no transfer has more data */
#define MFRC522_FIFO_SIZE	64

/**
 * struct mfrc522 - a reader
 * @refcount: held by the binding and by each open file
 * @id: number of the reader, which its name comes from
 * @name: name of the device node
 * @misc: the device node
 * @bytes_read: bytes read from the device node
 * @bytes_written: bytes written to the device node
 * @lock: serialises the use of the device; protects all that follows
 * @spi: the device, or NULL once it is unbound
 * @debug: log every transfer
 * @dirty: the last command failed, so the device's state is unknown
 * @tx: DMA-safe buffer for what is sent
 * @rx: DMA-safe buffer for what is received
 */
struct mfrc522 {
	struct kref refcount;
	int id;
	char name[16];
	struct miscdevice misc;
	atomic64_t bytes_read;
	atomic64_t bytes_written;

	struct mutex lock; /* see above */
	struct spi_device *spi;
	bool debug;
	bool dirty;
	u8 tx[1 + MFRC522_FIFO_SIZE] __aligned(ARCH_DMA_MINALIGN);
	u8 rx[1 + MFRC522_FIFO_SIZE] __aligned(ARCH_DMA_MINALIGN);
};

/* Offered by mfrc522_main.c */

int mfrc522_begin(struct mfrc522 *mfrc);
void mfrc522_end(struct mfrc522 *mfrc);
int mfrc522_transfer(struct mfrc522 *mfrc, size_t len);

/* Offered by the part that knows the device */

int mfrc522_detect(struct mfrc522 *mfrc, u8 *version);
ssize_t mfrc522_command(struct mfrc522 *mfrc, const char *text, size_t count,
			u8 answer[MFRC522_ANSWER_MAX]);

#endif /* _MFRC522_H */
