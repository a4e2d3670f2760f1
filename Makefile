# `make demo` and `make test` install what is missing; both need Debian 12 or later, Linux 6.6 or later, root and rustup.
SHELL := /bin/bash -o pipefail
TOOLS := $(HOME)/.cache/selvage/tools
BPF_LINKER := $(TOOLS)/bin/bpf-linker
CARGO_DENY := $(TOOLS)/bin/cargo-deny
RUST := $(shell sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
PACKAGES := nftables iproute2 tcpdump curl python3 nginx-light
TEST_PACKAGES := wireguard-go wireguard-tools iperf3 containernetworking-plugins wrk nghttp2-client python3-venv
export PATH := $(TOOLS)/bin:$(HOME)/.cargo/bin:$(PATH)

.PHONY: demo test lint bench test-long tools test-tools build release check-machine clean

demo: check-machine tools release
	target/release/demo

test: check-machine tools test-tools build
	scripts/test.sh

lint: tools $(CARGO_DENY)
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo deny --log-level error check bans licenses sources

bench: check-machine tools test-tools release
	target/release/bench

test-long: check-machine tools test-tools build
	SELVAGE_LONG=1 scripts/test.sh

build:
	cargo build --workspace --bins --locked

release:
	cargo build --workspace --bins --locked --release

# One line for what the machine lacks, before an hour of compiling.
check-machine:
	@scripts/check-machine.sh

tools: $(BPF_LINKER)
	@scripts/debian-packages.sh $(PACKAGES)

test-tools:
	@scripts/debian-packages.sh $(TEST_PACKAGES)
	@scripts/install-google-re2.sh $(TOOLS)

$(BPF_LINKER): | rust
	scripts/install-bpf-linker.sh $(TOOLS)

$(CARGO_DENY): | rust
	cargo install cargo-deny --version 0.20.2 --locked --root $(TOOLS)

# A toolchain file installs nothing by itself where rustup's auto-install is off.
.PHONY: rust
rust:
	@rustup toolchain list | grep -q '^$(RUST)-' || rustup toolchain install $(RUST) --profile minimal
	@rustup component add --toolchain $(RUST) rust-src clippy rustfmt

clean:
	cargo clean
