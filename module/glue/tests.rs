// SPDX-License-Identifier: GPL-2.0

//! Tests for the host: the commands, on a fake of the chip.

use crate::chip::*;
use crate::command::{execute, Reader};
use crate::request::{parse, Request, MEM_SIZE};

/// What the datasheet says of the registers and commands that the driver uses, and faults.
struct Fake {
    version: u8,
    fifo: Vec<u8>,
    memory: [u8; MEM_SIZE],
    debug: bool,
    dirty: bool,
    /// What each byte received is, whatever the chip would send.
    miso: Option<u8>,
    /// How many bytes the FIFO claims to have.
    level: Option<u8>,
    /// A command that never ends.
    stuck: Option<u8>,
    running: u8,
    auto_test: u8,
    /// The transfer that fails, counted from 1.
    failing: usize,
    transfers: usize,
    slept_us: u64,
    /// What a sleep takes at least: a whole tick, where there are no better timers.
    tick_us: u64,
    resets: usize,
}

impl Fake {
    fn new() -> Self {
        Self {
            version: 0x91,
            fifo: Vec::new(),
            memory: [0xee; MEM_SIZE],
            debug: false,
            dirty: false,
            miso: None,
            level: None,
            stuck: None,
            running: 0,
            auto_test: 0x40,
            failing: 0,
            transfers: 0,
            slept_us: 0,
            tick_us: 0,
            resets: 0,
        }
    }

    fn write(&mut self, register: u8, value: u8) {
        match register {
            0x01 => {
                assert_eq!(value & 0xf0, 0x20, "the receiver is off, the power on");
                self.command(value & 0x0f);
            }
            0x09 => self.fifo.push(value),
            0x0a if value & 0x80 != 0 => self.fifo.clear(),
            0x36 => self.auto_test = value,
            _ => panic!("{value:#x} is written to register {register:#x}"),
        }
    }

    fn command(&mut self, command: u8) {
        self.running = match self.stuck {
            Some(stuck) if stuck == command => command,
            _ => 0,
        };
        match command {
            0x0 => {}
            0x1 if self.fifo.is_empty() => self.fifo.extend(self.memory),
            0x1 => self.memory.copy_from_slice(&std::mem::take(&mut self.fifo)),
            0x2 => self.memory[..10].copy_from_slice(b"0123456789"),
            0x3 => {
                assert_eq!((self.auto_test, &self.memory), (0x09, &[0; MEM_SIZE]));
                assert_eq!(self.fifo, [0]);
                let version = Version::from_register(self.version).expect("a version");
                self.fifo = version.self_test().to_vec();
            }
            0xf => self.resets += 1,
            _ => panic!("command {command:#x}"),
        }
    }

    fn read(&mut self, register: u8) -> u8 {
        match register {
            0x01 => 0x20 | self.running,
            0x06 => 0,
            0x09 => self.fifo.remove(0),
            0x0a => self.level.unwrap_or(self.fifo.len() as u8),
            0x37 => self.version,
            _ => panic!("register {register:#x} is read"),
        }
    }

    fn run(&mut self, text: &[u8]) -> Result<Vec<u8>> {
        let request = parse(text).ok_or(EINVAL)?;
        execute(self, request).map(|answer| answer.bytes().to_vec())
    }
}

impl Bus for Fake {
    fn transfer(&mut self, data: &mut [u8]) -> Result {
        assert!((2..=65).contains(&data.len()));
        self.transfers += 1;
        if self.transfers == self.failing {
            return Err(EIO);
        }
        let register = (data[0] & 0x7e) >> 1;
        if data[0] & 0x80 == 0 {
            data[1..]
                .iter()
                .for_each(|&value| self.write(register, value));
        } else {
            let (last, addresses) = data.split_last().expect("some bytes");
            assert_eq!(*last, 0, "the last byte ends the read");
            assert!(addresses.iter().all(|address| *address == data[0]));
            for byte in &mut data[1..] {
                *byte = self.miso.unwrap_or_else(|| self.read(register));
            }
        }
        Ok(())
    }

    fn sleep(&mut self, microseconds: u32) {
        self.slept_us += self.tick_us.max(microseconds.into());
    }

    fn now(&mut self) -> u64 {
        self.slept_us
    }
}

impl Reader for Fake {
    fn set_debug(&mut self, on: bool) {
        self.debug = on;
    }

    fn is_dirty(&self) -> bool {
        self.dirty
    }

    fn set_dirty(&mut self, dirty: bool) {
        self.dirty = dirty;
    }
}

const COMMANDS: [&[u8]; 5] = [
    b"version",
    b"mem_read",
    b"mem_write:2:hi",
    b"gen_rand_id",
    b"self_test",
];

