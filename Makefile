# Tallystick's tasks. `make` alone lists them.
#
# run, build, test, smoke, bench and lint need Go, Node/npm and make, and set up the rest themselves below this folder.
# What needs more (Java, a Debian Postgres, Chromium, Python) has a target of its own, which says what is missing.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export CGO_ENABLED := 0
# One set of compile flags for programs, tests, vet and the linter: with another, Go compiles every package once more.
export GOFLAGS := $(strip $(shell go env GOFLAGS 2>/dev/null) -trimpath)
# git refuses a clone that belongs to another user; the binary takes its version from it all the same.
export GIT_CONFIG_COUNT := 1
export GIT_CONFIG_KEY_0 := safe.directory
export GIT_CONFIG_VALUE_0 := *

BIN := bin/tallystick
GOTEST := .ci/gotest
# The parts of the run of .ci/run that calls, if any. What two of them would do in the same way, one leaves to the other
# and says so.
PARTS :=
beside = $(filter $(1),$(PARTS))
# Packages whose tests wait for engines most of their time: `go test` begins with what is named first.
LONG := ./ledger ./analytics ./cmd/tallystick
# Packages whose tests are about goroutines, locks or the order of events, the longest first.
CONCURRENT := ledger internal/keyring internal/kafka internal/postgres internal/audit internal/authn internal/transport internal/secrets internal/connections internal/provider internal/spool internal/gpuagent ingest processors analytics api
# Below them, what starts no goroutine and shares nothing, in its tests neither: functions of their arguments, and readers.
PURE := ingest/event ingest/usage ingest/usage/bpe ingest/attribution ingest/callback ledger/chain ledger/verify ledger/evidence/pgtree ledger/pgread analytics/report processors/finding processors/rollup
# Long tests there of one goroutine, and of how much memory is used, which the race detector multiplies.
SEQUENTIAL := TestPackagesStreamInBoundedMemory TestBytesOfAPackage TestGrowsAndResumes TestRerate TestAllocationAgainstReference TestReportsAgainstReference TestDividedAgainstReference TestIsolation TestInjection
# The race detector watches every access, whatever the values: it needs fewer of the cases that are drawn.
FEWER := TALLYSTICK_SIM_SEEDS=100 RAPID_CHECKS=30
# What simulates the engines is not repeated on real servers.
SIMULATED := -skip '^(TestSimulation.*|TestRerate)$$'
# packages of a list, with all below them but the pure ones.
packages = $$(go list $(foreach d,$(1),./$(d)/...) | grep -vE '/($(subst $(eval) ,|,$(PURE)))$$')
# What other parts do again in full, or in the same way: `make test` alone leaves out nothing.
LEFT_PACKAGES = $(if $(call beside,isolation),internal/isolation) $(if $(call beside,lint),internal/archtest)
LEFT_TESTS = $(if $(call beside,tamper),TestTamper) $(if $(call beside,edge),TestPlantedPromptsStandNowhere)
either = ($(subst $(eval) ,|,$(strip $(1))))
# packages whose tests ask testenv for one of these engines; the whole program has targets of its own.
asking = $(sort $(patsubst %/,./%,$(dir $(shell grep -rlE 'testenv\.($(1))\>' --include='*_test.go' analytics api ingest internal ledger migrations processors))))

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9\/-]+:.*## / {printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

## Set-up: each is a no-op when nothing changed.

.PHONY: engines
engines: ## install the embedded engines (Postgres, ClickHouse) from the lock file
	@deploy/engines/install.sh

.PHONY: web
web: ## build the dashboard that the binary embeds
	@deploy/web/build

.PHONY: build
build: web ## build bin/tallystick
	@go build -buildvcs=auto -o $(BIN) ./cmd/tallystick

LINTER := bin/golangci-lint
VERIFIER := bin/tallystick-verify
.PHONY: verifier
verifier: ## build bin/tallystick-verify, the auditors' program: one static file below 15 MB
	@go build -buildvcs=auto -ldflags '-s -w' -o $(VERIFIER) ./cmd/tallystick-verify
	@[ "$$(stat -c %s $(VERIFIER))" -lt 15000000 ] || { echo "verifier: $(VERIFIER) is too large" >&2; exit 1; }

## What other targets fetch and build when they need it, to have it all at once: `make -j8 fetch`.

.PHONY: fetch fetch/modules fetch/tools fetch/kafka fetch/moto fetch/clients
fetch: engines web $(LINTER) fetch/modules fetch/tools fetch/kafka fetch/moto fetch/clients ## fetch and build beforehand what all targets need (Maven, Python 3 with venv)

fetch/modules:
	@go mod download

fetch/tools:
	@deploy/tools/generate --install

fetch/kafka:
	@deploy/kafka/broker libs

