// SPDX-License-Identifier: GPL-2.0
/*
 * A simulated NXP MFRC522, for testing its drivers without hardware
 *
 * The module is an SPI controller with one or more simulated readers on it.
 * The module parameters say how many, and which faults they have. Those that
 * are arrays have an element for each reader, and most may be changed at any
 * time through sysfs, where elements left out keep their values.
 *
 * Buffers that could not be used for DMA are refused, as are SPI modes that the
 * device does not have.
 */

#include <linux/bits.h>
#include <linux/debugfs.h>
#include <linux/device.h>
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/platform_device.h>
#include <linux/random.h>
#include <linux/sched/task_stack.h>
#include <linux/spi/spi.h>
#include <linux/string.h>

#define SIM_MAX_READERS		4
#define SIM_MAX_SPEED_HZ	10000000

/* What MISO carries where the datasheet leaves it undefined */
#define SIM_UNDEFINED		0x5a

#define REG_MASK		0x3f
#define REG_COMMAND		0x01
#define   COMMAND_RCV_OFF	BIT(5)
#define   COMMAND_POWER_DOWN	BIT(4)
#define   COMMAND_MASK		GENMASK(3, 0)
#define REG_COM_IRQ		0x04
#define   COM_IRQ_IDLE		BIT(4)
#define REG_DIV_IRQ		0x05
#define   IRQ_SET		BIT(7)
#define REG_ERROR		0x06
#define   ERROR_BUFFER_OVFL	BIT(4)
#define REG_STATUS1		0x07
#define REG_FIFO_DATA		0x09
#define REG_FIFO_LEVEL		0x0a
#define   FIFO_FLUSH		BIT(7)
#define REG_AUTO_TEST		0x36
#define   AUTO_TEST_MASK	GENMASK(3, 0)
#define   AUTO_TEST_ON		0x09
#define REG_VERSION		0x37
#define REG_COUNT		64

#define CMD_IDLE		0x0
#define CMD_MEM			0x1
#define CMD_GEN_RAND_ID		0x2
#define CMD_CALC_CRC		0x3
#define CMD_TRANSMIT		0x4
#define CMD_NO_CHANGE		0x7
#define CMD_RECEIVE		0x8
#define CMD_TRANSCEIVE		0xc
#define CMD_AUTHENT		0xe
#define CMD_SOFT_RESET		0xf

#define FIFO_SIZE		64
#define BUFFER_SIZE		25
#define RAND_ID_SIZE		10

static uint readers = 1;
module_param(readers, uint, 0444);
MODULE_PARM_DESC(readers, "Number of readers, 1 to 4 (default: 1)");

static char *modalias = "mfrc522";
module_param(modalias, charp, 0444);
MODULE_PARM_DESC(modalias, "SPI modalias of the readers (default: mfrc522)");

static u8 version[SIM_MAX_READERS] = { [0 ... SIM_MAX_READERS - 1] = 0x91 };
module_param_array(version, byte, NULL, 0644);
MODULE_PARM_DESC(version, "Value of VersionReg (default: 0x91)");

static uint stuck[SIM_MAX_READERS];
module_param_array(stuck, uint, NULL, 0644);
MODULE_PARM_DESC(stuck, "Number of the command that never does anything (default: 0, none)");

static int miso[SIM_MAX_READERS] = { [0 ... SIM_MAX_READERS - 1] = -1 };
module_param_array(miso, int, NULL, 0644);
MODULE_PARM_DESC(miso, "Value of every byte read, as on a dead bus (default: -1, the real ones)");

static int fifo_level[SIM_MAX_READERS] = { [0 ... SIM_MAX_READERS - 1] = -1 };
module_param_array(fifo_level, int, NULL, 0644);
MODULE_PARM_DESC(fifo_level, "Value of FIFOLevelReg (default: -1, the real one)");

static uint fail_transfer[SIM_MAX_READERS];
module_param_array(fail_transfer, uint, NULL, 0644);
MODULE_PARM_DESC(fail_transfer, "Fail the n-th transfer from now, once, with -EIO (default: 0, none)");

