// SPDX-License-Identifier: GPL-2.0
/*
 * NXP MFRC522 contactless reader, on SPI
 *
 * Each reader is a character device: a text command is written to it, and the
 * answer read back from the same open file. See mfrc522_request.h for the
 * commands.
 */

#include <linux/atomic.h>
#include <linux/bits.h>
#include <linux/cache.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/idr.h>
#include <linux/iopoll.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/mod_devicetable.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spi/spi.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/uaccess.h>

#include "mfrc522_request.h"

#define MFRC522_MAX_SPEED_HZ		10000000

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

#define MFRC522_FIFO_SIZE		64
#define MFRC522_RAND_ID_SIZE		10

#define MFRC522_POLL_US			50
#define MFRC522_TIMEOUT_US		100000

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

/**
 * struct mfrc522_answer - what a command leaves to be read
 * @data: the bytes
 * @len: how many there are
 */
struct mfrc522_answer {
	u8 data[MFRC522_MEM_SIZE];
	size_t len;
};

/**
 * struct mfrc522_file - an open file
 * @mfrc: the reader
 * @lock: protects all that follows
 * @answer: the answer to the last command
 * @pos: how much of it was read
 */
struct mfrc522_file {
	struct mfrc522 *mfrc;
	struct mutex lock; /* see above */
	struct mfrc522_answer answer;
	size_t pos;
};

static DEFINE_IDA(mfrc522_ida);

/* Registers */

static int mfrc522_transfer(struct mfrc522 *mfrc, size_t len)
{
	struct device *dev = &mfrc->spi->dev;
	struct spi_transfer xfer = {
		.tx_buf = mfrc->tx,
		.rx_buf = mfrc->rx,
		.len = len,
	};
	int ret;

	ret = spi_sync_transfer(mfrc->spi, &xfer, 1);
	if (mfrc->debug)
		dev_info(dev, "tx %*ph rx %*ph: %d\n", (int)len, mfrc->tx,
			 (int)len, mfrc->rx, ret);
	else
		dev_dbg(dev, "tx %*ph rx %*ph: %d\n", (int)len, mfrc->tx,
			(int)len, mfrc->rx, ret);
	return ret;
}

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
	int ret;

	ret = mfrc522_read_reg(mfrc, MFRC522_REG_VERSION, version);
	if (ret)
		return ret;
	switch (*version) {
	case MFRC522_VERSION_1_0:
	case MFRC522_VERSION_2_0:
		return 0;
	default:
		return -EIO;
	}
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

/* Commands of the user */

static int mfrc522_do_mem_write(struct mfrc522 *mfrc,
				const struct mfrc522_request *request)
{
	u8 data[MFRC522_MEM_SIZE] = {};

	memcpy(data, request->data, request->len);
	return mfrc522_mem_store(mfrc, data);
}

static int mfrc522_do_mem_read(struct mfrc522 *mfrc,
			       struct mfrc522_answer *answer)
{
	int ret;

	ret = mfrc522_mem_load(mfrc, answer->data);
	if (ret)
		return ret;
	answer->len = MFRC522_MEM_SIZE;
	return 0;
}

static int mfrc522_do_get_version(u8 version, struct mfrc522_answer *answer)
{
	answer->len = scnprintf(answer->data, sizeof(answer->data), "%u",
				version);
	return 0;
}

static int mfrc522_do_gen_rand_id(struct mfrc522 *mfrc,
				  struct mfrc522_answer *answer)
{
	int ret;

	ret = mfrc522_run(mfrc, MFRC522_CMD_GEN_RAND_ID);
	if (ret)
		return ret;
	ret = mfrc522_mem_load(mfrc, answer->data);
	if (ret)
		return ret;
	answer->len = MFRC522_RAND_ID_SIZE;
	return 0;
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

static int mfrc522_do_self_test(struct mfrc522 *mfrc, u8 version,
				struct mfrc522_answer *answer)
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
	answer->len = scnprintf(answer->data, sizeof(answer->data), "%s",
				passed ? "ok" : "failed");
	return 0;
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
	if (mfrc->dirty)
		ret = mfrc522_soft_reset(mfrc);
	else
		ret = mfrc522_start(mfrc, MFRC522_CMD_IDLE);
	if (ret)
		return ret;
	return mfrc522_flush_fifo(mfrc);
}

static int mfrc522_use_device(struct mfrc522 *mfrc,
			      const struct mfrc522_request *request,
			      struct mfrc522_answer *answer)
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

static int mfrc522_execute_locked(struct mfrc522 *mfrc,
				  const struct mfrc522_request *request,
				  struct mfrc522_answer *answer)
{
	int ret;

	if (!mfrc->spi)
		return -ENODEV;

	switch (request->op) {
	case MFRC522_OP_DEBUG_ON:
		mfrc->debug = true;
		return 0;
	case MFRC522_OP_DEBUG_OFF:
		mfrc->debug = false;
		return 0;
	default:
		ret = mfrc522_use_device(mfrc, request, answer);
		mfrc->dirty = ret;
		return ret;
	}
}

