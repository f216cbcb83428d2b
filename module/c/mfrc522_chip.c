// SPDX-License-Identifier: GPL-2.0
/*
 * NXP MFRC522 contactless reader: its registers, and the commands that the
 * driver has it run
 */

#include <linux/bits.h>
#include <linux/build_bug.h>
#include <linux/bug.h>
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/iopoll.h>
#include <linux/kernel.h>
#include <linux/string.h>
#include <linux/types.h>

#include "mfrc522.h"
#include "mfrc522_request.h"

static_assert(MFRC522_TEXT_MAX == MFRC522_REQUEST_MAX);
static_assert(MFRC522_ANSWER_MAX == MFRC522_MEM_SIZE);

/* The address byte that begins an SPI message */
#define MFRC522_ADDRESS(reg)		(((reg) << 1) & 0x7e)
#define MFRC522_ADDRESS_READ		BIT(7)

#define MFRC522_REG_COMMAND		0x01
#define   MFRC522_COMMAND_RCV_OFF	BIT(5)
#define   MFRC522_COMMAND_POWER_DOWN	BIT(4)
#define   MFRC522_COMMAND_MASK		GENMASK(3, 0)
#define MFRC522_REG_ERROR		0x06
#define   MFRC522_ERROR_WR		BIT(7)
#define   MFRC522_ERROR_BUFFER_OVFL	BIT(4)
#define MFRC522_REG_FIFO_DATA		0x09
#define MFRC522_REG_FIFO_LEVEL		0x0a
#define   MFRC522_FIFO_FLUSH		BIT(7)
#define MFRC522_REG_AUTO_TEST		0x36
#define   MFRC522_AUTO_TEST_OFF		0x00
#define   MFRC522_AUTO_TEST_ON		0x09
#define MFRC522_REG_VERSION		0x37
#define   MFRC522_VERSION_1_0		0x91
#define   MFRC522_VERSION_2_0		0x92

#define MFRC522_CMD_IDLE		0x0
#define MFRC522_CMD_MEM			0x1
#define MFRC522_CMD_GEN_RAND_ID		0x2
#define MFRC522_CMD_CALC_CRC		0x3
#define MFRC522_CMD_SOFT_RESET		0xf

#define MFRC522_RAND_ID_SIZE		10

#define MFRC522_POLL_US			50
#define MFRC522_TIMEOUT_US		100000

/* Registers */

/* Every byte after the address goes to the same register. */
static int mfrc522_write_bytes(struct mfrc522 *mfrc, u8 reg, const u8 *data,
			       size_t len)
{
	if (WARN_ON_ONCE(len > MFRC522_FIFO_SIZE))
		return -EINVAL;

	mfrc->tx[0] = MFRC522_ADDRESS(reg);
	memcpy(mfrc->tx + 1, data, len);
	return mfrc522_transfer(mfrc, 1 + len);
}

/* Each byte sent names the register that the next byte received comes from. */
static int mfrc522_read_bytes(struct mfrc522 *mfrc, u8 reg, u8 *data,
			      size_t len)
{
	int ret;

	if (WARN_ON_ONCE(len > MFRC522_FIFO_SIZE))
		return -EINVAL;

	memset(mfrc->tx, MFRC522_ADDRESS(reg) | MFRC522_ADDRESS_READ, len);
	mfrc->tx[len] = 0;
	ret = mfrc522_transfer(mfrc, 1 + len);
	if (ret)
		return ret;

	memcpy(data, mfrc->rx + 1, len);
	return 0;
}

static int mfrc522_write_reg(struct mfrc522 *mfrc, u8 reg, u8 value)
{
	return mfrc522_write_bytes(mfrc, reg, &value, 1);
}

static int mfrc522_read_reg(struct mfrc522 *mfrc, u8 reg, u8 *value)
{
	return mfrc522_read_bytes(mfrc, reg, value, 1);
}

/* Commands of the device */

/* No command here needs the receiver, so it stays off, as after a reset. */
static int mfrc522_start(struct mfrc522 *mfrc, u8 cmd)
{
	return mfrc522_write_reg(mfrc, MFRC522_REG_COMMAND,
				 MFRC522_COMMAND_RCV_OFF | cmd);
}

/* Wait until the bits @mask of the command register are clear. */
static int mfrc522_wait_command(struct mfrc522 *mfrc, u8 mask)
{
	int err, ret;
	u8 command;

	ret = read_poll_timeout(mfrc522_read_reg, err, err || !(command & mask),
				MFRC522_POLL_US, MFRC522_TIMEOUT_US, false,
				mfrc, MFRC522_REG_COMMAND, &command);
	return err ?: ret;
}