static bool bad_self_test[SIM_MAX_READERS];
module_param_array(bad_self_test, bool, NULL, 0644);
MODULE_PARM_DESC(bad_self_test, "The self-test's result is wrong (default: N)");

/**
 * struct sim_faults - how a reader behaves during one transfer
 * @version: see the module parameter of the same name, and so on
 * @stuck: command that never does anything, or 0
 * @miso: value of every byte read, or -1
 * @fifo_level: value of FIFOLevelReg, or -1
 * @bad_self_test: the self-test's result is wrong
 * @fail: the transfer fails
 */
struct sim_faults {
	u8 version;
	u8 stuck;
	int miso;
	int fifo_level;
	bool bad_self_test;
	bool fail;
};

/* What the next byte of a message is */
enum sim_phase {
	SIM_ADDRESS,
	SIM_READ,
	SIM_READ_ENDED,
	SIM_WRITE,
};

/**
 * struct sim_chip - a reader
 * @faults: as of the transfer under way
 * @regs: registers that are no more than memory
 * @fifo: the FIFO, oldest byte first
 * @fifo_len: how many bytes are in it
 * @buffer: the internal buffer
 * @phase: what the next byte of the message is
 * @reg: the register addressed
 */
struct sim_chip {
	struct sim_faults faults;
	u8 regs[REG_COUNT];
	u8 fifo[FIFO_SIZE];
	u8 fifo_len;
	u8 buffer[BUFFER_SIZE];
	enum sim_phase phase;
	u8 reg;
};

/**
 * struct sim - the controller
 * @debugfs: directory that shows the readers' state
 * @buffers: their internal buffers, for debugfs
 * @chips: the readers, by chip select
 */
struct sim {
	struct dentry *debugfs;
	struct debugfs_blob_wrapper buffers[SIM_MAX_READERS];
	struct sim_chip chips[SIM_MAX_READERS];
};

/* The FIFO */

static void sim_fifo_flush(struct sim_chip *chip)
{
	chip->fifo_len = 0;
	chip->regs[REG_ERROR] &= ~ERROR_BUFFER_OVFL;
}

static void sim_fifo_push(struct sim_chip *chip, u8 value)
{
	if (chip->fifo_len == FIFO_SIZE)
		chip->regs[REG_ERROR] |= ERROR_BUFFER_OVFL;
	else
		chip->fifo[chip->fifo_len++] = value;
}

static void sim_fifo_take(struct sim_chip *chip, u8 *data, u8 len)
{
	memcpy(data, chip->fifo, len);
	chip->fifo_len -= len;
	memmove(chip->fifo, chip->fifo + len, chip->fifo_len);
}

static u8 sim_fifo_pop(struct sim_chip *chip)
{
	u8 value;

	if (!chip->fifo_len)
		return 0;
	sim_fifo_take(chip, &value, 1);
	return value;
}

/* Commands */

static void sim_reset(struct sim_chip *chip)
{
	memset(chip->regs, 0, sizeof(chip->regs));
	chip->regs[REG_COMMAND] = COMMAND_RCV_OFF;
	chip->regs[REG_COM_IRQ] = 0x14;
	chip->regs[REG_STATUS1] = 0x21;
	chip->regs[REG_AUTO_TEST] = 0x40;
	sim_fifo_flush(chip);
}

static void sim_end_command(struct sim_chip *chip)
{
	chip->regs[REG_COMMAND] &= ~COMMAND_MASK;
	chip->regs[REG_COM_IRQ] |= COM_IRQ_IDLE;
}

/* Nothing is moved to the buffer before the FIFO has enough to fill it. */
static void sim_mem(struct sim_chip *chip)
{
	int i;

	if (!chip->fifo_len) {
		for (i = 0; i < BUFFER_SIZE; i++)
			sim_fifo_push(chip, chip->buffer[i]);
	} else if (chip->fifo_len >= BUFFER_SIZE) {
		sim_fifo_take(chip, chip->buffer, BUFFER_SIZE);
	} else {
		return;
	}
	sim_end_command(chip);
}

