.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X github.com/portsnare/portsnare/internal/version.Version=$(VERSION)
FUZZTIME := 30s

# The linter is built from source with our Go, so that it knows our language version.
GOLANGCI_VERSION := v2.15.0
GOLANGCI_LINT := .tools/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: check-go ## build the programs into bin/
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/ ./cmd/...

.PHONY: run
run: ## build the detector and start it on all interfaces (root)
	@[ "$$(id -u)" -eq 0 ] || { echo "Seeing raw packets needs root: run 'make build' and then 'sudo bin/portsnared'" >&2; exit 1; }
	@$(MAKE) --no-print-directory build
	bin/portsnared

.PHONY: demo
demo: ## watch nmap scan a throw-away host and what Portsnare says (root)
	@docs/demo.sh

.PHONY: test
test: check-go ## install what the tests need from Debian and run all tests
	@.ci/install-test-tools
	PATH="$$PATH:/usr/sbin:/sbin" CGO_ENABLED=1 go test -race ./...
	cd examples/webhook && CGO_ENABLED=1 go test -race ./...

.PHONY: lint
lint: check-go $(GOLANGCI_LINT) ## check go.mod, style and import rules
	go mod tidy -diff
	$(GOLANGCI_LINT) run
	cd examples/webhook && go mod tidy -diff && $(CURDIR)/$(GOLANGCI_LINT) run

.PHONY: proto
proto: ## generate the code of the module protocol anew (protoc and its Go plugins)
	go generate ./outputs/outputapi/outputv1

.PHONY: fuzz
fuzz: check-go ## run every fuzz target for FUZZTIME (default 30s)
	.ci/fuzz $(FUZZTIME)

.PHONY: bench
bench: build ## measure functions, then the whole detector (root)
	go test -run '^$$' -bench . -benchmem ./...
	go run ./internal/bench

.PHONY: clean
clean: ## remove what was built, the linter too
	rm -rf bin .tools

.PHONY: check-go
check-go:
	@.ci/check-go

$(GOLANGCI_LINT): | check-go
	@echo "building golangci-lint $(GOLANGCI_VERSION), once, in about two minutes"
	@CGO_ENABLED=0 GOBIN=$(CURDIR)/$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