static int mfrc522_execute(struct mfrc522 *mfrc,
			   const struct mfrc522_request *request,
			   struct mfrc522_answer *answer)
{
	int ret;

	ret = mutex_lock_interruptible(&mfrc->lock);
	if (ret)
		return ret;
	ret = mfrc522_execute_locked(mfrc, request, answer);
	mutex_unlock(&mfrc->lock);
	return ret;
}

/* Lifetime */

static void mfrc522_free(struct kref *refcount)
{
	struct mfrc522 *mfrc = container_of(refcount, struct mfrc522, refcount);

	mutex_destroy(&mfrc->lock);
	kfree(mfrc);
}

static void mfrc522_put(void *mfrc)
{
	kref_put(&((struct mfrc522 *)mfrc)->refcount, mfrc522_free);
}

/* The device node */

static struct mfrc522 *mfrc522_from_misc(struct miscdevice *misc)
{
	return container_of(misc, struct mfrc522, misc);
}

/*
 * The misc device is registered for as long as this runs, since both opening
 * and deregistering it take misc's mutex; so the binding's reference is there.
 */
static int mfrc522_open(struct inode *inode, struct file *file)
{
	struct mfrc522 *mfrc = mfrc522_from_misc(file->private_data);
	struct mfrc522_file *mfile;

	mfile = kzalloc(sizeof(*mfile), GFP_KERNEL);
	if (!mfile)
		return -ENOMEM;

	kref_get(&mfrc->refcount);
	mfile->mfrc = mfrc;
	mutex_init(&mfile->lock);
	file->private_data = mfile;
	return stream_open(inode, file);
}

static int mfrc522_release(struct inode *inode, struct file *file)
{
	struct mfrc522_file *mfile = file->private_data;

	mfrc522_put(mfile->mfrc);
	mutex_destroy(&mfile->lock);
	kfree(mfile);
	return 0;
}

static ssize_t mfrc522_read_locked(struct mfrc522_file *mfile, char __user *buf,
				   size_t count)
{
	const struct mfrc522_answer *answer = &mfile->answer;

	if (!READ_ONCE(mfile->mfrc->spi))
		return -ENODEV;

	count = min(count, answer->len - mfile->pos);
	if (copy_to_user(buf, answer->data + mfile->pos, count))
		return -EFAULT;
	mfile->pos += count;
	return count;
}

static ssize_t mfrc522_read(struct file *file, char __user *buf, size_t count,
			    loff_t *ppos)
{
	struct mfrc522_file *mfile = file->private_data;
	ssize_t ret;

	ret = mutex_lock_interruptible(&mfile->lock);
	if (ret)
		return ret;
	ret = mfrc522_read_locked(mfile, buf, count);
	mutex_unlock(&mfile->lock);

	if (ret > 0)
		atomic64_add(ret, &mfile->mfrc->bytes_read);
	return ret;
}

static ssize_t mfrc522_write_locked(struct mfrc522_file *mfile,
				    const char __user *buf, size_t count)
{
	char text[MFRC522_REQUEST_MAX];
	struct mfrc522_request request;
	int ret;

	/* Whatever becomes of this command, the last one's answer is over. */
	mfile->answer.len = 0;
	mfile->pos = 0;

	if (count > sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, buf, count))
		return -EFAULT;
	ret = mfrc522_parse_request(text, count, &request);
	if (ret)
		return ret;
	ret = mfrc522_execute(mfile->mfrc, &request, &mfile->answer);
	if (ret)
		return ret;
	return count;
}

static ssize_t mfrc522_write(struct file *file, const char __user *buf,
			     size_t count, loff_t *ppos)
{
	struct mfrc522_file *mfile = file->private_data;
	ssize_t ret;

	ret = mutex_lock_interruptible(&mfile->lock);
	if (ret)
		return ret;
	ret = mfrc522_write_locked(mfile, buf, count);
	mutex_unlock(&mfile->lock);

	if (ret > 0)
		atomic64_add(ret, &mfile->mfrc->bytes_written);
	return ret;
}

static const struct file_operations mfrc522_fops = {
	.owner = THIS_MODULE,
	.open = mfrc522_open,
	.release = mfrc522_release,
	.read = mfrc522_read,
	.write = mfrc522_write,
};

/* Statistics, see ABI-mfrc522 */

static ssize_t bytes_read_show(struct device *dev,
			       struct device_attribute *attr, char *buf)
{
	struct mfrc522 *mfrc = mfrc522_from_misc(dev_get_drvdata(dev));

	return sysfs_emit(buf, "%lld\n",
			  (long long)atomic64_read(&mfrc->bytes_read));
}
static DEVICE_ATTR_RO(bytes_read);

static ssize_t bytes_written_show(struct device *dev,
				  struct device_attribute *attr, char *buf)
{
	struct mfrc522 *mfrc = mfrc522_from_misc(dev_get_drvdata(dev));

