# `make demo` and `make test` are the two commands that a newcomer needs; both install what they use.
SHELL := /bin/bash
PYTHON := target/test-python/bin/python

.PHONY: demo test torture fuzz setup lint bench compare soak assets clean

demo: ## builds, coalesces a sample chain, verifies its content
	cargo build --release --locked -p vhd-tool -p testkit
	testdata/demo

test: setup ## every test, and a smoke run of every benchmark
	set -o pipefail; { cargo test --workspace --locked --all-targets && cargo test --workspace --locked --doc; } 2>&1 | tee target/test.log
	@awk '/^test result:/ { passed += $$4; failed += $$6 } END { print passed " passed, " failed " failed" }' target/test.log

setup: $(PYTHON) ## peers that the tests compare with; as root, from the package registries
	@missing=(); for tool in qemu-img qemu-io strace mkfs.ext4 filefrag mkfs.xfs mkfs.btrfs lvs; do command -v $$tool >/dev/null || missing+=($$tool); done; \
	if (( $${#missing[@]} )); then apt-get update -qq && apt-get install -y -qq qemu-utils strace e2fsprogs xfsprogs btrfs-progs lvm2; fi

$(PYTHON):
	python3 -m venv target/test-python || { apt-get update -qq && apt-get install -y -qq python3-venv && python3 -m venv target/test-python; }
	target/test-python/bin/pip install --quiet --disable-pip-version-check libvhdi-python

lint: ## formatting, clippy and rustdoc, warnings denied
	cargo fmt --all --check
	cargo clippy --workspace --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps

bench: ## criterion benchmarks
	cargo bench -p benches

compare: ## the same work by us and by whichever peers are on the PATH
	cargo build --release --locked
	benches/compare

soak: ## the model test, for as long as CASES cases take
	PROPTEST_CASES=$${CASES:-100000} cargo test --release --locked -p coalesce-worker --test it model

torture: setup ## crash states and kills, TORTURE times as many as `make test` tries
	TORTURE=$${TORTURE:-20} cargo test --release --locked -p vhd-tool --test crash -- --nocapture

FUZZ_TARGETS ?= footer header image chain operations journal plugin

fuzz: ## each fuzz target for FUZZ_SECONDS, under AddressSanitizer; needs a nightly toolchain. What is found: fuzz/artifacts
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	@rustup toolchain list 2>/dev/null | grep -q ^nightly || rustup toolchain install nightly --profile minimal
	cd fuzz && cargo +nightly fuzz build
	mkdir -p target/fuzz && for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/$$target; \
		(cd fuzz && ASAN_OPTIONS=quarantine_size_mb=16 cargo +nightly fuzz run $$target ../target/fuzz/$$target corpus/$$target -- \
			-max_total_time=$${FUZZ_SECONDS:-60} -rss_limit_mb=256 -timeout=1 -max_len=131072 -print_final_stats=1) || exit 1; \
	done

assets: ## shell completions and man pages, into target/assets
	cargo run --release --locked -q -p vhd-tool --example assets -- target/assets

clean:
	cargo clean