fetch/moto:
	@deploy/kms/with-moto --install

fetch/clients:
	@deploy/clients/install

## Use

.PHONY: run
run: engines build ## start everything embedded with a demo load, and show a live status
	@exec $(BIN) up --demo

## Tests

.PHONY: test
test: engines web ## run all Go tests on the embedded engines
	@$(if $(strip $(LEFT_PACKAGES) $(LEFT_TESTS)),echo "test: left to other parts of this run: $(strip $(LEFT_PACKAGES) $(LEFT_TESTS))")
	@$(GOTEST) test -timeout 20m -p 3 $(if $(strip $(LEFT_TESTS)),-skip '^$(call either,$(LEFT_TESTS))$$') \
	  $$(go list $(LONG) ./... | grep -vE '/$(call either,none $(LEFT_PACKAGES))$$')

.PHONY: test/race
test/race: engines web ## run the concurrent packages' tests under the race detector (needs a C compiler)
	@command -v "$$(go env CC)" >/dev/null || { echo "test/race: the race detector needs a C compiler: install gcc" >&2; exit 1; }
	@echo "test/race: not repeated under the race detector, of one goroutine: $(SEQUENTIAL); of those that draw cases: $(FEWER)"
	@CGO_ENABLED=1 $(FEWER) $(GOTEST) test/race -race -timeout 20m -p 3 -skip '^$(call either,$(SEQUENTIAL))$$' $(call packages,$(CONCURRENT))

.PHONY: test/kafka
test/kafka: engines web ## run the Kafka suite on a real Apache Kafka with SCRAM (needs Java 17, Maven)
	@deploy/kafka/with-broker --scram -- $(GOTEST) test/kafka -count=1 -p 1 -timeout 10m $(SIMULATED) $(call asking,Kafka)

.PHONY: test/kafka3
test/kafka3: engines web ## the same on three brokers with replication 3, and kill one
	@deploy/kafka/with-broker --nodes 3 --scram -- $(GOTEST) test/kafka3 -count=1 -timeout 15m ./internal/kafka/...

.PHONY: test/servers
test/servers: engines web ## run the store suites on a Debian Postgres (apt-get install postgresql), and on a ClickHouse if TALLYSTICK_TEST_CLICKHOUSE_DSN names one
	@deploy/postgres/with-postgres -- $(GOTEST) test/servers -count=1 -timeout 15m $(SIMULATED) $(call asking,Postgres|PostgresCopy|MigratedPostgres$(if $(TALLYSTICK_TEST_CLICKHOUSE_DSN),|ClickHouse))

.PHONY: test/chaos
test/chaos: engines web ## kill, stop and fill the disks below the engines of the whole program (needs root)
	@TALLYSTICK_CHAOS=1 $(GOTEST) test/chaos -count=1 -timeout 15m -run '^Test(Full|Faults)' ./cmd/tallystick

.PHONY: test/web
test/web: web ## test the dashboard's code, and the page in a browser (needs Chromium)
	@cd api/web && npm test --silent
	@command -v "$${CHROMIUM:-chromium}" >/dev/null || { echo "test/web: Chromium is missing: apt-get install chromium, or set CHROMIUM" >&2; exit 1; }
	@cd api/web && CHROMIUM="$$(command -v "$${CHROMIUM:-chromium}")" npm run --silent e2e
	@echo "test/web: ok"

.PHONY: test/verifier
test/verifier: ## check the Python verifier, written from docs/ledger-format.md, against the test vectors (needs Python 3)
	@command -v python3 >/dev/null || { echo "test/verifier: python3 is missing" >&2; exit 1; }
	@python3 docs/verify.py --vectors ledger/chain/testdata
	@python3 docs/verify.py --evidence-vectors ledger/evidence/testdata
	@echo "test/verifier: ok"

.PHONY: test/kms
test/kms: ## wrap root keys with moto's AWS KMS (needs Python 3 with venv)
	@deploy/kms/with-moto -- $(GOTEST) test/kms -count=1 -timeout 5m ./internal/keyring/awskms

.PHONY: test/bedrock
test/bedrock: engines web ## read invocation logs from moto's S3, SQS and CloudWatch Logs (needs Python 3 with venv)
	@deploy/kms/with-moto -- $(GOTEST) test/bedrock -count=1 -timeout 5m ./ingest/bedrock/...

.PHONY: test/clients
test/clients: engines build ## point the real OpenAI and Anthropic SDKs at the proxy (needs Python 3 with venv)
	@deploy/clients/run >bin/clients.log || { cat bin/clients.log; exit 1; }
	@grep '^clients:' bin/clients.log

.PHONY: edge
edge: engines build ## show that the edge counts right: corpus, SDKs, replay attacks, spool, leaks, proxy (needs Python 3 with venv)
	@PARTS='$(PARTS)' deploy/edge/run

