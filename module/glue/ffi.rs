// SPDX-License-Identifier: GPL-2.0

//! The edge to C: what the C part calls, and what it offers to be called.
//!
//! The declarations repeat those of `mfrc522.h` and `mfrc522_glue.h`, and nothing compares the two.

use crate::chip::{Bus, Chip, Errno, Result, EINVAL};
use crate::command::{execute, Reader, ANSWER_MAX};
use crate::request;
use core::ffi::{c_int, c_ulong};
use core::slice;

// `MFRC522_TEXT_MAX` and `MFRC522_ANSWER_MAX`; the wrappers check their side.
const _: () = assert!(request::REQUEST_MAX == 39 && ANSWER_MAX == 25);

/// `struct mfrc522`, of which only C knows the layout.
#[repr(C)]
pub(crate) struct Mfrc522 {
    _private: [u8; 0],
}

extern "C" {
    fn mfrc522_begin(mfrc: *mut Mfrc522) -> c_int;
    fn mfrc522_end(mfrc: *mut Mfrc522);
    fn mfrc522_glue_transfer(mfrc: *mut Mfrc522, data: *mut u8, len: usize) -> c_int;
    fn mfrc522_glue_sleep(microseconds: c_ulong);
    fn mfrc522_glue_now() -> u64;
    fn mfrc522_glue_set_debug(mfrc: *mut Mfrc522, debug: bool);
    fn mfrc522_glue_is_dirty(mfrc: *const Mfrc522) -> bool;
    fn mfrc522_glue_set_dirty(mfrc: *mut Mfrc522, dirty: bool);
}

fn to_result(ret: c_int) -> Result {
    match ret {
        0 => Ok(()),
        _ => Err(Errno(ret.wrapping_neg())),
    }
}

/// A reader whose device is ours alone.
///
/// # Invariants
///
/// The pointer is to a reader that lives as long as this, and whose device nobody else uses.
struct Exclusive(*mut Mfrc522);

impl Bus for Exclusive {
    fn transfer(&mut self, data: &mut [u8]) -> Result {
        // SAFETY: by the invariants, the reader may be used; `data` is valid for its length.
        to_result(unsafe { mfrc522_glue_transfer(self.0, data.as_mut_ptr(), data.len()) })
    }

    fn sleep(&mut self, microseconds: u32) {
        // SAFETY: all callers of this library may sleep.
        unsafe { mfrc522_glue_sleep(c_ulong::from(microseconds)) }
    }

    fn now(&mut self) -> u64 {
        // SAFETY: reading the clock needs nothing.
        unsafe { mfrc522_glue_now() }
    }
}

impl Reader for Exclusive {
    fn set_debug(&mut self, on: bool) {
        // SAFETY: by the invariants, the reader may be used.
        unsafe { mfrc522_glue_set_debug(self.0, on) }
    }

    fn is_dirty(&self) -> bool {
        // SAFETY: by the invariants, the reader may be used.
        unsafe { mfrc522_glue_is_dirty(self.0) }
    }

    fn set_dirty(&mut self, dirty: bool) {
        // SAFETY: by the invariants, the reader may be used.
        unsafe { mfrc522_glue_set_dirty(self.0, dirty) }
    }
}

/// The use of a reader's device, which ends when this is dropped.
struct Use(Exclusive);

impl Use {
    /// # Safety
    ///
    /// `mfrc` must point to a reader that outlives the result, and not be in use by this thread.
    unsafe fn begin(mfrc: *mut Mfrc522) -> Result<Self> {
        // SAFETY: by this function's own requirements.
        to_result(unsafe { mfrc522_begin(mfrc) })?;
        // INVARIANT: the device is ours from mfrc522_begin() on, until mfrc522_end().
        Ok(Self(Exclusive(mfrc)))
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        // SAFETY: a `Use` exists only after mfrc522_begin() succeeded.
        unsafe { mfrc522_end((self.0).0) }
    }
}

/// Finds out whether there is a device, and resets it; see `mfrc522_detect()` of the C driver.
///
/// # Safety
///
/// `mfrc` must point to a reader that nobody else uses, `version` to a byte that may be written.
#[no_mangle]
pub(crate) unsafe extern "C" fn mfrc522_detect(mfrc: *mut Mfrc522, version: *mut u8) -> c_int {
    let mut value = 0;
    // INVARIANT: by this function's own requirements.
    let mut reader = Exclusive(mfrc);
    let result = Chip::new(&mut reader).detect(&mut value);
    // SAFETY: by this function's own requirements.
    unsafe { version.write(value) };
    match result {
        Ok(()) => 0,
        Err(Errno(number)) => number.wrapping_neg(),
    }
}

/// Carries out a command of the user; see `mfrc522_command()` of the C driver.
///
/// # Safety
///
/// `mfrc` must point to a reader not in use by this thread, `text` to `count` bytes, `answer` to
/// [`ANSWER_MAX`] bytes that may be written and aren't those of `text`.
#[no_mangle]
pub(crate) unsafe extern "C" fn mfrc522_command(
    mfrc: *mut Mfrc522,
    text: *const u8,
    count: usize,
    answer: *mut [u8; ANSWER_MAX],
) -> isize {
    // SAFETY: by this function's own requirements.
    let (text, room) = unsafe { (slice::from_raw_parts(text, count), &mut *answer) };

    let result = request::parse(text).ok_or(EINVAL).and_then(|request| {
        // SAFETY: by this function's own requirements; the use ends before this function does.
        let mut reader = unsafe { Use::begin(mfrc) }?;
        execute(&mut reader.0, request)
    });

    match result {
        Ok(answer) => {
            for (to, from) in room.iter_mut().zip(answer.bytes()) {
                *to = *from;
            }
            answer.bytes().len() as isize
        }
        Err(Errno(number)) => number.wrapping_neg() as isize,
    }
}