#[test]
fn commands_are_parsed() {
    assert_eq!(parse(b"mem_write:2::\n\n"), Some(Request::MemWrite(b":\n")));
    assert_eq!(parse(b"mem_write:0:"), Some(Request::MemWrite(b"")));
    assert_eq!(parse(b"debug:off\n"), Some(Request::Debug(false)));
    for wrong in [
        "",
        "\n",
        "mem_read:",
        "mem_write:",
        "mem_write::",
        "mem_write:1:",
        "version\0",
    ] {
        assert_eq!(parse(wrong.as_bytes()), None, "{wrong:?}");
    }
    assert_eq!(parse(&[b'9'; 1000]), None);
}

#[test]
fn memory_is_written_padded_and_read() {
    let mut chip = Fake::new();
    assert_eq!(chip.run(b"mem_write:2:hi\n"), Ok(vec![]));
    let mut padded = [0; MEM_SIZE];
    padded[..2].copy_from_slice(b"hi");
    assert_eq!(chip.memory, padded);
    assert_eq!(chip.run(b"mem_read"), Ok(padded.to_vec()));
}

#[test]
fn versions_identify_and_test_themselves() {
    for (version, text) in [(0x91, b"145"), (0x92, b"146")] {
        let mut chip = Fake::new();
        chip.version = version;
        assert_eq!(Chip::new(&mut chip).detect(&mut 0), Ok(()));
        assert_eq!(chip.run(b"get_version"), Ok(text.to_vec()));
        assert_eq!(chip.run(b"self_test"), Ok(b"ok".to_vec()));
        assert_eq!(chip.auto_test & 0x0f, 0);
    }
    let (mut chip, mut value) = (Fake::new(), 0);
    chip.version = 0x93;
    assert_eq!(Chip::new(&mut chip).detect(&mut value), Err(ENODEV));
    assert_eq!(value, 0x93);
}

#[test]
fn a_random_id_has_ten_bytes() {
    assert_eq!(Fake::new().run(b"gen_rand_id"), Ok(b"0123456789".to_vec()));
}

#[test]
fn debug_does_not_touch_the_chip() {
    let mut chip = Fake::new();
    assert_eq!(chip.run(b"debug:on"), Ok(vec![]));
    assert_eq!((chip.debug, chip.transfers), (true, 0));
    assert_eq!(chip.run(b"debug:off"), Ok(vec![]));
    assert_eq!((chip.debug, chip.transfers), (false, 0));
}

#[test]
fn a_dead_bus_is_an_error() {
    for (command, miso) in COMMANDS.iter().flat_map(|&one| [(one, 0x00), (one, 0xff)]) {
        let mut chip = Fake::new();
        chip.miso = Some(miso);
        assert_eq!(chip.run(command), Err(EIO));
    }
}

#[test]
fn a_stuck_command_times_out_and_the_next_one_resets() {
    for (stuck, command) in [(0x1, b"mem_read".as_slice()), (0x2, b"gen_rand_id")] {
        let mut chip = Fake::new();
        chip.stuck = Some(stuck);
        assert_eq!(chip.run(command), Err(ETIMEDOUT));
        assert!(chip.dirty && (100_000..1_000_000).contains(&chip.slept_us));
        chip.stuck = None;
        chip.fifo.clear();
        assert_eq!(chip.run(b"version"), Ok(b"145".to_vec()));
        assert_eq!((chip.dirty, chip.resets), (false, 1));
    }
}

#[test]
fn a_stuck_command_times_out_in_time_though_each_sleep_is_long() {
    let mut chip = Fake::new();
    chip.stuck = Some(0x1);
    chip.tick_us = 4_000;
    assert_eq!(chip.run(b"mem_read"), Err(ETIMEDOUT));
    assert!((100_000..150_000).contains(&chip.slept_us));
}

#[test]
fn a_fifo_that_lies_is_an_error() {
    for level in [0, 1, 24, 26, 64, 65, 128, 255] {
        for command in [b"mem_read".as_slice(), b"gen_rand_id"] {
            let mut chip = Fake::new();
            chip.level = Some(level);
            assert_eq!(chip.run(command), Err(EIO), "{level}");
        }
    }
}

#[test]
fn each_transfer_may_fail() {
    for command in COMMANDS {
        let mut whole = Fake::new();
        assert!(whole.run(command).is_ok());
        for failing in 1..=whole.transfers {
            let mut chip = Fake::new();
            chip.failing = failing;
            assert_eq!(chip.run(command), Err(EIO));
            assert!(chip.dirty);
        }
    }
}
