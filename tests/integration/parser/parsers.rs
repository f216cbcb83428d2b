// SPDX-License-Identifier: GPL-2.0

//! The Rust parser, as a function that C calls.

#[path = "request.rs"]
mod request;

use request::Request;

const _: () = assert!(request::MEM_SIZE == 25);
const _: () = assert!(request::REQUEST_MAX == 39);

/// Parses `len` bytes at `text`; returns the number of the command in C's `enum mfrc522_op`, or -1.
///
/// Where the data to write begin, counted from `text`, and how long they are, goes to `at` and
/// `count`, if there are any.
///
/// # Safety
///
/// `text` points to `len` bytes, and the other two to what can be written.
#[no_mangle]
unsafe extern "C" fn rust_parse(
    text: *const u8,
    len: usize,
    at: *mut usize,
    count: *mut usize,
) -> i32 {
    let text = unsafe { std::slice::from_raw_parts(text, len) };
    match request::parse(text) {
        None => -1,
        Some(Request::MemWrite(data)) => {
            unsafe {
                *at = data.as_ptr() as usize - text.as_ptr() as usize;
                *count = data.len();
            }
            0
        }
        Some(Request::MemRead) => 1,
        Some(Request::GetVersion) => 2,
        Some(Request::GenRandId) => 3,
        Some(Request::SelfTest) => 4,
        Some(Request::Debug(true)) => 5,
        Some(Request::Debug(false)) => 6,
    }
}
