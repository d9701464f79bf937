# `make demo` and `make test` are the two commands that a newcomer needs; both install what they use.
SHELL := /bin/bash
PYTHON := target/test-python/bin/python

.PHONY: demo test test-install torture mutants fuzz setup lint bench compare soak assets install install-files uninstall deb clean

demo: ## builds, coalesces a sample chain, verifies its content
	cargo build --release --locked -p vhd-tool -p testkit
	testdata/demo

test: setup ## every test, a smoke run of every benchmark, and an installation
	set -o pipefail; { cargo test --workspace --locked --all-targets && cargo test --workspace --locked --doc; } 2>&1 | tee target/test.log
	@awk '/^test result:/ { passed += $$4; failed += $$6 } END { print passed " passed, " failed " failed" }' target/test.log
	@$(MAKE) --no-print-directory test-install

setup: $(PYTHON) ## peers that the tests compare with; as root, from the package registries
	@missing=(); for tool in qemu-img qemu-io qemu-nbd strace mkfs.ext4 filefrag mkfs.xfs mkfs.btrfs lvs fuse2fs; do command -v $$tool >/dev/null || missing+=($$tool); done; \
	if (( $${#missing[@]} )); then apt-get update -qq && apt-get install -y -qq qemu-utils strace e2fsprogs xfsprogs btrfs-progs lvm2 fuse2fs; fi

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

torture: setup ## crash states, kills, guests beside tapdisk, forests that are attacked and forests with changed blocks, TORTURE times as many as `make test` tries
	TORTURE=$${TORTURE:-20} cargo test --release --locked -p vhd-tool --test crash -- --nocapture
	TORTURE=$${TORTURE:-20} cargo test --release --locked -p vhd-tool --test vhd_util beside -- --nocapture
	TORTURE=$${TORTURE:-20} cargo test --release --locked -p coalesce-worker --test it forests -- --nocapture
	TORTURE=$${TORTURE:-20} cargo test --release --locked -p sr-plugin --test lives tracked -- --nocapture

mutants: setup ## wrong lines put into the modules where one loses data, by MUTANTS_SEED, for MUTANTS_MINUTES; see docs/mutants.md
	cargo run --locked -q --manifest-path mutants/Cargo.toml --target-dir target/mutants/runner

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

ASSETS ?= target/assets

assets: ## shell completions and man pages, into target/assets
	cargo run --release --locked -q -p vhd-tool --example assets -- $(ASSETS)

# Where `install` puts things. `vhd-util` is a link to vhd-tool: where blktap's own is installed, PREFIX decides which is found.
PREFIX ?= /usr/local
BINARIES ?= target/release
PROGRAMS := vhd-tool coalesce-worker sr-plugin
ROOT = $(DESTDIR)$(PREFIX)
UNITS = $(DESTDIR)$(if $(filter /usr,$(PREFIX)),/usr/lib,/etc)/systemd/system

install: assets ## programs, the vhd-util link, man pages, completions and the unit, under PREFIX (/usr/local)
	cargo build --release --locked -p vhd-tool -p coalesce-worker -p sr-plugin
	$(MAKE) --no-print-directory install-files

install-files:
	install -d $(ROOT)/bin $(ROOT)/share/man/man1 $(ROOT)/share/bash-completion/completions $(ROOT)/share/zsh/site-functions \
		$(ROOT)/share/fish/vendor_completions.d $(UNITS) $(DESTDIR)/etc/default
	install $(addprefix $(BINARIES)/,$(PROGRAMS)) $(ROOT)/bin
	ln -sfn vhd-tool $(ROOT)/bin/vhd-util
	install -m 644 $(ASSETS)/man/*.1 $(ROOT)/share/man/man1
	for name in vhd-tool vhd-util coalesce-worker; do \
		install -m 644 $(ASSETS)/completions/$$name.bash $(ROOT)/share/bash-completion/completions/$$name && \
		install -m 644 $(ASSETS)/completions/_$$name $(ROOT)/share/zsh/site-functions && \
		install -m 644 $(ASSETS)/completions/$$name.fish $(ROOT)/share/fish/vendor_completions.d || exit 1; \
	done
	sed 's|/usr/bin|$(PREFIX)/bin|' coalesce-worker/systemd/coalesce-worker.service > $(UNITS)/coalesce-worker.service
	[ -e $(DESTDIR)/etc/default/coalesce-worker ] || install -m 644 coalesce-worker/systemd/default $(DESTDIR)/etc/default/coalesce-worker

uninstall: ## what `install` has put there, but for /etc/default/coalesce-worker
	rm -f $(addprefix $(ROOT)/bin/,$(PROGRAMS) vhd-util) $(UNITS)/coalesce-worker.service
	for name in vhd-tool vhd-util coalesce-worker; do \
		rm -f $(ROOT)/share/man/man1/$$name.1 $(ROOT)/share/man/man1/$$name-*.1 $(ROOT)/share/bash-completion/completions/$$name \
			$(ROOT)/share/zsh/site-functions/_$$name $(ROOT)/share/fish/vendor_completions.d/$$name.fish; \
	done

test-install: ## what has been built for the tests, installed into a folder, used there, and removed again
	rm -rf target/test-install && cargo build --workspace --locked -q --example assets && target/debug/examples/assets target/debug/assets
	$(MAKE) --no-print-directory install-files BINARIES=target/debug ASSETS=target/debug/assets DESTDIR=target/test-install
	cd target/test-install/usr/local && bin/vhd-util create -n disk.vhd -s 4 && [ "$$(bin/vhd-util query -v -n disk.vhd)" = 4 ] && \
		bin/vhd-tool check disk.vhd && bin/sr-plugin methods > /dev/null && bin/coalesce-worker --version > /dev/null && rm disk.vhd
	! command -v systemd-analyze > /dev/null || systemd-analyze verify --man=no target/test-install/etc/systemd/system/coalesce-worker.service 2>&1 | grep -v "is not executable" | grep . && exit 1 || true
	$(MAKE) --no-print-directory uninstall DESTDIR=target/test-install
	[ "$$(find target/test-install -type f -o -type l)" = target/test-install/etc/default/coalesce-worker ]

deb: assets ## a Debian package of the same, in target/debian
	@cargo deb --version >/dev/null 2>&1 || cargo install --locked cargo-deb
	cargo build --release --locked -p vhd-tool -p coalesce-worker -p sr-plugin
	mkdir -p target/assets/bin && ln -sfn vhd-tool target/assets/bin/vhd-util
	gzip -9nkf target/assets/man/*.1
	cargo deb --quiet --no-build --locked -p vhd-tool

clean:
	cargo clean