static int mfrc522_check_errors(struct mfrc522 *mfrc)
{
	u8 error;
	int ret;

	ret = mfrc522_read_reg(mfrc, MFRC522_REG_ERROR, &error);
	if (ret)
		return ret;
	if (error & (MFRC522_ERROR_WR | MFRC522_ERROR_BUFFER_OVFL))
		return -EIO;
	return 0;
}

/* Run a command that ends by itself. */
static int mfrc522_run(struct mfrc522 *mfrc, u8 cmd)
{
	int ret;

	ret = mfrc522_start(mfrc, cmd);
	if (ret)
		return ret;
	ret = mfrc522_wait_command(mfrc, MFRC522_COMMAND_MASK);
	if (ret)
		return ret;
	return mfrc522_check_errors(mfrc);
}

static int mfrc522_soft_reset(struct mfrc522 *mfrc)
{
	int ret;

	ret = mfrc522_start(mfrc, MFRC522_CMD_SOFT_RESET);
	if (ret)
		return ret;
	/* The oscillator takes its time to start. */
	fsleep(MFRC522_POLL_US);
	return mfrc522_wait_command(mfrc, MFRC522_COMMAND_POWER_DOWN |
				    MFRC522_COMMAND_MASK);
}

static int mfrc522_flush_fifo(struct mfrc522 *mfrc)
{
	return mfrc522_write_reg(mfrc, MFRC522_REG_FIFO_LEVEL,
				 MFRC522_FIFO_FLUSH);
}

static int mfrc522_fifo_level(struct mfrc522 *mfrc, u8 *level)
{
	int ret;

	ret = mfrc522_read_reg(mfrc, MFRC522_REG_FIFO_LEVEL, level);
	if (ret)
		return ret;
	return *level <= MFRC522_FIFO_SIZE ? 0 : -EIO;
}

/* Check that the FIFO holds exactly @len bytes. */
static int mfrc522_expect_fifo(struct mfrc522 *mfrc, u8 len)
{
	u8 level;
	int ret;

	ret = mfrc522_fifo_level(mfrc, &level);
	if (ret)
		return ret;
	return level == len ? 0 : -EIO;
}

static int mfrc522_read_version(struct mfrc522 *mfrc, u8 *version)
{
	return mfrc522_read_reg(mfrc, MFRC522_REG_VERSION, version);
}

static bool mfrc522_is_known(u8 version)
{
	return version == MFRC522_VERSION_1_0 || version == MFRC522_VERSION_2_0;
}

/* Move @data into the internal buffer, by way of the FIFO. */
static int mfrc522_mem_store(struct mfrc522 *mfrc,
			     const u8 data[MFRC522_MEM_SIZE])
{
	int ret;

	ret = mfrc522_write_bytes(mfrc, MFRC522_REG_FIFO_DATA, data,
				  MFRC522_MEM_SIZE);
	if (ret)
		return ret;
	ret = mfrc522_expect_fifo(mfrc, MFRC522_MEM_SIZE);
	if (ret)
		return ret;
	ret = mfrc522_run(mfrc, MFRC522_CMD_MEM);
	if (ret)
		return ret;
	return mfrc522_expect_fifo(mfrc, 0);
}

/* Read the internal buffer, by way of the FIFO, which must be empty. */
static int mfrc522_mem_load(struct mfrc522 *mfrc, u8 data[MFRC522_MEM_SIZE])
{
	int ret;

	ret = mfrc522_run(mfrc, MFRC522_CMD_MEM);
	if (ret)
		return ret;
	ret = mfrc522_expect_fifo(mfrc, MFRC522_MEM_SIZE);
	if (ret)
		return ret;
	return mfrc522_read_bytes(mfrc, MFRC522_REG_FIFO_DATA, data,
				  MFRC522_MEM_SIZE);
}

/* Commands of the user: each returns the length of its answer, or an error */

static int mfrc522_do_mem_write(struct mfrc522 *mfrc,
				const struct mfrc522_request *request)
{
	u8 data[MFRC522_MEM_SIZE] = {};

	memcpy(data, request->data, request->len);
	return mfrc522_mem_store(mfrc, data);
}

