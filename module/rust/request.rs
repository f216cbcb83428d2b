// SPDX-License-Identifier: GPL-2.0

//! The text commands of the MFRC522 driver, and their parser.
//!
//! Nothing here depends on the kernel, so that the parser can be compiled and tested on the host.

/// The size of the device's internal buffer.
pub(crate) const MEM_SIZE: usize = 25;

const MEM_WRITE: &[u8] = b"mem_write:";

/// The longest command: `mem_write:25:`, the data, and a newline.
pub(crate) const REQUEST_MAX: usize = MEM_WRITE.len() + 3 + MEM_SIZE + 1;

/// A parsed command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    /// Write at most [`MEM_SIZE`] bytes into the internal buffer.
    MemWrite(&'a [u8]),
    /// Read the internal buffer.
    MemRead,
    /// Read the version.
    GetVersion,
    /// Make a random ID.
    GenRandId,
    /// Run the self-test.
    SelfTest,
    /// Log every transfer, or stop doing so.
    Debug(bool),
}

/// Parses the text of one command, which may contain any byte.
///
/// One trailing newline is dropped, and never belongs to the data. Returns [`None`] for what is no
/// command.
pub(crate) fn parse(text: &[u8]) -> Option<Request<'_>> {
    if text.len() > REQUEST_MAX {
        return None;
    }
    let text = text.strip_suffix(b"\n").unwrap_or(text);

    if let Some(rest) = text.strip_prefix(MEM_WRITE) {
        return parse_mem_write(rest);
    }
    match text {
        b"mem_read" => Some(Request::MemRead),
        b"get_version" | b"version" => Some(Request::GetVersion),
        b"gen_rand_id" => Some(Request::GenRandId),
        b"self_test" => Some(Request::SelfTest),
        b"debug:on" => Some(Request::Debug(true)),
        b"debug:off" => Some(Request::Debug(false)),
        _ => None,
    }
}

/// Parses `<len>:<data>`, where `len` is the length of the data, at most [`MEM_SIZE`].
fn parse_mem_write(rest: &[u8]) -> Option<Request<'_>> {
    let colon = rest.iter().position(|&byte| byte == b':')?;
    let (digits, data) = (rest.get(..colon)?, rest.get(colon + 1..)?);
    if digits.is_empty() {
        return None;
    }

    let mut len = 0usize;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        len = len * 10 + usize::from(digit - b'0');
        if len > MEM_SIZE {
            return None;
        }
    }

    if data.len() == len {
        Some(Request::MemWrite(data))
    } else {
        None
    }
}