/* What the self-test leaves in the FIFO */
static const u8 sim_self_test_1_0[FIFO_SIZE] = {
	0x00, 0xc6, 0x37, 0xd5, 0x32, 0xb7, 0x57, 0x5c,
	0xc2, 0xd8, 0x7c, 0x4d, 0xd9, 0x70, 0xc7, 0x73,
	0x10, 0xe6, 0xd2, 0xaa, 0x5e, 0xa1, 0x3e, 0x5a,
	0x14, 0xaf, 0x30, 0x61, 0xc9, 0x70, 0xdb, 0x2e,
	0x64, 0x22, 0x72, 0xb5, 0xbd, 0x65, 0xf4, 0xec,
	0x22, 0xbc, 0xd3, 0x72, 0x35, 0xcd, 0xaa, 0x41,
	0x1f, 0xa7, 0xf3, 0x53, 0x14, 0xde, 0x7e, 0x02,
	0xd9, 0x0f, 0xb5, 0x5e, 0x25, 0x1d, 0x29, 0x79,
};

static const u8 sim_self_test_2_0[FIFO_SIZE] = {
	0x00, 0xeb, 0x66, 0xba, 0x57, 0xbf, 0x23, 0x95,
	0xd0, 0xe3, 0x0d, 0x3d, 0x27, 0x89, 0x5c, 0xde,
	0x9d, 0x3b, 0xa7, 0x00, 0x21, 0x5b, 0x89, 0x82,
	0x51, 0x3a, 0xeb, 0x02, 0x0c, 0xa5, 0x00, 0x49,
	0x7c, 0x84, 0x4d, 0xb3, 0xcc, 0xd2, 0x1b, 0x81,
	0x5d, 0x48, 0x76, 0xd5, 0x71, 0x61, 0x21, 0xa9,
	0x86, 0x96, 0x83, 0x38, 0xcf, 0x9d, 0x5b, 0x6d,
	0xdc, 0x15, 0xba, 0x3e, 0x7d, 0x95, 0x3b, 0x2f,
};

static void sim_self_test(struct sim_chip *chip)
{
	const u8 *result = chip->faults.version == 0x91 ?
			   sim_self_test_1_0 : sim_self_test_2_0;

	if (chip->fifo_len != 1 || chip->fifo[0] ||
	    memchr_inv(chip->buffer, 0, BUFFER_SIZE))
		return;

	memcpy(chip->fifo, result, FIFO_SIZE);
	chip->fifo_len = FIFO_SIZE;
	if (chip->faults.bad_self_test)
		chip->fifo[FIFO_SIZE - 1] ^= 1;
}

/* Does not end by itself. The checksum is not computed. */
static void sim_calc_crc(struct sim_chip *chip)
{
	if ((chip->regs[REG_AUTO_TEST] & AUTO_TEST_MASK) == AUTO_TEST_ON)
		sim_self_test(chip);
	else
		chip->fifo_len = 0;
}

static void sim_start_command(struct sim_chip *chip, u8 cmd)
{
	if (cmd && cmd == chip->faults.stuck)
		return;

	switch (cmd) {
	case CMD_MEM:
		sim_mem(chip);
		break;
	case CMD_GEN_RAND_ID:
		get_random_bytes(chip->buffer, RAND_ID_SIZE);
		sim_end_command(chip);
		break;
	case CMD_CALC_CRC:
		sim_calc_crc(chip);
		break;
	case CMD_SOFT_RESET:
		sim_reset(chip);
		break;
	case CMD_TRANSMIT:
	case CMD_RECEIVE:
	case CMD_TRANSCEIVE:
	case CMD_AUTHENT:
		/* There never is a card, nor an end to waiting for it. */
		break;
	default:
		sim_end_command(chip);
		break;
	}
}

/* Registers */

static void sim_write_command(struct sim_chip *chip, u8 value)
{
	u8 cmd = value & COMMAND_MASK;
	u8 kept = chip->regs[REG_COMMAND] & COMMAND_MASK;

	value &= COMMAND_RCV_OFF | COMMAND_POWER_DOWN;
	if (cmd == CMD_NO_CHANGE) {
		chip->regs[REG_COMMAND] = value | kept;
	} else {
		chip->regs[REG_COMMAND] = value | cmd;
		sim_start_command(chip, cmd);
	}
}

