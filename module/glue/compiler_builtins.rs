// SPDX-License-Identifier: GPL-2.0

//! Stands for the crate that rustc links to every `no_std` library; what it would offer is in the
//! kernel, or isn't used.

#![allow(internal_features)]
#![feature(compiler_builtins)]
#![compiler_builtins]
#![no_builtins]
#![no_std]
