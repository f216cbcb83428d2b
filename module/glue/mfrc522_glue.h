/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the kernel offers to the Rust part, besides mfrc522_begin() and
 * mfrc522_end()
 */
#ifndef _MFRC522_GLUE_H
#define _MFRC522_GLUE_H

#include <linux/types.h>

struct mfrc522;

int mfrc522_glue_transfer(struct mfrc522 *mfrc, u8 *data, size_t len);
void mfrc522_glue_sleep(unsigned long microseconds);
u64 mfrc522_glue_now(void);
void mfrc522_glue_set_debug(struct mfrc522 *mfrc, bool debug);
bool mfrc522_glue_is_dirty(const struct mfrc522 *mfrc);
void mfrc522_glue_set_dirty(struct mfrc522 *mfrc, bool dirty);

#endif /* _MFRC522_GLUE_H */