/* The top bit says whether the others are to be set or cleared. */
static void sim_write_irq(struct sim_chip *chip, u8 reg, u8 value)
{
	if (value & IRQ_SET)
		chip->regs[reg] |= value & ~IRQ_SET;
	else
		chip->regs[reg] &= ~value;
}

static void sim_write_reg(struct sim_chip *chip, u8 reg, u8 value)
{
	switch (reg) {
	case REG_COMMAND:
		sim_write_command(chip, value);
		break;
	case REG_COM_IRQ:
	case REG_DIV_IRQ:
		sim_write_irq(chip, reg, value);
		break;
	case REG_FIFO_DATA:
		sim_fifo_push(chip, value);
		break;
	case REG_FIFO_LEVEL:
		if (value & FIFO_FLUSH)
			sim_fifo_flush(chip);
		break;
	case REG_ERROR:
	case REG_STATUS1:
	case REG_VERSION:
		break;
	default:
		chip->regs[reg] = value;
		break;
	}
}

static u8 sim_read_reg(struct sim_chip *chip, u8 reg)
{
	switch (reg) {
	case REG_FIFO_DATA:
		return sim_fifo_pop(chip);
	case REG_FIFO_LEVEL:
		if (chip->faults.fifo_level >= 0)
			return chip->faults.fifo_level;
		return chip->fifo_len;
	case REG_VERSION:
		return chip->faults.version;
	default:
		return chip->regs[reg];
	}
}

/* SPI */

static void sim_address(struct sim_chip *chip, u8 mosi)
{
	chip->reg = (mosi >> 1) & REG_MASK;
	chip->phase = mosi & BIT(7) ? SIM_READ : SIM_WRITE;
}

/* What a byte sent does, and which one is received with it */
static u8 sim_exchange(struct sim_chip *chip, u8 mosi)
{
	u8 value;

	switch (chip->phase) {
	case SIM_ADDRESS:
		sim_address(chip, mosi);
		return SIM_UNDEFINED;
	case SIM_READ:
		value = sim_read_reg(chip, chip->reg);
		sim_address(chip, mosi);
		if (chip->phase != SIM_READ)
			chip->phase = SIM_READ_ENDED;
		return value;
	case SIM_WRITE:
		sim_write_reg(chip, chip->reg, mosi);
		return SIM_UNDEFINED;
	default:
		return SIM_UNDEFINED;
	}
}

static struct sim_faults sim_get_faults(unsigned int cs)
{
	struct sim_faults faults;

	kernel_param_lock(THIS_MODULE);
	faults = (struct sim_faults) {
		.version = version[cs],
		.stuck = stuck[cs],
		.miso = miso[cs],
		.fifo_level = fifo_level[cs],
		.bad_self_test = bad_self_test[cs],
		.fail = fail_transfer[cs] == 1,
	};
	if (fail_transfer[cs])
		fail_transfer[cs]--;
	kernel_param_unlock(THIS_MODULE);

	return faults;
}

/* Whether a buffer may be given to the DMA engine of an actual controller */
static bool sim_dma_safe(const void *buf)
{
	return virt_addr_valid(buf) && !object_is_on_stack(buf);
}

static int sim_check_transfer(struct spi_device *spi,
			      const struct spi_transfer *xfer)
{
	if ((xfer->tx_buf && !sim_dma_safe(xfer->tx_buf)) ||
	    (xfer->rx_buf && !sim_dma_safe(xfer->rx_buf))) {
		dev_err(&spi->dev, "sim: the buffer is not DMA-safe\n");
		return -EINVAL;
	}
	return 0;
}

static int sim_transfer_one(struct spi_controller *ctlr, struct spi_device *spi,
			    struct spi_transfer *xfer)
{
	struct sim *sim = spi_controller_get_devdata(ctlr);
	unsigned int cs = spi_get_chipselect(spi, 0);
	struct sim_chip *chip = &sim->chips[cs];
	const u8 *tx = xfer->tx_buf;
	u8 *rx = xfer->rx_buf;
	unsigned int i;
	u8 value;
	int ret;

	ret = sim_check_transfer(spi, xfer);
	if (ret)
		return ret;

	chip->faults = sim_get_faults(cs);
	if (chip->faults.fail)
		return -EIO;