	return sysfs_emit(buf, "%lld\n",
			  (long long)atomic64_read(&mfrc->bytes_written));
}
static DEVICE_ATTR_RO(bytes_written);

static struct attribute *mfrc522_attrs[] = {
	&dev_attr_bytes_read.attr,
	&dev_attr_bytes_written.attr,
	NULL
};
ATTRIBUTE_GROUPS(mfrc522);

static void mfrc522_free_id(void *mfrc)
{
	ida_free(&mfrc522_ida, ((struct mfrc522 *)mfrc)->id);
}

/* Files may stay open after this, but the device is out of their reach. */
static void mfrc522_disconnect(void *data)
{
	struct mfrc522 *mfrc = data;

	misc_deregister(&mfrc->misc);

	mutex_lock(&mfrc->lock);
	WRITE_ONCE(mfrc->spi, NULL);
	mutex_unlock(&mfrc->lock);
}

static int mfrc522_register(struct mfrc522 *mfrc)
{
	struct device *dev = &mfrc->spi->dev;
	int ret;

	mfrc->id = ida_alloc(&mfrc522_ida, GFP_KERNEL);
	if (mfrc->id < 0)
		return mfrc->id;
	ret = devm_add_action_or_reset(dev, mfrc522_free_id, mfrc);
	if (ret)
		return ret;

	if (mfrc->id)
		scnprintf(mfrc->name, sizeof(mfrc->name), "mfrc522-%d",
			  mfrc->id);
	else
		strscpy(mfrc->name, "mfrc522");

	mfrc->misc.minor = MISC_DYNAMIC_MINOR;
	mfrc->misc.name = mfrc->name;
	mfrc->misc.fops = &mfrc522_fops;
	mfrc->misc.parent = dev;
	mfrc->misc.groups = mfrc522_groups;
	ret = misc_register(&mfrc->misc);
	if (ret)
		return ret;
	return devm_add_action_or_reset(dev, mfrc522_disconnect, mfrc);
}

/* The SPI driver */

static int mfrc522_setup_spi(struct spi_device *spi)
{
	spi->mode &= ~SPI_MODE_X_MASK;
	spi->mode |= SPI_MODE_0;
	spi->bits_per_word = 8;
	if (!spi->max_speed_hz || spi->max_speed_hz > MFRC522_MAX_SPEED_HZ)
		spi->max_speed_hz = MFRC522_MAX_SPEED_HZ;
	return spi_setup(spi);
}

static int mfrc522_detect(struct mfrc522 *mfrc)
{
	struct device *dev = &mfrc->spi->dev;
	u8 version = 0;
	int ret;

	ret = mfrc522_read_reg(mfrc, MFRC522_REG_VERSION, &version);
	if (ret)
		return dev_err_probe(dev, ret, "cannot read the version\n");
	if (version != MFRC522_VERSION_1_0 && version != MFRC522_VERSION_2_0)
		return dev_err_probe(dev, -ENODEV,
				     "unknown version 0x%02x\n", version);
	ret = mfrc522_soft_reset(mfrc);
	if (ret)
		return dev_err_probe(dev, ret, "cannot reset\n");

	dev_info(dev, "MFRC522 version 0x%02x\n", version);
	return 0;
}

static int mfrc522_probe(struct spi_device *spi)
{
	struct device *dev = &spi->dev;
	struct mfrc522 *mfrc;
	int ret;

	ret = mfrc522_setup_spi(spi);
	if (ret)
		return dev_err_probe(dev, ret, "cannot set up SPI\n");

	/* Not devm: open files outlive the binding. */
	mfrc = kzalloc(sizeof(*mfrc), GFP_KERNEL);
	if (!mfrc)
		return -ENOMEM;
	kref_init(&mfrc->refcount);
	mutex_init(&mfrc->lock);
	mfrc->spi = spi;
	ret = devm_add_action_or_reset(dev, mfrc522_put, mfrc);
	if (ret)
		return ret;

	ret = mfrc522_detect(mfrc);
	if (ret)
		return ret;
	ret = mfrc522_register(mfrc);
	if (ret)
		return dev_err_probe(dev, ret, "cannot register\n");
	return 0;
}

static const struct spi_device_id mfrc522_ids[] = {
	{ "mfrc522" },
	{ }
};
MODULE_DEVICE_TABLE(spi, mfrc522_ids);

static const struct of_device_id mfrc522_of_ids[] = {
	{ .compatible = "nxp,mfrc522" },
	{ .compatible = "mfrc522" },
	{ }
};
MODULE_DEVICE_TABLE(of, mfrc522_of_ids);

static struct spi_driver mfrc522_driver = {
	.driver = {
		.name = "mfrc522",
		.of_match_table = mfrc522_of_ids,
	},
	.probe = mfrc522_probe,
	.id_table = mfrc522_ids,
};
module_spi_driver(mfrc522_driver);

MODULE_DESCRIPTION("NXP MFRC522 contactless reader");
MODULE_AUTHOR("The rbuild maintainers");
MODULE_LICENSE("GPL");