static int mfrc522_do_mem_read(struct mfrc522 *mfrc, u8 *answer)
{
	int ret;

	ret = mfrc522_mem_load(mfrc, answer);
	if (ret)
		return ret;
	return MFRC522_MEM_SIZE;
}

static int mfrc522_do_get_version(u8 version, u8 *answer)
{
	return scnprintf(answer, MFRC522_ANSWER_MAX, "%u", version);
}

static int mfrc522_do_gen_rand_id(struct mfrc522 *mfrc, u8 *answer)
{
	int ret;

	ret = mfrc522_run(mfrc, MFRC522_CMD_GEN_RAND_ID);
	if (ret)
		return ret;
	ret = mfrc522_mem_load(mfrc, answer);
	if (ret)
		return ret;
	return MFRC522_RAND_ID_SIZE;
}

/* What the self-test leaves in the FIFO */
static const u8 mfrc522_self_test_1_0[MFRC522_FIFO_SIZE] = {
	0x00, 0xc6, 0x37, 0xd5, 0x32, 0xb7, 0x57, 0x5c,
	0xc2, 0xd8, 0x7c, 0x4d, 0xd9, 0x70, 0xc7, 0x73,
	0x10, 0xe6, 0xd2, 0xaa, 0x5e, 0xa1, 0x3e, 0x5a,
	0x14, 0xaf, 0x30, 0x61, 0xc9, 0x70, 0xdb, 0x2e,
	0x64, 0x22, 0x72, 0xb5, 0xbd, 0x65, 0xf4, 0xec,
	0x22, 0xbc, 0xd3, 0x72, 0x35, 0xcd, 0xaa, 0x41,
	0x1f, 0xa7, 0xf3, 0x53, 0x14, 0xde, 0x7e, 0x02,
	0xd9, 0x0f, 0xb5, 0x5e, 0x25, 0x1d, 0x29, 0x79,
};

static const u8 mfrc522_self_test_2_0[MFRC522_FIFO_SIZE] = {
	0x00, 0xeb, 0x66, 0xba, 0x57, 0xbf, 0x23, 0x95,
	0xd0, 0xe3, 0x0d, 0x3d, 0x27, 0x89, 0x5c, 0xde,
	0x9d, 0x3b, 0xa7, 0x00, 0x21, 0x5b, 0x89, 0x82,
	0x51, 0x3a, 0xeb, 0x02, 0x0c, 0xa5, 0x00, 0x49,
	0x7c, 0x84, 0x4d, 0xb3, 0xcc, 0xd2, 0x1b, 0x81,
	0x5d, 0x48, 0x76, 0xd5, 0x71, 0x61, 0x21, 0xa9,
	0x86, 0x96, 0x83, 0x38, 0xcf, 0x9d, 0x5b, 0x6d,
	0xdc, 0x15, 0xba, 0x3e, 0x7d, 0x95, 0x3b, 0x2f,
};

/* The test's CalcCRC command doesn't end: it is done when the FIFO is full. */
static int mfrc522_wait_fifo_full(struct mfrc522 *mfrc)
{
	int err, ret;
	u8 level;

	ret = read_poll_timeout(mfrc522_fifo_level, err,
				err || level == MFRC522_FIFO_SIZE,
				MFRC522_POLL_US, MFRC522_TIMEOUT_US, false,
				mfrc, &level);
	return err ?: ret;
}

static int mfrc522_self_test_result(struct mfrc522 *mfrc,
				    u8 result[MFRC522_FIFO_SIZE])
{
	static const u8 zeroes[MFRC522_MEM_SIZE];
	int ret;

	ret = mfrc522_soft_reset(mfrc);
	if (ret)
		return ret;
	ret = mfrc522_flush_fifo(mfrc);
	if (ret)
		return ret;
	ret = mfrc522_mem_store(mfrc, zeroes);
	if (ret)
		return ret;
	ret = mfrc522_write_reg(mfrc, MFRC522_REG_AUTO_TEST,
				MFRC522_AUTO_TEST_ON);
	if (ret)
		return ret;
	ret = mfrc522_write_reg(mfrc, MFRC522_REG_FIFO_DATA, 0x00);
	if (ret)
		return ret;
	ret = mfrc522_start(mfrc, MFRC522_CMD_CALC_CRC);
	if (ret)
		return ret;
	ret = mfrc522_wait_fifo_full(mfrc);
	if (ret)
		return ret;
	ret = mfrc522_start(mfrc, MFRC522_CMD_IDLE);
	if (ret)
		return ret;
	ret = mfrc522_read_bytes(mfrc, MFRC522_REG_FIFO_DATA, result,
				 MFRC522_FIFO_SIZE);
	if (ret)
		return ret;
	return mfrc522_write_reg(mfrc, MFRC522_REG_AUTO_TEST,
				 MFRC522_AUTO_TEST_OFF);
}