	for (i = 0; i < xfer->len; i++) {
		/* Without anything to send, a controller sends zeroes. */
		value = sim_exchange(chip, tx ? tx[i] : 0);
		if (chip->faults.miso >= 0)
			value = chip->faults.miso;
		if (rx)
			rx[i] = value;
	}
	return 0;
}

/* A message begins and ends with the chip select. */
static void sim_set_cs(struct spi_device *spi, bool high)
{
	struct sim *sim = spi_controller_get_devdata(spi->controller);

	sim->chips[spi_get_chipselect(spi, 0)].phase = SIM_ADDRESS;
}

/* The module */

static void sim_show_state(struct sim *sim)
{
	struct sim_chip *chip;
	struct dentry *dir;
	unsigned int cs;
	char name[4];

	sim->debugfs = debugfs_create_dir("mfrc522_sim", NULL);
	for (cs = 0; cs < readers; cs++) {
		chip = &sim->chips[cs];
		scnprintf(name, sizeof(name), "%u", cs);
		dir = debugfs_create_dir(name, sim->debugfs);
		debugfs_create_x8("command", 0444, dir,
				  &chip->regs[REG_COMMAND]);
		debugfs_create_x8("error", 0444, dir, &chip->regs[REG_ERROR]);
		debugfs_create_x8("auto_test", 0444, dir,
				  &chip->regs[REG_AUTO_TEST]);
		debugfs_create_u8("fifo_level", 0444, dir, &chip->fifo_len);
		sim->buffers[cs].data = chip->buffer;
		sim->buffers[cs].size = BUFFER_SIZE;
		debugfs_create_blob("buffer", 0444, dir, &sim->buffers[cs]);
	}
}

static void sim_hide_state(void *sim)
{
	debugfs_remove(((struct sim *)sim)->debugfs);
}

static int sim_add_readers(struct spi_controller *ctlr)
{
	struct spi_board_info info = { .max_speed_hz = SIM_MAX_SPEED_HZ };
	unsigned int cs;

	strscpy(info.modalias, modalias);
	for (cs = 0; cs < readers; cs++) {
		info.chip_select = cs;
		if (!spi_new_device(ctlr, &info))
			return -ENODEV;
	}
	return 0;
}

static int sim_probe(struct platform_device *pdev)
{
	struct spi_controller *ctlr;
	unsigned int cs;
	struct sim *sim;
	int ret;

	ctlr = devm_spi_alloc_host(&pdev->dev, sizeof(*sim));
	if (!ctlr)
		return -ENOMEM;

	sim = spi_controller_get_devdata(ctlr);
	for (cs = 0; cs < readers; cs++)
		sim_reset(&sim->chips[cs]);
	sim_show_state(sim);
	ret = devm_add_action_or_reset(&pdev->dev, sim_hide_state, sim);
	if (ret)
		return ret;

	ctlr->bus_num = -1;
	ctlr->num_chipselect = readers;
	ctlr->bits_per_word_mask = SPI_BPW_MASK(8);
	ctlr->max_speed_hz = SIM_MAX_SPEED_HZ;
	ctlr->set_cs = sim_set_cs;
	ctlr->transfer_one = sim_transfer_one;
	ret = devm_spi_register_controller(&pdev->dev, ctlr);
	if (ret)
		return ret;
	return sim_add_readers(ctlr);
}

static struct platform_driver sim_driver = {
	.driver = {
		.name = "mfrc522_sim",
	},
};

static struct platform_device *sim_device;

static int __init sim_init(void)
{
	if (!readers || readers > SIM_MAX_READERS)
		return -EINVAL;

	sim_device = platform_create_bundle(&sim_driver, sim_probe, NULL, 0,
					    NULL, 0);
	return PTR_ERR_OR_ZERO(sim_device);
}
module_init(sim_init);

static void __exit sim_exit(void)
{
	platform_device_unregister(sim_device);
	platform_driver_unregister(&sim_driver);
}
module_exit(sim_exit);

MODULE_DESCRIPTION("Simulated NXP MFRC522 on a simulated SPI controller");
MODULE_AUTHOR("The rbuild maintainers");
MODULE_LICENSE("GPL");
