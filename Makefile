# What a newcomer and CI type. Every target can be run alone; `make test` is all of it, with one summary line.

CARGO  ?= cargo
HOST   := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
STATIC := target/$(HOST)/release/agent-relay-broker
SEEDS  ?= 2000
MINUTES ?= 10

.PHONY: help build static run check test unit sim sim-mutants integration nss demo-once clients bench soak

help:
	@echo 'make run            two agents talking, on this machine alone (ONCE=1: end when they have)'
	@echo 'make build          debug build'
	@echo 'make static         release build, one static file: $(STATIC)'
	@echo 'make check          format, lints, unit tests'
	@echo 'make test           everything: check, simulation, daemon, static binary, published clients'
	@echo 'make sim SEEDS=N    the simulation alone'
	@echo 'make sim-mutants    every planted defect must be caught by the simulation'
	@echo 'make soak MINUTES=N  a long life under traffic, and agents killed under traffic; fails when something grows or is lost'
	@echo 'make bench          footprint, latency and throughput as a table (BROKER=FILE: beside another binary)'

build:
	$(CARGO) build --locked

# A static-pie file needs an explicit target: otherwise the flag would also hit procedural macros, which cannot be static.
static:
	RUSTFLAGS="$${RUSTFLAGS:-} -C target-feature=+crt-static" $(CARGO) build --release --locked --target $(HOST)

run:
	$(CARGO) run --locked -- demo $(if $(ONCE),--once)

check:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(MAKE) --no-print-directory unit

unit:
	$(CARGO) test --locked --lib --bins

test:
	@bash tests/run.sh

sim:
	SEEDS=$(SEEDS) $(CARGO) test --locked --test sim -- --nocapture

sim-mutants:
	SEEDS=$(SEEDS) $(CARGO) test --locked --test sim --features mutants -- --nocapture every_mutant_is_caught

# The simulation, recorded wire shapes, and everything that starts real processes: brokers, engines, agents in terminals.
integration:
	SEEDS=$(SEEDS) $(CARGO) test --locked --no-fail-fast --test '*' $(if $(wildcard tests/bench/main.rs),--bench figures)

nss: static
	bash tests/static_nss.sh $(STATIC)

# The demo is a test too: it ends with 0 only if every message made its whole way.
demo-once: static
	@$(STATIC) demo --once && echo && echo '1 passed, 0 failed'

clients: static
	cd tests/clients && npm ci --no-audit --no-fund && BROKER_BIN=$(CURDIR)/$(STATIC) npm test

# One after the other: the second would count what the first makes the machine do.
soak:
	MINUTES=$(MINUTES) $(CARGO) test --locked --test daemon -- --ignored --nocapture --test-threads 1 soak_

bench: static
	BROKER_BIN=$(CURDIR)/$(STATIC) $(CARGO) bench --locked --bench figures
