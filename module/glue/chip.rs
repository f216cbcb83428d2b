// SPDX-License-Identifier: GPL-2.0

//! The MFRC522 itself: registers, and the commands that the driver has it run.
//!
//! Section numbers are those of the data sheet, revision 3.9.

use crate::request::MEM_SIZE;

/// An error as the kernel numbers them, the number being positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

pub(crate) const EIO: Errno = Errno(5);
pub(crate) const ENODEV: Errno = Errno(19);
pub(crate) const EINVAL: Errno = Errno(22);
pub(crate) const ETIMEDOUT: Errno = Errno(110);

pub(crate) type Result<T = ()> = core::result::Result<T, Errno>;

/// The way to a chip, and the time that it needs.
pub(crate) trait Bus {
    /// Sends bytes, and puts what is received meanwhile in their place.
    fn transfer(&mut self, data: &mut [u8]) -> Result;

    /// Sleeps, for so many microseconds at least.
    fn sleep(&mut self, microseconds: u32);

    /// Returns the time, in microseconds, of a clock that never jumps.
    fn now(&mut self) -> u64;
}

/// The size of the FIFO (8.3).
const FIFO_SIZE: usize = 64;

/// The size of the random ID that the chip makes (10.3.1.3).
const RAND_ID_SIZE: usize = 10;

/// How long to wait between two looks at a register, and when to give up.
const POLL_US: u32 = 50;
const TIMEOUT_US: u64 = 100_000;

/// The registers that are used (9.2).
#[derive(Clone, Copy)]
enum Register {
    Command = 0x01,
    Error = 0x06,
    FifoData = 0x09,
    FifoLevel = 0x0a,
    AutoTest = 0x36,
    Version = 0x37,
}

impl Register {
    /// The address byte of a write (8.1.2.3).
    const fn address(self) -> u8 {
        ((self as u8) << 1) & 0x7e
    }

    /// The address byte of a read.
    const fn read_address(self) -> u8 {
        self.address() | 0x80
    }
}

/// Bits of the registers. No command here needs the receiver, so it stays off, as after a reset.
const COMMAND_RCV_OFF: u8 = 1 << 5;
const COMMAND_POWER_DOWN: u8 = 1 << 4;
const COMMAND_MASK: u8 = 0x0f;
const ERROR_WR: u8 = 1 << 7;
const ERROR_BUFFER_OVFL: u8 = 1 << 4;
const FIFO_FLUSH: u8 = 1 << 7;
const AUTO_TEST_ON: u8 = 0x09;
const AUTO_TEST_OFF: u8 = 0x00;

/// The commands that are used (10.3).
#[derive(Clone, Copy)]
enum Command {
    Idle = 0x0,
    Mem = 0x1,
    GenerateRandomId = 0x2,
    CalcCrc = 0x3,
    SoftReset = 0xf,
}

/// The versions of the chip that there are (9.3.4.8).
#[derive(Clone, Copy)]
pub(crate) enum Version {
    V1 = 0x91,
    V2 = 0x92,
}

impl Version {
    pub(crate) fn from_register(value: u8) -> Option<Self> {
        match value {
            0x91 => Some(Self::V1),
            0x92 => Some(Self::V2),
            _ => None,
        }
    }

    /// The version as `get_version` tells it.
    pub(crate) fn decimal(self) -> &'static [u8] {
        match self {
            Self::V1 => b"145",
            Self::V2 => b"146",
        }
    }

    /// What the self-test leaves in the FIFO (16.1.1).
    pub(crate) fn self_test(self) -> &'static [u8; FIFO_SIZE] {
        match self {
            Self::V1 => &SELF_TEST_V1,
            Self::V2 => &SELF_TEST_V2,
        }
    }
}

