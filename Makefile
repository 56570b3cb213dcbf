# The one door: people and CI call these recipes and nothing else.
#
#   make run      build Tidegate and let it do its main job (the how-to, end to end), until Ctrl-C
#   make test     everything that proves: unit, property, golden, host and end-to-end tests
#   make check    format, lints, documentation, house rules' tools, licences
#   make e2e      only the end-to-end tests
#   make fuzz     every fuzz target for FUZZ_SECONDS each
#   make agree    a million generated maps and requests through the router and its naive twin
#   make bench    the benchmarks; their figures go to docs/benchmarks.md
#   make deps     the Debian packages all of this needs
#   make wire     generate crates/wire again from the discovery documents
#
# UPDATE_GOLDEN=1 make test rewrites the golden files; review the result as a diff.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The pinned compiler, or else the one that is installed: rust-version in Cargo.toml has the last word.
ifneq ($(shell rustc --version >/dev/null 2>&1 && echo pinned),pinned)
export RUSTUP_TOOLCHAIN := $(shell rustup toolchain list 2>/dev/null | grep -v nightly | head -n 1 | cut -d ' ' -f 1)
endif

# Goldens of every kind follow one switch.
ifdef UPDATE_GOLDEN
export UPDATE_EXPECT := 1
endif

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
export CARGO_TARGET_DIR := $(abspath $(TARGET_DIR))
HAS_NEXTEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
FUZZ_SECONDS ?= 60
CARGO_FLAGS ?= --locked

.PHONY: help run build test e2e check fmt fuzz agree bench deps deps-run wire

help:
	@sed -n 's/^#   //p' Makefile

deps-run:
	@scripts/packages run

deps:
	@scripts/packages run test bench

build:
	cargo build $(CARGO_FLAGS) --release -p tidegate

run: deps-run build
	$(CARGO_TARGET_DIR)/release/tidegate demo

# Binaries and tests are built in one go, so that no dependency is compiled twice with other features;
# everything after it runs what that build left.
BUILD_TESTS := cargo build $(CARGO_FLAGS) --workspace --bins --tests
ifeq ($(HAS_NEXTEST),yes)
RUN_TESTS := cargo nextest run $(CARGO_FLAGS) --workspace
RUN_E2E := $(RUN_TESTS) -E 'package(e2e)'
else
RUN_TESTS := cargo test $(CARGO_FLAGS) --workspace --bins --lib --tests --no-fail-fast -- --test-threads=1
RUN_E2E := cargo test $(CARGO_FLAGS) --workspace --test 'e2e_*' -- --test-threads=1
endif

test:
	@scripts/packages run test
	$(BUILD_TESTS)
	$(RUN_TESTS)

e2e:
	@scripts/packages run test
	$(BUILD_TESTS)
	$(RUN_E2E)

fmt:
	cargo fmt --all

check:
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc $(CARGO_FLAGS) --workspace --no-deps --document-private-items
	@scripts/licences

fuzz:
	@scripts/fuzz $(FUZZ_SECONDS)

agree:
	ROUTING_PAIRS=1000000 cargo test $(CARGO_FLAGS) --release -p tidegate-plan --test routing

bench:
	@scripts/packages run bench
	for part in bench/*/run; do $$part; done

wire:
	python3 crates/wire/generate/generate.py write
	cargo fmt -p tidegate-wire
