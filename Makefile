# `make demo` and `make test` are the two commands that a newcomer needs; both install what they use.
SHELL := /bin/bash
PYTHON := target/test-python/bin/python

.PHONY: demo test torture setup lint bench compare soak assets clean

demo: ## builds, coalesces a sample chain, verifies its content
	cargo build --release --locked -p vhd-tool -p testkit
	testdata/demo

test: setup ## every test, and a smoke run of every benchmark
	set -o pipefail; { cargo test --workspace --locked --all-targets && cargo test --workspace --locked --doc; } 2>&1 | tee target/test.log
	@awk '/^test result:/ { passed += $$4; failed += $$6 } END { print passed " passed, " failed " failed" }' target/test.log

setup: $(PYTHON) ## peers that the tests compare with; as root, from the package registries
	@missing=(); for tool in qemu-img qemu-io strace mkfs.ext4 filefrag mkfs.xfs mkfs.btrfs; do command -v $$tool >/dev/null || missing+=($$tool); done; \
	if (( $${#missing[@]} )); then apt-get update -qq && apt-get install -y -qq qemu-utils strace e2fsprogs xfsprogs btrfs-progs; fi

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

assets: ## shell completions and man pages, into target/assets
	cargo run --release --locked -q -p vhd-tool --example assets -- target/assets

clean:
	cargo clean