#[rustfmt::skip]
const SELF_TEST_V1: [u8; FIFO_SIZE] = [
    0x00, 0xc6, 0x37, 0xd5, 0x32, 0xb7, 0x57, 0x5c, 0xc2, 0xd8, 0x7c, 0x4d, 0xd9, 0x70, 0xc7, 0x73,
    0x10, 0xe6, 0xd2, 0xaa, 0x5e, 0xa1, 0x3e, 0x5a, 0x14, 0xaf, 0x30, 0x61, 0xc9, 0x70, 0xdb, 0x2e,
    0x64, 0x22, 0x72, 0xb5, 0xbd, 0x65, 0xf4, 0xec, 0x22, 0xbc, 0xd3, 0x72, 0x35, 0xcd, 0xaa, 0x41,
    0x1f, 0xa7, 0xf3, 0x53, 0x14, 0xde, 0x7e, 0x02, 0xd9, 0x0f, 0xb5, 0x5e, 0x25, 0x1d, 0x29, 0x79,
];

#[rustfmt::skip]
const SELF_TEST_V2: [u8; FIFO_SIZE] = [
    0x00, 0xeb, 0x66, 0xba, 0x57, 0xbf, 0x23, 0x95, 0xd0, 0xe3, 0x0d, 0x3d, 0x27, 0x89, 0x5c, 0xde,
    0x9d, 0x3b, 0xa7, 0x00, 0x21, 0x5b, 0x89, 0x82, 0x51, 0x3a, 0xeb, 0x02, 0x0c, 0xa5, 0x00, 0x49,
    0x7c, 0x84, 0x4d, 0xb3, 0xcc, 0xd2, 0x1b, 0x81, 0x5d, 0x48, 0x76, 0xd5, 0x71, 0x61, 0x21, 0xa9,
    0x86, 0x96, 0x83, 0x38, 0xcf, 0x9d, 0x5b, 0x6d, 0xdc, 0x15, 0xba, 0x3e, 0x7d, 0x95, 0x3b, 0x2f,
];

/// The chip on a bus, for as long as a command takes.
pub(crate) struct Chip<'a, B> {
    bus: &'a mut B,
}

impl<'a, B: Bus> Chip<'a, B> {
    pub(crate) fn new(bus: &'a mut B) -> Self {
        Self { bus }
    }

    /// Writes bytes to one register: all that follow the address go there.
    fn write_bytes(&mut self, register: Register, data: &[u8]) -> Result {
        let mut buffer = [0u8; 1 + FIFO_SIZE];
        let used = buffer.get_mut(..=data.len()).ok_or(EINVAL)?;
        let (address, rest) = used.split_first_mut().ok_or(EINVAL)?;
        *address = register.address();
        rest.copy_from_slice(data);
        self.bus.transfer(used)
    }

    fn write(&mut self, register: Register, value: u8) -> Result {
        self.write_bytes(register, &[value])
    }

    /// Reads one register again and again: each byte sent names what the next byte received is of.
    fn read_bytes(&mut self, register: Register, out: &mut [u8]) -> Result {
        let mut buffer = [0u8; 1 + FIFO_SIZE];
        let used = buffer.get_mut(..=out.len()).ok_or(EINVAL)?;
        let (last, addresses) = used.split_last_mut().ok_or(EINVAL)?;
        addresses.fill(register.read_address());
        *last = 0;
        self.bus.transfer(used)?;
        let (_, received) = used.split_first().ok_or(EINVAL)?;
        out.copy_from_slice(received);
        Ok(())
    }

    fn read(&mut self, register: Register) -> Result<u8> {
        let mut value = [0u8];
        self.read_bytes(register, &mut value)?;
        Ok(value[0])
    }

    fn start(&mut self, command: Command) -> Result {
        self.write(Register::Command, COMMAND_RCV_OFF | command as u8)
    }

    /// Calls `done` until it returns true; a chip that never gets there is an error.
    fn poll(&mut self, mut done: impl FnMut(&mut Self) -> Result<bool>) -> Result {
        let start = self.bus.now();
        loop {
            // Asked for before the last look, so that a thread that slept too long looks again.
            let late = self.bus.now().wrapping_sub(start) > TIMEOUT_US;
            if done(self)? {
                return Ok(());
            }
            if late {
                return Err(ETIMEDOUT);
            }
            self.bus.sleep(POLL_US);
        }
    }

    fn wait_command(&mut self, mask: u8) -> Result {
        self.poll(|chip| Ok(chip.read(Register::Command)? & mask == 0))
    }

