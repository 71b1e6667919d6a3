# The front door; Meson and ninja do the work. `make help` lists the targets.
BUILD ?= build/release
PREFIX ?= /usr/local

.PHONY: help deps build demo run test vllm bench fuzz format lint install clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile | expand -t 16

deps: ## install what build and test need (root or sudo, asks nothing)
	@tools/deps build test

$(BUILD)/build.ninja:
	@tools/deps build
	@tools/setup $(BUILD) --buildtype=release -Dtests=false

build: $(BUILD)/build.ninja ## build/baton
	@ninja -C $(BUILD) --quiet src/cli/baton
	@ln -sf $(notdir $(BUILD))/src/cli/baton build/baton

demo: build ## prefillers, decoders and gateway on this machine: three answers, then a killed rank
	@tools/demo

run: build ## the demo's cluster, for curl, until Ctrl-C
	@tools/demo run

test: ## everything tested; the last line counts
	@tools/test

vllm: build ## real vLLM servers behind the gateway: VLLM=/path/to/bin/vllm [VLLM_ARGS=--pd]
	@tests/e2e/vllm.py $(VLLM) $(VLLM_ARGS)

bench: ## figures beside peers
	@tools/bench

fuzz: ## run every fuzz target for a while (FUZZ_SECONDS, default 30 each)
	@tools/fuzz

format: ## clang-format in place
	@git ls-files '*.c' '*.h' | xargs clang-format -i

lint: ## format, includes between rooms, file lengths
	@tools/lint

install: build ## to PREFIX (default /usr/local)
	@install -D -m 755 build/baton $(DESTDIR)$(PREFIX)/bin/baton

clean: ## remove everything built
	@rm -rf build build-*
