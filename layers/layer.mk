# What both layers share; each one's Makefile includes this. `sam build` runs them in a copy of their directory but names
# the Makefile where it really lies, so paths begin there.
# ARTIFACTS_DIR   where the layer goes, absolute: set by `sam build`
# PYTHON_VERSION  of the functions: what template.yaml says, unless make's command line says another
# ARCHITECTURE    the same
ROOT := $(realpath $(dir $(lastword $(MAKEFILE_LIST)))/..)
UV := $(ROOT)/.uv/bin/uv
PYTHON_VERSION := $(shell sed -n 's/^ *Runtime: python//p' $(ROOT)/template.yaml)
ARCHITECTURE := $(shell sed -n 's/^ *Architectures: \[\(.*\)\]$$/\1/p' $(ROOT)/template.yaml)
PLATFORM := $(ARCHITECTURE:arm64=aarch64)-manylinux_2_28# Lambda's Amazon Linux 2023 has glibc 2.34
OUT := $(ARTIFACTS_DIR)/python
LIMIT_MB := 225# of Lambda's 250; the rest is for the adapter, the function and the other layer

# The Python that the bytecode is for: the machine's, or one that uv fetches.
define find_python
for python in python$(PYTHON_VERSION) "$$HOME"/.pyenv/versions/$(PYTHON_VERSION).*/bin/python$(PYTHON_VERSION); do \
  "$$python" -c '' 2>/dev/null && break; python=; \
done; \
[ -n "$$python" ] || python=$$($(UV) python install --quiet $(PYTHON_VERSION) 2>/dev/null && $(UV) python find --managed-python $(PYTHON_VERSION)) || true
endef

# A layer is read-only, so modules without bytecode would be compiled at every cold start: importing takes three times as
# long. Bytecode that never looks at its source, fixed times and modes: the same files on every build.
define finish
@find "$(OUT)" -name __pycache__ -prune -exec rm -rf {} +
@$(find_python); \
if [ -n "$$python" ]; then \
  cd "$(OUT)" && PYTHONHASHSEED=0 "$$python" -m compileall -qq -j 0 --invalidation-mode unchecked-hash -s "$(OUT)" -p /opt/python "$(OUT)"; \
else echo "no python$(PYTHON_VERSION) here and none to be had: this layer has no bytecode, and cold starts will be slow"; fi
@TZ=UTC find "$(OUT)" -exec chmod u=rwX,go=rX {} + -exec touch -h -t 198001020000 {} +
@size=$$(($$(find "$(OUT)" -type f -exec cat {} + | wc -c) / 1000000 + 1)); echo "$@: $$size MB for $(ARCHITECTURE), Python $(PYTHON_VERSION)"; \
[ $$size -le $(LIMIT_MB) ] || { echo "$@: $$size MB do not fit into Lambda's 250 MB beside the rest" >&2; exit 1; }
endef