    /// Runs a command that ends by itself.
    fn run(&mut self, command: Command) -> Result {
        self.start(command)?;
        self.wait_command(COMMAND_MASK)?;
        if self.read(Register::Error)? & (ERROR_WR | ERROR_BUFFER_OVFL) != 0 {
            return Err(EIO);
        }
        Ok(())
    }

    /// Resets the chip, which keeps its internal buffer.
    fn soft_reset(&mut self) -> Result {
        self.start(Command::SoftReset)?;
        // The oscillator takes its time to start.
        self.bus.sleep(POLL_US);
        self.wait_command(COMMAND_POWER_DOWN | COMMAND_MASK)
    }

    /// Returns how many bytes the FIFO holds; more than it can hold is an error.
    fn fifo_level(&mut self) -> Result<usize> {
        let level = usize::from(self.read(Register::FifoLevel)?);
        if level > FIFO_SIZE {
            return Err(EIO);
        }
        Ok(level)
    }

    fn expect_fifo(&mut self, level: usize) -> Result {
        if self.fifo_level()? == level {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    fn flush_fifo(&mut self) -> Result {
        self.write(Register::FifoLevel, FIFO_FLUSH)
    }

    /// Finds out whether there is a chip that we know, and resets it; `value` gets what its version
    /// register has.
    pub(crate) fn detect(&mut self, value: &mut u8) -> Result {
        *value = self.read(Register::Version)?;
        Version::from_register(*value).ok_or(ENODEV)?;
        self.soft_reset()
    }

    /// Brings the chip into a known state: there, idle, with an empty FIFO.
    ///
    /// A dead bus reads as all zeroes or all ones, and zeroes look like a chip that did what it was
    /// told; so the version is checked before each command.
    pub(crate) fn prepare(&mut self, reset: bool) -> Result<Version> {
        let version = Version::from_register(self.read(Register::Version)?).ok_or(EIO)?;
        if reset {
            self.soft_reset()?;
        } else {
            self.start(Command::Idle)?;
        }
        self.flush_fifo()?;
        Ok(version)
    }

    /// Moves bytes into the internal buffer, padded with zeroes, by way of the FIFO.
    pub(crate) fn mem_write(&mut self, data: &[u8]) -> Result {
        let mut padded = [0u8; MEM_SIZE];
        padded
            .get_mut(..data.len())
            .ok_or(EINVAL)?
            .copy_from_slice(data);
        self.write_bytes(Register::FifoData, &padded)?;
        self.expect_fifo(MEM_SIZE)?;
        self.run(Command::Mem)?;
        self.expect_fifo(0)
    }

    /// Reads the internal buffer by way of the FIFO, which must be empty.
    pub(crate) fn mem_read(&mut self) -> Result<[u8; MEM_SIZE]> {
        let mut data = [0u8; MEM_SIZE];
        self.run(Command::Mem)?;
        self.expect_fifo(MEM_SIZE)?;
        self.read_bytes(Register::FifoData, &mut data)?;
        Ok(data)
    }

    /// Has the chip make a random ID.
    pub(crate) fn random_id(&mut self) -> Result<[u8; RAND_ID_SIZE]> {
        self.run(Command::GenerateRandomId)?;
        let mut id = [0u8; RAND_ID_SIZE];
        for (to, from) in id.iter_mut().zip(self.mem_read()?) {
            *to = from;
        }
        Ok(id)
    }

    /// Runs the digital self-test (16.1.1); returns whether the chip passed.
    pub(crate) fn self_test(&mut self, version: Version) -> Result<bool> {
        let mut result = [0u8; FIFO_SIZE];
        self.soft_reset()?;
        self.flush_fifo()?;
        self.mem_write(&[])?;
        self.write(Register::AutoTest, AUTO_TEST_ON)?;
        self.write(Register::FifoData, 0)?;
        self.start(Command::CalcCrc)?;
        // The command doesn't end by itself: it is done when the FIFO is full.
        self.poll(|chip| Ok(chip.fifo_level()? == FIFO_SIZE))?;
        self.start(Command::Idle)?;
        self.read_bytes(Register::FifoData, &mut result)?;
        self.write(Register::AutoTest, AUTO_TEST_OFF)?;
        Ok(result == *version.self_test())
    }
}
