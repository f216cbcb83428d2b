// SPDX-License-Identifier: GPL-2.0

//! Driver for the NXP MFRC522 contactless reader on an SPI bus.
//!
//! Each reader has a misc device that takes text commands: a command is written, its answer is
//! read back from the same open file.

use core::sync::atomic::{AtomicU32, Ordering};
use kernel::{
    c_str, dev_err, dev_info,
    device::Bound,
    miscdevice::{Attribute, MiscDeviceOptions, MiscDeviceRegistration},
    new_mutex,
    prelude::*,
    spi,
    str::CString,
    sync::{Arc, Mutex},
};

mod chip;
mod request;

// What differs between kernels; Kbuild says which this is.
#[cfg(not(kernel_7))]
use kernel::fmt;
#[cfg_attr(kernel_7, path = "kernel_7.rs")]
#[cfg_attr(not(kernel_7), path = "kernel_6.rs")]
mod binding;

use chip::{Chip, Version};
use request::{Request, MEM_SIZE, REQUEST_MAX};

#[cfg(kernel_7)]
kernel::module_spi_driver! {
    type: Mfrc522,
    name: "mfrc522_rust",
    authors: ["The rbuild maintainers"],
    description: "NXP MFRC522 contactless reader",
    license: "GPL",
}

#[cfg(not(kernel_7))]
kernel::module_spi_driver! {
    type: Mfrc522,
    name: "mfrc522_rust",
    author: "The rbuild maintainers",
    description: "NXP MFRC522 contactless reader",
    license: "GPL",
}

/// A reader that is bound to the driver.
///
/// Its fields are dropped in this order: the device node goes before its number can be taken again.
struct Mfrc522 {
    _node: Pin<KBox<MiscDeviceRegistration<OpenFile>>>,
    _number: Number,
}

/// What the binding and all open files of a reader share; it lives as long as any of them.
#[pin_data]
struct Reader {
    spi: Arc<spi::Handle>,
    #[pin]
    state: Mutex<State>,
    #[pin]
    statistics: Mutex<Statistics>,
}

/// What of a reader only one thread at a time may use.
struct State {
    /// Every transfer is logged.
    log: bool,
    /// The last command failed, so the chip's state isn't known.
    dirty: bool,
}

/// How many bytes went through the device node; see ABI-mfrc522.
struct Statistics {
    read: u64,
    written: u64,
}

impl Mfrc522 {
    /// Makes a reader of a device that was set up.
    fn new(spi: &spi::Device<Bound>, handle: Arc<spi::Handle>) -> Result<Self> {
        detect(spi)?;

        let reader = Arc::pin_init(Reader::new(handle), GFP_KERNEL)?;
        let number = Number::take()?;
        let node = KBox::pin_init(
            MiscDeviceRegistration::register(
                MiscDeviceOptions {
                    name: number.name()?,
                    parent: Some(spi.as_ref().into()),
                },
                reader,
            ),
            GFP_KERNEL,
        )?;

        Ok(Self {
            _node: node,
            _number: number,
        })
    }
}

/// Finds out whether there is a chip that we know, and resets it.
fn detect(spi: &spi::Device<Bound>) -> Result {
    let chip = Chip::new(spi, false);
    let value = chip.version_register()?;
    let Some(version) = Version::from_register(value) else {
        dev_err!(spi.as_ref(), "unknown version {:#04x}\n", value);
        return Err(ENODEV);
    };
    chip.soft_reset()?;

    dev_info!(spi.as_ref(), "MFRC522 version {:#04x}\n", version as u8);
    Ok(())
}

impl Reader {
    fn new(spi: Arc<spi::Handle>) -> impl PinInit<Self> {
        let state = State {
            log: false,
            dirty: false,
        };
        let statistics = Statistics {
            read: 0,
            written: 0,
        };
        pin_init!(Self {
            spi,
            state <- new_mutex!(state),
            statistics <- new_mutex!(statistics),
        })
    }

    /// Carries out a command; its answer replaces what is in `answer`.
    fn execute(&self, request: Request<'_>, answer: &mut Answer) -> Result {
        let mut state = self.state.lock();
        self.spi.access(|spi| {
            if let Request::Debug(on) = request {
                state.log = on;
                return Ok(());
            }
            let result = use_chip(&Chip::new(spi, state.log), state.dirty, request, answer);
            state.dirty = result.is_err();
            result
        })
    }
}