static int mfrc522_do_self_test(struct mfrc522 *mfrc, u8 version, u8 *answer)
{
	const u8 *expected = version == MFRC522_VERSION_1_0 ?
			     mfrc522_self_test_1_0 : mfrc522_self_test_2_0;
	u8 result[MFRC522_FIFO_SIZE];
	bool passed;
	int ret;

	ret = mfrc522_self_test_result(mfrc, result);
	if (ret)
		return ret;

	passed = !memcmp(result, expected, sizeof(result));
	return scnprintf(answer, MFRC522_ANSWER_MAX, "%s",
			 passed ? "ok" : "failed");
}

/*
 * Bring the device into a known state: there, idle, with an empty FIFO.
 *
 * A dead bus reads as all zeroes or all ones, and zeroes look like a device
 * that did what it was told; so the version is checked before each command.
 */
static int mfrc522_prepare(struct mfrc522 *mfrc, u8 *version)
{
	int ret;

	ret = mfrc522_read_version(mfrc, version);
	if (ret)
		return ret;
	if (!mfrc522_is_known(*version))
		return -EIO;
	if (mfrc->dirty)
		ret = mfrc522_soft_reset(mfrc);
	else
		ret = mfrc522_start(mfrc, MFRC522_CMD_IDLE);
	if (ret)
		return ret;
	return mfrc522_flush_fifo(mfrc);
}

static int mfrc522_use_device(struct mfrc522 *mfrc,
			      const struct mfrc522_request *request, u8 *answer)
{
	u8 version;
	int ret;

	ret = mfrc522_prepare(mfrc, &version);
	if (ret)
		return ret;

	switch (request->op) {
	case MFRC522_OP_MEM_WRITE:
		return mfrc522_do_mem_write(mfrc, request);
	case MFRC522_OP_MEM_READ:
		return mfrc522_do_mem_read(mfrc, answer);
	case MFRC522_OP_GET_VERSION:
		return mfrc522_do_get_version(version, answer);
	case MFRC522_OP_GEN_RAND_ID:
		return mfrc522_do_gen_rand_id(mfrc, answer);
	case MFRC522_OP_SELF_TEST:
		return mfrc522_do_self_test(mfrc, version, answer);
	default:
		return -EINVAL;
	}
}

static int mfrc522_execute(struct mfrc522 *mfrc,
			   const struct mfrc522_request *request, u8 *answer)
{
	int ret;

	switch (request->op) {
	case MFRC522_OP_DEBUG_ON:
		mfrc->debug = true;
		return 0;
	case MFRC522_OP_DEBUG_OFF:
		mfrc->debug = false;
		return 0;
	default:
		ret = mfrc522_use_device(mfrc, request, answer);
		mfrc->dirty = ret < 0;
		return ret;
	}
}

/**
 * mfrc522_command() - carry out a command of the user
 * @mfrc: the reader
 * @text: the command, not terminated; may contain any byte
 * @count: its length
 * @answer: where to put the answer
 *
 * Return: the length of the answer, or a negative errno.
 */
ssize_t mfrc522_command(struct mfrc522 *mfrc, const char *text, size_t count,
			u8 answer[MFRC522_ANSWER_MAX])
{
	struct mfrc522_request request;
	int ret;

	ret = mfrc522_parse_request(text, count, &request);
	if (ret)
		return ret;
	ret = mfrc522_begin(mfrc);
	if (ret)
		return ret;
	ret = mfrc522_execute(mfrc, &request, answer);
	mfrc522_end(mfrc);
	return ret;
}

/**
 * mfrc522_detect() - find out whether there is a device, and reset it
 * @mfrc: the reader, which nobody else uses yet
 * @version: where to put what its version register has
 *
 * Return: 0, -ENODEV if the version is unknown, or another negative errno.
 */
int mfrc522_detect(struct mfrc522 *mfrc, u8 *version)
{
	int ret;

	ret = mfrc522_read_version(mfrc, version);
	if (ret)
		return ret;
	if (!mfrc522_is_known(*version))
		return -ENODEV;
	return mfrc522_soft_reset(mfrc);
}
