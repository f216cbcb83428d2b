"""The ten faults of earlier drivers, put back into a copy of ours, and a leak.

Each is a change of source text, with the guest's tests that must notice it, and a word of what
they then say.
"""

from __future__ import annotations

from dataclasses import dataclass

OWN_INIT = """\
static int __init mfrc522_init(void)
{
%s
}
module_init(mfrc522_init);

static void __exit mfrc522_exit(void)
{
%s
}
module_exit(mfrc522_exit);
"""


@dataclass(frozen=True)
class Fault:
    """A fault by its number in the specification (if any): what is changed, what notices it."""

    number: int
    name: str
    driver: str
    changes: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]
    words: str
    timeout: int = 60


REGISTRATION = "module_spi_driver(mfrc522_driver);"

FAULTS = (
    Fault(
        1,
        "the driver's structure doesn't outlive its registration",
        "c",
        (
            (
                "mfrc522_main.c",
                REGISTRATION,
                "static struct spi_driver *gone;\n"
                + OWN_INIT
                % (
                    "\tint ret;\n\n"
                    "\tgone = kmemdup(&mfrc522_driver, sizeof(*gone), GFP_KERNEL);\n"
                    "\tret = spi_register_driver(gone);\n"
                    "\tmemset(gone, 0x6b, sizeof(*gone));\n"
                    "\treturn ret;",
                    "",
                ),
            ),
        ),
        ("sysfs",),
        "Unable to handle kernel",
    ),
    Fault(
        2,
        "polling without a limit",
        "c",
        (
            (
                "mfrc522_chip.c",
                "#define MFRC522_TIMEOUT_US\t\t100000",
                "#define MFRC522_TIMEOUT_US 0",
            ),
        ),
        ("stuck_commands",),
        "it was not done after",
        timeout=12,
    ),
    Fault(
        3,
        "the FIFO's level is trusted",
        "c",
        (
            ("mfrc522_chip.c", "return *level <= MFRC522_FIFO_SIZE ? 0 : -EIO;", "return 0;"),
            ("mfrc522_chip.c", "return level == len ? 0 : -EIO;", "return 0;"),
        ),
        ("fifo_lies",),
        "fifo_lies: mem_read when FIFOLevel is 0",
    ),
    Fault(
        4,
        "a register's byte is made an enum unchecked",
        "rust",
        (
            (
                "chip.rs",
                "        match value {\n"
                "            0x91 => Some(Self::V1),\n"
                "            0x92 => Some(Self::V2),\n"
                "            _ => None,\n"
                "        }",
                "        Some(unsafe { core::mem::transmute::<u8, Self>(value) })",
            ),
        ),
        ("versions",),
        "versions: version 0x00 is refused",
    ),
    Fault(
        5,
        "unbinding leaves the device within reach of open files",
        "c",
        (("mfrc522_main.c", "\tWRITE_ONCE(mfrc->spi, NULL);\n", ""),),
        ("unbinding",),
        "unbinding: reading from a device unbound",
    ),
    Fault(
        6,
        "probe fails with a positive errno",
        "c",
        (
            (
                "mfrc522_main.c",
                'return dev_err_probe(dev, ret,\n\t\t\t\t     "cannot detect',
                'return -dev_err_probe(dev, ret,\n\t\t\t\t     "cannot detect',
            ),
        ),
        ("failing_probe",),
        "failing_probe: no probe failed with a positive errno",
    ),
    Fault(
        7,
        "a buffer on the stack is handed to SPI",
        "c",
        (
            (
                "mfrc522_main.c",
                "\tstruct spi_transfer xfer = {\n\t\t.tx_buf = mfrc->tx,",
                "\tu8 stack[1 + MFRC522_FIFO_SIZE];\n"
                "\tstruct spi_transfer xfer = {\n\t\t.tx_buf = memcpy(stack, mfrc->tx, len),",
            ),
        ),
        ("loading",),
        "loading: the driver is bound to the simulated device",
    ),
    Fault(
        8,
        "a driver is unregistered that never was registered",
        "c",
        (
            (
                "mfrc522_main.c",
                REGISTRATION,
                OWN_INIT
                % (
                    "\tspi_unregister_driver(&mfrc522_driver);\n"
                    "\treturn spi_register_driver(&mfrc522_driver);",
                    "\tspi_unregister_driver(&mfrc522_driver);",
                ),
            ),
        ),
        ("loading",),
        "driver_unregister",
    ),
    Fault(
        9,
        "RcvOff is left out when a command is written",
        "c",
        (("mfrc522_chip.c", "MFRC522_COMMAND_RCV_OFF | cmd", "cmd"),),
        ("registers",),
        "registers: after mem_write:2:hi, the device is idle, its receiver off",
    ),
    Fault(
        10,
        "a global is overwritten by a second reader",
        "c",
        (
            (
                "mfrc522_main.c",
                "static DEFINE_IDA(mfrc522_ida);",
                "static DEFINE_IDA(mfrc522_ida);\nstatic struct spi_device *the_device;",
            ),
            ("mfrc522_main.c", "mfrc->spi = spi;", "the_device = mfrc->spi = spi;"),
            ("mfrc522_main.c", "spi_sync_transfer(mfrc->spi,", "spi_sync_transfer(the_device,"),
        ),
        ("two_readers",),
        "two_readers: the first reader's version",
    ),
    Fault(
        11,
        "a reader is never freed",
        "c",
        (("mfrc522_main.c", "\tkfree(mfrc);\n", ""),),
        ("binding_often",),
        "binding_often: unbinding and binding loses no memory",
        timeout=240,
    ),
)
