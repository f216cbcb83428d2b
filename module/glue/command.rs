// SPDX-License-Identifier: GPL-2.0

//! The commands of the user, carried out.

use crate::chip::{Bus, Chip, Result};
use crate::request::{Request, MEM_SIZE};

/// The longest answer, `MFRC522_ANSWER_MAX` to C.
pub(crate) const ANSWER_MAX: usize = MEM_SIZE;

/// A reader whose device is ours for the time being.
pub(crate) trait Reader: Bus {
    /// Has every transfer logged, or no longer.
    fn set_debug(&mut self, on: bool);

    /// Tells whether the last command failed, so that the chip's state isn't known.
    fn is_dirty(&self) -> bool;

    fn set_dirty(&mut self, dirty: bool);
}

/// What a command leaves to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    data: [u8; ANSWER_MAX],
    len: usize,
}

impl Answer {
    pub(crate) const NONE: Self = Self {
        data: [0; ANSWER_MAX],
        len: 0,
    };

    /// Returns an answer of these bytes, at most [`ANSWER_MAX`] of them.
    fn new(bytes: &[u8]) -> Self {
        let mut answer = Self::NONE;
        for (to, from) in answer.data.iter_mut().zip(bytes) {
            *to = *from;
            answer.len += 1;
        }
        answer
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.data.get(..self.len).unwrap_or(&[])
    }
}

/// Carries out a command.
pub(crate) fn execute<R: Reader>(reader: &mut R, request: Request<'_>) -> Result<Answer> {
    if let Request::Debug(on) = request {
        reader.set_debug(on);
        return Ok(Answer::NONE);
    }
    let reset = reader.is_dirty();
    let result = use_chip(&mut Chip::new(reader), reset, request);
    reader.set_dirty(result.is_err());
    result
}

fn use_chip<B: Bus>(chip: &mut Chip<'_, B>, reset: bool, request: Request<'_>) -> Result<Answer> {
    let version = chip.prepare(reset)?;
    Ok(match request {
        Request::MemWrite(data) => {
            chip.mem_write(data)?;
            Answer::NONE
        }
        Request::MemRead => Answer::new(&chip.mem_read()?),
        Request::GetVersion => Answer::new(version.decimal()),
        Request::GenRandId => Answer::new(&chip.random_id()?),
        Request::SelfTest if chip.self_test(version)? => Answer::new(b"ok"),
        Request::SelfTest => Answer::new(b"failed"),
        Request::Debug(_) => Answer::NONE,
    })
}