fn use_chip(chip: &Chip<'_>, reset: bool, request: Request<'_>, answer: &mut Answer) -> Result {
    let version = chip.prepare(reset)?;
    match request {
        Request::MemWrite(data) => chip.mem_write(data)?,
        Request::MemRead => answer.set(&chip.mem_read()?),
        Request::GetVersion => {
            let text = CString::try_from_fmt(fmt!("{}", version as u8))?;
            answer.set(text.to_str()?.as_bytes());
        }
        Request::GenRandId => answer.set(&chip.random_id()?),
        Request::SelfTest => answer.set(if chip.self_test(version)? {
            b"ok"
        } else {
            b"failed"
        }),
        Request::Debug(_) => {}
    }
    Ok(())
}

/// What a command leaves to be read.
struct Answer {
    data: [u8; MEM_SIZE],
    len: usize,
    /// How much of it was read.
    pos: usize,
}

impl Answer {
    const NONE: Self = Self {
        data: [0; MEM_SIZE],
        len: 0,
        pos: 0,
    };

    fn set(&mut self, data: &[u8]) {
        let len = data.len().min(MEM_SIZE);
        for (to, from) in self.data.iter_mut().zip(data) {
            *to = *from;
        }
        self.len = len;
        self.pos = 0;
    }

    fn rest(&self) -> &[u8] {
        self.data.get(self.pos..self.len).unwrap_or(&[])
    }
}

/// An open file of a reader's device node.
#[pin_data]
struct OpenFile {
    reader: Arc<Reader>,
    #[pin]
    answer: Mutex<Answer>,
}

impl OpenFile {
    /// What its device node has in sysfs; see ABI-mfrc522.
    const STATISTICS: &'static [Attribute<Self>] = &[
        Attribute::new(c_str!("bytes_read"), |reader: &Arc<Reader>, out| {
            writeln!(out, "{}", reader.statistics.lock().read)
        }),
        Attribute::new(c_str!("bytes_written"), |reader: &Arc<Reader>, out| {
            writeln!(out, "{}", reader.statistics.lock().written)
        }),
    ];

    fn new(reader: Arc<Reader>) -> impl PinInit<Self> {
        pin_init!(Self {
            reader,
            answer <- new_mutex!(Answer::NONE),
        })
    }

    /// Has `copy` copy of the answer what wasn't read yet; it returns how much it took.
    fn read_answer(&self, copy: impl FnOnce(&[u8]) -> Result<usize>) -> Result<usize> {
        let mut answer = self.answer.lock();
        if !self.reader.spi.is_bound() {
            return Err(ENODEV);
        }
        let count = copy(answer.rest())?;
        answer.pos += count;
        self.reader.statistics.lock().read += count as u64;
        Ok(count)
    }

    /// Carries out a command of `count` bytes, with which `copy` fills what it is given.
    fn write_command(&self, count: usize, copy: impl FnOnce(&mut [u8]) -> Result) -> Result<usize> {
        let mut answer = self.answer.lock();
        // Whatever becomes of this command, the last one's answer is over.
        *answer = Answer::NONE;

        let mut text = [0u8; REQUEST_MAX];
        let text = text.get_mut(..count).ok_or(EINVAL)?;
        copy(text)?;
        let request = request::parse(text).ok_or(EINVAL)?;
        self.reader.execute(request, &mut answer)?;
        self.reader.statistics.lock().written += count as u64;
        Ok(count)
    }
}

/// The number of a reader, by which its node is named: a bit in [`NUMBERS`].
struct Number(u32);

static NUMBERS: AtomicU32 = AtomicU32::new(0);

impl Number {
    /// Takes the smallest number that is free.
    fn take() -> Result<Self> {
        let taken = NUMBERS
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let free = used.trailing_ones();
                Some(used | 1u32.checked_shl(free)?)
            })
            .map_err(|_| ENOSPC)?;
        Ok(Self(taken.trailing_ones()))
    }

    fn name(&self) -> Result<CString> {
        match self.0 {
            0 => CString::try_from_fmt(fmt!("mfrc522")),
            number => CString::try_from_fmt(fmt!("mfrc522-{}", number)),
        }
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        NUMBERS.fetch_and(!(1u32 << self.0), Ordering::Relaxed);
    }
}