.PHONY: isolation
isolation: engines build ## try to reach one tenant's data as another, in every way there is (needs PgBouncer)
	@mkdir -p bin && go test -vet=off -ldflags=-w -c -o bin/isolation.test ./internal/isolation
	@$(if $(call beside,test),echo "isolation: left to the part test: analytics",go test -vet=off -ldflags=-w -count=1 -run '^Test(Isolation|KnownHoles|EveryTable|Filter|Mutations|StatementsStay|NamesAreClosed)' ./analytics)
	@cd internal/isolation && TALLYSTICK_ISOLATION=1 TALLYSTICK_ISOLATION_BINARY=$(CURDIR)/$(BIN) $(CURDIR)/bin/isolation.test -test.timeout 10m

.PHONY: tamper
tamper: engines web ## tamper with stores in every way of docs/security.md, as superuser, and want each caught
	@mkdir -p bin && go test -vet=off -ldflags=-w -c -o bin/tamper.test ./cmd/tallystick
	@cd cmd/tallystick && TALLYSTICK_TAMPER_ATTEMPTS=$${TALLYSTICK_TAMPER_ATTEMPTS:-3} TALLYSTICK_TAMPER_CLEAN=$${TALLYSTICK_TAMPER_CLEAN:-1000} \
	  ../../bin/tamper.test -test.run '^TestTamper$$' -test.timeout 10m >../../bin/tamper.log || { cat ../../bin/tamper.log; exit 1; }
	@grep '^tamper:' bin/tamper.log

.PHONY: smoke
smoke: engines build ## the whole path under kill -9, compared with an independent oracle
	@$(BIN) smoke

.PHONY: smoke/short
smoke/short: engines build ## the same with fewer events
	@$(BIN) smoke --short

.PHONY: smoke/kafka
smoke/kafka: engines build ## a short smoke on a real Apache Kafka with SCRAM (needs Java 17, Maven)
	@deploy/kafka/with-broker --scram -- $(BIN) smoke --short

.PHONY: bench
bench: engines build ## measure every hot path and end to end, as ratios to limits of the same run
	@$(BIN) bench

.PHONY: bench/short
bench/short: engines build ## the same for a few seconds each: shows that it runs, not how fast
	@$(BIN) bench --short

.PHONY: bench/gateways
bench/gateways: build ## measure the proxy beside Portkey's gateway and LiteLLM's proxy (needs Python 3 with venv)
	@deploy/clients/install litellm ../gateways
	@$(BIN) bench gateways

.PHONY: bench/gateways/short
bench/gateways/short: build ## the same for a few seconds: shows that it runs, not how fast
	@deploy/clients/install litellm ../gateways
	@$(BIN) bench gateways --short

# What the gateway of agents reaches: full or short.
agents = mkdir -p bin; go test -vet=off -ldflags=-w -count=1 -timeout 5m -run '^$$' -bench '^BenchmarkAgents$$/^$(1)$$' -benchtime 1x ./ingest/agent >bin/agents.log 2>&1 \
  || { cat bin/agents.log; exit 1; }; grep '^agents:' bin/agents.log

.PHONY: bench/agents
bench/agents: engines ## measure the gateway of GPU agents: 2,000 streams, hellos, a reconnect storm that must lose nothing
	@$(call agents,full)

.PHONY: bench/agents/short
bench/agents/short: engines ## the same for a few seconds: the storm is whole, the rates show only that it runs
	@$(call agents,short)

## Care

$(LINTER): deploy/lint/go.mod deploy/lint/go.sum
	@echo "lint: building the pinned linter (once, some minutes)"
	@cd deploy/lint && go build -o ../../$@ tool
	@touch $@

.PHONY: lint
lint: web $(LINTER) ## gofmt, go vet, golangci-lint and the rules of internal/archtest
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | grep -v '^api/gen/' | xargs gofmt -l); \
	  [ -z "$$unformatted" ] || { echo "lint: not gofmt-clean:"; echo "$$unformatted"; exit 1; }
	@go vet ./...
	@$(LINTER) run ./...
	@$(GOTEST) archtest -count=1 ./internal/archtest
	@echo "lint: ok"

.PHONY: generate
generate: ## write api/gen from api/proto
	@deploy/tools/generate

.PHONY: generate/check
generate/check: ## fail when api/gen is not what api/proto generates
	@deploy/tools/generate --check
	@echo "generate/check: ok"

.PHONY: clean
clean: ## remove what was built and installed here; data directories stay
	@rm -rf bin api/web/dist/* api/web/node_modules deploy/engines/node_modules deploy/tools/node_modules deploy/tools/bin deploy/kafka/libs deploy/kms/venv deploy/clients/venv deploy/clients/node/node_modules deploy/gateways/node_modules
