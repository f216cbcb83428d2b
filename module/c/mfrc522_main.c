// SPDX-License-Identifier: GPL-2.0
/*
 * NXP MFRC522 contactless reader, on SPI
 *
 * Each reader is a character device: a text command is written to it, and the
 * answer read back from the same open file. This part is all but the commands:
 * see mfrc522.h.
 */

#include <linux/atomic.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/idr.h>
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

#include "mfrc522.h"

#define MFRC522_MAX_SPEED_HZ		10000000

/**
 * struct mfrc522_file - an open file
 * @mfrc: the reader
 * @lock: protects all that follows
 * @answer: the answer to the last command
 * @len: its length
 * @pos: how much of it was read
 */
struct mfrc522_file {
	struct mfrc522 *mfrc;
	struct mutex lock; /* see above */
	u8 answer[MFRC522_ANSWER_MAX];
	size_t len;
	size_t pos;
};

static DEFINE_IDA(mfrc522_ida);

/* Use of the device */

/**
 * mfrc522_begin() - begin to use a reader's device
 * @mfrc: the reader
 *
 * Return: 0 if the device is the caller's until mfrc522_end(), -ENODEV if
 * it is unbound, or another negative errno.
 */
int mfrc522_begin(struct mfrc522 *mfrc)
{
	int ret;

	ret = mutex_lock_interruptible(&mfrc->lock);
	if (ret)
		return ret;
	if (!mfrc->spi) {
		mutex_unlock(&mfrc->lock);
		return -ENODEV;
	}
	return 0;
}

/**
 * mfrc522_end() - end the use that mfrc522_begin() began
 * @mfrc: the reader
 */
void mfrc522_end(struct mfrc522 *mfrc)
{
	mutex_unlock(&mfrc->lock);
}

/**
 * mfrc522_transfer() - send what is in a reader's tx, and receive into its rx
 * @mfrc: the reader, between mfrc522_begin() and mfrc522_end()
 * @len: how many bytes
 *
 * Return: 0, or a negative errno.
 */
int mfrc522_transfer(struct mfrc522 *mfrc, size_t len)
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
	if (!READ_ONCE(mfile->mfrc->spi))
		return -ENODEV;

	count = min(count, mfile->len - mfile->pos);
	if (copy_to_user(buf, mfile->answer + mfile->pos, count))
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
	char text[MFRC522_TEXT_MAX];
	ssize_t ret;

	/* Whatever becomes of this command, the last one's answer is over. */
	mfile->len = 0;
	mfile->pos = 0;

	if (count > sizeof(text))
		return -EINVAL;
	if (copy_from_user(text, buf, count))
		return -EFAULT;
	ret = mfrc522_command(mfile->mfrc, text, count, mfile->answer);
	if (ret < 0)
		return ret;
	mfile->len = ret;
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

static int mfrc522_probe(struct spi_device *spi)
{
	struct device *dev = &spi->dev;
	struct mfrc522 *mfrc;
	u8 version = 0;
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

	ret = mfrc522_detect(mfrc, &version);
	if (ret)
		return dev_err_probe(dev, ret,
				     "cannot detect (version 0x%02x)\n",
				     version);
	dev_info(dev, "MFRC522 version 0x%02x\n", version);

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
		.name = KBUILD_MODNAME,
		.of_match_table = mfrc522_of_ids,
	},
	.probe = mfrc522_probe,
	.id_table = mfrc522_ids,
};
module_spi_driver(mfrc522_driver);

MODULE_DESCRIPTION("NXP MFRC522 contactless reader");
MODULE_AUTHOR("The rbuild maintainers");
MODULE_LICENSE("GPL");
