#!/usr/bin/env bash
# Builds bpf-linker against the LLVM that the pinned Rust toolchain itself brings, so that no LLVM need be installed.
set -eu
root=$1
rust=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$(dirname "$0")/../rust-toolchain.toml")
sysroot=$(rustc "+$rust" --print sysroot)
llvm=$root/llvm
mkdir -p "$llvm"
ln -sf "$sysroot"/lib/libLLVM.so.* "$llvm/libLLVM.so"
RUSTFLAGS="-L native=$llvm -C link-arg=-Wl,-rpath,$sysroot/lib" \
    cargo "+$rust" install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22 --root "$root"
