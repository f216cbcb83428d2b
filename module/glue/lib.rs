// SPDX-License-Identifier: GPL-2.0

//! The commands of the MFRC522 driver, as a static library that a C module calls.
//!
//! Only [`ffi`] knows of C, and only it has `unsafe`; the rest is tested on the host, with a fake
//! of the device.

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_op_in_unsafe_fn)]
#![warn(unreachable_pub, unused_qualifications)]

mod chip;
mod command;
#[cfg(not(test))]
mod ffi;
mod request;
#[cfg(test)]
mod tests;

/// Never runs: a call of `core`'s panicking functions, which lead here, would make the module's
/// link fail.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
